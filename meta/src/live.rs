//! The applied state as the rest of the process sees it.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tidewater_proto::ids::Revision;
use tokio::sync::watch;

use crate::{
    feed::Feed,
    raft::{LogId, StoredMembership},
    state::State,
};

/// State at one log index.
#[derive(Default)]
pub(crate) struct View {
    pub(crate) state: State,
    pub(crate) feed: Feed,
    pub(crate) applied: Option<LogId>,
    pub(crate) membership: StoredMembership,
}

/// The view and the signal that it moved.
pub(crate) struct Live {
    // A lock, because the one writer (the state machine) and the request handlers are different
    // tasks and a state is too large to copy for each read. Never held across an await.
    view: RwLock<View>,
    moved: watch::Sender<Revision>,
}

impl View {
    /// Index of the last log entry in the state.
    pub(crate) fn revision(&self) -> Revision {
        Revision(self.applied.map_or(0, |log_id| log_id.index))
    }
}

impl Live {
    pub(crate) fn new(view: View) -> Self {
        let moved = watch::Sender::new(view.revision());
        Self { view: RwLock::new(view), moved }
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, View> {
        self.view.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells those who wait that the view has moved.
    pub(crate) fn announce(&self, revision: Revision) {
        self.moved.send_replace(revision);
    }

    /// Resolves each time the view has moved.
    pub(crate) fn watch(&self) -> watch::Receiver<Revision> {
        self.moved.subscribe()
    }
}
