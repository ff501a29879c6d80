#![deny(clippy::disallowed_methods, clippy::disallowed_types)]
//! Chunkservers: first and later starts, cordon, removal.

use tidewater_proto::{
    ids::{RunId, ServerId},
    record::ServerAddress,
};

use super::{Step, events::Note, restore};
use crate::state::{
    State,
    command::{RegisterServer, UpdateServer},
    outcome::{Applied, Limit, Outcome, Rejected},
    rows::{EventKind, ServerRow},
    table::RetiredKey,
};

const SERVERS_MAX: usize = 10_000;

/// Allots the id on a data folder's first registration. A new run raises the epoch of every segment
/// that the server leads: an epoch is served by one run (INV-EPOCH).
pub(super) fn register(step: &mut Step<'_>, args: &RegisterServer) -> Outcome {
    if args.shards.is_empty() || args.store.is_empty() {
        return Err(Rejected::BadServer);
    }
    let restoring = step.state.restoring().is_some();
    let known = step.state.index.stores.get(&args.store).copied();
    let id = match (known, args.server) {
        (Some(owner), Some(claimed)) if owner != claimed => {
            return Err(Rejected::StoreMismatch { owner, claimed });
        }
        (Some(owner), _) => owner,
        // The backup may be older than the server, but the server knows the cluster.
        (None, Some(server)) if restoring && !step.state.servers.contains(&server) => server,
        (None, None) if restoring => return Err(Rejected::Restoring),
        (None, Some(server)) => return Err(Rejected::UnknownStore { server }),
        (None, None) if step.state.servers.len() >= SERVERS_MAX => {
            return Err(Rejected::LimitReached { what: Limit::Servers, limit: SERVERS_MAX });
        }
        (None, None) => ServerId(step.draw(|c| &mut c.server)),
    };
    let before = step.state.servers.get(&id).cloned();
    let row = ServerRow {
        id,
        store: args.store.clone(),
        run: args.run,
        topology: args.topology.clone(),
        address: ServerAddress { server: id, control: args.control, shards: args.shards.clone() },
        devices: args.devices.clone(),
        cordoned: before.as_ref().is_some_and(|server| server.cordoned),
    };
    step.state.index.stores.insert(args.store.clone(), id);
    step.state.servers.insert(id, row);
    match before.map(|server| server.run) {
        None => step.event(EventKind::ServerRegistered, note(id, args.control.to_string())),
        Some(run) if run != args.run && restoring => restore::restarted(step, id),
        Some(run) if run != args.run => {
            let raised = raise_led(step, id);
            let detail = format!("raised the epoch of {raised} segments");
            let reason = "another run of its process: an epoch is served by one";
            step.event(EventKind::ServerRestarted, Note { reason, ..note(id, detail) });
        }
        Some(_) => {}
    }
    Ok(Applied::Server(id))
}

fn note(server: ServerId, detail: String) -> Note<'static> {
    Note { actor: "server", reason: "", subject: server.to_string(), detail }
}

/// Next epoch, same set, for every segment whose primary is on `server`. Returns how many.
fn raise_led(step: &mut Step<'_>, server: ServerId) -> usize {
    let led: Vec<_> = step
        .state
        .index
        .on_server(server)
        .filter_map(|segment| step.state.segment(segment))
        .filter(|record| record.primary_member().server == server)
        .cloned()
        .collect();
    for record in &led {
        let mut record = record.as_ref().clone();
        record.epoch = record.epoch.next();
        record.primary_run = run_of(step.state, server);
        record.revision = step.revision;
        step.state.put_segment(record);
    }
    led.len()
}

/// The run that may serve as primary on `server` from now on.
pub(super) fn run_of(state: &State, server: ServerId) -> RunId {
    // A server with a copy cannot be removed, so a member's server has a row.
    state.servers.get(&server).map(|row| row.run).unwrap_or_default()
}

pub(super) fn update(step: &mut Step<'_>, args: &UpdateServer) -> Outcome {
    let server = args.server;
    let Some(row) = step.state.servers.get(&server) else {
        return Err(Rejected::UnknownServer { server });
    };
    let mut row = row.clone();
    let before = row.clone();
    row.cordoned = args.cordoned.unwrap_or(row.cordoned);
    if let Some(devices) = &args.devices {
        row.devices.clone_from(devices);
    }
    if row == before {
        return Ok(Applied::Unchanged);
    }
    if row.cordoned != before.cordoned {
        let kind =
            if row.cordoned { EventKind::ServerCordoned } else { EventKind::ServerUncordoned };
        step.event(kind, Note { actor: "operator", ..note(server, String::new()) });
    }
    if row.devices != before.devices {
        let failed = row.devices.iter().filter(|d| d.failed).count();
        let detail = format!("{} devices, {failed} failed", row.devices.len());
        step.event(EventKind::DeviceChanged, note(server, detail));
    }
    step.state.servers.insert(server, row);
    Ok(Applied::Done)
}

/// Removes a server that holds no copy but retired ones. Its id and data folder never come back, so
/// what is retired there needs no report.
pub(super) fn remove(step: &mut Step<'_>, server: ServerId) -> Outcome {
    let Some(row) = step.state.servers.get(&server).cloned() else {
        return Err(Rejected::UnknownServer { server });
    };
    let copies = step.state.index.load(server).copies;
    if copies > 0 {
        return Err(Rejected::ServerHoldsCopies { server, copies });
    }
    forget_retired(step, server);
    step.state.index.stores.remove(&row.store);
    step.state.servers.remove(&server);
    step.event(EventKind::ServerRemoved, Note { actor: "operator", ..note(server, row.store) });
    Ok(Applied::Done)
}

fn forget_retired(step: &mut Step<'_>, server: ServerId) {
    let segments: Vec<_> = step.state.index.on_server(server).collect();
    for segment in segments {
        let Some(record) = step.state.segment(segment) else { continue };
        let mut record = record.as_ref().clone();
        record.retired.retain(|copy| copy.server != server);
        record.revision = step.revision;
        step.state.put_segment(record);
    }
    let purged: Vec<RetiredKey> = step.state.retired_on(server).collect();
    for key in purged {
        step.state.retired.remove(&key);
    }
}
