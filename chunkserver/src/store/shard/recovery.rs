//! Opening a shard: catalog rows and journal to replicas.

use std::{collections::BTreeMap, sync::Arc};

use tidewater_proto::{
    aligned::AlignedBuf,
    entry::{Entry, Payload},
    geometry::BLOCK_BYTES,
    ids::{Epoch, ReplicaId, Sequence, Token},
};

use super::{Mapped, Recovered, Replica, Ring, ShardStore};
use crate::store::{
    base::{OpenError, Store},
    catalog::{
        CatalogError,
        rows::{self, ChunkRow, ReplicaRow},
    },
    crew::{Inbox, Station},
    destage::Destager,
    disk::{DiskFile, Mode},
    fetch::Fetcher,
    journal::{
        Record, file_name,
        format::tag,
        recover::{Recovery, recover, scan},
        writer::Writer,
    },
    overlay::Generation,
    reader::Reader,
    recent::Recent,
};

/// Rows of chunks kept in memory, a shard; one takes up to 4 KiB.
const ROWS_MAX: usize = 8_192;

/// What the journal says of one replica.
#[derive(Debug, Default)]
struct Found {
    entries: Vec<Entry<Payload>>,
    commit: Sequence,
    promise: (Epoch, Token),
    /// Where an entry would belong that came without those before it.
    orphan: Option<usize>,
}

impl ShardStore {
    /// Opens a shard's storage and tells what it holds.
    pub fn open(store: &Arc<Store>, shard: usize) -> Result<(Self, Vec<Recovered>), OpenError> {
        let rows = replica_rows(store, shard)?;
        let files = journal_files(store, shard)?;
        let tag = tag(store.marker.store, shard);
        let journal = read_journal(&files, tag, &rows)?;

        let mut ring = Ring::new(store.shape, journal.next.pass);
        let mut found: BTreeMap<ReplicaId, Found> = BTreeMap::new();
        for batch in &journal.batches {
            ring.found(batch);
            for record in &batch.records {
                let Some(row) = rows.get(&record.replica()) else { continue };
                found.entry(record.replica()).or_default().add(record, row);
            }
        }
        let mut replicas = BTreeMap::new();
        let mut recovered = Vec::with_capacity(rows.len());
        for (id, row) in rows {
            let found = found.remove(&id).unwrap_or_default();
            let damaged = found.orphan.is_some() || journal.damage.includes(id);
            let (replica, copy) = revive(store, id, row, found, damaged)?;
            let last = copy.entries.last().map_or(copy.base, |entry| entry.position);
            ring.forget_above(id, last.sequence);
            // One that is given up must not hold the journal until it is deleted.
            if !copy.damaged {
                replicas.insert(id, replica);
            }
            recovered.push(copy);
        }
        let released = ring.release(&replicas).unwrap_or(0);
        let writer = Writer::new(files, store.shape, tag, journal.next, released);
        Ok((Self::start(store, shard, replicas, ring, writer)?, recovered))
    }

    fn start(
        store: &Arc<Store>,
        shard: usize,
        replicas: BTreeMap<ReplicaId, Replica>,
        ring: Ring,
        writer: Writer,
    ) -> Result<Self, OpenError> {
        let inbox = Inbox::new();
        let name = |work: &str| format!("{work}-{shard}");
        let readers =
            (0..store.config.read_threads.max(1)).map(|_| Reader::new(store.clone())).collect();
        let destager = vec![Destager::new(store.clone(), shard)];
        let crew = store.crew;
        Ok(Self {
            store: store.clone(),
            replicas,
            active: Generation::default(),
            round: None,
            ring,
            queued: Vec::new(),
            reads: BTreeMap::new(),
            next_read: 0,
            journal: Station::share(crew, &name("journal"), writer, &inbox)
                .map_err(OpenError::Thread)?,
            destager: Station::start(crew, &name("destage"), destager, &inbox)
                .map_err(OpenError::Thread)?,
            inline: Reader::new(store.clone()),
            fetcher: Fetcher::new(store.clone()),
            rows: Recent::new(ROWS_MAX),
            blocks: Recent::new((store.config.cache_bytes / BLOCK_BYTES) as usize),
            reader: Station::start(crew, &name("read"), readers, &inbox)
                .map_err(OpenError::Thread)?,
            inbox,
            failed_devices: 0,
            failed: false,
        })
    }
}

impl Found {
    fn add(&mut self, record: &Record, row: &ReplicaRow) {
        match record {
            Record::Promise { epoch, token, .. } => {
                self.promise = self.promise.max((*epoch, *token));
            }
            Record::Entry { entry, commit, .. } => {
                self.commit = self.commit.max(*commit);
                self.add_entry(entry, row);
            }
        }
    }

    /// Puts an entry behind the one before it, in place of what is there, unless it is there
    /// already: entries are appended again to free the oldest file. Where that file has been used again, the
    /// rest of the first appending comes without its beginning; then a later record begins anew, at or below it.
    fn add_entry(&mut self, entry: &Entry<Payload>, row: &ReplicaRow) {
        let sequence = entry.position.sequence;
        let Some(index) = sequence.0.checked_sub(row.base.sequence.0 + 1) else { return };
        let index = index as usize;
        self.orphan = self.orphan.filter(|&orphan| index > orphan);
        if self.entries.get(index).is_some_and(|held| held.position == entry.position) {
            return;
        }
        if index > self.entries.len() {
            self.orphan.get_or_insert(index);
            return;
        }
        self.entries.truncate(index);
        self.entries.push(entry.clone());
    }
}

fn revive(
    store: &Store,
    id: ReplicaId,
    row: ReplicaRow,
    found: Found,
    damaged: bool,
) -> Result<(Replica, Recovered), CatalogError> {
    let mut replica = Replica::new(&row);
    store.catalog.scan(&rows::chunks_prefix(id), &mut |key, row| {
        let (_, chunk, _) = rows::parse_chunk_key(key)?;
        let row = ChunkRow::decode(row)?;
        replica.chunks.insert(chunk, Mapped { changed: row.changed, data: row.place.is_some() });
        Ok(())
    })?;
    replica.promised = row.promised.max(found.promise);
    let mut entries = found.entries;
    if let Some(have) = row.copying {
        entries.retain(|entry| entry.position.sequence <= have);
    }
    let commit = found.commit.max(row.commit).max(row.base.sequence);
    let commit = row.copying.map_or(commit, |have| have.max(row.base.sequence));
    replica.tail = entries.iter().cloned().collect();
    let recovered = Recovered {
        replica: id,
        segment: row.segment,
        epoch: replica.promised.0,
        token: replica.promised.1,
        base: row.base,
        applied: row.applied,
        entries,
        commit,
        copying: row.copying,
        // While a copy is filled, the stream begins behind what the copy had.
        damaged: damaged && row.copying.is_none() || row.lost,
    };
    Ok((replica, recovered))
}

fn replica_rows(
    store: &Store,
    shard: usize,
) -> Result<BTreeMap<ReplicaId, ReplicaRow>, CatalogError> {
    let mut replicas = BTreeMap::new();
    store.catalog.scan(rows::REPLICA_PREFIX, &mut |key, row| {
        let row = ReplicaRow::decode(row)?;
        if row.segment.shard(store.config.shards) == shard {
            replicas.insert(rows::parse_replica_key(key)?, row);
        }
        Ok(())
    })?;
    Ok(replicas)
}

fn journal_files(store: &Store, shard: usize) -> Result<Vec<Arc<dyn DiskFile>>, OpenError> {
    let names = store.journal.list()?;
    let mut files = Vec::new();
    for file in 0..store.shape.files as usize {
        let name = file_name(shard, file);
        if !names.contains(&name) {
            store.journal.create(&name, store.shape.file_bytes)?;
        }
        files.push(store.journal.open(&name, Mode::Durable)?);
    }
    Ok(files)
}

fn read_journal(
    files: &[Arc<dyn DiskFile>],
    tag: u64,
    rows: &BTreeMap<ReplicaId, ReplicaRow>,
) -> Result<Recovery, OpenError> {
    let mut keep = |record: &Record| match record {
        Record::Entry { replica, entry, .. } => {
            rows.get(replica).is_some_and(|row| entry.position.sequence > row.base.sequence)
        }
        Record::Promise { replica, .. } => rows.contains_key(replica),
    };
    let mut scans = Vec::with_capacity(files.len());
    for file in files {
        let mut bytes = AlignedBuf::zeroed(file.bytes()? as usize);
        file.read_at(0, &mut bytes)?;
        scans.push(scan(&bytes.freeze(), tag, &mut keep));
    }
    Ok(recover(scans))
}
