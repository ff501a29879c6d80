//! Between rows and gRPC messages.

use std::collections::BTreeSet;

use tidewater_proto::{ids::ServerId, record::SegmentRecord, rpc};

use super::failure::Failure;
use crate::state::{
    State,
    rows::{
        AttachMode, AttachState, AttachmentRow, Device, EventRow, Instance, ProgramRow, Tier,
        Topology, VolumeRow,
    },
};

impl From<&Topology> for rpc::Topology {
    fn from(t: &Topology) -> Self {
        Self {
            region: t.region.clone(),
            zone: t.zone.clone(),
            rack: t.rack.clone(),
            host: t.host.clone(),
        }
    }
}

/// An absent topology is one with empty labels.
pub(super) fn topology(message: Option<rpc::Topology>) -> Topology {
    let t = message.unwrap_or_default();
    Topology { region: t.region, zone: t.zone, rack: t.rack, host: t.host }
}

pub(super) fn device(d: &Device) -> rpc::Device {
    let tier = match d.tier {
        Tier::Nvme => rpc::Tier::Nvme,
        Tier::Ssd => rpc::Tier::Ssd,
        Tier::Hdd => rpc::Tier::Hdd,
    };
    rpc::Device {
        name: d.name.clone(),
        tier: tier.into(),
        capacity_bytes: d.capacity_bytes,
        used_bytes: d.used_bytes,
        failed: d.failed,
    }
}

pub(super) fn devices(messages: Vec<rpc::Device>) -> Result<Vec<Device>, Failure> {
    let one = |d: rpc::Device| {
        let tier = match d.tier() {
            rpc::Tier::Nvme => Tier::Nvme,
            rpc::Tier::Ssd => Tier::Ssd,
            rpc::Tier::Hdd => Tier::Hdd,
            rpc::Tier::Unspecified => {
                return Err(Failure::Invalid { field: "tier", reason: "none given" });
            }
        };
        Ok(Device {
            name: d.name,
            tier,
            capacity_bytes: d.capacity_bytes,
            used_bytes: d.used_bytes,
            failed: d.failed,
        })
    };
    messages.into_iter().map(one).collect()
}

pub(super) fn mode(message: rpc::AttachMode) -> AttachMode {
    match message {
        rpc::AttachMode::Exclusive => AttachMode::Exclusive,
        rpc::AttachMode::Shared => AttachMode::Shared,
        rpc::AttachMode::ReadOnly => AttachMode::ReadOnly,
    }
}

pub(super) fn attachment(a: &AttachmentRow) -> rpc::Attachment {
    let mode = match a.mode {
        AttachMode::Exclusive => rpc::AttachMode::Exclusive,
        AttachMode::Shared => rpc::AttachMode::Shared,
        AttachMode::ReadOnly => rpc::AttachMode::ReadOnly,
    };
    rpc::Attachment {
        session: a.session.0,
        volume: a.volume.0,
        mode: mode.into(),
        program: a.holder.program.clone(),
        instance: a.holder.instance.clone(),
        host: a.holder.host.clone(),
        topology: Some((&a.holder.topology).into()),
        token: a.token.0,
        ready: a.state == AttachState::Ready,
        created_ms: a.created_ms,
    }
}

pub(super) fn volume(state: &State, v: &VolumeRow) -> rpc::Volume {
    rpc::Volume {
        id: v.id.0,
        name: v.name.clone(),
        size_bytes: v.size_bytes,
        replicas: v.replicas.into(),
        durability: rpc::Durability::from(v.durability).into(),
        token: v.token.0,
        segment_bytes: state.cluster().map_or(0, |cluster| cluster.segment_bytes),
        created_ms: v.created_ms,
        deleted_ms: v.trashed.map(|t| t.deleted_ms),
        purge_ms: v.trashed.map(|t| t.purge_ms),
        segments: state.index.placed(v.id),
        attachments: state.attachments_of(v.id).map(attachment).collect(),
    }
}

pub(super) fn program(name: &str, p: &ProgramRow) -> rpc::Program {
    let instance = |(id, i): (&String, &Instance)| rpc::Instance {
        id: id.clone(),
        host: i.host.clone(),
        topology: Some((&i.topology).into()),
    };
    rpc::Program {
        name: name.to_owned(),
        instances: p.instances.iter().map(instance).collect(),
        created_ms: p.created_ms,
    }
}

pub(super) fn event(e: &EventRow) -> rpc::Event {
    rpc::Event {
        revision: e.revision,
        time_ms: e.time_ms,
        kind: e.kind.name().to_owned(),
        actor: e.actor.clone(),
        reason: e.reason.clone(),
        subject: e.subject.clone(),
        detail: e.detail.clone(),
    }
}

/// Addresses of all servers.
pub(super) fn addresses(state: &State) -> Vec<rpc::ServerAddress> {
    state.servers.iter().map(|(_, row)| (&row.address).into()).collect()
}

/// Addresses of the servers that hold these segments.
pub(super) fn addresses_of<'a>(
    state: &State,
    records: impl Iterator<Item = &'a SegmentRecord>,
) -> Vec<rpc::ServerAddress> {
    let servers: BTreeSet<ServerId> =
        records.flat_map(SegmentRecord::copies).map(|copy| copy.server).collect();
    let rows = servers.iter().filter_map(|server| state.servers.get(server));
    rows.map(|row| (&row.address).into()).collect()
}
