//! `tidewater volume`: volumes, their map and the trash.

use clap::{Subcommand, ValueEnum};
use serde::Serialize;
use tidewater_proto::{
    geometry::{BLOCK_BYTES, VOLUME_BYTES_MAX},
    rpc,
};

use crate::{
    args::Context,
    commands::{attach::AttachmentView, segment},
    failure::{Code, Failure},
    output::{Item, Sizes, time},
    units::{ByteSize, Span},
};

/// When a write is acknowledged.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum DurabilityArg {
    /// Once it is durable on every member
    Sync,
    /// Once every member has it in memory; a flush makes it durable
    Flush,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Make a volume; space is taken when it is written to
    Create {
        /// Its name; may contain "/"
        name: String,
        /// Its size, a multiple of 4KiB, at most 64TiB
        #[arg(long)]
        size: ByteSize,
        /// How many copies of each segment
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=5))]
        replicas: u32,
        /// What an acknowledged write promises
        #[arg(long, value_enum, default_value_t = DurabilityArg::Sync)]
        durability: DurabilityArg,
    },
    /// List the volumes
    List,
    /// Show one volume and who has it open
    Show {
        /// Its name
        name: String,
    },
    /// Make a volume larger
    Resize {
        /// Its name
        name: String,
        /// Its new size, not below the present one
        size: ByteSize,
    },
    /// Give a volume another name
    Rename {
        /// Its name
        name: String,
        /// Its new name
        to: String,
    },
    /// Move a volume to the trash
    Delete {
        /// Its name
        name: String,
        /// How long it can be restored
        #[arg(long, default_value = "24h")]
        keep: Span,
    },
    /// Show where each placed segment of a volume is
    Map {
        /// Its name
        name: String,
    },
    /// Deleted volumes that can still be restored
    #[command(subcommand)]
    Trash(TrashVerb),
}

#[derive(Debug, Subcommand)]
pub(crate) enum TrashVerb {
    /// List the trash
    List,
    /// Take a volume out of the trash
    Restore {
        /// Its id, as `trash list` shows it
        id: VolumeArg,
        /// The name it gets; its old one if left out
        #[arg(long)]
        name: Option<String>,
    },
    /// Destroy a volume in the trash now
    Purge {
        /// Its id, as `trash list` shows it
        id: VolumeArg,
    },
}

/// A volume's id, "7" or "v7".
#[derive(Clone, Copy, Debug)]
pub(crate) struct VolumeArg(u64);

impl std::str::FromStr for VolumeArg {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix('v').unwrap_or(text);
        digits.parse().map(Self).map_err(|_| "expected a volume's id, such as v7")
    }
}

pub(crate) async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Create { name, size, replicas, durability } => {
            create(context, name, size.0, replicas, durability).await
        }
        Verb::List => {
            let volumes = list(context, false).await?;
            context.output.list(&volumes.iter().map(VolumeView::from).collect::<Vec<_>>())
        }
        Verb::Show { name } => {
            let volume = get(context, &name).await?;
            context.output.one(&VolumeView::from(&volume))
        }
        Verb::Resize { name, size } => resize(context, name, size.0).await,
        Verb::Rename { name, to } => {
            let request = rpc::RenameVolumeRequest { name, to };
            show(context, &context.cluster.rename_volume(request).await?)
        }
        Verb::Delete { name, keep } => delete(context, name, keep).await,
        Verb::Map { name } => {
            let volume = get(context, &name).await?;
            segment::list(context, volume.id).await
        }
        Verb::Trash(verb) => trash(context, verb).await,
    }
}

fn show(context: &Context, volume: &rpc::Volume) -> Result<(), Failure> {
    context.output.one(&VolumeView::from(volume))
}

fn check_size(bytes: u64) -> Result<(), Failure> {
    if bytes == 0 || !bytes.is_multiple_of(BLOCK_BYTES) || bytes > VOLUME_BYTES_MAX {
        let message = format!("size of {bytes} bytes does not fit a volume");
        return Err(
            Failure::new(Code::Usage, message).hint("it is a multiple of 4KiB, from 4KiB to 64TiB")
        );
    }
    Ok(())
}

async fn create(
    context: &Context,
    name: String,
    size_bytes: u64,
    replicas: u32,
    durability: DurabilityArg,
) -> Result<(), Failure> {
    check_size(size_bytes)?;
    let durability = match durability {
        DurabilityArg::Sync => rpc::Durability::Sync,
        DurabilityArg::Flush => rpc::Durability::Flush,
    };
    let request =
        rpc::CreateVolumeRequest { name, size_bytes, replicas, durability: durability.into() };
    show(context, &context.cluster.create_volume(request).await?)
}

async fn resize(context: &Context, name: String, size_bytes: u64) -> Result<(), Failure> {
    check_size(size_bytes)?;
    let request = rpc::ResizeVolumeRequest { name, size_bytes };
    show(context, &context.cluster.resize_volume(request).await?)
}

async fn delete(context: &Context, name: String, keep: Span) -> Result<(), Failure> {
    let volume = get(context, &name).await?;
    context.confirm(&format!(
        "Move volume {name} ({}, {} placed segments) to the trash for {keep}?",
        ByteSize(volume.size_bytes),
        volume.segments
    ))?;
    let request = rpc::DeleteVolumeRequest { name, keep_seconds: keep.0.as_secs().max(1) };
    show(context, &context.cluster.delete_volume(request).await?)
}

async fn trash(context: &Context, verb: TrashVerb) -> Result<(), Failure> {
    match verb {
        TrashVerb::List => {
            let volumes = list(context, true).await?;
            context.output.list(&volumes.iter().map(VolumeView::from).collect::<Vec<_>>())
        }
        TrashVerb::Restore { id: VolumeArg(id), name } => {
            let name = match name {
                Some(name) => name,
                None => in_trash(context, id).await?.name,
            };
            let request = rpc::RestoreVolumeRequest { id, name };
            show(context, &context.cluster.restore_volume(request).await?)
        }
        TrashVerb::Purge { id: VolumeArg(id) } => {
            let volume = in_trash(context, id).await?;
            context.confirm(&format!(
                "Destroy volume {} (v{id}, {}) for good?",
                volume.name,
                ByteSize(volume.size_bytes)
            ))?;
            let request = rpc::PurgeVolumeRequest { id };
            context.cluster.purge_volume(request).await?;
            context.output.done()
        }
    }
}

async fn in_trash(context: &Context, id: u64) -> Result<rpc::Volume, Failure> {
    let found = list(context, true).await?.into_iter().find(|v| v.id == id);
    found.ok_or_else(|| {
        Failure::new(Code::NotFound, format!("no volume v{id} in the trash"))
            .hint("`tidewater volume trash list` shows what is there")
    })
}

/// All volumes, or all in the trash.
pub(crate) async fn list(context: &Context, trash: bool) -> Result<Vec<rpc::Volume>, Failure> {
    let request = rpc::ListVolumesRequest { trash };
    Ok(context.cluster.list_volumes(request).await?.volumes)
}

/// The volume of that name.
pub(crate) async fn get(context: &Context, name: &str) -> Result<rpc::Volume, Failure> {
    let request = rpc::GetVolumeRequest { name: name.to_owned() };
    Ok(context.cluster.get_volume(request).await?)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VolumeView {
    id: u64,
    name: String,
    size_bytes: u64,
    replicas: u32,
    durability: String,
    segment_bytes: u64,
    placed_segments: u32,
    created: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    purge: Option<String>,
    attachments: Vec<AttachmentView>,
}

impl From<&rpc::Volume> for VolumeView {
    fn from(v: &rpc::Volume) -> Self {
        Self {
            id: v.id,
            name: v.name.clone(),
            size_bytes: v.size_bytes,
            replicas: v.replicas,
            durability: v.durability().as_str_name().to_lowercase(),
            segment_bytes: v.segment_bytes,
            placed_segments: v.segments,
            created: time(v.created_ms),
            deleted: v.deleted_ms.map(time),
            purge: v.purge_ms.map(time),
            attachments: v.attachments.iter().map(|a| AttachmentView::new(a, &v.name)).collect(),
        }
    }
}

impl Item for VolumeView {
    const KIND: &'static str = "Volume";
    const COLUMNS: &'static [&'static str] = &[
        "NAME",
        "ID",
        "SIZE",
        "REPLICAS",
        "DURABILITY",
        "SEGMENTS",
        "CREATED",
        "DELETED",
        "OPEN-BY",
    ];

    fn name(&self) -> String {
        self.name.clone()
    }

    fn cells(&self, sizes: Sizes) -> Vec<String> {
        let open: Vec<_> = self.attachments.iter().map(AttachmentView::holder).collect();
        let dash = |text: Option<&str>| text.unwrap_or("-").to_owned();
        vec![
            self.name.clone(),
            format!("v{}", self.id),
            sizes.show(self.size_bytes),
            self.replicas.to_string(),
            self.durability.clone(),
            self.placed_segments.to_string(),
            self.created.clone(),
            dash(self.deleted.as_deref()),
            if open.is_empty() { "-".to_owned() } else { open.join(",") },
        ]
    }
}
