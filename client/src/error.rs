//! Why an operation on a volume failed, whether it happened, and what to do about it.

use std::fmt;

/// Failure of one operation on a block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockError {
    /// What went wrong.
    pub kind: Kind,
    /// Whether the operation took effect.
    pub outcome: Outcome,
    /// First byte of the operation, or of the part of it that failed.
    pub offset: u64,
    /// Bytes of it.
    pub len: u64,
    /// Requests that were sent for it.
    pub tries: u32,
}

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A newer attachment took the volume over; final for this handle.
    Fenced,
    /// No answer within the handle's time for an operation.
    TimedOut,
    /// The queue is full; only from `try_submit`.
    Busy,
    /// No server has room.
    NoSpace,
    /// Stored or received bytes do not match their checksum (INV-SUM).
    Corrupt,
    /// An acknowledged write was lost before it was flushed (durability `flush` only).
    Lost,
    /// Offset or length is not a multiple of 512, or a compare is not of one block.
    Unaligned,
    /// The range is empty or reaches past the end.
    OutOfRange,
    /// The handle is read-only.
    ReadOnly,
    /// A server called the request malformed.
    Refused,
    /// The servers remember nothing of the operation any more.
    Forgotten,
    /// The volume does not exist any more.
    NoVolume,
    /// The handle was closed.
    Closed,
    /// The file behind a `FileDevice` failed.
    File(std::io::ErrorKind),
    /// A fault made on purpose by a `FaultyDevice`.
    Injected,
}

/// What the caller knows about an operation after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It did not and will not take effect. Jepsen: `:fail`.
    NotApplied,
    /// It may take effect, in part or whole, now or later. Jepsen: `:info`.
    Unknown,
    /// It took effect; what came after it failed.
    Applied,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RetryHint {
    /// The same may succeed after a pause.
    Later,
    /// Open the volume again first.
    Reopen,
    /// Give up and report.
    Never,
}

impl BlockError {
    /// An operation that was refused before anything was sent.
    pub(crate) fn refused(kind: Kind, offset: u64, len: u64) -> Self {
        Self { kind, outcome: Outcome::NotApplied, offset, len, tries: 0 }
    }

    /// What to do next.
    pub fn retry(&self) -> RetryHint {
        match self.kind {
            Kind::TimedOut | Kind::Busy | Kind::NoSpace | Kind::Lost => RetryHint::Later,
            Kind::Fenced | Kind::Closed | Kind::Forgotten => RetryHint::Reopen,
            Kind::Corrupt
            | Kind::Unaligned
            | Kind::OutOfRange
            | Kind::ReadOnly
            | Kind::Refused
            | Kind::NoVolume
            | Kind::File(_)
            | Kind::Injected => RetryHint::Never,
        }
    }

    /// The error number of Linux that says it best.
    pub fn errno(&self) -> i32 {
        const EPERM: i32 = 1;
        const EIO: i32 = 5;
        const EAGAIN: i32 = 11;
        const EINVAL: i32 = 22;
        const ENOSPC: i32 = 28;
        const ESHUTDOWN: i32 = 108;
        const ETIMEDOUT: i32 = 110;
        match self.kind {
            Kind::Fenced | Kind::Closed | Kind::NoVolume => ESHUTDOWN,
            Kind::TimedOut => ETIMEDOUT,
            Kind::Busy => EAGAIN,
            Kind::NoSpace => ENOSPC,
            Kind::Unaligned | Kind::OutOfRange | Kind::Refused => EINVAL,
            Kind::ReadOnly => EPERM,
            Kind::Corrupt | Kind::Lost | Kind::Forgotten | Kind::File(_) | Kind::Injected => EIO,
        }
    }
}

impl std::error::Error for BlockError {}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            Kind::Fenced => "the volume was attached by someone else",
            Kind::TimedOut => "no answer in time",
            Kind::Busy => "the queue is full",
            Kind::NoSpace => "no space left",
            Kind::Corrupt => "data does not match its checksum",
            Kind::Lost => "an acknowledged write was lost before it was flushed",
            Kind::Unaligned => "range is not aligned",
            Kind::OutOfRange => "range is empty or reaches past the end",
            Kind::ReadOnly => "the handle is read-only",
            Kind::Refused => "a server refused the request as malformed",
            Kind::Forgotten => "the servers do not remember the operation",
            Kind::NoVolume => "the volume does not exist any more",
            Kind::Closed => "the handle is closed",
            Kind::File(kind) => return write!(f, "{kind} at {}+{}", self.offset, self.len),
            Kind::Injected => "injected fault",
        };
        let outcome = match self.outcome {
            Outcome::NotApplied => "not applied",
            Outcome::Unknown => "may have been applied",
            Outcome::Applied => "was applied",
        };
        write!(f, "{what} at {}+{} ({outcome}, {} tries)", self.offset, self.len, self.tries)
    }
}
