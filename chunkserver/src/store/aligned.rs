//! Memory that direct I/O accepts, and that becomes [`Bytes`] without a copy.

use std::ops::{Deref, DerefMut};

use bytes::Bytes;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Alignment of memory, offsets and lengths in direct I/O, bytes.
pub const ALIGN_BYTES: usize = 4096;

#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Page([u8; ALIGN_BYTES]);

/// A buffer whose start and length are multiples of [`ALIGN_BYTES`].
#[derive(Clone)]
pub struct AlignedBuf {
    pages: Vec<Page>,
}

impl AlignedBuf {
    /// Zeroes, at least `len` bytes of them, rounded up to whole pages.
    pub fn zeroed(len: usize) -> Self {
        Self { pages: vec![Page([0; ALIGN_BYTES]); len.div_ceil(ALIGN_BYTES)] }
    }

    /// The same memory as shared, immutable bytes.
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.pages.as_bytes()
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.pages.as_mut_bytes()
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_and_becomes_bytes_in_place() {
        let mut buf = AlignedBuf::zeroed(5000);
        assert_eq!(buf.len(), 8192);
        assert_eq!(buf.as_ptr() as usize % ALIGN_BYTES, 0);
        buf[4999] = 7;
        let at = buf.as_ptr();
        let bytes = buf.into_bytes();
        assert_eq!(bytes.as_ptr(), at);
        assert_eq!(bytes[4999], 7);
    }
}
