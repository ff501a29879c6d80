//! Links to the shards of other servers. Each direction has a connection of its own: who sends connects.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    rc::Rc,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tidewater_proto::{
    entry::Payload,
    frame::Frame,
    geometry::{CHUNK_BYTES, Extent},
    ids::{ReplicaId, ServerId},
    peer::{FromPrimary, PeerMessage, Room, ToPrimary, Wire},
    record::{SegmentRecord, ServerAddress},
};

use super::{Outlet, Shard};
use crate::replica::{Event, Time};

/// Bytes queued to one shard before the link is given up: its other end does not read.
const QUEUED_BYTES_MAX: usize = 512 << 20;

/// A shard of another server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerShard {
    /// Its server.
    pub server: ServerId,
    /// Its number there.
    pub shard: usize,
}

/// Outgoing links, and what is known of incoming ones.
#[derive(Default)]
pub(super) struct Peers {
    addresses: BTreeMap<ServerId, Vec<SocketAddr>>,
    links: BTreeMap<PeerShard, Link>,
    /// Peers that nobody connects to yet.
    wanted: Vec<PeerShard>,
    /// Number of the newest connection of each peer shard; frames of older ones are not taken.
    incoming: BTreeMap<PeerShard, u64>,
    connections: u64,
}

#[derive(Default)]
struct Link {
    sender: Option<Rc<dyn Outlet>>,
    /// Lease messages of this turn, sent as one frame.
    leases: Vec<Wire>,
}

/// When each server was last heard on the data plane; written by shards, read by the heartbeat. A lock,
/// because threads share it; held for one map operation.
#[derive(Debug, Default)]
pub struct Hearing(Mutex<BTreeMap<ServerId, Time>>);

impl Hearing {
    pub(crate) fn heard(&self, server: ServerId, now: Time) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(server, now);
    }

    /// Servers heard within `window`.
    pub fn since(&self, now: Time, window: Duration) -> Vec<ServerId> {
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
            self.peers.links.insert(peer, Link::default());
            self.peers.wanted.push(peer);
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

    /// Peers that a connection is wanted to since this was asked last. Whoever drives the shard connects
    /// to each, and again whenever the connection ends.
    pub fn wanted_links(&mut self) -> Vec<PeerShard> {
        std::mem::take(&mut self.peers.wanted)
    }

    /// Where a peer shard listens, as far as is known.
    pub fn address_of(&self, peer: PeerShard) -> Option<SocketAddr> {
        self.peers.addresses.get(&peer.server)?.get(peer.shard).copied()
    }

    /// A connection to a peer shard is made and welcomed.
    pub fn link_up(&mut self, peer: PeerShard, sender: Rc<dyn Outlet>) {
        if let Some(link) = self.peers.links.get_mut(&peer) {
            link.sender = Some(sender);
            link.leases.clear();
        }
        for (ours, theirs) in self.copies_at(peer) {
            self.step(ours, Event::Connected(theirs));
        }
    }

    /// A connection to a peer shard has ended, or was not made; `refused` if nobody listens there.
    pub fn link_down(&mut self, peer: PeerShard, refused: bool) {
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

    /// A peer shard has connected: frames of its earlier connections count no more. Returns the number of
    /// the connection.
    pub fn peer_connected(&mut self, peer: PeerShard) -> u64 {
        self.peers.connections += 1;
        self.peers.incoming.insert(peer, self.peers.connections);
        self.peers.connections
    }

    /// A frame from a peer shard; false if its connection is to be closed.
    pub fn peer_frame(&mut self, peer: PeerShard, connection: u64, frame: Frame) -> bool {
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
