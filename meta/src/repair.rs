#![deny(clippy::disallowed_methods, clippy::disallowed_types)]
//! Plans repairs: what the state needs, given who is alive. A pure function; what it plans carries the
//! epoch it was planned for, so that a stale plan is refused by `apply`.
//!
//! A cluster that is being restored gets `FinishRestore` once all its servers have told what they hold,
//! and nothing before.
//!
//! | a segment | gets |
//! | --- | --- |
//! | with a dead primary and a live member | `Replace`, or `Handover` where the set is at its floor |
//! | whose live primary has not activated for long | the same |
//! | with a learner on a dead server | `Remove` |
//! | with a member dead for long that its primary has not removed | `Remove` |
//! | that lacks members, a former one is back | `AddLearner` of that |
//! | that lacks members for the repair delay, a spare exists | `AddLearner` there |
//! | with all its members, and former ones or learners besides | `Retire` |

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use tidewater_proto::{
    ids::{Epoch, Revision, SegmentId, ServerId, Token, VolumeId},
    record::{Member, SegmentRecord, SetChange},
};

use crate::{
    detector::{Liveness, Millis},
    placement::{Candidate, need_bytes, pick_one},
    state::{
        State,
        apply::{attachments::is_fenced, restore::missing},
        command::{AddLearner, ChangeSet, Command, LearnerSource, REPAIR},
        index::CopyCount,
        rows::Trashed,
    },
};

/// Commands planned at once; the rest waits for the next plan.
const COMMANDS_MAX: usize = 1024;
/// Learners that catch up on one server at a time.
const LEARNERS_PER_SERVER_MAX: u32 = 32;
/// A dead member stays this many detection times, for its primary to remove it first: that needs no
/// new activation.
const MEMBER_PATIENCE: u64 = 3;
/// A leader records how long a volume has been in the trash this often: what a change of leaders loses.
const TRASH_RECORD_MS: Millis = 10 * 60 * 1_000;

/// How long the planner waits for what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Silence after which a server is dead.
    pub(crate) dead_after: Millis,
    /// For a former member to come back, before a spare takes its place.
    pub(crate) repair_delay: Millis,
    /// For a live primary to activate its epoch.
    pub(crate) activation: Millis,
}

/// What a plan is made from.
pub(crate) struct World<'a> {
    pub(crate) state: &'a State,
    /// Every registered server.
    pub(crate) servers: &'a BTreeMap<ServerId, Liveness>,
    /// Servers that may take a new copy; of use only where a segment is not settled.
    pub(crate) spares: &'a [Candidate],
    /// By the clock of `servers`.
    pub(crate) now: Millis,
    pub(crate) patience: Patience,
}

/// The planner's memory: since when segments have waited for their primary, and volumes for the end of
/// their time in the trash. Losing it costs time only.
#[derive(Clone, Debug, Default)]
pub(crate) struct Planner {
    waiting: BTreeMap<SegmentId, (Epoch, Token, Millis)>,
    trash: BTreeMap<VolumeId, Counted>,
}

/// A stay in the trash, as this leader counts it.
#[derive(Clone, Copy, Debug)]
struct Counted {
    deletion: Revision,
    /// When this leader first saw it, and what was recorded of it then.
    since: Millis,
    before_ms: u64,
}

impl Planner {
    /// What to propose now; empty if nothing is to be done. At most [`COMMANDS_MAX`].
    pub(crate) fn plan(&mut self, world: &World<'_>) -> Vec<Command> {
        if let Some(row) = world.state.restoring() {
            let told = missing(world.state, row, &[]) == 0;
            return told
                .then(|| Command::FinishRestore { without: Vec::new() })
                .into_iter()
                .collect();
        }
        let mut commands = ready_attachments(world.state);
        commands.extend(self.trash(world));
        let segments = suspects(world);
        self.waiting.retain(|segment, _| segments.contains(segment));
        let mut turn = Turn { world, learners: BTreeMap::new() };
        for segment in segments {
            if commands.len() >= COMMANDS_MAX {
                break;
            }
            if let Some(record) = world.state.segment(segment) {
                let stuck = self.is_stuck(record, world);
                commands.extend(turn.segment(record, stuck));
            }
        }
        commands.truncate(COMMANDS_MAX);
        commands
    }

    /// Purges what has been in the trash for its time, and records the time of the rest. No two machines'
    /// clocks are compared: leaders count in turn, each from when it first sees the row.
    fn trash(&mut self, world: &World<'_>) -> Vec<Command> {
        let state = world.state;
        self.trash.retain(|id, _| state.index.trashed.contains(id));
        let stay = |&id| Some((id, state.volumes.get(&id)?.trashed?));
        let stays = state.index.trashed.iter().filter_map(stay);
        stays.filter_map(|(id, stay)| self.age(id, &stay, world.now)).collect()
    }

    fn age(&mut self, id: VolumeId, stay: &Trashed, now: Millis) -> Option<Command> {
        let deletion = stay.deletion;
        let fresh = Counted { deletion, since: now, before_ms: stay.waited_ms };
        let counted = self.trash.entry(id).or_insert(fresh);
        if counted.deletion != deletion {
            *counted = fresh;
        }
        let waited_ms = counted.before_ms.saturating_add(now.saturating_sub(counted.since));
        if waited_ms >= stay.keep_ms() {
            return Some(Command::PurgeVolume { id, deletion: Some(deletion) });
        }
        let unrecorded = waited_ms.saturating_sub(stay.waited_ms);
        (unrecorded >= TRASH_RECORD_MS).then_some(Command::AgeTrash { id, deletion, waited_ms })
    }

    /// Whether the primary has had its time to activate the current epoch and token.
    fn is_stuck(&mut self, record: &SegmentRecord, world: &World<'_>) -> bool {
        if record.is_active() {
            self.waiting.remove(&record.segment);
            return false;
        }
        let fresh = (record.epoch, record.token, world.now);
        let (epoch, token, since) = self.waiting.entry(record.segment).or_insert(fresh);
        if (*epoch, *token) != (record.epoch, record.token) {
            (*epoch, *token, *since) = fresh;
        }
        world.now.saturating_sub(*since) >= world.patience.activation
    }
}

fn ready_attachments(state: &State) -> Vec<Command> {
    let fencing = state.index.fencing.iter().filter_map(|session| state.attachments.get(session));
    fencing
        .filter(|a| is_fenced(state, a.volume, a.token))
        .map(|a| Command::AttachReady { session: a.session, token: a.token })
        .collect()
}

/// Segments that may need something: those not settled, and those with a copy on a dead server.
fn suspects(world: &World<'_>) -> BTreeSet<SegmentId> {
    let mut segments = world.state.index.unsettled.clone();
    for (&server, liveness) in world.servers {
        if liveness.is_dead() {
            segments.extend(world.state.index.on_server(server));
        }
    }
    segments
}

/// One plan, and the learners it has added so far.
struct Turn<'a> {
    world: &'a World<'a>,
    learners: BTreeMap<ServerId, u32>,
}

impl Turn<'_> {
    fn liveness(&self, server: ServerId) -> Liveness {
        // A server without a row is gone for good.
        self.world.servers.get(&server).copied().unwrap_or(Liveness::Dead { since: 0 })
    }

    fn is_dead(&self, server: ServerId) -> bool {
        self.liveness(server).is_dead()
    }

    fn dead_for(&self, server: ServerId) -> Millis {
        match self.liveness(server) {
            Liveness::Dead { since } => self.world.now.saturating_sub(since),
            Liveness::Alive | Liveness::Suspect => 0,
        }
    }

    /// The most urgent thing for a segment. Raising the epoch makes everything else stale, so a change of
    /// the set comes alone.
    fn segment(&mut self, record: &SegmentRecord, stuck: bool) -> Vec<Command> {
        let primary = record.primary_member().server;
        if self.is_dead(primary) || stuck {
            let reason = if stuck { "primary does not activate" } else { "primary is dead" };
            return self.replace_primary(record, reason).into_iter().collect();
        }
        if let Some(change) = self.remove_dead(record) {
            return vec![change];
        }
        if record.members.len() >= usize::from(record.replicas) {
            return surplus(record);
        }
        self.add_learners(record)
    }

    /// A live member leads, the one whose server leads the fewest.
    fn replace_primary(&self, record: &SegmentRecord, reason: &str) -> Option<Command> {
        let rank = |m: &&Member| {
            let late = self.liveness(m.server) != Liveness::Alive;
            (late, self.world.state.index.load(m.server).primaries, m.server)
        };
        let live = |m: &&Member| m.replica != record.primary && !self.is_dead(m.server);
        let to = record.members.iter().filter(live).min_by_key(rank)?.replica;
        let dead = self.is_dead(record.primary_member().server);
        let above_floor = record.members.len() > usize::from(record.floor);
        // A primary that is alive may be innocent: it stays a member.
        let change = if dead && above_floor {
            SetChange::Replace { to }
        } else {
            SetChange::Handover { to }
        };
        Some(change_set(record, change, reason))
    }

    fn remove_dead(&self, record: &SegmentRecord) -> Option<Command> {
        if let Some(learner) = record.learners.iter().find(|m| self.is_dead(m.server)) {
            let change = SetChange::Remove { replica: learner.replica };
            return Some(change_set(record, change, "learner is dead"));
        }
        let patience = self.world.patience.dead_after * MEMBER_PATIENCE;
        let above_floor = record.members.len() > usize::from(record.floor);
        let silent = record.members.iter().find(|m| self.dead_for(m.server) >= patience);
        silent.filter(|_| above_floor).map(|member| {
            let change = SetChange::Remove { replica: member.replica };
            change_set(record, change, "member is dead")
        })
    }

    fn add_learners(&mut self, record: &SegmentRecord) -> Vec<Command> {
        let have = record.members.len() + record.learners.len();
        let lacking = usize::from(record.replicas).saturating_sub(have);
        let (back, gone): (Vec<_>, Vec<_>) =
            record.former.iter().copied().partition(|m| !self.is_dead(m.server));
        let mut commands = Vec::new();
        for former in back.iter().take(lacking) {
            if self.take_learner(former.server) {
                let source = LearnerSource::Former(former.replica);
                commands.push(add_learner(record, source, "former member is back"));
            }
        }
        let delay = self.world.patience.repair_delay;
        let awaited = gone.iter().filter(|m| self.dead_for(m.server) < delay).count();
        let spares = lacking.saturating_sub(back.len() + awaited);
        commands.extend(self.spares(record, spares));
        commands
    }

    fn spares(&mut self, record: &SegmentRecord, wanted: usize) -> Vec<Command> {
        let mut free: Vec<Candidate> = Vec::new();
        for candidate in self.world.spares {
            let holds = record.copies().any(|copy| copy.server == candidate.server);
            let added = self.learners.get(&candidate.server).copied().unwrap_or_default();
            let learners = candidate.copies.learners + added;
            if !holds && learners < LEARNERS_PER_SERVER_MAX {
                let copies = CopyCount { learners, ..candidate.copies };
                free.push(Candidate { copies, ..candidate.clone() });
            }
        }
        let holders = record.members.iter().chain(&record.learners);
        let rows = holders.filter_map(|m| self.world.state.servers.get(&m.server));
        let mut taken: Vec<_> = rows.map(|row| &row.topology).collect();
        let need_bytes = need_bytes(self.world.state);
        let mut commands = Vec::new();
        for _ in 0..wanted {
            let Some(server) = pick_one(&free, &taken, need_bytes) else { break };
            taken.extend(free.iter().find(|c| c.server == server).map(|c| &c.topology));
            *self.learners.entry(server).or_default() += 1;
            let source = LearnerSource::Spare(server);
            commands.push(add_learner(record, source, "member is gone"));
        }
        commands
    }

    /// Whether `server` may catch up one more copy now; counts it.
    fn take_learner(&mut self, server: ServerId) -> bool {
        let added = self.learners.entry(server).or_default();
        let learners = self.world.state.index.load(server).learners + *added;
        let free = learners < LEARNERS_PER_SERVER_MAX;
        *added += u32::from(free);
        free
    }
}

fn change_set(record: &SegmentRecord, change: SetChange, reason: &str) -> Command {
    Command::ChangeSet(ChangeSet {
        segment: record.segment,
        expected_epoch: record.epoch,
        change,
        proposer: None,
        actor: REPAIR.to_owned(),
        reason: reason.to_owned(),
    })
}

fn add_learner(record: &SegmentRecord, source: LearnerSource, reason: &str) -> Command {
    Command::AddLearner(AddLearner {
        segment: record.segment,
        expected_epoch: record.epoch,
        source,
        reason: reason.to_owned(),
    })
}

/// The set is full: what is left over goes.
fn surplus(record: &SegmentRecord) -> Vec<Command> {
    let retire = |copy: &Member| Command::Retire {
        segment: record.segment,
        replica: copy.replica,
        expected_epoch: record.epoch,
        reason: "set is full".to_owned(),
    };
    // Not before the set is active: until then another copy may be needed.
    if record.is_active() {
        record.former.iter().chain(&record.learners).map(retire).collect()
    } else {
        Vec::new()
    }
}
