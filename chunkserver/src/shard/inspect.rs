//! What a simulator sees of a shard between two of its steps.

use tidewater_proto::{entry::Payload, geometry::Extent, ids::ReplicaId};

use super::Shard;
use crate::{
    replica::Replica,
    store::{Completion, ReadError},
};

/// No job has this tag.
const LOOK: u64 = 0;

impl Shard {
    /// The copies it owns, by their ids.
    pub fn copies(&self) -> impl Iterator<Item = &Replica<Payload>> {
        self.owned.values().map(|owned| &owned.replica)
    }

    /// What a copy has applied, whoever leads. For a store whose crew is the caller, which reads at once.
    ///
    /// # Errors
    ///
    /// [`ReadError`], also if the store did not answer at once.
    pub fn content(&mut self, replica: ReplicaId, extent: Extent) -> Result<Payload, ReadError> {
        if let Some(payload) = self.store.read(replica, extent, LOOK) {
            return Ok(payload);
        }
        let (mut done, mut found) = (Vec::new(), Err(ReadError::Gone));
        self.store.poll(&mut done);
        for completion in done {
            match completion {
                Completion::Read { tag: LOOK, result } => found = result,
                other => self.complete(other),
            }
        }
        found
    }
}
