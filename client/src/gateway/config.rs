//! What a gateway is told to do.

use std::{net::SocketAddr, path::PathBuf};

use serde::Deserialize;

use crate::open::Mode;

/// Connections at once, unless told otherwise.
const CONNECTIONS: usize = 256;

/// Settings of a gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct GatewayConfig {
    /// Meta nodes, `host:port` each.
    pub endpoints: Vec<String>,
    /// TCP addresses to listen on.
    #[serde(default)]
    pub listen: Vec<SocketAddr>,
    /// Unix sockets to listen on; one that is left over from a dead process is replaced.
    #[serde(default)]
    pub unix: Vec<PathBuf>,
    /// Volumes to export.
    pub exports: Vec<ExportConfig>,
    /// Connections at once; more are closed when they come.
    #[serde(default = "connections")]
    pub max_connections: usize,
}

/// One exported volume.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ExportConfig {
    /// Name for clients; the volume's where empty.
    #[serde(default)]
    pub name: String,
    /// Volume.
    pub volume: String,
    /// Program on whose behalf the volume is used.
    #[serde(default)]
    pub program: String,
    /// Which instance of it.
    #[serde(default)]
    pub instance: String,
    /// Writes are refused.
    #[serde(default)]
    pub read_only: bool,
    /// Who else may have the volume open.
    #[serde(default)]
    pub mode: Mode,
    /// Detach whoever has the volume.
    #[serde(default)]
    pub take_over: bool,
}

fn connections() -> usize {
    CONNECTIONS
}

impl ExportConfig {
    /// A volume exported under its own name.
    pub fn new(volume: impl Into<String>) -> Self {
        Self {
            name: String::new(),
            volume: volume.into(),
            program: String::new(),
            instance: String::new(),
            read_only: false,
            mode: Mode::Exclusive,
            take_over: false,
        }
    }

    /// Name for clients.
    pub fn name(&self) -> &str {
        if self.name.is_empty() { &self.volume } else { &self.name }
    }
}
