//! Many writes at once through `io_uring`: one thread keeps a drive busy.

use std::{cell::RefCell, io, os::fd::AsRawFd};

use io_uring::{IoUring, opcode, types};

use super::Part;

/// Writes on their way at a time. More make the journal's writes beside them wait longer than they
/// shorten the round (docs/results.md).
const DEPTH: usize = 16;
/// Writes that end before others are begun: each begin and each wait costs as much for many as for one.
const GROUP: usize = 8;

thread_local! {
    /// One ring a thread, made at its first use; none where the kernel refuses.
    static RING: RefCell<Option<IoUring>> = RefCell::new(IoUring::new(DEPTH as u32).ok());
}

/// Writes all parts. Returns when every one has ended. `None` if this thread has no ring, and nothing was written.
pub(super) fn write_all(file: &impl AsRawFd, parts: &[Part<'_>]) -> Option<io::Result<()>> {
    RING.with_borrow_mut(|ring| ring.as_mut().map(|ring| run(ring, file, parts)))
}

fn run(ring: &mut IoUring, file: &impl AsRawFd, parts: &[Part<'_>]) -> io::Result<()> {
    let fd = types::Fd(file.as_raw_fd());
    let mut result = Ok(());
    let (mut next, mut under_way) = (0, 0);
    while next < parts.len() || under_way > 0 {
        while under_way < DEPTH && next < parts.len() && result.is_ok() {
            let (offset, pieces) = &parts[next];
            // An `IoSlice` is an `iovec`, says its documentation.
            let (start, count) = (pieces.as_ptr().cast(), pieces.len() as u32);
            let write = opcode::Writev::new(fd, start, count).offset(*offset);
            // SAFETY: the pieces outlive the write, for this function returns only when none is under way;
            // at most DEPTH entries are in the queue.
            unsafe { ring.submission().push(&write.build().user_data(next as u64)) }
                .map_err(|_| io::ErrorKind::WouldBlock)?;
            next += 1;
            under_way += 1;
        }
        if under_way == 0 {
            break;
        }
        wait(ring, GROUP.min(under_way));
        for done in ring.completion() {
            under_way -= 1;
            let want: usize = parts[done.user_data() as usize].1.iter().map(|p| p.len()).sum();
            let ended = match done.result() {
                n if n < 0 => Err(io::Error::from_raw_os_error(-n)),
                n if n as usize == want => Ok(()),
                _ => Err(io::ErrorKind::WriteZero.into()),
            };
            result = result.and(ended);
        }
    }
    result
}

/// Submits, and waits for at least `want` to end. An interrupted wait is begun again: the buffers belong
/// to the kernel until every write has ended.
fn wait(ring: &mut IoUring, want: usize) {
    while let Err(error) = ring.submit_and_wait(want) {
        let again =
            matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ResourceBusy);
        assert!(again, "io_uring failed with writes under way: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::{io::IoSlice, os::unix::fs::FileExt};

    use super::*;

    #[test]
    fn every_part_is_written_to_its_place() {
        let file = tempfile::tempfile().expect("a file");
        let blocks: Vec<Vec<u8>> = (0..300_u64).map(|i| vec![i as u8; 512]).collect();
        let mut parts: Vec<Part<'_>> = Vec::new();
        for (i, block) in blocks.iter().enumerate() {
            let (first, second) = block.split_at(100);
            let pieces = vec![IoSlice::new(first), IoSlice::new(second)];
            parts.push(((i as u64 * 7 % 300) * 512, pieces));
        }
        let Some(written) = write_all(&file, &parts) else {
            println!("skipped: this kernel has no io_uring");
            return;
        };
        written.expect("written");
        for ((offset, _), data) in parts.iter().zip(&blocks) {
            let mut found = vec![0; 512];
            file.read_exact_at(&mut found, *offset).expect("read");
            assert_eq!(found, *data);
        }
    }

    #[test]
    fn an_error_of_one_write_is_the_result() {
        let path = tempfile::NamedTempFile::new().expect("a file");
        let read_only = std::fs::File::open(path.path()).expect("opened");
        let data = [0; 512];
        let part = |offset| (offset, vec![IoSlice::new(&data)]);
        if let Some(result) = write_all(&read_only, &[part(0), part(512)]) {
            assert!(result.is_err());
        }
    }
}
