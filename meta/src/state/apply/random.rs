//! Random histories: `apply` never panics, is a function of the log (INV-META), and keeps the rules that
//! the servers rely on.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{prelude::*, sample::Index};
use tidewater_proto::{
    ids::{Epoch, ReplicaId, Revision, SegmentId, ServerId, SessionId, Token, VolumeId},
    record::{SegmentRecord, SetChange},
};

use super::apply;
use crate::{
    state::{
        State,
        command::{
            Active, AddLearner, Attach, ChangeSet, Command, CreateSegment, LearnerSource, Proposal,
        },
        rows::{AttachMode, Holder},
        table::Single,
    },
    testing::{MIB, register, volume},
};

const SERVERS: u64 = 6;
const NAMES: [&str; 2] = ["a", "b"];

/// A command, some of whose arguments are chosen from the state when it is proposed.
#[derive(Clone, Debug)]
enum Step {
    Fixed(Command),
    Place { server: Index, index: u32 },
    Active { segment: Index },
    Change { segment: Index, replica: Index, kind: u8, stale: bool },
    Learn { segment: Index, former: Option<Index>, server: u64 },
    Retire { segment: Index, replica: Index },
    Deleted { segment: Index, server: u64 },
    Detach { session: u64, force: bool },
}

fn name() -> impl Strategy<Value = String> {
    prop::sample::select(&NAMES[..]).prop_map(str::to_owned)
}

fn step() -> impl Strategy<Value = Step> {
    use AttachMode::{Exclusive, ReadOnly, Shared};
    let mode = prop::sample::select(vec![Exclusive, Shared, ReadOnly]);
    let id = (1_u64..4).prop_map(VolumeId);
    let server = 1..=SERVERS;
    let attach = (name(), mode, any::<bool>(), 0_u8..6).prop_map(|(volume, mode, take_over, r)| {
        let (holder, request) = (Holder::default(), format!("r{r}"));
        Command::Attach(Attach { volume, mode, holder, take_over, request })
    });
    prop_oneof![
        1 => (name(), 1_u8..=4).prop_map(|(name, replicas)| Step::Fixed(Command::CreateVolume(volume(&name, replicas)))),
        1 => name().prop_map(|name| Step::Fixed(Command::DeleteVolume { name, keep_ms: 1 })),
        1 => id.clone().prop_map(|id| Step::Fixed(Command::RestoreVolume { id, name: String::new() })),
        1 => id.clone().prop_map(|id| Step::Fixed(Command::PurgeVolume { id, deletion: None })),
        1 => (id, 1_u64..200, 0_u64..9).prop_map(|(id, at, waited_ms)| Step::Fixed(Command::AgeTrash { id, deletion: Revision(at), waited_ms })),
        2 => (server.clone(), 1_u64..4).prop_map(|(id, run)| Step::Fixed(Command::RegisterServer(register(id, run)))),
        1 => server.clone().prop_map(|id| Step::Fixed(Command::RemoveServer { server: ServerId(id) })),
        3 => attach.prop_map(Step::Fixed),
        1 => (1_u64..9, 0_u64..9).prop_map(|(s, t)| Step::Fixed(Command::AttachReady { session: SessionId(s), token: Token(t) })),
        6 => (any::<Index>(), 0_u32..3).prop_map(|(server, index)| Step::Place { server, index }),
        6 => any::<Index>().prop_map(|segment| Step::Active { segment }),
        12 => (any::<Index>(), any::<Index>(), 0_u8..6, prop::bool::weighted(0.1))
            .prop_map(|(segment, replica, kind, stale)| Step::Change { segment, replica, kind, stale }),
        6 => (any::<Index>(), any::<Option<Index>>(), server.clone())
            .prop_map(|(segment, former, server)| Step::Learn { segment, former, server }),
        2 => (any::<Index>(), any::<Index>()).prop_map(|(segment, replica)| Step::Retire { segment, replica }),
        3 => (any::<Index>(), server).prop_map(|(segment, server)| Step::Deleted { segment, server }),
        2 => (1_u64..9, any::<bool>()).prop_map(|(session, force)| Step::Detach { session, force }),
    ]
}

fn records(state: &State) -> Vec<SegmentRecord> {
    let volumes = state.volumes.iter().map(|(&id, _)| id);
    volumes.flat_map(|id| state.segments_of(id, 0)).map(|r| r.as_ref().clone()).collect()
}

fn pick(records: &[SegmentRecord], index: Index) -> Option<&SegmentRecord> {
    (!records.is_empty()).then(|| index.get(records))
}

fn any_copy(record: &SegmentRecord, index: Index) -> ReplicaId {
    index.get(&record.copies().copied().collect::<Vec<_>>()).replica
}

/// The command that `step` means in this state; none if there is nothing to choose from.
fn resolve(state: &State, step: &Step) -> Option<Command> {
    let records = records(state);
    Some(match step {
        Step::Fixed(command) => command.clone(),
        Step::Place { server, index } => {
            let live: Vec<_> = state.volumes.iter().filter(|(_, v)| v.trashed.is_none()).collect();
            let (&volume, row) = *(!live.is_empty()).then(|| server.get(&live))?;
            let servers: Vec<_> = state.servers.iter().map(|(&id, _)| id).collect();
            let servers = servers.into_iter().take(row.replicas.into()).collect();
            let segment = SegmentId { volume, index: *index };
            Command::CreateSegment(CreateSegment { segment, servers })
        }
        Step::Active { segment } => {
            let record = pick(&records, *segment)?;
            let (segment, epoch, token) = (record.segment, record.epoch, record.token);
            let reports = vec![Active { segment, epoch, token }];
            Command::ReportActive { server: record.primary_member().server, reports }
        }
        Step::Change { segment, replica, kind, stale } => {
            let record = pick(&records, *segment)?;
            let replica = any_copy(record, *replica);
            let change = match kind {
                0 => SetChange::Remove { replica },
                1 => SetChange::Lost { replica },
                2 => SetChange::Promote { replica },
                3 => SetChange::Withdraw,
                4 => SetChange::Handover { to: replica },
                _ => SetChange::Replace { to: replica },
            };
            Command::ChangeSet(ChangeSet {
                segment: record.segment,
                expected_epoch: Epoch(record.epoch.0 - u64::from(*stale)),
                change,
                proposer: Some(record.primary_member().server),
                actor: String::new(),
                reason: String::new(),
            })
        }
        Step::Learn { segment, former, server } => {
            let record = pick(&records, *segment)?;
            let source = match former {
                Some(index) => LearnerSource::Former(any_copy(record, *index)),
                None => LearnerSource::Spare(ServerId(*server)),
            };
            let (segment, expected_epoch) = (record.segment, record.epoch);
            Command::AddLearner(AddLearner {
                segment,
                expected_epoch,
                source,
                reason: String::new(),
            })
        }
        Step::Retire { segment, replica } => {
            let record = pick(&records, *segment)?;
            Command::Retire {
                segment: record.segment,
                replica: any_copy(record, *replica),
                expected_epoch: record.epoch,
                reason: String::new(),
            }
        }
        Step::Deleted { segment, server } => {
            let server = ServerId(*server);
            let purged = state.retired_on(server).map(|key| (key.segment, key.replica)).next();
            let named = pick(&records, *segment).and_then(|record| {
                let copy = record.retired.iter().find(|copy| copy.server == server)?;
                Some((record.segment, copy.replica))
            });
            Command::ReportDeleted { server, copies: named.into_iter().chain(purged).collect() }
        }
        Step::Detach { session, force } => {
            Command::Detach { session: SessionId(*session), force: *force }
        }
    })
}

/// What may never be true of a record.
fn check_record(state: &State, record: &SegmentRecord) {
    assert!(record.member(record.primary).is_some(), "primary is no member: {record:?}");
    assert!(record.members.len() <= usize::from(record.replicas) + 1, "{record:?}");
    let holders: Vec<_> =
        record.members.iter().chain(&record.learners).chain(&record.former).collect();
    let distinct: BTreeSet<_> = holders.iter().map(|copy| copy.server).collect();
    assert_eq!(distinct.len(), holders.len(), "two copies on a server: {record:?}");
    for copy in &holders {
        assert!(state.servers.contains(&copy.server), "copy on an unknown server: {record:?}");
    }
    let run = state.servers.get(&record.primary_member().server).expect("checked").run;
    assert_eq!(record.primary_run, run, "the primary's run is its server's: {record:?}");
    let volume = state.volumes.get(&record.segment.volume).expect("segment of a volume");
    assert_eq!(record.token, volume.token, "{record:?}");
    if record.is_active() {
        assert!(record.members.iter().all(|m| !m.fresh), "active and fresh: {record:?}");
    }
}

/// What must hold between a state and the next.
#[derive(Default)]
struct History {
    epochs: BTreeMap<SegmentId, (Epoch, BTreeSet<ServerId>, ReplicaId)>,
    servers: BTreeMap<ReplicaId, (SegmentId, ServerId)>,
    tokens: BTreeMap<VolumeId, Token>,
}

impl History {
    fn check(&mut self, state: &State) {
        for record in records(state) {
            check_record(state, &record);
            let members: BTreeSet<_> = record.members.iter().map(|m| m.server).collect();
            let now = (record.epoch, members, record.primary);
            if let Some(before) = self.epochs.insert(record.segment, now.clone()) {
                assert!(before.0 <= now.0, "epoch went back (INV-EPOCH): {record:?}");
                assert!(
                    before.0 < now.0 || before == now,
                    "set changed within an epoch: {record:?}"
                );
            }
            for copy in record.copies() {
                let home = (record.segment, copy.server);
                let first = *self.servers.entry(copy.replica).or_insert(home);
                assert_eq!(first, home, "replica id used again: {record:?}");
            }
        }
        for (&id, volume) in state.volumes.iter() {
            let before = self.tokens.insert(id, volume.token).unwrap_or_default();
            assert!(before <= volume.token, "token went back (INV-FENCE)");
        }
        for (_, attachment) in state.attachments.iter() {
            let volume = state.volumes.get(&attachment.volume).expect("attached volume");
            assert_eq!(attachment.token, volume.token, "{attachment:?}");
        }
    }
}

/// A cluster with all servers.
fn initial() -> Vec<Command> {
    let init = Command::InitCluster { uuid: "u".to_owned(), segment_bytes: MIB };
    let servers = (1..=SERVERS).map(|id| Command::RegisterServer(register(id, 1)));
    std::iter::once(init).chain(servers).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn random_histories_keep_the_invariants_and_replay_to_the_same_hash(
        steps in prop::collection::vec(step(), 1..120)
    ) {
        let mut state = State::default();
        let mut log = initial();
        let mut rows = BTreeMap::new();
        let mut history = History::default();
        let mut revision = 0;
        for command in &log {
            revision += 1;
            run(&mut state, revision, command.clone(), &mut rows);
        }
        for step in &steps {
            let Some(command) = resolve(&state, step) else { continue };
            revision += 1;
            log.push(command.clone());
            let before = state.hash();
            let rejected = !run(&mut state, revision, command, &mut rows);
            prop_assert!(!rejected || before == state.hash(), "a rejected command changed something");
            history.check(&state);
        }

        let mut replayed = State::default();
        let mut again = BTreeMap::new();
        for (revision, command) in (1..).zip(log) {
            run(&mut replayed, revision, command, &mut again);
        }
        prop_assert_eq!(replayed.hash(), state.hash());
        let loaded = State::load(rows).expect("own rows");
        prop_assert_eq!(loaded.hash(), state.hash());
        prop_assert_eq!(&loaded.index, &state.index);
        prop_assert_eq!(loaded.counters.get(&Single), state.counters.get(&Single));
    }
}

/// Applies and stores; whether it was accepted.
fn run(
    state: &mut State,
    revision: u64,
    command: Command,
    rows: &mut BTreeMap<Vec<u8>, Vec<u8>>,
) -> bool {
    let proposal = Proposal { now_ms: revision, command };
    let accepted = apply(state, Revision(revision), &proposal).is_ok();
    for (key, row) in state.drain_changes() {
        match row {
            Some(row) => rows.insert(key, row),
            None => rows.remove(&key),
        };
    }
    state.drain_touched();
    accepted
}
