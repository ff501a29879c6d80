//! Servers of one shard each, their disks, and the connections between them, all in memory.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::BytesMut;
use tidewater_proto::{
    entry::Payload,
    frame::{self, Frame},
    geometry::{CHUNK_BYTES, Extent},
    ids::{
        Epoch, OpId, ReplicaId, Revision, RunId, SegmentId, ServerId, SessionId, Token, VolumeId,
    },
    peer::{Action, Reply, Request},
    record::{Durability, Member, SegmentRecord, ServerAddress, SetChange},
    rpc,
};
use tokio::sync::mpsc;

use crate::{
    SimClock,
    replica::Timing,
    shard::{
        Hearing, Outlet, PeerShard, REPORTS_MAX, RebuildRate, Shard, ShardCommand, ShardCounters,
        ShardParts, ShardReport, SimOutlet,
    },
    store::{
        Crew, DeviceConfig, Ground, Identity, LimitsConfig, ShardStore, Store, StoreConfig,
        catalog::SimCatalog,
        device::Tier,
        disk::{self, SimDisk},
        journal::Shape,
    },
};

pub(super) const SEGMENT_BYTES: u64 = 64 * CHUNK_BYTES;
pub(super) const SEGMENT: SegmentId = SegmentId { volume: VolumeId(1), index: 0 };
const CLUSTER: &str = "simulated";
/// Nobody connects by address here.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

/// What is left of a server that is off.
struct Disks {
    journal: SimDisk,
    device: SimDisk,
    catalog: Arc<SimCatalog>,
    capacity_bytes: u64,
}

struct Server {
    shard: Option<Shard>,
    reports: Option<mpsc::Receiver<ShardReport>>,
    disks: Disks,
    run: RunId,
}

/// Frames from one server to another.
struct Pipe {
    from: ServerId,
    to: ServerId,
    outlet: SimOutlet,
    connection: u64,
}

pub(super) struct Net {
    time: Rc<SimClock>,
    servers: BTreeMap<ServerId, Server>,
    pipes: Vec<Pipe>,
    pub(super) record: SegmentRecord,
    pub(super) proposals: Vec<SetChange>,
    /// Copies that servers have reported as deleted.
    pub(super) deleted: Vec<(SegmentId, ReplicaId)>,
    client: SimOutlet,
    requests: u64,
    /// Every frame delivered, as bytes.
    pub(super) history: Vec<u8>,
}

pub(super) fn extent(offset: u64, len: u64) -> Extent {
    Extent::new(offset, len, SEGMENT_BYTES).expect("valid")
}

pub(super) fn member(server: u64) -> Member {
    Member { replica: ReplicaId(server), server: ServerId(server), fresh: true }
}

impl Disks {
    fn new(capacity_bytes: u64) -> Self {
        let clock = disk::SimClock::new(1);
        Self {
            journal: SimDisk::new(&clock, "journal"),
            device: SimDisk::new(&clock, "device"),
            catalog: Arc::new(SimCatalog::new(&clock)),
            capacity_bytes,
        }
    }

    fn store(&self, server: ServerId) -> Arc<Store> {
        let mut config = StoreConfig::new("simulated", 1);
        config.overlay_bytes = 8 << 20;
        config.devices.push(DeviceConfig {
            name: "d1".to_owned(),
            path: "simulated".into(),
            tier: Tier::Nvme,
            capacity_bytes: self.capacity_bytes,
            limits: LimitsConfig::default(),
        });
        let ground = Ground {
            journal: Arc::new(self.journal.clone()),
            devices: vec![Arc::new(self.device.clone())],
            catalog: self.catalog.clone(),
            crew: Crew::Inline,
            new_store: [server.0 as u8; 16],
            shape: Shape { files: 4, file_bytes: 16 << 20 },
        };
        let identity = Identity { cluster: CLUSTER.to_owned(), server };
        Store::open_on(config, &identity, ground).expect("opens")
    }
}

impl Net {
    /// Servers with devices of so many bytes; the first ones, all but `spares`, are members.
    pub(super) fn new(capacities: &[u64], spares: usize) -> Self {
        let members = capacities.len() - spares;
        let record = SegmentRecord {
            segment: SEGMENT,
            revision: Revision(1),
            epoch: Epoch(1),
            token: Token(1),
            primary: ReplicaId(1),
            primary_run: RunId(1_001),
            members: (1..=members as u64).map(member).collect(),
            learners: Vec::new(),
            former: Vec::new(),
            retired: Vec::new(),
            floor: 1,
            replicas: members as u8,
            durability: Durability::Sync,
            active: None,
        };
        let mut net = Self {
            time: Rc::default(),
            servers: BTreeMap::new(),
            pipes: Vec::new(),
            record,
            proposals: Vec::new(),
            deleted: Vec::new(),
            client: SimOutlet::default(),
            requests: 0,
            history: Vec::new(),
        };
        for (server, capacity) in (1..).map(ServerId).zip(capacities) {
            let disks = Disks::new(*capacity);
            let run = RunId(server.0 * 1_000);
            net.servers.insert(server, Server { shard: None, reports: None, disks, run });
        }
        for server in net.servers.keys().copied().collect::<Vec<_>>() {
            net.start(server);
        }
        net.tell_record();
        net.run_for(Duration::from_millis(500));
        net
    }

    /// Starts a server on what its disks hold.
    pub(super) fn start(&mut self, id: ServerId) {
        let addresses = self.servers.keys().map(|&server| ServerAddress {
            server,
            control: NOWHERE,
            shards: vec![NOWHERE],
        });
        let addresses = addresses.collect();
        let server = self.servers.get_mut(&id).expect("known");
        server.run.0 += 1;
        let store = server.disks.store(id);
        let (store, recovered) = ShardStore::open(&store, 0).expect("opens");
        let (to_server, reports) = mpsc::channel(REPORTS_MAX);
        let parts = ShardParts {
            index: 0,
            shards: 1,
            server: id,
            run: server.run,
            cluster: CLUSTER.to_owned(),
            segment_bytes: SEGMENT_BYTES,
            timing: Timing::default(),
            rebuild: RebuildRate::default(),
            store,
            reports: to_server,
            hearing: Arc::new(Hearing::default()),
            counters: Arc::new(ShardCounters::default()),
        };
        let mut shard = Shard::new(parts, Box::new(Rc::clone(&self.time)), recovered);
        shard.command(ShardCommand::Servers(addresses));
        server.shard = Some(shard);
        server.reports = Some(reports);
    }

    /// Takes a server off the net at once.
    pub(super) fn stop(&mut self, id: ServerId) {
        self.servers.get_mut(&id).expect("known").shard = None;
        self.pipes.retain(|pipe| pipe.from != id && pipe.to != id);
        for server in self.servers.values_mut() {
            if let Some(shard) = &mut server.shard {
                shard.link_down(PeerShard { server: id, shard: 0 }, true);
            }
        }
    }

    /// A server that is off loses all that it stored.
    pub(super) fn forget(&mut self, id: ServerId) {
        let server = self.servers.get_mut(&id).expect("known");
        assert!(server.shard.is_none(), "it is off");
        server.disks = Disks::new(server.disks.capacity_bytes);
    }

    pub(super) fn shard(&mut self, id: u64) -> &mut Shard {
        self.servers.get_mut(&ServerId(id)).and_then(|s| s.shard.as_mut()).expect("runs")
    }

    /// Raft commits a change of the record, and every server hears of it.
    pub(super) fn commit(&mut self, change: impl FnOnce(&mut SegmentRecord)) {
        self.record.revision.0 += 1;
        change(&mut self.record);
        let primary = self.record.member(self.record.primary).expect("a member").server;
        self.record.primary_run = self.servers[&primary].run;
        self.tell_record();
    }

    fn tell_record(&mut self) {
        for server in self.servers.values_mut() {
            if let Some(shard) = &mut server.shard {
                shard.command(ShardCommand::Record(self.record.clone()));
            }
        }
    }

    /// Makes the connections that are wanted and not there.
    fn connect(&mut self) {
        let mut wanted = Vec::new();
        for (&from, server) in &mut self.servers {
            let Some(shard) = &mut server.shard else { continue };
            shard.wanted_links();
            let others = self.record.copies().map(|m| m.server).filter(|to| *to != from);
            wanted.extend(others.map(|to| (from, to)));
        }
        for (from, to) in wanted {
            let exists = self.pipes.iter().any(|p| (p.from, p.to) == (from, to));
            let peer = |server| PeerShard { server, shard: 0 };
            let Some(far) = self.servers.get_mut(&to).and_then(|s| s.shard.as_mut()) else {
                continue;
            };
            if exists {
                continue;
            }
            let connection = far.peer_connected(peer(from));
            let outlet = SimOutlet::default();
            let near: Rc<dyn Outlet> = Rc::new(outlet.clone());
            self.pipes.push(Pipe { from, to, outlet, connection });
            self.shard(from.0).link_up(peer(to), near);
        }
    }

    /// Delivers what is on the way; whether there was anything.
    fn turn(&mut self) -> bool {
        self.connect();
        let mut frames = Vec::new();
        for pipe in &self.pipes {
            let peer = PeerShard { server: pipe.from, shard: 0 };
            while let Some(frame) = pipe.outlet.take() {
                frames.push((pipe.to, peer, pipe.connection, frame));
            }
        }
        let busy = !frames.is_empty();
        for (to, peer, connection, frame) in frames {
            let mut head = BytesMut::new();
            let payload = frame::encode(&frame, &mut head).unwrap_or_default();
            self.history.extend_from_slice(&head);
            self.history.extend_from_slice(&payload);
            assert!(self.shard(to.0).peer_frame(peer, connection, frame), "the connection is kept");
        }
        for server in self.servers.values_mut() {
            if let Some(shard) = &mut server.shard {
                shard.poll_store();
                shard.end_turn();
            }
        }
        busy
    }

    /// Until nothing is on the way.
    pub(super) fn settle(&mut self) {
        let mut idle = 0;
        for _ in 0..100_000 {
            // What a poll finished may have frames follow in the turn after.
            idle = if self.turn() { 0 } else { idle + 1 };
            if idle == 3 {
                self.take_reports();
                return;
            }
        }
        panic!("the net does not come to rest");
    }

    fn take_reports(&mut self) {
        for server in self.servers.values_mut() {
            let Some(reports) = &mut server.reports else { continue };
            while let Ok(report) = reports.try_recv() {
                match report {
                    ShardReport::Propose { change, .. } => self.proposals.push(change),
                    ShardReport::Active { epoch, token, .. } => {
                        self.record.active = Some((epoch, token));
                    }
                    ShardReport::Deleted { segment, replica } => {
                        self.deleted.push((segment, replica));
                    }
                    ShardReport::Failed => panic!("a store failed"),
                }
            }
        }
    }

    pub(super) fn run_for(&mut self, duration: Duration) {
        let tick = Duration::from_millis(25);
        for _ in 0..duration.as_millis() / tick.as_millis() {
            self.time.advance(tick);
            for server in self.servers.values_mut() {
                if let Some(shard) = &mut server.shard {
                    shard.tick();
                }
            }
            self.settle();
        }
    }

    pub(super) fn await_proposal(&mut self, wanted: SetChange) {
        for _ in 0..400 {
            if self.proposals.contains(&wanted) {
                return;
            }
            self.run_for(Duration::from_millis(50));
        }
        panic!("{wanted:?} is not proposed, but {:?}", self.proposals);
    }

    /// A client asks the primary, and waits for the answer.
    pub(super) fn ask(&mut self, action: Action<Payload>) -> Reply {
        self.requests += 1;
        let number = self.requests;
        let request = Request {
            segment: SEGMENT,
            epoch: self.record.epoch,
            token: self.record.token,
            op: OpId { session: SessionId(1), number },
            lowest_open: number,
            action,
        };
        let primary = self.record.member(self.record.primary).expect("a member").server;
        let outlet = Rc::new(self.client.clone());
        let shard = self.shard(primary.0);
        let client = shard.client_connected(&rpc::HelloClient::default(), outlet);
        shard.client_frame(&client, Frame::Request { id: number, request });
        shard.client_gone(&client);
        for _ in 0..200 {
            self.settle();
            match self.client.take() {
                Some(Frame::Reply { id, reply }) if id == number => return reply,
                Some(other) => panic!("another frame: {other:?}"),
                None => self.run_for(Duration::from_millis(25)),
            }
        }
        panic!("no answer to {number}");
    }

    pub(super) fn write(&mut self, extent: Extent, byte: u8) -> Reply {
        let bytes = vec![byte; extent.len() as usize];
        self.ask(Action::Write { extent, data: Payload::new(extent, bytes.into()) })
    }

    pub(super) fn read(&mut self, extent: Extent) -> Vec<u8> {
        match self.ask(Action::Read { extent }) {
            Reply::Data(payload) => payload.data.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    /// Brings what is applied at a server to its slots.
    pub(super) fn destage(&mut self, id: u64) {
        self.shard(id).freeze();
        self.settle();
    }

    /// What a server's copy holds, whoever leads.
    pub(super) fn content(&mut self, id: u64, extent: Extent) -> Vec<u8> {
        let shard = self.shard(id);
        let payload = shard.store.read(ReplicaId(id), extent, 0).unwrap_or_else(|| {
            let mut out = Vec::new();
            shard.store.poll(&mut out);
            let read = out.into_iter().find_map(|completion| match completion {
                crate::store::Completion::Read { tag: 0, result } => Some(result),
                _ => None,
            });
            read.expect("reads are done at once").expect("readable")
        });
        payload.verify(extent).expect("sums match");
        payload.data.to_vec()
    }
}
