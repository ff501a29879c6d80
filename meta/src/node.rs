//! One meta node: its parts, its start and its end.

use std::{
    future::Future,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use openraft::async_runtime::watch::WatchReceiver;
use tidewater_proto::{
    ids::ServerId,
    rpc::{meta_server::MetaServer, raft_server::RaftServer},
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Server;

use crate::{
    absence::Absence,
    config::{ConfigError, MetaConfig},
    detector::{Beat, Detector, Millis},
    driver,
    live::Live,
    metrics::MetaMetrics,
    raft::{
        Raft,
        log::LogStore,
        machine::Machine,
        network::{Factory, MESSAGE_BYTES_MAX},
        service::RaftService,
        store::{Store, StoreError},
    },
    service::MetaService,
};

/// For requests in progress to end at a stop; also between complaints that it takes long.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a meta node cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum MetaError {
    /// The configuration cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data folder cannot be served.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The address is taken or not ours.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Configured.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The Raft core stopped: its storage failed.
    #[error("raft stopped: {reason}")]
    Raft {
        /// openraft's words.
        reason: String,
    },
    /// The gRPC server stopped.
    #[error("server stopped: {0}")]
    Server(#[from] tonic::transport::Error),
    /// The gRPC server ended by itself.
    #[error("server ended")]
    ServerGone,
}

/// What the handlers and the driver share.
pub(crate) struct Node {
    pub(crate) id: u64,
    pub(crate) config: MetaConfig,
    pub(crate) raft: Raft,
    pub(crate) live: Arc<Live>,
    /// Fires when the node is to stop; every wait ends with it.
    pub(crate) closing: CancellationToken,
    // Locks, because requests and the driver are different tasks. Never held across an await.
    detector: Mutex<Detector>,
    absence: Mutex<Absence>,
    started: Instant,
    wall_ms: WallClock,
}

/// Unix milliseconds.
type WallClock = fn() -> u64;

impl Node {
    /// Milliseconds of this process's monotonic clock.
    pub(crate) fn now(&self) -> Millis {
        self.started.elapsed().as_millis() as Millis
    }

    /// Unix milliseconds, for proposals: what people read, nothing is decided by it.
    pub(crate) fn wall_ms(&self) -> u64 {
        (self.wall_ms)()
    }

    pub(crate) fn detector(&self) -> MutexGuard<'_, Detector> {
        self.detector.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A server was heard while this node led in `term`, which its own loop may not know yet.
    pub(crate) fn heard(&self, term: u64, server: ServerId, beat: Beat) {
        let (mut detector, now) = (self.detector(), self.now());
        detector.lead(term, now);
        detector.heard(server, now, beat);
    }

    pub(crate) fn absence(&self) -> MutexGuard<'_, Absence> {
        self.absence.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// A running meta node. One that is dropped stops by itself, on the runtime it was started on;
/// [`stop`](Self::stop) also waits for that. Once it has stopped, or its runtime has been dropped, no
/// thread has its database open.
pub struct MetaNode {
    node: Arc<Node>,
    address: SocketAddr,
    /// None once it has ended and `failed` has said why.
    server: Option<JoinHandle<Result<(), tonic::transport::Error>>>,
    driver: JoinHandle<()>,
    closer: JoinHandle<()>,
    closed: CancellationToken,
    _closing: DropGuard,
}

impl MetaNode {
    /// Recovers from the data folder and serves. Runs on the caller's tokio runtime.
    pub async fn start(config: MetaConfig) -> Result<Self, MetaError> {
        Self::start_by(config, unix_ms).await
    }

    async fn start_by(config: MetaConfig, wall_ms: WallClock) -> Result<Self, MetaError> {
        config.validate()?;
        let store = Store::open(&config.dir, config.node)?;
        let closed = store.closed();
        let started = Self::start_on(config, store, wall_ms).await;
        if started.is_err() {
            // The folder can be opened again once this returns.
            closed.cancelled().await;
        }
        started
    }

    async fn start_on(
        config: MetaConfig,
        store: Store,
        wall_ms: WallClock,
    ) -> Result<Self, MetaError> {
        let closed = store.closed();
        let log = LogStore::new(store.clone())?;
        let (machine, live) = Machine::open(store)?;
        check_cluster(&config, &live)?;
        let listener = TcpListener::bind(config.listen)
            .await
            .map_err(|source| MetaError::Listen { address: config.listen, source })?;
        let address = listener
            .local_addr()
            .map_err(|source| MetaError::Listen { address: config.listen, source })?;
        let snapshots = machine.snapshots();
        let raft_config = Arc::new(config.raft().map_err(ConfigError::from)?);
        let network = Factory { from: config.node };
        let raft = Raft::new(config.node, raft_config, network, log, machine)
            .await
            .map_err(|fatal| MetaError::Raft { reason: fatal.to_string() })?;
        let detector = Mutex::new(Detector::new(config.server_dead_after_ms, 0));
        let closing = CancellationToken::new();
        let id = config.node;
        let started = Instant::now();
        let absence = Mutex::default();
        let node =
            Arc::new(Node { id, config, raft, live, closing, detector, absence, started, wall_ms });
        let raft_service = RaftService { node: id, raft: node.raft.clone(), snapshots };
        let server = Some(tokio::spawn(serve(Arc::clone(&node), raft_service, listener)));
        let driver = tokio::spawn(driver::run(Arc::clone(&node)));
        let closer = tokio::spawn(close(Arc::clone(&node)));
        tracing::info!(node = id, %address, "meta node serves");
        let guard = node.closing.clone().drop_guard();
        Ok(Self { node, address, server, driver, closer, closed, _closing: guard })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Figures for monitoring.
    pub fn metrics(&self) -> MetaMetrics {
        MetaMetrics::of(&self.node)
    }

    /// A handle to the figures that outlives borrows of the node.
    pub fn metrics_source(&self) -> impl Fn() -> MetaMetrics + Send + Sync + 'static {
        let node = Arc::downgrade(&self.node);
        move || node.upgrade().map(|node| MetaMetrics::of(&node)).unwrap_or_default()
    }

    /// Resolves when the node cannot go on, with the reason.
    pub async fn failed(&mut self) -> MetaError {
        let raft = raft_failed(&self.node.raft);
        let Some(server) = &mut self.server else { return raft.await };
        let ended = tokio::select! {
            error = raft => return error,
            ended = server => ended,
        };
        self.server = None;
        match ended {
            Ok(Err(error)) => MetaError::Server(error),
            Ok(Ok(())) | Err(_) => MetaError::ServerGone,
        }
    }

    /// Stops serving and closes the data folder. Does not return before that is closed: a process
    /// that exits with its database open aborts.
    pub async fn stop(self) {
        self.node.closing.cancel();
        if let Some(mut server) = self.server
            && tokio::time::timeout(STOP_TIMEOUT, &mut server).await.is_err()
        {
            server.abort();
        }
        for (task, name) in [(self.driver, "driver"), (self.closer, "closer")] {
            if let Err(error) = task.await {
                tracing::warn!(%error, "{name} failed");
            }
        }
        drop(self.node);
        while tokio::time::timeout(STOP_TIMEOUT, self.closed.cancelled()).await.is_err() {
            tracing::warn!("data folder is still in use after the stop");
        }
    }
}

/// Ends the Raft core, which has the data folder open, once the node is to stop.
async fn close(node: Arc<Node>) {
    node.closing.cancelled().await;
    if let Err(error) = node.raft.shutdown().await {
        tracing::warn!(%error, "raft did not stop in order");
    }
}

async fn raft_failed(raft: &Raft) -> MetaError {
    // Of all that is told of the core this changes the least, and it ends with the core.
    let mut role = raft.server_metrics();
    while role.changed().await.is_ok() {}
    let ended = raft.metrics().borrow_watched().running_state.clone();
    let reason = ended.map_or_else(|fatal| fatal.to_string(), |()| "core is gone".to_owned());
    MetaError::Raft { reason }
}

fn check_cluster(config: &MetaConfig, live: &Live) -> Result<(), StoreError> {
    let view = live.read();
    let (Some(row), Some(configured)) = (view.state.cluster(), &config.cluster) else {
        return Ok(());
    };
    if row.uuid != *configured {
        let (found, configured) = (row.uuid.clone(), configured.clone());
        return Err(StoreError::OtherCluster { found, configured });
    }
    Ok(())
}

async fn serve(
    node: Arc<Node>,
    raft: RaftService,
    listener: TcpListener,
) -> Result<(), tonic::transport::Error> {
    let closing = node.closing.clone();
    let raft = RaftServer::new(raft)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    Server::builder()
        .tcp_nodelay(true)
        .add_service(MetaServer::new(MetaService { node }))
        .add_service(raft)
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), closing.cancelled_owned())
        .await
}

/// Serves a meta node until `shutdown` resolves or the node fails.
pub async fn run(
    config: MetaConfig,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), MetaError> {
    let mut node = MetaNode::start(config).await?;
    let failed = tokio::select! {
        () = shutdown => None,
        error = node.failed() => Some(error),
    };
    node.stop().await;
    failed.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use tidewater_proto::rpc::{self, meta_client::MetaClient};
    use tonic::transport::Channel;

    use super::*;

    const YEAR_MS: u64 = 365 * 24 * 3_600_000;

    async fn start(dir: &std::path::Path, wall_ms: WallClock) -> (MetaNode, MetaClient<Channel>) {
        let config = MetaConfig::new(1, ([127, 0, 0, 1], 0).into(), dir.to_owned());
        let node = MetaNode::start_by(config, wall_ms).await.expect("starts");
        let address = format!("http://{}", node.address());
        let channel = Channel::from_shared(address).expect("address").connect_lazy();
        (node, MetaClient::new(channel))
    }

    /// The answer, once the node leads.
    async fn trash(client: &mut MetaClient<Channel>) -> Vec<String> {
        let request = rpc::ListVolumesRequest { trash: true };
        let answer = async {
            loop {
                match client.list_volumes(request).await {
                    Ok(reply) => break reply.into_inner().volumes,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        };
        let volumes = tokio::time::timeout(STOP_TIMEOUT * 5, answer).await.expect("a leader");
        volumes.into_iter().map(|volume| volume.name).collect()
    }

    /// One node leads twice, with clocks years apart. What is to be kept for a day is still there after
    /// the planner has looked, which it shows by purging what was to be kept for a moment.
    #[tokio::test(flavor = "multi_thread")]
    async fn trash_is_kept_for_its_time_by_leaders_whose_clocks_are_years_apart() {
        for (first, second) in
            [((|| 0) as WallClock, (|| 50 * YEAR_MS) as WallClock), (|| 50 * YEAR_MS, || 0)]
        {
            let dir = tempfile::tempdir().expect("tempdir");
            let (node, mut client) = start(dir.path(), first).await;
            let this = rpc::MetaNode {
                id: 1,
                address: node.address().to_string(),
                ..rpc::MetaNode::default()
            };
            let init = rpc::InitClusterRequest { nodes: vec![this], segment_bytes: 1 << 20 };
            client.init_cluster(init).await.expect("init");
            for (name, keep_seconds) in [("day", 24 * 3600), ("moment", 1)] {
                let (name, size_bytes) = (name.to_owned(), 1 << 20);
                let create = rpc::CreateVolumeRequest {
                    name: name.clone(),
                    size_bytes,
                    replicas: 1,
                    ..rpc::CreateVolumeRequest::default()
                };
                client.create_volume(create).await.expect("create");
                let delete = rpc::DeleteVolumeRequest { name, keep_seconds };
                client.delete_volume(delete).await.expect("delete");
            }
            node.stop().await;
            let (node, mut client) = start(dir.path(), second).await;
            let deadline = Instant::now() + 5 * STOP_TIMEOUT;
            while trash(&mut client).await != ["day"] {
                assert!(Instant::now() < deadline, "{:?}", trash(&mut client).await);
                tokio::task::yield_now().await;
            }
            node.stop().await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_node_fails_when_its_raft_core_ends_and_not_before() {
        let dir = tempfile::tempdir().expect("tempdir");
        let listen = ([127, 0, 0, 1], 0).into();
        let config = MetaConfig::new(1, listen, dir.path().to_owned());
        let mut node = MetaNode::start(config).await.expect("starts");
        let raft = node.node.raft.clone();
        raft.initialize(std::collections::BTreeMap::from([(1, openraft::BasicNode::new("x"))]))
            .await
            .expect("a group of one");
        let leads = |metrics: &openraft::RaftMetrics<_>| metrics.state.is_leader();
        raft.wait(Some(STOP_TIMEOUT)).metrics(leads, "leads").await.expect("leads");
        assert!(futures::FutureExt::now_or_never(Box::pin(node.failed())).is_none());
        raft.shutdown().await.expect("stops");
        let failed = tokio::time::timeout(STOP_TIMEOUT, node.failed()).await;
        assert!(matches!(failed, Ok(MetaError::Raft { .. })), "{failed:?}");
        node.stop().await;
    }
}
