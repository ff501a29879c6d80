//! Configuration of a chunkserver.

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};
use tidewater_proto::rpc;

use crate::units::{ByteSize, Span};

/// `tidewater chunkserver run --config FILE`; flags override keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct ChunkserverFile {
    /// Folder for journal, catalog and, by default, the one device
    #[arg(long)]
    pub(crate) data_dir: Option<PathBuf>,
    /// Meta nodes, host:port
    #[arg(long, value_delimiter = ',')]
    pub(crate) meta: Vec<String>,
    /// Control address (default 127.0.0.1:7410)
    #[arg(long)]
    pub(crate) listen: Option<SocketAddr>,
    /// Data-plane addresses, one a shard (default 127.0.0.1:7411)
    #[arg(long, value_delimiter = ',')]
    pub(crate) shard_listen: Vec<SocketAddr>,
    /// Serve Prometheus metrics here (default 127.0.0.1:7491, unless that is taken)
    #[arg(long)]
    pub(crate) metrics_listen: Option<SocketAddr>,
    /// Rate at which a copy is made up for while clients are idle, a shard, a second (default 200MiB)
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rebuild_bytes_per_second: Option<ByteSize>,
    /// The same however busy clients are (default 20MiB)
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rebuild_bytes_per_second_min: Option<ByteSize>,
    /// Where the server is; copies of a segment are spread over these
    #[command(flatten)]
    pub(crate) topology: TopologyFile,
    /// Journal of each shard.
    #[arg(skip)]
    pub(crate) journal: JournalFile,
    /// Where chunks are kept.
    #[arg(skip)]
    pub(crate) device: Vec<DeviceFile>,
}

/// `[topology]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct TopologyFile {
    /// Region
    #[arg(long, default_value = "")]
    pub(crate) region: String,
    /// Zone
    #[arg(long, default_value = "")]
    pub(crate) zone: String,
    /// Rack
    #[arg(long, default_value = "")]
    pub(crate) rack: String,
    /// Host
    #[arg(long, default_value = "")]
    pub(crate) host: String,
}

/// `[journal]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct JournalFile {
    /// Space it takes, once and for all, for each shard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) size: Option<ByteSize>,
}

/// Speed class of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TierName {
    /// Fastest
    #[default]
    Nvme,
    /// Between
    Ssd,
    /// Slowest
    Hdd,
}

/// One `[[device]]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct DeviceFile {
    /// Name in `node show`; "d" and its position where left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// Folder, below the data folder unless absolute.
    pub(crate) path: PathBuf,
    /// Speed class.
    pub(crate) tier: TierName,
    /// Space it may take; all that is free where left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) capacity: Option<ByteSize>,
    /// Limits the server keeps by itself.
    #[serde(skip_serializing_if = "LimitsFile::is_none")]
    pub(crate) limits: LimitsFile,
}

/// `[device.limits]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct LimitsFile {
    /// Operations a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) iops: Option<u32>,
    /// Bytes a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bytes_per_second: Option<ByteSize>,
    /// Added to each operation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) added_latency: Option<Span>,
}

impl LimitsFile {
    fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl ChunkserverFile {
    /// `flags` where given, else `self`.
    pub(crate) fn overridden(self, flags: Self) -> Self {
        let list = |flags: Vec<_>, file| if flags.is_empty() { file } else { flags };
        Self {
            data_dir: flags.data_dir.or(self.data_dir),
            meta: list(flags.meta, self.meta),
            listen: flags.listen.or(self.listen),
            shard_listen: if flags.shard_listen.is_empty() {
                self.shard_listen
            } else {
                flags.shard_listen
            },
            metrics_listen: flags.metrics_listen.or(self.metrics_listen),
            rebuild_bytes_per_second: flags
                .rebuild_bytes_per_second
                .or(self.rebuild_bytes_per_second),
            rebuild_bytes_per_second_min: flags
                .rebuild_bytes_per_second_min
                .or(self.rebuild_bytes_per_second_min),
            topology: self.topology.overridden(flags.topology),
            journal: self.journal,
            device: self.device,
        }
    }
}

impl From<TopologyFile> for rpc::Topology {
    fn from(file: TopologyFile) -> Self {
        let TopologyFile { region, zone, rack, host } = file;
        Self { region, zone, rack, host }
    }
}

impl TopologyFile {
    /// `flags` where given, else `self`.
    pub(super) fn overridden(self, flags: Self) -> Self {
        let text = |flag: String, file| if flag.is_empty() { file } else { flag };
        Self {
            region: text(flags.region, self.region),
            zone: text(flags.zone, self.zone),
            rack: text(flags.rack, self.rack),
            host: text(flags.host, self.host),
        }
    }
}
