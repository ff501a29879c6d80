//! Opening a shard: catalog rows and journal to replicas.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tidewater_proto::{
    aligned::AlignedBuf,
    entry::{Change, Entry, Payload},
    geometry::{BLOCK_BYTES, CHUNK_BYTES},
    ids::{Epoch, ReplicaId, Sequence, Token},
};

use super::{Mapped, Recovered, Replica, Ring, ShardStore, Ticket, direct::Reservations};
use crate::store::{
    base::{OpenError, Store},
    catalog::{
        CatalogError,
        rows::{self, ChunkRow, Place, ReplicaRow},
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
    /// With the slots of payloads that are not in the journal.
    entries: Vec<(Entry<Payload>, Option<Place>)>,
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
        let mut reserved = Reservations::default();
        let mut recovered = Vec::with_capacity(rows.len());
        for (id, row) in rows {
            let found = found.remove(&id).unwrap_or_default();
            let damaged = found.orphan.is_some() || journal.damage.includes(id);
            let (replica, copy) = revive(store, id, row, found, damaged, &mut reserved)?;
            let last = copy.entries.last().map_or(copy.base, |entry| entry.position);
            ring.forget_above(id, last.sequence);
            // One that is given up must not hold the journal until it is deleted.
            if !copy.damaged {
                replicas.insert(id, replica);
            }
            recovered.push(copy);
        }
        let released = ring.release(&replicas).unwrap_or(0);
        let writer =
            Writer::new(Arc::clone(store), files, store.shape, tag, journal.next, released);
        let mut shard = Self::start(store, shard, replicas, ring, writer)?;
        shard.reserved = reserved;
        Ok((shard, recovered))
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
            reserved: Reservations::default(),
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
            Record::Entry { entry, commit, slot, .. } => {
                self.commit = self.commit.max(*commit);
                self.add_entry(entry, *slot, row);
            }
        }
    }

    /// Puts an entry behind the one before it, in place of what is there, unless it is there
    /// already: entries are appended again to free the oldest file. Where that file has been used again, the
    /// rest of the first appending comes without its beginning; then a later record begins anew, at or below it.
    fn add_entry(&mut self, entry: &Entry<Payload>, slot: Option<Place>, row: &ReplicaRow) {
        let sequence = entry.position.sequence;
        let Some(index) = sequence.0.checked_sub(row.base.sequence.0 + 1) else { return };
        let index = index as usize;
        self.orphan = self.orphan.filter(|&orphan| index > orphan);
        if self.entries.get(index).is_some_and(|(held, _)| held.position == entry.position) {
            return;
        }
        if index > self.entries.len() {
            self.orphan.get_or_insert(index);
            return;
        }
        self.entries.truncate(index);
        self.entries.push((entry.clone(), slot));
    }
}

fn revive(
    store: &Store,
    id: ReplicaId,
    row: ReplicaRow,
    found: Found,
    damaged: bool,
    reserved: &mut Reservations,
) -> Result<(Replica, Recovered), CatalogError> {
    let mut replica = Replica::new(&row);
    let mut places = BTreeSet::new();
    store.catalog.scan(&rows::chunks_prefix(id), &mut |key, row| {
        let (_, chunk, _) = rows::parse_chunk_key(key)?;
        let row = ChunkRow::decode(row)?;
        let device = row.place.map(|place| place.device);
        places.extend(row.place);
        let (changed, data) = (row.changed, row.place.is_some());
        replica.chunks.insert(chunk, Mapped { changed, data, device });
        Ok(())
    })?;
    replica.promised = row.promised.max(found.promise);
    let mut entries = Vec::with_capacity(found.entries.len());
    let mut rotten = false;
    for (mut entry, slot) in found.entries {
        if row.copying.is_some_and(|have| entry.position.sequence > have) {
            break;
        }
        if let Some(place) = slot {
            let free = !places.contains(&place);
            if free && store.device(place.device).is_some_and(|device| device.take(place.slot)) {
                reserved.add(id, entry.position, place, Ticket(0));
            } else {
                rotten |= free;
            }
            rotten |= !fetch(store, place, &mut entry);
        }
        entries.push(entry);
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
        damaged: damaged && row.copying.is_none() || row.lost || rotten,
    };
    Ok((replica, recovered))
}

/// Reads an entry's payload from its slot, where it was durable before the entry was; false if it is not there.
fn fetch(store: &Store, place: Place, entry: &mut Entry<Payload>) -> bool {
    let Change::Write { extent, data } = &mut entry.change else { return false };
    let Some(device) = store.device(place.device) else { return false };
    let mut bytes = AlignedBuf::zeroed(CHUNK_BYTES as usize);
    if let Err(error) = device.read(place.slot, 0, &mut bytes) {
        tracing::error!(?place, %error, "cannot read what the journal refers to");
        return false;
    }
    data.data = bytes.freeze();
    data.verify(*extent).is_ok()
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
