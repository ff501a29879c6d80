//! Numbers of the NBD protocol (NetworkBlockDevice/nbd, `doc/proto.md`, 2026-05).
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

/// First eight bytes a server sends.
pub(crate) const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`: marks newstyle negotiation and each option.
pub(crate) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Marks each reply to an option.
pub(crate) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Marks each request of the transmission phase.
pub(crate) const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Marks a simple reply.
pub(crate) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Marks one chunk of a structured reply.
pub(crate) const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Bytes of an option before its data.
pub(crate) const OPTION_HEADER_BYTES: usize = 16;
/// Bytes of a request before its payload.
pub(crate) const REQUEST_HEADER_BYTES: usize = 28;
/// Bytes of a simple reply before its payload.
pub(crate) const SIMPLE_REPLY_BYTES: usize = 16;
/// Bytes of a structured chunk before its payload.
pub(crate) const CHUNK_HEADER_BYTES: usize = 20;

/// Handshake flags; the client's have the same bits.
pub(crate) const FLAG_FIXED_NEWSTYLE: u16 = 1;
/// No 124 zeroes behind the answer to `EXPORT_NAME`.
pub(crate) const FLAG_NO_ZEROES: u16 = 2;

/// Options.
pub(crate) mod option {
    pub(crate) const EXPORT_NAME: u32 = 1;
    pub(crate) const ABORT: u32 = 2;
    pub(crate) const LIST: u32 = 3;
    pub(crate) const INFO: u32 = 6;
    pub(crate) const GO: u32 = 7;
    pub(crate) const STRUCTURED_REPLY: u32 = 8;
    pub(crate) const LIST_META_CONTEXT: u32 = 9;
    pub(crate) const SET_META_CONTEXT: u32 = 10;
}

/// Kinds of reply to an option.
pub(crate) mod reply {
    pub(crate) const ACK: u32 = 1;
    pub(crate) const SERVER: u32 = 2;
    pub(crate) const INFO: u32 = 3;
    pub(crate) const META_CONTEXT: u32 = 4;
    pub(crate) const ERR_UNSUP: u32 = 1 << 31 | 1;
    pub(crate) const ERR_INVALID: u32 = 1 << 31 | 3;
    pub(crate) const ERR_UNKNOWN: u32 = 1 << 31 | 6;
    pub(crate) const ERR_TOO_BIG: u32 = 1 << 31 | 9;
}

/// Kinds of information in a reply to `INFO` and `GO`.
pub(crate) mod info {
    pub(crate) const EXPORT: u16 = 0;
    pub(crate) const NAME: u16 = 1;
    pub(crate) const DESCRIPTION: u16 = 2;
    pub(crate) const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags.
pub(crate) mod transmission {
    pub(crate) const HAS_FLAGS: u16 = 1;
    pub(crate) const READ_ONLY: u16 = 1 << 1;
    pub(crate) const SEND_FLUSH: u16 = 1 << 2;
    pub(crate) const SEND_FUA: u16 = 1 << 3;
    pub(crate) const SEND_TRIM: u16 = 1 << 5;
    pub(crate) const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub(crate) const SEND_DF: u16 = 1 << 7;
    pub(crate) const CAN_MULTI_CONN: u16 = 1 << 8;
    pub(crate) const SEND_CACHE: u16 = 1 << 10;
    pub(crate) const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Commands.
pub(crate) mod command {
    pub(crate) const READ: u16 = 0;
    pub(crate) const WRITE: u16 = 1;
    pub(crate) const DISC: u16 = 2;
    pub(crate) const FLUSH: u16 = 3;
    pub(crate) const TRIM: u16 = 4;
    pub(crate) const CACHE: u16 = 5;
    pub(crate) const WRITE_ZEROES: u16 = 6;
    pub(crate) const BLOCK_STATUS: u16 = 7;

    /// Commit to durable storage before the reply. Accepted, if without meaning, on every command.
    pub(crate) const FLAG_FUA: u16 = 1;
    /// Do not leave a hole.
    pub(crate) const FLAG_NO_HOLE: u16 = 1 << 1;
    /// Do not fragment the reply to a read.
    pub(crate) const FLAG_DF: u16 = 1 << 2;
    /// One extent is enough.
    pub(crate) const FLAG_REQ_ONE: u16 = 1 << 3;
    /// Fail rather than write zeroes slowly.
    pub(crate) const FLAG_FAST_ZERO: u16 = 1 << 4;
}

/// Chunks of a structured reply.
pub(crate) mod chunk {
    pub(crate) const FLAG_DONE: u16 = 1;
    pub(crate) const NONE: u16 = 0;
    pub(crate) const OFFSET_DATA: u16 = 1;
    pub(crate) const BLOCK_STATUS: u16 = 5;
    pub(crate) const ERROR: u16 = 1 << 15 | 1;
}

/// States of `base:allocation`.
pub(crate) const STATE_HOLE: u32 = 1;
/// Reads as zeroes.
pub(crate) const STATE_ZERO: u32 = 1 << 1;

/// The one metadata context there is.
pub(crate) const ALLOCATION: &str = "base:allocation";
/// Its id, as told to the client.
pub(crate) const ALLOCATION_ID: u32 = 1;

/// Error numbers of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Errno {
    /// Not permitted.
    Perm = 1,
    /// I/O error.
    Io = 5,
    /// No memory.
    NoMem = 12,
    /// Invalid request.
    Inval = 22,
    /// No space left, or a write past the end.
    NoSpc = 28,
    /// Would take too long, or is not supported.
    NotSup = 95,
    /// The server is going away.
    Shutdown = 108,
}

/// Smallest block clients are told; smaller requests are served to those who did not ask.
pub(crate) const BLOCK_BYTES_MIN: u32 = 512;
/// Block size that is told to be good.
pub(crate) const BLOCK_BYTES_PREFERRED: u32 = 64 << 10;
/// Largest payload of a request or reply.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;
/// Longest option data that is looked at; names and queries are at most 4,096 bytes each.
pub(crate) const OPTION_BYTES_MAX: usize = 32 << 10;
/// Longest name in the protocol.
pub(crate) const NAME_BYTES_MAX: usize = 4096;
/// Options a client may send before it must get on; bounds the handshake.
pub(crate) const OPTIONS_MAX: u32 = 512;
