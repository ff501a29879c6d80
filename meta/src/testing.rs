//! Records and states for the crate's tests.

use tidewater_proto::{
    ids::{Epoch, ReplicaId, Revision, RunId, SegmentId, ServerId, Token, VolumeId},
    record::{Durability, Member, SegmentRecord},
};

use crate::state::{
    State,
    apply::apply,
    command::{Command, CreateVolume, Proposal, RegisterServer},
    outcome::Outcome,
    rows::{Device, Tier, Topology},
};

pub(crate) const MIB: u64 = 1 << 20;

/// An active record whose replicas have the ids of their servers; the first leads.
pub(crate) fn record(servers: &[u64]) -> SegmentRecord {
    let members: Vec<_> = servers.iter().map(|&id| member(id)).collect();
    SegmentRecord {
        segment: segment(0),
        revision: Revision(1),
        epoch: Epoch(1),
        token: Token(0),
        primary: members[0].replica,
        primary_run: RunId(servers[0]),
        replicas: members.len() as u8,
        floor: if members.len() >= 3 { 2 } else { 1 },
        members,
        learners: Vec::new(),
        former: Vec::new(),
        retired: Vec::new(),
        durability: Durability::Sync,
        active: Some((Epoch(1), Token(0))),
    }
}

pub(crate) fn member(id: u64) -> Member {
    Member { replica: ReplicaId(id), server: ServerId(id), fresh: false }
}

/// Segment of the first volume.
pub(crate) fn segment(index: u32) -> SegmentId {
    SegmentId { volume: VolumeId(1), index }
}

/// A first registration, or a restart with another `run`.
pub(crate) fn register(id: u64, run: u64) -> RegisterServer {
    RegisterServer {
        server: None,
        store: format!("store-{id}"),
        run: RunId(run),
        topology: Topology { host: format!("host-{id}"), ..Topology::default() },
        control: ([127, 0, 0, 1], 7000 + id as u16).into(),
        shards: vec![([127, 0, 0, 1], 8000 + id as u16).into()],
        devices: vec![Device {
            name: "d".to_owned(),
            tier: Tier::Ssd,
            capacity_bytes: 1 << 40,
            used_bytes: 0,
            failed: false,
        }],
    }
}

pub(crate) fn volume(name: &str, replicas: u8) -> CreateVolume {
    CreateVolume {
        name: name.to_owned(),
        size_bytes: 64 * MIB,
        replicas,
        durability: Durability::Sync,
    }
}

/// A state and the index of its last command.
pub(crate) struct World {
    pub(crate) state: State,
    pub(crate) revision: u64,
}

impl World {
    /// An initialised cluster with 1 MiB segments and servers 1 to `servers`.
    pub(crate) fn new(servers: u64) -> Self {
        let mut world = Self { state: State::default(), revision: 0 };
        let init = Command::InitCluster { uuid: "test".to_owned(), segment_bytes: MIB };
        world.run(init).expect("init");
        for id in 1..=servers {
            world.run(Command::RegisterServer(register(id, id))).expect("register");
        }
        world
    }

    pub(crate) fn run(&mut self, command: Command) -> Outcome {
        self.revision += 1;
        let proposal = Proposal { now_ms: self.revision, command };
        apply(&mut self.state, Revision(self.revision), &proposal)
    }

    pub(crate) fn record(&self, index: u32) -> SegmentRecord {
        self.state.segment(segment(index)).expect("placed").as_ref().clone()
    }
}
