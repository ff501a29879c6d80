//! Configuration of a meta node.

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};
use tidewater_meta::MetaConfig;

use super::required;
use crate::{failure::Failure, units::Span};

/// Where a node listens unless told otherwise.
const DEFAULT_LISTEN: ([u8; 4], u16) = ([127, 0, 0, 1], 7400);

/// `tidewater meta run --config FILE`; flags override keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct MetaFile {
    /// Id of this node, from 1; unique in the cluster
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<u64>,
    /// Folder for log and state
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Cluster that the data folder must belong to, if it belongs to one
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cluster: Option<String>,
    /// Address to listen on (default 127.0.0.1:7400)
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) listen: Option<SocketAddr>,
    /// Address under which others reach this node, if another than `listen`
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) advertise: Option<String>,
    /// Serve Prometheus metrics here (default 127.0.0.1:7490, unless that is taken)
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) metrics_listen: Option<SocketAddr>,
    /// Silence after which a chunkserver counts as dead (default 1s)
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) server_dead_after: Option<Span>,
    /// How long a copy may be missing before a spare server gets one (default 30s)
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) repair_delay: Option<Span>,
    /// Log entries between snapshots (default 5000)
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) snapshot_entries: Option<u64>,
}

impl MetaFile {
    /// `flags` where given, else `self`.
    pub(crate) fn overridden(self, flags: Self) -> Self {
        Self {
            id: flags.id.or(self.id),
            data_dir: flags.data_dir.or(self.data_dir),
            cluster: flags.cluster.or(self.cluster),
            listen: flags.listen.or(self.listen),
            advertise: flags.advertise.or(self.advertise),
            metrics_listen: flags.metrics_listen.or(self.metrics_listen),
            server_dead_after: flags.server_dead_after.or(self.server_dead_after),
            repair_delay: flags.repair_delay.or(self.repair_delay),
            snapshot_entries: flags.snapshot_entries.or(self.snapshot_entries),
        }
    }

    /// The library's form.
    ///
    /// # Errors
    ///
    /// `Usage` where a key is missing.
    pub(crate) fn config(self) -> Result<MetaConfig, Failure> {
        let node = required(self.id, "id")?;
        let dir = required(self.data_dir, "data-dir")?;
        let listen = self.listen.unwrap_or_else(|| DEFAULT_LISTEN.into());
        let mut config = MetaConfig::new(node, listen, dir);
        config.advertise = self.advertise;
        config.cluster = self.cluster;
        let ms = |span: Span| span.0.as_millis() as u64;
        if let Some(span) = self.server_dead_after {
            config.server_dead_after_ms = ms(span);
        }
        if let Some(span) = self.repair_delay {
            config.repair_delay_ms = ms(span);
        }
        if let Some(entries) = self.snapshot_entries {
            config.snapshot_entries = entries;
        }
        Ok(config)
    }
}
