//! openraft's own contract suite for storage.

use openraft::{
    StorageError,
    testing::log::{StoreBuilder, Suite},
};

use super::{TypeConfig, log::LogStore, machine::Machine, store::Store};

struct Folder;

impl StoreBuilder<TypeConfig, LogStore, Machine, tempfile::TempDir> for Folder {
    async fn build(
        &self,
    ) -> Result<(tempfile::TempDir, LogStore, Machine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().expect("tempdir");
        let store = Store::open(dir.path(), 1).expect("new folder");
        let log = LogStore::new(store.clone()).expect("log");
        let (machine, _) = Machine::open(store).expect("machine");
        Ok((dir, log, machine))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_passes_openraft_suite() {
    Suite::test_all(Folder).await.expect("openraft's storage suite");
}
