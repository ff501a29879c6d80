//! What most tests begin with: a cluster, a volume with three copies of each segment, and a gateway
//! that exports it.

use std::{net::SocketAddr, time::Duration};

use tidewater_cli::{
    cluster::{Cluster, ClusterSpec, ExportSpec, Seat},
    nbd_client::NbdClient,
};
use tidewater_proto::rpc::Durability;

/// Name of the volume and of the export.
pub(crate) const VOLUME: &str = "v";
/// An operation of a block client takes no longer, whatever is killed meanwhile.
pub(crate) const IO_LIMIT: Duration = Duration::from_mins(1);
/// Redundancy is back some seconds after a restart.
pub(crate) const HEAL_LIMIT: Duration = Duration::from_mins(1);
const REPLICAS: u32 = 3;

pub(crate) struct Scene {
    pub(crate) cluster: Cluster,
    pub(crate) gateway: Seat,
    /// Id of the volume.
    pub(crate) volume: u64,
}

/// No spare: each of three chunkservers has a copy of each segment.
pub(crate) fn three_servers(segment_bytes: u64) -> ClusterSpec {
    ClusterSpec { chunkservers: 3, ..four_servers(segment_bytes) }
}

/// A spare for each segment.
pub(crate) fn four_servers(segment_bytes: u64) -> ClusterSpec {
    ClusterSpec { segment_bytes, ..ClusterSpec::default() }
}

/// The volume for a gateway that may come back after a kill.
pub(crate) fn export() -> ExportSpec {
    ExportSpec { take_over: true, ..ExportSpec::exclusive(VOLUME) }
}

impl Scene {
    /// A write is durable when it is acknowledged.
    pub(crate) fn start(spec: ClusterSpec, size_bytes: u64) -> Self {
        Self::with_durability(spec, size_bytes, Durability::Sync)
    }

    pub(crate) fn with_durability(
        spec: ClusterSpec,
        size_bytes: u64,
        durability: Durability,
    ) -> Self {
        let mut cluster = Cluster::start(spec).expect("the cluster starts");
        let made = cluster.create_volume(VOLUME, size_bytes, REPLICAS, durability);
        let volume = made.expect("the volume is made").id;
        let gateway = cluster.add_gateway(&[export()]).expect("a gateway");
        Self { cluster, gateway, volume }
    }

    /// Where the gateway listens.
    pub(crate) fn server(&self) -> SocketAddr {
        self.cluster.address(self.gateway)
    }

    pub(crate) fn uri(&self) -> String {
        self.cluster.nbd_uri(self.gateway, VOLUME)
    }

    pub(crate) fn nbd(&self) -> NbdClient {
        NbdClient::connect(self.server(), VOLUME, IO_LIMIT).expect("accepts")
    }

    pub(crate) fn await_full_redundancy(&mut self) {
        self.cluster.await_full_redundancy(self.volume, HEAL_LIMIT).expect("whole again");
    }
}
