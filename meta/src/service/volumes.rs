//! Volumes and programs.

use tidewater_proto::{ids::VolumeId, rpc};

use super::{failure::Failure, wire};
use crate::{
    node::Node,
    state::{
        command::{Command, CreateVolume},
        outcome::{Applied, Rejected},
        rows::Instance,
    },
};

const REPLICAS_DEFAULT: u8 = 3;

/// Proposes a change of a volume and answers with the volume.
async fn change(node: &Node, command: Command) -> Result<rpc::Volume, Failure> {
    let applied = node.propose(command).await?;
    let Applied::Volume(id) = applied else { return Err(Failure::Unexpected { applied }) };
    let view = node.live.read();
    let row = view.state.volumes.get(&id).ok_or(Rejected::UnknownVolumeId { id })?;
    Ok(wire::volume(&view.state, row))
}

pub(super) async fn create(
    node: &Node,
    request: rpc::CreateVolumeRequest,
) -> Result<rpc::Volume, Failure> {
    let durability = request.durability().into();
    let replicas = match request.replicas {
        0 => REPLICAS_DEFAULT,
        replicas => u8::try_from(replicas).unwrap_or(u8::MAX),
    };
    let (name, size_bytes) = (request.name, request.size_bytes);
    let args = CreateVolume { name, size_bytes, replicas, durability };
    change(node, Command::CreateVolume(args)).await
}

pub(super) async fn list(
    node: &Node,
    request: rpc::ListVolumesRequest,
) -> Result<rpc::ListVolumesReply, Failure> {
    node.linearized().await?;
    let view = node.live.read();
    let rows = view.state.volumes.iter().map(|(_, row)| row);
    let asked = rows.filter(|row| row.trashed.is_some() == request.trash);
    let mut volumes: Vec<_> = asked.map(|row| wire::volume(&view.state, row)).collect();
    volumes.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
    Ok(rpc::ListVolumesReply { volumes })
}

pub(super) async fn get(
    node: &Node,
    request: rpc::GetVolumeRequest,
) -> Result<rpc::Volume, Failure> {
    node.linearized().await?;
    let view = node.live.read();
    let row = view.state.volume_named(&request.name);
    let row = row.ok_or(Rejected::UnknownVolume { name: request.name })?;
    Ok(wire::volume(&view.state, row))
}

pub(super) async fn resize(
    node: &Node,
    request: rpc::ResizeVolumeRequest,
) -> Result<rpc::Volume, Failure> {
    let (name, size_bytes) = (request.name, request.size_bytes);
    change(node, Command::ResizeVolume { name, size_bytes }).await
}

pub(super) async fn rename(
    node: &Node,
    request: rpc::RenameVolumeRequest,
) -> Result<rpc::Volume, Failure> {
    change(node, Command::RenameVolume { name: request.name, to: request.to }).await
}

pub(super) async fn delete(
    node: &Node,
    request: rpc::DeleteVolumeRequest,
) -> Result<rpc::Volume, Failure> {
    let keep_ms = match request.keep_seconds {
        0 => node.config.trash_keep_ms,
        seconds => seconds.saturating_mul(1_000),
    };
    change(node, Command::DeleteVolume { name: request.name, keep_ms }).await
}

pub(super) async fn restore(
    node: &Node,
    request: rpc::RestoreVolumeRequest,
) -> Result<rpc::Volume, Failure> {
    let (id, name) = (VolumeId(request.id), request.name);
    change(node, Command::RestoreVolume { id, name }).await
}

pub(super) async fn purge(
    node: &Node,
    request: rpc::PurgeVolumeRequest,
) -> Result<rpc::Empty, Failure> {
    node.propose(Command::PurgeVolume { id: VolumeId(request.id), deletion: None }).await?;
    Ok(rpc::Empty {})
}

pub(super) async fn register_program(
    node: &Node,
    request: rpc::RegisterProgramRequest,
) -> Result<rpc::Program, Failure> {
    let instance = |i: rpc::Instance| {
        let topology = wire::topology(i.topology);
        (i.id, Instance { host: i.host, topology })
    };
    let instances = request.instances.into_iter().map(instance).collect();
    let name = request.name;
    node.propose(Command::RegisterProgram { name: name.clone(), instances }).await?;
    let view = node.live.read();
    let row = view.state.programs.get(&name);
    Ok(wire::program(&name, row.ok_or(Rejected::UnknownProgram { name: name.clone() })?))
}

pub(super) async fn list_programs(node: &Node) -> Result<rpc::ListProgramsReply, Failure> {
    node.linearized().await?;
    let view = node.live.read();
    let programs = view.state.programs.iter().map(|(name, row)| wire::program(name, row));
    Ok(rpc::ListProgramsReply { programs: programs.collect() })
}

pub(super) async fn remove_program(
    node: &Node,
    request: rpc::RemoveProgramRequest,
) -> Result<rpc::Empty, Failure> {
    let instance = (!request.instance.is_empty()).then_some(request.instance);
    node.propose(Command::RemoveProgram { name: request.name, instance }).await?;
    Ok(rpc::Empty {})
}
