//! Questions about space that the shard's thread asks for single chunks and rounds.

use tidewater_proto::ids::ReplicaId;

use super::ShardStore;
use crate::store::overlay::Generation;

impl ShardStore {
    /// Whether a chunk holds data, by what is applied. Then a write to it takes no further space.
    pub fn holds(&self, replica: ReplicaId, chunk: u32) -> bool {
        let mapped = self.replicas.get(&replica).and_then(|state| state.chunks.get(&chunk));
        let below = mapped.is_some_and(|mapped| mapped.data);
        let frozen = self.round.as_ref().map(|round| &*round.frozen);
        let layers = [frozen, Some(&self.active)];
        if below && !layers.into_iter().flatten().any(Generation::zeroes) {
            return true;
        }
        layers
            .into_iter()
            .flatten()
            .filter_map(|layer: &Generation| layer.chunk(replica, chunk))
            .fold(below, |held, over| !over.blocks.is_empty() || held && !over.zeroed)
    }

    /// Whether a round is on its way.
    pub fn is_destaging(&self) -> bool {
        self.round.is_some()
    }
}
