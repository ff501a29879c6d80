//! Links to the shards of other servers. Each direction has a connection of its own: who sends connects.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tidewater_proto::{
    entry::Payload,
    frame::Frame,
    geometry::{CHUNK_BYTES, Extent},
    header,
    ids::{ReplicaId, ServerId},
    link::{self, FrameSender, LinkError},
    peer::{FromPrimary, PeerMessage, Room, ToPrimary, Wire},
    record::{SegmentRecord, ServerAddress},
    rpc,
};
use tokio::net::TcpStream;

use super::Shard;
use crate::replica::{Event, Time};

/// Time for a connection to be made and welcomed.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// Pause after a connection failed.
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);
/// Bytes queued to one shard before the link is given up: its other end does not read.
const QUEUED_BYTES_MAX: usize = 512 << 20;

/// A shard of another server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PeerShard {
    server: ServerId,
    shard: usize,
}

/// Outgoing links, and what is known of incoming ones.
#[derive(Default)]
pub(super) struct Peers {
    addresses: BTreeMap<ServerId, Vec<SocketAddr>>,
    links: BTreeMap<PeerShard, Link>,
    /// Number of the newest connection of each peer shard; frames of older ones are not taken.
    incoming: BTreeMap<PeerShard, u64>,
    connections: u64,
}

#[derive(Default)]
struct Link {
    sender: Option<FrameSender>,
    /// Lease messages of this turn, sent as one frame.
    leases: Vec<Wire>,
}

/// When each server was last heard on the data plane; written by shards, read by the heartbeat. A lock,
/// because threads share it; held for one map operation.
#[derive(Debug, Default)]
pub(crate) struct Hearing(Mutex<BTreeMap<ServerId, Time>>);

impl Hearing {
    pub(crate) fn heard(&self, server: ServerId, now: Time) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(server, now);
    }

    /// Servers heard within `window`.
    pub(crate) fn since(&self, now: Time, window: Duration) -> Vec<ServerId> {
        let heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.iter().filter(|(_, at)| now.since(**at) <= window).map(|(&s, _)| s).collect()
    }
}

impl Shard {
    /// Sends to another copy. What cannot be sent now is dropped: the protocol says it again.
    pub(super) fn send_peer(&mut self, envelope: Wire) {
        let Some(peer) = self.shard_of(envelope.to, &envelope) else { return };
        let Some(link) = self.peers.links.get_mut(&peer) else { return };
        match envelope.message {
            PeerMessage::Primary(
                FromPrimary::LeaseAsk { .. } | FromPrimary::LeaseReturn { .. },
            )
            | PeerMessage::Answer(ToPrimary::LeaseGrant { .. }) => {
                link.leases.push(envelope);
                self.turn.notify_one();
            }
            _ => {
                if let Some(sender) = &link.sender {
                    sender.send(&Frame::Peer(envelope));
                    if sender.queued_bytes() > QUEUED_BYTES_MAX {
                        tracing::warn!(server = %peer.server, "peer does not read: link given up");
                        sender.close();
                    }
                }
            }
        }
    }

    pub(super) fn send_leases(&mut self) {
        for link in self.peers.links.values_mut() {
            if link.leases.is_empty() {
                continue;
            }
            let leases = std::mem::take(&mut link.leases);
            if let Some(sender) = &link.sender {
                sender.send(&Frame::Leases(leases));
            }
        }
    }

    /// Which shard of which server holds a copy.
    fn shard_of(&self, replica: ReplicaId, envelope: &Wire) -> Option<PeerShard> {
        let record = self.records.get(&envelope.segment)?;
        let server = record.copies().find(|m| m.replica == replica)?.server;
        let shards = self.peers.addresses.get(&server)?.len();
        Some(PeerShard { server, shard: envelope.segment.shard(shards) })
    }

    pub(super) fn learn_servers(&mut self, servers: Vec<ServerAddress>) {
        for server in servers {
            self.peers.addresses.insert(server.server, server.shards);
        }
        let records: Vec<_> = self.records.values().cloned().collect();
        for record in records {
            self.connect_to(&record);
        }
    }

    /// Makes sure that there is a link to every other copy's shard.
    pub(super) fn connect_to(&mut self, record: &SegmentRecord) {
        let others: BTreeSet<ServerId> = record
            .members
            .iter()
            .chain(&record.learners)
            .map(|m| m.server)
            .filter(|s| *s != self.server)
            .collect();
        for server in others {
            let Some(addresses) = self.peers.addresses.get(&server) else { continue };
            let peer = PeerShard { server, shard: record.segment.shard(addresses.len()) };
            if self.peers.links.contains_key(&peer) {
                continue;
            }
            let Some(me) = self.me.upgrade() else { continue };
            self.peers.links.insert(peer, Link::default());
            tokio::task::spawn_local(keep_link(me, peer));
        }
    }

    /// Copies of this shard's segments that the peer shard holds.
    fn copies_at(&self, peer: PeerShard) -> Vec<(ReplicaId, ReplicaId)> {
        let shards = self.peers.addresses.get(&peer.server).map_or(1, Vec::len);
        self.records
            .values()
            .filter(|r| r.segment.shard(shards) == peer.shard)
            .filter_map(|r| {
                Some((*self.by_segment.get(&r.segment)?, r.copy_on(peer.server)?.replica))
            })
            .collect()
    }

    fn link_up(&mut self, peer: PeerShard, sender: FrameSender) {
        if let Some(link) = self.peers.links.get_mut(&peer) {
            link.sender = Some(sender);
            link.leases.clear();
        }
        for (ours, theirs) in self.copies_at(peer) {
            self.step(ours, Event::Connected(theirs));
        }
    }

    fn link_down(&mut self, peer: PeerShard, refused: bool) {
        if let Some(link) = self.peers.links.get_mut(&peer) {
            link.sender = None;
            link.leases.clear();
        }
        if refused {
            for (ours, theirs) in self.copies_at(peer) {
                self.step(ours, Event::Refused(theirs));
            }
        }
    }

    /// A peer shard has connected: frames of its earlier connections count no more.
    pub(super) fn peer_connected(&mut self, hello: &rpc::HelloServer) -> (PeerShard, u64) {
        let peer = PeerShard { server: ServerId(hello.server), shard: hello.shard as usize };
        self.peers.connections += 1;
        self.peers.incoming.insert(peer, self.peers.connections);
        (peer, self.peers.connections)
    }

    /// A frame from a peer shard; false if its connection is to be closed.
    pub(super) fn peer_frame(&mut self, peer: PeerShard, connection: u64, frame: Frame) -> bool {
        if self.peers.incoming.get(&peer) != Some(&connection) {
            return false;
        }
        self.hearing.heard(peer.server, self.now());
        match frame {
            Frame::Peer(wire) => self.peer_message(wire),
            Frame::Leases(wires) => {
                for wire in wires {
                    self.peer_message(wire);
                }
                true
            }
            Frame::Hello(_) | Frame::Welcome(_) | Frame::Request { .. } | Frame::Reply { .. } => {
                false
            }
        }
    }

    fn peer_message(&mut self, wire: Wire) -> bool {
        if !is_sound(&wire.message) {
            tracing::warn!(segment = %wire.segment, from = %wire.from, "payload damaged on the way");
            return false;
        }
        let to = wire.to;
        if self.owned.contains_key(&to) {
            self.tell_room();
            if self.has_space_for(&wire) {
                self.step(to, Event::Message(wire));
            }
        } else if self.has_lost(wire.segment, to) {
            let lost = Wire { from: to, to: wire.from, message: ToPrimary::Lost.into(), ..wire };
            self.send_peer(lost);
        }
        true
    }
}

impl Shard {
    /// Whether an entry can be taken as far as space goes. One that cannot counts as lost on the way: its
    /// primary sends it again. What a primary has under way to a member always fits; a learner may be
    /// far behind, so it must not take what is kept for members.
    fn has_space_for(&self, wire: &Wire) -> bool {
        let PeerMessage::Primary(FromPrimary::Append { entry, .. }) = &wire.message else {
            return true;
        };
        if self.space.room() != Room::NONE {
            return true;
        }
        let record = self.records.get(&wire.segment);
        let learns = record.is_some_and(|r| r.learners.iter().any(|l| l.replica == wire.to));
        let mut new = self.unheld(wire.to, &entry.change);
        !(learns || self.space.is_full()) || new.all(|c| self.space.is_claimed(wire.to, c))
    }
}

/// Whether the bytes a message carries match their checksums (INV-SUM).
fn is_sound(message: &PeerMessage<Payload>) -> bool {
    use tidewater_proto::entry::Change;
    match message {
        PeerMessage::Primary(FromPrimary::Append { entry, .. })
        | PeerMessage::Answer(ToPrimary::Tail { entry, .. }) => match &entry.change {
            Change::Write { extent, data } => data.verify(*extent).is_ok(),
            Change::Activate | Change::Zero { .. } => true,
        },
        PeerMessage::Primary(FromPrimary::CopyChunk { image: Some(image), .. }) => {
            let chunk = Extent::new(0, CHUNK_BYTES, CHUNK_BYTES).expect("a chunk is an extent");
            image.verify(chunk).is_ok()
        }
        _ => true,
    }
}

/// Keeps a link to a peer shard up for as long as the shard lives.
async fn keep_link(shard: Rc<RefCell<Shard>>, peer: PeerShard) {
    let weak = Rc::downgrade(&shard);
    drop(shard);
    loop {
        let Some(shard) = weak.upgrade() else { return };
        let address = shard.borrow().peers.addresses[&peer.server].get(peer.shard).copied();
        drop(shard);
        let ended = match address {
            Some(address) => run_link(&weak, peer, address).await,
            None => Ok(()),
        };
        let Some(shard) = weak.upgrade() else { return };
        let refused =
            matches!(&ended, Err(LinkError::Io(e)) if e.kind() == io::ErrorKind::ConnectionRefused);
        shard.borrow_mut().link_down(peer, refused);
        drop(shard);
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
}

async fn run_link(
    weak: &std::rc::Weak<RefCell<Shard>>,
    peer: PeerShard,
    address: SocketAddr,
) -> Result<(), LinkError> {
    let timed_out = |_| LinkError::Io(io::ErrorKind::TimedOut.into());
    let connect = TcpStream::connect(address);
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, connect).await.map_err(timed_out)??;
    let (mut reader, sender, writer) = link::split(stream)?;
    let Some(shard) = weak.upgrade() else { return Ok(()) };
    sender.send(&Frame::Hello(shard.borrow().hello()));
    drop(shard);
    let writing = tokio::task::spawn_local(writer.run());
    let welcome =
        tokio::time::timeout(CONNECT_TIMEOUT, reader.next()).await.map_err(timed_out)??;
    match welcome {
        Some(Frame::Welcome(w)) if w.refused.is_empty() && w.server == peer.server.0 => {}
        Some(_) | None => {
            sender.close();
            return Ok(());
        }
    }
    if let Some(shard) = weak.upgrade() {
        shard.borrow_mut().link_up(peer, sender.clone());
    }
    // Nothing comes this way but the end.
    let end = reader.next().await;
    sender.close();
    writing.abort();
    end.map(|_| ())
}

impl Shard {
    fn hello(&self) -> rpc::Hello {
        rpc::Hello {
            version: header::VERSION.into(),
            features: 0,
            cluster: self.cluster.clone(),
            who: Some(rpc::hello::Who::Server(rpc::HelloServer {
                server: self.server.0,
                run: self.run.0,
                shard: self.index as u32,
            })),
        }
    }
}
