//! A stand-in for the replicas: appends, commits, applies and freezes, and knows what must be there.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use tidewater_proto::{
    entry::{Change, Entry, Payload},
    geometry::{CHUNK_BYTES, Extent},
    ids::{
        Epoch, OpId, Position, ReplicaId, SegmentId, Sequence, ServerId, SessionId, Token, VolumeId,
    },
    peer::AppliedSession,
};

use crate::store::{
    Completion, Crew, DeviceConfig, Freeze, Ground, Identity, LimitsConfig, OpenError, Record,
    Recovered, ShardStore, Store, StoreConfig, Ticket,
    catalog::SimCatalog,
    device::Tier,
    disk::{Disk, Keep, SimClock, SimDisk},
    journal::Shape,
};

pub(super) const SEGMENT: u64 = 2 * CHUNK_BYTES;
/// Where the workloads write: small, so that it is cheap to compare, and over a chunk's border.
pub(super) const HOT: [(u64, u64); 2] = [(0, 24 << 10), (CHUNK_BYTES - (8 << 10), 24 << 10)];

/// Slots that the workloads have reserved at a time: fewer than an eighth of the device's.
const SLOTS_MAX: usize = 16;

/// Simulated ground of one server.
#[derive(Debug)]
pub(super) struct World {
    pub(super) clock: Arc<SimClock>,
    pub(super) journal: SimDisk,
    pub(super) device: SimDisk,
    /// Of a slower tier, if there is a second.
    pub(super) second: Option<SimDisk>,
    pub(super) catalog: Arc<SimCatalog>,
    pub(super) shape: Shape,
    pub(super) capacity_bytes: u64,
    pub(super) overlay_bytes: u64,
}

impl World {
    pub(super) fn new() -> Self {
        let clock = SimClock::new(1);
        Self {
            journal: SimDisk::new(&clock, "journal"),
            device: SimDisk::new(&clock, "device"),
            second: None,
            catalog: Arc::new(SimCatalog::new(&clock)),
            clock,
            shape: Shape { files: 4, file_bytes: 64 << 10 },
            capacity_bytes: 256 << 20,
            overlay_bytes: 1 << 20,
        }
    }

    pub(super) fn after_crash(&self, keep: Keep, seed: u64) -> Self {
        let clock = SimClock::new(seed);
        Self {
            journal: self.journal.after_crash(keep, &clock),
            device: self.device.after_crash(keep, &clock),
            second: self.second.as_ref().map(|second| second.after_crash(keep, &clock)),
            catalog: Arc::new(self.catalog.after_crash(keep, &clock)),
            clock,
            shape: self.shape,
            capacity_bytes: self.capacity_bytes,
            overlay_bytes: self.overlay_bytes,
        }
    }

    pub(super) fn identity() -> Identity {
        Identity { cluster: "test".to_string(), server: ServerId(1) }
    }

    pub(super) fn store(&self) -> Result<Arc<Store>, OpenError> {
        let mut config = StoreConfig::new("unused", 1);
        config.overlay_bytes = self.overlay_bytes;
        config.devices.push(DeviceConfig {
            name: "d1".to_string(),
            path: "unused".into(),
            tier: Tier::Nvme,
            capacity_bytes: self.capacity_bytes,
            limits: LimitsConfig::default(),
        });
        let mut devices: Vec<Arc<dyn Disk>> = vec![Arc::new(self.device.clone())];
        if let Some(second) = &self.second {
            config.devices.push(DeviceConfig {
                name: "d2".to_string(),
                path: "unused".into(),
                tier: Tier::Hdd,
                capacity_bytes: 16 * CHUNK_BYTES,
                limits: LimitsConfig::default(),
            });
            devices.push(Arc::new(second.clone()));
        }
        let ground = Ground {
            journal: Arc::new(self.journal.clone()),
            devices,
            catalog: self.catalog.clone(),
            crew: Crew::Inline,
            new_store: [7; 16],
            shape: self.shape,
        };
        Store::open_on(config, &Self::identity(), ground)
    }

    pub(super) fn open(&self) -> Result<(ShardStore, Vec<Recovered>), OpenError> {
        ShardStore::open(&self.store()?, 0)
    }
}

pub(super) fn segment(replica: ReplicaId) -> SegmentId {
    SegmentId { volume: VolumeId(1), index: replica.0 as u32 }
}

/// One thing a workload does.
#[derive(Clone, Debug)]
pub(super) enum Op {
    /// Appends a write of `byte` at a sector of the hot ranges.
    Write {
        replica: u64,
        sector: u64,
        sectors: u64,
        byte: u8,
    },
    /// Appends zeroes there.
    Zero {
        replica: u64,
        sector: u64,
        sectors: u64,
    },
    /// Appends zeroes for a whole chunk.
    Discard {
        replica: u64,
        chunk: u64,
    },
    /// Appends a write of a whole chunk, whose bytes go to a slot.
    Fill {
        replica: u64,
        chunk: u64,
        byte: u8,
    },
    /// Raises the epoch and replaces the last entry, if it is not committed.
    Replace {
        replica: u64,
    },
    /// Commits and applies all but the last `lag` durable entries.
    Commit {
        replica: u64,
        lag: u64,
    },
    Freeze,
    Poll,
}

/// What the driver knows of one replica.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// Its creation was reported durable.
    pub(super) made: bool,
    pub(super) log: Vec<Entry<Payload>>,
    pub(super) epoch: Epoch,
    pub(super) commit: u64,
    /// Log and promise after each record, with the record's ticket.
    pub(super) history: Vec<(Ticket, Vec<Position>, Epoch)>,
    /// Content of the hot ranges after each committed entry.
    pub(super) contents: Vec<Vec<u8>>,
    content: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Driver {
    pub(super) store: ShardStore,
    pub(super) known: BTreeMap<ReplicaId, Known>,
    pub(super) durable: Ticket,
    pub(super) failed: bool,
    pub(super) destaged: usize,
}

impl Driver {
    pub(super) fn new(store: ShardStore) -> Self {
        let durable = Ticket(0);
        Self { store, known: BTreeMap::new(), durable, failed: false, destaged: 0 }
    }

    /// Makes replicas 1 to `count`; false if the power went.
    pub(super) fn create(&mut self, count: u64) -> bool {
        for id in (1..=count).map(ReplicaId) {
            let content = vec![0; SEGMENT as usize];
            let contents = vec![hot(&content)];
            let made = self.store.create(id, segment(id)).is_ok();
            self.known.insert(id, Known { made, contents, content, ..Known::default() });
            if !made {
                return false;
            }
        }
        true
    }

    /// Does one thing.
    pub(super) fn step(&mut self, op: &Op) {
        match *op {
            Op::Write { replica, sector, sectors, byte } => {
                let extent = hot_extent(sector, sectors);
                let bytes = Bytes::from(vec![byte; extent.len() as usize]);
                let data = Payload::new(extent, bytes);
                self.append(ReplicaId(replica), Change::Write { extent, data });
            }
            Op::Zero { replica, sector, sectors } => {
                let extent = hot_extent(sector, sectors);
                self.append(ReplicaId(replica), Change::Zero { extent, discard: false });
            }
            Op::Discard { replica, chunk } => {
                let extent = Extent::new(chunk * CHUNK_BYTES, CHUNK_BYTES, SEGMENT).expect("valid");
                self.append(ReplicaId(replica), Change::Zero { extent, discard: true });
            }
            Op::Fill { replica, chunk, byte } => self.fill(ReplicaId(replica), chunk, byte),
            Op::Replace { replica } => self.replace(ReplicaId(replica)),
            Op::Commit { replica, lag } => self.commit(ReplicaId(replica), lag),
            Op::Freeze => self.freeze(),
            Op::Poll => self.poll(),
        }
    }

    /// The journal of these tests cannot take a chunk, so the slots must not run out.
    fn fill(&mut self, replica: ReplicaId, chunk: u64, byte: u8) {
        if self.store.reserved_slots() < SLOTS_MAX {
            let extent = Extent::new(chunk * CHUNK_BYTES, CHUNK_BYTES, SEGMENT).expect("valid");
            let data = Payload::new(extent, Bytes::from(vec![byte; CHUNK_BYTES as usize]));
            self.append(replica, Change::Write { extent, data });
        }
    }

    fn append(&mut self, replica: ReplicaId, change: Change<Payload>) {
        let known = self.known.get_mut(&replica).expect("made before");
        if !self.store.room() {
            return;
        }
        let sequence = Sequence(known.log.len() as u64 + 1);
        let entry = Entry {
            position: Position { epoch: known.epoch, sequence },
            token: Token(known.epoch.0),
            op: Some(OpId { session: SessionId(9), number: sequence.0 }),
            lowest_open: 1,
            change,
        };
        known.log.push(entry.clone());
        let commit = Sequence(known.commit);
        let segment = segment(replica);
        let ticket =
            self.store.append(Record::Entry { replica, segment, entry, commit, slot: None });
        self.remember(replica, ticket);
        if ticket.0.is_multiple_of(3) {
            self.store.submit();
        }
    }

    fn remember(&mut self, replica: ReplicaId, ticket: Ticket) {
        let known = self.known.get_mut(&replica).expect("made before");
        let log = known.log.iter().map(|entry| entry.position).collect();
        known.history.push((ticket, log, known.epoch));
    }

    fn replace(&mut self, replica: ReplicaId) {
        let known = self.known.get_mut(&replica).expect("made before");
        known.epoch = known.epoch.next();
        let (epoch, token) = (known.epoch, Token(known.epoch.0));
        let segment = segment(replica);
        let ticket = self.store.append(Record::Promise { replica, segment, epoch, token });
        self.remember(replica, ticket);
        let known = self.known.get_mut(&replica).expect("made before");
        if known.log.len() as u64 > known.commit {
            // Two entries give way to one, so that the log gets shorter.
            known.log.truncate((known.commit as usize).max(known.log.len().saturating_sub(2)));
        }
        self.append(replica, Change::Activate);
    }

    fn commit(&mut self, replica: ReplicaId, lag: u64) {
        let known = self.known.get_mut(&replica).expect("made before");
        // What the log was when the last durable record was appended, as far as it still stands.
        let durable = known.history.iter().rev().find(|(ticket, ..)| *ticket <= self.durable);
        let positions = durable.map_or(&[][..], |(_, log, _)| log);
        let stands = known.log.iter().zip(positions).take_while(|(e, p)| e.position == **p).count();
        let to = (stands as u64).saturating_sub(lag);
        while known.commit < to {
            let entry = known.log[known.commit as usize].clone();
            known.commit += 1;
            change(&mut known.content, &entry);
            known.contents.push(hot(&known.content));
            self.store.apply(replica, &entry);
        }
    }

    pub(super) fn freeze(&mut self) {
        let points = self
            .known
            .iter()
            .filter(|(_, known)| known.commit > 0)
            .map(|(&replica, known)| {
                let at = known.log[known.commit as usize - 1].position;
                Freeze { replica, at, applied: table(&known.log[..known.commit as usize]) }
            })
            .collect();
        self.store.freeze(points);
    }

    pub(super) fn poll(&mut self) {
        let mut out = Vec::new();
        self.store.poll(&mut out);
        for completion in out {
            match completion {
                Completion::Durable(ticket) => {
                    assert!(ticket > self.durable, "tickets grow");
                    self.durable = ticket;
                }
                Completion::DeviceFailed(_) => self.failed = true,
                Completion::Destaged(_) => self.destaged += 1,
                Completion::Read { .. }
                | Completion::ChunkPut { .. }
                | Completion::CopyEnded { .. }
                | Completion::Lost { .. }
                | Completion::Deleted { .. } => {}
            }
        }
    }

    /// Content of the hot ranges, read through the store.
    pub(super) fn read_hot(&mut self, replica: ReplicaId) -> Vec<u8> {
        HOT.iter().flat_map(|&(at, len)| read(&mut self.store, replica, at, len)).collect()
    }
}

/// Reads, and checks the checksums that come with the bytes.
pub(super) fn read(store: &mut ShardStore, replica: ReplicaId, at: u64, len: u64) -> Vec<u8> {
    let extent = Extent::new(at, len, SEGMENT).expect("valid");
    let payload = store.read(replica, extent, 77).unwrap_or_else(|| {
        let mut out = Vec::new();
        store.poll(&mut out);
        let read = out.into_iter().find_map(|completion| match completion {
            Completion::Read { tag: 77, result } => Some(result),
            _ => None,
        });
        read.expect("a read completes").unwrap_or_else(|e| panic!("{replica} {extent:?}: {e}"))
    });
    payload.verify(extent).expect("sums match");
    payload.data.to_vec()
}

/// The table of operations: a function of the log.
pub(super) fn table(log: &[Entry<Payload>]) -> Vec<AppliedSession> {
    let applied: Vec<_> =
        log.iter().filter_map(|entry| Some((entry.op?.number, entry.position))).collect();
    let token = log.last().map_or(Token(0), |entry| entry.token);
    vec![AppliedSession { session: SessionId(9), token, lowest_open: 1, applied }]
}

pub(super) fn change(content: &mut [u8], entry: &Entry<Payload>) {
    let Some(extent) = entry.change.extent() else { return };
    let range = &mut content[extent.offset() as usize..extent.end() as usize];
    match &entry.change {
        Change::Write { data, .. } => range.copy_from_slice(&data.data),
        Change::Zero { .. } | Change::Activate => range.fill(0),
    }
}

pub(super) fn hot(content: &[u8]) -> Vec<u8> {
    HOT.iter().flat_map(|&(at, len)| &content[at as usize..(at + len) as usize]).copied().collect()
}

/// `sectors` sectors of a hot range; `sector` counts through both.
fn hot_extent(sector: u64, sectors: u64) -> Extent {
    let per_range = HOT[0].1 / 512;
    let (start, len) = HOT[(sector / per_range) as usize % HOT.len()];
    let at = start + sector % per_range * 512;
    Extent::new(at, (sectors * 512).min(start + len - at), SEGMENT).expect("valid")
}
