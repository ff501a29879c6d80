//! `meta run`, `chunkserver run` and `gateway run`: a configuration becomes a running server that
//! stops cleanly at SIGINT or SIGTERM.

mod capacity;
mod chunkserver;
mod export_arg;
mod gateway;
mod meta;

use std::path::{Path, PathBuf};

use clap::Subcommand;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    cluster::DEFAULT_LOG_FILTER,
    config::{self, ChunkserverFile, GatewayFile, MetaFile, ModeName},
    failure::Failure,
};

pub(crate) use chunkserver::run as run_chunkserver;
pub(crate) use export_arg::ExportArg;
pub(crate) use gateway::run as run_gateway;
pub(crate) use meta::run as run_meta;

#[derive(Debug, Subcommand)]
pub(crate) enum MetaVerb {
    /// Run a meta node
    Run {
        /// TOML file; flags override its keys
        #[arg(short, long)]
        config: Option<PathBuf>,
        #[command(flatten)]
        flags: MetaFile,
    },
    /// Make the data folder of a new one-node cluster from a backup; then run it
    Restore {
        /// Copy of a meta node's folder snapshots/N
        #[arg(long)]
        backup: PathBuf,
        /// Chunkservers that the cluster has; nothing is served before as many have told what they hold
        #[arg(long)]
        servers: u32,
        /// TOML file of the new node; flags override its keys
        #[arg(short, long)]
        config: Option<PathBuf>,
        #[command(flatten)]
        flags: MetaFile,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ChunkserverVerb {
    /// Run a chunkserver
    Run {
        /// TOML file; flags override its keys
        #[arg(short, long)]
        config: Option<PathBuf>,
        #[command(flatten)]
        flags: ChunkserverFile,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum GatewayVerb {
    /// Export volumes over NBD
    Run {
        /// TOML file; flags override its keys
        #[arg(short, long)]
        config: Option<PathBuf>,
        #[command(flatten)]
        flags: GatewayFile,
        /// Volume to export, as VOLUME[,program=NAME][,instance=ID][,mode=MODE][,take-over]; once for each
        #[arg(long = "export")]
        exports: Vec<ExportArg>,
        /// Program of each --export that names none
        #[arg(long, default_value = "nbd")]
        program: String,
        /// Instance of each --export that names none
        #[arg(long, default_value = "1")]
        instance: String,
        /// How each --export is opened that does not say
        #[arg(long, value_enum, default_value_t)]
        mode: ModeName,
        /// Fence whoever has any --export open exclusively
        #[arg(long)]
        take_over: bool,
    },
}

fn file_or_default<T: serde::de::DeserializeOwned + Default>(
    path: Option<&Path>,
) -> Result<T, Failure> {
    path.map_or_else(|| Ok(T::default()), config::read)
}

/// Logs to standard error; what and how much is up to `RUST_LOG`.
fn log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(DEFAULT_LOG_FILTER));
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(ansi)
        .with_writer(std::io::stderr)
        .init();
}

/// Resolves at SIGINT or SIGTERM.
///
/// # Errors
///
/// Where the signals cannot be caught.
pub(crate) fn stop_signal() -> Result<impl Future<Output = ()> + Send, Failure> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(anyhow::Error::from)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(anyhow::Error::from)?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}
