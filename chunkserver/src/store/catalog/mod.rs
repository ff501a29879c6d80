//! The catalog: where each chunk is and what its blocks sum to, and what each replica promised.
//!
//! [`Catalog`] is an ordered map of byte strings with atomic, durable batches; [`rows`] gives the
//! strings their meaning (format version 1).

mod rocks;
pub mod rows;
mod sim;

use std::{fmt, path::PathBuf};

pub use rocks::RocksCatalog;
pub use sim::SimCatalog;

/// Rows to put (`Some`) and to delete (`None`), in order; done together or not at all.
pub type Batch = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// What [`Catalog::scan`] calls for each row: key, then value.
pub type EachRow<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> Result<(), rows::BadRow>;

/// The catalog did not do what it was asked. After a failed write it must not be used again.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// What RocksDB said.
    #[error("catalog in {path}")]
    Rocks {
        /// Folder of the database.
        path: PathBuf,
        /// Its error.
        #[source]
        source: rocksdb::Error,
    },
    /// A row is not what this version writes.
    #[error(transparent)]
    Row(#[from] rows::BadRow),
    /// The simulated server has no power.
    #[error("the simulated catalog failed")]
    Simulated,
}

/// An ordered map with atomic, durable batches.
///
/// Contract, checked for every implementation by `contract`: a batch is visible and durable as a
/// whole when [`write`](Self::write) returns; a crash before that keeps all or none of it.
pub trait Catalog: Send + Sync + fmt::Debug {
    /// One row.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, CatalogError>;

    /// Calls `each` with the rows whose keys start with `prefix`, in order of keys.
    fn scan(&self, prefix: &[u8], each: EachRow<'_>) -> Result<(), CatalogError>;

    /// Does all of `batch`, durably.
    fn write(&self, batch: Batch) -> Result<(), CatalogError>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::disk::SimClock;

    fn contract(catalog: &dyn Catalog) -> Result<(), CatalogError> {
        assert_eq!(catalog.get(b"a")?, None);
        let put = |key: &[u8], value: &[u8]| (key.to_vec(), Some(value.to_vec()));
        catalog.write(vec![
            put(b"b2", b"3"),
            put(b"a", b"1"),
            put(b"b1", b"2"),
            put(b"c", b"4"),
        ])?;
        assert_eq!(catalog.get(b"a")?, Some(b"1".to_vec()));
        catalog.write(vec![(b"a".to_vec(), None), put(b"b1", b"5")])?;
        assert_eq!(catalog.get(b"a")?, None);
        let mut seen = Vec::new();
        catalog.scan(b"b", &mut |key, value| {
            seen.push((key.to_vec(), value.to_vec()));
            Ok(())
        })?;
        assert_eq!(seen, [(b"b1".to_vec(), b"5".to_vec()), (b"b2".to_vec(), b"3".to_vec())]);
        Ok(())
    }

    #[test]
    fn rocks_catalog_keeps_the_contract_and_its_rows() -> Result<(), CatalogError> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        contract(&RocksCatalog::open(dir.path())?)?;
        assert_eq!(RocksCatalog::open(dir.path())?.get(b"c")?, Some(b"4".to_vec()));
        Ok(())
    }

    #[test]
    fn sim_catalog_keeps_the_contract() -> Result<(), CatalogError> {
        contract(&SimCatalog::new(&SimClock::new(1)))
    }
}
