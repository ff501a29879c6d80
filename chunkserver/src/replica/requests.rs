//! Requests of clients at the primary: checks, duplicates, reads that wait, compare-and-write
//! (rules 2, 6, 9, 10).
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use tidewater_proto::{
    entry::{Change, Entry},
    geometry::Extent,
    ids::{OpId, Position, Sequence},
    peer::{Action, Refusal, Reply, Request},
};

use super::{Effect, Replica, RequestId, Role, Time, Waiter, applied::Seen, serving::Serving};

/// Most writes that wait for their commit.
const WAITERS_MAX: usize = 4_096;
/// Most reads that wait for earlier writes or a lease.
const READS_MAX: usize = 1_024;
/// Most compare-and-writes under way, and most writes held behind them.
const HOLDS_MAX: usize = 256;

/// A read that waits for `after` to be committed, or for a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ParkedRead {
    id: RequestId,
    after: Sequence,
    kind: ReadKind,
}

/// What is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum ReadKind {
    Data(Extent),
    Extents(Extent),
    Flush,
}

/// A compare-and-write: writes to its block wait until it is decided.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Hold<P> {
    id: RequestId,
    op: OpId,
    lowest_open: u64,
    extent: Extent,
    expect: P,
    data: P,
    fresh: Vec<u32>,
    /// Compared once this is committed.
    after: Sequence,
    comparing: bool,
}

/// A write that may be held behind a compare-and-write or for room; checked again when it is let go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Held<P> {
    pub(super) id: RequestId,
    op: OpId,
    lowest_open: u64,
    epoch: tidewater_proto::ids::Epoch,
    token: tidewater_proto::ids::Token,
    change: Change<P>,
    /// Chunks it writes to that held no data when it came.
    pub(super) fresh: Vec<u32>,
}

impl<P: Clone> Replica<P> {
    pub(super) fn request(
        &mut self,
        now: Time,
        id: RequestId,
        request: Request<P>,
        fresh: Vec<u32>,
        out: &mut Vec<Effect<P>>,
    ) {
        let Request { epoch, token, op, lowest_open, action, .. } = request;
        if let Err(refusal) = self.admit(epoch, token) {
            out.push(Effect::Reply(id, Reply::Refused(refusal)));
            return;
        }
        match action {
            Action::Read { extent } => self.read(now, id, ReadKind::Data(extent), extent, out),
            Action::Extents { extent } => {
                self.read(now, id, ReadKind::Extents(extent), extent, out);
            }
            Action::Flush { acked } => self.flush(now, id, acked, out),
            Action::Write { extent, data } => {
                let change = Change::Write { extent, data };
                self.write(now, Held { id, op, lowest_open, epoch, token, change, fresh }, out);
            }
            Action::Zero { extent, discard } => {
                let change = Change::Zero { extent, discard };
                let fresh = Vec::new();
                self.write(now, Held { id, op, lowest_open, epoch, token, change, fresh }, out);
            }
            Action::Compare { extent, expect, data } => {
                let after = self.last_overlapping(extent);
                let comparing = false;
                let hold =
                    Hold { id, op, lowest_open, extent, expect, data, fresh, after, comparing };
                self.compare(now, hold, out);
            }
        }
    }

    /// Whether this copy serves `epoch` to holders of `token`.
    fn admit(
        &self,
        epoch: tidewater_proto::ids::Epoch,
        token: tidewater_proto::ids::Token,
    ) -> Result<(), Refusal> {
        let route = || match &self.record {
            Some(r) if r.epoch > epoch && r.epoch == self.promised => {
                Refusal::WrongEpoch(r.route.clone())
            }
            Some(_) | None => Refusal::NotPrimary,
        };
        let Role::Serving(serving) = &self.role else {
            return Err(if self.leads() { Refusal::Busy } else { route() });
        };
        if !serving.is_active(self.commit) {
            return Err(Refusal::Busy);
        }
        if epoch != serving.epoch {
            return Err(route());
        }
        match token.cmp(&serving.token) {
            std::cmp::Ordering::Less => Err(Refusal::Fenced(serving.token)),
            std::cmp::Ordering::Equal => Ok(()),
            // Raft has raised it and the record is on its way here.
            std::cmp::Ordering::Greater => Err(Refusal::Busy),
        }
    }

    /// The last uncommitted entry that shares a block with `extent`, or the commit point.
    fn last_overlapping(&self, extent: Extent) -> Sequence {
        self.log
            .above(self.commit)
            .rev()
            .find(|e| e.change.extent().is_some_and(|x| x.shares_block(extent)))
            .map_or(self.commit, |e| e.position.sequence)
    }

    fn read(
        &mut self,
        now: Time,
        id: RequestId,
        kind: ReadKind,
        extent: Extent,
        out: &mut Vec<Effect<P>>,
    ) {
        let after = self.last_overlapping(extent);
        self.park(now, ParkedRead { id, after, kind }, out);
    }

    fn flush(&mut self, now: Time, id: RequestId, acked: Position, out: &mut Vec<Effect<P>>) {
        if acked.sequence != Sequence(0) && !self.log.kept(acked) {
            out.push(Effect::Reply(id, Reply::Refused(Refusal::Lost)));
            return;
        }
        self.park(now, ParkedRead { id, after: acked.sequence, kind: ReadKind::Flush }, out);
    }

    fn park(&mut self, now: Time, read: ParkedRead, out: &mut Vec<Effect<P>>) {
        let Role::Serving(serving) = &mut self.role else { return };
        if serving.reads.len() >= READS_MAX {
            out.push(Effect::Reply(read.id, Reply::Refused(Refusal::Busy)));
            return;
        }
        serving.reads.push(read);
        self.serve_reads(now, out);
    }

    /// Answers the reads, and compares for the holds, that wait for nothing any more.
    pub(super) fn serve_reads(&mut self, now: Time, out: &mut Vec<Effect<P>>) {
        let commit = self.commit;
        let Role::Serving(serving) = &mut self.role else { return };
        if serving.reads.is_empty() && serving.holds.is_empty() {
            return;
        }
        let leased = serving.has_lease(now);
        serving.reads.retain(|read| {
            let ready = read.after <= commit && (leased || read.kind == ReadKind::Flush);
            if ready {
                out.push(match read.kind {
                    ReadKind::Data(extent) => Effect::Read(read.id, extent),
                    ReadKind::Extents(extent) => Effect::Extents(read.id, extent),
                    ReadKind::Flush => {
                        let epoch = serving.epoch;
                        let at = Position { epoch, sequence: commit };
                        Effect::Reply(read.id, Reply::Done(at))
                    }
                });
            }
            !ready
        });
        for hold in &mut serving.holds {
            if leased && !hold.comparing && hold.after <= commit {
                hold.comparing = true;
                let (id, extent, expect) = (hold.id, hold.extent, hold.expect.clone());
                out.push(Effect::Compare { id, extent, expect });
            }
        }
    }

    /// Sequences a write unless it was before, or a compare-and-write holds its block.
    fn write(&mut self, now: Time, write: Held<P>, out: &mut Vec<Effect<P>>) {
        if self.is_duplicate(write.op, write.id, out) {
            return;
        }
        let waiting = self.waiters.len();
        let Role::Serving(serving) = &mut self.role else { return };
        let extent = write.change.extent();
        let blocked =
            extent.is_some_and(|x| serving.holds.iter().any(|h| h.extent.shares_block(x)));
        if waiting >= WAITERS_MAX || (blocked && serving.held.len() >= HOLDS_MAX) {
            out.push(Effect::Reply(write.id, Reply::Refused(Refusal::Busy)));
            return;
        }
        if blocked {
            serving.held.push(write);
            return;
        }
        if let Some(write) = self.find_room(write, out) {
            self.sequence(now, write, out);
        }
    }

    /// Takes up a write that was held: epoch, token and duplicates may be others now.
    pub(super) fn write_again(&mut self, now: Time, write: Held<P>, out: &mut Vec<Effect<P>>) {
        match self.admit(write.epoch, write.token) {
            Ok(()) => self.write(now, write, out),
            Err(refusal) => out.push(Effect::Reply(write.id, Reply::Refused(refusal))),
        }
    }

    fn sequence(&mut self, now: Time, write: Held<P>, out: &mut Vec<Effect<P>>) {
        let Held { id, op, lowest_open, change, fresh, .. } = write;
        let sequence = self.log.last().sequence.next();
        let Role::Serving(serving) = &mut self.role else { return };
        serving.new_chunks.sequenced(&fresh, sequence);
        let position = Position { epoch: serving.epoch, sequence };
        let entry = Entry { position, token: serving.token, op: Some(op), lowest_open, change };
        self.waiters.push_back(Waiter { at: position, id });
        self.append(entry, out);
        self.push_new(out);
        self.serving_progress(now, out);
    }

    /// Answers, or lets wait, an operation that is in the log already (rule 9).
    fn is_duplicate(&mut self, op: OpId, id: RequestId, out: &mut Vec<Effect<P>>) -> bool {
        match self.applied.seen(op) {
            Seen::At(position) => {
                out.push(Effect::Reply(id, Reply::Done(position)));
                return true;
            }
            Seen::Forgotten => {
                out.push(Effect::Reply(id, Reply::Refused(Refusal::Old)));
                return true;
            }
            Seen::New => {}
        }
        let first = self.log.above(self.commit).find(|e| e.op == Some(op));
        let Some(at) = first.map(|e| e.position) else {
            return false;
        };
        let place = self.waiters.partition_point(|w| w.at.sequence <= at.sequence);
        self.waiters.insert(place, Waiter { at, id });
        true
    }

    fn compare(&mut self, now: Time, hold: Hold<P>, out: &mut Vec<Effect<P>>) {
        if self.is_duplicate(hold.op, hold.id, out) {
            return;
        }
        let Role::Serving(serving) = &mut self.role else { return };
        let blocked = serving.holds.iter().any(|h| h.extent.shares_block(hold.extent));
        if blocked || serving.holds.len() >= HOLDS_MAX {
            out.push(Effect::Reply(hold.id, Reply::Refused(Refusal::Busy)));
            return;
        }
        if let Some(refusal) = self.no_room(&hold.fresh) {
            out.push(Effect::Reply(hold.id, Reply::Refused(refusal)));
            return;
        }
        let Role::Serving(serving) = &mut self.role else { return };
        serving.holds.push(hold);
        self.serve_reads(now, out);
    }

    pub(super) fn compared(
        &mut self,
        now: Time,
        id: RequestId,
        equal: bool,
        out: &mut Vec<Effect<P>>,
    ) {
        let Role::Serving(serving) = &mut self.role else { return };
        let Some(place) = serving.holds.iter().position(|h| h.id == id && h.comparing) else {
            return;
        };
        let hold = serving.holds.remove(place);
        let held = std::mem::take(&mut serving.held);
        let (epoch, token) = (serving.epoch, serving.token);
        match (equal, self.no_room(&hold.fresh)) {
            (true, None) => {
                let Hold { id, op, lowest_open, extent, data, fresh, .. } = hold;
                let change = Change::Write { extent, data };
                let write = Held { id, op, lowest_open, epoch, token, change, fresh };
                self.sequence(now, write, out);
            }
            (true, Some(refusal)) => out.push(Effect::Reply(id, Reply::Refused(refusal))),
            (false, _) => out.push(Effect::Reply(id, Reply::Differs)),
        }
        for write in held {
            self.write_again(now, write, out);
        }
    }

    /// Refuses everything that was not sequenced.
    pub(super) fn refuse_all(&mut self, serving: Serving<P>, out: &mut Vec<Effect<P>>) {
        let reads = serving.reads.into_iter().map(|r| r.id);
        let holds = serving.holds.into_iter().map(|h| h.id);
        let held = serving.held.into_iter().chain(serving.new_chunks.into_crowded()).map(|h| h.id);
        let refusal = match &self.record {
            Some(r) if r.epoch > serving.epoch => Refusal::WrongEpoch(r.route.clone()),
            Some(_) | None => Refusal::NotPrimary,
        };
        for id in reads.chain(holds).chain(held) {
            out.push(Effect::Reply(id, Reply::Refused(refusal.clone())));
        }
    }
}
