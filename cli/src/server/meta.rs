//! A meta node and its metrics.

use std::path::Path;

use tidewater_meta::{MetaConfig, MetaMetrics, MetaNode, RestoreError};

use super::{MetaVerb, file_or_default, log, stop_signal};
use crate::{
    config::MetaFile,
    failure::{Code, Failure},
    metrics::{self, Exposition, Kind},
};

/// Where metrics are unless told otherwise; the other roles have the next ports.
const DEFAULT_METRICS: ([u8; 4], u16) = ([127, 0, 0, 1], 7490);

pub(crate) fn run(verb: MetaVerb) -> Result<(), Failure> {
    match verb {
        MetaVerb::Run { config, flags } => {
            run_node(file_or_default::<MetaFile>(config.as_deref())?.overridden(flags))
        }
        MetaVerb::Restore { backup, servers, config, flags } => {
            let file = file_or_default::<MetaFile>(config.as_deref())?.overridden(flags);
            restore(file, &backup, servers)
        }
    }
}

fn restore(file: MetaFile, backup: &Path, servers: u32) -> Result<(), Failure> {
    let restored =
        tidewater_meta::restore(&file.config()?, backup, servers).map_err(|error| match error {
            RestoreError::Config(_) => Failure::new(Code::Usage, error.to_string()),
            RestoreError::KnownNode { .. } | RestoreError::Exists { .. } => {
                Failure::new(Code::Conflict, error.to_string())
            }
            RestoreError::Backup { .. } | RestoreError::Store(_) => {
                Failure::new(Code::Other, error.to_string())
            }
        })?;
    eprintln!(
        "restored cluster {}: {} volumes, {} segments, {} chunkservers then; run the node, and it waits \
         for {servers} chunkservers",
        restored.cluster, restored.volumes, restored.segments, restored.servers
    );
    Ok(())
}

fn run_node(file: MetaFile) -> Result<(), Failure> {
    let metrics_listen = file.metrics_listen;
    let config = file.config()?;
    config.validate().map_err(|e| Failure::new(Code::Usage, e.to_string()))?;
    log();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(anyhow::Error::from)?.block_on(serve(config, metrics_listen))
}

async fn serve(
    config: MetaConfig,
    metrics_listen: Option<std::net::SocketAddr>,
) -> Result<(), Failure> {
    let stop = stop_signal()?;
    let mut node = MetaNode::start(config).await.map_err(anyhow::Error::from)?;
    let source = node.metrics_source();
    let exported = metrics::serve(metrics_listen, DEFAULT_METRICS, move || text(&source()));
    let ended = tokio::select! {
        () = stop => Ok(()),
        error = node.failed() => Err(Failure::from(anyhow::Error::from(error))),
        error = exported => Err(error),
    };
    node.stop().await;
    ended
}

fn text(m: &MetaMetrics) -> String {
    let mut out = Exposition::default();
    metrics::build_info(&mut out, "meta");
    let gauges = [
        ("tidewater_raft_term", "Raft term.", m.term),
        ("tidewater_raft_commit_index", "Last entry of the log.", m.last_log),
        ("tidewater_raft_applied_index", "Last entry applied.", m.applied),
        ("tidewater_raft_snapshot_index", "Entry the snapshot reaches to.", m.snapshot),
        ("tidewater_raft_is_leader", "Whether this node leads.", m.is_leader.into()),
        ("tidewater_attachments", "Attachments of volumes.", m.attachments),
        ("tidewater_learners", "Copies that catch up.", m.learners),
        ("tidewater_copies_retired", "Copies yet to be deleted.", m.copies_retired),
    ];
    for (name, help, value) in gauges {
        out.single(name, Kind::Gauge, help, value as f64);
    }
    let mut volumes = out.family("tidewater_volumes", Kind::Gauge, "Volumes by state.");
    volumes.sample(&[("state", "present")], m.volumes as f64);
    volumes.sample(&[("state", "trash")], m.volumes_trashed as f64);
    let mut servers = out.family("tidewater_servers", Kind::Gauge, "Chunkservers by state.");
    servers.sample(&[("state", "registered")], m.servers as f64);
    if let Some(alive) = m.servers_alive {
        servers.sample(&[("state", "alive")], alive as f64);
    }
    let mut segments = out.family("tidewater_segments", Kind::Gauge, "Placed segments by state.");
    segments.sample(&[("state", "placed")], m.segments as f64);
    segments.sample(&[("state", "degraded")], m.segments_degraded as f64);
    segments.sample(&[("state", "inactive")], m.segments_inactive as f64);
    out.finish()
}
