//! The metadata cluster without Raft, clock and network: its state and the pure parts that decide, behind
//! functions that do what the edges do with them. For simulators, which bring the rest.
//!
//! A [`Command`] becomes part of the state with [`SimMeta::apply`], in the order that whoever drives it
//! chooses; all else are questions, and what the leader alone knows.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use tidewater_proto::{
    ids::{Epoch, ReplicaId, Revision, RunId, SegmentId, ServerId, SessionId, Token, VolumeId},
    record::{Durability, SegmentRecord, ServerAddress, SetChange},
};

use crate::{
    detector::{Beat, Detector, Millis},
    fleet, placement,
    repair::{Patience, Planner, World},
    silence,
    state::{
        State,
        apply::{apply, segments::is_news},
        command::{
            Active, Attach, ChangeSet, Command as Entry, CreateSegment, CreateVolume, Proposal,
            RegisterServer,
        },
        outcome::{Applied, Rejected},
        rows::{AttachMode, AttachState, Device, Holder, Tier, Topology},
    },
};

/// How long the planner waits for what, milliseconds; as in [`MetaConfig`](crate::MetaConfig).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waits {
    /// Silence after which a server is dead.
    pub server_dead_after_ms: u64,
    /// For a former member to come back, before a spare takes its place.
    pub repair_delay_ms: u64,
    /// For a live primary to activate its epoch.
    pub activation_ms: u64,
}

/// A command that may become part of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command(Entry);

/// What applying a command came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// A server registered.
    Server(ServerId),
    /// A volume was made or changed.
    Volume(VolumeId),
    /// A session began.
    Session(SessionId),
    /// Anything else.
    Other,
}

/// The command changed nothing.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Refused(#[from] Rejected);

/// One server's start.
#[derive(Clone, Debug)]
pub struct Registration {
    /// What it believes it is; none on its first start.
    pub server: Option<ServerId>,
    /// Identity of its data folder.
    pub store: String,
    /// Process run.
    pub run: RunId,
    /// Where it listens.
    pub address: SocketAddr,
    /// Bytes of its only device.
    pub capacity_bytes: u64,
}

/// Replicated state with the leader's memory beside it.
#[derive(Debug)]
pub struct SimMeta {
    state: State,
    revision: Revision,
    detector: Detector,
    planner: Planner,
    /// Leaders so far.
    term: u64,
    waits: Waits,
}

fn device(capacity_bytes: u64) -> Device {
    let (name, used_bytes) = ("d1".to_owned(), 0);
    Device { name, tier: Tier::Nvme, capacity_bytes, used_bytes, failed: false }
}

impl Command {
    /// A server's start, told once or again.
    pub fn register(server: &Registration) -> Self {
        Self(Entry::RegisterServer(RegisterServer {
            server: server.server,
            store: server.store.clone(),
            run: server.run,
            topology: Topology { host: server.store.clone(), ..Topology::default() },
            control: server.address,
            shards: vec![server.address],
            devices: vec![device(server.capacity_bytes)],
        }))
    }

    /// A new volume.
    pub fn create_volume(name: &str, size_bytes: u64, replicas: u8) -> Self {
        let (name, durability) = (name.to_owned(), Durability::Sync);
        Self(Entry::CreateVolume(CreateVolume { name, size_bytes, replicas, durability }))
    }

    /// A new attachment of a volume, exclusive and taking over, or shared. `request` is the client's own
    /// name for it.
    pub fn attach(volume: &str, exclusive: bool, request: String) -> Self {
        let mode = if exclusive { AttachMode::Exclusive } else { AttachMode::Shared };
        Self(Entry::Attach(Attach {
            volume: volume.to_owned(),
            mode,
            holder: Holder::default(),
            take_over: exclusive,
            request,
        }))
    }

    /// The end of an attachment; a forced one raises the token.
    pub fn detach(session: SessionId, force: bool) -> Self {
        Self(Entry::Detach { session, force })
    }

    /// Copies that a server has deleted.
    pub fn report_deleted(server: ServerId, copies: Vec<(SegmentId, ReplicaId)>) -> Self {
        Self(Entry::ReportDeleted { server, copies })
    }
}

impl SimMeta {
    /// A cluster that has just been initialised, led from `now` on.
    pub fn new(cluster: &str, segment_bytes: u64, waits: Waits, now: Millis) -> Self {
        let mut meta = Self {
            state: State::default(),
            revision: Revision(0),
            detector: Detector::new(waits.server_dead_after_ms, now),
            planner: Planner::default(),
            term: 0,
            waits,
        };
        let uuid = cluster.to_owned();
        meta.apply(now, &Command(Entry::InitCluster { uuid, segment_bytes })).expect("the first");
        meta
    }

    /// Another node leads: what the last leader remembered is gone.
    pub fn lead(&mut self, now: Millis) {
        self.planner = Planner::default();
        self.term += 1;
        self.detector.lead(self.term, now);
    }

    /// The next entry of the log is committed.
    ///
    /// # Errors
    ///
    /// [`Refused`], and nothing has changed.
    pub fn apply(&mut self, now_ms: u64, command: &Command) -> Result<Done, Refused> {
        self.revision.0 += 1;
        let proposal = Proposal { now_ms, command: command.0.clone() };
        let applied = apply(&mut self.state, self.revision, &proposal);
        // Nothing stores the rows, and watches go by the revisions of the records.
        self.state.drain_changes();
        self.state.drain_touched();
        Ok(match applied? {
            Applied::Server(server) => Done::Server(server),
            Applied::Volume(volume) => Done::Volume(volume),
            Applied::Session(session) => Done::Session(session),
            Applied::Done | Applied::Unchanged => Done::Other,
        })
    }

    /// A server was registered by this leader.
    pub fn registered(&mut self, server: ServerId, run: RunId, now: Millis) {
        self.detector.heard(server, now, Beat { run, ..Beat::default() });
    }

    /// A server says that it is alive and whom it hears; false if it is to register.
    pub fn heartbeat(
        &mut self,
        server: ServerId,
        run: RunId,
        hears: BTreeSet<ServerId>,
        now: Millis,
    ) -> bool {
        let known = self.state.servers.get(&server).is_some_and(|row| row.run == run);
        if known {
            let devices = Vec::new();
            self.detector.heard(server, now, Beat { run, devices, hears, load: 0.0 });
        }
        known
    }

    /// What the planner wants to be proposed now.
    pub fn plan(&mut self, now: Millis) -> Vec<Command> {
        self.detector.tick(now);
        let servers = fleet::liveness(&self.state, &self.detector, now);
        let spares = if self.state.index.unsettled.is_empty() {
            Vec::new()
        } else {
            fleet::candidates(&self.state, &self.detector, now)
        };
        let patience = Patience {
            dead_after: self.waits.server_dead_after_ms,
            repair_delay: self.waits.repair_delay_ms,
            activation: self.waits.activation_ms,
        };
        let (state, servers, spares) = (&self.state, &servers, spares.as_slice());
        let world = World { state, servers, spares, now, patience };
        self.planner.plan(&world).into_iter().map(Command).collect()
    }

    /// The first placement of a segment; none where there is no room for it.
    pub fn place(&self, segment: SegmentId, now: Millis) -> Option<Command> {
        let volume = self.state.volumes.get(&segment.volume)?;
        let candidates = fleet::candidates(&self.state, &self.detector, now);
        let need_bytes = placement::need_bytes(&self.state);
        let servers = placement::pick(&candidates, volume.replicas.into(), need_bytes).ok()?;
        Some(Command(Entry::CreateSegment(CreateSegment { segment, servers })))
    }

    /// What to commit where a primary asks for a change of its set.
    pub fn change_set(
        &self,
        segment: SegmentId,
        expected_epoch: Epoch,
        change: SetChange,
        proposer: ServerId,
        now: Millis,
    ) -> Option<Command> {
        let record = self.state.segment(segment)?;
        let change = match change {
            SetChange::Remove { replica } => {
                let hearing = fleet::hearing(&self.state, &self.detector, now);
                silence::judge(record, replica, &hearing)
            }
            other => other,
        };
        Some(Command(Entry::ChangeSet(ChangeSet {
            segment,
            expected_epoch,
            change,
            proposer: Some(proposer),
            actor: String::new(),
            reason: String::new(),
        })))
    }

    /// An operator's wish that another member leads; none if it cannot or does.
    pub fn move_primary(&self, segment: SegmentId, to: ServerId) -> Option<Command> {
        let record = self.state.segment(segment)?;
        let member = record.members.iter().find(|m| m.server == to)?;
        (member.replica != record.primary).then(|| {
            Command(Entry::ChangeSet(ChangeSet {
                segment,
                expected_epoch: record.epoch,
                change: SetChange::Handover { to: member.replica },
                proposer: None,
                actor: "operator".to_owned(),
                reason: String::new(),
            }))
        })
    }

    /// A primary's report that it is active, if it says anything new.
    pub fn report_active(
        &self,
        server: ServerId,
        segment: SegmentId,
        epoch: Epoch,
        token: Token,
    ) -> Option<Command> {
        let report = Active { segment, epoch, token };
        let news = is_news(self.state.segment(segment)?, server, &report);
        news.then(|| Command(Entry::ReportActive { server, reports: vec![report] }))
    }

    /// A segment's record.
    pub fn record(&self, segment: SegmentId) -> Option<&Arc<SegmentRecord>> {
        self.state.segment(segment)
    }

    /// The records of a volume.
    pub fn records(&self, volume: VolumeId) -> impl Iterator<Item = &Arc<SegmentRecord>> {
        self.state.segments_of(volume, 0)
    }

    /// An attachment's token, and whether every primary has acknowledged it; none once it has ended.
    pub fn attachment(&self, session: SessionId) -> Option<(Token, bool)> {
        let row = self.state.attachments.get(&session)?;
        Some((row.token, row.state == AttachState::Ready))
    }

    /// Where the servers listen.
    pub fn addresses(&self) -> Vec<ServerAddress> {
        self.state.servers.iter().map(|(_, row)| row.address.clone()).collect()
    }

    /// Whether every segment is active with all its members, and nothing is left over.
    pub fn is_settled(&self) -> bool {
        self.state.index.unsettled.is_empty() && self.state.index.fencing.is_empty()
    }
}
