//! `tidewater event`: the audit trail of everything the cluster changed, and why.

use std::time::Duration;

use clap::Subcommand;
use serde::Serialize;
use tidewater_proto::rpc;

use crate::{
    args::Context,
    failure::Failure,
    output::{Format, Item, Output, Sizes, time},
};

/// How often `--watch` asks for what is new.
const WATCH_PERIOD: Duration = Duration::from_millis(500);

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// List events, oldest first
    List {
        /// Only those after this revision
        #[arg(long, default_value_t = 0)]
        after: u64,
        /// At most this many
        #[arg(long, default_value_t = 1000)]
        limit: u32,
        /// Go on printing new ones until interrupted
        #[arg(short, long)]
        watch: bool,
    },
}

pub(crate) async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let Verb::List { after, limit, watch } = verb;
    let mut after = after;
    let events = page(context, after, limit).await?;
    if !watch {
        return context.output.list(&events);
    }
    // A list that never ends has no closing bracket: one object a line.
    let format = match context.output.format {
        Format::Json => Format::Jsonl,
        other => other,
    };
    let mut output = Output { format, ..context.output };
    let mut fresh = events;
    loop {
        if let Some(last) = fresh.last() {
            after = last.revision;
            output.list(&fresh)?;
            output.headers = false;
        }
        tokio::time::sleep(WATCH_PERIOD).await;
        fresh = page(context, after, limit).await?;
    }
}

async fn page(context: &Context, after: u64, limit: u32) -> Result<Vec<EventView>, Failure> {
    let request = rpc::ListEventsRequest { after_revision: after, limit };
    let reply = context.cluster.list_events(request).await?;
    Ok(reply.events.into_iter().map(EventView::from).collect())
}

#[derive(Serialize)]
struct EventView {
    revision: u64,
    time: String,
    kind: String,
    actor: String,
    reason: String,
    subject: String,
    detail: String,
}

impl From<rpc::Event> for EventView {
    fn from(e: rpc::Event) -> Self {
        let rpc::Event { revision, time_ms, kind, actor, reason, subject, detail } = e;
        Self { revision, time: time(time_ms), kind, actor, reason, subject, detail }
    }
}

impl Item for EventView {
    const KIND: &'static str = "Event";
    const COLUMNS: &'static [&'static str] =
        &["REVISION", "TIME", "KIND", "SUBJECT", "ACTOR", "REASON", "DETAIL"];

    fn name(&self) -> String {
        self.revision.to_string()
    }

    fn cells(&self, _: Sizes) -> Vec<String> {
        let Self { revision, time, kind, actor, reason, subject, detail } = self;
        let texts = [time, kind, subject, actor, reason, detail];
        std::iter::once(revision.to_string()).chain(texts.into_iter().cloned()).collect()
    }
}
