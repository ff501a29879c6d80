//! Reads through `io_uring` by the thread that waits for them among other things: what is asked for in one
//! turn begins with one system call, and an event tells when something has ended.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use io_uring::{IoUring, opcode, types};
use rustix::event::EventfdFlags;
use tidewater_proto::aligned::AlignedBuf;

/// Reads on their way at a time.
const DEPTH: usize = 256;
/// So many reads are begun together.
const GROUP: usize = 4;

/// One thread's reads. It is made, used and dropped by that thread.
pub(crate) struct ReadRing {
    ring: IoUring,
    /// Reads under way, by the place that the kernel is given as their name.
    flights: Vec<Option<Flight>>,
    free: Vec<u32>,
    queued: usize,
    event: OwnedFd,
}

/// Memory that the kernel fills.
struct Flight {
    tag: u64,
    buf: AlignedBuf,
}

impl std::fmt::Debug for ReadRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ReadRing({} under way)", self.under_way())
    }
}

impl ReadRing {
    /// An event that rings signal.
    pub(crate) fn event() -> io::Result<OwnedFd> {
        Ok(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
    }

    /// A ring that signals `event`.
    pub(crate) fn new(event: OwnedFd) -> io::Result<Self> {
        // Completions are dealt with when this thread asks, rather than by interrupting it (Linux 6.1).
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(DEPTH as u32)?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        let flights = (0..DEPTH).map(|_| None).collect();
        Ok(Self { ring, flights, free: (0..DEPTH as u32).collect(), queued: 0, event })
    }

    /// Reads that can still be begun.
    pub(crate) fn room(&self) -> usize {
        self.free.len()
    }

    /// Reads begun and not yet taken.
    pub(crate) fn under_way(&self) -> usize {
        DEPTH - self.free.len()
    }

    /// What is signalled when a read has ended.
    pub(crate) fn signal(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Queues a read that fills `buf`. There must be [`room`](Self::room), and `file` must stay open until the
    /// read is taken.
    pub(crate) fn push(&mut self, file: RawFd, offset: u64, buf: AlignedBuf, tag: u64) {
        let index = self.free.pop().expect("the caller asked for room");
        let flight = self.flights[index as usize].insert(Flight { tag, buf });
        let (start, len) = (flight.buf.as_mut_ptr(), flight.buf.len() as u32);
        let read = opcode::Read::new(types::Fd(file), start, len).offset(offset);
        // SAFETY: the buffer's memory stays in `flights` until the kernel has named the read as ended; `drop`
        // waits for that too. There are as many entries as places.
        unsafe { self.ring.submission().push(&read.build().user_data(index.into())) }
            .expect("as many entries as places");
        self.queued += 1;
        // Not later, however much is being taken in: the device works on these meanwhile.
        if self.queued >= GROUP {
            self.enter(0);
        }
    }

    /// Begins what is queued; with `wait`, returns once a read has ended.
    pub(crate) fn submit(&mut self, wait: bool) {
        if self.queued > 0 || wait {
            self.enter(usize::from(wait));
        }
    }

    fn enter(&mut self, want: usize) {
        while let Err(error) = self.ring.submit_and_wait(want) {
            let again =
                matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ResourceBusy);
            assert!(again, "io_uring failed with reads under way: {error}");
        }
        self.queued = 0;
    }

    /// The next read that has ended: its tag, and its bytes or why there are none.
    pub(crate) fn take(&mut self) -> Option<(u64, io::Result<AlignedBuf>)> {
        if self.ring.submission().taskrun() {
            self.enter(0);
        }
        let done = self.ring.completion().next()?;
        let index = done.user_data() as u32;
        let Flight { tag, buf } = self.flights[index as usize].take().expect("begun");
        self.free.push(index);
        let read = match done.result() {
            n if n < 0 => Err(io::Error::from_raw_os_error(-n)),
            n if n as usize == buf.len() => Ok(buf),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        };
        Some((tag, read))
    }
}

impl Drop for ReadRing {
    fn drop(&mut self) {
        while self.under_way() > 0 {
            if self.take().is_none() {
                self.enter(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn ring() -> Option<ReadRing> {
        let ring = ReadRing::new(ReadRing::event().expect("an event")).ok();
        if ring.is_none() {
            println!("skipped: this kernel has no such io_uring");
        }
        ring
    }

    #[test]
    fn every_read_fills_its_buffer_or_says_why_not() {
        let Some(mut ring) = ring() else { return };
        let file = tempfile::tempfile().expect("a file");
        for block in 0..300_u64 {
            file.write_all_at(&[block as u8; 512], block * 512).expect("written");
        }
        let mut seen = 0;
        for tag in 0..400 {
            if ring.room() == 0 {
                ring.submit(true);
                seen += check(&mut ring);
            }
            ring.push(file.as_raw_fd(), tag * 512, AlignedBuf::stale(512), tag);
        }
        while ring.under_way() > 0 {
            ring.submit(true);
            seen += check(&mut ring);
        }
        assert_eq!(seen, 400);
    }

    fn check(ring: &mut ReadRing) -> usize {
        std::iter::from_fn(|| ring.take())
            .inspect(|(tag, read)| match read {
                Ok(buf) => assert!(buf.iter().all(|&b| b == *tag as u8), "block {tag}"),
                Err(error) => {
                    assert!(*tag >= 300, "{tag}: {error}");
                    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
                }
            })
            .count()
    }

    #[test]
    fn a_ring_dropped_with_reads_under_way_waits_for_them() {
        let Some(mut ring) = ring() else { return };
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(&[1; 4096], 0).expect("written");
        ring.push(file.as_raw_fd(), 0, AlignedBuf::stale(4096), 1);
        drop(ring);
    }
}
