//! Chunkservers.

use tidewater_proto::{
    ids::{RunId, ServerId},
    record::{CopyReport, ServerAddress},
    rpc,
};

use super::{failure::Failure, wire};
use crate::{
    detector::{Beat, Liveness},
    fleet,
    node::Node,
    state::{
        apply::restore::is_awaited,
        command::{Command, RegisterServer, ReportCopies, UpdateServer},
        outcome::{Applied, Rejected},
        rows::Device,
    },
};

/// Copies told in one message.
const COPIES_MAX: usize = 4_096;

pub(super) async fn register(
    node: &Node,
    request: rpc::RegisterServerRequest,
) -> Result<rpc::RegisterServerReply, Failure> {
    let term = node.linearized().await?;
    let cluster = node.live.read().state.cluster().cloned().ok_or(Rejected::NoCluster)?;
    if !request.cluster.is_empty() && request.cluster != cluster.uuid {
        let (claimed, actual) = (request.cluster, cluster.uuid);
        return Err(Failure::OtherCluster { claimed, actual });
    }
    let address = ServerAddress::try_from(&rpc::ServerAddress {
        server: request.server,
        control: request.control,
        shards: request.shards,
    })?;
    let args = RegisterServer {
        server: (request.server != 0).then_some(ServerId(request.server)),
        store: request.store,
        run: RunId(request.run),
        topology: wire::topology(request.topology),
        control: address.control,
        shards: address.shards,
        devices: wire::devices(request.devices)?,
    };
    let (run, devices) = (args.run, args.devices.clone());
    let applied = node.propose(Command::RegisterServer(args)).await?;
    let Applied::Server(server) = applied else { return Err(Failure::Unexpected { applied }) };
    let beat = Beat { run, devices, ..Beat::default() };
    node.heard(term, server, beat);
    let (cluster, segment_bytes) = (cluster.uuid, cluster.segment_bytes);
    let report_copies = is_awaited(&node.live.read().state, server, run);
    Ok(rpc::RegisterServerReply { cluster, server: server.0, segment_bytes, report_copies })
}

/// What placement and people must know at once; use changes all the time.
fn essentials(devices: &[Device]) -> Vec<(&str, u64, bool)> {
    devices.iter().map(|d| (d.name.as_str(), d.capacity_bytes, d.failed)).collect()
}

pub(super) async fn heartbeat(
    node: &Node,
    request: rpc::HeartbeatRequest,
) -> Result<rpc::HeartbeatReply, Failure> {
    let term = node.check_leads()?;
    let server = ServerId(request.server);
    let beat = Beat {
        run: RunId(request.run),
        devices: wire::devices(request.devices)?,
        hears: request.hears.into_iter().map(ServerId).collect(),
        load: request.load,
    };
    let (changed, servers) = {
        let view = node.live.read();
        let row = view.state.servers.get(&server).filter(|row| row.run == beat.run);
        let row = row.filter(|_| !is_awaited(&view.state, server, beat.run));
        let Some(row) = row else {
            return Ok(rpc::HeartbeatReply { register: true, servers: Vec::new() });
        };
        let changed =
            !beat.devices.is_empty() && essentials(&row.devices) != essentials(&beat.devices);
        (changed.then(|| beat.devices.clone()), wire::addresses(&view.state))
    };
    node.heard(term, server, beat);
    if changed.is_some() {
        let update = UpdateServer { server, cordoned: None, devices: changed };
        node.propose(Command::UpdateServer(update)).await?;
    }
    Ok(rpc::HeartbeatReply { register: false, servers })
}

/// What a server holds, for a cluster that is being restored.
pub(super) async fn report_copies(
    node: &Node,
    request: rpc::ReportCopiesRequest,
) -> Result<rpc::Empty, Failure> {
    if request.copies.len() > COPIES_MAX {
        return Err(Failure::Invalid { field: "copies", reason: "more than 4,096 at once" });
    }
    let copies = request.copies.iter().map(CopyReport::try_from).collect::<Result<_, _>>()?;
    let args = ReportCopies {
        server: ServerId(request.server),
        run: RunId(request.run),
        copies,
        servers: request.servers.into_iter().map(ServerId).collect(),
        last: request.last,
    };
    node.propose(Command::ReportCopies(args)).await?;
    Ok(rpc::Empty {})
}

pub(super) async fn list(node: &Node) -> Result<rpc::ListServersReply, Failure> {
    node.linearized().await?;
    let now = node.now();
    let view = node.live.read();
    let detector = node.detector();
    let servers = view.state.servers.iter().map(|(&id, row)| {
        let load = view.state.index.load(id);
        rpc::Server {
            address: Some((&row.address).into()),
            topology: Some((&row.topology).into()),
            devices: fleet::devices(row, &detector).iter().map(wire::device).collect(),
            run: row.run.0,
            alive: detector.judge(id, now) == Liveness::Alive,
            cordoned: row.cordoned,
            segments: load.copies,
            primaries: load.primaries,
        }
    });
    Ok(rpc::ListServersReply { servers: servers.collect() })
}

pub(super) async fn set(
    node: &Node,
    request: rpc::SetServerRequest,
) -> Result<rpc::Empty, Failure> {
    let server = ServerId(request.server);
    let update = UpdateServer { server, cordoned: request.cordoned, devices: None };
    node.propose(Command::UpdateServer(update)).await?;
    Ok(rpc::Empty {})
}

pub(super) async fn remove(
    node: &Node,
    request: rpc::RemoveServerRequest,
) -> Result<rpc::Empty, Failure> {
    let server = ServerId(request.server);
    node.propose(Command::RemoveServer { server }).await?;
    node.detector().forget(server);
    Ok(rpc::Empty {})
}
