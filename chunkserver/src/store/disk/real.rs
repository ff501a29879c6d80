//! A folder on a file system, read and written past the page cache.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IoSlice},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{FallocateFlags, OFlags};

use super::{Disk, DiskError, DiskFile, DiskOp, Mode, Part, ring};
use tidewater_proto::aligned::AlignedBuf;

/// Zeroes written at a time when a file is made, bytes.
const FILL_BYTES: usize = 1 << 20;
/// Pieces of one system call (`IOV_MAX`).
const PIECES_MAX: usize = 1024;
/// Ending of a file that is not whole yet.
const UNFINISHED: &str = ".new";

/// Files in one folder, opened with `O_DIRECT`.
#[derive(Debug)]
pub struct RealDisk {
    dir: PathBuf,
}

#[derive(Debug)]
struct RealFile {
    file: File,
    path: PathBuf,
}

impl RealDisk {
    /// Takes a folder, making it where it is missing, and removes files a crash left unfinished.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, DiskError> {
        let dir = dir.into();
        let folder = |e| failed(DiskOp::Folder, &dir, e);
        fs::create_dir_all(&dir).map_err(folder)?;
        for name in names(&dir)? {
            if name.ends_with(UNFINISHED) {
                fs::remove_file(dir.join(name)).map_err(folder)?;
            }
        }
        Ok(Self { dir })
    }

    fn fill(path: &Path, bytes: u64) -> Result<(), DiskError> {
        let file =
            RealFile { file: direct(path, OFlags::empty(), true)?, path: path.to_path_buf() };
        let zeroes = AlignedBuf::zeroed(FILL_BYTES);
        let mut at = 0;
        while at < bytes {
            let take = (bytes - at).min(FILL_BYTES as u64);
            file.write_at(at, &zeroes[..take as usize])?;
            at += take;
        }
        file.sync()
    }
}

impl Disk for RealDisk {
    fn create(&self, name: &str, bytes: u64) -> Result<(), DiskError> {
        let unfinished = self.dir.join(format!("{name}{UNFINISHED}"));
        if let Err(error) = Self::fill(&unfinished, bytes) {
            // Best effort: `open` removes what stays.
            fs::remove_file(&unfinished).ok();
            return Err(error);
        }
        let path = self.dir.join(name);
        let create = |e| failed(DiskOp::Create, &path, e);
        fs::rename(&unfinished, &path).map_err(create)?;
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(create)
    }

    fn open(&self, name: &str, mode: Mode) -> Result<Arc<dyn DiskFile>, DiskError> {
        let path = self.dir.join(name);
        let flags = match mode {
            Mode::Direct => OFlags::empty(),
            Mode::Durable => OFlags::DSYNC,
        };
        Ok(Arc::new(RealFile { file: direct(&path, flags, false)?, path }))
    }

    fn list(&self) -> Result<Vec<String>, DiskError> {
        names(&self.dir)
    }
}

impl DiskFile for RealFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        self.file.read_exact_at(buf, offset).map_err(|e| failed(DiskOp::Read, &self.path, e))
    }

    fn write_pieces_at(&self, offset: u64, pieces: &[IoSlice<'_>]) -> Result<(), DiskError> {
        write_pieces(&self.file, offset, pieces).map_err(|e| failed(DiskOp::Write, &self.path, e))
    }

    /// Many at a time, since one write at a time leaves a drive idle.
    fn write_all_at(&self, parts: &[Part<'_>]) -> Result<(), DiskError> {
        match ring::write_all(&self.file, parts) {
            Some(written) => written.map_err(|e| failed(DiskOp::Write, &self.path, e)),
            None => parts.iter().try_for_each(|(at, pieces)| self.write_pieces_at(*at, pieces)),
        }
    }

    fn sync(&self) -> Result<(), DiskError> {
        self.file.sync_data().map_err(|e| failed(DiskOp::Sync, &self.path, e))
    }

    fn bytes(&self) -> Result<u64, DiskError> {
        let meta = self.file.metadata().map_err(|e| failed(DiskOp::Open, &self.path, e))?;
        Ok(meta.len())
    }

    fn grow(&self, bytes: u64) -> Result<(), DiskError> {
        let now = self.bytes()?;
        if bytes <= now {
            return Ok(());
        }
        let grow = |e: io::Error| failed(DiskOp::Grow, &self.path, e);
        rustix::fs::fallocate(&self.file, FallocateFlags::empty(), now, bytes - now)
            .map_err(|e| grow(e.into()))?;
        self.file.sync_all().map_err(grow)
    }

    fn direct(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}

fn write_pieces(file: &File, mut offset: u64, pieces: &[IoSlice<'_>]) -> io::Result<()> {
    for group in pieces.chunks(PIECES_MAX) {
        let mut group = group.to_vec();
        let mut rest = &mut group[..];
        while !rest.is_empty() {
            match rustix::io::pwritev(file, rest, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    IoSlice::advance_slices(&mut rest, written);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

fn direct(path: &Path, flags: OFlags, create: bool) -> Result<File, DiskError> {
    let flags = (OFlags::DIRECT | flags).bits().cast_signed();
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(create).truncate(create).custom_flags(flags);
    options.open(path).map_err(|e| {
        match e.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
            Some(rustix::io::Errno::INVAL) => DiskError::NoDirect { path: path.to_path_buf() },
            _ => failed(DiskOp::Open, path, e),
        }
    })
}

fn names(dir: &Path) -> Result<Vec<String>, DiskError> {
    let entries = fs::read_dir(dir).map_err(|e| failed(DiskOp::Folder, dir, e))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| failed(DiskOp::Folder, dir, e))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

fn failed(op: DiskOp, path: &Path, source: io::Error) -> DiskError {
    let path = path.to_path_buf();
    let makes_room = matches!(op, DiskOp::Create | DiskOp::Grow | DiskOp::Write);
    if makes_room && source.kind() == io::ErrorKind::StorageFull {
        return DiskError::Full { path };
    }
    DiskError::Io { op, path, source }
}
