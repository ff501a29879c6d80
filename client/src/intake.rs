//! Room in a receive buffer. Messages are cut off the buffer without a copy, so what matters is when it
//! is replaced: many small messages share one, and a large one is given its own before it comes in.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use bytes::BytesMut;

/// Bytes asked of a socket at once; many small messages fit.
const READ_BYTES: usize = 128 << 10;
/// Room below which a buffer is replaced, unless it holds more than that of an unfinished message.
const SPARE_BYTES: usize = 16 << 10;
/// Buffers that are as large as the last large message, unless another one comes.
const LARGE_BUFFERS: u32 = 8;

/// What the room for the next bytes goes by.
#[derive(Debug, Default)]
pub(crate) struct Intake {
    /// Bytes of the last large message: the next one is often as large.
    large_bytes: usize,
    /// Buffers that are yet to be made so large.
    large_left: u32,
}

impl Intake {
    /// Makes room in `buffer`, which begins with a message that lacks `missing` bytes, at least.
    pub(crate) fn make_room(&mut self, buffer: &mut BytesMut, missing: usize) {
        let whole = buffer.len() + missing;
        let spare = buffer.capacity() - buffer.len();
        let enough = spare >= SPARE_BYTES || buffer.len() > SPARE_BYTES;
        if spare < missing || !enough {
            let ahead = if self.large_left > 0 { self.large_bytes } else { READ_BYTES };
            self.large_left = self.large_left.saturating_sub(1);
            buffer.reserve(missing.max(ahead));
        }
        if whole > READ_BYTES {
            (self.large_bytes, self.large_left) = (whole, LARGE_BUFFERS);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const HEADER_BYTES: usize = 28;

    /// Receives messages of `len` bytes, at most `step` at a time, and keeps `kept` of them. Returns how
    /// many bytes were moved to another place, and how many buffers were made.
    fn receive(len: usize, step: usize, count: usize, kept: usize) -> (usize, usize) {
        let (mut buffer, mut intake) = (BytesMut::new(), Intake::default());
        let mut held: Vec<Bytes> = Vec::new();
        let (mut moved, mut buffers, mut left) = (0, 0, len * count);
        while left > 0 || !buffer.is_empty() {
            let missing = match buffer.len() {
                have if have >= len => 0,
                have if have >= HEADER_BYTES => len - have,
                have => HEADER_BYTES - have,
            };
            if missing == 0 {
                held.push(buffer.split_to(len).freeze());
                held.drain(..held.len().saturating_sub(kept));
                continue;
            }
            let (before, have) = (buffer.as_ptr(), buffer.len());
            intake.make_room(&mut buffer, missing);
            if buffer.as_ptr() != before {
                moved += have;
                buffers += 1;
            }
            assert!(buffer.capacity() - have >= missing);
            let read = step.min(left).min(buffer.capacity() - have);
            buffer.resize(have + read, 7);
            left -= read;
        }
        (moved, buffers)
    }

    #[test]
    fn small_messages_share_buffers_and_are_hardly_ever_moved() {
        let (count, len) = (3_000, 4_096 + HEADER_BYTES);
        for step in [len, 50_000, 1 << 20] {
            let (moved, buffers) = receive(len, step, count, 32);
            assert!(buffers <= count / 20, "{buffers} buffers in steps of {step}");
            assert!(moved <= count * len / 20, "{moved} bytes moved in steps of {step}");
        }
    }

    #[test]
    fn large_messages_that_come_one_after_the_other_are_not_moved() {
        let (count, len) = (100, (1 << 20) + HEADER_BYTES);
        for step in [64 << 10, 300_000, 4 << 20] {
            let (moved, _) = receive(len, step, count, 8);
            assert!(moved <= count * len / 20, "{moved} bytes moved in steps of {step}");
        }
    }

    #[test]
    fn a_quiet_connection_keeps_its_buffer() {
        let (moved, buffers) = receive(HEADER_BYTES, HEADER_BYTES, 10_000, 0);
        assert!(buffers <= 20 && moved == 0, "{buffers} buffers, {moved} bytes moved");
    }
}
