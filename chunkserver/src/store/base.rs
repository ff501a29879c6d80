//! What the shards of one chunkserver share: the data folder, its lock, the catalog, the devices.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use rustix::fs::FlockOperation;
use serde::Deserialize;
use tidewater_proto::ids::ServerId;

use super::{
    catalog::{
        Catalog, CatalogError, RocksCatalog,
        rows::{self, ChunkRow, FORMAT_VERSION, Marker},
    },
    crew::Crew,
    device::{Device, DeviceError, DeviceOpenError, DeviceSpec, Tier},
    disk::{Disk, DiskError, RealDisk},
    journal::Shape,
    limits::Limits,
};

/// Default size of a shard's journal, bytes.
pub const JOURNAL_BYTES: u64 = 512 << 20;
/// Default memory for one generation of a shard's overlay, bytes.
pub const OVERLAY_BYTES: u64 = 128 << 20;
/// Default threads that read from devices, a shard.
pub const READ_THREADS: usize = 4;
/// Default memory for blocks read last, a shard, bytes.
pub const CACHE_BYTES: u64 = 64 << 20;

/// One device of a chunkserver.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DeviceConfig {
    /// Name, unique in the server; the catalog knows the device by it.
    pub name: String,
    /// Folder.
    pub path: PathBuf,
    /// How fast it is.
    pub tier: Tier,
    /// Bytes it may use.
    pub capacity_bytes: u64,
    /// Limits it keeps itself.
    #[serde(default)]
    pub limits: LimitsConfig,
}

/// Limits of a device, in configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Operations a second.
    pub iops: Option<u64>,
    /// Bytes a second.
    pub bytes_per_second: Option<u64>,
    /// Microseconds added to each operation.
    pub latency_us: u64,
}

impl From<LimitsConfig> for Limits {
    fn from(config: LimitsConfig) -> Self {
        Self {
            iops: config.iops,
            bytes_per_second: config.bytes_per_second,
            latency: Duration::from_micros(config.latency_us),
        }
    }
}

/// Configuration of a chunkserver's storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// Data folder: lock, catalog, journals.
    pub dir: PathBuf,
    /// Devices; at least one.
    pub devices: Vec<DeviceConfig>,
    /// Bytes of each shard's journal.
    pub journal_bytes: u64,
    /// Memory of one generation of a shard's overlay, bytes. There are two.
    pub overlay_bytes: u64,
    /// Shards.
    pub shards: usize,
    /// Threads that read, a shard.
    pub read_threads: usize,
    /// Memory of a shard for blocks read last, bytes.
    pub cache_bytes: u64,
}

impl StoreConfig {
    /// Defaults, without devices.
    pub fn new(dir: impl Into<PathBuf>, shards: usize) -> Self {
        Self {
            dir: dir.into(),
            devices: Vec::new(),
            journal_bytes: JOURNAL_BYTES,
            overlay_bytes: OVERLAY_BYTES,
            shards,
            read_threads: READ_THREADS,
            cache_bytes: CACHE_BYTES,
        }
    }
}

/// Whose data folder it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Cluster.
    pub cluster: String,
    /// Server.
    pub server: ServerId,
}

/// The data folder cannot be used. Nothing was changed in it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process uses the folder.
    #[error("{dir} is in use by another server")]
    InUse {
        /// The folder.
        dir: PathBuf,
    },
    /// The folder itself failed.
    #[error("{dir}")]
    Folder {
        /// The folder.
        dir: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Written by another version.
    #[error("data folder has format version {found}, this program knows {FORMAT_VERSION}")]
    Version {
        /// Version on disk.
        found: u32,
    },
    /// Of another cluster or server.
    #[error("data folder belongs to server {} of cluster {}, not to {} of {}",
        .found.server, .found.cluster, .wanted.server, .wanted.cluster)]
    Foreign {
        /// On disk.
        found: Identity,
        /// Asked for.
        wanted: Identity,
    },
    /// The number of shards cannot be changed.
    #[error("data folder was made with {found} shards, the configuration says {wanted}")]
    Shards {
        /// On disk.
        found: u32,
        /// In the configuration.
        wanted: u32,
    },
    /// The catalog names a device that the configuration lacks.
    #[error("device {device} is in use and missing in the configuration")]
    DeviceMissing {
        /// Name of the device.
        device: String,
    },
    /// A device.
    #[error(transparent)]
    Device(#[from] DeviceOpenError),
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The journal's disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// No thread could be started.
    #[error("start a thread")]
    Thread(#[source] io::Error),
}

/// What the store stands on; the simulated one is for tests.
#[derive(Debug)]
pub struct Ground {
    /// Where the journals are.
    pub journal: Arc<dyn Disk>,
    /// One disk for each configured device.
    pub devices: Vec<Arc<dyn Disk>>,
    /// The catalog.
    pub catalog: Arc<dyn Catalog>,
    /// Who does the work.
    pub crew: Crew,
    /// Id of a store made now.
    pub new_store: [u8; 16],
    /// Size and number of journal files.
    pub shape: Shape,
}

/// The opened data folder of a chunkserver, shared by its shards.
#[derive(Debug)]
pub struct Store {
    pub(crate) config: StoreConfig,
    pub(crate) marker: Marker,
    pub(crate) catalog: Arc<dyn Catalog>,
    /// Fastest tier first.
    pub(crate) devices: Vec<Device>,
    pub(crate) journal: Arc<dyn Disk>,
    pub(crate) shape: Shape,
    pub(crate) crew: Crew,
    /// Held for as long as the store is open.
    _lock: Option<File>,
}

impl Store {
    /// Opens the folder, making it where it is missing.
    pub fn open(config: StoreConfig, identity: &Identity) -> Result<Arc<Self>, OpenError> {
        let lock = lock(&config.dir)?;
        let devices = config
            .devices
            .iter()
            .map(|device| Ok(Arc::new(RealDisk::open(&device.path)?) as Arc<dyn Disk>))
            .collect::<Result<_, DiskError>>()?;
        let ground = Ground {
            journal: Arc::new(RealDisk::open(config.dir.join("journal"))?),
            devices,
            catalog: Arc::new(RocksCatalog::open(&config.dir.join("catalog"))?),
            crew: Crew::Threads,
            new_store: new_store_id(),
            shape: Shape::of(config.journal_bytes),
        };
        Self::assemble(config, identity, ground, Some(lock))
    }

    /// Opens a store on the given ground.
    pub fn open_on(
        config: StoreConfig,
        identity: &Identity,
        ground: Ground,
    ) -> Result<Arc<Self>, OpenError> {
        Self::assemble(config, identity, ground, None)
    }

    fn assemble(
        config: StoreConfig,
        identity: &Identity,
        ground: Ground,
        lock: Option<File>,
    ) -> Result<Arc<Self>, OpenError> {
        let catalog = ground.catalog;
        let marker = check_marker(&*catalog, &config, identity, ground.new_store)?;
        let devices = open_devices(&*catalog, &config, &ground.devices, &marker)?;
        Ok(Arc::new(Self {
            config,
            marker,
            catalog,
            devices,
            journal: ground.journal,
            shape: ground.shape,
            crew: ground.crew,
            _lock: lock,
        }))
    }

    /// Devices, fastest tier first.
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// Whether no device keeps limits, so that a read may be waited for.
    pub(crate) fn is_fast(&self) -> bool {
        self.crew == Crew::Threads && self.devices.iter().all(Device::is_unlimited)
    }

    pub(crate) fn device(&self, id: u16) -> Option<&Device> {
        self.devices.iter().find(|device| device.id == id)
    }

    /// Numbers of the devices that are out of service.
    pub(crate) fn failed_devices(&self) -> BTreeSet<u16> {
        self.devices.iter().filter(|d| d.has_failed()).map(|d| d.id).collect()
    }

    /// Takes a slot on `preferred` if that has room, else on the fastest device that has.
    pub(crate) fn allocate(&self, preferred: Option<u16>) -> Result<rows::Place, DeviceError> {
        let first = preferred.and_then(|id| self.device(id));
        let mut full = None;
        for device in first.into_iter().chain(&self.devices).filter(|d| !d.has_failed()) {
            match device.allocate() {
                Ok(slot) => return Ok(rows::Place { device: device.id, slot }),
                Err(DeviceError::NoSpace(none)) => full = Some(none),
                Err(error) => return Err(error),
            }
        }
        match full {
            Some(none) => Err(none.into()),
            None => Err(DeviceError::Failed { device: "every device".to_string(), source: None }),
        }
    }

    pub(crate) fn release(&self, place: rows::Place) {
        if let Some(device) = self.device(place.device) {
            device.release(place.slot);
        }
    }
}

fn lock(dir: &PathBuf) -> Result<File, OpenError> {
    let folder = |source| OpenError::Folder { dir: dir.clone(), source };
    fs::create_dir_all(dir).map_err(folder)?;
    let file = File::create(dir.join("lock")).map_err(folder)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::InUse { dir: dir.clone() }),
        Err(error) => Err(folder(error.into())),
    }
}

/// Random by way of the standard library's hash seeds, 128 bits of the system's generator.
fn new_store_id() -> [u8; 16] {
    use std::hash::{BuildHasher, RandomState};
    let mut id = [0; 16];
    for half in id.chunks_exact_mut(8) {
        half.copy_from_slice(&RandomState::new().hash_one(std::process::id()).to_le_bytes());
    }
    id
}

fn check_marker(
    catalog: &dyn Catalog,
    config: &StoreConfig,
    wanted: &Identity,
    new_store: [u8; 16],
) -> Result<Marker, OpenError> {
    let shards = config.shards as u32;
    let Some(row) = catalog.get(rows::MARKER_KEY)? else {
        let marker = Marker {
            version: FORMAT_VERSION,
            shards,
            store: new_store,
            server: wanted.server,
            cluster: wanted.cluster.clone(),
        };
        catalog.write(vec![(rows::MARKER_KEY.to_vec(), Some(marker.encode()))])?;
        return Ok(marker);
    };
    let marker = Marker::decode(&row).map_err(CatalogError::from)?;
    if marker.version != FORMAT_VERSION {
        return Err(OpenError::Version { found: marker.version });
    }
    let found = Identity { cluster: marker.cluster.clone(), server: marker.server };
    if found != *wanted {
        return Err(OpenError::Foreign { found, wanted: wanted.clone() });
    }
    if marker.shards != shards {
        return Err(OpenError::Shards { found: marker.shards, wanted: shards });
    }
    Ok(marker)
}

fn open_devices(
    catalog: &dyn Catalog,
    config: &StoreConfig,
    disks: &[Arc<dyn Disk>],
    marker: &Marker,
) -> Result<Vec<Device>, OpenError> {
    let mut used: BTreeMap<u16, BTreeSet<u32>> = BTreeMap::new();
    catalog.scan(rows::CHUNK_PREFIX, &mut |_, row| {
        if let Some(place) = ChunkRow::decode(row)?.place {
            used.entry(place.device).or_default().insert(place.slot);
        }
        Ok(())
    })?;
    let names = name_devices(catalog, config)?;
    for (id, name) in &names {
        let configured = config.devices.iter().any(|device| device.name == *name);
        if used.contains_key(id) && !configured {
            return Err(OpenError::DeviceMissing { device: name.clone() });
        }
    }
    let none = BTreeSet::new();
    let mut devices = Vec::with_capacity(config.devices.len());
    for (device, disk) in config.devices.iter().zip(disks) {
        let id = names.iter().find(|(_, name)| **name == device.name).map_or(0, |(id, _)| *id);
        let spec = DeviceSpec {
            name: &device.name,
            tier: device.tier,
            id,
            store: marker.store,
            capacity_bytes: device.capacity_bytes,
            limits: device.limits.into(),
            used: used.get(&id).unwrap_or(&none),
        };
        devices.push(Device::open(&**disk, &spec)?);
    }
    devices.sort_by_key(|device| (device.tier, device.id));
    Ok(devices)
}

/// Numbers of all devices the catalog knows; new ones are given one.
fn name_devices(
    catalog: &dyn Catalog,
    config: &StoreConfig,
) -> Result<BTreeMap<u16, String>, CatalogError> {
    let mut names = BTreeMap::new();
    catalog.scan(rows::DEVICE_PREFIX, &mut |key, row| {
        names.insert(rows::parse_device_key(key)?, String::from_utf8_lossy(row).into_owned());
        Ok(())
    })?;
    let mut batch = Vec::new();
    for device in &config.devices {
        if !names.values().any(|name| *name == device.name) {
            let id = names.last_key_value().map_or(1, |(last, _)| last + 1);
            names.insert(id, device.name.clone());
            batch.push((rows::device_key(id), Some(device.name.clone().into_bytes())));
        }
    }
    if !batch.is_empty() {
        catalog.write(batch)?;
    }
    Ok(names)
}
