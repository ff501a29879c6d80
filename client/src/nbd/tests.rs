//! The session as a client sees it.

use bytes::{BufMut as _, Bytes, BytesMut};
use proptest::prelude::*;

use super::{
    Close, Command, Errno, ExportInfo, Limits, Replies, Session, Step,
    wire::{
        CHUNK_MAGIC, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, OPTION_BYTES_MAX, OPTION_MAGIC,
        OPTION_REPLY_MAGIC, PAYLOAD_BYTES_MAX, REQUEST_MAGIC, command, option, reply, transmission,
    },
};

const SIZE: u64 = 1 << 30;

fn export(name: &str, read_only: bool) -> ExportInfo {
    ExportInfo {
        name: name.to_owned(),
        description: "a disk".to_owned(),
        size_bytes: SIZE,
        read_only,
        fast_zero: true,
        multi_conn: true,
    }
}

/// A client that collects what the session says.
struct Client {
    session: Session,
    sent: BytesMut,
    opened: Option<usize>,
    closed: Option<Close>,
    requests: Vec<super::Request>,
    missing: usize,
}

impl Client {
    fn with_limits(limits: Limits) -> Self {
        let exports = [export("disk", false), export("ro", true)];
        let mut client = Self {
            session: Session::new(exports.into(), limits),
            sent: BytesMut::new(),
            opened: None,
            closed: None,
            requests: Vec::new(),
            missing: 0,
        };
        client.run();
        client.say(&u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
        client.sent.clear();
        client
    }

    fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    fn run(&mut self) {
        loop {
            match self.session.step() {
                Step::Send(bytes) => self.sent.extend_from_slice(&bytes),
                Step::Opened { export } => self.opened = Some(export),
                Step::Request(request) => self.requests.push(request),
                Step::Read { bytes } => {
                    self.missing = bytes;
                    return;
                }
                Step::Full => return,
                Step::Close(why) => {
                    self.closed = Some(why);
                    return;
                }
            }
        }
    }

    fn say(&mut self, bytes: &[u8]) -> Bytes {
        self.session.input().extend_from_slice(bytes);
        self.run();
        self.sent.split().freeze()
    }

    fn option(&mut self, option: u32, data: &[u8]) -> Bytes {
        self.say(&option_bytes(option, data))
    }

    fn go(&mut self, name: &str, infos: &[u16]) -> Bytes {
        self.option(option::GO, &go_data(name, infos))
    }

    fn request(&mut self, flags: u16, command: u16, offset: u64, len: u32, data: &[u8]) -> Bytes {
        self.say(&request_bytes(flags, command, offset, len, data))
    }
}

fn option_bytes(option: u32, data: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    out.put_u64(OPTION_MAGIC);
    out.put_u32(option);
    out.put_u32(data.len() as u32);
    out.put_slice(data);
    out
}

fn go_data(name: &str, infos: &[u16]) -> BytesMut {
    let mut out = BytesMut::new();
    out.put_u32(name.len() as u32);
    out.put_slice(name.as_bytes());
    out.put_u16(infos.len() as u16);
    for info in infos {
        out.put_u16(*info);
    }
    out
}

fn meta_data(name: &str, queries: &[&str]) -> BytesMut {
    let mut out = BytesMut::new();
    out.put_u32(name.len() as u32);
    out.put_slice(name.as_bytes());
    out.put_u32(queries.len() as u32);
    for query in queries {
        out.put_u32(query.len() as u32);
        out.put_slice(query.as_bytes());
    }
    out
}

fn request_bytes(flags: u16, command: u16, offset: u64, len: u32, data: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    out.put_u32(REQUEST_MAGIC);
    out.put_u16(flags);
    out.put_u16(command);
    out.put_u64(42);
    out.put_u64(offset);
    out.put_u32(len);
    out.put_slice(data);
    out
}

/// Kinds of the option replies in `bytes`, with their data.
fn option_replies(mut bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut replies = Vec::new();
    while let Some((header, rest)) = bytes.split_at_checked(20) {
        assert_eq!(header[..8], OPTION_REPLY_MAGIC.to_be_bytes());
        let kind = u32::from_be_bytes(header[12..16].try_into().expect("four bytes"));
        let len = u32::from_be_bytes(header[16..].try_into().expect("four bytes")) as usize;
        replies.push((kind, rest[..len].to_vec()));
        bytes = &rest[len..];
    }
    assert!(bytes.is_empty());
    replies
}

fn kinds(bytes: &[u8]) -> Vec<u32> {
    option_replies(bytes).into_iter().map(|(kind, _)| kind).collect()
}

fn simple_error(bytes: &[u8]) -> u32 {
    assert_eq!(bytes.len(), 16, "one simple reply");
    u32::from_be_bytes(bytes[4..8].try_into().expect("four bytes"))
}

#[test]
fn unknown_options_are_refused_and_parsing_goes_on() {
    let mut client = Client::new();
    for unknown in [4, 5, 11, 12345] {
        assert_eq!(kinds(&client.option(unknown, b"junk")), [reply::ERR_UNSUP]);
    }
    assert_eq!(kinds(&client.go("disk", &[])), [reply::INFO, reply::ACK]);
    assert_eq!(client.opened, Some(0));
}

#[test]
fn an_oversized_option_is_skipped_without_being_kept() {
    let mut client = Client::new();
    let mut header = option_bytes(option::LIST, &[]);
    let len = OPTION_BYTES_MAX as u32 + 1;
    header[12..16].copy_from_slice(&len.to_be_bytes());
    assert!(client.say(&header).is_empty());
    for _ in 0..len {
        assert!(client.sent.is_empty(), "refused before it was skipped");
        client.sent = client.say(b"x").into();
        assert!(client.session.input().is_empty(), "nothing of it is kept");
    }
    assert_eq!(kinds(&client.sent.split()), [reply::ERR_TOO_BIG]);
    assert_eq!(kinds(&client.option(option::LIST, &[])).last(), Some(&reply::ACK));
}

#[test]
fn list_names_every_export() {
    let replies = option_replies(&Client::new().option(option::LIST, &[]));
    let names: Vec<_> = replies.iter().filter(|r| r.0 == reply::SERVER).collect();
    assert_eq!(names.len(), 2);
    assert!(names[1].1.starts_with(b"\0\0\0\x02ro"));
    assert_eq!(kinds(&Client::new().option(option::LIST, b"x")), [reply::ERR_INVALID]);
}

#[test]
fn go_tells_what_was_asked_for() {
    let mut client = Client::new();
    let replies = option_replies(&client.go("ro", &[1, 2, 3]));
    let infos: Vec<_> = replies.iter().map(|(_, data)| data.get(..2).map(|d| d[1])).collect();
    assert_eq!(infos, [Some(0), Some(1), Some(2), Some(3), None]);
    let flags = u16::from_be_bytes(replies[0].1[10..].try_into().expect("two bytes"));
    assert_ne!(flags & transmission::READ_ONLY, 0);
    assert_eq!(flags & transmission::SEND_TRIM, 0);
    assert_ne!(flags & transmission::CAN_MULTI_CONN, 0);
}

#[test]
fn an_unknown_export_is_an_error_reply_for_go_and_the_end_for_export_name() {
    let mut client = Client::new();
    assert_eq!(kinds(&client.go("nope", &[])), [reply::ERR_UNKNOWN]);
    assert_eq!(kinds(&client.option(option::GO, b"\0\0")), [reply::ERR_INVALID]);
    client.option(option::EXPORT_NAME, b"nope");
    assert_eq!(client.closed, Some(Close::UnknownExport));
}

#[test]
fn export_name_is_answered_without_zeroes_only_if_agreed() {
    let mut client = Client::new();
    assert_eq!(client.option(option::EXPORT_NAME, b"disk").len(), 10);
    assert_eq!(client.opened, Some(0));

    let mut old = Session::new([export("disk", false)].into(), Limits::default());
    old.input().extend_from_slice(&1_u32.to_be_bytes());
    old.input().extend_from_slice(&option_bytes(option::EXPORT_NAME, b"disk"));
    assert!(matches!(old.step(), Step::Send(_)));
    assert!(matches!(old.step(), Step::Send(bytes) if bytes.len() == 134));
}

#[test]
fn contexts_need_structured_replies_and_belong_to_one_export() {
    let set = |client: &mut Client, name| {
        kinds(&client.option(option::SET_META_CONTEXT, &meta_data(name, &["base:allocation"])))
    };
    let mut client = Client::new();
    assert_eq!(set(&mut client, "disk"), [reply::ERR_INVALID]);
    client.option(option::STRUCTURED_REPLY, &[]);
    assert_eq!(set(&mut client, "nope"), [reply::ERR_UNKNOWN]);
    assert_eq!(set(&mut client, "ro"), [reply::META_CONTEXT, reply::ACK]);
    client.go("disk", &[]);
    client.request(0, command::BLOCK_STATUS, 0, 4096, &[]);
    assert!(client.requests.is_empty(), "the context was selected for another export");

    let mut client = Client::new();
    client.option(option::STRUCTURED_REPLY, &[]);
    set(&mut client, "disk");
    client.go("disk", &[]);
    client.request(command::FLAG_REQ_ONE, command::BLOCK_STATUS, 0, 4096, &[]);
    let expected = Command::BlockStatus { offset: 0, len: 4096, one: true };
    assert_eq!(client.requests[0].command, expected);
}

#[test]
fn a_namespace_lists_its_contexts_but_selects_none() {
    let mut client = Client::new();
    client.option(option::STRUCTURED_REPLY, &[]);
    let query = meta_data("disk", &["base:"]);
    let listed = client.option(option::LIST_META_CONTEXT, &query);
    assert_eq!(kinds(&listed), [reply::META_CONTEXT, reply::ACK]);
    assert_eq!(kinds(&client.option(option::SET_META_CONTEXT, &query)), [reply::ACK]);
}

#[test]
fn invalid_requests_get_the_errors_that_the_protocol_names() {
    let end = SIZE - 512;
    let table: [(&str, u16, u16, u64, u32, Errno); 13] = [
        ("disk", 0, command::READ, SIZE, 512, Errno::Inval),
        ("disk", 0, command::READ, end, 1024, Errno::Inval),
        ("disk", 0, command::READ, u64::MAX, 512, Errno::Inval),
        ("disk", 0, command::READ, 0, 0, Errno::Inval),
        ("disk", 0, command::READ, 1, 512, Errno::Inval),
        ("disk", 0, command::READ, 0, PAYLOAD_BYTES_MAX + 512, Errno::Inval),
        ("disk", 0, command::WRITE_ZEROES, end, 1024, Errno::NoSpc),
        ("disk", 0, command::TRIM, end, 1024, Errno::Inval),
        ("disk", 1 << 9, command::READ, 0, 512, Errno::Inval),
        ("disk", command::FLAG_DF, command::READ, 0, 512, Errno::Inval),
        ("disk", 0, 99, 0, 0, Errno::Inval),
        ("ro", 0, command::TRIM, 0, 512, Errno::Perm),
        ("ro", 0, command::WRITE_ZEROES, 0, 512, Errno::Perm),
    ];
    for (name, flags, command, offset, len, errno) in table {
        let mut client = Client::new();
        client.go(name, &[3]);
        let reply = client.request(flags, command, offset, len, &[]);
        assert_eq!(simple_error(&reply), errno as u32, "{command} {offset}+{len}");
        assert!(client.requests.is_empty());
    }
}

#[test]
fn the_payload_of_a_refused_write_is_skipped() {
    let mut client = Client::new();
    client.go("ro", &[]);
    let reply = client.request(0, command::WRITE, 0, 512, &[7; 512]);
    assert_eq!(simple_error(&reply), Errno::Perm as u32);
    client.request(0, command::READ, 0, 512, &[]);
    assert_eq!(client.requests.len(), 1, "the stream is in step");

    let mut client = Client::new();
    client.go("disk", &[]);
    let reply = client.request(0, command::WRITE, SIZE, 512, &[7; 512]);
    assert_eq!(simple_error(&reply), Errno::NoSpc as u32);
}

#[test]
fn unaligned_requests_pass_if_the_client_never_asked_for_block_sizes() {
    let mut client = Client::new();
    client.go("disk", &[]);
    client.request(0, command::WRITE, 3, 5, b"hello");
    let data = Bytes::from_static(b"hello");
    assert_eq!(client.requests[0].command, Command::Write { offset: 3, data, fua: false });
}

#[test]
fn over_the_bounds_the_session_waits_for_a_reply() {
    let mut client = Client::with_limits(Limits { requests: 2, bytes: 4096 });
    client.go("disk", &[]);
    for _ in 0..3 {
        client.request(0, command::FLUSH, 0, 0, &[]);
    }
    assert_eq!((client.requests.len(), client.session.in_flight()), (2, 2));
    client.session.finish(0);
    client.run();
    assert_eq!(client.requests.len(), 3);

    let mut client = Client::with_limits(Limits { requests: 9, bytes: 4096 });
    client.go("disk", &[]);
    client.request(0, command::READ, 0, 1 << 20, &[]);
    client.request(0, command::READ, 0, 512, &[]);
    assert_eq!(client.requests.len(), 1, "one is always let in, the next one waits");
    client.session.finish(1 << 20);
    client.run();
    assert_eq!(client.requests.len(), 2);
}

#[test]
fn garbage_ends_the_session() {
    let mut client = Client::new();
    client.say(&[0xff; 16]);
    assert_eq!(client.closed, Some(Close::Garbage));
    let mut client = Client::new();
    client.go("disk", &[]);
    client.say(&[0xff; 28]);
    assert_eq!(client.closed, Some(Close::Garbage));
    assert!(matches!(client.session.step(), Step::Close(Close::Garbage)), "and stays ended");
}

#[test]
fn endless_options_end_the_session() {
    let mut client = Client::new();
    while client.closed.is_none() {
        client.option(option::LIST, &[]);
    }
    assert_eq!(client.closed, Some(Close::TooManyOptions));
}

#[test]
fn structured_replies_carry_offset_data_and_error_text() {
    let replies = Replies { structured: true };
    let mut out = BytesMut::new();
    replies.put_read_header(&mut out, 42, 4096, 512);
    assert_eq!(out.len(), 28);
    assert_eq!(out[..4], CHUNK_MAGIC.to_be_bytes());
    assert_eq!(out[16..20], 520_u32.to_be_bytes());
    assert_eq!(out[20..], 4096_u64.to_be_bytes());
    out.clear();
    replies.put_error(&mut out, 42, Errno::NoSpc, "full");
    assert_eq!(out[20..24], 28_u32.to_be_bytes());
    assert_eq!(&out[26..], b"full");
}

proptest! {
    /// How the bytes are cut into reads makes no difference.
    #[test]
    fn requests_do_not_depend_on_how_the_stream_is_cut(
        writes in prop::collection::vec((0..100_u64, 1..40_usize), 1..20),
        cut in 1..50_usize,
    ) {
        let mut stream = option_bytes(option::GO, &go_data("disk", &[]));
        for (at, len) in &writes {
            let data = vec![*at as u8; len * 16];
            let offset = at * 8;
            stream.extend_from_slice(&request_bytes(0, command::WRITE, offset, data.len() as u32, &data));
        }
        let mut whole = Client::new();
        whole.say(&stream);
        let mut pieces = Client::new();
        for piece in stream.chunks(cut) {
            pieces.say(piece);
        }
        prop_assert_eq!(whole.requests.len(), writes.len());
        prop_assert_eq!(whole.requests, pieces.requests);
    }

    /// The session asks for what is missing, so that a driver can read a large payload at once.
    #[test]
    fn what_is_missing_is_told_exactly(len in 1..100_000_u32, have in 0..28_usize) {
        let mut client = Client::new();
        client.go("disk", &[]);
        client.say(&request_bytes(0, command::WRITE, 0, len, &[])[..have]);
        prop_assert_eq!(client.missing, 28 - have);
        client.say(&request_bytes(0, command::WRITE, 0, len, &[])[have..]);
        prop_assert_eq!(client.missing, len as usize);
    }
}
