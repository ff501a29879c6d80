//! What a gateway is told to do.

use std::{net::SocketAddr, path::PathBuf};

use tidewater_proto::rpc;

use crate::open::Mode;

/// Settings of a gateway.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GatewayConfig {
    /// Meta nodes, `host:port` each.
    pub endpoints: Vec<String>,
    /// Where the gateway runs, for proximity.
    pub topology: rpc::Topology,
    /// TCP addresses to listen on.
    pub listen: Vec<SocketAddr>,
    /// Unix sockets to listen on; one that is left over from a dead process is replaced.
    pub unix: Vec<PathBuf>,
    /// Volumes to export.
    pub exports: Vec<ExportConfig>,
    /// Connections at once; more are closed when they come.
    pub max_connections: usize,
}

/// One exported volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportConfig {
    /// Name for clients; the volume's where empty.
    pub name: String,
    /// Volume.
    pub volume: String,
    /// Program on whose behalf the volume is used.
    pub program: String,
    /// Which instance of it.
    pub instance: String,
    /// Who else may have the volume open.
    pub mode: Mode,
    /// Detach whoever has the volume.
    pub take_over: bool,
}

impl ExportConfig {
    /// A volume exported under its own name.
    pub fn new(volume: impl Into<String>) -> Self {
        Self { volume: volume.into(), ..Self::default() }
    }

    /// Name for clients.
    pub fn name(&self) -> &str {
        if self.name.is_empty() { &self.volume } else { &self.name }
    }
}
