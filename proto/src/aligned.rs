//! Buffers aligned for direct I/O that turn into [`Bytes`] without a copy, and are used again.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    fmt,
    ops::{Deref, DerefMut},
    ptr::NonNull,
    sync::Mutex,
};

use bytes::Bytes;

/// Alignment of memory, offsets and lengths in direct I/O that every device accepts, bytes.
pub const ALIGN_BYTES: usize = 4096;
/// Sizes of buffers that are kept for the next: 1, 2, 4 ... pages.
const CLASSES: usize = 9;
/// Bytes kept of each size. New memory costs a page fault a page, more than all else that is done with it.
const KEPT_BYTES: usize = 8 << 20;

/// A buffer whose address is a multiple of [`ALIGN_BYTES`].
pub struct AlignedBuf {
    memory: Memory,
    len: usize,
}

/// Initialised memory of a layout that its size tells.
struct Memory {
    start: NonNull<u8>,
    capacity: usize,
}

// SAFETY: owned memory without interior mutability.
unsafe impl Send for Memory {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for Memory {}

/// Free memory, by size. Held for a push or a pop.
static FREE: [Mutex<Vec<Memory>>; CLASSES] = [const { Mutex::new(Vec::new()) }; CLASSES];

impl AlignedBuf {
    /// `len` zero bytes.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let (memory, used) = Memory::take(len);
        let mut buf = Self { memory, len };
        if used {
            buf.fill(0);
        }
        buf
    }

    /// `len` bytes of an earlier buffer, or zeroes: for a caller that overwrites all of them.
    #[must_use]
    pub fn stale(len: usize) -> Self {
        Self { memory: Memory::take(len).0, len }
    }

    /// Hands the buffer over without copying it.
    #[must_use]
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Memory {
    /// At least `len` bytes, and whether they have been used before.
    fn take(len: usize) -> (Self, bool) {
        let pages = len.div_ceil(ALIGN_BYTES).max(1);
        let class = class(pages);
        let capacity = if class < CLASSES { ALIGN_BYTES << class } else { pages * ALIGN_BYTES };
        let free = FREE.get(class).and_then(|free| free.lock().ok()?.pop());
        if let Some(memory) = free {
            return (memory, true);
        }
        let layout = Self::layout(capacity);
        // SAFETY: the layout's size is never zero.
        let Some(start) = NonNull::new(unsafe { alloc_zeroed(layout) }) else {
            handle_alloc_error(layout)
        };
        (Self { start, capacity }, false)
    }

    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, ALIGN_BYTES).expect("a buffer fits the address space")
    }
}

/// Smallest class of that many pages.
fn class(pages: usize) -> usize {
    pages.next_power_of_two().trailing_zeros() as usize
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.capacity > 0 {
            // SAFETY: allocated in `take` with the same layout.
            unsafe { dealloc(self.start.as_ptr(), Self::layout(self.capacity)) }
        }
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        let capacity = self.memory.capacity;
        let class = class(capacity / ALIGN_BYTES);
        let Some(mut free) = FREE.get(class).and_then(|free| free.lock().ok()) else { return };
        if free.len() < KEPT_BYTES / capacity {
            let nothing = Memory { start: NonNull::dangling(), capacity: 0 };
            free.push(std::mem::replace(&mut self.memory, nothing));
        }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` is valid for `capacity >= len` initialised bytes while `self` lives.
        unsafe { std::slice::from_raw_parts(self.memory.start.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.memory.start.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Clone for AlignedBuf {
    fn clone(&self) -> Self {
        let mut copy = Self::stale(self.len);
        copy.copy_from_slice(self);
        copy
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_and_becomes_bytes_in_place() {
        for len in [0, 1, 4096, 5000, 1 << 20, (1 << 20) + 1] {
            let mut buf = AlignedBuf::zeroed(len);
            assert_eq!(buf.len(), len);
            assert_eq!(buf.as_ptr() as usize % ALIGN_BYTES, 0);
            buf.fill(7);
            let at = buf.as_ptr();
            let bytes = buf.freeze();
            assert_eq!(bytes.as_ptr(), at);
            assert!(bytes.iter().all(|&b| b == 7));
        }
    }

    #[test]
    fn a_zeroed_buffer_is_zeroes_whatever_its_memory_held_before() {
        for _ in 0..4 {
            let mut buf = AlignedBuf::zeroed(3 * ALIGN_BYTES);
            assert!(buf.iter().all(|&b| b == 0));
            buf.fill(9);
        }
        assert!(AlignedBuf::stale(3 * ALIGN_BYTES).iter().all(|&b| b == 9 || b == 0));
    }

    #[test]
    fn memory_kept_is_bounded() {
        let many: Vec<_> =
            (0..2 * KEPT_BYTES / ALIGN_BYTES).map(|_| AlignedBuf::stale(1)).collect();
        drop(many);
        let kept = FREE[0].lock().expect("no holder panics").len();
        assert!(kept <= KEPT_BYTES / ALIGN_BYTES, "{kept}");
    }
}
