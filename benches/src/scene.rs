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

use crate::{
    fio::{Call, Job},
    library::Place,
};

const VOLUME: &str = "bench";
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
    gateway: Seat,
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
            log_filter: "warn,openraft=error".to_owned(),
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

    /// Runs jobs of fio over NBD.
    ///
    /// # Errors
    ///
    /// Where fio or a server fails.
    pub fn fio(
        &self,
        jobs: &str,
        only: &[&str],
        repeat: u32,
        seconds: Option<u64>,
    ) -> anyhow::Result<Vec<Job>> {
        let chunkservers =
            (0..self.cluster.spec().chunkservers).map(|i| self.cluster.pid(Seat::Chunkserver(i)));
        let call = Call {
            label: "nbd",
            jobs,
            only: only.to_vec(),
            engine: format!("--ioengine=nbd --uri={}", self.cluster.nbd_uri(self.gateway, VOLUME)),
            repeat,
            seconds,
            servers: self.cluster.pids(),
            watched: chunkservers.collect::<Result<_, _>>()?,
        };
        call.run(&self.cluster.folder().join("fio.json"))
    }

    /// The place for mixes through the library, once the gateway has given the volume up.
    ///
    /// # Errors
    ///
    /// Where the gateway does not end cleanly.
    pub fn library(&mut self) -> anyhow::Result<Place> {
        self.cluster.stop(self.gateway)?;
        Ok(Place {
            endpoints: self.cluster.endpoints().to_vec(),
            volume: VOLUME,
            span_bytes: FILLED_BYTES,
            servers: self.cluster.pids(),
        })
    }
}
