//! Every change of a replica set is in the audit trail, with who made it and why.

use std::collections::{BTreeMap, BTreeSet};

use tidewater_proto::{
    ids::{Epoch, ReplicaId, RunId, SegmentId, ServerId, VolumeId},
    record::SetChange,
};

use super::restore;
use crate::{
    detector::Liveness,
    repair::{Patience, Planner, World as Seen},
    state::{
        State,
        command::{
            Active, AddLearner, ChangeSet, Command, CreateSegment, LearnerSource, ReportCopies,
        },
        rows::{EventKind, EventRow},
    },
    testing::{World, register, segment, volume},
};

/// What a set is: epoch, primary, and the copies by role.
type Set = (Epoch, ReplicaId, [Vec<ReplicaId>; 3]);

fn sets(state: &State) -> BTreeMap<SegmentId, Set> {
    let volumes = state.volumes.iter().flat_map(|(&id, _)| state.segments_of(id, 0));
    let set = |record: &tidewater_proto::record::SegmentRecord| {
        let roles = [&record.members, &record.learners, &record.former];
        let ids = roles.map(|copies| copies.iter().map(|copy| copy.replica).collect());
        (record.epoch, record.primary, ids)
    };
    volumes.map(|record| (record.segment, set(record))).collect()
}

/// Whether an event of this kind says that sets have changed.
fn tells_of_sets(kind: EventKind) -> bool {
    use EventKind as K;
    match kind {
        K::ClusterRestored
        | K::ServerRestarted
        | K::VolumePurged
        | K::SegmentPlaced
        | K::MemberRemoved
        | K::MemberLost
        | K::MemberPromoted
        | K::PromotionWithdrawn
        | K::PrimaryMoved
        | K::PrimaryReplaced
        | K::LearnerAdded
        | K::CopyRetired => true,
        K::ClusterCreated
        | K::ServerRegistered
        | K::ServerCordoned
        | K::ServerUncordoned
        | K::ServerRemoved
        | K::DeviceChanged
        | K::VolumeCreated
        | K::VolumeResized
        | K::VolumeRenamed
        | K::VolumeDeleted
        | K::VolumeRestored
        | K::Attached
        | K::Detached => false,
    }
}

const ALL: [EventKind; 12] = [
    EventKind::ClusterRestored,
    EventKind::ServerRestarted,
    EventKind::VolumePurged,
    EventKind::SegmentPlaced,
    EventKind::MemberRemoved,
    EventKind::MemberLost,
    EventKind::MemberPromoted,
    EventKind::PromotionWithdrawn,
    EventKind::PrimaryMoved,
    EventKind::PrimaryReplaced,
    EventKind::LearnerAdded,
    EventKind::CopyRetired,
];

/// A world in which every command that changes a set must say so.
struct Audited {
    world: World,
    /// Kinds of events that told of a set, and who was named.
    told: BTreeSet<(&'static str, String)>,
}

impl Audited {
    fn events(&self) -> Vec<EventRow> {
        self.world.state.events.iter().map(|(_, row)| row.clone()).collect()
    }

    fn run(&mut self, command: &Command) {
        let before = (sets(&self.world.state), self.events().len());
        self.world.run(command.clone()).unwrap_or_else(|why| panic!("{command:?}: {why}"));
        if sets(&self.world.state) == before.0 {
            return;
        }
        let new: Vec<_> = self.events().split_off(before.1);
        let told: Vec<_> = new.into_iter().filter(|event| tells_of_sets(event.kind)).collect();
        assert!(!told.is_empty(), "no event tells of {command:?}");
        for event in told {
            let named = !event.actor.is_empty() && !event.reason.is_empty();
            assert!(named, "{command:?} leaves actor or reason out: {event:?}");
            self.told.insert((event.kind.name(), event.actor));
        }
    }

    fn change(&mut self, change: SetChange) {
        let record = self.world.record(0);
        self.run(&Command::ChangeSet(ChangeSet {
            segment: record.segment,
            expected_epoch: record.epoch,
            change,
            proposer: Some(record.primary_member().server),
            actor: "server-1".to_owned(),
            reason: "silent".to_owned(),
        }));
    }

    fn learn(&mut self, source: LearnerSource) {
        let (expected_epoch, reason) = (self.world.record(0).epoch, "member is gone".to_owned());
        let args = AddLearner { segment: segment(0), expected_epoch, source, reason };
        self.run(&Command::AddLearner(args));
    }

    fn activate(&mut self) {
        let record = self.world.record(0);
        let (segment, epoch, token) = (record.segment, record.epoch, record.token);
        let reports = vec![Active { segment, epoch, token }];
        let server = record.primary_member().server;
        self.run(&Command::ReportActive { server, reports });
    }

    fn place(&mut self, name: &str, id: u64) {
        self.run(&Command::CreateVolume(volume(name, 3)));
        let segment = SegmentId { volume: VolumeId(id), index: 0 };
        let servers = [1, 2, 3].map(ServerId).to_vec();
        self.run(&Command::CreateSegment(CreateSegment { segment, servers }));
    }

    /// What the planner proposes when a volume has been in the trash for `ms`.
    fn plan_after(&mut self, planner: &mut Planner, ms: u64) {
        let alive = |(&id, _): (&ServerId, _)| (id, Liveness::Alive);
        let servers = self.world.state.servers.iter().map(alive).collect();
        let patience = Patience { dead_after: 1_000, repair_delay: 30_000, activation: 5_000 };
        let (state, spares) = (&self.world.state, &[][..]);
        let seen = Seen { state, servers: &servers, spares, now: ms, patience };
        for command in planner.plan(&seen) {
            self.run(&command);
        }
    }
}

#[test]
fn every_kind_of_set_change_carries_actor_and_reason() {
    let mut audited = Audited { world: World::new(5), told: BTreeSet::new() };
    let on = |audited: &Audited, server| {
        audited.world.record(0).copy_on(ServerId(server)).expect("has a copy").replica
    };
    audited.place("v", 1);
    audited.activate();
    let third = on(&audited, 3);
    audited.change(SetChange::Remove { replica: third });
    audited.learn(LearnerSource::Former(third));
    audited.change(SetChange::Promote { replica: third });
    audited.change(SetChange::Withdraw);
    let second = on(&audited, 2);
    audited.change(SetChange::Handover { to: second });
    audited.change(SetChange::Lost { replica: third });
    audited.learn(LearnerSource::Spare(ServerId(4)));
    let fourth = on(&audited, 4);
    audited.change(SetChange::Promote { replica: fourth });
    audited.change(SetChange::Replace { to: fourth });
    let expected_epoch = audited.world.record(0).epoch;
    let retire = |replica| Command::Retire {
        segment: segment(0),
        replica,
        expected_epoch,
        reason: "set is full".to_owned(),
    };
    audited.run(&retire(second));
    audited.run(&Command::RegisterServer(register(4, 99)));

    // A purge by an operator, and one because the time is over.
    for (name, id) in [("asked", 2), ("over", 3)] {
        audited.place(name, id);
        audited.run(&Command::DeleteVolume { name: name.to_owned(), keep_ms: 1_000 });
    }
    audited.run(&Command::PurgeVolume { id: VolumeId(2), deletion: None });
    let mut planner = Planner::default();
    audited.plan_after(&mut planner, 0);
    audited.plan_after(&mut planner, 1_000);
    for actor in ["operator", "repair"] {
        let told = audited.told.contains(&(EventKind::VolumePurged.name(), actor.to_owned()));
        assert!(told, "a purge by {actor} is not told: {:?}", audited.told);
    }

    restore::begin(&mut audited.world.state, 5);
    for server in 1..=5 {
        let run = RunId(if server == 4 { 99 } else { server });
        let (server, copies, servers) = (ServerId(server), Vec::new(), Vec::new());
        audited.run(&Command::ReportCopies(ReportCopies {
            server,
            run,
            copies,
            servers,
            last: true,
        }));
    }
    audited.run(&Command::FinishRestore { without: Vec::new() });
    for kind in ALL {
        let told = audited.told.iter().any(|(name, _)| *name == kind.name());
        assert!(told && tells_of_sets(kind), "no set change was made that {kind:?} tells of");
    }
}
