//! The cluster that is measured: three meta nodes, three chunkservers, one gateway, and a volume of
//! which the first part is written in full, so that no read meets a hole.

use std::{path::PathBuf, time::Duration};

use anyhow::Context;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tidewater_cli::{
    cluster::{Cluster, ClusterSpec, DeviceSpec, ExportSpec, Seat},
    nbd_client::NbdClient,
};
use tidewater_proto::{geometry::SEGMENT_BYTES, rpc::Durability};

/// Volume that is measured.
pub const VOLUME: &str = "bench";
const VOLUME_BYTES: u64 = 8 << 30;
/// Part that is written before the first job, and that the jobs stay in.
const FILLED_BYTES: u64 = 4 << 30;
const FILL_STEP_BYTES: usize = 1 << 20;
const REPLICAS: u32 = 3;
/// Room for the volume and what overwriting leaves behind for a while.
const DEVICE_BYTES: u64 = 16 << 30;
const JOURNAL_BYTES: u64 = 512 << 20;
const IO_LIMIT: Duration = Duration::from_mins(1);

/// A running cluster with a filled volume.
pub struct Scene {
    /// The processes.
    pub cluster: Cluster,
    /// The process that serves NBD.
    pub gateway: Seat,
}

impl Scene {
    /// Starts the cluster below `folder` and fills the volume.
    ///
    /// # Errors
    ///
    /// Where a process or the volume fails.
    pub fn start(folder: Option<PathBuf>) -> anyhow::Result<Self> {
        let spec = ClusterSpec {
            chunkservers: 3,
            segment_bytes: SEGMENT_BYTES,
            journal_bytes: JOURNAL_BYTES,
            devices: vec![DeviceSpec { capacity_bytes: DEVICE_BYTES, ..DeviceSpec::default() }],
            parent: folder,
            log_filter: "warn".to_owned(),
            ..ClusterSpec::default()
        };
        let mut cluster = Cluster::start(spec)?;
        cluster.create_volume(VOLUME, VOLUME_BYTES, REPLICAS, Durability::Sync)?;
        let export = ExportSpec { take_over: true, ..ExportSpec::exclusive(VOLUME) };
        let gateway = cluster.add_gateway(&[export])?;
        let scene = Self { cluster, gateway };
        scene.fill().context("filling the volume")?;
        Ok(scene)
    }

    /// Writes incompressible data.
    fn fill(&self) -> anyhow::Result<()> {
        let mut nbd = NbdClient::connect(self.cluster.address(self.gateway), VOLUME, IO_LIMIT)?;
        let mut random = StdRng::seed_from_u64(1);
        let mut data = vec![0; FILL_STEP_BYTES];
        for offset in (0..FILLED_BYTES).step_by(FILL_STEP_BYTES) {
            random.fill(&mut data[..]);
            nbd.write(offset, &data, false)?;
        }
        nbd.flush()?;
        nbd.disconnect()?;
        Ok(())
    }

    /// Bytes of the part that is written.
    pub fn filled_bytes(&self) -> u64 {
        FILLED_BYTES
    }

    /// Process ids of all servers, for CPU and memory.
    ///
    /// # Errors
    ///
    /// Where one does not run.
    pub fn pids(&self) -> anyhow::Result<Vec<u32>> {
        let seats = self.cluster.seats().filter(|seat| self.cluster.is_running(*seat));
        Ok(seats.map(|seat| self.cluster.pid(seat)).collect::<Result<_, _>>()?)
    }

    /// URI of the export.
    pub fn uri(&self) -> String {
        self.cluster.nbd_uri(self.gateway, VOLUME)
    }
}
