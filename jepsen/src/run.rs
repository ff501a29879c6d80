//! One run: a cluster, a workload, a nemesis, final reads, verdicts.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use anyhow::Context as _;
use tidewater_cli::cluster::{Cluster, ClusterSpec, DeviceSpec, ExportSpec, Seat};
use tidewater_client::{blocking::Disk, rpc};

use crate::{
    checker::{Rank, Verdict, judge},
    history::{Event, Op, Stage, Value, write_edn},
    nemesis::{Bite, Hand, Nemesis, bites, plan},
    net::Net,
    recorder::{Call, Recorder, Voice},
    report,
    workload::{self, Device, Gateway, IO_TIMEOUT, Scene, VOLUME, Workload, perform},
};

/// The cluster must be whole again this long after the last fault.
const HEALTHY_LIMIT: Duration = Duration::from_mins(1);
/// A copy that is missing for longer goes to another server, while faults go on.
const REPAIR_DELAY: Duration = Duration::from_secs(5);
/// What an operation may take beyond its own time, on a busy machine.
const SLACK: Duration = Duration::from_secs(15);
/// Registers of one final read, where they lie side by side.
const FINAL_SPAN: u32 = 64;
/// Room on each device: the volumes are small.
const DEVICE_BYTES: u64 = 2 << 30;

/// What to run.
#[derive(Clone, Debug)]
pub struct RunSpec {
    /// What clients do.
    pub workload: Workload,
    /// What is done to the cluster.
    pub nemesis: Nemesis,
    /// How long, about; the last fault may end a little earlier.
    pub length: Duration,
    /// Fixes the schedule of faults, the values and the choices of each client; not the timing.
    pub seed: u64,
    /// Folder for the history and the report, and for the cluster while it runs.
    pub folder: PathBuf,
    /// Leave the cluster's folder there even if the run is valid.
    pub keep: bool,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// By checker.
    pub verdicts: Vec<(&'static str, Verdict)>,
    /// What the faults did.
    pub bites: Vec<Bite>,
    /// What went wrong with the cluster itself: processes that ended, conditions that never came.
    pub trouble: Vec<String>,
    /// Everything that happened.
    pub events: Vec<Event>,
}

impl Outcome {
    /// The verdict on the run. Faults that nobody felt prove nothing.
    pub fn rank(&self) -> Rank {
        let worst = Verdict::worst(self.verdicts.iter().map(|(_, verdict)| verdict));
        let unfelt = !self.bites.is_empty() && !self.bites.iter().any(Bite::bit);
        if unfelt { worst.max(Rank::Unknown) } else { worst }
    }
}

/// Runs, judges, and writes `history.jsonl`, `history.edn`, `summary.txt` and `report.html`.
///
/// # Errors
///
/// Where the harness failed: nothing is known of the cluster then.
pub fn run(spec: &RunSpec) -> anyhow::Result<Outcome> {
    let fits = spec.workload.needs_gateway() || !spec.nemesis.needs_gateway();
    anyhow::ensure!(fits, "without a gateway this nemesis has nothing to harm: --workload gateway");
    fs::create_dir_all(&spec.folder).with_context(|| spec.folder.display().to_string())?;
    let history = spec.folder.join("history.jsonl");
    let file = File::create(&history).with_context(|| history.display().to_string())?;
    let net = spec.nemesis.cuts().then(|| Net::new(seats())).transpose()?;
    let mut cluster = start(spec, net.as_ref())?;
    let recorder = Recorder::new(file);
    let trouble = work(spec, &mut cluster, net.as_ref(), &recorder)?;
    let events = recorder.finish()?;
    let verdicts = judge(&events, IO_TIMEOUT + SLACK);
    let outcome = Outcome { verdicts, bites: bites(&events), trouble, events };
    if spec.keep || outcome.rank() != Rank::Valid {
        cluster.keep_folder();
    }
    write(&spec.folder, spec, &outcome)?;
    Ok(outcome)
}

const METAS: usize = 3;
const CHUNKSERVERS: usize = 4;

/// Every process that a run may have.
fn seats() -> impl Iterator<Item = Seat> {
    let servers = (0..METAS).map(Seat::Meta).chain((0..CHUNKSERVERS).map(Seat::Chunkserver));
    servers.chain([Seat::Gateway(0)])
}

fn start(spec: &RunSpec, net: Option<&Net>) -> anyhow::Result<Cluster> {
    let cluster = Cluster::start(ClusterSpec {
        metas: METAS,
        chunkservers: CHUNKSERVERS,
        segment_bytes: spec.workload.segment_bytes(),
        repair_delay: REPAIR_DELAY,
        devices: vec![DeviceSpec { capacity_bytes: DEVICE_BYTES, ..DeviceSpec::default() }],
        parent: Some(spec.folder.clone()),
        hosts: net.map(Net::hosts).unwrap_or_default(),
        ..ClusterSpec::default()
    })?;
    let size = spec.workload.volume_bytes();
    cluster.create_volume(VOLUME, size, 3, rpc::Durability::Sync)?;
    Ok(cluster)
}

/// A gateway that takes the volume from whoever has it; its attachment is in the history.
fn add_gateway(cluster: &mut Cluster, recorder: &Recorder) -> anyhow::Result<Gateway> {
    let (voice, call) = workload::announce_attach(recorder);
    let export = ExportSpec { take_over: true, ..ExportSpec::exclusive(VOLUME) };
    let seat = cluster.add_gateway(&[export])?;
    voice.ok(&call, None);
    Ok(Gateway {
        address: cluster.address(seat),
        session: AtomicU64::new(voice.process()),
        is_paused: AtomicBool::new(false),
    })
}

/// Load and faults, then peace, then the final reads. Gives what went wrong with the cluster.
fn work(
    spec: &RunSpec,
    cluster: &mut Cluster,
    net: Option<&Net>,
    recorder: &Recorder,
) -> anyhow::Result<Vec<String>> {
    let stop = AtomicBool::new(false);
    let endpoints = cluster.endpoints().to_vec();
    let needed = spec.workload.needs_gateway();
    let gateway = needed.then(|| add_gateway(cluster, recorder)).transpose()?;
    let gateway = gateway.as_ref();
    let scene = Scene { recorder, endpoints: &endpoints, gateway, seed: spec.seed, stop: &stop };
    let faults = plan(spec.nemesis, spec.seed, spec.length);
    let mut trouble = Vec::new();
    let contested = spec.workload.contests_gateway();
    let mut hand = Hand { cluster, net, recorder, gateway, contested };
    std::thread::scope(|scope| {
        let load = scope.spawn(|| spec.workload.run(&scene));
        let is_over = || load.is_finished();
        let harmed = hand.run(&faults, is_over).err();
        trouble.extend(harmed.map(|error| format!("under faults: {error}")));
        let rest = spec.length.saturating_sub(Duration::from_nanos(recorder.now()));
        if trouble.is_empty() {
            wait(rest, is_over);
        }
        let healed = hand.heal().err();
        trouble.extend(healed.map(|error| format!("while healing: {error}")));
        recorder.nemesis(Op::Stage, Stage::Healed.name());
        stop.store(true, Ordering::Relaxed);
        load.join().map_err(|_| anyhow::anyhow!("a client panicked"))?
    })?;
    match await_healthy(hand.cluster) {
        Ok(()) => recorder.nemesis(Op::Stage, Stage::Healthy.name()),
        Err(error) => trouble.push(format!("not whole again: {error:#}")),
    }
    // Even of a cluster that is not whole: what is lost shows.
    if let Err(error) = read_all(spec, &scene) {
        trouble.push(format!("final reads: {error:#}"));
    }
    Ok(trouble)
}

fn wait(time: Duration, is_over: impl Fn() -> bool) {
    let until = std::time::Instant::now() + time;
    while std::time::Instant::now() < until && !is_over() {
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn await_healthy(cluster: &mut Cluster) -> anyhow::Result<()> {
    cluster.await_leader()?;
    cluster.await_condition("all chunkservers", HEALTHY_LIMIT, |cluster| {
        let servers = cluster.servers().map_err(|error| error.to_string())?;
        let dead = servers.iter().filter(|server| !server.alive).count();
        if dead == 0 { Ok(()) } else { Err(format!("{dead} are not alive")) }
    })?;
    let list = cluster.control().list_volumes(rpc::ListVolumesRequest { trash: false });
    let volumes = cluster.block_on(list)?.volumes;
    for volume in volumes {
        cluster.await_full_redundancy(volume.id, HEALTHY_LIMIT)?;
    }
    Ok(())
}

/// Reads every register once more, through a new attachment.
fn read_all(spec: &RunSpec, scene: &Scene<'_>) -> anyhow::Result<()> {
    scene.recorder.nemesis(Op::Stage, Stage::Final.name());
    let (volume, session) = workload::attach(scene).context("no attachment")?;
    let layout = spec.workload.layout(spec.seed);
    let mut device = Device::new(Disk::new(volume)?, layout);
    let mut voice = Voice::new(scene.recorder, Some(session));
    let side_by_side = layout.stride == layout.sectors;
    let (mut block, end) = (0, spec.workload.registers());
    while block < end {
        let span = if side_by_side { FINAL_SPAN.min((end - block) as u32) } else { 1 };
        let call = Call { op: Op::Read, block: Some(block), span, value: Value::None };
        perform(&mut voice, &mut device, &call).map_err(|failure| anyhow::anyhow!(failure.text))?;
        block += u64::from(span);
    }
    Ok(())
}

fn write(folder: &Path, spec: &RunSpec, outcome: &Outcome) -> anyhow::Result<()> {
    let mut edn = Vec::new();
    write_edn(&mut edn, &outcome.events, None)?;
    for (name, content) in [
        ("history.edn", edn),
        ("summary.txt", report::summary(spec, outcome).into_bytes()),
        ("report.html", report::html(spec, outcome).into_bytes()),
    ] {
        let path = folder.join(name);
        fs::write(&path, content).with_context(|| path.display().to_string())?;
    }
    Ok(())
}
