//! Each rule of `apply`, by its trace.

use tidewater_proto::{
    ids::{Epoch, ReplicaId, RunId, ServerId, SessionId, Token},
    record::{Member, SegmentRecord, SetChange},
};

use crate::{
    state::{
        command::{
            Active, AddLearner, Attach, ChangeSet, Command, CreateSegment, LearnerSource,
            UpdateServer,
        },
        outcome::{Applied, Outcome, Rejected},
        rows::{AttachMode, AttachState, AttachmentRow, EventKind, Holder},
    },
    testing::{World, register, segment, volume},
};

/// Four servers, a volume of three replicas, its first segment on servers 1 (primary), 2 and 3.
fn placed() -> World {
    let mut world = World::new(4);
    world.run(Command::CreateVolume(volume("v", 3))).expect("create");
    place(&mut world, 0);
    world
}

fn place(world: &mut World, index: u32) {
    let servers = [1, 2, 3].map(ServerId).to_vec();
    let create = CreateSegment { segment: segment(index), servers };
    world.run(Command::CreateSegment(create)).expect("place");
}

fn activate(world: &mut World, index: u32) -> Outcome {
    let record = world.record(index);
    let report = Active { segment: segment(index), epoch: record.epoch, token: record.token };
    let server = record.primary_member().server;
    world.run(Command::ReportActive { server, reports: vec![report] })
}

fn on(record: &SegmentRecord, server: u64) -> ReplicaId {
    record.copy_on(ServerId(server)).expect("has a copy").replica
}

fn change_as(world: &mut World, change: SetChange, proposer: Option<u64>) -> Outcome {
    let args = ChangeSet {
        segment: segment(0),
        expected_epoch: world.record(0).epoch,
        change,
        proposer: proposer.map(ServerId),
        actor: "test".to_owned(),
        reason: "because".to_owned(),
    };
    world.run(Command::ChangeSet(args))
}

/// A change that the primary asks for.
fn change(world: &mut World, change: SetChange) -> Outcome {
    let primary = world.record(0).primary_member().server.0;
    change_as(world, change, Some(primary))
}

fn learn(world: &mut World, source: LearnerSource) -> Outcome {
    let expected_epoch = world.record(0).epoch;
    let reason = String::new();
    let args = AddLearner { segment: segment(0), expected_epoch, source, reason };
    world.run(Command::AddLearner(args))
}

fn servers(copies: &[Member]) -> Vec<u64> {
    copies.iter().map(|copy| copy.server.0).collect()
}

fn attach(world: &mut World, mode: AttachMode, request: &str, take_over: bool) -> Outcome {
    let holder = Holder { program: format!("by-{request}"), ..Holder::default() };
    let (volume, request) = ("v".to_owned(), request.to_owned());
    world.run(Command::Attach(Attach { volume, mode, holder, take_over, request }))
}

fn attached(world: &World, session: u64) -> AttachmentRow {
    world.state.attachments.get(&SessionId(session)).expect("attached").clone()
}

#[test]
fn nothing_is_applied_before_the_cluster_is_made_and_it_is_made_once() {
    let mut world = World::new(0);
    let again = Command::InitCluster { uuid: "other".to_owned(), segment_bytes: 1 << 20 };
    assert_eq!(world.run(again), Err(Rejected::ClusterExists { uuid: "test".to_owned() }));
    let mut empty = World { state: crate::state::State::default(), revision: 0 };
    let early = empty.run(Command::CreateVolume(volume("v", 1)));
    assert_eq!(early, Err(Rejected::NoCluster));
}

#[test]
fn a_data_folder_keeps_its_server_id() {
    let mut world = World::new(2);
    let again = world.run(Command::RegisterServer(register(2, 2)));
    assert_eq!(again, Ok(Applied::Server(ServerId(2))));
    let mut moved = register(2, 3);
    moved.server = Some(ServerId(1));
    let mismatch = Rejected::StoreMismatch { owner: ServerId(2), claimed: ServerId(1) };
    assert_eq!(world.run(Command::RegisterServer(moved)), Err(mismatch));
    let mut removed = register(9, 3);
    removed.server = Some(ServerId(9));
    let unknown = Rejected::UnknownStore { server: ServerId(9) };
    assert_eq!(world.run(Command::RegisterServer(removed)), Err(unknown));
}

#[test]
fn a_restart_raises_the_epoch_of_every_segment_the_server_leads_and_of_no_other() {
    let mut world = placed();
    activate(&mut world, 0).expect("active");
    world.run(Command::RegisterServer(register(2, 20))).expect("secondary restarts");
    assert_eq!((world.record(0).epoch, world.record(0).is_active()), (Epoch(1), true));
    world.run(Command::RegisterServer(register(1, 1))).expect("same run");
    assert_eq!(world.record(0).epoch, Epoch(1));
    world.run(Command::RegisterServer(register(1, 10))).expect("primary restarts");
    let record = world.record(0);
    assert_eq!(
        (record.epoch, record.primary_run, record.is_active()),
        (Epoch(2), RunId(10), false)
    );
    assert_eq!(servers(&record.members), [1, 2, 3]);
}

#[test]
fn a_server_with_copies_is_not_removed() {
    let mut world = placed();
    let remove = |server| Command::RemoveServer { server: ServerId(server) };
    let holds = Rejected::ServerHoldsCopies { server: ServerId(1), copies: 1 };
    assert_eq!(world.run(remove(1)), Err(holds));
    assert_eq!(world.run(remove(4)), Ok(Applied::Done));
    let back = world.run(Command::RegisterServer(register(4, 9)));
    assert_eq!(back, Ok(Applied::Server(ServerId(5))), "ids are never reused");
}

#[test]
fn cordon_survives_a_restart() {
    let mut world = World::new(1);
    let cordon = UpdateServer { server: ServerId(1), cordoned: Some(true), devices: None };
    world.run(Command::UpdateServer(cordon)).expect("cordon");
    world.run(Command::RegisterServer(register(1, 7))).expect("restart");
    assert!(world.state.servers.get(&ServerId(1)).expect("server").cordoned);
}

#[test]
fn a_new_set_is_fresh_until_it_is_active() {
    let mut world = placed();
    assert!(world.record(0).members.iter().all(|m| m.fresh));
    let stale = Active { segment: segment(0), epoch: Epoch(0), token: Token(0) };
    let reports = vec![stale];
    let server = ServerId(1);
    assert_eq!(
        world.run(Command::ReportActive { server, reports }),
        Ok(Applied::Unchanged),
        "an older epoch's report is not news"
    );
    let foreign = Active { segment: segment(0), epoch: Epoch(1), token: Token(0) };
    let reports = vec![foreign];
    let server = ServerId(2);
    assert_eq!(world.run(Command::ReportActive { server, reports }), Ok(Applied::Unchanged));
    assert_eq!(activate(&mut world, 0), Ok(Applied::Done));
    assert!(world.record(0).is_active());
    assert!(world.record(0).members.iter().all(|m| !m.fresh));
    assert_eq!(activate(&mut world, 0), Ok(Applied::Unchanged), "reports repeat");
}

#[test]
fn a_segment_is_placed_once_within_its_volume_on_distinct_servers() {
    let mut world = placed();
    let create = |index, servers: &[u64]| {
        let servers = servers.iter().map(|&id| ServerId(id)).collect();
        Command::CreateSegment(CreateSegment { segment: segment(index), servers })
    };
    assert_eq!(world.run(create(0, &[2, 3, 4])), Ok(Applied::Unchanged));
    assert_eq!(servers(&world.record(0).members), [1, 2, 3]);
    let past = Rejected::PastEnd { segment: segment(64), segments: 64 };
    assert_eq!(world.run(create(64, &[1, 2, 3])), Err(past));
    for bad in [&[1, 2, 2][..], &[1, 2], &[1, 2, 9]] {
        assert_eq!(world.run(create(1, bad)), Err(Rejected::BadPlacement { wanted: 3 }), "{bad:?}");
    }
}

#[test]
fn a_stale_epoch_or_a_stranger_changes_nothing() {
    let mut world = placed();
    let replica = on(&world.record(0), 3);
    let before = world.record(0);
    let stale = Command::ChangeSet(ChangeSet {
        segment: segment(0),
        expected_epoch: Epoch(7),
        change: SetChange::Remove { replica },
        proposer: Some(ServerId(1)),
        actor: String::new(),
        reason: String::new(),
    });
    let expected = Rejected::StaleEpoch { expected: Epoch(7), actual: Epoch(1) };
    assert_eq!(world.run(stale), Err(expected));
    let stranger = change_as(&mut world, SetChange::Remove { replica }, Some(2));
    assert_eq!(stranger, Err(Rejected::NotPrimary { server: ServerId(2) }));
    assert_eq!(world.record(0), before);
}

#[test]
fn a_removed_member_is_former_and_the_floor_holds() {
    let mut world = placed();
    let (two, three) = (on(&world.record(0), 2), on(&world.record(0), 3));
    let primary = on(&world.record(0), 1);
    let own = change(&mut world, SetChange::Remove { replica: primary });
    assert_eq!(own, Err(Rejected::WrongRole { replica: primary }), "the primary is replaced");
    assert_eq!(change(&mut world, SetChange::Remove { replica: three }), Ok(Applied::Done));
    let record = world.record(0);
    assert_eq!((servers(&record.members), servers(&record.former)), (vec![1, 2], vec![3]));
    assert_eq!((record.epoch, record.floor), (Epoch(2), 2));
    let below = Err(Rejected::BelowFloor { floor: 2 });
    assert_eq!(change(&mut world, SetChange::Remove { replica: two }), below);
    assert_eq!(change_as(&mut world, SetChange::Replace { to: two }, None), below);
    assert_eq!(change_as(&mut world, SetChange::Handover { to: two }, None), Ok(Applied::Done));
    assert_eq!(world.record(0).primary, two);
}

#[test]
fn a_replaced_primary_is_former_and_the_new_one_serves_with_its_servers_run() {
    let mut world = placed();
    let three = on(&world.record(0), 3);
    world.run(Command::RegisterServer(register(3, 33))).expect("restart");
    assert_eq!(change_as(&mut world, SetChange::Replace { to: three }, None), Ok(Applied::Done));
    let record = world.record(0);
    assert_eq!((servers(&record.members), servers(&record.former)), (vec![2, 3], vec![1]));
    assert_eq!((record.primary, record.primary_run, record.epoch), (three, RunId(33), Epoch(2)));
}

#[test]
fn only_the_serving_primary_promotes_and_a_promoted_copy_is_not_fresh() {
    let mut world = placed();
    let three = on(&world.record(0), 3);
    change(&mut world, SetChange::Remove { replica: three }).expect("remove");
    let epoch = world.record(0).epoch;
    assert_eq!(learn(&mut world, LearnerSource::Spare(ServerId(4))), Ok(Applied::Done));
    let record = world.record(0);
    assert_eq!(record.epoch, epoch, "a learner keeps the epoch");
    assert!(record.learners[0].fresh);
    let promote = SetChange::Promote { replica: record.learners[0].replica };
    let nobody = Err(Rejected::NotPrimary { server: ServerId(0) });
    assert_eq!(change_as(&mut world, promote, None), nobody);
    assert_eq!(change(&mut world, promote), Ok(Applied::Done));
    let record = world.record(0);
    assert_eq!(servers(&record.members), [1, 2, 4]);
    assert!(!record.members[2].fresh && record.learners.is_empty());
    assert_eq!(record.epoch, epoch.next());
    assert_eq!(change(&mut world, SetChange::Withdraw), Ok(Applied::Done));
    assert_eq!(world.record(0).epoch, epoch.next().next());
}

#[test]
fn a_learner_needs_a_server_without_a_copy() {
    let mut world = placed();
    let taken = Err(Rejected::ServerTaken { server: ServerId(2) });
    assert_eq!(learn(&mut world, LearnerSource::Spare(ServerId(2))), taken);
    let three = on(&world.record(0), 3);
    assert_eq!(change(&mut world, SetChange::Lost { replica: three }), Ok(Applied::Done));
    let retired = Err(Rejected::ServerTaken { server: ServerId(3) });
    assert_eq!(learn(&mut world, LearnerSource::Spare(ServerId(3))), retired);
    let copies = vec![(segment(0), three)];
    let deleted = world.run(Command::ReportDeleted { server: ServerId(3), copies });
    assert_eq!(deleted, Ok(Applied::Done));
    assert_eq!(learn(&mut world, LearnerSource::Spare(ServerId(3))), Ok(Applied::Done));
    assert!(world.record(0).learners[0].replica > three, "replica ids are never reused");
}

#[test]
fn a_dropped_learner_comes_back_only_if_it_was_a_member() {
    let mut world = placed();
    activate(&mut world, 0).expect("active");
    let three = on(&world.record(0), 3);
    change(&mut world, SetChange::Remove { replica: three }).expect("remove");
    learn(&mut world, LearnerSource::Former(three)).expect("former");
    learn(&mut world, LearnerSource::Spare(ServerId(4))).expect("spare");
    let four = on(&world.record(0), 4);
    for replica in [three, four] {
        change_as(&mut world, SetChange::Remove { replica }, None).expect("drop");
    }
    let record = world.record(0);
    assert_eq!((servers(&record.former), servers(&record.retired)), (vec![3], vec![4]));
}

#[test]
fn a_lost_copy_is_retired_and_a_lost_primary_is_succeeded_but_never_the_last_member() {
    let mut world = placed();
    let (one, two, three) =
        (on(&world.record(0), 1), on(&world.record(0), 2), on(&world.record(0), 3));
    change(&mut world, SetChange::Lost { replica: one }).expect("lost");
    let record = world.record(0);
    assert_eq!((record.primary, record.primary_run), (two, RunId(2)));
    assert_eq!((servers(&record.members), servers(&record.retired)), (vec![2, 3], vec![1]));
    change(&mut world, SetChange::Lost { replica: three }).expect("below the floor, as it is");
    assert_eq!(servers(&world.record(0).members), [2]);
    let last = change(&mut world, SetChange::Lost { replica: two });
    assert_eq!(last, Err(Rejected::LastMember));
}

#[test]
fn a_learner_whose_server_lost_its_copy_is_retired_and_another_takes_its_place() {
    let mut world = placed();
    activate(&mut world, 0).expect("active");
    let three = on(&world.record(0), 3);
    change(&mut world, SetChange::Remove { replica: three }).expect("remove");
    learn(&mut world, LearnerSource::Former(three)).expect("former");
    change(&mut world, SetChange::Lost { replica: three }).expect("its disks are new");
    let record = world.record(0);
    assert_eq!((servers(&record.learners), servers(&record.retired)), (vec![], vec![3]));
    assert_eq!(servers(&record.members), [1, 2]);
    assert_eq!(learn(&mut world, LearnerSource::Spare(ServerId(4))), Ok(Applied::Done));
}

#[test]
fn every_set_change_is_in_the_audit_trail_with_reason_and_actor() {
    let mut world = placed();
    let three = on(&world.record(0), 3);
    change(&mut world, SetChange::Remove { replica: three }).expect("remove");
    let (_, event) = world.state.events.iter().next_back().expect("event");
    assert_eq!(event.kind, EventKind::MemberRemoved);
    assert_eq!((event.actor.as_str(), event.reason.as_str()), ("test", "because"));
    assert_eq!((event.subject.as_str(), event.revision), ("v1.0", world.revision));
}

#[test]
fn the_audit_trail_is_bounded() {
    let mut world = World::new(1);
    for number in 0..super::events::EVENTS_MAX as u64 + 10 {
        let cordoned = Some(number.is_multiple_of(2));
        let update = UpdateServer { server: ServerId(1), cordoned, devices: None };
        world.run(Command::UpdateServer(update)).expect("cordon");
    }
    assert_eq!(world.state.events.len(), super::events::EVENTS_MAX);
}

#[test]
fn an_exclusive_attachment_is_ready_once_every_primary_has_acknowledged_its_token() {
    let mut world = placed();
    place(&mut world, 1);
    activate(&mut world, 0).expect("active");
    activate(&mut world, 1).expect("active");
    let epoch = world.record(0).epoch;
    let session = attach(&mut world, AttachMode::Exclusive, "a", false);
    assert_eq!(session, Ok(Applied::Session(SessionId(1))));
    assert_eq!(world.record(0).token, Token(1));
    assert_eq!(world.record(0).epoch, epoch, "a token keeps the epoch");
    assert_eq!(attached(&world, 1).state, AttachState::Fencing);
    activate(&mut world, 0).expect("acknowledged");
    let ready = Command::AttachReady { session: SessionId(1), token: Token(1) };
    assert_eq!(world.run(ready.clone()), Err(Rejected::NotReady));
    activate(&mut world, 1).expect("acknowledged");
    assert_eq!(world.run(ready), Ok(Applied::Session(SessionId(1))));
    assert_eq!(attached(&world, 1).state, AttachState::Ready);
}

#[test]
fn a_volume_without_segments_is_attached_at_once() {
    let mut world = World::new(3);
    world.run(Command::CreateVolume(volume("v", 3))).expect("create");
    attach(&mut world, AttachMode::Exclusive, "a", false).expect("attach");
    assert_eq!(attached(&world, 1).state, AttachState::Ready);
    place(&mut world, 0);
    assert_eq!(world.record(0).token, Token(1), "a new segment has the volume's token");
}

#[test]
fn tokens_are_raised_by_exclusive_first_shared_and_forced_detach_only() {
    use AttachMode::{Exclusive, ReadOnly, Shared};
    let mut world = World::new(3);
    world.run(Command::CreateVolume(volume("v", 3))).expect("create");
    let detach = |world: &mut World, session, force| {
        world.run(Command::Detach { session: SessionId(session), force }).expect("attached");
    };
    let token = |world: &World, session| attached(world, session).token.0;

    attach(&mut world, Shared, "a", false).expect("shared on a new volume");
    attach(&mut world, Shared, "b", false).expect("shared");
    attach(&mut world, ReadOnly, "c", false).expect("reader");
    assert_eq!([token(&world, 1), token(&world, 2), token(&world, 3)], [0, 0, 0]);
    detach(&mut world, 1, true);
    assert_eq!([token(&world, 2), token(&world, 3)], [1, 1], "those who stay get the new one");
    detach(&mut world, 2, false);
    attach(&mut world, Exclusive, "d", false).expect("exclusive beside a reader");
    assert_eq!([token(&world, 3), token(&world, 4)], [2, 2]);
    detach(&mut world, 4, false);
    attach(&mut world, ReadOnly, "e", false).expect("reader");
    assert_eq!(token(&world, 5), 2, "a reader raises nothing");
    attach(&mut world, Shared, "f", false).expect("first shared after an exclusive");
    assert_eq!([token(&world, 3), token(&world, 6)], [3, 3]);
    attach(&mut world, Shared, "g", false).expect("second shared");
    assert_eq!(token(&world, 7), 3);
}

#[test]
fn a_conflicting_attach_names_the_holder_unless_it_takes_over() {
    use AttachMode::{Exclusive, ReadOnly, Shared};
    let mut world = World::new(3);
    world.run(Command::CreateVolume(volume("v", 3))).expect("create");
    attach(&mut world, ReadOnly, "r", false).expect("reader");
    attach(&mut world, Shared, "a", false).expect("shared");
    let refused = attach(&mut world, Exclusive, "b", false).expect_err("held");
    let holder = (SessionId(2), "by-a");
    let Rejected::Attached { session, program, .. } = &refused else { panic!("{refused}") };
    assert_eq!((*session, program.as_str()), holder);
    assert_eq!(
        attach(&mut world, Exclusive, "b", true),
        Ok(Applied::Session(SessionId(3))),
        "the refused try took no id"
    );
    let sessions: Vec<_> = world.state.attachments.iter().map(|(s, _)| s.0).collect();
    assert_eq!(sessions, [1, 3]);
    assert_eq!(attached(&world, 1).token, Token(1), "the reader stays, with the new token");
    assert!(attach(&mut world, Shared, "c", false).is_err());
    assert_eq!(attach(&mut world, Exclusive, "a", true), Err(Rejected::RequestEnded));
}

#[test]
fn a_repeated_attach_is_the_same_attachment() {
    let mut world = World::new(3);
    world.run(Command::CreateVolume(volume("v", 3))).expect("create");
    let first = attach(&mut world, AttachMode::Exclusive, "a", false);
    assert_eq!(attach(&mut world, AttachMode::Exclusive, "a", true), first);
    assert_eq!(attached(&world, 1).token, Token(1));
}

#[test]
fn volumes_are_created_grown_and_renamed_within_the_rules() {
    let mut world = World::new(0);
    let create = |name: &str, size_bytes, replicas| {
        let mut args = volume(name, replicas);
        args.size_bytes = size_bytes;
        Command::CreateVolume(args)
    };
    let long = "x".repeat(256);
    for (command, expected) in [
        (create("", 4096, 3), Rejected::BadName),
        (create("a\n", 4096, 3), Rejected::BadName),
        (create(&long, 4096, 3), Rejected::BadName),
        (create("v", 0, 3), Rejected::BadSize { size_bytes: 0 }),
        (create("v", 4097, 3), Rejected::BadSize { size_bytes: 4097 }),
        (create("v", (64 << 40) + 4096, 3), Rejected::BadSize { size_bytes: (64 << 40) + 4096 }),
        (create("v", 4096, 0), Rejected::BadReplicas { replicas: 0 }),
        (create("v", 4096, 6), Rejected::BadReplicas { replicas: 6 }),
    ] {
        assert_eq!(world.run(command.clone()), Err(expected), "{command:?}");
    }
    world.run(create("a/b", 64 << 40, 5)).expect("the largest");
    world.run(create("v", 8192, 1)).expect("small");
    let exists = Err(Rejected::VolumeExists { name: "v".to_owned() });
    assert_eq!(world.run(create("v", 4096, 1)), exists);
    let rename = |name: &str, to: &str| Command::RenameVolume { name: name.into(), to: to.into() };
    assert_eq!(world.run(rename("a/b", "v")), exists);
    world.run(rename("v", "w")).expect("rename");
    let resize = |size_bytes| Command::ResizeVolume { name: "w".to_owned(), size_bytes };
    assert_eq!(world.run(resize(4096)), Err(Rejected::Shrink { size_bytes: 8192 }));
    world.run(resize(12288)).expect("grow");
    assert_eq!(world.state.volume_named("w").expect("renamed").size_bytes, 12288);
    assert!(world.state.volume_named("v").is_none());
}

#[test]
fn an_attached_volume_is_not_deleted_and_a_trashed_one_comes_back() {
    let mut world = World::new(0);
    world.run(Command::CreateVolume(volume("v", 3))).expect("create");
    attach(&mut world, AttachMode::ReadOnly, "a", false).expect("attach");
    let delete = Command::DeleteVolume { name: "v".to_owned(), keep_ms: 5 };
    assert!(matches!(world.run(delete.clone()), Err(Rejected::Attached { .. })));
    world.run(Command::Detach { session: SessionId(1), force: false }).expect("detach");
    let Ok(Applied::Volume(id)) = world.run(delete) else { panic!("deleted") };
    assert!(attach(&mut world, AttachMode::ReadOnly, "b", false).is_err());
    world.run(Command::CreateVolume(volume("v", 3))).expect("the name is free");
    let restore = |name: &str| Command::RestoreVolume { id, name: name.to_owned() };
    let exists = Err(Rejected::VolumeExists { name: "v".to_owned() });
    assert_eq!(world.run(restore("")), exists);
    assert_eq!(world.run(restore("old")), Ok(Applied::Volume(id)));
    assert_eq!(world.run(restore("old")), Err(Rejected::NotInTrash { id }));
    assert_eq!(
        world.run(Command::PurgeVolume { id, deletion: None }),
        Err(Rejected::NotInTrash { id })
    );
}

#[test]
fn purged_copies_are_kept_until_their_servers_report_them_deleted() {
    let mut world = placed();
    let replica = on(&world.record(0), 2);
    let delete = Command::DeleteVolume { name: "v".to_owned(), keep_ms: 5 };
    let Ok(Applied::Volume(id)) = world.run(delete) else { panic!("deleted") };
    world.run(Command::PurgeVolume { id, deletion: None }).expect("purge");
    assert!(world.state.segment(segment(0)).is_none());
    assert_eq!(world.state.retired.len(), 3);
    let deleted = |server| Command::ReportDeleted {
        server: ServerId(server),
        copies: vec![(segment(0), replica)],
    };
    assert_eq!(world.run(deleted(1)), Ok(Applied::Unchanged), "not its copy");
    assert_eq!(world.run(deleted(2)), Ok(Applied::Done));
    assert_eq!(world.run(deleted(2)), Ok(Applied::Unchanged), "reports repeat");
    assert_eq!(world.state.retired_on(ServerId(2)).count(), 0);
    assert_eq!(world.state.retired_on(ServerId(3)).count(), 1);
}
