//! The one seam between the store and a file system: named files of fixed size, read and written
//! at block-aligned offsets.

mod read_ring;
mod real;
mod ring;
mod sim;

use std::{
    fmt,
    io::{self, IoSlice},
    os::fd::BorrowedFd,
    path::PathBuf,
    sync::Arc,
};

pub(crate) use read_ring::ReadRing;
pub use real::RealDisk;
pub(crate) use sim::Tick;
pub use sim::{Keep, SimClock, SimDisk};

/// What a disk was asked when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskOp {
    /// Make a file of zeroes.
    Create,
    /// Open a file.
    Open,
    /// Read bytes.
    Read,
    /// Write bytes.
    Write,
    /// Make written bytes durable.
    Sync,
    /// Make a file longer.
    Grow,
    /// List or remove files.
    Folder,
}

impl fmt::Display for DiskOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Create => "create",
            Self::Open => "open",
            Self::Read => "read",
            Self::Write => "write",
            Self::Sync => "sync",
            Self::Grow => "grow",
            Self::Folder => "list or remove in",
        })
    }
}

/// A disk did not do what it was asked. After a failed write, sync or growth the contents of the
/// range are unknown and the device must not be used again.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The file system under the folder cannot bypass the page cache.
    #[error("{path}: the file system cannot do direct I/O (is it tmpfs?)")]
    NoDirect {
        /// File that could not be opened so.
        path: PathBuf,
    },
    /// No space for a new file or for growth; nothing was changed.
    #[error("{path}: no space left on the file system")]
    Full {
        /// File that could not be made or grown.
        path: PathBuf,
    },
    /// What the operating system said.
    #[error("{op} {path}")]
    Io {
        /// What was tried.
        op: DiskOp,
        /// On which file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// How writes to an open file become durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// With the next [`DiskFile::sync`].
    Direct,
    /// When [`DiskFile::write_at`] returns.
    Durable,
}

/// A folder of files.
///
/// Contract, checked for every implementation by `contract`:
///
/// - A created file has the length asked for, reads as zeroes, and is durable when `create`
///   returns; a crash before that leaves no file of that name.
/// - Offsets, lengths and memory are multiples of [`ALIGN_BYTES`](tidewater_proto::aligned::ALIGN_BYTES).
/// - A write is visible to later reads when it returns, and durable as [`Mode`] says. Until then a
///   crash may keep all, none or any 512-byte sectors of it.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Makes a file of `bytes` zeroes, written out so that overwriting it needs no allocation.
    ///
    /// # Errors
    ///
    /// [`DiskError::Full`] and [`DiskError::NoDirect`] leave no file.
    fn create(&self, name: &str, bytes: u64) -> Result<(), DiskError>;

    /// Opens an existing file.
    fn open(&self, name: &str, mode: Mode) -> Result<Arc<dyn DiskFile>, DiskError>;

    /// Names of the files, sorted.
    fn list(&self) -> Result<Vec<String>, DiskError>;
}

/// Pieces of memory that are written one behind the other, and where.
pub type Part<'a> = (u64, Vec<IoSlice<'a>>);

/// An open file of a [`Disk`].
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// Fills `buf` from `offset`.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError>;

    /// Writes the pieces, one behind the other from `offset`; they must end within the file. A crash finds them
    /// as one write.
    fn write_pieces_at(&self, offset: u64, pieces: &[IoSlice<'_>]) -> Result<(), DiskError>;

    /// Writes `data` at `offset`.
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.write_pieces_at(offset, &[IoSlice::new(data)])
    }

    /// Writes several ranges, in any order.
    fn write_all_at(&self, parts: &[Part<'_>]) -> Result<(), DiskError> {
        parts.iter().try_for_each(|(offset, pieces)| self.write_pieces_at(*offset, pieces))
    }

    /// Makes all earlier writes durable.
    fn sync(&self) -> Result<(), DiskError>;

    /// Bytes of the file.
    fn bytes(&self) -> Result<u64, DiskError>;

    /// Makes the file at least `bytes` long, durably. New bytes read as zeroes.
    fn grow(&self, bytes: u64) -> Result<(), DiskError>;

    /// The open file itself, where reads may bypass this trait.
    fn direct(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidewater_proto::aligned::AlignedBuf;

    fn page(byte: u8, pages: usize) -> AlignedBuf {
        let mut buf = AlignedBuf::zeroed(4096 * pages);
        buf.fill(byte);
        buf
    }

    /// The contract of [`Disk`], run against an empty folder.
    fn contract(disk: &dyn Disk) -> Result<(), DiskError> {
        assert!(disk.list()?.is_empty());
        disk.create("a", 16384)?;
        disk.create("b", 4096)?;
        assert_eq!(disk.list()?, ["a", "b"]);
        for mode in [Mode::Direct, Mode::Durable] {
            let file = disk.open("a", mode)?;
            file.write_at(4096, &page(7, 1))?;
            let (eight, nine) = (page(8, 1), page(9, 1));
            let parts = [(12288, vec![IoSlice::new(&nine)]), (8192, vec![IoSlice::new(&eight)])];
            file.write_all_at(&parts)?;
            file.write_pieces_at(8192, &[IoSlice::new(&eight), IoSlice::new(&nine)])?;
            file.sync()?;
        }
        let file = disk.open("a", Mode::Direct)?;
        let mut buf = page(1, 4);
        file.read_at(0, &mut buf)?;
        assert!((0..4).all(|i| buf[i * 4096..][..4096].iter().all(|&b| b == [0, 7, 8, 9][i])));
        file.grow(32768)?;
        assert_eq!(file.bytes()?, 32768);
        file.grow(4096)?;
        assert_eq!(file.bytes()?, 32768, "growing never shrinks");
        file.read_at(16384, &mut buf)?;
        assert!(buf.iter().all(|&b| b == 0), "new bytes are zeroes");
        assert!(matches!(
            disk.open("c", Mode::Direct),
            Err(DiskError::Io { op: DiskOp::Open, .. })
        ));
        Ok(())
    }

    #[test]
    fn real_disk_keeps_the_contract() -> Result<(), DiskError> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        contract(&RealDisk::open(dir.path().join("disk"))?)
    }

    #[test]
    fn sim_disk_keeps_the_contract() -> Result<(), DiskError> {
        contract(&SimDisk::new(&SimClock::new(1), "disk"))
    }

    #[test]
    fn a_memory_file_system_is_refused() {
        let Ok(dir) = tempfile::tempdir_in("/dev/shm") else { return };
        let made = RealDisk::open(dir.path()).and_then(|disk| disk.create("a", 4096));
        // Newer kernels do direct I/O on tmpfs; then there is nothing to refuse.
        assert!(matches!(made, Ok(()) | Err(DiskError::NoDirect { .. })), "{made:?}");
    }
}
