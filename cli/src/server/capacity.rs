//! How much of a disk a device may take that was not given a capacity.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use crate::file_system::existing;

/// A file's `blocks` are counted in these, whatever the file system's block is. stat(2).
const STAT_BLOCK_BYTES: u64 = 512;

/// Files that will be as large as they are told to be, from the first start on.
pub(super) struct Reserved {
    /// Their folder.
    pub(super) folder: PathBuf,
    /// Their size, all together.
    pub(super) bytes: u64,
}

/// What a device in `folder` may take: what is free there and what its own files take already, less
/// what is reserved on the same disk and not taken yet. So it does not change as the device fills.
///
/// # Errors
///
/// Where the file system does not answer.
pub(super) fn default_bytes(folder: &Path, reserved: &Reserved) -> io::Result<u64> {
    let there = existing(folder)?;
    let found = rustix::fs::statvfs(there)?;
    let reserved_there = existing(&reserved.folder)?;
    let shares_disk = fs::metadata(there)?.dev() == fs::metadata(reserved_there)?.dev();
    let missing = reserved.bytes.saturating_sub(taken_bytes(&reserved.folder)?);
    Ok(sum(
        found.f_bavail * found.f_frsize,
        taken_bytes(folder)?,
        if shares_disk { missing } else { 0 },
    ))
}

fn sum(free: u64, taken: u64, missing: u64) -> u64 {
    free.saturating_add(taken).saturating_sub(missing)
}

/// Bytes on the disk that the files in `folder` take; 0 where there is no such folder.
fn taken_bytes(folder: &Path) -> io::Result<u64> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut bytes = 0;
    for entry in entries {
        bytes += entry?.metadata()?.blocks() * STAT_BLOCK_BYTES;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_fills_keeps_its_capacity() {
        let (free, slots, journal) = (100 << 30, 40 << 30, 1 << 30);
        let fresh = sum(free, 0, journal);
        let restarted = sum(free - journal, 0, 0);
        let filled = sum(free - journal - slots, slots, 0);
        assert_eq!((fresh, restarted), (filled, filled));
        assert_eq!(sum(1, 0, 2), 0, "no room for the journal");
    }

    #[test]
    fn only_what_is_on_the_disk_counts_as_taken() {
        let folder = tempfile::tempdir().expect("a folder");
        let device = folder.path().join("d0");
        assert_eq!(taken_bytes(&device).expect("answers"), 0, "not made yet");
        assert_eq!(existing(&device).expect("found"), folder.path());
        fs::create_dir(&device).expect("writable");
        let file = fs::File::create(device.join("slots")).expect("writable");
        file.set_len(1 << 40).expect("sparse");
        assert!(taken_bytes(&device).expect("answers") < 1 << 20, "a hole takes nothing");
        fs::write(device.join("more"), vec![1; 4 << 20]).expect("written");
        fs::File::open(device.join("more")).and_then(|f| f.sync_all()).expect("on the disk");
        let taken = taken_bytes(&device).expect("answers");
        assert!((4 << 20..5 << 20).contains(&taken), "{taken}");
    }
}
