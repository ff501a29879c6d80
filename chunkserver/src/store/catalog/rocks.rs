//! The catalog on RocksDB.

use std::path::{Path, PathBuf};

use rocksdb::{BlockBasedOptions, Cache, DB, IteratorMode, Options, WriteBatch, WriteOptions};

use super::{Batch, Catalog, CatalogError, EachRow};

/// Memory for rows read, bytes.
const CACHE_BYTES: usize = 32 << 20;
/// Memory for rows written and not yet in a table, bytes; two such are held.
const WRITE_BUFFER_BYTES: usize = 16 << 20;
/// Bits of the Bloom filter a key: 1 % of looks for a missing chunk read a table.
const BLOOM_BITS: f64 = 10.0;

/// Rows in one RocksDB database.
#[derive(Debug)]
pub struct RocksCatalog {
    db: DB,
    path: PathBuf,
}

impl RocksCatalog {
    /// Opens the database in `path`, making it where it is missing.
    pub fn open(path: &Path) -> Result<Self, CatalogError> {
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&Cache::new_lru_cache(CACHE_BYTES));
        table.set_bloom_filter(BLOOM_BITS, false);
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_write_buffer_size(WRITE_BUFFER_BYTES);
        options.set_max_write_buffer_number(2);
        options.set_keep_log_file_num(4);
        options.set_block_based_table_factory(&table);
        let path = path.to_path_buf();
        match DB::open(&options, &path) {
            Ok(db) => Ok(Self { db, path }),
            Err(source) => Err(CatalogError::Rocks { path, source }),
        }
    }

    fn failed(&self, source: rocksdb::Error) -> CatalogError {
        CatalogError::Rocks { path: self.path.clone(), source }
    }
}

impl Catalog for RocksCatalog {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, CatalogError> {
        self.db.get(key).map_err(|e| self.failed(e))
    }

    fn scan(&self, prefix: &[u8], each: EachRow<'_>) -> Result<(), CatalogError> {
        let start = IteratorMode::From(prefix, rocksdb::Direction::Forward);
        for row in self.db.iterator(start) {
            let (key, value) = row.map_err(|e| self.failed(e))?;
            if !key.starts_with(prefix) {
                break;
            }
            each(&key, &value)?;
        }
        Ok(())
    }

    fn write(&self, batch: Batch) -> Result<(), CatalogError> {
        let mut rows = WriteBatch::default();
        for (key, value) in batch {
            match value {
                Some(value) => rows.put(key, value),
                None => rows.delete(key),
            }
        }
        let mut durable = WriteOptions::default();
        durable.set_sync(true);
        self.db.write_opt(rows, &durable).map_err(|e| self.failed(e))
    }
}
