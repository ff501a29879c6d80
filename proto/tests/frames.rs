//! Frames of the data plane: what is encoded decodes to the same, damage is found, and the bytes are pinned.

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use tidewater_proto::{
    entry::{Change, Entry, Payload},
    frame::{self, Frame, FrameError},
    geometry::Extent,
    header::{HEADER_BYTES, Header},
    ids::{
        Epoch, OpId, Position, ReplicaId, SegmentId, Sequence, ServerId, SessionId, Token, VolumeId,
    },
    peer::{
        Action, AppliedSession, Envelope, FromPrimary, PeerMessage, Refusal, Reply, Request, Room,
        ToPrimary,
    },
    record::Route,
};

fn encode(frame: &Frame) -> Vec<u8> {
    let mut head = BytesMut::new();
    let payload = frame::encode(frame, &mut head);
    [&head[..], &payload.unwrap_or_default()[..]].concat()
}

fn decode(bytes: &[u8]) -> Result<Frame, FrameError> {
    let header = Header::parse(bytes[..HEADER_BYTES].try_into().expect("a header"))?;
    let body_end = HEADER_BYTES + header.body_len.get() as usize;
    let body = Bytes::copy_from_slice(&bytes[HEADER_BYTES..body_end]);
    frame::decode(&header, body, Bytes::copy_from_slice(&bytes[body_end..]))
}

fn segment() -> SegmentId {
    SegmentId { volume: VolumeId(7), index: 3 }
}

fn position(n: u64) -> Position {
    Position { epoch: Epoch(n), sequence: Sequence(n + 1) }
}

fn extent(offset: u64, sectors: u64) -> Extent {
    Extent::new(offset * 512, sectors * 512, 1 << 30).expect("an extent")
}

fn payload(extent: Extent) -> Payload {
    Payload::new(extent, vec![0xa5; extent.len() as usize].into())
}

fn entry(change: Change<Payload>) -> Entry<Payload> {
    let op = Some(OpId { session: SessionId(4), number: 5 });
    Entry { position: position(8), token: Token(2), op, lowest_open: 3, change }
}

fn peer(message: impl Into<PeerMessage<Payload>>) -> Frame {
    let (from, to) = (ReplicaId(1), ReplicaId(2));
    let message = message.into();
    Frame::Peer(Envelope { segment: segment(), from, to, epoch: Epoch(9), message })
}

fn request(action: Action<Payload>) -> Frame {
    let op = OpId { session: SessionId(4), number: 5 };
    let (epoch, token) = (Epoch(6), Token(2));
    let request = Request { segment: segment(), epoch, token, op, lowest_open: 5, action };
    Frame::Request { id: 11, request }
}

fn reply(reply: Reply) -> Frame {
    Frame::Reply { id: 11, reply }
}

/// One frame of each kind that carries something of its own.
fn one_of_each(x: Extent) -> Vec<Frame> {
    let block = Extent::new(4096, 4096, 1 << 30).expect("a block");
    let chunk = Extent::new(0, 1 << 20, 1 << 30).expect("a chunk");
    let write = Change::Write { extent: x, data: payload(x) };
    let applied = vec![AppliedSession {
        session: SessionId(1),
        token: Token(2),
        lowest_open: 3,
        applied: vec![(4, position(5)), (6, position(7))],
    }];
    let route = Route {
        segment: segment(),
        epoch: Epoch(5),
        primary: ServerId(1),
        servers: vec![ServerId(1), ServerId(2)],
    };
    let lease = |number| FromPrimary::LeaseAsk { number };
    let mut frames = vec![
        request(Action::Read { extent: x }),
        request(Action::Write { extent: x, data: payload(x) }),
        request(Action::Zero { extent: x, discard: true }),
        request(Action::Compare { extent: block, expect: payload(block), data: payload(block) }),
        request(Action::Flush { acked: position(3) }),
        request(Action::Extents { extent: x }),
        reply(Reply::Done(position(1))),
        reply(Reply::Data(payload(x))),
        reply(Reply::Differs),
        reply(Reply::Extents(vec![(4096, true), (8192, false)])),
        reply(Reply::Refused(Refusal::WrongEpoch(route))),
        reply(Reply::Refused(Refusal::Fenced(Token(8)))),
        peer(FromPrimary::Append {
            previous: position(7),
            entry: entry(write),
            commit: Sequence(6),
        }),
        peer(ToPrimary::Appended {
            received: Sequence(4),
            durable: Sequence(3),
            room: Room::ANY,
            filling: None,
        }),
        peer(ToPrimary::Mismatch { last: position(1), commit: Sequence(1) }),
        peer(FromPrimary::Commit { last: position(1), commit: Sequence(1) }),
        peer(FromPrimary::Query),
        peer(ToPrimary::Answer { last: position(2), commit: Sequence(1) }),
        peer(FromPrimary::Fetch { from: Sequence(5) }),
        peer(ToPrimary::Tail { entry: entry(Change::Activate), last: position(9) }),
        peer(ToPrimary::Stale),
        peer(ToPrimary::Lost),
        peer(lease(1)),
        peer(ToPrimary::LeaseGrant { number: 2 }),
        peer(FromPrimary::LeaseReturn { number: 3 }),
        peer(ToPrimary::CopyAsk { have: Sequence(2) }),
        peer(FromPrimary::CopyBegin {
            at: position(4),
            have: Sequence(2),
            live: vec![1, 5],
            follow: Vec::new(),
        }),
        peer(FromPrimary::CopyChunk {
            chunk: 5,
            changed: Sequence(3),
            at: Sequence(4),
            image: Some(payload(chunk)),
        }),
        peer(FromPrimary::CopyChunk {
            chunk: 6,
            changed: Sequence(3),
            at: Sequence(4),
            image: None,
        }),
        peer(ToPrimary::CopyTaken { chunk: 5 }),
        peer(FromPrimary::CopyEnd { at: position(4), applied }),
        peer(ToPrimary::CopyEnded { at: position(4) }),
    ];
    let leases = [1, 2].map(|number| Envelope {
        segment: segment(),
        from: ReplicaId(1),
        to: ReplicaId(2),
        epoch: Epoch(3),
        message: lease(number).into(),
    });
    frames.push(Frame::Leases(leases.to_vec()));
    let refusals = [
        Refusal::NotPrimary,
        Refusal::Old,
        Refusal::Busy,
        Refusal::BadSum,
        Refusal::Invalid,
        Refusal::NoSpace,
        Refusal::Corrupt,
        Refusal::Lost,
        Refusal::Failed,
    ];
    frames.extend(refusals.map(|r| reply(Reply::Refused(r))));
    let (received, durable) = (Sequence(4), Sequence(3));
    let rooms = [Room::NONE, Room(7)];
    let appended = |room, filling| peer(ToPrimary::Appended { received, durable, room, filling });
    frames.extend(rooms.map(|room| appended(room, None)));
    let (at, have) = (position(4), Sequence(2));
    let (live, follow) = (vec![1, 5, 6], vec![1, 6]);
    frames.push(peer(FromPrimary::CopyBegin { at, have, live, follow }));
    frames.push(appended(Room::ANY, Some(Sequence(2))));
    frames
}

proptest! {
    #[test]
    fn what_is_encoded_decodes_to_the_same(offset in 0_u64..4_000, sectors in 1_u64..64) {
        for frame in one_of_each(extent(offset, sectors)) {
            prop_assert_eq!(decode(&encode(&frame)), Ok(frame));
        }
    }

    /// A flipped bit in header or body is an error, never another frame; one in the payload is found by
    /// its checksum.
    #[test]
    fn a_flipped_bit_is_found(at in 0_usize..(HEADER_BYTES + 16 + 8192), bit in 0_u8..8) {
        let x = extent(0, 16);
        let frame = request(Action::Write { extent: x, data: payload(x) });
        let mut bytes = encode(&frame);
        bytes[at] ^= 1 << bit;
        match decode(&bytes) {
            Err(_) => prop_assert!(at < HEADER_BYTES + 16),
            Ok(Frame::Request { request: Request { action: Action::Write { data, .. }, .. }, .. }) => {
                prop_assert!(at >= HEADER_BYTES + 16);
                prop_assert!(data.verify(x).is_err());
            }
            Ok(other) => prop_assert!(false, "another frame: {other:?}"),
        }
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 160..400), kind: u8) {
        let header = Header { kind, body_len: 40.into(), ..Header::default() }.seal();
        let header = Header::parse(&header).expect("sealed");
        let body = Bytes::copy_from_slice(&bytes[..40]);
        let sum = tidewater_proto::checksum::sum(&body);
        let header = Header { body_sum: sum.into(), ..header };
        // Whatever the body says, the answer is a frame or an error.
        drop(frame::decode(&header, body, Bytes::copy_from_slice(&bytes[40..])));
    }
}

/// Golden sums of one frame of each kind: a change here is a change of the wire format and needs a new
/// version.
#[test]
fn the_bytes_of_every_frame_are_pinned() {
    let frames = one_of_each(extent(3, 20));
    let pinned = |frames: &[Frame]| {
        let all: Vec<u8> = frames.iter().flat_map(encode).collect();
        (frames.len(), all.len(), tidewater_proto::checksum::sum(&all))
    };
    assert_eq!(
        pinned(&frames[..BEFORE_ROOM.0]),
        BEFORE_ROOM,
        "an acknowledgement with room for any"
    );
    assert_eq!(pinned(&frames), GOLDEN);
}

const BEFORE_ROOM: (usize, usize, u64) = (42, 1_096_486, 5_515_222_704_461_715_928);
const GOLDEN: (usize, usize, u64) = (46, 1_097_138, 13_910_494_703_788_815_077);
