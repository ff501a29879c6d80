//! Makes the data folder of a new cluster of one node from a backup: a copy of a snapshot folder.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

use openraft::{BasicNode, Membership};
use rocksdb::WriteBatch;

use super::{
    LogId, StoredMembership, Vote, log, machine, snapshot,
    store::{Store, StoreError, read_checkpoint},
};
use crate::{
    config::{ConfigError, MetaConfig},
    state::{State, apply::restore::begin},
};

/// Log entries passed over: more than a cluster has written since any backup. Chunkservers ignore
/// records that are older, by the index of their entry, than what they have.
const ENTRIES_SKIPPED: u64 = 1 << 40;

/// Why a backup was not restored. The backup is never changed.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The configuration cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Not a snapshot folder, or one of an empty node.
    #[error("backup {}: {source}", path.display())]
    Backup {
        /// What was read.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The data folder holds a node already.
    #[error("data folder {} is in use", dir.display())]
    Exists {
        /// The folder.
        dir: PathBuf,
    },
    /// Other nodes of the old cluster would take the new node for the old one.
    #[error("meta node {node} was part of the cluster: the id must be one never used before")]
    KnownNode {
        /// Configured.
        node: u64,
    },
    /// The backup or the data folder.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a backup had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Identity of the cluster.
    pub cluster: String,
    /// Volumes, with those in the trash.
    pub volumes: u64,
    /// Placed segments.
    pub segments: u64,
    /// Chunkservers known then.
    pub servers: u64,
}

/// Makes `config.dir` the data folder of a cluster of the one node `config.node`, with the state that
/// `backup` has: a copy of a meta node's folder `snapshots/<n>`. Served, it decides nothing before
/// `servers` chunkservers have told what they hold, and then raises every epoch and token above that.
///
/// # Errors
///
/// [`RestoreError`]; after one of the data folder that is to be removed.
pub fn restore(config: &MetaConfig, backup: &Path, servers: u32) -> Result<Restored, RestoreError> {
    config.validate()?;
    let damaged = |source| RestoreError::Backup { path: backup.to_owned(), source };
    let meta = snapshot::read_meta(backup).map_err(damaged)?;
    let nothing = || damaged(io::Error::other("it is of a node without a cluster"));
    let last = meta.last_log_id.ok_or_else(nothing)?;
    if meta.last_membership.membership().get_node(&config.node).is_some() {
        return Err(RestoreError::KnownNode { node: config.node });
    }
    let rows = read_checkpoint(backup)?;
    let loaded = State::load(rows.iter().map(|(key, row)| (key, row)));
    let mut state = loaded.map_err(|bad| StoreError::Malformed { key: bad.key })?;
    let restored = describe(&state).ok_or_else(nothing)?;
    if let Some(configured) = config.cluster.clone().filter(|c| *c != restored.cluster) {
        let found = restored.cluster;
        return Err(StoreError::OtherCluster { found, configured }.into());
    }
    if config.dir.join("db").exists() {
        return Err(RestoreError::Exists { dir: config.dir.clone() });
    }
    begin(&mut state, servers);
    let store = Store::open(&config.dir, config.node)?;
    let mut batch = WriteBatch::default();
    for (key, row) in &rows {
        batch.put_cf(store.state(), key, row);
    }
    for (key, row) in state.drain_changes() {
        match row {
            Some(row) => batch.put_cf(store.state(), key, row),
            None => batch.delete_cf(store.state(), key),
        }
    }
    put_raft(&store, &mut batch, config, last);
    store.write_synced(batch)?;
    Ok(restored)
}

fn describe(state: &State) -> Option<Restored> {
    Some(Restored {
        cluster: state.cluster()?.uuid.clone(),
        volumes: state.volumes.len() as u64,
        segments: state.segment_count() as u64,
        servers: state.servers.len() as u64,
    })
}

/// A Raft group of this node, whose log is empty behind the state.
fn put_raft(store: &Store, batch: &mut WriteBatch, config: &MetaConfig, last: LogId) {
    let term = last.committed_leader_id().term;
    let applied = LogId::new(*last.committed_leader_id(), last.index + ENTRIES_SKIPPED);
    let address = config.advertise.clone().unwrap_or_else(|| config.listen.to_string());
    let nodes = BTreeMap::from([(config.node, BasicNode { addr: address })]);
    let group = Membership::new(vec![BTreeSet::from([config.node])], nodes);
    let group = group.expect("the one voter has an address");
    store.put_meta(batch, machine::KEY_APPLIED, &applied);
    store.put_meta(batch, machine::KEY_MEMBERSHIP, &StoredMembership::new(Some(applied), group));
    store.put_meta(batch, log::KEY_PURGED, &applied);
    store.put_meta(batch, log::KEY_VOTE, &Vote::new(term, config.node));
}
