//! The cluster: its processes by seat, and what can be done to them.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::Signal;
use tidewater_client::{Cluster as Control, MetaError};
use tidewater_proto::rpc;

use super::{
    ClusterError, ClusterSpec, ExportMode, ExportSpec, Folder, Seat, ports::Ports,
    process::Process, wait_until,
};
use crate::{
    config::{
        ChunkserverFile, ExportFile, GatewayFile, JournalFile, MetaFile, ModeName, TopologyFile,
    },
    units::{ByteSize, Span},
};

/// A process that is not ready by then will not be. Generous: machines that run tests are busy.
pub(super) const START_LIMIT: Duration = Duration::from_mins(1);
/// A process told to stop drains its work within this time.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// Bounds each call to the metadata cluster; an election takes a part of it.
const CALL_LIMIT: Duration = Duration::from_secs(20);
/// A meta node that is up says so within this time.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// Where a process's files are and where it listens.
#[derive(Clone, Debug)]
pub(super) struct Place {
    folder: PathBuf,
    config: PathBuf,
    log: PathBuf,
    /// Control address: gRPC of meta nodes and chunkservers, NBD of gateways.
    pub(super) address: SocketAddr,
    metrics: SocketAddr,
}

/// One run of a chunkserver process, as the cluster knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerRun {
    /// Its id, allotted when it first registered.
    pub server: u64,
    /// Drawn at the start of the process.
    pub run: u64,
}

/// A cluster of real processes.
///
/// Fields are dropped in order: first the processes, then the folder.
pub struct Cluster {
    processes: BTreeMap<Seat, Process>,
    pub(super) places: BTreeMap<Seat, Place>,
    /// The run of each chunkserver that was last seen up.
    runs: BTreeMap<Seat, ServerRun>,
    control: Control,
    endpoints: Vec<String>,
    runtime: tokio::runtime::Runtime,
    spec: ClusterSpec,
    folder: Folder,
    ports: Ports,
}

impl Cluster {
    /// Starts every process, makes them one cluster and waits until all are up.
    ///
    /// # Errors
    ///
    /// [`ClusterError`]; everything started is ended.
    pub fn start(spec: ClusterSpec) -> Result<Self, ClusterError> {
        let folder = Folder::make(spec.parent.as_deref())?;
        let mut ports = Ports::claim()?;
        let mut places = BTreeMap::new();
        let metas = (0..spec.metas).map(Seat::Meta);
        for seat in metas.chain((0..spec.chunkservers).map(Seat::Chunkserver)) {
            places.insert(seat, place(seat, &spec, folder.path(), &mut ports)?);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(ClusterError::file(folder.path()))?;
        let endpoints = (0..spec.metas).map(|i| places[&Seat::Meta(i)].address.to_string());
        let endpoints: Vec<_> = endpoints.collect();
        let control = Control::builder().endpoints(&endpoints).timeout(CALL_LIMIT).build()?;
        let (processes, runs) = Default::default();
        let mut cluster =
            Self { processes, places, runs, control, endpoints, runtime, spec, folder, ports };
        cluster.write_configs()?;
        cluster.boot()?;
        Ok(cluster)
    }

    fn write_configs(&mut self) -> Result<(), ClusterError> {
        for i in 0..self.spec.metas {
            let place = &self.places[&Seat::Meta(i)];
            let file = MetaFile {
                id: Some(i as u64 + 1),
                data_dir: Some(place.folder.clone()),
                listen: Some(place.address),
                metrics_listen: Some(place.metrics),
                repair_delay: Some(Span(self.spec.repair_delay)),
                ..MetaFile::default()
            };
            write_toml(&place.config, &file)?;
        }
        for i in 0..self.spec.chunkservers {
            let place = &self.places[&Seat::Chunkserver(i)];
            let address = place.address.ip();
            let shards = (0..self.spec.shards).map(|_| self.ports.take());
            let shard_listen = shards.map(|port| Ok(SocketAddr::new(address, port?)));
            let shard_listen = shard_listen.collect::<Result<_, ClusterError>>()?;
            let devices = self.spec.devices_of.get(&i).unwrap_or(&self.spec.devices);
            let file = ChunkserverFile {
                data_dir: Some(place.folder.clone()),
                meta: self.endpoints.clone(),
                listen: Some(place.address),
                shard_listen,
                metrics_listen: Some(place.metrics),
                rebuild_bytes_per_second: None,
                rebuild_bytes_per_second_min: None,
                topology: TopologyFile {
                    region: "local".to_owned(),
                    zone: "z1".to_owned(),
                    rack: format!("r{}", i + 1),
                    host: format!("h{}", i + 1),
                },
                journal: JournalFile { size: Some(ByteSize(self.spec.journal_bytes)) },
                device: devices.iter().map(super::DeviceSpec::file).collect(),
            };
            write_toml(&place.config, &file)?;
        }
        Ok(())
    }

    fn boot(&mut self) -> Result<(), ClusterError> {
        for i in 0..self.spec.metas {
            self.spawn(Seat::Meta(i))?;
        }
        for i in 0..self.spec.metas {
            self.await_answer(Seat::Meta(i))?;
        }
        let nodes = (0..self.spec.metas).map(|i| rpc::MetaNode {
            id: i as u64 + 1,
            address: self.places[&Seat::Meta(i)].address.to_string(),
            voter: true,
            leader: false,
            matched: 0,
        });
        let request = rpc::InitClusterRequest {
            nodes: nodes.collect(),
            segment_bytes: self.spec.segment_bytes,
        };
        self.runtime.block_on(self.control.init_cluster(request))?;
        self.await_leader()?;
        for i in 0..self.spec.chunkservers {
            self.spawn(Seat::Chunkserver(i))?;
        }
        for i in 0..self.spec.chunkservers {
            self.await_registered(Seat::Chunkserver(i))?;
        }
        Ok(())
    }

    /// The folder with every process's configuration, log and data.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Leaves the folder behind when the cluster is dropped.
    pub fn keep_folder(&mut self) {
        self.folder.keep();
    }

    /// What the cluster was made of.
    pub fn spec(&self) -> &ClusterSpec {
        &self.spec
    }

    /// Addresses of the meta nodes.
    pub fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    /// Every seat that was ever started.
    pub fn seats(&self) -> impl Iterator<Item = Seat> {
        self.places.keys().copied()
    }

    /// The metadata cluster; its calls follow the leader.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Runs a future of [`Cluster::control`], which is bound to the harness's runtime.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// What one meta node says of itself, leader or not.
    ///
    /// # Errors
    ///
    /// [`MetaError`] where it does not answer at once.
    pub fn status_of(&self, meta: Seat) -> Result<rpc::StatusReply, MetaError> {
        let endpoint = self.places[&meta].address.to_string();
        let one = Control::builder().endpoints([endpoint]).timeout(ANSWER_LIMIT).build()?;
        self.block_on(one.status(rpc::StatusRequest {}))
    }

    // ---------- processes ----------

    fn spawn(&mut self, seat: Seat) -> Result<(), ClusterError> {
        let place = &self.places[&seat];
        let verb = match seat {
            Seat::Meta(_) => "meta",
            Seat::Chunkserver(_) => "chunkserver",
            Seat::Gateway(_) => "gateway",
        };
        let config = place.config.to_string_lossy().into_owned();
        let args = [verb, "run", "--config", &config];
        let host = self.spec.hosts.get(&seat);
        let namespace = host.and_then(|host| host.namespace.as_deref());
        let process = Process::start(seat, &args, &place.log, &self.spec.log_filter, namespace)?;
        self.processes.insert(seat, process);
        Ok(())
    }

    fn take(&mut self, seat: Seat) -> Result<Process, ClusterError> {
        self.processes.remove(&seat).ok_or(ClusterError::NotRunning { seat })
    }

    fn running(&self, seat: Seat) -> Result<&Process, ClusterError> {
        self.processes.get(&seat).ok_or(ClusterError::NotRunning { seat })
    }

    /// Whether the process was started and not ended by the harness.
    pub fn is_running(&self, seat: Seat) -> bool {
        self.processes.contains_key(&seat)
    }

    /// Its process id.
    ///
    /// # Errors
    ///
    /// [`ClusterError::NotRunning`].
    pub fn pid(&self, seat: Seat) -> Result<u32, ClusterError> {
        self.running(seat).map(Process::pid)
    }

    /// Every process that runs, by its id.
    pub fn running_by_pid(&self) -> BTreeMap<u32, Seat> {
        self.processes.iter().map(|(seat, process)| (process.pid(), *seat)).collect()
    }

    /// Process ids of all that run.
    pub fn pids(&self) -> Vec<u32> {
        self.processes.values().map(Process::pid).collect()
    }

    /// SIGKILL; returns when the process is gone.
    ///
    /// # Errors
    ///
    /// [`ClusterError::NotRunning`].
    pub fn kill(&mut self, seat: Seat) -> Result<(), ClusterError> {
        self.take(seat)?.kill()
    }

    /// SIGTERM; returns when the process has ended cleanly.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Ended`] where it ended with another code than 0.
    pub fn stop(&mut self, seat: Seat) -> Result<(), ClusterError> {
        let log = self.places[&seat].log.clone();
        let status = self.take(seat)?.stop(STOP_LIMIT)?;
        if status.success() {
            return Ok(());
        }
        let log = fs::read_to_string(&log).map_err(ClusterError::file(log))?;
        Err(ClusterError::Ended { seat, status, log })
    }

    /// SIGSTOP: the process keeps its connections and says nothing.
    ///
    /// # Errors
    ///
    /// [`ClusterError::NotRunning`].
    pub fn pause(&self, seat: Seat) -> Result<(), ClusterError> {
        self.running(seat)?.signal(Signal::STOP)
    }

    /// SIGCONT.
    ///
    /// # Errors
    ///
    /// [`ClusterError::NotRunning`].
    pub fn resume(&self, seat: Seat) -> Result<(), ClusterError> {
        self.running(seat)?.signal(Signal::CONT)
    }

    /// Starts a process again on its data, and waits until it takes part.
    ///
    /// # Errors
    ///
    /// [`ClusterError`].
    pub fn restart(&mut self, seat: Seat) -> Result<(), ClusterError> {
        if self.is_running(seat) {
            self.kill(seat)?;
        }
        self.spawn(seat)?;
        self.await_up(seat)
    }

    fn await_up(&mut self, seat: Seat) -> Result<(), ClusterError> {
        match seat {
            Seat::Meta(_) | Seat::Gateway(_) => self.await_answer(seat),
            Seat::Chunkserver(_) => self.await_registered(seat),
        }
    }

    /// SIGKILL to every process, one right after the other.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Process`].
    pub fn kill_all(&mut self) -> Result<(), ClusterError> {
        for process in self.processes.values() {
            process.signal(Signal::KILL)?;
        }
        std::mem::take(&mut self.processes).into_values().try_for_each(Process::kill)
    }

    /// Starts every process that does not run, and waits until all take part.
    ///
    /// # Errors
    ///
    /// [`ClusterError`].
    pub fn start_all(&mut self) -> Result<(), ClusterError> {
        let down: Vec<_> = self.seats().filter(|seat| !self.is_running(*seat)).collect();
        for &seat in &down {
            self.spawn(seat)?;
        }
        down.into_iter().try_for_each(|seat| self.await_up(seat))
    }

    /// An error if any process has ended by itself.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Ended`] with the end of its log.
    pub fn check_alive(&mut self) -> Result<(), ClusterError> {
        self.processes.values_mut().try_for_each(Process::check)
    }

    /// Waits for a condition, but no longer than all processes live.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Timeout`] or [`ClusterError::Ended`].
    pub fn await_condition<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut look: impl FnMut(&Self) -> Result<T, String>,
    ) -> Result<T, ClusterError> {
        wait_until(what, limit, || match self.check_alive() {
            Ok(()) => look(self).map(Ok),
            Err(ended) => Ok(Err(ended)),
        })?
    }

    /// Until the process accepts on its control address (a meta node also answers).
    fn await_answer(&mut self, seat: Seat) -> Result<(), ClusterError> {
        let address = self.places[&seat].address;
        self.await_condition(&format!("{seat} to answer"), START_LIMIT, |cluster| match seat {
            Seat::Meta(_) => cluster.status_of(seat).map(|_| ()).map_err(|e| e.to_string()),
            Seat::Chunkserver(_) | Seat::Gateway(_) => greet(address).map_err(|e| e.to_string()),
        })
    }

    /// Until another run of the server than the last is up.
    fn await_registered(&mut self, seat: Seat) -> Result<(), ClusterError> {
        let before = self.runs.get(&seat).copied();
        let run = self.await_condition(&format!("{seat} to be up"), START_LIMIT, |cluster| {
            let now = cluster.server_run(seat).map_err(|e| e.to_string())?;
            let alive = cluster.server(seat).map_err(|e| e.to_string())?.alive;
            if Some(now) == before || !alive {
                return Err(format!("{now:?}, alive {alive}"));
            }
            Ok(now)
        })?;
        self.runs.insert(seat, run);
        Ok(())
    }

    // ---------- gateways ----------

    /// Starts a gateway and waits until it accepts connections.
    ///
    /// # Errors
    ///
    /// [`ClusterError`].
    pub fn add_gateway(&mut self, exports: &[ExportSpec]) -> Result<Seat, ClusterError> {
        let count = self.places.keys().filter(|s| matches!(s, Seat::Gateway(_))).count();
        let seat = Seat::Gateway(count);
        let place = place(seat, &self.spec, self.folder.path(), &mut self.ports)?;
        let file = GatewayFile {
            meta: self.endpoints().to_vec(),
            listen: Some(place.address),
            unix: None,
            metrics_listen: Some(place.metrics),
            topology: TopologyFile::default(),
            export: exports.iter().map(export_file).collect(),
        };
        write_toml(&place.config, &file)?;
        self.places.insert(seat, place);
        self.spawn(seat)?;
        self.await_answer(seat)?;
        Ok(seat)
    }

    /// Where a process listens: gRPC of meta nodes and chunkservers, NBD of gateways.
    pub fn address(&self, seat: Seat) -> SocketAddr {
        self.places[&seat].address
    }

    /// Where a process serves its metrics.
    pub fn metrics_address(&self, seat: Seat) -> SocketAddr {
        self.places[&seat].metrics
    }

    /// URI of a gateway's export.
    pub fn nbd_uri(&self, gateway: Seat, export: &str) -> String {
        format!("nbd://{}/{export}", self.address(gateway))
    }
}

impl Drop for Cluster {
    /// All at once: the end of one may take seconds while its writes are on the way to the disk.
    fn drop(&mut self) {
        if let Err(error) = self.kill_all() {
            eprintln!("cannot end the cluster: {error}");
        }
    }
}

/// Until an NBD server says hello: it listens before its volumes are open.
fn greet(address: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    stream.read_exact(&mut [0; 8])
}

fn place(
    seat: Seat,
    spec: &ClusterSpec,
    parent: &Path,
    ports: &mut Ports,
) -> Result<Place, ClusterError> {
    let folder = parent.join(seat.to_string());
    fs::create_dir_all(&folder).map_err(ClusterError::file(&folder))?;
    let host = spec.hosts.get(&seat).map_or(Ipv4Addr::LOCALHOST.into(), |host| host.address);
    let mut listen = || Ok::<_, ClusterError>(SocketAddr::new(host, ports.take()?));
    Ok(Place {
        config: parent.join(format!("{seat}.toml")),
        log: parent.join(format!("{seat}.log")),
        folder,
        address: listen()?,
        metrics: listen()?,
    })
}

fn write_toml<T: serde::Serialize>(path: &Path, value: &T) -> Result<(), ClusterError> {
    let text = toml::to_string(value).expect("configurations serialize");
    fs::write(path, text).map_err(ClusterError::file(path))
}

fn export_file(spec: &ExportSpec) -> ExportFile {
    ExportFile {
        volume: spec.volume.clone(),
        mode: match spec.mode {
            ExportMode::Exclusive => ModeName::Exclusive,
            ExportMode::Shared => ModeName::Shared,
            ExportMode::ReadOnly => ModeName::ReadOnly,
        },
        take_over: spec.take_over,
        program: spec.program.clone(),
        instance: spec.instance.clone(),
    }
}
