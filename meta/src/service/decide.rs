//! How a request reaches the log, and how it waits for what follows.

use std::{future::Future, time::Duration};

use openraft::{
    ReadPolicy,
    async_runtime::watch::WatchReceiver,
    errors::{ClientWriteError, ForwardToLeader, LinearizableReadError, RaftError},
};

use super::failure::Failure;
use crate::{
    live::View,
    node::Node,
    raft::TypeConfig,
    state::{
        command::{Command, Proposal},
        outcome::{Applied, Rejected},
    },
};

/// For a command to be committed and applied.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(5);
/// Between tries while a new leader waits for its quorum.
const RETRY: Duration = Duration::from_millis(20);

fn not_leader(forward: ForwardToLeader<TypeConfig>) -> Failure {
    Failure::NotLeader { leader: forward.leader_node.map(|node| node.addr) }
}

fn write_failure(error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> Failure {
    match error {
        RaftError::APIError(
            ClientWriteError::ForwardToLeader(forward)
            | ClientWriteError::LogEntryDiscarded(forward),
        ) => not_leader(forward),
        other => Failure::Raft(other.to_string()),
    }
}

fn read_failure(error: RaftError<TypeConfig, LinearizableReadError<TypeConfig>>) -> Failure {
    match error {
        RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)) => not_leader(forward),
        other => Failure::Raft(other.to_string()),
    }
}

impl Node {
    /// Runs `work` for at most `limit`, and not past the node's stop.
    async fn bounded<T>(
        &self,
        limit: Duration,
        late: Failure,
        work: impl Future<Output = T>,
    ) -> Result<T, Failure> {
        tokio::select! {
            done = tokio::time::timeout(limit, work) => done.map_err(|_| late),
            () = self.closing.cancelled() => Err(Failure::Stopping),
        }
    }

    /// Commits the command and applies it.
    pub(crate) async fn propose(&self, command: Command) -> Result<Applied, Failure> {
        let proposal = Proposal { now_ms: self.wall_ms(), command };
        let written = self.commit(async {
            loop {
                match self.raft.client_write(proposal.clone()).await {
                    Err(error) if self.awaits_lease(&error) => tokio::time::sleep(RETRY).await,
                    done => return done,
                }
            }
        });
        Ok(written.await?.map_err(write_failure)?.data?)
    }

    /// Whether nothing was proposed because this leader has yet to hear from a quorum, as at the start
    /// of its term.
    fn awaits_lease(&self, error: &RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> bool {
        let unled = matches!(
            error,
            RaftError::APIError(ClientWriteError::ForwardToLeader(f)) if f.leader_id.is_none()
        );
        unled && self.check_leads().is_ok()
    }

    /// Waits for a change of the log to be committed.
    pub(crate) async fn commit<T>(&self, work: impl Future<Output = T>) -> Result<T, Failure> {
        let late = Failure::NoQuorum { limit_ms: COMMIT_TIMEOUT.as_millis() as u64 };
        self.bounded(COMMIT_TIMEOUT, late, work).await
    }

    /// Changes the Raft group itself.
    pub(crate) async fn reconfigure<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, RaftError<TypeConfig, ClientWriteError<TypeConfig>>>>,
    ) -> Result<T, Failure> {
        let late = Failure::NoQuorum { limit_ms: limit.as_millis() as u64 };
        self.bounded(limit, late, work).await?.map_err(write_failure)
    }

    /// Returns, with the term, once the local state has all that was committed before the call. The
    /// leader's alone.
    pub(crate) async fn linearized(&self) -> Result<u64, Failure> {
        let read = self.commit(self.raft.ensure_linearizable(ReadPolicy::ReadIndex)).await?;
        read.map(|read| read.committed_leader_id().term).map_err(read_failure)
    }

    /// Fails while the cluster, restored from a backup, waits for its chunkservers.
    pub(crate) fn check_decides(&self) -> Result<(), Failure> {
        match self.live.read().state.restoring() {
            Some(_) => Err(Rejected::Restoring.into()),
            None => Ok(()),
        }
    }

    /// Fails unless this node believes that it leads; returns in which term.
    pub(crate) fn check_leads(&self) -> Result<u64, Failure> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.state.is_leader() {
            return Ok(metrics.current_term);
        }
        let members = metrics.membership_config.membership();
        let leader = metrics.current_leader.and_then(|id| members.get_node(&id));
        Err(Failure::NotLeader { leader: leader.map(|node| node.addr.clone()) })
    }

    /// Waits until `check` finds what it looks for in the state.
    pub(crate) async fn wait_until<T>(
        &self,
        limit: Duration,
        what: &'static str,
        mut check: impl FnMut(&View) -> Option<T>,
    ) -> Result<T, Failure> {
        let mut moved = self.live.watch();
        let late = Failure::Waiting { what, limit_ms: limit.as_millis() as u64 };
        let found = self.bounded(limit, late, async {
            loop {
                moved.mark_unchanged();
                if let Some(found) = check(&self.live.read()) {
                    return Ok(found);
                }
                moved.changed().await.map_err(|_| Failure::Stopping)?;
            }
        });
        found.await?
    }
}
