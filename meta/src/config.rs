//! Configuration of a meta node.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

/// A meta node's configuration. Times are in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct MetaConfig {
    /// This node's id, unique in the cluster, at least 1.
    pub node: u64,
    /// Where it listens. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// `host:port` that others reach it at, if that is not `listen`.
    #[serde(default)]
    pub advertise: Option<String>,
    /// Data folder.
    pub dir: PathBuf,
    /// Cluster that the data folder must belong to, if it belongs to one.
    #[serde(default)]
    pub cluster: Option<String>,
    /// Between a Raft leader's heartbeats.
    #[serde(default = "defaults::heartbeat_ms")]
    pub heartbeat_ms: u64,
    /// Shortest silence of the leader before an election.
    #[serde(default = "defaults::election_min_ms")]
    pub election_min_ms: u64,
    /// Longest such silence; also how long a leader is protected from rivals.
    #[serde(default = "defaults::election_max_ms")]
    pub election_max_ms: u64,
    /// Silence after which a chunkserver counts as dead.
    #[serde(default = "defaults::server_dead_after_ms")]
    pub server_dead_after_ms: u64,
    /// How long a member may be gone before a spare takes its place.
    #[serde(default = "defaults::repair_delay_ms")]
    pub repair_delay_ms: u64,
    /// How long a live primary may take to activate its epoch before another one leads.
    #[serde(default = "defaults::activation_ms")]
    pub activation_ms: u64,
    /// How long an attach waits for the primaries.
    #[serde(default = "defaults::attach_timeout_ms")]
    pub attach_timeout_ms: u64,
    /// How long a deleted volume stays in the trash, unless the request says otherwise.
    #[serde(default = "defaults::trash_keep_ms")]
    pub trash_keep_ms: u64,
    /// Log entries between snapshots.
    #[serde(default = "defaults::snapshot_entries")]
    pub snapshot_entries: u64,
    /// Log entries kept behind a snapshot, for nodes that lag a little.
    #[serde(default = "defaults::keep_entries")]
    pub keep_entries: u64,
}

mod defaults {
    pub(super) fn heartbeat_ms() -> u64 {
        150
    }
    pub(super) fn election_min_ms() -> u64 {
        400
    }
    pub(super) fn election_max_ms() -> u64 {
        700
    }
    pub(super) fn server_dead_after_ms() -> u64 {
        1_000
    }
    pub(super) fn repair_delay_ms() -> u64 {
        30_000
    }
    pub(super) fn activation_ms() -> u64 {
        5_000
    }
    pub(super) fn attach_timeout_ms() -> u64 {
        20_000
    }
    pub(super) fn trash_keep_ms() -> u64 {
        24 * 60 * 60 * 1_000
    }
    pub(super) fn snapshot_entries() -> u64 {
        5_000
    }
    pub(super) fn keep_entries() -> u64 {
        1_000
    }
}

/// A configuration that cannot work.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Ids start at 1.
    #[error("node must be at least 1")]
    NodeZero,
    /// Others cannot reach the node at an unspecified address.
    #[error("listen is {listen}, which others cannot reach: set advertise")]
    NoAdvertise {
        /// Configured.
        listen: SocketAddr,
    },
    /// A time or count of zero.
    #[error("{key} must not be 0")]
    Zero {
        /// Which key.
        key: &'static str,
    },
    /// openraft's own rules: heartbeat < election-min < election-max.
    #[error(transparent)]
    Raft(#[from] openraft::ConfigError),
}

impl MetaConfig {
    /// A configuration with default times.
    pub fn new(node: u64, listen: SocketAddr, dir: PathBuf) -> Self {
        Self {
            node,
            listen,
            advertise: None,
            dir,
            cluster: None,
            heartbeat_ms: defaults::heartbeat_ms(),
            election_min_ms: defaults::election_min_ms(),
            election_max_ms: defaults::election_max_ms(),
            server_dead_after_ms: defaults::server_dead_after_ms(),
            repair_delay_ms: defaults::repair_delay_ms(),
            activation_ms: defaults::activation_ms(),
            attach_timeout_ms: defaults::attach_timeout_ms(),
            trash_keep_ms: defaults::trash_keep_ms(),
            snapshot_entries: defaults::snapshot_entries(),
            keep_entries: defaults::keep_entries(),
        }
    }

    /// Checks the values against each other.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.node == 0 {
            return Err(ConfigError::NodeZero);
        }
        if self.advertise.is_none() && self.listen.ip().is_unspecified() {
            return Err(ConfigError::NoAdvertise { listen: self.listen });
        }
        let positive = [
            ("heartbeat-ms", self.heartbeat_ms),
            ("server-dead-after-ms", self.server_dead_after_ms),
            ("activation-ms", self.activation_ms),
            ("attach-timeout-ms", self.attach_timeout_ms),
            ("snapshot-entries", self.snapshot_entries),
        ];
        if let Some(&(key, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(ConfigError::Zero { key });
        }
        self.raft()?;
        Ok(())
    }

    /// How long an attach waits for the primaries.
    pub(crate) fn attach_timeout(&self) -> Duration {
        Duration::from_millis(self.attach_timeout_ms)
    }

    pub(crate) fn raft(&self) -> Result<openraft::Config, openraft::ConfigError> {
        // A node that lags further than the log reaches gets a snapshot.
        let lag = (self.snapshot_entries + self.keep_entries).saturating_mul(2);
        openraft::Config {
            cluster_name: "tidewater".to_owned(),
            heartbeat_interval: self.heartbeat_ms,
            election_timeout_min: self.election_min_ms,
            election_timeout_max: self.election_max_ms,
            install_snapshot_timeout: SNAPSHOT_TIMEOUT_MS,
            snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(self.snapshot_entries),
            max_in_snapshot_log_to_keep: self.keep_entries,
            replication_lag_threshold: lag,
            purge_batch_size: PURGE_ENTRIES,
            // A restarted leader may have lost unsynced applied entries: it must be elected again.
            enable_leader_restore: Some(false),
            // A node that was cut off or stood still would else come back with a higher term and
            // depose a leader that works.
            enable_pre_vote: Some(true),
            ..openraft::Config::default()
        }
        .validate()
    }
}

/// For sending and installing one snapshot.
const SNAPSHOT_TIMEOUT_MS: u64 = 120_000;
/// Log entries purged together.
const PURGE_ENTRIES: u64 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> MetaConfig {
        MetaConfig::new(1, ([127, 0, 0, 1], 7400).into(), "/x".into())
    }

    #[test]
    fn defaults_are_valid_and_unknown_keys_are_refused() {
        assert_eq!(config().validate(), Ok(()));
        let text = r#"{"node": 1, "listen": "127.0.0.1:7400", "dir": "/x"}"#;
        assert_eq!(serde_json::from_str::<MetaConfig>(text).expect("parses"), config());
        let unknown = text.replace("dir", "directory");
        assert!(serde_json::from_str::<MetaConfig>(&unknown).is_err());
    }

    #[test]
    fn values_that_cannot_work_are_refused() {
        let zero = MetaConfig { node: 0, ..config() };
        assert_eq!(zero.validate(), Err(ConfigError::NodeZero));
        let anywhere = MetaConfig { listen: ([0, 0, 0, 0], 1).into(), ..config() };
        assert!(matches!(anywhere.validate(), Err(ConfigError::NoAdvertise { .. })));
        let late = MetaConfig { heartbeat_ms: 500, ..config() };
        assert!(matches!(late.validate(), Err(ConfigError::Raft(_))));
    }
}
