//! The leader's loop: looks at the state and the servers, proposes what the planner says, looks again.
//! All it does follows from the state, so a new leader goes on where the old one was.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::MissedTickBehavior;

use crate::{
    fleet,
    node::Node,
    repair::{Patience, Planner, World},
    state::command::{Command, Proposal},
};

/// Between plans when nothing happens.
const TICK: Duration = Duration::from_millis(100);
/// Between plans when the state keeps changing.
const GAP: Duration = Duration::from_millis(10);

/// Plans while this node leads, until it is to stop.
pub(crate) async fn run(node: Arc<Node>) {
    let mut planner = Planner::default();
    let mut leading: Option<u64> = None;
    let mut moved = node.live.watch();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let event = async {
            tokio::select! {
                _ = tick.tick() => {}
                Ok(()) = moved.changed(), if leading.is_some() => tokio::time::sleep(GAP).await,
            }
        };
        tokio::select! {
            () = event => {}
            () = node.closing.cancelled() => return,
        }
        let term = led_term(&node);
        if let Some(term) = term.filter(|_| term != leading) {
            tracing::info!(node = node.id, term, "leads the cluster");
            planner = Planner::default();
            node.detector().lead(term, node.now());
            node.absence().lead(term, node.now());
        }
        leading = term;
        if leading.is_some() {
            let commands = plan(&node, &mut planner);
            tokio::select! {
                () = propose(&node, commands) => {}
                () = node.closing.cancelled() => return,
            }
        }
    }
}

/// The term in which this node leads, if it does.
fn led_term(node: &Node) -> Option<u64> {
    let metrics = node.raft.metrics();
    let metrics = metrics.borrow_watched();
    metrics.state.is_leader().then_some(metrics.current_term)
}

fn plan(node: &Node, planner: &mut Planner) -> Vec<Command> {
    let now = node.now();
    let view = node.live.read();
    let mut detector = node.detector();
    detector.tick(now);
    let servers = fleet::liveness(&view.state, &detector, now);
    // An idle cluster is looked at ten times a second.
    let spares = if view.state.index.unsettled.is_empty() {
        Vec::new()
    } else {
        fleet::candidates(&view.state, &detector, now)
    };
    drop(detector);
    let patience = Patience {
        dead_after: node.config.server_dead_after_ms,
        repair_delay: node.config.repair_delay_ms,
        activation: node.config.activation_ms,
    };
    let state = &view.state;
    let (servers, spares) = (&servers, spares.as_slice());
    planner.plan(&World { state, servers, spares, now, patience })
}

/// Proposes all at once and waits until each is applied, so that the next plan sees the result.
async fn propose(node: &Node, commands: Vec<Command>) {
    if commands.is_empty() {
        return;
    }
    let now_ms = node.wall_ms();
    let proposals = commands.into_iter().map(|command| Proposal { now_ms, command });
    let mut results = match node.raft.client_write_many(proposals).await {
        Ok(results) => results,
        Err(error) => {
            tracing::warn!(%error, "cannot propose repairs");
            return;
        }
    };
    while let Some(result) = results.next().await {
        match result {
            Ok(Ok(written)) => {
                if let Err(rejected) = written.response {
                    tracing::debug!(%rejected, "a repair was stale");
                }
            }
            Ok(Err(error)) => tracing::debug!(%error, "a repair was not committed"),
            Err(error) => tracing::warn!(%error, "cannot propose repairs"),
        }
    }
}
