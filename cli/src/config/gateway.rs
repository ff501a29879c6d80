//! Configuration of an NBD gateway.

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::TopologyFile;

/// `tidewater gateway run --config FILE`; flags override keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct GatewayFile {
    /// Meta nodes, host:port; --endpoint where left out.
    #[arg(skip)]
    pub(crate) meta: Vec<String>,
    /// TCP address for NBD clients (default 127.0.0.1:10809 unless --unix is given)
    #[arg(long)]
    pub(crate) listen: Option<SocketAddr>,
    /// Unix socket for NBD clients
    #[arg(long)]
    pub(crate) unix: Option<PathBuf>,
    /// Serve Prometheus metrics here (default 127.0.0.1:7492, unless that is taken)
    #[arg(long)]
    pub(crate) metrics_listen: Option<SocketAddr>,
    /// Where the gateway is; shown with its attachments
    #[command(flatten)]
    pub(crate) topology: TopologyFile,
    /// Volumes to export.
    #[arg(skip)]
    pub(crate) export: Vec<ExportFile>,
}

/// How a volume is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ModeName {
    /// This gateway alone
    #[default]
    Exclusive,
    /// Together with others; each write is atomic a block
    Shared,
    /// Nothing is written
    ReadOnly,
}

/// One `[[export]]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct ExportFile {
    /// The volume; also the export's name.
    pub(crate) volume: String,
    /// How it is opened.
    #[serde(default)]
    pub(crate) mode: ModeName,
    /// Fence whoever has it open exclusively.
    #[serde(default)]
    pub(crate) take_over: bool,
    /// Program it is opened for.
    pub(crate) program: String,
    /// Instance of the program.
    pub(crate) instance: String,
}

impl GatewayFile {
    /// `flags` where given, else `self`.
    pub(crate) fn overridden(self, flags: Self) -> Self {
        Self {
            meta: self.meta,
            listen: flags.listen.or(self.listen),
            unix: flags.unix.or(self.unix),
            metrics_listen: flags.metrics_listen.or(self.metrics_listen),
            topology: self.topology.overridden(flags.topology),
            export: self.export,
        }
    }
}
