//! The option phase: one option in, its replies out.
//!
//! ```text
//! Greeting ─► ClientFlags ─► Options ──GO, EXPORT_NAME──► Transmission
//!                              │  ▲
//!                              └──┘ any other option     ABORT ─► closed
//! ```
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    cursor::Cursor,
    export::{self, ExportInfo},
    wire::{
        ALLOCATION, ALLOCATION_ID, BLOCK_BYTES_MIN, BLOCK_BYTES_PREFERRED, FLAG_FIXED_NEWSTYLE,
        FLAG_NO_ZEROES, NBD_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, PAYLOAD_BYTES_MAX, info,
        option, reply,
    },
};

/// Zeroes that pad the answer to `EXPORT_NAME` for clients that want them.
const EXPORT_NAME_PADDING_BYTES: usize = 124;

/// What has been agreed on so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Agreed {
    /// The client wants no padding.
    pub(crate) no_zeroes: bool,
    /// Structured replies.
    pub(crate) structured: bool,
    /// Export for which `base:allocation` was selected.
    pub(crate) allocation_of: Option<usize>,
}

/// What one option led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Negotiation goes on.
    Continue,
    /// Transmission starts on this export; `strict` if the client was told the block sizes.
    Start {
        /// Index of the export.
        export: usize,
        /// The client knows that requests must be aligned.
        strict: bool,
    },
    /// The client aborted.
    Aborted,
    /// `EXPORT_NAME` of an export there is not: the protocol has no other answer than to close.
    UnknownExport,
}

/// The server's first bytes.
pub(crate) fn greeting() -> Bytes {
    let mut out = BytesMut::with_capacity(18);
    out.put_u64(NBD_MAGIC);
    out.put_u64(OPTION_MAGIC);
    out.put_u16(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
    out.freeze()
}

/// One reply to an option.
pub(crate) fn put_reply(out: &mut BytesMut, option: u32, kind: u32, data: &[u8]) {
    out.put_u64(OPTION_REPLY_MAGIC);
    out.put_u32(option);
    out.put_u32(kind);
    out.put_u32(data.len() as u32);
    out.put_slice(data);
}

/// Handles one whole option and appends the replies to `out`.
pub(crate) fn handle(
    agreed: &mut Agreed,
    exports: &[ExportInfo],
    option: u32,
    data: &[u8],
    out: &mut BytesMut,
) -> Outcome {
    match option {
        option::EXPORT_NAME => return export_name(agreed, exports, data, out),
        option::ABORT => {
            put_reply(out, option, reply::ACK, &[]);
            return Outcome::Aborted;
        }
        option::LIST => list(exports, data, out),
        option::INFO | option::GO => return info_or_go(agreed, exports, option, data, out),
        option::STRUCTURED_REPLY => {
            let kind = if data.is_empty() { reply::ACK } else { reply::ERR_INVALID };
            agreed.structured |= data.is_empty();
            put_reply(out, option, kind, &[]);
        }
        option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
            meta_context(agreed, exports, option, data, out);
        }
        _ => put_reply(out, option, reply::ERR_UNSUP, b"option is not supported"),
    }
    Outcome::Continue
}

fn export_name(
    agreed: &Agreed,
    exports: &[ExportInfo],
    data: &[u8],
    out: &mut BytesMut,
) -> Outcome {
    let found = std::str::from_utf8(data).ok().and_then(|name| export::find(exports, name));
    let Some(export) = found else {
        return Outcome::UnknownExport;
    };
    out.put_u64(exports[export].size_bytes);
    out.put_u16(exports[export].flags(agreed.structured));
    if !agreed.no_zeroes {
        out.put_bytes(0, EXPORT_NAME_PADDING_BYTES);
    }
    Outcome::Start { export, strict: false }
}

fn list(exports: &[ExportInfo], data: &[u8], out: &mut BytesMut) {
    if !data.is_empty() {
        put_reply(out, option::LIST, reply::ERR_INVALID, b"LIST takes no data");
        return;
    }
    for export in exports {
        let mut entry = BytesMut::new();
        entry.put_u32(export.name.len() as u32);
        entry.put_slice(export.name.as_bytes());
        entry.put_slice(export.description.as_bytes());
        put_reply(out, option::LIST, reply::SERVER, &entry);
    }
    put_reply(out, option::LIST, reply::ACK, &[]);
}

fn parse_info(data: &[u8]) -> Option<(&str, Vec<u16>)> {
    let mut cursor = Cursor::new(data);
    let name = cursor.string()?;
    let wanted = (0..cursor.u16()?).map(|_| cursor.u16()).collect::<Option<Vec<_>>>()?;
    cursor.end()?;
    Some((name, wanted))
}

fn info_or_go(
    agreed: &mut Agreed,
    exports: &[ExportInfo],
    option: u32,
    data: &[u8],
    out: &mut BytesMut,
) -> Outcome {
    let Some((name, wanted)) = parse_info(data) else {
        put_reply(out, option, reply::ERR_INVALID, b"malformed request for information");
        return Outcome::Continue;
    };
    let Some(index) = export::find(exports, name) else {
        put_reply(out, option, reply::ERR_UNKNOWN, b"no such export");
        return Outcome::Continue;
    };
    let strict = wanted.contains(&info::BLOCK_SIZE);
    put_infos(out, option, &exports[index], &wanted, agreed.structured);
    put_reply(out, option, reply::ACK, &[]);
    if option == option::INFO {
        return Outcome::Continue;
    }
    // Contexts are selected for one export; entering another forgets them.
    agreed.allocation_of = agreed.allocation_of.filter(|&of| of == index);
    Outcome::Start { export: index, strict }
}

fn put_infos(
    out: &mut BytesMut,
    option: u32,
    export: &ExportInfo,
    wanted: &[u16],
    structured: bool,
) {
    let mut put = |kind: u16, fill: &dyn Fn(&mut BytesMut)| {
        let mut data = BytesMut::new();
        data.put_u16(kind);
        fill(&mut data);
        put_reply(out, option, reply::INFO, &data);
    };
    put(info::EXPORT, &|data| {
        data.put_u64(export.size_bytes);
        data.put_u16(export.flags(structured));
    });
    if wanted.contains(&info::NAME) {
        put(info::NAME, &|data| data.put_slice(export.name.as_bytes()));
    }
    if wanted.contains(&info::DESCRIPTION) {
        put(info::DESCRIPTION, &|data| data.put_slice(export.description.as_bytes()));
    }
    if wanted.contains(&info::BLOCK_SIZE) {
        put(info::BLOCK_SIZE, &|data| {
            data.put_u32(BLOCK_BYTES_MIN);
            data.put_u32(BLOCK_BYTES_PREFERRED);
            data.put_u32(PAYLOAD_BYTES_MAX);
        });
    }
}

fn parse_meta(data: &[u8]) -> Option<(&str, Vec<&str>)> {
    let mut cursor = Cursor::new(data);
    let name = cursor.string()?;
    let count = cursor.u32()?;
    let mut queries = Vec::new();
    for _ in 0..count {
        queries.push(cursor.string()?);
    }
    cursor.end()?;
    Some((name, queries))
}

fn meta_context(
    agreed: &mut Agreed,
    exports: &[ExportInfo],
    option: u32,
    data: &[u8],
    out: &mut BytesMut,
) {
    let setting = option == option::SET_META_CONTEXT;
    if setting {
        // Even a failed selection replaces the one before.
        agreed.allocation_of = None;
    }
    let Some((name, queries)) = parse_meta(data).filter(|_| agreed.structured) else {
        put_reply(out, option, reply::ERR_INVALID, b"malformed, or without structured replies");
        return;
    };
    let Some(index) = export::find(exports, name) else {
        put_reply(out, option, reply::ERR_UNKNOWN, b"no such export");
        return;
    };
    // A namespace alone lists its contexts, but selects none.
    let matches = queries.contains(&ALLOCATION)
        || (!setting && (queries.is_empty() || queries.contains(&"base:")));
    if matches {
        let mut context = BytesMut::new();
        context.put_u32(if setting { ALLOCATION_ID } else { 0 });
        context.put_slice(ALLOCATION.as_bytes());
        put_reply(out, option, reply::META_CONTEXT, &context);
    }
    if setting && matches {
        agreed.allocation_of = Some(index);
    }
    put_reply(out, option, reply::ACK, &[]);
}
