//! What a folder is on: the nearest folder that is there already, and whether its files are in memory only.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::failure::{Code, Failure};

/// File systems that keep everything in memory: tmpfs and ramfs, as statfs(2) numbers them. They accept
/// `O_DIRECT` on new kernels, and yet nothing written to them is durable.
const MEMORY_FILE_SYSTEMS: [u32; 2] = [0x0102_1994, 0x8584_58f6];

/// Why a server does not keep its data in a folder.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoDisk {
    /// What is acknowledged would be gone with the machine.
    #[error("{} is on a file system in memory (tmpfs or ramfs)", folder.display())]
    InMemory {
        /// The folder.
        folder: PathBuf,
    },
    /// The operating system does not tell.
    #[error("{}: {source}", folder.display())]
    Unknown {
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl From<NoDisk> for Failure {
    fn from(error: NoDisk) -> Self {
        let failure = Self::new(Code::Usage, error.to_string());
        match error {
            NoDisk::InMemory { .. } => failure.hint("what is acknowledged must be on a disk"),
            NoDisk::Unknown { .. } => failure,
        }
    }
}

/// The folder, or the nearest above it that is there: it will be made on the same disk.
///
/// # Errors
///
/// `NotFound` where none is.
pub(crate) fn existing(folder: &Path) -> io::Result<&Path> {
    let found = folder.ancestors().find(|path| path.is_dir());
    found.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
}

/// Whether files in `folder`, which is there, are in memory only.
///
/// # Errors
///
/// Where the file system does not answer.
pub(crate) fn is_in_memory(folder: &Path) -> io::Result<bool> {
    let kind = rustix::fs::statfs(folder)?.f_type;
    Ok(MEMORY_FILE_SYSTEMS.contains(&(kind as u32)))
}

/// Refuses a folder, there already or to be made, whose files would be in memory only.
///
/// # Errors
///
/// [`NoDisk`].
pub(crate) fn check_on_disk(folder: &Path) -> Result<(), NoDisk> {
    match existing(folder).and_then(is_in_memory) {
        Ok(false) => Ok(()),
        Ok(true) => Err(NoDisk::InMemory { folder: folder.to_path_buf() }),
        Err(source) => Err(NoDisk::Unknown { folder: folder.to_path_buf(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_in_memory_is_refused_and_one_on_a_disk_is_not_made_already_or_not() {
        let disk = tempfile::tempdir().expect("a folder");
        check_on_disk(disk.path()).expect("on a disk");
        check_on_disk(&disk.path().join("a/b")).expect("will be on a disk");
        if !Path::new("/dev/shm").is_dir() {
            assert!(std::env::var_os("TIDEWATER_REQUIRE_TOOLS").is_none(), "no /dev/shm here");
            eprintln!("skipped: no /dev/shm here");
            return;
        }
        let memory = tempfile::tempdir_in("/dev/shm").expect("a folder");
        for folder in [memory.path().to_path_buf(), memory.path().join("a/b")] {
            let refused = check_on_disk(&folder);
            assert!(matches!(refused, Err(NoDisk::InMemory { .. })), "{folder:?}: {refused:?}");
        }
    }
}
