//! A chunkserver with one shard. All servers hold the same bytes, as if replication were instant.

use bytes::Bytes;
use tidewater_proto::{
    entry::Payload,
    frame::Frame,
    geometry::{CHUNK_BYTES, Extent},
    ids::{OpId, Position, ServerId},
    link,
    peer::{Action, Refusal, Reply, Request},
    rpc,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::spawn_local,
};

use super::{Fake, Mischief, Segment, World};

pub(super) async fn start(fake: Fake, id: ServerId) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let accepting = fake.clone();
    let task = spawn_local(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let task = spawn_local(serve(accepting.clone(), id, socket));
            accepting.world().tasks.entry(id).or_default().push(task.abort_handle());
        }
    });
    let mut world = fake.world();
    world.addresses.insert(id, address);
    world.tasks.entry(id).or_default().push(task.abort_handle());
}

async fn serve(fake: Fake, id: ServerId, socket: TcpStream) {
    let (mut reader, sender, writer) = link::split(socket).expect("a socket");
    let writing = spawn_local(writer.run());
    fake.world().tasks.entry(id).or_default().push(writing.abort_handle());
    while let Ok(Some(frame)) = reader.next().await {
        match frame {
            Frame::Hello(hello) => {
                assert_eq!(hello.cluster, "fake");
                let server = id.0;
                sender.send(&Frame::Welcome(rpc::Welcome { server, ..rpc::Welcome::default() }));
            }
            Frame::Request { id: number, request } => match answer(&fake, id, &request) {
                Answer::Reply(reply) => sender.send(&Frame::Reply { id: number, reply }),
                Answer::Nothing => {}
                Answer::HangUp => {
                    writing.abort();
                    return;
                }
            },
            other => panic!("a client sent {other:?}"),
        }
    }
    sender.close();
}

/// What a server does about a request.
pub(crate) enum Answer {
    Reply(Reply),
    Nothing,
    HangUp,
}

pub(crate) fn answer(fake: &Fake, server: ServerId, request: &Request<Payload>) -> Answer {
    let mut world = fake.world();
    assert!(request.lowest_open >= world.lowest_open, "the lowest open number went back");
    world.lowest_open = request.lowest_open;
    assert!(request.op.number >= request.lowest_open);
    let index = request.segment.index;
    let Some(route) = world.route(index) else {
        return refused(Refusal::NotPrimary);
    };
    if route.primary != server || route.epoch != request.epoch {
        return refused(Refusal::WrongEpoch(route));
    }
    if request.token < world.token {
        return refused(Refusal::Fenced(world.token));
    }
    let mischief = if world.mischief.is_empty() { None } else { Some(world.mischief.remove(0)) };
    match mischief {
        Some(Mischief::Ignore) => return Answer::Nothing,
        Some(Mischief::Busy) => return refused(Refusal::Busy),
        Some(Mischief::LoseWrite) => return refused(Refusal::Lost),
        Some(Mischief::LoseReply | Mischief::Damage) | None => {}
    }
    let reply = apply(&mut world, index, request);
    match (mischief, reply) {
        (Some(Mischief::LoseReply), _) => Answer::HangUp,
        (Some(Mischief::Damage), Reply::Data(payload)) => {
            let mut data = payload.data.to_vec();
            data[0] ^= 1;
            Answer::Reply(Reply::Data(Payload { data: data.into(), ..payload }))
        }
        (_, reply) => Answer::Reply(reply),
    }
}

fn refused(refusal: Refusal) -> Answer {
    Answer::Reply(Reply::Refused(refusal))
}

fn apply(world: &mut World, index: u32, request: &Request<Payload>) -> Reply {
    let changes = matches!(
        request.action,
        Action::Write { .. } | Action::Zero { .. } | Action::Compare { .. }
    );
    if changes {
        world.arrived.push(request.op.number);
    }
    let segment = world.segments.get_mut(&index).expect("routed");
    if let Some(at) = segment.applied.get(&request.op) {
        return Reply::Done(*at);
    }
    match &request.action {
        Action::Read { extent } => Reply::Data(Payload::new(*extent, bytes(segment, *extent))),
        Action::Write { extent, data } => write(segment, request.op, *extent, data),
        Action::Zero { extent, .. } => {
            let zeroes = Payload::new(*extent, vec![0; extent.len() as usize].into());
            write(segment, request.op, *extent, &zeroes)
        }
        Action::Compare { extent, expect, data } => {
            if bytes(segment, *extent) == expect.data {
                write(segment, request.op, *extent, data)
            } else {
                Reply::Differs
            }
        }
        Action::Flush { .. } => Reply::Done(World::position(segment)),
        Action::Extents { extent } => Reply::Extents(runs(segment, *extent)),
    }
}

fn range(extent: Extent) -> std::ops::Range<usize> {
    extent.offset() as usize..extent.end() as usize
}

fn bytes(segment: &Segment, extent: Extent) -> Bytes {
    Bytes::copy_from_slice(&segment.data[range(extent)])
}

fn write(segment: &mut Segment, op: OpId, extent: Extent, data: &Payload) -> Reply {
    data.verify(extent).expect("payloads carry their checksums");
    segment.data[range(extent)].copy_from_slice(&data.data);
    segment.sequence += 1;
    let at: Position = World::position(segment);
    segment.applied.insert(op, at);
    Reply::Done(at)
}

fn runs(segment: &Segment, extent: Extent) -> Vec<(u32, bool)> {
    extent
        .chunks()
        .map(|chunk| {
            let start = (u64::from(chunk) * CHUNK_BYTES).max(extent.offset());
            let end = (u64::from(chunk + 1) * CHUNK_BYTES).min(extent.end());
            let held = segment.data[start as usize..end as usize].iter().any(|&b| b != 0);
            ((end - start) as u32, held)
        })
        .collect()
}
