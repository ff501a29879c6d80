//! The planner's table, and that its plans end in repaired segments.

use tidewater_proto::ids::{ReplicaId, Revision};

use super::*;
use crate::{
    state::{
        apply::apply,
        command::{Active, Attach, CreateSegment, Proposal},
        outcome::Rejected,
        rows::{AttachMode, AttachState, Holder, Topology},
    },
    testing::{World as Log, member, record, register, segment, volume},
};

const PATIENCE: Patience = Patience { dead_after: 1_000, repair_delay: 30_000, activation: 5_000 };
const NOW: Millis = 100_000;

/// Servers 1 to 6, those in `dead` for so many milliseconds.
fn servers(dead: &[(u64, Millis)]) -> BTreeMap<ServerId, Liveness> {
    let mut all: BTreeMap<_, _> = (1..=6).map(|id| (ServerId(id), Liveness::Alive)).collect();
    for &(id, ago) in dead {
        all.insert(ServerId(id), Liveness::Dead { since: NOW - ago });
    }
    all
}

fn spares(servers: &BTreeMap<ServerId, Liveness>) -> Vec<Candidate> {
    let alive = servers.iter().filter(|(_, liveness)| **liveness == Liveness::Alive);
    alive
        .map(|(&server, _)| Candidate {
            server,
            topology: Topology { host: format!("host-{}", server.0), ..Topology::default() },
            free_bytes: 1 << 40,
            used_percent: 0,
            copies: CopyCount::default(),
            load_percent: 0,
        })
        .collect()
}

/// Plans for one record in a cluster of six servers.
fn plan(record: &SegmentRecord, dead: &[(u64, Millis)], stuck: bool) -> Vec<Command> {
    let mut log = Log::new(6);
    log.state.put_segment(record.clone());
    let servers = servers(dead);
    let spares = spares(&servers);
    let state = &log.state;
    let world = World { state, servers: &servers, spares: &spares, now: NOW, patience: PATIENCE };
    let mut planner = Planner::default();
    if stuck {
        let since = NOW - PATIENCE.activation;
        planner.waiting.insert(record.segment, (record.epoch, record.token, since));
    }
    planner.plan(&world)
}

fn changes(commands: &[Command]) -> Vec<SetChange> {
    let change = |c: &Command| match c {
        Command::ChangeSet(args) => Some(args.change),
        _ => None,
    };
    commands.iter().filter_map(change).collect()
}

fn learners(commands: &[Command]) -> Vec<LearnerSource> {
    let source = |c: &Command| match c {
        Command::AddLearner(args) => Some(args.source),
        _ => None,
    };
    commands.iter().filter_map(source).collect()
}

/// Members 1 (primary) and 2; 3 was removed.
fn short() -> SegmentRecord {
    SegmentRecord { replicas: 3, floor: 2, former: vec![member(3)], ..record(&[1, 2]) }
}

#[test]
fn a_settled_segment_needs_nothing() {
    assert_eq!(plan(&record(&[1, 2, 3]), &[], false), []);
    assert_eq!(plan(&record(&[1, 2, 3]), &[(4, 90_000)], false), []);
}

#[test]
fn a_dead_primary_is_replaced_by_a_live_member() {
    let to = |id| ReplicaId(id);
    let three = record(&[1, 2, 3]);
    let two = short();
    for (case, record, dead, expected) in [
        ("primary dead", &three, vec![(1, 1_000)], vec![SetChange::Replace { to: to(2) }]),
        (
            "and one member",
            &three,
            vec![(1, 1_000), (2, 1_000)],
            vec![SetChange::Replace { to: to(3) }],
        ),
        ("all dead", &three, vec![(1, 1_000), (2, 1_000), (3, 1_000)], vec![]),
        ("at the floor", &two, vec![(1, 1_000)], vec![SetChange::Handover { to: to(2) }]),
    ] {
        assert_eq!(changes(&plan(record, &dead, false)), expected, "{case}");
    }
}

#[test]
fn a_live_primary_that_does_not_activate_hands_over_but_stays_a_member() {
    let record = SegmentRecord { active: None, ..record(&[1, 2, 3]) };
    assert_eq!(plan(&record, &[], false), []);
    let handover = SetChange::Handover { to: ReplicaId(2) };
    assert_eq!(changes(&plan(&record, &[], true)), [handover]);
}

#[test]
fn waiting_starts_again_with_each_epoch() {
    let mut log = Log::new(6);
    let record = SegmentRecord { active: None, ..record(&[1, 2, 3]) };
    let mut planner = Planner::default();
    let servers = servers(&[]);
    let mut at = |epoch: u64, now| {
        log.state.put_segment(SegmentRecord { epoch: Epoch(epoch), ..record.clone() });
        let (state, spares) = (&log.state, &[][..]);
        let world = World { state, servers: &servers, spares, now, patience: PATIENCE };
        planner.plan(&world).len()
    };
    assert_eq!([at(1, 0), at(1, 4_999), at(1, 5_000)], [0, 0, 1]);
    assert_eq!([at(2, 5_000), at(2, 9_999), at(2, 10_000)], [0, 0, 1]);
}

#[test]
fn a_dead_member_is_removed_only_after_its_primary_had_its_time_and_never_below_the_floor() {
    let remove = SetChange::Remove { replica: ReplicaId(3) };
    let set = record(&[1, 2, 3]);
    assert_eq!(changes(&plan(&set, &[(3, 2_999)], false)), []);
    assert_eq!(changes(&plan(&set, &[(3, 3_000)], false)), [remove]);
    assert_eq!(changes(&plan(&short(), &[(2, 9_000), (3, 9_000)], false)), []);
}

#[test]
fn a_dead_learner_is_dropped() {
    let record = SegmentRecord { learners: vec![member(4)], ..short() };
    let remove = SetChange::Remove { replica: ReplicaId(4) };
    assert_eq!(changes(&plan(&record, &[(4, 1_000)], false)), [remove]);
}

#[test]
fn a_former_member_that_is_back_follows_at_once_and_a_spare_only_after_the_delay() {
    let former = LearnerSource::Former(ReplicaId(3));
    assert_eq!(learners(&plan(&short(), &[], false)), [former]);
    assert_eq!(learners(&plan(&short(), &[(3, 29_999)], false)), []);
    let spare = LearnerSource::Spare(ServerId(4));
    assert_eq!(learners(&plan(&short(), &[(3, 30_000)], false)), [spare]);
    let lost = SegmentRecord { former: vec![], ..short() };
    assert_eq!(learners(&plan(&lost, &[], false)), [LearnerSource::Spare(ServerId(3))]);
}

#[test]
fn no_more_learners_are_added_than_members_lack() {
    let following = SegmentRecord { learners: vec![member(4)], ..short() };
    assert_eq!(plan(&following, &[], false), []);
    assert_eq!(plan(&following, &[(3, 90_000)], false), []);
}

#[test]
fn a_spare_never_holds_a_copy_already() {
    let retired = vec![member(4), member(5)];
    let record = SegmentRecord { retired, ..short() };
    let spare = LearnerSource::Spare(ServerId(6));
    assert_eq!(learners(&plan(&record, &[(3, 30_000)], false)), [spare]);
}

#[test]
fn what_is_left_over_goes_once_the_full_set_is_active() {
    let full =
        SegmentRecord { former: vec![member(4)], learners: vec![member(5)], ..record(&[1, 2, 3]) };
    let inactive = SegmentRecord { active: None, ..full.clone() };
    assert_eq!(plan(&inactive, &[], false), []);
    let retired: Vec<_> = plan(&full, &[], false)
        .into_iter()
        .map(|c| match c {
            Command::Retire { replica, .. } => replica.0,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(retired, [4, 5]);
}

#[test]
fn a_server_is_not_given_more_learners_than_it_can_take() {
    let mut log = Log::new(6);
    for index in 0..2 * LEARNERS_PER_SERVER_MAX {
        log.state.put_segment(SegmentRecord { segment: segment(index), ..short() });
    }
    let servers = servers(&[]);
    let (state, spares) = (&log.state, &[][..]);
    let world = World { state, servers: &servers, spares, now: NOW, patience: PATIENCE };
    let commands = Planner::default().plan(&world);
    assert_eq!(learners(&commands).len(), LEARNERS_PER_SERVER_MAX as usize);
}

#[test]
fn a_plan_is_bounded() {
    let mut log = Log::new(6);
    for index in 0..2_000 {
        log.state.put_segment(SegmentRecord { segment: segment(index), ..record(&[1, 2, 3]) });
    }
    let servers = servers(&[(1, 2_000)]);
    let (state, spares) = (&log.state, &[][..]);
    let world = World { state, servers: &servers, spares, now: NOW, patience: PATIENCE };
    assert_eq!(Planner::default().plan(&world).len(), COMMANDS_MAX);
}

const YEAR_MS: u64 = 365 * 24 * 3_600_000;

/// A cluster with a volume that a leader whose clock shows `deleted_ms` has put in the trash.
fn trashed(deleted_ms: u64, keep_ms: u64) -> Log {
    let mut log = Log::new(0);
    log.run(Command::CreateVolume(volume("v", 1))).expect("create");
    delete(&mut log, deleted_ms, keep_ms);
    log
}

fn delete(log: &mut Log, now_ms: u64, keep_ms: u64) {
    log.revision += 1;
    let command = Command::DeleteVolume { name: "v".to_owned(), keep_ms };
    let delete = Proposal { now_ms, command };
    apply(&mut log.state, Revision(log.revision), &delete).expect("delete");
}

/// What a leader plans `now` milliseconds after it started.
fn trash_at(planner: &mut Planner, state: &State, now: Millis) -> Vec<Command> {
    let (servers, spares) = (&BTreeMap::new(), &[][..]);
    planner.plan(&World { state, servers, spares, now, patience: PATIENCE })
}

fn purges(commands: &[Command]) -> usize {
    commands.iter().filter(|c| matches!(c, Command::PurgeVolume { .. })).count()
}

#[test]
fn trash_is_kept_for_its_time_as_the_leader_counts_it_whatever_the_clock_of_the_one_before() {
    for deleted_ms in [0, YEAR_MS, 100 * YEAR_MS] {
        let log = trashed(deleted_ms, 1_000);
        let mut planner = Planner::default();
        let mut at = |now| purges(&trash_at(&mut planner, &log.state, now));
        assert_eq!([at(50), at(1_049), at(1_050)], [0, 0, 1], "deleted at {deleted_ms}");
    }
}

#[test]
fn a_new_leader_counts_on_from_what_the_last_one_recorded() {
    let keep_ms = 10 * TRASH_RECORD_MS;
    let mut log = trashed(YEAR_MS, keep_ms);
    let mut leaders = 0;
    let mut waited = 0;
    // No leader lives long enough to see the end alone.
    'kept: loop {
        leaders += 1;
        let mut planner = Planner::default();
        for step in 0..=5 {
            let commands = trash_at(&mut planner, &log.state, step * TRASH_RECORD_MS / 2);
            if purges(&commands) > 0 {
                break 'kept;
            }
            waited += u64::from(step > 0) * TRASH_RECORD_MS / 2;
            for command in commands {
                log.run(command).expect("planned on this very state");
            }
        }
        assert!(leaders < 10, "never purged");
    }
    assert!((keep_ms..2 * keep_ms).contains(&waited), "purged after {waited} of {keep_ms} ms");
}

#[test]
fn a_purge_planned_before_the_volume_was_restored_and_deleted_again_is_refused() {
    let mut log = trashed(0, 1_000);
    let mut planner = Planner::default();
    trash_at(&mut planner, &log.state, 0);
    let stale = trash_at(&mut planner, &log.state, 1_000).remove(0);
    let id = VolumeId(1);
    log.run(Command::RestoreVolume { id, name: String::new() }).expect("restore");
    assert_eq!(log.run(stale.clone()), Err(Rejected::NotInTrash { id }));
    delete(&mut log, 0, 1_000);
    assert_eq!(log.run(stale), Err(Rejected::OtherDeletion { id }));
    let mut at = |now| purges(&trash_at(&mut planner, &log.state, now));
    assert_eq!([at(1_100), at(2_099), at(2_100)], [0, 0, 1], "its time begins again");
}

/// A cluster driven by the planner alone: each round, what it plans is applied, live primaries activate
/// and make their learners members.
fn settle(log: &mut Log, dead: &[(u64, Millis)]) {
    let servers = servers(dead);
    let spares = spares(&servers);
    let mut planner = Planner::default();
    for round in 0..50 {
        let now = NOW + round * 100;
        let state = &log.state;
        let world = World { state, servers: &servers, spares: &spares, now, patience: PATIENCE };
        let commands = planner.plan(&world);
        let quiet = commands.is_empty();
        for command in commands {
            let done = log.run(command.clone());
            assert!(done.is_ok(), "planned on this very state: {done:?} {command:?}");
        }
        if !primaries_act(log, &servers) && quiet {
            return;
        }
    }
    panic!("not settled: {:?}", log.record(0));
}

/// What live primaries do; whether there was anything.
fn primaries_act(log: &mut Log, servers: &BTreeMap<ServerId, Liveness>) -> bool {
    let record = log.record(0);
    let server = record.primary_member().server;
    let all_live = record.members.iter().all(|m| servers[&m.server] == Liveness::Alive);
    if !all_live {
        return false;
    }
    if !record.is_active() {
        let (segment, epoch, token) = (record.segment, record.epoch, record.token);
        let reports = vec![Active { segment, epoch, token }];
        log.run(Command::ReportActive { server, reports }).expect("report");
        return true;
    }
    let Some(learner) = record.learners.first() else { return false };
    let promote = ChangeSet {
        segment: record.segment,
        expected_epoch: record.epoch,
        change: SetChange::Promote { replica: learner.replica },
        proposer: Some(server),
        actor: String::new(),
        reason: String::new(),
    };
    log.run(Command::ChangeSet(promote)).expect("promote");
    true
}

#[test]
fn repair_ends_with_a_full_active_set_whichever_server_dies_and_whether_it_returns() {
    for killed in 1..=3 {
        for returns in [false, true] {
            let mut log = Log::new(6);
            log.run(Command::CreateVolume(volume("v", 3))).expect("create");
            let servers = [1, 2, 3].map(ServerId).to_vec();
            let create = CreateSegment { segment: segment(0), servers };
            log.run(Command::CreateSegment(create)).expect("place");
            settle(&mut log, &[]);
            settle(&mut log, &[(killed, 5_000)]);
            let degraded = log.record(0);
            assert_eq!((degraded.members.len(), degraded.former.len()), (2, 1), "{degraded:?}");
            if returns {
                log.run(Command::RegisterServer(register(killed, 99))).expect("restart");
                settle(&mut log, &[]);
            } else {
                settle(&mut log, &[(killed, 30_000)]);
            }
            let record = log.record(0);
            assert!(crate::state::index::is_settled(&record), "{killed} {returns}: {record:?}");
            assert_eq!(record.copy_on(ServerId(killed)).is_some(), returns, "{record:?}");
        }
    }
}

#[test]
fn a_new_leader_resumes_a_fencing_attachment_from_the_state_alone() {
    let mut log = Log::new(6);
    log.run(Command::CreateVolume(volume("v", 3))).expect("create");
    let servers = [1, 2, 3].map(ServerId).to_vec();
    let create = CreateSegment { segment: segment(0), servers };
    log.run(Command::CreateSegment(create)).expect("place");
    settle(&mut log, &[]);
    let (mode, holder) = (AttachMode::Exclusive, Holder::default());
    let (name, request) = ("v".to_owned(), String::new());
    let attach = Attach { volume: name, mode, holder, take_over: false, request };
    log.run(Command::Attach(attach)).expect("attach");
    // The primary dies meanwhile.
    settle(&mut log, &[(1, 5_000)]);
    let (_, attachment) = log.state.attachments.iter().next().expect("attached");
    assert_eq!(attachment.state, AttachState::Ready);
    assert_eq!(log.record(0).active.map(|(_, token)| token), Some(Token(1)));
}

#[test]
fn a_stale_plan_is_refused() {
    let mut log = Log::new(6);
    log.state.put_segment(record(&[1, 2, 3]));
    let servers = servers(&[(1, 2_000)]);
    let (state, spares) = (&log.state, &[][..]);
    let world = World { state, servers: &servers, spares, now: NOW, patience: PATIENCE };
    let plan = Planner::default().plan(&world).remove(0);
    log.run(plan.clone()).expect("the first");
    let again = Proposal { now_ms: 0, command: plan };
    let refused = apply(&mut log.state, Revision(999), &again);
    let stale = Rejected::StaleEpoch { expected: Epoch(1), actual: Epoch(2) };
    assert_eq!(refused, Err(stale));
}
