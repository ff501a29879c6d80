//! Requests of clients while they are open here, and their answers.

use std::{
    collections::HashMap,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use tidewater_proto::{
    entry::Payload,
    frame::Frame,
    geometry::Extent,
    ids::{ReplicaId, VolumeId},
    peer::{Action, Refusal, Reply, Request},
    record::Route,
    rpc,
};

use super::{
    Job, Outlet, Shard, User,
    usage::{Kind, Usage},
};
use crate::replica::{Event, RequestId, Time};

/// Most client requests open at one shard; more are refused as busy.
const OPEN_MAX: usize = 8_192;
/// Bytes of replies queued to one client before its requests are refused as busy.
const REPLY_BYTES_MAX: usize = 64 << 20;

/// Most writes that wait for room in the store, and their bytes.
const STALLED_MAX: usize = 1_024;
const STALLED_BYTES_MAX: usize = 32 << 20;

fn payload_bytes(request: &Request<Payload>) -> usize {
    match &request.action {
        Action::Write { data, .. } => data.data.len(),
        Action::Compare { expect, data, .. } => expect.data.len() + data.data.len(),
        Action::Read { .. }
        | Action::Zero { .. }
        | Action::Flush { .. }
        | Action::Extents { .. } => 0,
    }
}

/// Bytes that a request writes or reads.
fn moved_bytes(request: &Request<Payload>) -> u64 {
    match &request.action {
        Action::Read { extent } => extent.len(),
        Action::Write { .. }
        | Action::Compare { .. }
        | Action::Zero { .. }
        | Action::Flush { .. }
        | Action::Extents { .. } => payload_bytes(request) as u64,
    }
}

/// Where answers go.
#[derive(Default)]
pub(super) struct OpenRequests {
    last: u64,
    open: HashMap<RequestId, Open>,
}

impl OpenRequests {
    /// Requests that are not answered yet.
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }
}

struct Open {
    outlet: Rc<dyn Outlet>,
    usage: Arc<Usage>,
    id: u64,
    kind: Kind,
    bytes: u64,
    came: Time,
}

/// A client's connection.
pub struct Client {
    outlet: Rc<dyn Outlet>,
    user: User,
    usage: Arc<Usage>,
}

impl Shard {
    /// A client has connected and said who it is. Answers go to `outlet`.
    pub fn client_connected(&mut self, who: &rpc::HelloClient, outlet: Rc<dyn Outlet>) -> Client {
        let user = User { program: who.program.clone(), volume: VolumeId(who.volume) };
        let (user, usage) = self.users.connected(user, self.now());
        Client { outlet, user, usage }
    }

    /// A client's connection has ended.
    pub fn client_gone(&mut self, client: &Client) {
        self.users.gone(&client.user, self.now());
    }

    /// A frame from a client; false if its connection is to be closed.
    pub fn client_frame(&mut self, client: &Client, frame: Frame) -> bool {
        let Frame::Request { id, request } = frame else { return false };
        self.client_request(client, id, request);
        true
    }

    fn client_request(&mut self, client: &Client, id: u64, request: Request<Payload>) {
        let outlet = &client.outlet;
        if self.open.open.len() >= OPEN_MAX || outlet.queued_bytes() > REPLY_BYTES_MAX {
            outlet.send(&Frame::Reply { id, reply: Reply::Refused(Refusal::Busy) });
            return;
        }
        let kind = match request.action {
            Action::Read { .. } | Action::Extents { .. } | Action::Flush { .. } => Kind::Read,
            Action::Write { .. } | Action::Zero { .. } | Action::Compare { .. } => Kind::Write,
        };
        self.open.last += 1;
        let ours = RequestId(self.open.last);
        let (bytes, came) = (moved_bytes(&request), self.now());
        let (outlet, usage) = (Rc::clone(outlet), Arc::clone(&client.usage));
        self.open.open.insert(ours, Open { outlet, usage, id, kind, bytes, came });
        self.pace.client(bytes);
        if let Err(refusal) = self.check(&request) {
            self.reply(ours, Reply::Refused(refusal));
            return;
        }
        if matches!(kind, Kind::Write) && (!self.store.room() || !self.stalled.is_empty()) {
            self.stall(ours, request);
            return;
        }
        self.serve(ours, request);
    }

    /// Lets a write wait for room, or refuses it where enough wait already: its client comes again.
    fn stall(&mut self, id: RequestId, request: Request<Payload>) {
        let bytes = payload_bytes(&request);
        if self.stalled_bytes + bytes > STALLED_BYTES_MAX || self.stalled.len() >= STALLED_MAX {
            self.reply(id, Reply::Refused(Refusal::Busy));
            return;
        }
        self.stalled_bytes += bytes;
        self.stalled.push_back((id, request));
    }

    /// Lets requests go on that waited for room.
    pub(super) fn unstall(&mut self) {
        while self.store.room() {
            let Some((id, request)) = self.stalled.pop_front() else { return };
            self.stalled_bytes -= payload_bytes(&request);
            self.serve(id, request);
        }
    }

    fn serve(&mut self, id: RequestId, request: Request<Payload>) {
        let segment = request.segment;
        if let Some(&replica) = self.by_segment.get(&segment) {
            self.tell_room();
            let fresh = self.fresh_chunks(replica, &request.action);
            self.step(replica, Event::Request { id, request, fresh });
            return;
        }
        let refusal = match self.records.get(&segment) {
            Some(record) => Refusal::WrongEpoch(Route::from(record)),
            None => Refusal::NotPrimary,
        };
        self.reply(id, Reply::Refused(refusal));
    }

    /// Bounds, and checksums of what is to be written (INV-SUM).
    fn check(&self, request: &Request<Payload>) -> Result<(), Refusal> {
        let within = |extent: &Extent| {
            let ok = extent.end() <= self.segment_bytes;
            if ok { Ok(()) } else { Err(Refusal::Invalid) }
        };
        let sound =
            |extent: Extent, data: &Payload| data.verify(extent).map_err(|_| Refusal::BadSum);
        match &request.action {
            Action::Read { extent } => {
                within(extent)?;
                let limit = tidewater_proto::geometry::PAYLOAD_BYTES_MAX;
                if extent.len() > limit { Err(Refusal::Invalid) } else { Ok(()) }
            }
            Action::Zero { extent, .. } | Action::Extents { extent } => within(extent),
            Action::Write { extent, data } => {
                within(extent)?;
                sound(*extent, data)
            }
            Action::Compare { extent, expect, data } => {
                within(extent)?;
                sound(*extent, expect)?;
                sound(*extent, data)
            }
            Action::Flush { .. } => Ok(()),
        }
    }

    /// Chunks that a request would give data to and that hold none.
    fn fresh_chunks(&self, replica: ReplicaId, action: &Action<Payload>) -> Vec<u32> {
        let chunks = match action {
            Action::Write { extent, .. } | Action::Compare { extent, .. } => extent.chunks(),
            Action::Read { .. }
            | Action::Zero { .. }
            | Action::Flush { .. }
            | Action::Extents { .. } => 0..0,
        };
        chunks.filter(|&chunk| !self.store.holds(replica, chunk)).collect()
    }

    /// Answers a client, if it still waits.
    pub(super) fn reply(&mut self, id: RequestId, reply: Reply) {
        let Some(open) = self.open.open.remove(&id) else { return };
        if let Reply::Refused(_) = reply {
            self.counters.refused.fetch_add(1, Relaxed);
        } else {
            let counter = match open.kind {
                Kind::Read => &self.counters.reads,
                Kind::Write => &self.counters.writes,
            };
            counter.fetch_add(1, Relaxed);
            let took = self.now().since(open.came);
            open.usage.count(open.kind, open.bytes, took);
        }
        open.outlet.send(&Frame::Reply { id: open.id, reply });
    }

    /// Reads for a client from what is applied.
    pub(super) fn read_for(&mut self, replica: ReplicaId, id: RequestId, extent: Extent) {
        let tag = self.job(Job::Read(id));
        if let Some(payload) = self.store.read(replica, extent, tag) {
            self.jobs.remove(&tag);
            self.reply(id, Reply::Data(payload));
        } else {
            self.turn.notify_one();
        }
    }
}
