//! Each row of the table of what becomes of a segment, and that nothing is decided before.

use tidewater_proto::{
    ids::{Revision, Sequence, SessionId},
    record::SetChange,
};

use super::*;
use crate::{
    state::{
        command::{Attach, ChangeSet, Command, CreateSegment},
        rows::{AttachMode, Holder},
    },
    testing::{MIB, World, member, record, register, segment, volume},
};

/// A backup of a cluster of three servers that has one volume of three replicas, whose segment 0 is on
/// all of them, being restored.
fn restored() -> World {
    let mut world = World::new(3);
    world.run(Command::CreateVolume(volume("v", 3))).expect("create");
    let servers = [1, 2, 3].map(ServerId).to_vec();
    world
        .run(Command::CreateSegment(CreateSegment { segment: segment(0), servers }))
        .expect("place");
    world.state.put_segment(SegmentRecord { epoch: Epoch(4), ..record(&[1, 2, 3]) });
    let (volume, request) = ("v".to_owned(), "r".to_owned());
    let (mode, holder, take_over) = (AttachMode::Exclusive, Holder::default(), false);
    world
        .run(Command::Attach(Attach { volume, mode, holder, take_over, request }))
        .expect("attach");
    begin(&mut world.state, 3);
    world
}

/// Copy `id`, on the server of that number, with its promise and the last entry of its log.
fn copy(id: u64, epoch: u64, last: (u64, u64)) -> CopyReport {
    CopyReport {
        segment: segment(0),
        replica: ReplicaId(id),
        epoch: Epoch(epoch),
        token: Token(9),
        last: Position { epoch: Epoch(last.0), sequence: Sequence(last.1) },
        copying: false,
        record: None,
    }
}

fn tell(world: &mut World, server: u64, copies: Vec<CopyReport>) -> Outcome {
    let (server, run, servers) = (ServerId(server), RunId(server), Vec::new());
    let args = ReportCopies { server, run, copies, servers, last: true };
    world.run(Command::ReportCopies(args))
}

/// Every server tells its copy, and the restore is finished.
fn finish_with(world: &mut World, copies: &[CopyReport]) -> Option<SegmentRecord> {
    for server in 1..=3 {
        let own = copies.iter().filter(|c| c.replica.0 % 10 == server).cloned().collect();
        tell(world, server, own).expect("registered");
    }
    world.run(Command::FinishRestore { without: Vec::new() }).expect("all have told");
    assert!(world.state.restoring().is_none() && world.state.copies.len() == 0);
    world.state.segment(segment(0)).map(|record| record.as_ref().clone())
}

fn ids(copies: &[Member]) -> Vec<u64> {
    copies.iter().map(|copy| copy.replica.0).collect()
}

#[test]
fn nothing_is_decided_before_every_server_has_told_what_it_holds() {
    let mut world = restored();
    let attach = Command::CreateVolume(volume("w", 1));
    assert_eq!(world.run(attach.clone()), Err(Rejected::Restoring));
    let change = ChangeSet {
        segment: segment(0),
        expected_epoch: Epoch(4),
        change: SetChange::Handover { to: ReplicaId(2) },
        proposer: None,
        actor: String::new(),
        reason: String::new(),
    };
    assert_eq!(world.run(Command::ChangeSet(change)), Err(Rejected::Restoring));
    for told in 1..=3_usize {
        let early = world.run(Command::FinishRestore { without: Vec::new() });
        assert_eq!(early, Err(Rejected::ServersAwaited { missing: 4 - told }));
        tell(&mut world, told as u64, Vec::new()).expect("registered");
    }
    world.run(Command::FinishRestore { without: Vec::new() }).expect("all have told");
    world.run(attach).expect("serves again");
    assert_eq!(world.run(Command::FinishRestore { without: Vec::new() }), Ok(Applied::Unchanged));
}

#[test]
fn epochs_tokens_and_ids_are_above_all_that_was_told_and_attachments_have_ended() {
    let mut world = restored();
    let copies = vec![copy(1, 4, (4, 7)), copy(2, 4, (4, 7)), copy(3, 4, (4, 7))];
    let after = finish_with(&mut world, &copies).expect("placed");
    assert!(after.epoch > Epoch(4) && after.token > Token(9), "{after:?}");
    assert_eq!((after.active, after.primary_run), (None, RunId(1)));
    assert_eq!(ids(&after.members), [1, 2, 3]);
    let volume = world.state.volumes.get(&VolumeId(1)).expect("volume");
    assert_eq!(volume.token, after.token);
    assert_eq!(world.state.attachments.len(), 0);
    let counters = world.state.counters.get(&Single).expect("counters").clone();
    assert!(counters.session > 1 << 32 && counters.replica > 1 << 32, "{counters:?}");
    let request = Attach {
        volume: "v".to_owned(),
        mode: AttachMode::Exclusive,
        holder: Holder::default(),
        take_over: false,
        request: "r".to_owned(),
    };
    let again = world.run(Command::Attach(request));
    assert_eq!(again, Ok(Applied::Session(SessionId(counters.session + 1))), "a new session");
}

#[test]
fn a_record_newer_than_the_backups_is_taken_over_without_the_copies_that_are_gone() {
    let mut world = restored();
    let newer = SegmentRecord {
        epoch: Epoch(6),
        revision: Revision(900),
        former: vec![member(1)],
        learners: vec![Member { replica: ReplicaId(11), ..member(1) }],
        ..record(&[2, 3])
    };
    // Copy 1 has been retired and deleted; its server has a learner, told of by nobody else.
    let told = CopyReport { record: Some(newer), ..copy(2, 6, (6, 9)) };
    let copies = vec![told, copy(3, 6, (6, 9)), copy(11, 6, (6, 2))];
    let after = finish_with(&mut world, &copies).expect("placed");
    assert_eq!((ids(&after.members), after.primary), (vec![2, 3], ReplicaId(2)));
    assert_eq!((ids(&after.learners), ids(&after.former)), (vec![11], vec![]));
    assert_eq!(ids(&after.retired), [1]);
}

#[test]
fn where_the_newest_set_is_not_known_those_whose_logs_end_last_go_on() {
    let mut world = restored();
    // Copy 1 has a longer log of an older epoch; 3 is behind.
    let copies = vec![copy(1, 5, (4, 99)), copy(2, 6, (6, 50)), copy(3, 5, (6, 49))];
    let after = finish_with(&mut world, &copies).expect("placed");
    assert_eq!((ids(&after.members), after.primary), (vec![2], ReplicaId(2)));
    assert_eq!((ids(&after.former), after.replicas), (vec![1, 3], 3));
    let mut world = restored();
    let incomplete = CopyReport { copying: true, ..copy(1, 6, (9, 99)) };
    let copies = vec![incomplete, copy(2, 6, (6, 50)), copy(3, 6, (6, 50))];
    let after = finish_with(&mut world, &copies).expect("placed");
    assert_eq!((ids(&after.members), ids(&after.former)), (vec![2, 3], vec![1]));
}

#[test]
fn a_segment_that_nobody_has_is_forgotten_only_if_it_never_was_active() {
    let mut world = restored();
    let after = finish_with(&mut world, &[]).expect("lost, not a hole");
    assert_eq!((ids(&after.members), ids(&after.retired)), (vec![1], vec![2, 3]));
    let mut world = restored();
    world.state.put_segment(SegmentRecord { active: None, ..record(&[1, 2, 3]) });
    assert_eq!(finish_with(&mut world, &[]), None);
}

#[test]
fn a_segment_made_after_the_backup_is_taken_over_and_its_volume_grows_to_it() {
    let mut world = restored();
    let later = |id| CopyReport { segment: segment(70), ..copy(id, 2, (2, 5)) };
    let stranger = SegmentId { volume: VolumeId(8), index: 0 };
    let other = CopyReport { segment: stranger, ..copy(32, 1, (1, 1)) };
    let kept = |id| copy(id, 4, (4, 7));
    let copies = vec![kept(1), kept(2), kept(3), later(21), later(22), later(23), other];
    finish_with(&mut world, &copies).expect("placed");
    let record = world.record(70);
    assert_eq!((ids(&record.members), record.replicas), (vec![21, 22, 23], 3));
    let volume = world.state.volumes.get(&VolumeId(1)).expect("volume");
    assert_eq!((volume.size_bytes, volume.token), (71 * MIB, record.token));
    assert!(world.state.segment(stranger).is_none(), "its volume is not known");
    let counters = world.state.counters.get(&Single).expect("counters");
    assert_eq!(counters.volume, 8, "its id is not given again");
}

#[test]
fn a_server_that_restarts_tells_again_and_one_made_after_the_backup_keeps_its_id() {
    let mut world = restored();
    tell(&mut world, 1, vec![copy(1, 4, (4, 7))]).expect("registered");
    assert!(!is_awaited(&world.state, ServerId(1), RunId(1)));
    world.run(Command::RegisterServer(register(1, 10))).expect("restarts");
    assert!(is_awaited(&world.state, ServerId(1), RunId(10)));
    assert_eq!(world.state.copies.len(), 0);
    assert_eq!(world.record(0).epoch, Epoch(4), "a restart decides nothing now");

    let mut later = register(7, 7);
    assert_eq!(world.run(Command::RegisterServer(later.clone())), Err(Rejected::Restoring));
    later.server = Some(ServerId(7));
    assert_eq!(world.run(Command::RegisterServer(later)), Ok(Applied::Server(ServerId(7))));
    let row = world.state.restoring().expect("restoring");
    assert_eq!(awaited(&world.state, row), [1, 2, 3, 7].map(ServerId).into());
}

#[test]
fn a_server_named_by_another_is_awaited_until_it_is_given_up() {
    let mut world = restored();
    let newer = SegmentRecord { epoch: Epoch(6), ..record(&[1, 2, 9]) };
    let told = CopyReport { record: Some(newer), ..copy(1, 6, (6, 1)) };
    tell(&mut world, 1, vec![told]).expect("registered");
    tell(&mut world, 2, vec![copy(2, 6, (6, 1))]).expect("registered");
    tell(&mut world, 3, Vec::new()).expect("registered");
    let finish = |without: &[u64]| {
        let without = without.iter().map(|&id| ServerId(id)).collect();
        Command::FinishRestore { without }
    };
    assert_eq!(world.run(finish(&[])), Err(Rejected::ServersAwaited { missing: 1 }));
    assert_eq!(world.run(finish(&[3])), Err(Rejected::ServersAwaited { missing: 1 }));
    world.run(finish(&[9])).expect("given up");
    assert_eq!(ids(&world.record(0).members), [1, 2]);
    let counters = world.state.counters.get(&Single).expect("counters");
    assert_eq!(counters.server, 9);
}
