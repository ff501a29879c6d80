//! A history as JSON lines: one object an event, keys in the order of [`Event`]'s fields.

use std::io::{self, BufRead, Write};

use super::Event;

/// Longest line that is read: a read of 64 Ki registers.
const LINE_BYTES_MAX: usize = 2 << 20;

/// Why a history could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file.
    #[error("reading a history")]
    Io(#[from] io::Error),
    /// A line that is no event.
    #[error("line {line} is no event")]
    Line {
        /// From 1.
        line: usize,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A line that is longer than any event.
    #[error("line {line} is longer than any event")]
    TooLong {
        /// From 1.
        line: usize,
    },
}

/// Writes one event as a line.
///
/// # Errors
///
/// Those of `out`.
pub fn write_json(out: &mut impl Write, event: &Event) -> io::Result<()> {
    serde_json::to_writer(&mut *out, event)?;
    out.write_all(b"\n")
}

/// Reads a whole history.
///
/// # Errors
///
/// [`ReadError`].
pub fn read_json(input: impl BufRead) -> Result<Vec<Event>, ReadError> {
    let mut events = Vec::new();
    for (at, text) in input.lines().enumerate() {
        let (text, line) = (text?, at + 1);
        if text.len() > LINE_BYTES_MAX {
            return Err(ReadError::TooLong { line });
        }
        let event = serde_json::from_str(&text);
        events.push(event.map_err(|source| ReadError::Line { line, source })?);
    }
    Ok(events)
}
