#![deny(clippy::disallowed_methods, clippy::disallowed_types)]
//! `apply`: the one way the state changes. Total and deterministic; a rejected command changes
//! nothing.

pub(crate) mod attachments;
mod cluster;
mod events;
mod programs;
pub(crate) mod restore;
pub(crate) mod segments;
mod servers;
mod sets;
mod volumes;

#[cfg(test)]
mod audit;
#[cfg(test)]
mod random;
#[cfg(test)]
mod tests;

use tidewater_proto::ids::Revision;

use super::{
    State,
    command::{Command, Proposal},
    outcome::{Outcome, Rejected},
    rows::Counters,
    table::Single,
};

/// A command being applied.
struct Step<'a> {
    state: &'a mut State,
    revision: Revision,
    now_ms: u64,
}

impl Step<'_> {
    /// The next of one kind of id.
    fn draw(&mut self, counter: fn(&mut Counters) -> &mut u64) -> u64 {
        let mut counters = self.state.counters.get(&Single).cloned().unwrap_or_default();
        let next = counter(&mut counters);
        *next += 1;
        let drawn = *next;
        self.state.counters.insert(Single, counters);
        drawn
    }
}

/// Applies the command at log index `revision`.
pub(crate) fn apply(state: &mut State, revision: Revision, proposal: &Proposal) -> Outcome {
    let initialised = state.cluster().is_some();
    let step = &mut Step { state, revision, now_ms: proposal.now_ms };
    if !initialised && !matches!(proposal.command, Command::InitCluster { .. }) {
        return Err(Rejected::NoCluster);
    }
    if step.state.restoring().is_some() && !proposal.command.collects() {
        return Err(Rejected::Restoring);
    }
    match &proposal.command {
        Command::InitCluster { uuid, segment_bytes } => cluster::init(step, uuid, *segment_bytes),
        Command::RegisterServer(args) => servers::register(step, args),
        Command::UpdateServer(args) => servers::update(step, args),
        Command::RemoveServer { server } => servers::remove(step, *server),
        Command::CreateVolume(args) => volumes::create(step, args),
        Command::ResizeVolume { name, size_bytes } => volumes::resize(step, name, *size_bytes),
        Command::RenameVolume { name, to } => volumes::rename(step, name, to),
        Command::DeleteVolume { name, keep_ms } => volumes::delete(step, name, *keep_ms),
        Command::RestoreVolume { id, name } => volumes::restore(step, *id, name),
        Command::AgeTrash { id, deletion, waited_ms } => {
            volumes::age(step, *id, *deletion, *waited_ms)
        }
        Command::PurgeVolume { id, deletion } => volumes::purge(step, *id, *deletion),
        Command::RegisterProgram { name, instances } => programs::register(step, name, instances),
        Command::RemoveProgram { name, instance } => {
            programs::remove(step, name, instance.as_deref())
        }
        Command::Attach(args) => attachments::attach(step, args),
        Command::AttachReady { session, token } => attachments::ready(step, *session, *token),
        Command::Detach { session, force } => attachments::detach(step, *session, *force),
        Command::CreateSegment(args) => segments::create(step, args),
        Command::ChangeSet(args) => segments::change_set(step, args),
        Command::AddLearner(args) => segments::add_learner(step, args),
        Command::Retire { segment, replica, expected_epoch, reason } => {
            segments::retire(step, *segment, *replica, *expected_epoch, reason)
        }
        Command::ReportActive { server, reports } => {
            Ok(segments::report_active(step, *server, reports))
        }
        Command::ReportDeleted { server, copies } => {
            Ok(segments::report_deleted(step, *server, copies))
        }
        Command::ReportCopies(args) => restore::report(step, args),
        Command::FinishRestore { without } => restore::finish(step, without),
    }
}
