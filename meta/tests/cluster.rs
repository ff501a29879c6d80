//! Meta nodes in one process, on loopback, with real folders.

use std::{
    collections::BTreeMap,
    fs::{File, TryLockError},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use tidewater_meta::{MetaConfig, MetaError, MetaNode, RestoreError, StoreError, restore};
use tidewater_proto::rpc::{self, meta_client::MetaClient};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tonic::{Code, Status, transport::Channel};

const TIB: u64 = 1 << 40;
const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(15);

type Client = MetaClient<Channel>;

/// Addresses that were free a moment ago, one a node. Not of the range from which the system gives
/// ports, for a node that restarts must find its own still free.
fn addresses(count: usize) -> Vec<SocketAddr> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let candidates = std::iter::repeat_with(|| {
        let next = std::process::id() * 32 + NEXT.fetch_add(1, Ordering::Relaxed);
        SocketAddr::from(([127, 0, 0, 1], 10_000 + (next % 20_000) as u16))
    });
    candidates.filter(|at| std::net::TcpListener::bind(at).is_ok()).take(count).collect()
}

fn config(node: u64, listen: SocketAddr, root: &Path) -> MetaConfig {
    MetaConfig {
        server_dead_after_ms: 500,
        repair_delay_ms: 300,
        attach_timeout_ms: 3_000,
        snapshot_entries: 40,
        keep_entries: 5,
        ..MetaConfig::new(node, listen, root.join(format!("m{node}")))
    }
}

/// Some of a cluster's nodes, running.
struct Cluster {
    root: tempfile::TempDir,
    listen: Vec<SocketAddr>,
    /// What other nodes reach a node by, where that is not where it listens.
    gates: BTreeMap<usize, Gate>,
    nodes: Vec<Option<MetaNode>>,
}

/// The way from all other nodes to one, which can be cut.
struct Gate {
    address: SocketAddr,
    open: watch::Sender<bool>,
}

impl Gate {
    async fn to(node: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (open, is_open) = watch::channel(true);
        tokio::spawn(async move {
            while let Ok((mut from, _)) = listener.accept().await {
                let mut is_open = is_open.clone();
                tokio::spawn(async move {
                    let Ok(mut to) = TcpStream::connect(node).await else { return };
                    tokio::select! {
                        ended = copy_bidirectional(&mut from, &mut to) => drop(ended),
                        cut = is_open.wait_for(|open| !open) => drop(cut),
                    }
                });
            }
        });
        Self { address, open }
    }
}

impl Cluster {
    /// `voters` nodes that form a cluster, and room for one more.
    async fn start(voters: usize) -> Self {
        Self::form(voters, addresses(voters + 1), BTreeMap::new()).await
    }

    /// The same, each node behind a gate.
    async fn start_gated(voters: usize) -> Self {
        let listen = addresses(voters + 1);
        let mut gates = BTreeMap::new();
        for (index, &node) in listen.iter().enumerate() {
            gates.insert(index, Gate::to(node).await);
        }
        Self::form(voters, listen, gates).await
    }

    async fn form(voters: usize, listen: Vec<SocketAddr>, gates: BTreeMap<usize, Gate>) -> Self {
        let root = tempfile::tempdir().expect("tempdir");
        let nodes = (0..=voters).map(|_| None).collect();
        let mut cluster = Self { root, listen, gates, nodes };
        for index in 0..voters {
            cluster.restart(index).await;
        }
        let nodes = (0..voters).map(|index| cluster.member(index)).collect();
        let request = rpc::InitClusterRequest { nodes, segment_bytes: MIB };
        cluster.client(0).init_cluster(request).await.expect("init");
        cluster
    }

    fn member(&self, index: usize) -> rpc::MetaNode {
        let address = self.gates.get(&index).map_or(self.listen[index], |gate| gate.address);
        rpc::MetaNode {
            id: index as u64 + 1,
            address: address.to_string(),
            ..rpc::MetaNode::default()
        }
    }

    async fn restart(&mut self, index: usize) {
        let config = config(index as u64 + 1, self.listen[index], self.root.path());
        self.nodes[index] = Some(MetaNode::start(config).await.expect("starts"));
    }

    async fn stop(&mut self, index: usize) {
        self.nodes[index].take().expect("runs").stop().await;
    }

    fn client(&self, index: usize) -> Client {
        let address = format!("http://{}", self.listen[index]);
        MetaClient::new(Channel::from_shared(address).expect("address").connect_lazy())
    }

    fn is_open(&self, index: usize) -> bool {
        is_open(self.root.path(), index)
    }

    fn running(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|&index| self.nodes[index].is_some()).collect()
    }

    /// Index of a running node that leads and has a quorum.
    async fn leader(&self) -> usize {
        until("a leader", async || {
            for index in self.running() {
                if self.client(index).list_programs(rpc::Empty {}).await.is_ok() {
                    return Some(index);
                }
            }
            None
        })
        .await
    }

    async fn status(&self, index: usize) -> rpc::StatusReply {
        self.client(index).status(rpc::StatusRequest {}).await.expect("status").into_inner()
    }

    /// Waits until all running nodes have applied the same entries; INV-META.
    async fn assert_equal_states(&self) {
        let leader = self.leader().await;
        until("all nodes at one index", async || {
            let want = self.status(leader).await;
            for index in self.running() {
                let have = self.status(index).await;
                if have.applied != want.applied {
                    return None;
                }
                assert_eq!(have.state_hash, want.state_hash, "node {index} at {}", have.applied);
            }
            Some(())
        })
        .await;
    }
}

/// Whether a node's database is open: it has the folder locked until it is closed.
fn is_open(root: &Path, index: usize) -> bool {
    let path = root.join(format!("m{}", index + 1)).join("lock");
    let lock = File::open(path).expect("a node ran there");
    match lock.try_lock() {
        Ok(()) => false,
        Err(TryLockError::WouldBlock) => true,
        Err(TryLockError::Error(error)) => panic!("{error}"),
    }
}

/// Polls until there is an answer.
async fn until<T>(what: &str, mut poll: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = poll().await {
            return found;
        }
        assert!(Instant::now() < deadline, "no {what} within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn create(client: &mut Client, name: &str, size_bytes: u64) -> Result<rpc::Volume, Status> {
    let name = name.to_owned();
    let request = rpc::CreateVolumeRequest { name, size_bytes, ..Default::default() };
    client.create_volume(request).await.map(tonic::Response::into_inner)
}

fn segment_of(volume: &rpc::Volume, index: u32) -> rpc::SegmentRequest {
    rpc::SegmentRequest { volume: volume.id, index, session: 0 }
}

fn registration(id: u64, run: u64) -> rpc::RegisterServerRequest {
    rpc::RegisterServerRequest {
        run,
        topology: Some(rpc::Topology { host: format!("h{id}"), ..Default::default() }),
        control: format!("127.0.0.1:{}", 20_000 + id),
        shards: vec![format!("127.0.0.1:{}", 21_000 + id)],
        devices: vec![rpc::Device {
            name: "d".to_owned(),
            tier: rpc::Tier::Ssd.into(),
            capacity_bytes: TIB,
            ..Default::default()
        }],
        store: format!("store-{id}"),
        ..Default::default()
    }
}

/// A chunkserver that stores nothing: beats, watches, and activates what it leads.
struct FakeServer {
    id: u64,
    stop: tokio::task::JoinHandle<()>,
}

impl FakeServer {
    async fn start(client: Client, number: u64, run: u64) -> Self {
        Self::start_loaded(client, number, run, 0.0).await
    }

    /// One that says it is so busy from its first heartbeat on, which the leader has heard.
    async fn start_loaded(mut client: Client, number: u64, run: u64, load: f64) -> Self {
        let reply = client.register_server(registration(number, run)).await.expect("register");
        let id = reply.into_inner().server;
        let beat_once = rpc::HeartbeatRequest { server: id, run, load, ..Default::default() };
        client.heartbeat(beat_once.clone()).await.expect("leader");
        let stop = tokio::spawn(async move {
            let beats = beat(client.clone(), beat_once);
            let serves = serve(client, id, run);
            tokio::join!(beats, serves);
        });
        Self { id, stop }
    }

    fn kill(&self) {
        self.stop.abort();
    }
}

async fn beat(mut client: Client, beat: rpc::HeartbeatRequest) {
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    loop {
        tick.tick().await;
        client.heartbeat(beat.clone()).await.expect("leader");
    }
}

async fn serve(mut client: Client, server: u64, run: u64) {
    let filter = Some(rpc::watch_request::Filter::Server(server));
    let request = rpc::WatchRequest { from_revision: 0, filter };
    let mut stream = client.watch(request).await.expect("watch").into_inner();
    while let Some(reply) = stream.message().await.expect("watch goes on") {
        for segment in reply.segments {
            let (volume, index) = (segment.volume, segment.index);
            let leads = segment.primary_run == run
                && segment
                    .members
                    .iter()
                    .any(|m| m.replica == segment.primary && m.server == server);
            if !leads {
                continue;
            }
            let (epoch, token) = (segment.epoch, segment.token);
            let reports = vec![rpc::ActiveReport { volume, index, epoch, token }];
            let report = rpc::ReportActiveRequest { server, reports };
            client.report_active(report).await.expect("report");
            for learner in &segment.learners {
                let change = rpc::ChangeSetRequest {
                    volume,
                    index,
                    expected_epoch: epoch,
                    proposer: server,
                    change: Some(rpc::change_set_request::Change::Promote(learner.replica)),
                    reason: "caught up".to_owned(),
                };
                client.change_set(change).await.expect("change set");
            }
        }
        let copies = reply.retired.iter();
        let reports: Vec<_> = copies
            .map(|c| rpc::DeletedReport { volume: c.volume, index: c.index, replica: c.replica })
            .collect();
        if !reports.is_empty() {
            let report = rpc::ReportDeletedRequest { server, reports };
            client.report_deleted(report).await.expect("report");
        }
    }
}

fn exclusive(volume: &str, request: &str) -> rpc::AttachRequest {
    rpc::AttachRequest {
        volume: volume.to_owned(),
        program: "db".to_owned(),
        instance: "1".to_owned(),
        host: "h".to_owned(),
        request: request.to_owned(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node_serves_volumes_attachments_and_segments_end_to_end() {
    let cluster = Cluster::start(1).await;
    let mut client = cluster.client(0);
    let mut servers = Vec::new();
    for number in 1..=4 {
        servers.push(FakeServer::start(client.clone(), number, 100 + number).await);
    }
    let volume = create(&mut client, "vm/disk", 64 * TIB).await.expect("create");
    assert_eq!((volume.replicas, volume.segments), (3, 0));

    let attached = client.attach(exclusive("vm/disk", "r1")).await.expect("attach").into_inner();
    let first = attached.attachment.expect("attachment");
    assert!(first.ready && first.token == 1 && first.session == 1);
    let again = client.attach(exclusive("vm/disk", "r1")).await.expect("repeated").into_inner();
    assert_eq!(again.attachment.expect("attachment").session, first.session);
    let held = client.attach(exclusive("vm/disk", "r2")).await.expect_err("held");
    assert_eq!(held.code(), Code::FailedPrecondition);
    assert!(held.message().contains("db"), "{held}");

    let segment = segment_of(&volume, 7);
    let placed = client.ensure_segment(segment).await.expect("ensure").into_inner();
    assert_eq!((placed.epoch, placed.active_epoch, placed.token), (1, Some(1), 1));
    assert_eq!(placed.members.len(), 3);
    assert!(placed.members.iter().all(|m| !m.fresh), "active members exist: {placed:?}");
    let past = segment_of(&volume, u32::MAX);
    let past = client.ensure_segment(past).await.expect_err("past the end");
    assert_eq!(past.code(), Code::InvalidArgument);

    let taken = rpc::AttachRequest { take_over: true, ..exclusive("vm/disk", "r3") };
    let taken = client.attach(taken).await.expect("take over").into_inner();
    assert_eq!(taken.attachment.expect("attachment").token, 2);
    assert_eq!(taken.segments[0].active_token, Some(2));
    let late = client.attach(exclusive("vm/disk", "r1")).await.expect_err("ended");
    assert_eq!(late.code(), Code::FailedPrecondition);

    // The primary dies: another member leads, a spare joins, the dead copy is retired.
    let primary = taken.segments[0].members.iter().find(|m| m.replica == placed.primary);
    let primary = primary.expect("member").server;
    servers.iter().find(|s| s.id == primary).expect("server").kill();
    until("a repaired set", async || {
        let list = rpc::ListSegmentsRequest { volume: volume.id, ..Default::default() };
        let list = client.list_segments(list).await.expect("list").into_inner();
        let record = &list.segments[0];
        let full = record.members.len() == 3 && record.active_epoch == Some(record.epoch);
        let without = record.members.iter().all(|m| m.server != primary);
        (full && without && record.former.is_empty() && record.retired.len() == 1).then_some(())
    })
    .await;
    let events = client.list_events(rpc::ListEventsRequest::default()).await.expect("events");
    let kinds: Vec<_> = events.into_inner().events.into_iter().map(|e| e.kind).collect();
    for kind in ["primary-replaced", "learner-added", "member-promoted", "copy-retired"] {
        assert!(kinds.iter().any(|k| k == kind), "no {kind} in {kinds:?}");
    }

    // Purged copies are deleted by their servers.
    let session = taken_session(&mut client).await;
    client.detach(rpc::DetachRequest { session, force: false }).await.expect("detach");
    let delete = rpc::DeleteVolumeRequest { name: "vm/disk".to_owned(), keep_seconds: 100 };
    client.delete_volume(delete).await.expect("delete");
    client.purge_volume(rpc::PurgeVolumeRequest { id: volume.id }).await.expect("purge");
    let node = cluster.nodes[0].as_ref().expect("runs");
    // The dead server's copy stays retired.
    until("deleted copies", async || (node.metrics().copies_retired == 1).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_placement_returns_after_other_sessions_leases_on_absence_and_not_after_its_own() {
    let cluster = Cluster::start(1).await;
    let mut client = cluster.client(0);
    for number in 1..=3 {
        FakeServer::start(client.clone(), number, 100 + number).await;
    }
    let volume = create(&mut client, "v", 16 * MIB).await.expect("create");
    let asked = |index, session| rpc::SegmentRequest { session, ..segment_of(&volume, index) };
    // The first placement of a term waits for leases that an earlier leader may have granted.
    client.ensure_segment(asked(9, 7)).await.expect("ensure");

    let before = Instant::now();
    let found = client.find_segment(asked(2, 7)).await.expect("find").into_inner();
    assert_eq!((found.segment, found.absent_before), (None, 9));
    let lease = Duration::from_millis(found.absent_ms.into());
    assert!(!lease.is_zero());
    client.ensure_segment(asked(3, 7)).await.expect("ensure");
    let own = before.elapsed();
    let found = client.find_segment(asked(2, 7)).await.expect("find").into_inner();
    assert_eq!(found.absent_before, 3);
    let before = Instant::now();
    client.find_segment(asked(4, 7)).await.expect("find");
    client.ensure_segment(asked(4, 8)).await.expect("ensure");
    assert!(before.elapsed() >= lease, "{:?} of {lease:?}", before.elapsed());
    println!("own {own:?}, other {:?}", before.elapsed());

    let found = client.find_segment(asked(4, 7)).await.expect("find").into_inner();
    assert_eq!(found.segment.expect("placed").index, 4);
    assert_eq!((found.servers.len(), found.absent_ms), (3, 0));
    let beyond = client.find_segment(asked(5, 0)).await.expect("find").into_inner();
    assert_eq!((beyond.absent_before, beyond.absent_ms), (9, 0), "nobody to hold a lease");
    let unknown = rpc::SegmentRequest { volume: 99, ..asked(0, 7) };
    assert_eq!(client.find_segment(unknown).await.expect_err("no volume").code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attachment_is_found_by_its_session_until_it_ends() {
    let cluster = Cluster::start(1).await;
    let mut client = cluster.client(0);
    create(&mut client, "v", MIB).await.expect("create");
    let attached = client.attach(exclusive("v", "r1")).await.expect("attach").into_inner();
    let attached = attached.attachment.expect("attachment");
    let request = rpc::AttachmentRequest { session: attached.session };
    let found = client.get_attachment(request).await.expect("attached").into_inner();
    assert_eq!(found, attached);
    let taken = rpc::AttachRequest { take_over: true, ..exclusive("v", "r2") };
    client.attach(taken).await.expect("take over");
    let ended = client.get_attachment(request).await.expect_err("taken over");
    assert_eq!(ended.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_are_placed_away_from_a_busy_server() {
    let cluster = Cluster::start(1).await;
    let mut client = cluster.client(0);
    let mut servers = Vec::new();
    for (number, load) in [(1, 0.9), (2, 0.1), (3, 0.0), (4, 0.2)] {
        let server = FakeServer::start_loaded(client.clone(), number, 100 + number, load).await;
        servers.push(server.id);
    }
    let volume = create(&mut client, "v", 16 * MIB).await.expect("create");
    for index in 0..8 {
        let segment = segment_of(&volume, index);
        let placed = client.ensure_segment(segment).await.expect("ensure").into_inner();
        let on: Vec<_> = placed.members.iter().map(|m| m.server).collect();
        assert!(!on.contains(&servers[0]), "segment {index} is on {on:?} of {servers:?}");
    }
}

async fn taken_session(client: &mut Client) -> u64 {
    let get = rpc::GetVolumeRequest { name: "vm/disk".to_owned() };
    let volume = client.get_volume(get).await.expect("volume").into_inner();
    assert_eq!(volume.attachments.len(), 1);
    volume.attachments[0].session
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_survive_the_leader_and_agree_after_its_return() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let started = Instant::now();
    create(&mut cluster.client(leader), "big", 64 * TIB).await.expect("create");
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());

    let follower = (0..3).find(|&index| index != leader).expect("follower");
    let refused = create(&mut cluster.client(follower), "x", MIB).await.expect_err("follower");
    assert_eq!(refused.code(), Code::Unavailable);
    let named = refused.metadata().get("tidewater-leader").expect("names the leader");
    assert_eq!(named.to_str().expect("ascii"), cluster.listen[leader].to_string());

    cluster.stop(leader).await;
    let down = Instant::now();
    let next = cluster.leader().await;
    println!("leader replaced after {:?}", down.elapsed());
    create(&mut cluster.client(next), "after", MIB).await.expect("still writable");

    cluster.restart(leader).await;
    cluster.assert_equal_states().await;
    let list = rpc::ListVolumesRequest { trash: false };
    let leader = cluster.leader().await;
    let volumes = cluster.client(leader).list_volumes(list).await.expect("list").into_inner();
    let names: Vec<_> = volumes.volumes.iter().map(|v| v.name.as_str()).collect();
    assert_eq!(names, ["after", "big"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_replaced_through_a_snapshot_and_the_cluster_restarts_from_disk() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let mut client = cluster.client(leader);
    for number in 0..120 {
        create(&mut client, &format!("v{number}"), MIB).await.expect("create");
    }
    let node =
        |cluster: &Cluster, index: usize| cluster.nodes[index].as_ref().expect("runs").metrics();
    until("a snapshot", async || (node(&cluster, leader).snapshot > 40).then_some(())).await;

    let old = (0..3).find(|&index| index != leader).expect("follower");
    cluster.stop(old).await;
    cluster.restart(3).await;
    let member = cluster.member(3);
    let add = rpc::AddMetaNodeRequest { id: member.id, address: member.address };
    client.add_meta_node(add).await.expect("add");
    client
        .remove_meta_node(rpc::RemoveMetaNodeRequest { id: old as u64 + 1 })
        .await
        .expect("remove");
    assert!(node(&cluster, 3).snapshot > 0, "the new node was sent a snapshot");
    cluster.assert_equal_states().await;
    let nodes = cluster.status(leader).await.nodes;
    let ids: Vec<_> = nodes.iter().map(|n| n.id).collect();
    assert!(!ids.contains(&(old as u64 + 1)) && ids.contains(&4), "{ids:?}");
    assert!(nodes.iter().all(|n| n.voter));

    let hash = cluster.status(leader).await.state_hash;
    for index in cluster.running() {
        cluster.stop(index).await;
    }
    for index in [leader, 3, (0..3).find(|i| ![leader, old].contains(i)).expect("third")] {
        cluster.restart(index).await;
    }
    cluster.assert_equal_states().await;
    let leader = cluster.leader().await;
    assert_eq!(cluster.status(leader).await.state_hash, hash);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_cut_off_does_not_depose_the_leader_when_it_is_back() {
    let cluster = Cluster::start_gated(3).await;
    let leader = cluster.leader().await;
    let mut client = cluster.client(leader);
    let term = cluster.status(leader).await.term;
    let cut_off = (0..3).find(|&index| index != leader).expect("follower");
    let gate = &cluster.gates[&cut_off].open;
    gate.send_replace(false);
    // For several election timeouts it hears nobody, though it can be heard.
    let election_ms = config(1, cluster.listen[0], cluster.root.path()).election_max_ms;
    let end = Instant::now() + Duration::from_millis(4 * election_ms);
    let mut pace = tokio::time::interval(Duration::from_millis(50));
    for number in 0.. {
        create(&mut client, &format!("v{number}"), MIB).await.expect("the others go on");
        if pace.tick().await.into_std() >= end {
            break;
        }
    }
    let behind = cluster.status(cut_off).await;
    assert!(behind.applied < cluster.status(leader).await.applied, "it was not cut off");
    assert_eq!(behind.term, term, "it raised its term");
    gate.send_replace(true);
    cluster.assert_equal_states().await;
    let status = cluster.status(leader).await;
    assert_eq!((status.term, status.leader), (term, Some(leader as u64 + 1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_moves_on_request() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let to = (0..3).find(|&index| index != leader).expect("follower");
    let request = rpc::TransferLeaderRequest { to: to as u64 + 1 };
    until("the new leader", async || {
        let now = cluster.leader().await;
        if now != to {
            // Refused or lost is possible; asking again does no harm.
            let asked = cluster.client(now).transfer_leader(request).await;
            assert!(asked.is_ok() || now != leader, "{asked:?}");
        }
        (now == to).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_folder_in_use_or_of_another_cluster_is_refused() {
    let cluster = Cluster::start(1).await;
    let config = config(1, cluster.listen[1], cluster.root.path());
    let second = MetaNode::start(config.clone()).await.err().expect("refused");
    assert!(matches!(second, MetaError::Store(StoreError::InUse { .. })), "{second}");
    let mut cluster = cluster;
    cluster.stop(0).await;
    let other = MetaConfig { cluster: Some("another".to_owned()), ..config };
    let other = MetaNode::start(other).await.err().expect("refused");
    assert!(matches!(other, MetaError::Store(StoreError::OtherCluster { .. })), "{other}");
    cluster.restart(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_node_stops_and_closes_its_folder() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    assert!(cluster.is_open(leader));
    cluster.nodes[leader] = None;
    until("a closed folder", async || (!cluster.is_open(leader)).then_some(())).await;
    cluster.leader().await;
    cluster.restart(leader).await;
    cluster.assert_equal_states().await;
}

#[test]
fn a_runtime_that_ends_leaves_no_database_open() {
    for round in 0..5 {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let Cluster { root, nodes, .. } = runtime.block_on(Cluster::start(3));
        drop(nodes);
        drop(runtime);
        let open: Vec<_> = (0..3).filter(|&index| is_open(root.path(), index)).collect();
        assert!(open.is_empty(), "open in round {round}: {open:?}");
    }
}

/// A copy of the node's newest snapshot, as an operator would take it.
fn back_up(cluster: &Cluster, index: usize) -> PathBuf {
    let snapshots = cluster.root.path().join(format!("m{}", index + 1)).join("snapshots");
    let all = std::fs::read_dir(snapshots).expect("snapshots");
    let newest = all.map(|entry| entry.expect("entry").path()).max().expect("a snapshot");
    let backup = cluster.root.path().join("backup");
    std::fs::create_dir(&backup).expect("new");
    for file in std::fs::read_dir(newest).expect("snapshot") {
        let file = file.expect("entry");
        std::fs::copy(file.path(), backup.join(file.file_name())).expect("copied");
    }
    backup
}

/// What a server holds according to the records that it has been told.
fn copies_on(server: u64, records: &[rpc::Segment]) -> Vec<rpc::ReportedCopy> {
    let held = records.iter().filter_map(|record| {
        let member = record.members.iter().find(|m| m.server == server)?;
        Some(rpc::ReportedCopy {
            volume: record.volume,
            index: record.index,
            replica: member.replica,
            epoch: record.epoch,
            token: record.token,
            last_epoch: record.epoch,
            last_sequence: 1,
            copying: false,
            record: Some(record.clone()),
        })
    });
    held.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_restored_from_a_backup_goes_beyond_all_that_its_servers_know() {
    let mut cluster = Cluster::start(1).await;
    let mut client = cluster.client(0);
    let mut servers = Vec::new();
    for number in 1..=3 {
        servers.push(FakeServer::start(client.clone(), number, 100 + number).await);
    }
    let volume = create(&mut client, "v", 16 * MIB).await.expect("create");
    client.ensure_segment(segment_of(&volume, 0)).await.expect("ensure");
    let attached = client.attach(exclusive("v", "r1")).await.expect("attach").into_inner();
    for number in 0..45 {
        create(&mut client, &format!("v{number}"), MIB).await.expect("create");
    }
    let snapshot = |cluster: &Cluster| cluster.nodes[0].as_ref().expect("runs").metrics().snapshot;
    until("a snapshot", async || (snapshot(&cluster) > 20).then_some(())).await;
    let backup = back_up(&cluster, 0);

    // All this the backup does not know.
    let taken = rpc::AttachRequest { take_over: true, ..exclusive("v", "r2") };
    let old_session = client.attach(taken).await.expect("attach").into_inner().attachment;
    client.ensure_segment(segment_of(&volume, 5)).await.expect("ensure");
    let list = rpc::ListSegmentsRequest { volume: volume.id, ..Default::default() };
    let records = client.list_segments(list).await.expect("list").into_inner().segments;
    assert_eq!((records.len(), records[0].token), (2, 2));
    let uuid = cluster.status(0).await.cluster;
    servers.iter().for_each(FakeServer::kill);
    cluster.stop(0).await;

    let old = config(1, cluster.listen[0], cluster.root.path());
    let known = restore(&old, &backup, 3).expect_err("an id of the old cluster");
    assert!(matches!(known, RestoreError::KnownNode { node: 1 }), "{known}");
    let new = config(2, cluster.listen[1], cluster.root.path());
    assert_eq!(restore(&new, &backup, 3).expect("restored").cluster, uuid);
    assert!(matches!(restore(&new, &backup, 3), Err(RestoreError::Exists { .. })));
    cluster.restart(1).await;

    let mut client = cluster.client(1);
    let refused = until("a leader", async || {
        let refused = client.clone().attach(exclusive("v", "r3")).await.expect_err("restoring");
        refused.message().contains("restored").then_some(refused)
    })
    .await;
    assert_eq!(refused.code(), Code::Unavailable);
    let early = client.list_segments(list).await.expect_err("restoring");
    assert_eq!(early.code(), Code::Unavailable, "what is not listed could be there");
    for server in 1..=3 {
        let run = 100 + server;
        let beat = rpc::HeartbeatRequest { server, run, ..Default::default() };
        assert!(client.heartbeat(beat).await.expect("beat").into_inner().register);
        let again = rpc::RegisterServerRequest {
            server,
            cluster: uuid.clone(),
            ..registration(server, run)
        };
        let reply = client.register_server(again).await.expect("register").into_inner();
        assert!(reply.report_copies);
        let restoring = cluster.status(1).await.restore.expect("restoring");
        assert_eq!((restoring.servers, restoring.awaited.len() as u64), (3, 4 - server));
        let copies = copies_on(server, &records);
        let told =
            rpc::ReportCopiesRequest { server, run, copies, last: true, ..Default::default() };
        client.report_copies(told).await.expect("report");
    }
    until("the end", async || cluster.status(1).await.restore.is_none().then_some(())).await;

    for number in 1..=3 {
        FakeServer::start(client.clone(), number, 100 + number).await;
    }
    let attach = client.attach(exclusive("v", "r3")).await.expect("attach").into_inner();
    let session = attach.attachment.expect("attachment").session;
    assert!(session > old_session.expect("attachment").session, "no session id is used again");
    assert!(session > attached.attachment.expect("attachment").session);
    assert_eq!(attach.segments.len(), 2, "also the one placed after the backup");
    for (after, before) in attach.segments.iter().zip(&records) {
        assert!(after.epoch > before.epoch && after.token > before.token, "{after:?}");
        assert!(after.revision > before.revision, "servers would ignore it: {after:?}");
        assert_eq!(after.active_epoch, Some(after.epoch));
    }
}
