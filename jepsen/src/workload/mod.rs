//! What clients do while the nemesis does harm.
//!
//! | workload | registers | through |
//! | --- | --- | --- |
//! | [`Workload::Registers`] | 64 blocks over 8 segments: read, write, compare-and-write | one exclusive attachment |
//! | [`Workload::Shared`] | the same | two shared attachments, and one that only reads |
//! | [`Workload::Sectors`] | 48 sectors across a segment's end: reads and writes of 1 to 12 | two shared attachments |
//! | [`Workload::Takeover`] | 4 blocks over 4 segments | exclusive attachments that take the volume from each other |
//! | [`Workload::Append`] | a log of blocks through up to 128 segments | one exclusive attachment |
//! | [`Workload::Gateway`] | 64 blocks over 8 segments: read, write | NBD |
//! | [`Workload::Handover`] | 4 blocks over 4 segments | NBD; while the gateway is paused, an attachment that takes over |

mod append;
mod device;
mod handover;
mod nbd;
mod takeover;
#[cfg(test)]
mod tests;
mod worker;

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use anyhow::Context as _;
use tidewater_client::{Cluster, Open, Volume, blocking::Disk};

pub(crate) use device::{Device, Failure, Registers};
pub(crate) use takeover::{announce_attach, attach};
pub(crate) use worker::{Mix, Worker, perform};

use crate::{content::Layout, recorder::Recorder};

const MIB: u64 = 1 << 20;
/// Sectors of a MiB.
const MIB_SECTORS: u64 = MIB / 512;
/// Sectors of a block.
const BLOCK_SECTORS: u64 = 8;
/// Time for one operation: longer than any failover that is expected.
pub(crate) const IO_TIMEOUT: Duration = Duration::from_secs(15);
/// Name of the volume.
pub(crate) const VOLUME: &str = "register";

/// What clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Workload {
    /// Read, write and compare-and-write of blocks, through one exclusive attachment
    Registers,
    /// The same through several shared attachments
    Shared,
    /// Reads and writes of sectors that overlap each other and a segment's end
    Sectors,
    /// Attachments that take the volume from each other
    Takeover,
    /// A log that grows over many segments
    Append,
    /// Read and write of blocks over NBD
    Gateway,
    /// The same, and whenever the gateway is paused another client takes the volume over
    Handover,
}

/// The gateway of a run, as its clients and the nemesis know it.
pub(crate) struct Gateway {
    pub(crate) address: SocketAddr,
    /// The attachment of the process that runs now. Changed after the old one is dead and before the
    /// next one starts, so a connection belongs to the one that is here before and after it was made.
    pub(crate) session: AtomicU64,
    pub(crate) is_paused: AtomicBool,
}

/// What all threads of a workload share.
pub(crate) struct Scene<'a> {
    pub(crate) recorder: &'a Recorder,
    pub(crate) endpoints: &'a [String],
    pub(crate) gateway: Option<&'a Gateway>,
    pub(crate) seed: u64,
    pub(crate) stop: &'a AtomicBool,
}

impl Scene<'_> {
    /// Whether to start nothing more.
    pub(crate) fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.recorder.is_full()
    }
}

impl Workload {
    /// Bytes of a segment.
    pub(crate) fn segment_bytes(self) -> u64 {
        match self {
            Self::Append => MIB,
            Self::Registers
            | Self::Shared
            | Self::Sectors
            | Self::Takeover
            | Self::Gateway
            | Self::Handover => 4 * MIB,
        }
    }

    /// Bytes of the volume.
    pub(crate) fn volume_bytes(self) -> u64 {
        match self {
            Self::Append => 128 * MIB,
            Self::Registers | Self::Shared | Self::Gateway => 32 * MIB,
            Self::Takeover | Self::Handover => 16 * MIB,
            Self::Sectors => 8 * MIB,
        }
    }

    /// Registers that the workload uses at most.
    pub(crate) fn registers(self) -> u64 {
        match self {
            Self::Append => self.volume_bytes() / 4096,
            // Many more than threads: a block with a write under way tells nothing of its segment's
            // other blocks, which a server that lost its role must not answer for either.
            Self::Registers | Self::Shared | Self::Gateway => 64,
            Self::Takeover | Self::Handover => 4,
            Self::Sectors => 48,
        }
    }

    /// Where they are.
    pub(crate) fn layout(self, seed: u64) -> Layout {
        let (base, stride, sectors) = match self {
            Self::Append => (0, BLOCK_SECTORS, BLOCK_SECTORS),
            // Eight in each segment, and none at its begin.
            Self::Registers | Self::Shared | Self::Gateway => {
                (BLOCK_SECTORS, MIB_SECTORS / 2, BLOCK_SECTORS)
            }
            Self::Takeover | Self::Handover => (BLOCK_SECTORS, 4 * MIB_SECTORS, BLOCK_SECTORS),
            // Half of them in either segment, and blocks begin at every eighth.
            Self::Sectors => (4 * MIB_SECTORS - 20, 1, 1),
        };
        Layout { seed, base, stride, sectors }
    }

    /// Whether it goes through a gateway.
    pub(crate) fn needs_gateway(self) -> bool {
        matches!(self, Self::Gateway | Self::Handover)
    }

    /// Whether the gateway loses the volume to another client, and must be started again to get it back.
    pub(crate) fn contests_gateway(self) -> bool {
        self == Self::Handover
    }

    /// Runs until told to stop.
    ///
    /// # Errors
    ///
    /// If a client could not be set up.
    pub(crate) fn run(self, scene: &Scene<'_>) -> anyhow::Result<()> {
        let layout = self.layout(scene.seed);
        let worker = |number, mix, span_max| {
            let registers = self.registers();
            Worker { layout, registers, mix, span_max, seed: scene.seed, number }
        };
        match self {
            Self::Registers => {
                together(scene, &[Open::exclusive()], 8, |number| worker(number, Mix::ALL, 1))
            }
            Self::Shared => {
                let open = [Open::shared(), Open::shared(), Open::read_only()];
                together(scene, &open, 3, |number| {
                    let reads = number % open.len() as u64 == 2;
                    worker(number, if reads { Mix::READ } else { Mix::ALL }, 1)
                })
            }
            Self::Sectors => {
                let open = [Open::shared(), Open::shared()];
                together(scene, &open, 4, |number| worker(number, Mix::READ_WRITE, 12))
            }
            Self::Takeover => takeover::run(scene, |number| worker(number, Mix::READ_WRITE, 1)),
            Self::Append => append::run(scene, layout, self.registers()),
            Self::Gateway | Self::Handover => {
                let gateway = scene.gateway.context("this workload needs a gateway")?;
                let worker = |number| worker(number, Mix::READ_WRITE, 1);
                std::thread::scope(|threads| {
                    for number in 0..8 {
                        let mut client = nbd::Connection::new(gateway, VOLUME, layout);
                        threads.spawn(move || worker(number).run(scene, &mut client));
                    }
                    let contested = self.contests_gateway();
                    if contested { handover::contend(scene, gateway, worker) } else { Ok(()) }
                })
            }
        }
    }
}

/// A volume, opened; for threads without async.
pub(crate) fn open(endpoints: &[String], options: Open) -> anyhow::Result<Volume> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let cluster = Cluster::connect(endpoints).await?;
        Ok(cluster.volume(VOLUME).open(options.io_timeout(IO_TIMEOUT)).await?)
    })
}

/// Workers on one attachment for each of `attachments`, `threads` on each.
fn together(
    scene: &Scene<'_>,
    attachments: &[Open],
    threads: u64,
    worker: impl Fn(u64) -> Worker,
) -> anyhow::Result<()> {
    let volumes = attachments.iter().map(|options| open(scene.endpoints, options.clone()));
    let volumes = volumes.collect::<anyhow::Result<Vec<_>>>()?;
    std::thread::scope(|scope| {
        for number in 0..threads * volumes.len() as u64 {
            let volume = volumes[number as usize % volumes.len()].clone();
            let worker = worker(number);
            let disk = Disk::new(volume)?;
            scope.spawn(move || worker.run(scene, &mut Device::new(disk, worker.layout)));
        }
        Ok(())
    })
}
