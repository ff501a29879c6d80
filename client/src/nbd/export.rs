//! What the NBD session knows of an export.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::wire::transmission as flag;

/// One export, as told to clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Name clients ask for.
    pub name: String,
    /// A line for people; may be empty.
    pub description: String,
    /// Bytes.
    pub size_bytes: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// Zeroing a range costs no more than discarding it.
    pub fast_zero: bool,
    /// A flush on one connection covers the writes completed on all.
    pub multi_conn: bool,
}

impl ExportInfo {
    /// Transmission flags for a client that did or did not negotiate structured replies.
    pub(crate) fn flags(&self, structured: bool) -> u16 {
        let mut flags = flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_FUA | flag::SEND_CACHE;
        if self.read_only {
            flags |= flag::READ_ONLY;
        } else {
            flags |= flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO;
        }
        if structured {
            flags |= flag::SEND_DF;
        }
        if self.multi_conn {
            flags |= flag::CAN_MULTI_CONN;
        }
        flags
    }
}

/// The export a name means: the one called so or, for the empty name, the only one there is.
pub(crate) fn find(exports: &[ExportInfo], name: &str) -> Option<usize> {
    if name.is_empty() && exports.len() == 1 {
        return Some(0);
    }
    exports.iter().position(|e| e.name == name)
}
