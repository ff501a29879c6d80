#![deny(clippy::disallowed_methods, clippy::disallowed_types)]
//! A cluster made from a backup. What the backup says of sets, epochs and tokens may be long past, so
//! nothing is decided by it before the chunkservers have told what they hold.
//!
//! ```text
//! begin (offline) ─► collecting ── ReportCopies of every server ── FinishRestore ─► serving
//! ```
//!
//! | what is known of a segment | its record after the restore |
//! | --- | --- |
//! | a record at least as new as every promise | that record, without the copies that are gone |
//! | only records older than some promise | the whole copies whose logs end last; the others are former members |
//! | nothing but a backup in which it was never active | none |
//! | no copy, though it was active | the primary alone, which is lost: reads must fail, not find a hole |
//!
//! In the second row nobody serves the newest epoch: its primary would have told its record. A log that
//! ends last, by epoch and sequence, has every committed entry that any copy has, so its holders alone may
//! go on. Every epoch and token is raised above all that was told, so nothing older can be served.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use tidewater_proto::{
    ids::{Epoch, Position, ReplicaId, RunId, SegmentId, ServerId, Token, VolumeId},
    record::{CopyReport, Member, SegmentRecord},
};

use super::{Step, events::Note, segments::segments_of, servers::run_of, sets::floor};
use crate::state::{
    State,
    command::ReportCopies,
    outcome::{Applied, Outcome, Rejected},
    rows::{CopyRow, EventKind, RestoreRow, VolumeRow},
    table::Single,
};

/// Ids of replicas and sessions passed over: more than a cluster has given since any backup.
const IDS_SKIPPED: u64 = 1 << 32;
/// Epochs and tokens passed over above the highest told: what servers that are given up may have known.
const EPOCHS_SKIPPED: u64 = 1 << 20;

/// Makes the state of a backup that of a restored cluster of `servers` chunkservers, which collects.
/// Attachments end: who has been fenced off since the backup is not known.
pub(crate) fn begin(state: &mut State, servers: u32) {
    let sessions: Vec<_> = state.attachments.iter().map(|(&session, _)| session).collect();
    for session in sessions {
        state.attachments.remove(&session);
    }
    state.index.requests.clear();
    state.index.fencing.clear();
    let mut counters = state.counters.get(&Single).cloned().unwrap_or_default();
    counters.replica += IDS_SKIPPED;
    counters.session += IDS_SKIPPED;
    state.counters.insert(Single, counters);
    forget_copies(state, |_| true);
    state.restore.insert(Single, RestoreRow { servers, ..RestoreRow::default() });
}

fn forget_copies(state: &mut State, which: impl Fn(&CopyRow) -> bool) {
    let told: Vec<_> =
        state.copies.iter().filter(|(_, row)| which(row)).map(|(&id, _)| id).collect();
    for id in told {
        state.copies.remove(&id);
    }
}

/// A server has started again: what it told is past.
pub(super) fn restarted(step: &mut Step<'_>, server: ServerId) {
    if let Some(row) = step.state.restore.get_mut(&Single) {
        row.reported.remove(&server);
        forget_copies(step.state, |row| row.server == server);
    }
}

/// Whether `server` still has to tell, in this run, what it holds.
pub(crate) fn is_awaited(state: &State, server: ServerId, run: RunId) -> bool {
    state.restoring().is_some_and(|row| row.reported.get(&server) != Some(&run))
}

/// Servers known by name that have not told what they hold.
pub(crate) fn awaited(state: &State, row: &RestoreRow) -> BTreeSet<ServerId> {
    let registered = state.servers.iter().map(|(&id, _)| id);
    let known = registered.chain(row.named.iter().copied());
    known.filter(|server| !row.reported.contains_key(server)).collect()
}

/// How many servers are still waited for if those in `without` are given up.
pub(crate) fn missing(state: &State, row: &RestoreRow, without: &[ServerId]) -> usize {
    let given_up: BTreeSet<_> =
        without.iter().filter(|server| !row.reported.contains_key(server)).collect();
    let named = awaited(state, row).iter().filter(|server| !given_up.contains(server)).count();
    let told = row.reported.len() + given_up.len();
    named.max((row.servers as usize).saturating_sub(told))
}

pub(super) fn report(step: &mut Step<'_>, args: &ReportCopies) -> Outcome {
    let server = args.server;
    let registered = step.state.servers.get(&server);
    let Some(registered) = registered.filter(|row| row.run == args.run) else {
        return Err(Rejected::UnknownServer { server });
    };
    let run = registered.run;
    let Some(row) = step.state.restore.get_mut(&Single) else {
        return Ok(Applied::Unchanged);
    };
    row.named.extend(args.servers.iter().copied());
    if args.last {
        row.reported.insert(server, run);
    }
    for copy in &args.copies {
        let named = copy.record.iter().flat_map(SegmentRecord::copies).map(|copy| copy.server);
        row.named.extend(named);
    }
    for copy in &args.copies {
        step.state.copies.insert(copy.replica, CopyRow { server, copy: copy.clone() });
    }
    Ok(Applied::Done)
}

/// What was told of each segment.
type Told = BTreeMap<SegmentId, Vec<CopyRow>>;

/// Ends the collecting: every segment gets a record above all that was told.
pub(super) fn finish(step: &mut Step<'_>, without: &[ServerId]) -> Outcome {
    let Some(row) = step.state.restoring().cloned() else { return Ok(Applied::Unchanged) };
    let missing = missing(step.state, &row, without);
    if missing > 0 {
        return Err(Rejected::ServersAwaited { missing });
    }
    let mut told = Told::new();
    for (_, row) in step.state.copies.iter() {
        told.entry(row.copy.segment).or_default().push(row.clone());
    }
    raise_counters(step, &row, &told);
    let volumes: Vec<_> = step.state.volumes.iter().map(|(&id, _)| id).collect();
    let mut raised = 0;
    for volume in volumes {
        raised += restore_volume(step, volume, &told, &row);
    }
    let strangers = told.keys().filter(|s| !step.state.volumes.contains(&s.volume)).count();
    forget_copies(step.state, |_| true);
    step.state.restore.remove(&Single);
    let without: Vec<_> = without.iter().map(ToString::to_string).collect();
    let detail = format!(
        "{raised} segments, {} servers, given up: [{}], {strangers} segments of volumes made later",
        row.reported.len(),
        without.join(" ")
    );
    let subject = step.state.cluster().map_or_else(String::new, |c| c.uuid.clone());
    step.event(
        EventKind::ClusterRestored,
        Note { actor: "operator", reason: "restored from a backup", subject, detail },
    );
    Ok(Applied::Done)
}

/// No id that a server knows is given again.
fn raise_counters(step: &mut Step<'_>, row: &RestoreRow, told: &Told) {
    let mut counters = step.state.counters.get(&Single).cloned().unwrap_or_default();
    let servers = row.reported.keys().chain(&row.named).map(|server| server.0);
    counters.server = servers.fold(counters.server, u64::max);
    counters.volume = told.keys().map(|s| s.volume.0).fold(counters.volume, u64::max);
    let replicas = told.values().flatten().map(|row| row.copy.replica.0);
    counters.replica = replicas.fold(counters.replica, u64::max);
    step.state.counters.insert(Single, counters);
}

/// Raises the volume's token and the records of all its segments. Returns how many it has.
fn restore_volume(step: &mut Step<'_>, id: VolumeId, told: &Told, row: &RestoreRow) -> usize {
    let first = SegmentId { volume: id, index: 0 };
    let last = SegmentId { volume: id, index: u32::MAX };
    let told: BTreeMap<_, _> = told.range(first..=last).map(|(s, copies)| (*s, copies)).collect();
    let known = step.state.segments_of(id, 0).map(|record| record.segment);
    let segments: BTreeSet<_> = known.chain(told.keys().copied()).collect();
    let Some(volume) = raise_volume(step, id, &told, segments.last().copied()) else { return 0 };
    let mut raised = 0;
    for &segment in &segments {
        let copies = told.get(&segment).map(|copies| copies.as_slice()).unwrap_or_default();
        let backup = step.state.segment(segment).map(|record| record.as_ref().clone());
        let known = Known { state: step.state, row, volume: &volume, backup, copies };
        if let Some(record) = known.record(segment, step.revision) {
            step.state.put_segment(record);
            raised += 1;
        } else {
            step.state.remove_segment(segment);
        }
    }
    raised
}

/// The volume with a token above all that was told, and long enough for all its segments.
fn raise_volume(
    step: &mut Step<'_>,
    id: VolumeId,
    told: &BTreeMap<SegmentId, &Vec<CopyRow>>,
    last: Option<SegmentId>,
) -> Option<VolumeRow> {
    let segment_bytes = step.state.cluster()?.segment_bytes;
    let volume = step.state.volumes.get_mut(&id)?;
    let tokens = told.values().copied().flatten().flat_map(|row| {
        let record = row.copy.record.as_ref().map(|record| record.token);
        record.into_iter().chain([row.copy.token])
    });
    volume.token = Token(tokens.fold(volume.token, Token::max).0 + EPOCHS_SKIPPED);
    let needed = last.map_or(0, |last| last.index + 1);
    if segments_of(volume, segment_bytes) < needed {
        volume.size_bytes = u64::from(needed) * segment_bytes;
    }
    Some(volume.clone())
}

/// All that is known of one segment.
struct Known<'a> {
    state: &'a State,
    row: &'a RestoreRow,
    volume: &'a VolumeRow,
    backup: Option<SegmentRecord>,
    copies: &'a [CopyRow],
}

impl Known<'_> {
    /// The segment's record from now on.
    fn record(
        &self,
        segment: SegmentId,
        revision: tidewater_proto::ids::Revision,
    ) -> Option<SegmentRecord> {
        let newest = self.newest();
        if newest.is_some_and(|record| self.was_never_used(record)) {
            return None;
        }
        let promised = self.copies.iter().map(|row| row.copy.epoch).max().unwrap_or_default();
        let epoch = newest.map_or(promised, |record| promised.max(record.epoch));
        let mut record = newest.cloned().unwrap_or_else(|| self.empty(segment));
        let whole = self.whole(&record);
        if record.epoch < promised && !whole.is_empty() {
            longest(&mut record, whole);
        } else {
            self.keep_present(&mut record);
        }
        self.adopt_others(&mut record);
        let primary = record.members.iter().find(|m| m.replica == record.primary);
        let primary = *primary.or(record.members.first()).expect("a set has a member");
        let sets = [&mut record.members, &mut record.learners, &mut record.former];
        for copy in sets.into_iter().flatten() {
            copy.fresh = false;
        }
        Some(SegmentRecord {
            revision,
            epoch: Epoch(epoch.0 + EPOCHS_SKIPPED),
            token: self.volume.token,
            primary: primary.replica,
            primary_run: run_of(self.state, primary.server),
            active: None,
            ..record
        })
    }

    fn was_never_used(&self, record: &SegmentRecord) -> bool {
        record.active.is_none() && !record.copies().any(|copy| self.may_be_there(copy))
    }

    /// The newest record told, or the backup's.
    fn newest(&self) -> Option<&SegmentRecord> {
        let told = self.copies.iter().filter_map(|row| row.copy.record.as_ref());
        told.chain(&self.backup).max_by_key(|record| (record.epoch, record.revision))
    }

    /// A record of a segment of which only copies are known.
    fn empty(&self, segment: SegmentId) -> SegmentRecord {
        SegmentRecord {
            segment,
            revision: tidewater_proto::ids::Revision(0),
            epoch: Epoch(0),
            token: Token(0),
            primary: ReplicaId(0),
            primary_run: RunId(0),
            members: Vec::new(),
            learners: Vec::new(),
            former: Vec::new(),
            retired: Vec::new(),
            floor: floor(self.volume.replicas),
            replicas: self.volume.replicas,
            durability: self.volume.durability,
            active: None,
        }
    }

    /// Whole copies, not retired, of registered servers.
    fn whole(&self, record: &SegmentRecord) -> Vec<(Position, Member)> {
        let usable = self.copies.iter().filter(|row| {
            let retired = record.retired.iter().any(|copy| copy.replica == row.copy.replica);
            !row.copy.copying && !retired && self.state.servers.contains(&row.server)
        });
        usable.map(|row| (row.copy.last, member(row))).collect()
    }

    /// Whether a copy that a record names may still be there.
    fn may_be_there(&self, copy: &Member) -> bool {
        let told = self.copies.iter().any(|row| row.copy.replica == copy.replica);
        let silent = !self.row.reported.contains_key(&copy.server);
        self.state.servers.contains(&copy.server) && (told || silent)
    }

    /// Retires the copies that their servers do not have. One member is left in any case, if only one
    /// that nobody has.
    fn keep_present(&self, record: &mut SegmentRecord) {
        if let (true, Some(row)) = (record.members.is_empty(), self.copies.first()) {
            let nobody = Member { replica: ReplicaId(0), server: row.server, fresh: false };
            record.primary = nobody.replica;
            record.members.push(nobody);
        }
        let lost_all = !record.members.iter().any(|copy| self.may_be_there(copy));
        let primary = record.primary;
        let stays = |copy: &Member| self.may_be_there(copy) || lost_all && copy.replica == primary;
        let mut gone = Vec::new();
        for set in [&mut record.members, &mut record.learners, &mut record.former] {
            gone.extend(set.extract_if(.., |copy| !stays(copy)));
        }
        gone.retain(|copy| self.state.servers.contains(&copy.server));
        record.retired.extend(gone);
    }

    /// Copies that no record names become former members, one a server: they are made use of or retired
    /// once the set is full.
    fn adopt_others(&self, record: &mut SegmentRecord) {
        for row in self.copies {
            let named = record.copies().any(|copy| copy.replica == row.copy.replica);
            let taken = record.copy_on(row.server).is_some();
            if !named && !taken && self.state.servers.contains(&row.server) {
                record.former.push(member(row));
            }
        }
    }
}

fn member(row: &CopyRow) -> Member {
    let CopyReport { replica, .. } = row.copy;
    Member { replica, server: row.server, fresh: false }
}

/// The set is those copies, one a server, whose logs end last.
fn longest(record: &mut SegmentRecord, mut copies: Vec<(Position, Member)>) {
    copies.sort_by_key(|&(last, copy)| (std::cmp::Reverse(last), copy.replica));
    let last = copies.first().map(|&(last, _)| last);
    record.members.clear();
    record.learners.clear();
    record.former.clear();
    for (at, copy) in copies {
        let taken = record.copy_on(copy.server).is_some();
        if Some(at) == last && !taken && record.members.len() < usize::from(record.replicas) {
            record.members.push(copy);
        }
    }
}
