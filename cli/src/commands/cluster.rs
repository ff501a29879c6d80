//! `tidewater cluster`: the Raft group of meta nodes.

use clap::Subcommand;
use serde::Serialize;
use tidewater_proto::{
    geometry::{CHUNK_BYTES, SEGMENT_BYTES},
    rpc,
};

use super::ServerArg;
use crate::{
    args::Context,
    failure::{Code, Failure},
    output::{Item, Sizes},
    units::ByteSize,
};

/// A node as `ID=HOST:PORT`.
#[derive(Clone, Debug)]
pub(crate) struct NodeArg {
    id: u64,
    address: String,
}

impl std::str::FromStr for NodeArg {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "expected ID=HOST:PORT, such as 1=10.0.0.1:7400";
        let (id, address) = text.split_once('=').ok_or(FORM)?;
        let id = id.trim_start_matches('m').parse().map_err(|_| FORM)?;
        if id == 0 || !address.contains(':') {
            return Err(FORM);
        }
        Ok(Self { id, address: address.to_owned() })
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Make a new cluster of meta nodes that have just been started
    Init {
        /// A voter, as ID=HOST:PORT; once for each
        #[arg(long = "node", required = true)]
        nodes: Vec<NodeArg>,
        /// Size of a segment; fixed for the cluster's life
        #[arg(long, default_value = "1GiB")]
        segment_size: ByteSize,
    },
    /// Show the cluster's identity, leader and progress
    Info,
    /// List the meta nodes
    Members,
    /// Add a meta node: it follows first, then votes
    AddMember {
        /// As ID=HOST:PORT
        node: NodeArg,
    },
    /// Take a meta node out
    RemoveMember {
        /// Its id
        id: u64,
    },
    /// Have a restored cluster go on without chunkservers that are gone for good
    FinishRestore {
        /// Server that is gone and stays off: what only it holds is lost; once for each
        #[arg(long = "without", required = true)]
        without: Vec<ServerArg>,
    },
    /// Hand the leadership over
    TransferLeader {
        /// Id of the node that should lead
        to: u64,
    },
}

pub(crate) async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Init { nodes, segment_size } => init(context, &nodes, segment_size.0).await,
        Verb::Info => {
            let status = status(context).await?;
            context.output.one(&Info::from(&status))
        }
        Verb::Members => {
            let status = status(context).await?;
            let members: Vec<_> = status.nodes.iter().map(MemberView::from).collect();
            context.output.list(&members)
        }
        Verb::AddMember { node } => {
            let request = rpc::AddMetaNodeRequest { id: node.id, address: node.address };
            context.cluster.add_meta_node(request).await?;
            context.output.done()
        }
        Verb::RemoveMember { id } => {
            context.confirm(&format!("Remove meta node {id} from the cluster?"))?;
            let request = rpc::RemoveMetaNodeRequest { id };
            context.cluster.remove_meta_node(request).await?;
            context.output.done()
        }
        Verb::FinishRestore { without } => {
            let names: Vec<_> = without.iter().map(|ServerArg(id)| format!("s{id}")).collect();
            context.confirm(&format!(
                "Go on without {}? What only they hold is lost.",
                names.join(", ")
            ))?;
            let without = without.into_iter().map(|ServerArg(id)| id).collect();
            context.cluster.finish_restore(rpc::FinishRestoreRequest { without }).await?;
            context.output.done()
        }
        Verb::TransferLeader { to } => {
            let request = rpc::TransferLeaderRequest { to };
            context.cluster.transfer_leader(request).await?;
            context.output.done()
        }
    }
}

async fn init(context: &Context, nodes: &[NodeArg], segment_bytes: u64) -> Result<(), Failure> {
    if segment_bytes == 0
        || !segment_bytes.is_multiple_of(CHUNK_BYTES)
        || segment_bytes > SEGMENT_BYTES
    {
        return Err(Failure::new(
            Code::Usage,
            format!("segment size {} does not fit", ByteSize(segment_bytes)),
        )
        .hint("it is a multiple of 1MiB, at most 1GiB"));
    }
    let nodes = nodes.iter().map(|n| rpc::MetaNode {
        id: n.id,
        address: n.address.clone(),
        voter: true,
        leader: false,
        matched: 0,
    });
    let request = rpc::InitClusterRequest { nodes: nodes.collect(), segment_bytes };
    let reply = context.cluster.init_cluster(request).await?;
    context.output.one(&Made { cluster: reply.cluster, segment_bytes })
}

/// The leader's view of the cluster.
pub(crate) async fn status(context: &Context) -> Result<rpc::StatusReply, Failure> {
    Ok(context.cluster.status(rpc::StatusRequest {}).await?)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Made {
    cluster: String,
    segment_bytes: u64,
}

impl Item for Made {
    const KIND: &'static str = "Cluster";
    const COLUMNS: &'static [&'static str] = &["CLUSTER", "SEGMENT"];

    fn name(&self) -> String {
        self.cluster.clone()
    }

    fn cells(&self, sizes: Sizes) -> Vec<String> {
        vec![self.cluster.clone(), sizes.show(self.segment_bytes)]
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Info {
    cluster: String,
    segment_bytes: u64,
    leader: Option<u64>,
    leader_address: String,
    term: u64,
    applied: u64,
    members: usize,
    state_hash: String,
    /// Set while the cluster, restored from a backup, waits for its chunkservers.
    restore: Option<Restore>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Restore {
    servers: u32,
    reported: Vec<u64>,
    awaited: Vec<u64>,
}

impl Restore {
    fn text(&self) -> String {
        let awaited: Vec<_> = self.awaited.iter().map(|id| format!("s{id}")).collect();
        let waits =
            if awaited.is_empty() { String::new() } else { format!(", no {}", awaited.join(" ")) };
        format!("{} of {}{waits}", self.reported.len(), self.servers)
    }
}

impl From<&rpc::StatusReply> for Info {
    fn from(s: &rpc::StatusReply) -> Self {
        Self {
            cluster: s.cluster.clone(),
            segment_bytes: s.segment_bytes,
            leader: s.leader,
            leader_address: s.leader_address.clone(),
            term: s.term,
            applied: s.applied,
            members: s.nodes.len(),
            state_hash: s.state_hash.clone(),
            restore: s.restore.clone().map(|r| {
                let rpc::RestoreStatus { servers, reported, awaited } = r;
                Restore { servers, reported, awaited }
            }),
        }
    }
}

impl Item for Info {
    const KIND: &'static str = "Cluster";
    const COLUMNS: &'static [&'static str] = &[
        "CLUSTER",
        "SEGMENT",
        "LEADER",
        "ADDRESS",
        "TERM",
        "APPLIED",
        "MEMBERS",
        "STATE-HASH",
        "RESTORE",
    ];

    fn name(&self) -> String {
        self.cluster.clone()
    }

    fn cells(&self, sizes: Sizes) -> Vec<String> {
        vec![
            self.cluster.clone(),
            sizes.show(self.segment_bytes),
            self.leader.map_or_else(|| "none".to_owned(), |id| format!("m{id}")),
            self.leader_address.clone(),
            self.term.to_string(),
            self.applied.to_string(),
            self.members.to_string(),
            self.state_hash.clone(),
            self.restore.as_ref().map_or_else(|| "none".to_owned(), Restore::text),
        ]
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MemberView {
    id: u64,
    address: String,
    voter: bool,
    leader: bool,
    matched: u64,
}

impl From<&rpc::MetaNode> for MemberView {
    fn from(n: &rpc::MetaNode) -> Self {
        let rpc::MetaNode { id, address, voter, leader, matched } = n.clone();
        Self { id, address, voter, leader, matched }
    }
}

impl Item for MemberView {
    const KIND: &'static str = "Member";
    const COLUMNS: &'static [&'static str] = &["ID", "ADDRESS", "ROLE", "MATCHED"];

    fn name(&self) -> String {
        self.id.to_string()
    }

    fn cells(&self, _: Sizes) -> Vec<String> {
        let role = match (self.leader, self.voter) {
            (true, _) => "leader",
            (false, true) => "voter",
            (false, false) => "learner",
        };
        vec![
            format!("m{}", self.id),
            self.address.clone(),
            role.to_owned(),
            self.matched.to_string(),
        ]
    }
}
