//! The catalog in memory, with the power of a simulated server.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use super::{Batch, Catalog, CatalogError, EachRow};
use crate::store::disk::{Keep, SimClock, Tick};

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// Rows in memory. Each batch counts as one write on the clock.
#[derive(Debug)]
pub struct SimCatalog {
    clock: Arc<SimClock>,
    state: Mutex<State>,
}

#[derive(Clone, Debug, Default)]
struct State {
    rows: Rows,
    /// The batch during which the power went.
    unsure: Option<Batch>,
}

impl SimCatalog {
    /// An empty catalog.
    pub fn new(clock: &Arc<SimClock>) -> Self {
        Self { clock: clock.clone(), state: Mutex::default() }
    }

    /// The catalog as the next start finds it: the last batch whole, or not at all.
    #[must_use]
    pub fn after_crash(&self, keep: Keep, clock: &Arc<SimClock>) -> Self {
        let mut state = self.lock().clone();
        if let Some(batch) = state.unsure.take()
            && matches!(keep, Keep::All | Keep::FirstHalf)
        {
            put(&mut state.rows, batch);
        }
        Self { clock: clock.clone(), state: Mutex::new(state) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}

impl Catalog for SimCatalog {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, CatalogError> {
        Ok(self.lock().rows.get(key).cloned())
    }

    fn scan(&self, prefix: &[u8], each: EachRow<'_>) -> Result<(), CatalogError> {
        let rows = self.lock().rows.clone();
        for (key, value) in rows.range(prefix.to_vec()..) {
            if !key.starts_with(prefix) {
                break;
            }
            each(key, value)?;
        }
        Ok(())
    }

    fn write(&self, batch: Batch) -> Result<(), CatalogError> {
        let mut state = self.lock();
        match self.clock.tick() {
            Tick::Done => {
                put(&mut state.rows, batch);
                Ok(())
            }
            Tick::Crashing => {
                state.unsure = Some(batch);
                Err(CatalogError::Simulated)
            }
            Tick::Failed(_) => Err(CatalogError::Simulated),
        }
    }
}

fn put(rows: &mut Rows, batch: Batch) {
    for (key, value) in batch {
        match value {
            Some(value) => rows.insert(key, value),
            None => rows.remove(&key),
        };
    }
}
