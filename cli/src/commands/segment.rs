//! `tidewater segment`: placed segments, their replicas and who leads them.

use clap::Subcommand;
use serde::Serialize;
use tidewater_proto::rpc;

use super::{ServerArg, volume};
use crate::{
    args::Context,
    failure::Failure,
    output::{Item, Sizes},
};

/// Who the audit trail names for changes made with this command.
const ACTOR: &str = "operator";

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// List the placed segments of a volume
    List {
        /// The volume's name
        volume: String,
    },
    /// Let another member lead a segment, without losing or failing any I/O
    MovePrimary {
        /// The volume's name
        volume: String,
        /// The segment's index
        index: u32,
        /// The member that should lead
        #[arg(long)]
        to: ServerArg,
    },
}

pub(crate) async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::List { volume } => {
            let volume = volume::get(context, &volume).await?;
            list(context, volume.id).await
        }
        Verb::MovePrimary { volume, index, to } => {
            let volume = volume::get(context, &volume).await?.id;
            let request =
                rpc::MovePrimaryRequest { volume, index, to_server: to.0, actor: ACTOR.to_owned() };
            let segment = context.cluster.move_primary(request).await?;
            context.output.one(&SegmentView::from(&segment))
        }
    }
}

/// Prints the placed segments of a volume.
pub(crate) async fn list(context: &Context, volume: u64) -> Result<(), Failure> {
    let segments = all(context, volume).await?;
    context.output.list(&segments.iter().map(SegmentView::from).collect::<Vec<_>>())
}

/// Every placed segment of a volume, page by page.
pub(crate) async fn all(context: &Context, volume: u64) -> Result<Vec<rpc::Segment>, Failure> {
    let mut segments: Vec<rpc::Segment> = Vec::new();
    let mut first = 0;
    loop {
        let request = rpc::ListSegmentsRequest { volume, first, limit: 0, linearizable: true };
        let page = context.cluster.list_segments(request).await?.segments;
        let Some(last) = page.last() else { return Ok(segments) };
        first = last.index + 1;
        segments.extend(page);
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SegmentView {
    volume: u64,
    index: u32,
    epoch: u64,
    token: u64,
    primary: u64,
    members: Vec<CopyView>,
    learners: Vec<CopyView>,
    former: Vec<CopyView>,
    replicas: u32,
    floor: u32,
    active: bool,
}

#[derive(Serialize)]
struct CopyView {
    replica: u64,
    server: u64,
}

impl From<&rpc::Segment> for SegmentView {
    fn from(s: &rpc::Segment) -> Self {
        let views = |copies: &[rpc::Member]| {
            copies.iter().map(|m| CopyView { replica: m.replica, server: m.server }).collect()
        };
        let primary = s.members.iter().find(|m| m.replica == s.primary).map_or(0, |m| m.server);
        Self {
            volume: s.volume,
            index: s.index,
            epoch: s.epoch,
            token: s.token,
            primary,
            members: views(&s.members),
            learners: views(&s.learners),
            former: views(&s.former),
            replicas: s.replicas,
            floor: s.floor,
            active: s.active_epoch == Some(s.epoch),
        }
    }
}

impl Item for SegmentView {
    const KIND: &'static str = "Segment";
    const COLUMNS: &'static [&'static str] =
        &["SEGMENT", "EPOCH", "TOKEN", "PRIMARY", "MEMBERS", "LEARNERS", "FORMER", "ACTIVE"];

    fn name(&self) -> String {
        format!("v{}.{}", self.volume, self.index)
    }

    fn cells(&self, _: Sizes) -> Vec<String> {
        let servers = |copies: &[CopyView]| {
            let names: Vec<_> = copies.iter().map(|c| format!("s{}", c.server)).collect();
            if names.is_empty() { "-".to_owned() } else { names.join(",") }
        };
        vec![
            self.name(),
            self.epoch.to_string(),
            self.token.to_string(),
            format!("s{}", self.primary),
            servers(&self.members),
            servers(&self.learners),
            servers(&self.former),
            if self.active { "yes" } else { "no" }.to_owned(),
        ]
    }
}
