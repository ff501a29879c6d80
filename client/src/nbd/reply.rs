//! Replies of the transmission phase, encoded.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use bytes::{BufMut, BytesMut};

use super::wire::{
    ALLOCATION_ID, CHUNK_HEADER_BYTES, CHUNK_MAGIC, Errno, SIMPLE_REPLY_BYTES, SIMPLE_REPLY_MAGIC,
    STATE_HOLE, STATE_ZERO, chunk,
};

/// Longest text in an error chunk.
const TEXT_BYTES_MAX: usize = 512;
/// Most extents in one answer; a client asks again from where it ends.
pub(crate) const EXTENTS_MAX: usize = 8192;

/// How one client wants its replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replies {
    /// Structured replies were agreed on.
    pub structured: bool,
}

/// A run of bytes of an export, as `base:allocation` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Bytes.
    pub len: u32,
    /// Whether it holds data; else it is a hole, which reads as zeroes.
    pub data: bool,
}

impl Replies {
    /// What goes before the `len` bytes of a read. The caller sends the bytes behind it.
    pub fn put_read_header(self, out: &mut BytesMut, cookie: u64, offset: u64, len: u32) {
        if self.structured {
            put_chunk(out, chunk::OFFSET_DATA, cookie, 8 + len);
            out.put_u64(offset);
        } else {
            put_simple(out, cookie, 0);
        }
    }

    /// Success without data.
    pub fn put_done(self, out: &mut BytesMut, cookie: u64) {
        if self.structured {
            put_chunk(out, chunk::NONE, cookie, 0);
        } else {
            put_simple(out, cookie, 0);
        }
    }

    /// Failure; `text` is for people and only sent in structured replies.
    pub fn put_error(self, out: &mut BytesMut, cookie: u64, errno: Errno, text: &str) {
        if !self.structured {
            put_simple(out, cookie, errno as u32);
            return;
        }
        let cut = text.floor_char_boundary(TEXT_BYTES_MAX.min(text.len()));
        let text = &text.as_bytes()[..cut];
        put_chunk(out, chunk::ERROR, cookie, 6 + text.len() as u32);
        out.put_u32(errno as u32);
        out.put_u16(text.len() as u16);
        out.put_slice(text);
    }

    /// Answer to a block status of `len` bytes. `runs` cover its beginning; neighbours of one kind
    /// are merged and what reaches past `len` is cut off. Without any run it is an error, for the
    /// protocol requires one.
    pub fn put_status(self, out: &mut BytesMut, cookie: u64, len: u32, one: bool, runs: &[Run]) {
        let mut merged = merge(len, runs);
        merged.truncate(if one { 1 } else { EXTENTS_MAX });
        if merged.is_empty() {
            self.put_error(out, cookie, Errno::Io, "no extent known");
            return;
        }
        put_chunk(out, chunk::BLOCK_STATUS, cookie, 4 + 8 * merged.len() as u32);
        out.put_u32(ALLOCATION_ID);
        for run in merged {
            out.put_u32(run.len);
            out.put_u32(if run.data { 0 } else { STATE_HOLE | STATE_ZERO });
        }
    }
}

fn merge(len: u32, runs: &[Run]) -> Vec<Run> {
    let mut left = len;
    let mut merged: Vec<Run> = Vec::new();
    for run in runs {
        let take = run.len.min(left);
        left -= take;
        match merged.last_mut() {
            _ if take == 0 => {}
            Some(last) if last.data == run.data => last.len += take,
            Some(_) | None => merged.push(Run { len: take, data: run.data }),
        }
    }
    merged
}

fn put_simple(out: &mut BytesMut, cookie: u64, error: u32) {
    out.reserve(SIMPLE_REPLY_BYTES);
    out.put_u32(SIMPLE_REPLY_MAGIC);
    out.put_u32(error);
    out.put_u64(cookie);
}

/// Every reply here is one chunk, so each is the last.
fn put_chunk(out: &mut BytesMut, kind: u16, cookie: u64, len: u32) {
    out.reserve(CHUNK_HEADER_BYTES + 8);
    out.put_u32(CHUNK_MAGIC);
    out.put_u16(chunk::FLAG_DONE);
    out.put_u16(kind);
    out.put_u64(cookie);
    out.put_u32(len);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_merged_and_cut_to_the_request() {
        let runs = [(10, true), (0, false), (5, true), (7, false), (9, true)]
            .map(|(len, data)| Run { len, data });
        assert_eq!(
            merge(20, &runs),
            vec![Run { len: 15, data: true }, Run { len: 5, data: false }]
        );
    }

    #[test]
    fn an_error_text_is_cut_at_a_character() {
        let mut out = BytesMut::new();
        let text = "é".repeat(400);
        Replies { structured: true }.put_error(&mut out, 1, Errno::Io, &text);
        assert!(std::str::from_utf8(&out[CHUNK_HEADER_BYTES + 6..]).is_ok());
    }
}
