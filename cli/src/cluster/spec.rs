//! What a cluster is made of.

use std::{collections::BTreeMap, env, fmt, net::IpAddr, path::PathBuf, time::Duration};

use crate::config::{DeviceFile, LimitsFile, TierName};
use crate::units::{ByteSize, Span};

/// What the processes of a cluster log, as in `RUST_LOG`; to look into a failing test.
const LOG_VARIABLE: &str = "TIDEWATER_LOG";
/// openraft warns of everything that an election or a killed peer brings about.
pub(crate) const DEFAULT_LOG_FILTER: &str = "info,openraft=error";

/// One process of a cluster, by kind and position from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Seat {
    /// A meta node; its id is the position and one.
    Meta(usize),
    /// A chunkserver; its id is allotted when it registers.
    Chunkserver(usize),
    /// An NBD gateway.
    Gateway(usize),
}

impl fmt::Display for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Meta(i) => write!(f, "meta-{}", i + 1),
            Self::Chunkserver(i) => write!(f, "chunkserver-{}", i + 1),
            Self::Gateway(i) => write!(f, "gateway-{}", i + 1),
        }
    }
}

/// Where a process runs, as far as the network goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The address it listens on; the harness must reach it.
    pub address: IpAddr,
    /// File of the network namespace it is started in, by `nsenter`.
    pub namespace: Option<PathBuf>,
}

/// A cluster to be started.
#[derive(Clone, Debug)]
pub struct ClusterSpec {
    /// Meta nodes: one, three or five.
    pub metas: usize,
    /// Chunkservers, each on a host and rack of its own.
    pub chunkservers: usize,
    /// Shards of each chunkserver.
    pub shards: usize,
    /// Size of a segment; small ones make many segments out of little data.
    pub segment_bytes: u64,
    /// Journal of each shard.
    pub journal_bytes: u64,
    /// Devices of each chunkserver.
    pub devices: Vec<DeviceSpec>,
    /// Those of single chunkservers, by position, that have others.
    pub devices_of: BTreeMap<usize, Vec<DeviceSpec>>,
    /// How long a copy may be missing before a spare server gets one.
    pub repair_delay: Duration,
    /// Folder below which the cluster's own is made; `TMPDIR` where left out.
    pub parent: Option<PathBuf>,
    /// Where processes run that are not simply on the loopback address.
    pub hosts: BTreeMap<Seat, Host>,
    /// What the processes log, as in `RUST_LOG`. The default is that of the servers, or what the
    /// variable `TIDEWATER_LOG` says.
    pub log_filter: String,
}

impl Default for ClusterSpec {
    /// Three meta nodes and four chunkservers, small enough for a test.
    fn default() -> Self {
        Self {
            metas: 3,
            chunkservers: 4,
            shards: 1,
            segment_bytes: 64 << 20,
            journal_bytes: 128 << 20,
            devices: vec![DeviceSpec::default()],
            devices_of: BTreeMap::new(),
            repair_delay: Duration::from_secs(30),
            parent: None,
            hosts: BTreeMap::new(),
            log_filter: env::var(LOG_VARIABLE).unwrap_or_else(|_| DEFAULT_LOG_FILTER.to_owned()),
        }
    }
}

/// One device of a chunkserver: a folder in the cluster's.
#[derive(Clone, Debug)]
pub struct DeviceSpec {
    /// Its name; also its folder's.
    pub name: String,
    /// Speed class.
    pub tier: tidewater_proto::rpc::Tier,
    /// Space it may take.
    pub capacity_bytes: u64,
    /// Operations a second it is limited to.
    pub iops: Option<u32>,
    /// Bytes a second it is limited to.
    pub bytes_per_second: Option<u64>,
    /// Time added to each operation.
    pub added_latency: Option<Duration>,
}

impl Default for DeviceSpec {
    fn default() -> Self {
        Self {
            name: "d0".to_owned(),
            tier: tidewater_proto::rpc::Tier::Nvme,
            capacity_bytes: 8 << 30,
            iops: None,
            bytes_per_second: None,
            added_latency: None,
        }
    }
}

impl DeviceSpec {
    pub(crate) fn file(&self) -> DeviceFile {
        use tidewater_proto::rpc::Tier;
        DeviceFile {
            name: Some(self.name.clone()),
            path: self.name.clone().into(),
            tier: match self.tier {
                Tier::Unspecified | Tier::Nvme => TierName::Nvme,
                Tier::Ssd => TierName::Ssd,
                Tier::Hdd => TierName::Hdd,
            },
            capacity: Some(ByteSize(self.capacity_bytes)),
            limits: LimitsFile {
                iops: self.iops,
                bytes_per_second: self.bytes_per_second.map(ByteSize),
                added_latency: self.added_latency.map(Span),
            },
        }
    }
}

/// How a gateway opens a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExportMode {
    /// Alone.
    #[default]
    Exclusive,
    /// With others.
    Shared,
    /// Without writing.
    ReadOnly,
}

/// A volume that a gateway exports under its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportSpec {
    /// The volume.
    pub volume: String,
    /// How it is opened.
    pub mode: ExportMode,
    /// Fence an earlier exclusive holder.
    pub take_over: bool,
    /// Program it is opened for.
    pub program: String,
    /// Instance of the program.
    pub instance: String,
}

impl ExportSpec {
    /// The volume, alone, for a program named as the gateway.
    pub fn exclusive(volume: &str) -> Self {
        Self {
            volume: volume.to_owned(),
            mode: ExportMode::Exclusive,
            take_over: false,
            program: "nbd".to_owned(),
            instance: "1".to_owned(),
        }
    }
}
