//! What a session knows of the segment map, and how it learns more.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use tidewater_proto::{
    ids::{SegmentId, ServerId, SessionId, VolumeId},
    meta_client::{MetaCode, MetaError},
    record::{Route, SegmentRecord, ServerAddress},
    rpc,
};
use tokio::{sync::oneshot, task::spawn_local, time::sleep};

use super::{
    absent::{Absent, BootTime},
    links::ShardKey,
    outside::Control,
};
use crate::retry::Event;

/// Pause before a watch that ended is begun again.
const WATCH_PAUSE: Duration = Duration::from_millis(500);
/// Lookups in flight at once.
const LOOKUPS_MAX: usize = 8;

/// (segment, fresh).
type LookupKey = (u32, bool);

/// The segment map of one volume, and the volume's size. A watch keeps both fresh; nothing relies on it,
/// for a server's refusal corrects who is behind.
pub(crate) struct Map {
    volume: VolumeId,
    session: SessionId,
    control: Rc<dyn Control>,
    /// Counts time asleep.
    boot_time: Box<dyn Fn() -> BootTime>,
    /// Shared with the volume's handles.
    size_bytes: Arc<AtomicU64>,
    absent: RefCell<Absent>,
    routes: RefCell<BTreeMap<u32, Rc<Route>>>,
    servers: RefCell<BTreeMap<ServerId, ServerAddress>>,
    /// Requests that wait for a lookup that has not begun: each must begin after they asked, or its
    /// answer could be older than what they must see.
    waiting: RefCell<BTreeMap<LookupKey, Vec<oneshot::Sender<Event>>>>,
    looking: Cell<bool>,
    /// Segments being placed; one call serves all who wait.
    placing: RefCell<BTreeMap<u32, Vec<oneshot::Sender<Event>>>>,
}

impl Map {
    pub(crate) fn new(
        volume: VolumeId,
        session: SessionId,
        control: Rc<dyn Control>,
        boot_time: Box<dyn Fn() -> BootTime>,
        size_bytes: u64,
    ) -> Self {
        Self {
            volume,
            session,
            control,
            boot_time,
            size_bytes: Arc::new(AtomicU64::new(size_bytes)),
            absent: RefCell::default(),
            routes: RefCell::default(),
            servers: RefCell::default(),
            waiting: RefCell::default(),
            looking: Cell::new(false),
            placing: RefCell::default(),
        }
    }

    /// The volume's size, as far as known.
    pub(crate) fn size_bytes(&self) -> &Arc<AtomicU64> {
        &self.size_bytes
    }

    /// What is known of a segment.
    pub(crate) fn route(&self, segment: u32) -> Option<Rc<Route>> {
        self.routes.borrow().get(&segment).cloned()
    }

    /// Keeps a route if it is newer.
    pub(crate) fn learn(&self, route: &Rc<Route>) {
        if route.segment.volume != self.volume {
            return;
        }
        let mut routes = self.routes.borrow_mut();
        let known = routes.entry(route.segment.index).or_insert_with(|| Rc::clone(route));
        if route.epoch > known.epoch {
            *known = Rc::clone(route);
        }
    }

    /// Keeps what a meta node said about segments and servers; malformed records are skipped.
    pub(crate) fn take(&self, segments: &[rpc::Segment], servers: &[rpc::ServerAddress]) {
        for segment in segments {
            match SegmentRecord::try_from(segment) {
                Ok(record) => self.learn(&Rc::new(Route::from(&record))),
                Err(error) => tracing::warn!(%error, "segment record skipped"),
            }
        }
        for server in servers {
            match ServerAddress::try_from(server) {
                Ok(address) => drop(self.servers.borrow_mut().insert(address.server, address)),
                Err(error) => tracing::warn!(%error, "server address skipped"),
            }
        }
    }

    /// The shard of a server that owns a segment, and where it listens; none if not known.
    pub(crate) fn shard(
        &self,
        server: ServerId,
        segment: SegmentId,
    ) -> Option<(ShardKey, SocketAddr)> {
        let servers = self.servers.borrow();
        let shards = &servers.get(&server)?.shards;
        let shard = segment.shard(shards.len());
        Some(((server, shard), shards[shard]))
    }

    /// Follows the volume's records and its size until it is dropped.
    pub(crate) async fn follow(self: Rc<Self>) {
        let mut revision = 0;
        loop {
            if let Err(error) = self.follow_once(&mut revision).await {
                tracing::debug!(volume = %self.volume, %error, "watch ended");
            }
            sleep(WATCH_PAUSE).await;
        }
    }

    async fn follow_once(&self, revision: &mut u64) -> Result<(), MetaError> {
        let filter = Some(rpc::watch_request::Filter::Volume(self.volume.0));
        let request = rpc::WatchRequest { from_revision: *revision, filter };
        let mut told = self.control.watch(request).await?;
        while let Some(news) = told.try_next().await? {
            self.take(&news.segments, &news.servers);
            // A node that lags may tell an older size; a volume only grows.
            self.size_bytes.fetch_max(news.size_bytes, Ordering::Relaxed);
            // One part of a larger answer has no revision.
            *revision = news.revision.max(*revision);
        }
        Ok(())
    }

    /// Looks a segment up, by a call that begins after this one, unless a lease tells that it is absent.
    pub(crate) async fn refresh(self: &Rc<Self>, segment: u32, fresh: bool) -> Event {
        let absent = || self.absent.borrow().contains(segment, (self.boot_time)());
        if fresh && self.route(segment).is_none() && absent() {
            return Event::Absent;
        }
        let (sender, receiver) = oneshot::channel();
        self.waiting.borrow_mut().entry((segment, fresh)).or_default().push(sender);
        if !self.looking.replace(true) {
            spawn_local(Rc::clone(self).look());
        }
        receiver.await.unwrap_or(Event::MapUnavailable)
    }

    async fn look(self: Rc<Self>) {
        loop {
            let batch = std::mem::take(&mut *self.waiting.borrow_mut());
            if batch.is_empty() {
                self.looking.set(false);
                return;
            }
            let map = &self;
            stream::iter(batch)
                .for_each_concurrent(LOOKUPS_MAX, |((segment, fresh), waiters)| async move {
                    answer(waiters, &map.look_up(segment, fresh).await);
                })
                .await;
        }
    }

    async fn look_up(&self, segment: u32, fresh: bool) -> Event {
        if fresh { self.find(segment).await } else { self.list(segment).await }
    }

    /// From any node, perhaps out of date.
    async fn list(&self, segment: u32) -> Event {
        let request = rpc::ListSegmentsRequest {
            volume: self.volume.0,
            first: segment,
            limit: 1,
            linearizable: false,
        };
        match self.control.list_segments(request).await {
            Ok(reply) => {
                self.take(&reply.segments, &reply.servers);
                self.found(&reply.segments, segment)
            }
            // A node that lags behind may not know a new volume.
            Err(error) if error.code == MetaCode::NotFound => Event::MapUnavailable,
            Err(error) => map_failure(&error),
        }
    }

    /// From the leader, linearizably.
    async fn find(&self, segment: u32) -> Event {
        let asked = (self.boot_time)();
        let found = match self.control.find_segment(self.request(segment)).await {
            Ok(found) => found,
            Err(error) => return map_failure(&error),
        };
        if let Some(record) = found.segment {
            self.take(std::slice::from_ref(&record), &found.servers);
            return self.found(&[record], segment);
        }
        let (end, lease_ms) = (found.absent_before, found.absent_ms);
        self.absent.borrow_mut().learn(segment, end, asked, lease_ms);
        Event::Absent
    }

    fn request(&self, segment: u32) -> rpc::SegmentRequest {
        let (volume, session) = (self.volume.0, self.session.0);
        rpc::SegmentRequest { volume, index: segment, session }
    }

    fn found(&self, segments: &[rpc::Segment], segment: u32) -> Event {
        if segments.iter().any(|s| s.index == segment && s.volume == self.volume.0) {
            self.route(segment).map_or(Event::MapUnavailable, Event::Routed)
        } else {
            Event::Absent
        }
    }

    /// Has a segment placed; returns once its primary is active.
    pub(crate) async fn place(self: &Rc<Self>, segment: u32) -> Event {
        let (sender, receiver) = oneshot::channel();
        let first = {
            let mut placing = self.placing.borrow_mut();
            let waiters = placing.entry(segment).or_default();
            waiters.push(sender);
            waiters.len() == 1
        };
        if first {
            let map = Rc::clone(self);
            spawn_local(async move {
                let event = map.ensure(segment).await;
                let waiters = map.placing.borrow_mut().remove(&segment).unwrap_or_default();
                answer(waiters, &event);
            });
        }
        receiver.await.unwrap_or(Event::MapUnavailable)
    }

    async fn ensure(&self, segment: u32) -> Event {
        let placed = match self.control.ensure_segment(self.request(segment)).await {
            Ok(placed) => placed,
            Err(error) => return map_failure(&error),
        };
        let unknown: BTreeSet<u64> = placed
            .members
            .iter()
            .map(|m| m.server)
            .filter(|&s| !self.servers.borrow().contains_key(&ServerId(s)))
            .collect();
        self.take(std::slice::from_ref(&placed), &[]);
        if !unknown.is_empty() {
            return self.look_up(segment, false).await;
        }
        self.found(&[placed], segment)
    }
}

fn answer(waiters: Vec<oneshot::Sender<Event>>, event: &Event) {
    for waiter in waiters {
        if waiter.send(event.clone()).is_err() {
            tracing::trace!("who asked for a segment has gone");
        }
    }
}

fn map_failure(error: &MetaError) -> Event {
    match error.code {
        MetaCode::NotFound => Event::NoVolume,
        MetaCode::NoRoom => Event::Unplaceable,
        MetaCode::Exists
        | MetaCode::Conflict
        | MetaCode::Invalid
        | MetaCode::Unreachable
        | MetaCode::Unknown
        | MetaCode::Unsupported
        | MetaCode::Internal => Event::MapUnavailable,
    }
}
