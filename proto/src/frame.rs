//! Encoding of data-plane messages: a [`Header`], a body, a payload.

use std::collections::BTreeSet;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message as _;

use crate::{
    entry::{Change, Entry, Payload},
    geometry::{CHUNK_BYTES, Extent, SEGMENT_BYTES},
    header::{HEADER_BYTES, Header},
    ids::{
        Epoch, OpId, Position, ReplicaId, SegmentId, Sequence, ServerId, SessionId, Token, VolumeId,
    },
    peer::{
        Action, AppliedSession, FromPrimary, PeerMessage, Refusal, Reply, Request, Room, ToPrimary,
        Wire,
    },
    record::Route,
    rpc,
};

/// Bytes that are no frame, or a frame no correct peer sends. The connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not a frame at all.
    #[error("bad magic {found:#010x}")]
    Magic {
        /// First four bytes.
        found: u32,
    },
    /// A framing version this build does not speak.
    #[error("framing version {found} is not supported")]
    Version {
        /// Version in the header.
        found: u8,
    },
    /// Header damaged.
    #[error("header checksum mismatch")]
    HeaderSum,
    /// Body damaged.
    #[error("body checksum mismatch")]
    BodySum,
    /// Longer than any frame may be.
    #[error("frame too long: body {body}, payload {payload} bytes")]
    TooLong {
        /// Bytes of body.
        body: u32,
        /// Bytes of payload.
        payload: u32,
    },
    /// Unknown kind.
    #[error("unknown frame kind {kind}")]
    Kind {
        /// The kind.
        kind: u8,
    },
    /// Fields that contradict each other.
    #[error("malformed frame of kind {kind}")]
    Malformed {
        /// The kind.
        kind: u8,
    },
}

/// One message on the data plane.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    /// First frame of who connects.
    Hello(rpc::Hello),
    /// First frame of who accepts.
    Welcome(rpc::Welcome),
    /// A client asks.
    Request {
        /// Correlates the reply; unique among those open on the connection.
        id: u64,
        /// What is asked.
        request: Request<Payload>,
    },
    /// The server answers.
    Reply {
        /// As in the request.
        id: u64,
        /// The answer.
        reply: Reply,
    },
    /// Between copies of a segment.
    Peer(Wire),
    /// Lease messages of many segments between one pair of servers.
    Leases(Vec<Wire>),
}

macro_rules! kinds {
    ($($name:ident = $value:literal),* $(,)?) => {
        /// The kinds of frames; pinned, see docs/format.md.
        mod kind { $(pub(super) const $name: u8 = $value;)* }
    };
}
kinds! {
    HELLO = 1, WELCOME = 2,
    READ = 10, WRITE = 11, ZERO = 12, COMPARE = 13, FLUSH = 14, EXTENTS = 15,
    DONE = 20, DATA = 21, DIFFERS = 22, RUNS = 23, REFUSED = 24,
    APPEND = 30, APPENDED = 31, MISMATCH = 32, COMMIT = 33, QUERY = 34, ANSWER = 35, FETCH = 36,
    TAIL = 37, STALE = 38, LOST = 39, LEASE_ASK = 40, LEASE_GRANT = 41, LEASE_RETURN = 42,
    COPY_ASK = 43, COPY_CHUNK = 44, COPY_TAKEN = 45, COPY_END = 46, COPY_BEGIN = 47,
    COPY_ENDED = 48,
    LEASES = 50,
}

const CHANGE_ACTIVATE: u32 = 0;
const CHANGE_WRITE: u32 = 1;
const CHANGE_ZERO: u32 = 2;
const FLAG: u16 = 1;
/// In a list of chunks: the chunk's image follows.
const CHUNK_FOLLOWS: u32 = 1 << 31;
/// Bytes of one lease message in a [`Frame::Leases`] body: kind, volume, segment, from, to, epoch, number.
const LEASE_BYTES: usize = 48;

/// Encodes `frame`: header and body are appended to `head`; the payload, if any, is handed back to be
/// sent right behind them.
pub fn encode(frame: &Frame, head: &mut BytesMut) -> Option<Bytes> {
    let mut out = Encoder::default();
    match frame {
        Frame::Hello(hello) => out.message(kind::HELLO, hello),
        Frame::Welcome(welcome) => out.message(kind::WELCOME, welcome),
        Frame::Request { id, request } => out.request(*id, request),
        Frame::Reply { id, reply } => out.reply(*id, reply),
        Frame::Peer(wire) => out.peer(wire),
        Frame::Leases(wires) => out.leases(wires),
    }
    out.finish(head)
}

#[derive(Default)]
struct Encoder {
    header: Header,
    body: Bytes,
    /// Checksums behind `body`, for a request with two payloads.
    payload: Option<Bytes>,
}

impl Encoder {
    fn message(&mut self, kind: u8, message: &impl prost::Message) {
        self.header.kind = kind;
        self.body = message.encode_to_vec().into();
    }

    fn segment(&mut self, segment: SegmentId) {
        self.header.volume = segment.volume.0.into();
        self.header.segment = segment.index.into();
    }

    fn extent(&mut self, extent: Extent) {
        self.header.offset = (extent.offset() as u32).into();
        self.header.len = (extent.len() as u32).into();
    }

    fn position(&mut self, at: Position) {
        self.header.position_epoch = at.epoch.0.into();
        self.header.position = at.sequence.0.into();
    }

    fn previous(&mut self, at: Position) {
        self.header.previous_epoch = at.epoch.0.into();
        self.header.previous = at.sequence.0.into();
    }

    fn data(&mut self, payload: &Payload) {
        self.body = payload.sums.clone();
        self.payload = Some(payload.data.clone());
    }

    fn request(&mut self, id: u64, request: &Request<Payload>) {
        self.header.request = id.into();
        self.segment(request.segment);
        self.header.epoch = request.epoch.0.into();
        self.header.token = request.token.0.into();
        self.header.session = request.op.session.0.into();
        self.header.number = request.op.number.into();
        self.header.lowest_open = request.lowest_open.into();
        self.header.kind = match &request.action {
            Action::Read { extent } => {
                self.extent(*extent);
                kind::READ
            }
            Action::Write { extent, data } => {
                self.extent(*extent);
                self.data(data);
                kind::WRITE
            }
            Action::Zero { extent, discard } => {
                self.extent(*extent);
                self.header.flags = u16::from(*discard).into();
                kind::ZERO
            }
            Action::Compare { extent, expect, data } => {
                self.extent(*extent);
                self.body = [&expect.sums[..], &data.sums[..]].concat().into();
                self.payload = Some([&expect.data[..], &data.data[..]].concat().into());
                kind::COMPARE
            }
            Action::Flush { acked } => {
                self.position(*acked);
                kind::FLUSH
            }
            Action::Extents { extent } => {
                self.extent(*extent);
                kind::EXTENTS
            }
        };
    }

    fn reply(&mut self, id: u64, reply: &Reply) {
        self.header.request = id.into();
        self.header.kind = match reply {
            Reply::Done(at) => {
                self.position(*at);
                kind::DONE
            }
            Reply::Data(payload) => {
                self.data(payload);
                kind::DATA
            }
            Reply::Differs => kind::DIFFERS,
            Reply::Extents(runs) => {
                let mut body = BytesMut::with_capacity(runs.len() * 5);
                for &(bytes, data) in runs {
                    body.put_u32_le(bytes);
                    body.put_u8(data.into());
                }
                self.body = body.freeze();
                kind::RUNS
            }
            Reply::Refused(refusal) => {
                self.refusal(refusal);
                kind::REFUSED
            }
        };
    }

    fn refusal(&mut self, refusal: &Refusal) {
        self.header.code = match refusal {
            Refusal::WrongEpoch(route) => {
                self.segment(route.segment);
                let body = rpc::RouteBody {
                    servers: route.servers.iter().map(|s| s.0).collect(),
                    primary: route.primary.0,
                    epoch: route.epoch.0,
                };
                self.body = body.encode_to_vec().into();
                1
            }
            Refusal::NotPrimary => 2,
            Refusal::Fenced(token) => {
                self.header.token = token.0.into();
                3
            }
            Refusal::Old => 4,
            Refusal::Busy => 5,
            Refusal::BadSum => 6,
            Refusal::Invalid => 7,
            Refusal::NoSpace => 8,
            Refusal::Corrupt => 9,
            Refusal::Lost => 10,
            Refusal::Failed => 11,
        }
        .into();
    }

    fn entry(&mut self, entry: &Entry<Payload>) {
        self.position(entry.position);
        self.header.token = entry.token.0.into();
        if let Some(op) = entry.op {
            self.header.session = op.session.0.into();
            self.header.number = op.number.into();
        }
        self.header.lowest_open = entry.lowest_open.into();
        self.header.code = match &entry.change {
            Change::Activate => CHANGE_ACTIVATE,
            Change::Write { extent, data } => {
                self.extent(*extent);
                self.data(data);
                CHANGE_WRITE
            }
            Change::Zero { extent, discard } => {
                self.extent(*extent);
                self.header.flags = u16::from(*discard).into();
                CHANGE_ZERO
            }
        }
        .into();
    }

    fn peer(&mut self, wire: &Wire) {
        self.segment(wire.segment);
        self.header.from = wire.from.0.into();
        self.header.to = wire.to.0.into();
        self.header.epoch = wire.epoch.0.into();
        self.header.kind = match &wire.message {
            PeerMessage::Primary(message) => self.primary(message),
            PeerMessage::Answer(message) => self.answer(message),
        };
    }

    fn primary(&mut self, message: &FromPrimary<Payload>) -> u8 {
        match message {
            FromPrimary::Append { previous, entry, commit } => {
                self.entry(entry);
                self.previous(*previous);
                self.header.commit = commit.0.into();
                kind::APPEND
            }
            FromPrimary::Commit { last, commit } => self.at(*last, *commit, kind::COMMIT),
            FromPrimary::Query => kind::QUERY,
            FromPrimary::Fetch { from } => self.at(Position::default(), *from, kind::FETCH),
            FromPrimary::LeaseAsk { number } => self.lease(*number, kind::LEASE_ASK),
            FromPrimary::LeaseReturn { number } => self.lease(*number, kind::LEASE_RETURN),
            FromPrimary::CopyBegin { at, have, live, follow } => {
                let follow: BTreeSet<_> = follow.iter().collect();
                let mut body = BytesMut::with_capacity(live.len() * 4);
                for chunk in live {
                    let mark = if follow.contains(chunk) { CHUNK_FOLLOWS } else { 0 };
                    body.put_u32_le(*chunk | mark);
                }
                self.body = body.freeze();
                self.at(*at, *have, kind::COPY_BEGIN)
            }
            FromPrimary::CopyChunk { chunk, changed, at, image } => {
                self.header.code = (*chunk).into();
                self.header.position = changed.0.into();
                self.header.commit = at.0.into();
                if let Some(image) = image {
                    self.header.flags = FLAG.into();
                    self.data(image);
                }
                kind::COPY_CHUNK
            }
            FromPrimary::CopyEnd { at, applied } => {
                self.body = applied_body(applied).encode_to_vec().into();
                self.at(*at, Sequence(0), kind::COPY_END)
            }
        }
    }

    fn answer(&mut self, message: &ToPrimary<Payload>) -> u8 {
        match message {
            ToPrimary::Appended { received, durable, room, filling } => {
                // 0 says `Room::ANY`, which wraps.
                self.header.code = room.0.wrapping_add(1).into();
                self.header.position = received.0.into();
                self.header.previous = durable.0.into();
                if let Some(have) = filling {
                    self.header.flags = FLAG.into();
                    self.header.commit = have.0.into();
                }
                kind::APPENDED
            }
            ToPrimary::Mismatch { last, commit } => self.at(*last, *commit, kind::MISMATCH),
            ToPrimary::Answer { last, commit } => self.at(*last, *commit, kind::ANSWER),
            ToPrimary::Tail { entry, last } => {
                self.entry(entry);
                self.previous(*last);
                kind::TAIL
            }
            ToPrimary::Stale => kind::STALE,
            ToPrimary::Lost => kind::LOST,
            ToPrimary::LeaseGrant { number } => self.lease(*number, kind::LEASE_GRANT),
            ToPrimary::CopyAsk { have } => self.at(Position::default(), *have, kind::COPY_ASK),
            ToPrimary::CopyTaken { chunk } => {
                self.header.code = (*chunk).into();
                kind::COPY_TAKEN
            }
            ToPrimary::CopyEnded { at } => self.at(*at, Sequence(0), kind::COPY_ENDED),
        }
    }

    fn at(&mut self, at: Position, commit: Sequence, kind: u8) -> u8 {
        self.position(at);
        self.header.commit = commit.0.into();
        kind
    }

    fn lease(&mut self, number: u64, kind: u8) -> u8 {
        self.header.request = number.into();
        kind
    }

    fn leases(&mut self, wires: &[Wire]) {
        let mut body = BytesMut::with_capacity(wires.len() * LEASE_BYTES);
        for wire in wires {
            let (kind, number) = match wire.message {
                PeerMessage::Primary(FromPrimary::LeaseAsk { number }) => (kind::LEASE_ASK, number),
                PeerMessage::Answer(ToPrimary::LeaseGrant { number }) => {
                    (kind::LEASE_GRANT, number)
                }
                PeerMessage::Primary(FromPrimary::LeaseReturn { number }) => {
                    (kind::LEASE_RETURN, number)
                }
                ref other => unreachable!("{other:?} is no lease message"),
            };
            body.put_u64_le(wire.segment.volume.0);
            body.put_u32_le(wire.segment.index);
            body.put_u32_le(kind.into());
            for word in [wire.from.0, wire.to.0, wire.epoch.0, number] {
                body.put_u64_le(word);
            }
        }
        self.header.kind = kind::LEASES;
        self.body = body.freeze();
    }

    fn finish(mut self, head: &mut BytesMut) -> Option<Bytes> {
        self.header.body_len = (self.body.len() as u32).into();
        self.header.payload_len = self.payload.as_ref().map_or(0, |p| p.len() as u32).into();
        self.header.body_sum = crate::checksum::sum(&self.body).into();
        head.reserve(HEADER_BYTES + self.body.len());
        head.extend_from_slice(&self.header.seal());
        head.extend_from_slice(&self.body);
        self.payload.filter(|p| !p.is_empty())
    }
}

fn applied_body(applied: &[AppliedSession]) -> rpc::AppliedBody {
    let sessions = applied
        .iter()
        .map(|s| rpc::AppliedSessionBody {
            session: s.session.0,
            token: s.token.0,
            lowest_open: s.lowest_open,
            numbers: s.applied.iter().map(|(n, _)| *n).collect(),
            epochs: s.applied.iter().map(|(_, p)| p.epoch.0).collect(),
            sequences: s.applied.iter().map(|(_, p)| p.sequence.0).collect(),
        })
        .collect();
    rpc::AppliedBody { sessions }
}

/// Decodes a frame from its parsed header, body and payload. Does not verify the payload against its
/// checksums: who uses the bytes does.
///
/// # Errors
///
/// [`FrameError`] if body or fields are not what the kind demands.
pub fn decode(header: &Header, body: Bytes, payload: Bytes) -> Result<Frame, FrameError> {
    if header.body_sum.get() != crate::checksum::sum(&body) {
        return Err(FrameError::BodySum);
    }
    let decoder = Decoder { header, body, payload };
    match header.kind {
        kind::HELLO => Ok(Frame::Hello(decoder.message()?)),
        kind::WELCOME => Ok(Frame::Welcome(decoder.message()?)),
        kind::READ..=kind::EXTENTS => decoder.request(),
        kind::DONE..=kind::REFUSED => decoder.reply(),
        kind::APPEND..=kind::COPY_ENDED => decoder.peer(),
        kind::LEASES => decoder.leases(),
        kind => Err(FrameError::Kind { kind }),
    }
}

struct Decoder<'a> {
    header: &'a Header,
    body: Bytes,
    payload: Bytes,
}

impl Decoder<'_> {
    fn malformed(&self) -> FrameError {
        FrameError::Malformed { kind: self.header.kind }
    }

    fn message<M: prost::Message + Default>(&self) -> Result<M, FrameError> {
        M::decode(&self.body[..]).map_err(|_| self.malformed())
    }

    fn segment(&self) -> SegmentId {
        SegmentId { volume: VolumeId(self.header.volume.get()), index: self.header.segment.get() }
    }

    fn extent(&self) -> Result<Extent, FrameError> {
        let (offset, len) = (self.header.offset.get(), self.header.len.get());
        Extent::new(offset.into(), len.into(), SEGMENT_BYTES).map_err(|_| self.malformed())
    }

    fn position(&self) -> Position {
        Position {
            epoch: Epoch(self.header.position_epoch.get()),
            sequence: Sequence(self.header.position.get()),
        }
    }

    fn previous(&self) -> Position {
        Position {
            epoch: Epoch(self.header.previous_epoch.get()),
            sequence: Sequence(self.header.previous.get()),
        }
    }

    fn commit(&self) -> Sequence {
        Sequence(self.header.commit.get())
    }

    fn flag(&self) -> bool {
        self.header.flags.get() & FLAG != 0
    }

    /// The payload with its checksums, of the length that `extent` demands.
    fn data(&self, extent: Extent) -> Result<Payload, FrameError> {
        let sums = extent.blocks().len() * 8;
        if self.payload.len() as u64 != extent.len() || self.body.len() != sums {
            return Err(self.malformed());
        }
        Ok(Payload { data: self.payload.clone(), sums: self.body.clone() })
    }

    fn op(&self) -> OpId {
        OpId { session: SessionId(self.header.session.get()), number: self.header.number.get() }
    }

    fn request(self) -> Result<Frame, FrameError> {
        let action = match self.header.kind {
            kind::READ => Action::Read { extent: self.extent()? },
            kind::WRITE => {
                let extent = self.extent()?;
                Action::Write { extent, data: self.data(extent)? }
            }
            kind::ZERO => Action::Zero { extent: self.extent()?, discard: self.flag() },
            kind::COMPARE => self.compare()?,
            kind::FLUSH => Action::Flush { acked: self.position() },
            _ => Action::Extents { extent: self.extent()? },
        };
        let request = Request {
            segment: self.segment(),
            epoch: Epoch(self.header.epoch.get()),
            token: Token(self.header.token.get()),
            op: self.op(),
            lowest_open: self.header.lowest_open.get(),
            action,
        };
        Ok(Frame::Request { id: self.header.request.get(), request })
    }

    fn compare(&self) -> Result<Action<Payload>, FrameError> {
        let extent = self.extent()?;
        let (bytes, sums) = (extent.len() as usize, extent.blocks().len() * 8);
        if extent.blocks().len() != 1
            || self.payload.len() != 2 * bytes
            || self.body.len() != 2 * sums
        {
            return Err(self.malformed());
        }
        let half = |first: bool| {
            let (data, sum) = if first { (0, 0) } else { (bytes, sums) };
            Payload {
                data: self.payload.slice(data..data + bytes),
                sums: self.body.slice(sum..sum + sums),
            }
        };
        Ok(Action::Compare { extent, expect: half(true), data: half(false) })
    }

    fn reply(self) -> Result<Frame, FrameError> {
        let reply = match self.header.kind {
            kind::DONE => Reply::Done(self.position()),
            kind::DATA => Reply::Data(Payload { data: self.payload, sums: self.body }),
            kind::DIFFERS => Reply::Differs,
            kind::RUNS => Reply::Extents(self.runs()?),
            _ => Reply::Refused(self.refusal()?),
        };
        Ok(Frame::Reply { id: self.header.request.get(), reply })
    }

    fn runs(&self) -> Result<Vec<(u32, bool)>, FrameError> {
        let (runs, []) = self.body.as_chunks::<5>() else {
            return Err(self.malformed());
        };
        let run = |r: &[u8; 5]| (u32::from_le_bytes([r[0], r[1], r[2], r[3]]), r[4] != 0);
        Ok(runs.iter().map(run).collect())
    }

    fn refusal(&self) -> Result<Refusal, FrameError> {
        Ok(match self.header.code.get() {
            1 => {
                let body: rpc::RouteBody = self.message()?;
                Refusal::WrongEpoch(Route {
                    segment: self.segment(),
                    epoch: Epoch(body.epoch),
                    primary: ServerId(body.primary),
                    servers: body.servers.into_iter().map(ServerId).collect(),
                })
            }
            2 => Refusal::NotPrimary,
            3 => Refusal::Fenced(Token(self.header.token.get())),
            4 => Refusal::Old,
            5 => Refusal::Busy,
            6 => Refusal::BadSum,
            7 => Refusal::Invalid,
            8 => Refusal::NoSpace,
            9 => Refusal::Corrupt,
            10 => Refusal::Lost,
            11 => Refusal::Failed,
            _ => return Err(self.malformed()),
        })
    }

    fn entry(&self) -> Result<Entry<Payload>, FrameError> {
        let change = match self.header.code.get() {
            CHANGE_ACTIVATE => Change::Activate,
            CHANGE_WRITE => {
                let extent = self.extent()?;
                Change::Write { extent, data: self.data(extent)? }
            }
            CHANGE_ZERO => Change::Zero { extent: self.extent()?, discard: self.flag() },
            _ => return Err(self.malformed()),
        };
        Ok(Entry {
            position: self.position(),
            token: Token(self.header.token.get()),
            op: Some(self.op()).filter(|op| op.session.0 != 0),
            lowest_open: self.header.lowest_open.get(),
            change,
        })
    }

    fn peer(self) -> Result<Frame, FrameError> {
        let message = match self.header.kind {
            kind::APPENDED
            | kind::MISMATCH
            | kind::ANSWER
            | kind::TAIL
            | kind::STALE
            | kind::LOST
            | kind::LEASE_GRANT
            | kind::COPY_ASK
            | kind::COPY_TAKEN
            | kind::COPY_ENDED => self.answer()?.into(),
            _ => self.primary()?.into(),
        };
        Ok(Frame::Peer(Wire {
            segment: self.segment(),
            from: ReplicaId(self.header.from.get()),
            to: ReplicaId(self.header.to.get()),
            epoch: Epoch(self.header.epoch.get()),
            message,
        }))
    }

    fn primary(&self) -> Result<FromPrimary<Payload>, FrameError> {
        let number = self.header.request.get();
        Ok(match self.header.kind {
            kind::APPEND => FromPrimary::Append {
                previous: self.previous(),
                entry: self.entry()?,
                commit: self.commit(),
            },
            kind::COMMIT => FromPrimary::Commit { last: self.position(), commit: self.commit() },
            kind::QUERY => FromPrimary::Query,
            kind::FETCH => FromPrimary::Fetch { from: self.commit() },
            kind::LEASE_ASK => FromPrimary::LeaseAsk { number },
            kind::LEASE_RETURN => FromPrimary::LeaseReturn { number },
            kind::COPY_BEGIN => self.copy_begin()?,
            kind::COPY_CHUNK => self.copy_chunk()?,
            kind::COPY_END => {
                FromPrimary::CopyEnd { at: self.position(), applied: self.applied()? }
            }
            kind => return Err(FrameError::Kind { kind }),
        })
    }

    fn answer(&self) -> Result<ToPrimary<Payload>, FrameError> {
        Ok(match self.header.kind {
            kind::APPENDED => ToPrimary::Appended {
                received: Sequence(self.header.position.get()),
                durable: Sequence(self.header.previous.get()),
                room: Room(self.header.code.get().wrapping_sub(1)),
                filling: self.flag().then(|| self.commit()),
            },
            kind::MISMATCH => ToPrimary::Mismatch { last: self.position(), commit: self.commit() },
            kind::ANSWER => ToPrimary::Answer { last: self.position(), commit: self.commit() },
            kind::TAIL => ToPrimary::Tail { entry: self.entry()?, last: self.previous() },
            kind::STALE => ToPrimary::Stale,
            kind::LOST => ToPrimary::Lost,
            kind::LEASE_GRANT => ToPrimary::LeaseGrant { number: self.header.request.get() },
            kind::COPY_ASK => ToPrimary::CopyAsk { have: self.commit() },
            kind::COPY_TAKEN => ToPrimary::CopyTaken { chunk: self.header.code.get() },
            kind::COPY_ENDED => ToPrimary::CopyEnded { at: self.position() },
            kind => return Err(FrameError::Kind { kind }),
        })
    }

    fn copy_chunk(&self) -> Result<FromPrimary<Payload>, FrameError> {
        let chunk = Extent::new(0, CHUNK_BYTES, CHUNK_BYTES).map_err(|_| self.malformed())?;
        let image = if self.flag() { Some(self.data(chunk)?) } else { None };
        Ok(FromPrimary::CopyChunk {
            chunk: self.header.code.get(),
            changed: Sequence(self.header.position.get()),
            at: self.commit(),
            image,
        })
    }

    fn copy_begin(&self) -> Result<FromPrimary<Payload>, FrameError> {
        let (words, []) = self.body.as_chunks::<4>() else {
            return Err(self.malformed());
        };
        let words = || words.iter().map(|w| u32::from_le_bytes(*w));
        Ok(FromPrimary::CopyBegin {
            at: self.position(),
            have: self.commit(),
            live: words().map(|word| word & !CHUNK_FOLLOWS).collect(),
            follow: words()
                .filter_map(|w| Some(w ^ CHUNK_FOLLOWS).filter(|c| c < &CHUNK_FOLLOWS))
                .collect(),
        })
    }

    fn applied(&self) -> Result<Vec<AppliedSession>, FrameError> {
        let body: rpc::AppliedBody = self.message()?;
        let session = |s: rpc::AppliedSessionBody| {
            let positions = s.epochs.iter().zip(&s.sequences);
            let position = |(&e, &q)| Position { epoch: Epoch(e), sequence: Sequence(q) };
            AppliedSession {
                session: SessionId(s.session),
                token: Token(s.token),
                lowest_open: s.lowest_open,
                applied: s.numbers.iter().copied().zip(positions.map(position)).collect(),
            }
        };
        Ok(body.sessions.into_iter().map(session).collect())
    }

    fn leases(self) -> Result<Frame, FrameError> {
        let (items, []) = self.body.as_chunks::<LEASE_BYTES>() else {
            return Err(self.malformed());
        };
        items.iter().map(|item| self.lease(item)).collect::<Result<_, _>>().map(Frame::Leases)
    }

    fn lease(&self, item: &[u8; LEASE_BYTES]) -> Result<Wire, FrameError> {
        let (words, []) = item.as_chunks::<8>() else { unreachable!("six words") };
        let word = |i: usize| u64::from_le_bytes(words[i]);
        let number = word(5);
        let message = match (word(1) >> 32) as u8 {
            kind::LEASE_ASK => FromPrimary::LeaseAsk { number }.into(),
            kind::LEASE_GRANT => ToPrimary::LeaseGrant { number }.into(),
            kind::LEASE_RETURN => FromPrimary::LeaseReturn { number }.into(),
            _ => return Err(self.malformed()),
        };
        Ok(Wire {
            segment: SegmentId { volume: VolumeId(word(0)), index: word(1) as u32 },
            from: ReplicaId(word(2)),
            to: ReplicaId(word(3)),
            epoch: Epoch(word(4)),
            message,
        })
    }
}
