//! The folder of a cluster: made under `TMPDIR` or where asked, checked for `O_DIRECT`, removed when
//! the cluster is dropped, kept when a test fails.

use std::{
    env, fs,
    io::{self, Write},
    path::{Path, PathBuf},
    thread,
};

use rustix::fs::{Mode, OFlags};

use super::ClusterError;
use crate::file_system::is_in_memory;

/// Alignment that every disk accepts.
const DIRECT_BYTES: usize = 4096;

/// A temporary folder on a disk.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    keep: bool,
}

impl Folder {
    /// Makes a fresh folder below `parent`, or below `TMPDIR`.
    ///
    /// # Errors
    ///
    /// [`ClusterError::NoDirectIo`] on a tmpfs; [`ClusterError::File`].
    pub fn make(parent: Option<&Path>) -> Result<Self, ClusterError> {
        let parent = parent.map_or_else(env::temp_dir, Path::to_path_buf);
        fs::create_dir_all(&parent).map_err(ClusterError::file(&parent))?;
        check_direct_io(&parent)?;
        let made = tempfile::Builder::new().prefix("tidewater-").tempdir_in(&parent);
        let path = made.map_err(ClusterError::file(&parent))?.keep();
        let path = path.canonicalize().map_err(ClusterError::file(&path))?;
        Ok(Self { path, keep: false })
    }

    /// Where it is; absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the folder behind when dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.keep || thread::panicking() {
            eprintln!("kept: {}", self.path.display());
        } else if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Whether files in `folder` can be written past the page cache, to a disk.
///
/// # Errors
///
/// [`ClusterError::NoDirectIo`] where they cannot.
pub fn check_direct_io(folder: &Path) -> Result<(), ClusterError> {
    let refused = || ClusterError::NoDirectIo { folder: folder.to_path_buf() };
    if is_in_memory(folder).map_err(ClusterError::file(folder))? {
        return Err(refused());
    }
    let probe = folder.join(format!(".tidewater-direct-{}", std::process::id()));
    let written = write_direct(&probe);
    let removed = fs::remove_file(&probe);
    match written {
        Ok(()) => removed.map_err(ClusterError::file(&probe)),
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => Err(refused()),
        Err(e) => Err(ClusterError::file(&probe)(e)),
    }
}

fn write_direct(path: &Path) -> io::Result<()> {
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::DIRECT;
    let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?;
    let room = vec![0_u8; 2 * DIRECT_BYTES];
    let start = room.as_ptr().align_offset(DIRECT_BYTES);
    fs::File::from(file).write_all(&room[start..start + DIRECT_BYTES])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_in_memory_is_refused() {
        let shm = Path::new("/dev/shm");
        if !shm.is_dir() {
            assert!(env::var_os("TIDEWATER_REQUIRE_TOOLS").is_none(), "no /dev/shm here");
            eprintln!("skipped: no /dev/shm here");
            return;
        }
        assert!(matches!(check_direct_io(shm), Err(ClusterError::NoDirectIo { .. })));
    }

    #[test]
    fn a_folder_is_removed_with_its_content() {
        let folder = Folder::make(None).expect("a disk");
        let path = folder.path().to_path_buf();
        fs::write(path.join("x"), "y").expect("writable");
        drop(folder);
        assert!(!path.exists());
    }
}
