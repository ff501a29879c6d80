//! A request of the transmission phase: decoded from its header, and checked.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use bytes::Bytes;

use super::{
    cursor::Cursor,
    export::ExportInfo,
    wire::{BLOCK_BYTES_MIN, Errno, PAYLOAD_BYTES_MAX, REQUEST_MAGIC, command},
};

/// A request that passed every check that can be made without the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The client's name for it; in the reply.
    pub cookie: u64,
    /// Bytes it may hold in memory, of payload or reply. Given back with
    /// [`finish`](super::session::Session::finish).
    pub cost_bytes: u32,
    /// What to do.
    pub command: Command,
}

/// What a client asks for. Ranges lie within the export and are not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Bytes of a range.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes, at most [`PAYLOAD_BYTES_MAX`].
        len: u32,
    },
    /// Replace bytes.
    Write {
        /// First byte.
        offset: u64,
        /// What, at most [`PAYLOAD_BYTES_MAX`] bytes.
        data: Bytes,
        /// Durable before the reply.
        fua: bool,
    },
    /// Make all completed writes durable.
    Flush,
    /// The bytes are not needed any more.
    Trim {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
        /// Durable before the reply.
        fua: bool,
    },
    /// Replace bytes by zeroes.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
        /// Keep the space allocated.
        no_hole: bool,
        /// Durable before the reply.
        fua: bool,
    },
    /// Which parts hold data.
    BlockStatus {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
        /// Only the first extent is wanted.
        one: bool,
    },
    /// The range will be read soon.
    Cache {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
}

/// A request's header, as sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) flags: u16,
    pub(crate) command: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

/// What was agreed on that decides whether a request is valid.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms<'a> {
    pub(crate) export: &'a ExportInfo,
    pub(crate) structured: bool,
    pub(crate) allocation: bool,
    pub(crate) strict: bool,
}

impl Header {
    /// `None` if the magic is wrong: the stream is out of step and cannot be trusted any more.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(bytes);
        if cursor.u32()? != REQUEST_MAGIC {
            return None;
        }
        Some(Self {
            flags: cursor.u16()?,
            command: cursor.u16()?,
            cookie: cursor.u64()?,
            offset: cursor.u64()?,
            len: cursor.u32()?,
        })
    }

    /// Bytes behind the header.
    pub(crate) fn payload_bytes(&self) -> u32 {
        if self.command == command::WRITE { self.len } else { 0 }
    }

    /// Bytes the request may hold in memory.
    pub(crate) fn cost_bytes(&self) -> u32 {
        match self.command {
            command::READ | command::WRITE => self.len,
            _ => 0,
        }
    }

    fn is_write(&self) -> bool {
        matches!(self.command, command::WRITE | command::TRIM | command::WRITE_ZEROES)
    }

    fn flags_allowed(&self, terms: &Terms<'_>) -> u16 {
        command::FLAG_FUA
            | match self.command {
                command::READ if terms.structured => command::FLAG_DF,
                command::WRITE_ZEROES => command::FLAG_NO_HOLE | command::FLAG_FAST_ZERO,
                command::BLOCK_STATUS => command::FLAG_REQ_ONE,
                _ => 0,
            }
    }

    /// All checks that need no device, in the order in which the protocol names its errors.
    pub(crate) fn check(&self, terms: &Terms<'_>) -> Result<(), Errno> {
        let known = self.command <= command::BLOCK_STATUS && self.command != command::DISC;
        if !known || self.flags & !self.flags_allowed(terms) != 0 {
            return Err(Errno::Inval);
        }
        if self.command == command::FLUSH {
            let plain = self.offset == 0 && self.len == 0;
            return if plain { Ok(()) } else { Err(Errno::Inval) };
        }
        if self.is_write() && terms.export.read_only {
            return Err(Errno::Perm);
        }
        if self.command == command::BLOCK_STATUS && !terms.allocation {
            return Err(Errno::Inval);
        }
        self.check_range(terms)
    }

    fn check_range(&self, terms: &Terms<'_>) -> Result<(), Errno> {
        let end = self.offset.checked_add(u64::from(self.len));
        if end.is_none_or(|end| end > terms.export.size_bytes) {
            let grows = matches!(self.command, command::WRITE | command::WRITE_ZEROES);
            return Err(if grows { Errno::NoSpc } else { Errno::Inval });
        }
        let aligned = self.offset.is_multiple_of(u64::from(BLOCK_BYTES_MIN))
            && self.len.is_multiple_of(BLOCK_BYTES_MIN);
        let too_long = self.cost_bytes() > PAYLOAD_BYTES_MAX;
        if self.len == 0 || too_long || (terms.strict && !aligned) {
            return Err(Errno::Inval);
        }
        let fast = self.flags & command::FLAG_FAST_ZERO != 0;
        if self.command == command::WRITE_ZEROES && fast && !(terms.export.fast_zero && aligned) {
            return Err(Errno::NotSup);
        }
        Ok(())
    }

    /// The request, once [`check`](Self::check) passed and the payload is there.
    pub(crate) fn into_request(self, data: Bytes) -> Request {
        let Self { flags, offset, len, .. } = self;
        let fua = flags & command::FLAG_FUA != 0;
        let command = match self.command {
            command::READ => Command::Read { offset, len },
            command::WRITE => Command::Write { offset, data, fua },
            command::TRIM => Command::Trim { offset, len, fua },
            command::CACHE => Command::Cache { offset, len },
            command::WRITE_ZEROES => {
                let no_hole = flags & command::FLAG_NO_HOLE != 0;
                Command::WriteZeroes { offset, len, no_hole, fua }
            }
            command::BLOCK_STATUS => {
                Command::BlockStatus { offset, len, one: flags & command::FLAG_REQ_ONE != 0 }
            }
            _ => Command::Flush,
        };
        Request { cookie: self.cookie, cost_bytes: self.cost_bytes(), command }
    }
}
