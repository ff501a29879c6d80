//! The server: holds the data folder, registers with the metadata cluster, starts the shards, and
//! carries records to them and their reports back.

use std::{
    collections::BTreeSet,
    future::Future,
    io,
    net::{SocketAddr, TcpListener},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tidewater_proto::{
    convert::Malformed,
    ids::{ReplicaId, RunId, SegmentId, ServerId, VolumeId},
    meta_client::{MetaClient, MetaError, Patience},
    record::{CopyReport, SegmentRecord, ServerAddress, SetChange},
    rpc,
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::{BootClock, Clock as _},
    config::ChunkserverConfig,
    identity::{Folder, IdentityError, Membership},
    load::{Busy, LoadMeter},
    shard::{
        self, Commands, Full, Hearing, REPORTS_MAX, ShardCommand, ShardCounters, ShardParts,
        ShardReport, ShardStart,
    },
    store::{self, OpenError, Recovered, ShardStore, Store},
};

/// How often the server says that it is alive.
const HEARTBEAT: Duration = Duration::from_millis(200);
/// A peer heard within this time is reported as heard.
const HEARS: Duration = Duration::from_secs(1);
/// Time for one call of a heartbeat.
const HEARTBEAT_PATIENCE: Patience =
    Patience { per_try: Duration::from_millis(500), total: Duration::from_secs(1) };
/// Time for a proposal or a report.
const REPORT_PATIENCE: Patience =
    Patience { per_try: Duration::from_secs(1), total: Duration::from_secs(3) };
/// Copies told in one message: far below what one may hold, 4,096 and 4 MiB.
const COPIES_TOLD: usize = 1_024;
/// Pause before a registration or a watch is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// The server cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The data folder.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The store.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// An address cannot be bound.
    #[error("listen on {address}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The metadata cluster refused the registration.
    #[error("registration refused")]
    Register(#[source] MetaError),
    /// A thread cannot be started.
    #[error("start a shard")]
    Thread(#[source] io::Error),
    /// At least one shard and one device are needed.
    #[error("a chunkserver needs at least one shard address and one device")]
    Nothing,
    /// The journal or every device failed; the process ends so that its copies are replaced.
    #[error("storage failed")]
    Failed,
}

/// What the metrics endpoint reads while the server runs.
#[derive(Clone, Debug, Default)]
pub struct ServerMetrics {
    /// One a shard.
    pub shards: Vec<Arc<ShardCounters>>,
}

/// Runs a chunkserver until `shutdown` resolves. `on_ready` is called once it is registered and serves.
///
/// # Errors
///
/// [`ServerError`] if it cannot start, or its storage fails.
pub async fn run(
    config: ChunkserverConfig,
    on_ready: impl FnOnce(ServerMetrics),
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServerError> {
    if config.shard_listen.is_empty() || config.store.devices.is_empty() {
        return Err(ServerError::Nothing);
    }
    let folder = Folder::open(&config.store.dir, || uuid::Uuid::new_v4().to_string())?;
    let run = RunId(uuid::Uuid::new_v4().as_u64_pair().0);
    let cancel = CancellationToken::new();
    tokio::pin!(shutdown);
    let server = tokio::select! {
        server = Server::start(config, folder, run, cancel.clone()) => server?,
        () = &mut shutdown => return Ok(()),
    };
    on_ready(server.metrics.clone());
    let result = tokio::select! {
        result = server.serve() => result,
        () = &mut shutdown => Ok(()),
    };
    cancel.cancel();
    server.join();
    result
}

/// What a watch has told so far.
#[derive(Default)]
struct Known {
    revision: u64,
    named: BTreeSet<SegmentId>,
    /// Segments of a full answer that is still coming in.
    full: Option<BTreeSet<SegmentId>>,
}

struct Server {
    id: ServerId,
    meta: Arc<MetaClient>,
    registration: rpc::RegisterServerRequest,
    store: Arc<Store>,
    hearing: Arc<Hearing>,
    commands: Vec<Commands>,
    reports: tokio::sync::Mutex<mpsc::Receiver<ShardReport>>,
    threads: std::sync::Mutex<Vec<std::thread::JoinHandle<io::Result<()>>>>,
    metrics: ServerMetrics,
    /// Its lock lasts as long as the server.
    folder: Option<Folder>,
}

impl Server {
    async fn start(
        config: ChunkserverConfig,
        mut folder: Folder,
        run: RunId,
        shutdown: CancellationToken,
    ) -> Result<Self, ServerError> {
        let meta = MetaClient::new(&config.meta).map_err(ServerError::Register)?;
        let (listeners, shards) = bind(&config.shard_listen)?;
        let mut registration = rpc::RegisterServerRequest {
            cluster: String::new(),
            server: 0,
            run: run.0,
            topology: Some(config.topology.clone()),
            control: config.listen.to_string(),
            shards: shards.iter().map(ToString::to_string).collect(),
            devices: configured_devices(&config.store),
            store: folder.identity.store.clone(),
        };
        // A folder that knows its server is opened before the registration, so that from the moment the
        // cluster counts on this run it serves.
        if folder.identity.member.is_none() {
            let joined = register(&meta, &registration).await?;
            folder.join(joined.member)?;
        }
        let member = folder.identity.member.clone().expect("set above");
        registration.cluster.clone_from(&member.cluster);
        registration.server = member.server.0;
        let identity = store::Identity { cluster: member.cluster.clone(), server: member.server };
        let store = Store::open(config.store.clone(), &identity)?;
        let (to_server, reports) = mpsc::channel(REPORTS_MAX);
        let hearing = Arc::new(Hearing::default());
        let mut server = Self {
            id: member.server,
            meta: Arc::new(meta),
            registration,
            store,
            hearing,
            commands: Vec::new(),
            reports: tokio::sync::Mutex::new(reports),
            threads: std::sync::Mutex::default(),
            metrics: ServerMetrics::default(),
            folder: None,
        };
        // All are opened before any begins: each journal may name slots that no shard may take.
        let opened: Result<Vec<_>, OpenError> =
            (0..listeners.len()).map(|index| ShardStore::open(&server.store, index)).collect();
        for (index, (listener, opened)) in listeners.into_iter().zip(opened?).enumerate() {
            let at = (index, listener);
            server.start_shard(at, opened, &config, &member, run, &to_server, &shutdown)?;
        }
        register(&server.meta, &server.registration).await?;
        server.folder = Some(folder);
        Ok(server)
    }

    #[allow(clippy::too_many_arguments)] // one call site; each is a different thing
    fn start_shard(
        &mut self,
        (index, listener): (usize, TcpListener),
        (store, recovered): (ShardStore, Vec<Recovered>),
        config: &ChunkserverConfig,
        member: &Membership,
        run: RunId,
        reports: &mpsc::Sender<ShardReport>,
        shutdown: &CancellationToken,
    ) -> Result<(), ServerError> {
        let (to_shard, commands) = Commands::channel();
        let counters = Arc::new(ShardCounters::default());
        let parts = ShardParts {
            index,
            shards: config.shard_listen.len(),
            server: member.server,
            run,
            cluster: member.cluster.clone(),
            segment_bytes: member.segment_bytes,
            timing: config.timing,
            rebuild: config.rebuild,
            store,
            reports: reports.clone(),
            hearing: Arc::clone(&self.hearing),
            counters: Arc::clone(&counters),
        };
        let shutdown = shutdown.clone();
        let start = ShardStart { parts, recovered, listener, commands, shutdown };
        let thread = shard::start(start).map_err(ServerError::Thread)?;
        self.commands.push(to_shard);
        self.metrics.shards.push(counters);
        self.threads.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(thread);
        Ok(())
    }

    async fn serve(&self) -> Result<(), ServerError> {
        tokio::select! {
            () = self.heartbeats() => Ok(()),
            () = self.watch() => Ok(()),
            result = self.carry_reports() => result,
        }
    }

    fn join(self) {
        drop(self.commands);
        let threads = self.threads.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        for thread in threads {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "shard ended"),
                Err(_) => tracing::error!("shard panicked"),
            }
        }
    }

    async fn heartbeats(&self) {
        let mut interval = tokio::time::interval(HEARTBEAT);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut known = Vec::new();
        let mut load = LoadMeter::default();
        loop {
            interval.tick().await;
            let hears = self.hearing.since(BootClock.now(), HEARS);
            let beat = rpc::HeartbeatRequest {
                server: self.id.0,
                run: self.registration.run,
                devices: devices(&self.store),
                hears: hears.iter().map(|s| s.0).collect(),
                load: load.read(BootClock.now(), self.busy()),
            };
            let call = self.meta.call(HEARTBEAT_PATIENCE, |mut meta| {
                let beat = beat.clone();
                async move { meta.heartbeat(beat).await }
            });
            match call.await {
                Ok(reply) if reply.register => {
                    if let Err(error) = self.register_again(&known).await {
                        tracing::warn!(%error, "not registered");
                    }
                }
                // Shards that cannot be told now are told with the next one: a heartbeat waits for no shard.
                Ok(reply) if reply.servers != known => {
                    if self.tell_servers(&reply.servers).is_ok() {
                        known = reply.servers;
                    }
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "heartbeat not answered"),
            }
        }
    }

    /// Registers under the same run, and tells what copies there are where that is asked for: the metadata
    /// was restored from a backup, and decides nothing before it knows. What is not told now is asked for
    /// with the next heartbeat.
    async fn register_again(&self, known: &[rpc::ServerAddress]) -> Result<(), ServerError> {
        let joined = register(&self.meta, &self.registration).await?;
        if !joined.report_copies {
            return Ok(());
        }
        let Some(copies) = self.copies().await else { return Ok(()) };
        tracing::info!(
            copies = copies.len(),
            "the metadata was restored: telling what copies there are"
        );
        let servers: Vec<u64> = known.iter().map(|address| address.server).collect();
        for request in copy_reports(self.id, self.registration.run, &copies, servers) {
            let call = self.meta.call(REPORT_PATIENCE, |mut meta| {
                let request = request.clone();
                async move { meta.report_copies(request).await }
            });
            call.await.map_err(ServerError::Register)?;
        }
        Ok(())
    }

    /// The copies of all shards; none if one of them is too busy to be asked now, or gone.
    async fn copies(&self) -> Option<Vec<CopyReport>> {
        let mut copies = Vec::new();
        for shard in &self.commands {
            let (answer, told) = oneshot::channel();
            shard.try_tell(ShardCommand::TellCopies(answer)).ok()?;
            copies.extend(told.await.ok()?);
        }
        Some(copies)
    }

    /// How long threads and devices were busy so far.
    fn busy(&self) -> Busy {
        let thread = |shard: &Arc<ShardCounters>| {
            Duration::from_micros(shard.busy_us.load(Ordering::Relaxed))
        };
        Busy {
            threads: self.metrics.shards.iter().map(thread).collect(),
            devices: self.store.devices().iter().map(store::Device::busy).collect(),
        }
    }

    fn tell_servers(&self, servers: &[rpc::ServerAddress]) -> Result<(), Full> {
        let servers: Result<Vec<ServerAddress>, Malformed> =
            servers.iter().map(TryFrom::try_from).collect();
        match servers {
            Ok(servers) => {
                for shard in &self.commands {
                    shard.try_tell(ShardCommand::Servers(servers.clone()))?;
                }
            }
            Err(error) => tracing::warn!(%error, "bad addresses"),
        }
        Ok(())
    }

    async fn tell_record(&self, segment: &rpc::Segment) {
        match SegmentRecord::try_from(segment) {
            Ok(record) => {
                self.tell(record.segment, ShardCommand::Record(record)).await;
            }
            Err(error) => tracing::warn!(%error, "bad record"),
        }
    }

    /// Follows the records that name this server, from whichever meta node answers.
    async fn watch(&self) {
        let mut known = Known::default();
        loop {
            if let Err(error) = self.watch_once(&mut known).await {
                tracing::debug!(%error, "watch ended");
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn watch_once(&self, known: &mut Known) -> Result<(), MetaError> {
        let filter = Some(rpc::watch_request::Filter::Server(self.id.0));
        let request = rpc::WatchRequest { from_revision: known.revision, filter };
        known.full = None;
        let mut stream = self
            .meta
            .call(REPORT_PATIENCE, |mut meta| async move { meta.watch(request).await })
            .await?;
        while let Some(reply) = stream.message().await.map_err(|s| MetaError::from(&s))? {
            if reply.full {
                known.full = Some(BTreeSet::new());
            }
            for segment in &reply.segments {
                let id = segment_id(segment);
                known.named.insert(id);
                if let Some(full) = &mut known.full {
                    full.insert(id);
                }
                self.tell_record(segment).await;
            }
            for copy in &reply.retired {
                let segment = SegmentId { volume: VolumeId(copy.volume), index: copy.index };
                let retired = ShardCommand::Retired(segment, ReplicaId(copy.replica));
                self.tell(segment, retired).await;
            }
            for gone in &reply.gone {
                let segment = SegmentId { volume: VolumeId(gone.volume), index: gone.index };
                known.named.remove(&segment);
                self.tell(segment, ShardCommand::Gone(segment)).await;
            }
            if reply.revision == 0 {
                // One part of a larger answer.
                continue;
            }
            known.revision = reply.revision;
            if let Some(full) = known.full.take() {
                for &segment in known.named.difference(&full) {
                    self.tell(segment, ShardCommand::Gone(segment)).await;
                }
                known.named = full;
            }
        }
        Ok(())
    }

    async fn tell(&self, segment: SegmentId, command: ShardCommand) {
        self.commands[segment.shard(self.commands.len())].tell(command).await;
    }

    /// Carries what the shards report to the metadata cluster. What is refused or lost is reported
    /// again by the protocol.
    async fn carry_reports(&self) -> Result<(), ServerError> {
        let mut reports = self.reports.lock().await;
        let mut batch = Vec::new();
        while reports.recv_many(&mut batch, REPORTS_MAX).await > 0 {
            let mut active = Vec::new();
            let mut deleted = Vec::new();
            let mut proposals = Vec::new();
            for report in batch.drain(..) {
                match report {
                    ShardReport::Propose { segment, epoch, change, reason } => {
                        proposals.extend(proposal(
                            segment,
                            epoch.0,
                            self.id,
                            change,
                            reason.as_str(),
                        ));
                    }
                    ShardReport::Active { segment, epoch, token } => {
                        active.push(rpc::ActiveReport {
                            volume: segment.volume.0,
                            index: segment.index,
                            epoch: epoch.0,
                            token: token.0,
                        });
                    }
                    ShardReport::Deleted { segment, replica } => deleted.push(rpc::DeletedReport {
                        volume: segment.volume.0,
                        index: segment.index,
                        replica: replica.0,
                    }),
                    ShardReport::Failed => return Err(ServerError::Failed),
                }
            }
            tokio::join!(
                self.report_active(active),
                self.report_deleted(deleted),
                self.propose(proposals)
            );
        }
        Ok(())
    }

    async fn report_active(&self, reports: Vec<rpc::ActiveReport>) {
        if reports.is_empty() {
            return;
        }
        let request = rpc::ReportActiveRequest { server: self.id.0, reports };
        let call = self.meta.call(REPORT_PATIENCE, |mut meta| {
            let request = request.clone();
            async move { meta.report_active(request).await }
        });
        if let Err(error) = call.await {
            tracing::debug!(%error, "activity not reported");
        }
    }

    async fn report_deleted(&self, reports: Vec<rpc::DeletedReport>) {
        if reports.is_empty() {
            return;
        }
        let request = rpc::ReportDeletedRequest { server: self.id.0, reports };
        let call = self.meta.call(REPORT_PATIENCE, |mut meta| {
            let request = request.clone();
            async move { meta.report_deleted(request).await }
        });
        if let Err(error) = call.await {
            tracing::debug!(%error, "deletion not reported");
        }
    }

    async fn propose(&self, proposals: Vec<rpc::ChangeSetRequest>) {
        let calls = proposals.into_iter().map(|request| async move {
            let call = self.meta.call(REPORT_PATIENCE, |mut meta| {
                let request = request.clone();
                async move { meta.change_set(request).await }
            });
            match call.await {
                Ok(reply) => {
                    if let Some(segment) = reply.segment {
                        self.tell_record(&segment).await;
                    }
                }
                Err(error) => tracing::info!(%error, "set change not made"),
            }
        });
        futures::future::join_all(calls).await;
    }
}

fn segment_id(segment: &rpc::Segment) -> SegmentId {
    SegmentId { volume: VolumeId(segment.volume), index: segment.index }
}

fn proposal(
    segment: SegmentId,
    epoch: u64,
    proposer: ServerId,
    change: SetChange,
    reason: &str,
) -> Option<rpc::ChangeSetRequest> {
    use rpc::change_set_request::Change;
    let change = match change {
        SetChange::Remove { replica } => Change::Remove(replica.0),
        SetChange::Lost { replica } => Change::Lost(replica.0),
        SetChange::Promote { replica } => Change::Promote(replica.0),
        SetChange::Withdraw => Change::Withdraw(true),
        // Only the metadata cluster decides who leads.
        SetChange::Handover { .. } | SetChange::Replace { .. } => return None,
    };
    Some(rpc::ChangeSetRequest {
        volume: segment.volume.0,
        index: segment.index,
        expected_epoch: epoch,
        proposer: proposer.0,
        change: Some(change),
        reason: reason.to_owned(),
    })
}

fn bind(addresses: &[SocketAddr]) -> Result<(Vec<TcpListener>, Vec<SocketAddr>), ServerError> {
    let mut listeners = Vec::new();
    let mut bound = Vec::new();
    for &address in addresses {
        let failed = |source| ServerError::Listen { address, source };
        let listener = TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        bound.push(listener.local_addr().map_err(failed)?);
        listeners.push(listener);
    }
    Ok((listeners, bound))
}

/// The messages that tell `copies`: several, if there are many; the last says that it is.
fn copy_reports(
    server: ServerId,
    run: u64,
    copies: &[CopyReport],
    servers: Vec<u64>,
) -> Vec<rpc::ReportCopiesRequest> {
    let report = |copies: &[CopyReport]| rpc::ReportCopiesRequest {
        server: server.0,
        run,
        copies: copies.iter().map(Into::into).collect(),
        servers: Vec::new(),
        last: false,
    };
    let mut reports: Vec<_> = copies.chunks(COPIES_TOLD).map(report).collect();
    let last = rpc::ReportCopiesRequest { servers, last: true, ..report(&[]) };
    match reports.last_mut() {
        Some(report) => (report.servers, report.last) = (last.servers, true),
        // A server without copies tells that.
        None => reports.push(last),
    }
    reports
}

/// What a registration answers.
struct Joined {
    member: Membership,
    /// The cluster wants to know what copies there are.
    report_copies: bool,
}

/// Registers until the metadata cluster answers; a refusal ends the server.
async fn register(
    meta: &MetaClient,
    registration: &rpc::RegisterServerRequest,
) -> Result<Joined, ServerError> {
    loop {
        let call = meta.call(REPORT_PATIENCE, |mut meta| {
            let registration = registration.clone();
            async move { meta.register_server(registration).await }
        });
        match call.await {
            Ok(reply) => {
                let member = Membership {
                    cluster: reply.cluster,
                    server: ServerId(reply.server),
                    segment_bytes: reply.segment_bytes,
                };
                return Ok(Joined { member, report_copies: reply.report_copies });
            }
            Err(error) if error.is_transient() => {
                tracing::info!(%error, "waiting for the metadata cluster");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            Err(error) => return Err(ServerError::Register(error)),
        }
    }
}

fn tier(tier: store::device::Tier) -> rpc::Tier {
    match tier {
        store::device::Tier::Nvme => rpc::Tier::Nvme,
        store::device::Tier::Ssd => rpc::Tier::Ssd,
        store::device::Tier::Hdd => rpc::Tier::Hdd,
    }
}

fn configured_devices(config: &store::StoreConfig) -> Vec<rpc::Device> {
    let device = |d: &store::DeviceConfig| rpc::Device {
        name: d.name.clone(),
        tier: tier(d.tier).into(),
        capacity_bytes: d.capacity_bytes,
        used_bytes: 0,
        failed: false,
    };
    config.devices.iter().map(device).collect()
}

fn devices(store: &Store) -> Vec<rpc::Device> {
    let device = |d: &store::device::Device| {
        let (available, capacity) = d.room();
        let bytes = |slots: u32| u64::from(slots) * tidewater_proto::geometry::CHUNK_BYTES;
        rpc::Device {
            name: d.name.clone(),
            tier: tier(d.tier).into(),
            capacity_bytes: bytes(capacity),
            used_bytes: bytes(capacity - available),
            failed: d.has_failed(),
        }
    };
    store.devices().iter().map(device).collect()
}

#[cfg(test)]
mod tests {
    use tidewater_proto::ids::{Epoch, Position, Token};

    use super::*;

    fn copies(count: u64) -> Vec<CopyReport> {
        let copy = |id| CopyReport {
            segment: SegmentId { volume: VolumeId(1), index: id as u32 },
            replica: ReplicaId(id),
            epoch: Epoch(1),
            token: Token(1),
            last: Position::default(),
            copying: false,
            record: None,
        };
        (0..count).map(copy).collect()
    }

    #[test]
    fn all_copies_are_told_in_messages_of_which_the_last_one_says_so() {
        let full = COPIES_TOLD as u64;
        for (count, messages) in [(0, 1), (1, 1), (full, 1), (full + 1, 2), (3 * full, 3)] {
            let reports = copy_reports(ServerId(3), 9, &copies(count), vec![1, 2, 3]);
            assert_eq!(reports.len(), messages, "{count} copies");
            let told = reports.iter().flat_map(|report| &report.copies).map(|copy| copy.replica);
            assert_eq!(told.collect::<Vec<_>>(), (0..count).collect::<Vec<_>>());
            let last: Vec<_> = reports.iter().map(|report| report.last).collect();
            assert!(last.iter().rev().skip(1).all(|last| !last) && last[messages - 1], "{last:?}");
            assert_eq!(reports[messages - 1].servers, [1, 2, 3]);
        }
    }
}
