//! `tidewater attach`: who has volumes open.

use clap::Subcommand;
use serde::Serialize;
use tidewater_proto::rpc;

use super::{node::TopologyView, volume};
use crate::{
    args::Context,
    failure::Failure,
    output::{Item, Sizes, time},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// List the attachments of all volumes, or of one
    List {
        /// A volume's name
        volume: Option<String>,
    },
    /// End an attachment whose holder is gone; the holder is fenced first
    Detach {
        /// Its session, as `attach list` shows it
        session: u64,
    },
}

pub(crate) async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::List { volume: name } => {
            let volumes = match name {
                Some(name) => vec![volume::get(context, &name).await?],
                None => volume::list(context, false).await?,
            };
            let all = volumes.iter();
            let views =
                all.flat_map(|v| v.attachments.iter().map(|a| AttachmentView::new(a, &v.name)));
            context.output.list(&views.collect::<Vec<_>>())
        }
        Verb::Detach { session } => {
            context.confirm(&format!("Fence session {session} and end its attachment?"))?;
            let request = rpc::DetachRequest { session, force: true };
            context.cluster.detach(request).await?;
            context.output.done()
        }
    }
}

/// One attachment.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AttachmentView {
    session: u64,
    volume: String,
    mode: &'static str,
    program: String,
    instance: String,
    host: String,
    topology: TopologyView,
    token: u64,
    ready: bool,
    created: String,
}

impl AttachmentView {
    /// `volume` is the name of the volume attached.
    pub(crate) fn new(a: &rpc::Attachment, volume: &str) -> Self {
        Self {
            session: a.session,
            volume: volume.to_owned(),
            mode: match a.mode() {
                rpc::AttachMode::Exclusive => "exclusive",
                rpc::AttachMode::Shared => "shared",
                rpc::AttachMode::ReadOnly => "read-only",
            },
            program: a.program.clone(),
            instance: a.instance.clone(),
            host: a.host.clone(),
            topology: a.topology.as_ref().into(),
            token: a.token,
            ready: a.ready,
            created: time(a.created_ms),
        }
    }

    /// Where the holder runs, "r1/z1/k1/h1"; "-" where it does not say.
    pub(crate) fn location(&self) -> String {
        self.topology.text()
    }

    /// Name of the volume.
    pub(crate) fn volume(&self) -> &str {
        &self.volume
    }

    /// Program and instance, "db/1".
    pub(crate) fn holder(&self) -> String {
        format!("{}/{}", self.program, self.instance)
    }
}

impl Item for AttachmentView {
    const KIND: &'static str = "Attachment";
    const COLUMNS: &'static [&'static str] =
        &["SESSION", "VOLUME", "MODE", "HOLDER", "HOST", "LOCATION", "TOKEN", "READY", "CREATED"];

    fn name(&self) -> String {
        self.session.to_string()
    }

    fn cells(&self, _: Sizes) -> Vec<String> {
        vec![
            self.session.to_string(),
            self.volume.clone(),
            self.mode.to_owned(),
            self.holder(),
            self.host.clone(),
            self.topology.text(),
            self.token.to_string(),
            if self.ready { "yes" } else { "fencing" }.to_owned(),
            self.created.clone(),
        ]
    }
}
