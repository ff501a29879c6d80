//! A cluster in one process: a metadata node and two servers that answer as real ones do, and
//! misbehave as a test tells them.

mod meta;
pub(crate) mod server;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tidewater_client::{Cluster, Open, Volume};
use tidewater_proto::{
    ids::{Epoch, OpId, Position, SegmentId, Sequence, ServerId, SessionId, Token, VolumeId},
    record::Route,
    rpc,
};
use tokio::{sync::watch, task::AbortHandle};

pub(crate) const SEGMENT_BYTES: u64 = 4 << 20;
pub(crate) const SIZE: u64 = 16 << 20;
pub(crate) const SESSION: SessionId = SessionId(77);
pub(crate) const VOLUME: VolumeId = VolumeId(3);

/// How the next request that matches is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mischief {
    /// Applied, but the connection fails before the reply.
    LoseReply,
    /// Never answered and not applied.
    Ignore,
    /// Refused as busy.
    Busy,
    /// Read bytes are damaged behind the checksum.
    Damage,
    /// A flush finds the write lost.
    LoseWrite,
}

pub(crate) struct Segment {
    pub(crate) epoch: Epoch,
    pub(crate) primary: ServerId,
    pub(crate) data: Vec<u8>,
    pub(crate) sequence: u64,
    pub(crate) applied: BTreeMap<OpId, Position>,
}

pub(crate) struct World {
    pub(crate) segments: BTreeMap<u32, Segment>,
    pub(crate) addresses: BTreeMap<ServerId, SocketAddr>,
    pub(crate) token: Token,
    pub(crate) attached: bool,
    pub(crate) durability: rpc::Durability,
    pub(crate) size: u64,
    /// How long a reader may believe that a segment is not placed, milliseconds.
    pub(crate) absent_ms: u32,
    /// Treatment of the next requests, in order.
    pub(crate) mischief: Vec<Mischief>,
    pub(crate) meta_down: bool,
    pub(crate) meta_calls: u64,
    /// Numbers of operations that changed data, as often as they arrived.
    pub(crate) arrived: Vec<u64>,
    pub(crate) lowest_open: u64,
    pub(crate) tasks: BTreeMap<ServerId, Vec<AbortHandle>>,
    pub(crate) dead: BTreeSet<ServerId>,
}

#[derive(Clone)]
pub(crate) struct Fake {
    world: Arc<Mutex<World>>,
    /// Moves when watches have something to tell.
    news: watch::Sender<u64>,
    pub(crate) meta: String,
}

pub(crate) const A: ServerId = ServerId(1);
pub(crate) const B: ServerId = ServerId(2);

impl Fake {
    /// Without sockets: nobody listens anywhere.
    pub(crate) fn bare() -> Self {
        let world = Arc::new(Mutex::new(World {
            segments: BTreeMap::new(),
            addresses: BTreeMap::new(),
            token: Token(5),
            attached: true,
            durability: rpc::Durability::Sync,
            size: SIZE,
            absent_ms: 0,
            mischief: Vec::new(),
            meta_down: false,
            meta_calls: 0,
            arrived: Vec::new(),
            lowest_open: 0,
            tasks: BTreeMap::new(),
            dead: BTreeSet::new(),
        }));
        Self { world, news: watch::Sender::new(1), meta: String::new() }
    }

    /// On ports of this machine.
    pub(crate) async fn start() -> Self {
        let mut fake = Self::bare();
        fake.meta = meta::start(fake.clone()).await;
        for id in [A, B] {
            server::start(fake.clone(), id).await;
        }
        fake
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has watches tell what the world is like now.
    pub(crate) fn announce(&self) {
        self.news.send_modify(|revision| *revision += 1);
    }

    pub(crate) async fn open(&self, options: Open) -> Volume {
        let cluster = Cluster::connect([self.meta.clone()]).await.expect("a meta node");
        cluster.volume("vol").open(options).await.expect("opens")
    }

    /// The server dies: its connections fail and nobody listens.
    pub(crate) fn kill(&self, server: ServerId) {
        let mut world = self.world();
        world.dead.insert(server);
        world.tasks.remove(&server).into_iter().flatten().for_each(|t| t.abort());
    }
}

impl World {
    pub(crate) fn place(&mut self, index: u32) {
        self.segments.entry(index).or_insert_with(|| Segment {
            epoch: Epoch(1),
            primary: A,
            data: vec![0; SEGMENT_BYTES as usize],
            sequence: 0,
            applied: BTreeMap::new(),
        });
    }

    pub(crate) fn route(&self, index: u32) -> Option<Route> {
        let segment = self.segments.get(&index)?;
        Some(Route {
            segment: SegmentId { volume: VOLUME, index },
            epoch: segment.epoch,
            primary: segment.primary,
            servers: vec![A, B],
        })
    }

    /// Another server leads every segment, in the next epoch.
    pub(crate) fn move_primaries(&mut self, to: ServerId) {
        for segment in self.segments.values_mut() {
            segment.epoch = segment.epoch.next();
            segment.primary = to;
        }
    }

    pub(crate) fn position(segment: &Segment) -> Position {
        Position { epoch: segment.epoch, sequence: Sequence(segment.sequence) }
    }
}
