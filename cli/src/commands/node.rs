//! `tidewater node`: chunkservers, their devices and whether they take new segments.

use clap::Subcommand;
use serde::Serialize;
use tidewater_proto::rpc;

use super::ServerArg;
use crate::{
    args::Context,
    failure::{Code, Failure},
    output::{Item, Sizes},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// List all chunkservers
    List,
    /// Show one with its devices
    Show {
        /// Its id
        node: ServerArg,
    },
    /// Place no new copies on it
    Cordon {
        /// Its id
        node: ServerArg,
    },
    /// Place new copies on it again
    Uncordon {
        /// Its id
        node: ServerArg,
    },
    /// Forget a server that is gone for good; refused while it holds copies
    Remove {
        /// Its id
        node: ServerArg,
    },
}

pub(crate) async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::List => {
            let servers = list(context).await?;
            context.output.list(&servers.iter().map(NodeView::from).collect::<Vec<_>>())
        }
        Verb::Show { node: ServerArg(id) } => {
            let servers = list(context).await?;
            let server = servers.iter().find(|s| id_of(s) == id);
            let server = server.ok_or_else(|| {
                Failure::new(Code::NotFound, format!("no server s{id}"))
                    .hint("`tidewater node list` shows them all")
            })?;
            context.output.one(&NodeView::from(server))
        }
        Verb::Cordon { node } => cordon(context, node, true).await,
        Verb::Uncordon { node } => cordon(context, node, false).await,
        Verb::Remove { node: ServerArg(server) } => {
            context.confirm(&format!("Forget server s{server}? It must hold no copies, and its data folder is not taken back."))?;
            let request = rpc::RemoveServerRequest { server };
            context.cluster.remove_server(request).await?;
            context.output.done()
        }
    }
}

async fn cordon(context: &Context, node: ServerArg, cordoned: bool) -> Result<(), Failure> {
    let request = rpc::SetServerRequest { server: node.0, cordoned: Some(cordoned) };
    context.cluster.set_server(request).await?;
    context.output.done()
}

/// All chunkservers.
pub(crate) async fn list(context: &Context) -> Result<Vec<rpc::Server>, Failure> {
    Ok(context.cluster.list_servers(rpc::Empty {}).await?.servers)
}

/// Id of a server; 0 where the reply lacks it.
pub(crate) fn id_of(server: &rpc::Server) -> u64 {
    server.address.as_ref().map_or(0, |a| a.server)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeView {
    id: u64,
    state: &'static str,
    alive: bool,
    cordoned: bool,
    control: String,
    shards: Vec<String>,
    topology: TopologyView,
    segments: u32,
    primaries: u32,
    devices: Vec<DeviceView>,
}

/// Where something is.
#[derive(Serialize)]
pub(crate) struct TopologyView {
    region: String,
    zone: String,
    rack: String,
    host: String,
}

impl From<Option<&rpc::Topology>> for TopologyView {
    fn from(t: Option<&rpc::Topology>) -> Self {
        let rpc::Topology { region, zone, rack, host } = t.cloned().unwrap_or_default();
        Self { region, zone, rack, host }
    }
}

impl TopologyView {
    /// As in tables.
    pub(crate) fn text(&self) -> String {
        let shown = self.to_string();
        if shown.is_empty() { "-".to_owned() } else { shown }
    }
}

impl std::fmt::Display for TopologyView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = [&self.region, &self.zone, &self.rack, &self.host];
        let named: Vec<_> = parts.iter().filter(|p| !p.is_empty()).map(|p| p.as_str()).collect();
        f.write_str(&named.join("/"))
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DeviceView {
    name: String,
    tier: String,
    capacity_bytes: u64,
    used_bytes: u64,
    failed: bool,
}

impl From<&rpc::Server> for NodeView {
    fn from(s: &rpc::Server) -> Self {
        let address = s.address.clone().unwrap_or_default();
        Self {
            id: address.server,
            state: if s.alive { "up" } else { "down" },
            alive: s.alive,
            cordoned: s.cordoned,
            control: address.control,
            shards: address.shards,
            topology: s.topology.as_ref().into(),
            segments: s.segments,
            primaries: s.primaries,
            devices: s.devices.iter().map(DeviceView::from).collect(),
        }
    }
}

impl From<&rpc::Device> for DeviceView {
    fn from(d: &rpc::Device) -> Self {
        Self {
            name: d.name.clone(),
            tier: d.tier().as_str_name().to_lowercase(),
            capacity_bytes: d.capacity_bytes,
            used_bytes: d.used_bytes,
            failed: d.failed,
        }
    }
}

impl Item for NodeView {
    const KIND: &'static str = "Node";
    const COLUMNS: &'static [&'static str] = &[
        "ID",
        "STATE",
        "ADDRESS",
        "LOCATION",
        "SEGMENTS",
        "PRIMARIES",
        "USED",
        "CAPACITY",
        "DEVICES",
    ];

    fn name(&self) -> String {
        format!("s{}", self.id)
    }

    fn cells(&self, sizes: Sizes) -> Vec<String> {
        let state =
            if self.cordoned { format!("{},cordoned", self.state) } else { self.state.into() };
        let devices = self.devices.iter().map(|d| {
            let failed = if d.failed { " failed" } else { "" };
            format!("{}:{}{failed}", d.name, d.tier)
        });
        vec![
            self.name(),
            state,
            self.control.clone(),
            self.topology.text(),
            self.segments.to_string(),
            self.primaries.to_string(),
            sizes.show(self.devices.iter().map(|d| d.used_bytes).sum()),
            sizes.show(self.devices.iter().map(|d| d.capacity_bytes).sum()),
            devices.collect::<Vec<_>>().join(","),
        ]
    }
}
