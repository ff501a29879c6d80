//! What a failed device takes with it: the copies that have chunks there. The others go on without it.

use std::collections::BTreeSet;

use tidewater_proto::ids::ReplicaId;

use super::{
    Batch, CatalogError, ChunkRow, Destager, DeviceError, Fault, ReplicaRow, parse_chunk_key,
    replica_key,
};
use crate::store::catalog::rows::CHUNK_PREFIX;

impl Destager {
    /// After a fault of a device, the copies that are given up so that the others can go on; the fault, if
    /// they cannot.
    pub(super) fn go_on_after(&mut self, fault: Fault) -> Result<Vec<ReplicaId>, Fault> {
        let failed = self.store.failed_devices();
        let new = failed.iter().any(|device| !self.given_up.contains(device));
        let left = failed.len() < self.store.devices().len();
        match fault {
            Fault::Device(DeviceError::Failed { .. }) if new && left => self.give_up(),
            other => Err(other),
        }
    }

    /// Marks the copies of this shard that have chunks on devices out of service. What is there is unknown, for a
    /// write or sync has failed; it must not count as a copy even if the device works again.
    pub(super) fn give_up(&mut self) -> Result<Vec<ReplicaId>, Fault> {
        let failed = self.store.failed_devices();
        let mut affected: BTreeSet<ReplicaId> = BTreeSet::new();
        self.store.catalog.scan(CHUNK_PREFIX, &mut |key, row| {
            let (replica, ..) = parse_chunk_key(key)?;
            let place = ChunkRow::decode(row)?.place;
            if place.is_some_and(|place| failed.contains(&place.device)) {
                affected.insert(replica);
            }
            Ok(())
        })?;
        let mut lost = Vec::new();
        let mut batch = Batch::new();
        for replica in affected {
            let Some(row) = self.replica(replica)? else { continue };
            if row.segment.shard(self.store.config.shards) == self.shard {
                let row = ReplicaRow { lost: true, ..row };
                batch.push((replica_key(replica), Some(row.encode())));
                lost.push(replica);
            }
        }
        if !batch.is_empty() {
            self.store.catalog.write(batch).map_err(|e: CatalogError| Fault::from(e))?;
        }
        self.given_up = failed;
        Ok(lost)
    }
}
