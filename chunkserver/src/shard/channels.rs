//! The channels between the server's control thread and its shards, both bounded (INV-BOUND).
//!
//! The control thread waits where a shard's commands are full. A shard waits for nobody: it takes its next
//! command whatever became of its reports, and a report that does not fit is left out if the protocol makes
//! it again, else kept. So of two full channels one is always being emptied, and no circle of waiting can
//! close.

use std::collections::VecDeque;

use tokio::sync::mpsc::{self, error::TrySendError};

use super::{ShardCommand, ShardReport};

/// Most commands that wait for a shard.
pub(crate) const COMMANDS_MAX: usize = 1_024;
/// Most reports, of all shards, that wait for the control thread.
pub const REPORTS_MAX: usize = 1_024;

/// The server's end of a shard's commands.
#[derive(Clone, Debug)]
pub(crate) struct Commands(mpsc::Sender<ShardCommand>);

/// Commands are full.
#[derive(Debug)]
pub(crate) struct Full;

impl Commands {
    /// A channel for the commands of one shard.
    pub(crate) fn channel() -> (Self, mpsc::Receiver<ShardCommand>) {
        let (sender, receiver) = mpsc::channel(COMMANDS_MAX);
        (Self(sender), receiver)
    }

    /// Tells the shard, once there is room.
    pub(crate) async fn tell(&self, command: ShardCommand) {
        // A shard that ended has said so through its thread.
        if self.0.send(command).await.is_err() {
            tracing::debug!("shard is gone");
        }
    }

    /// Tells the shard if there is room now.
    pub(crate) fn try_tell(&self, command: ShardCommand) -> Result<(), Full> {
        match self.0.try_send(command) {
            Err(TrySendError::Full(_)) => Err(Full),
            Ok(()) | Err(TrySendError::Closed(_)) => Ok(()),
        }
    }
}

/// A shard's end of the reports.
#[derive(Debug)]
pub(super) struct Reports {
    to_server: mpsc::Sender<ShardReport>,
    /// Those that nothing makes again. Bounded by the copies there were and one failure.
    kept: VecDeque<ShardReport>,
}

impl Reports {
    pub(super) fn new(to_server: mpsc::Sender<ShardReport>) -> Self {
        Self { to_server, kept: VecDeque::new() }
    }

    /// Reports now, later or, where it will be said again, perhaps not at all.
    pub(super) fn send(&mut self, report: ShardReport) {
        match self.to_server.try_send(report) {
            Ok(()) => {}
            Err(TrySendError::Full(report)) => match report {
                ShardReport::Propose { .. } | ShardReport::Active { .. } => {}
                ShardReport::Deleted { .. } | ShardReport::Failed => self.kept.push_back(report),
            },
            // The server part outlives its shards; at shutdown nobody listens any more.
            Err(TrySendError::Closed(_)) => tracing::debug!("report after shutdown"),
        }
    }

    /// Reports what was kept, as far as it fits.
    pub(super) fn retry(&mut self) {
        for _ in 0..self.kept.len() {
            if let Some(report) = self.kept.pop_front() {
                self.send(report);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use tidewater_proto::{
        ids::{Epoch, ReplicaId, SegmentId, Token, VolumeId},
        record::SetChange,
    };

    use super::*;
    use crate::replica::Reason;

    const SEGMENT: SegmentId = SegmentId { volume: VolumeId(1), index: 0 };

    fn deleted(replica: u64) -> ShardReport {
        ShardReport::Deleted { segment: SEGMENT, replica: ReplicaId(replica) }
    }

    #[test]
    fn what_is_said_again_is_left_out_and_what_is_not_is_kept() {
        let (to_server, mut reports) = mpsc::channel(1);
        let mut shard = Reports::new(to_server);
        shard.send(ShardReport::Active { segment: SEGMENT, epoch: Epoch(1), token: Token(1) });
        let change = SetChange::Remove { replica: ReplicaId(2) };
        let reason = Reason::Silent;
        shard.send(ShardReport::Propose { segment: SEGMENT, epoch: Epoch(1), change, reason });
        shard.send(deleted(7));
        shard.send(ShardReport::Failed);
        shard.retry();
        assert!(matches!(reports.try_recv(), Ok(ShardReport::Active { .. })));
        assert!(reports.try_recv().is_err(), "the channel holds one");
        shard.retry();
        assert!(matches!(reports.try_recv(), Ok(ShardReport::Deleted { .. })));
        shard.retry();
        assert!(matches!(reports.try_recv(), Ok(ShardReport::Failed)));
        shard.retry();
        assert!(reports.try_recv().is_err(), "nothing twice");
    }

    #[test]
    fn over_the_bound_the_control_thread_waits_or_is_told() {
        let (commands, mut receiver) = Commands::channel();
        for _ in 0..COMMANDS_MAX {
            commands.try_tell(ShardCommand::Gone(SEGMENT)).expect("below the bound");
        }
        commands.try_tell(ShardCommand::Gone(SEGMENT)).expect_err("at the bound");
        let waits = futures::FutureExt::now_or_never(commands.tell(ShardCommand::Gone(SEGMENT)));
        assert!(waits.is_none());
        receiver.try_recv().expect("one");
        let went = futures::FutureExt::now_or_never(commands.tell(ShardCommand::Gone(SEGMENT)));
        assert!(went.is_some());
    }

    /// Both channels hold one message, and each command makes the shard report thrice: whoever waited for
    /// the other's queue would never end.
    #[test]
    fn two_threads_that_fill_each_others_queues_both_get_on() {
        const COMMANDS: u64 = 2_000;
        let (to_shard, mut commands) = mpsc::channel(1);
        let (to_server, mut reports) = mpsc::channel(1);
        let to_shard = Commands(to_shard);
        let shard = std::thread::spawn(move || {
            let mut reports = Reports::new(to_server);
            while let Some(command) = commands.blocking_recv() {
                let ShardCommand::Retired(segment, replica) = command else { unreachable!() };
                let (epoch, token) = (Epoch(1), Token(1));
                reports.send(ShardReport::Active { segment, epoch, token });
                reports.send(ShardReport::Deleted { segment, replica });
                reports.send(ShardReport::Active { segment, epoch, token });
                reports.retry();
            }
            while !reports.kept.is_empty() {
                reports.retry();
                std::thread::yield_now();
            }
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let tell = async move {
            for replica in 1..=COMMANDS {
                to_shard.tell(ShardCommand::Retired(SEGMENT, ReplicaId(replica))).await;
            }
        };
        let carry = async {
            let mut gone = BTreeSet::new();
            while let Some(report) = reports.recv().await {
                if let ShardReport::Deleted { replica, .. } = report {
                    assert!(gone.insert(replica.0), "{replica} was reported twice");
                }
            }
            gone
        };
        let both = async { tokio::join!(tell, carry).1 };
        let limited = async { tokio::time::timeout(Duration::from_secs(30), both).await };
        let gone = runtime.expect("a runtime").block_on(limited).expect("both get on");
        assert_eq!(gone.len() as u64, COMMANDS, "every deletion was reported");
        shard.join().expect("it ended");
    }
}
