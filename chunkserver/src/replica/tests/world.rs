//! Three copies of one segment with simulated disks, links and records, and the invariants that must
//! hold in every state of it.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    time::Duration,
};

use tidewater_proto::{
    geometry::Extent,
    ids::{
        Epoch, OpId, Position, ReplicaId, Revision, RunId, SegmentId, Sequence, ServerId,
        SessionId, Token, VolumeId,
    },
    peer::{Action, AppliedSession, Envelope, Refusal, Reply, Request},
    record::{Durability, Member, SegmentRecord, SetChange},
};

use super::{
    super::{Effect, Event, Replica, RequestId, Restored, Role, Time, Timing, applied::Applied},
    store::{Chunk, Disk, Shelf, Value},
};

/// One copy's server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Node {
    pub(super) replica: Option<Replica<Value>>,
    pub(super) disk: Disk,
    run: RunId,
    pub(super) shelf: Shelf,
}

/// Everything there is.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) now: Time,
    pub(super) nodes: BTreeMap<ReplicaId, Node>,
    pub(super) links: BTreeMap<(ReplicaId, ReplicaId), VecDeque<Envelope<Value>>>,
    record: RecordHash,
    /// Writes acknowledged as committed, with their tokens.
    pub(super) acked: Vec<(RequestId, Position)>,
    pub(super) replies: Vec<(RequestId, Answer)>,
    pub(super) proposals: Vec<(Epoch, SetChange)>,
    pub(super) active: Vec<(ReplicaId, Epoch, Token)>,
    pub(super) fence: Fence,
    /// What is due, in the order in which it came about, if that is wanted.
    pub(super) due: Option<VecDeque<Due>>,
    /// Primaries that wait to send something bulky, and to whom.
    pub(super) turns: VecDeque<(ReplicaId, ReplicaId)>,
    /// Chunks that are being read for learners.
    reads: VecDeque<ChunkRead>,
    /// Turns are given by the test alone.
    pub(super) holds_turns: bool,
    /// Chunks that cannot be read for learners now.
    pub(super) unreadable: Vec<u32>,
    /// Contents of the chunks that were read for learners; an image on its way is a place here.
    images: Vec<BTreeMap<u32, Value>>,
}

/// An exclusive attachment that has returned: no write with an older token is committed behind `upto`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Fence {
    pub(super) token: Token,
    upto: Sequence,
}

/// Something that will happen by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Due {
    /// All that a disk was asked for becomes durable.
    Disk(ReplicaId),
    /// The oldest message of a link arrives.
    Message((ReplicaId, ReplicaId)),
    /// A copy hears of the record.
    Record(ReplicaId),
}

/// A chunk as a primary read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct ChunkRead {
    by: ReplicaId,
    learner: ReplicaId,
    chunk: u32,
    changed: Sequence,
    image: Option<Value>,
}

/// A reply without what differs between equal histories.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Answer {
    Done(Position),
    /// By sector.
    Read(Vec<Value>),
    Differs,
    Refused(Refused),
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Refused {
    WrongEpoch,
    NotPrimary,
    Fenced,
    Old,
    Busy,
    Lost,
    NoSpace,
    Other,
}

/// The record in a form that can be hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct RecordHash(SegmentRecord);

impl std::hash::Hash for RecordHash {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        let r = &self.0;
        (r.revision, r.epoch, r.token, r.primary, r.primary_run).hash(state);
        (&r.members, &r.learners, &r.former, r.active).hash(state);
    }
}

pub(super) const A: ReplicaId = ReplicaId(1);
pub(super) const B: ReplicaId = ReplicaId(2);
pub(super) const C: ReplicaId = ReplicaId(3);
pub(super) const D: ReplicaId = ReplicaId(4);

pub(super) fn segment() -> SegmentId {
    SegmentId { volume: VolumeId(1), index: 0 }
}

pub(super) fn timing() -> Timing {
    Timing::default()
}

pub(super) fn block() -> Extent {
    Extent::new(0, 4096, 1 << 20).expect("a block")
}

fn member(replica: ReplicaId) -> Member {
    Member { replica, server: ServerId(replica.0), fresh: false }
}

/// What a failure has to say: a line for the record, each copy and each link.
impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let r = self.record();
        let ids = |of: &[Member]| of.iter().map(|m| m.replica).collect::<Vec<_>>();
        let (members, learners) = (ids(&r.members), ids(&r.learners));
        let (epoch, primary) = (r.epoch, r.primary);
        writeln!(f, "{epoch:?} led by {primary}, members {members:?}, learners {learners:?}")?;
        for (id, node) in &self.nodes {
            let disk = &node.disk;
            let (base, queued, copying) = (disk.base, disk.queued.len(), disk.copying);
            write!(f, "{id}: on disk {base} and {} entries", disk.entries.len())?;
            write!(f, ", {queued} queued, copying {copying:?}; ")?;
            match &node.replica {
                Some(replica) => writeln!(f, "{}", replica.summary())?,
                None => writeln!(f, "off")?,
            }
        }
        for ((from, to), queue) in &self.links {
            let messages: Vec<_> = queue.iter().map(|envelope| &envelope.message).collect();
            writeln!(f, "{from} to {to}: {messages:?}")?;
        }
        write!(f, "proposed {:?}, fenced {:?}", self.proposals, self.fence)
    }
}

impl<P> Replica<P> {
    fn summary(&self) -> String {
        let role = match &self.role {
            Role::Idle => "idle".to_owned(),
            Role::Following(following) => format!("follows {}", following.primary),
            Role::Activating(_) => "activates".to_owned(),
            Role::Serving(s) => format!("serves {:?}, adding {:?}", s.epoch, s.adding),
        };
        let (promised, base, last, commit) =
            (self.promised, self.log.base(), self.log.last(), self.commit);
        format!("{role}, promised {promised:?}, log {base} to {last}, commit {commit:?}")
    }
}

impl Answer {
    /// A block of one value.
    pub(super) fn block(value: Value) -> Self {
        Self::Read(vec![value; 8])
    }
}

impl World {
    /// Copies that nobody has told anything yet.
    pub(super) fn new(members: &[ReplicaId]) -> Self {
        let record = SegmentRecord {
            segment: segment(),
            revision: Revision(1),
            epoch: Epoch(1),
            token: Token(1),
            primary: members[0],
            primary_run: RunId(members[0].0 * 100),
            members: members.iter().map(|m| member(*m)).collect(),
            learners: Vec::new(),
            former: Vec::new(),
            retired: Vec::new(),
            floor: if members.len() >= 3 { 2 } else { 1 },
            replicas: members.len() as u8,
            durability: Durability::Sync,
            active: None,
        };
        let mut world = Self {
            now: Time(10_000_000),
            nodes: BTreeMap::new(),
            links: BTreeMap::new(),
            record: RecordHash(record),
            acked: Vec::new(),
            replies: Vec::new(),
            proposals: Vec::new(),
            active: Vec::new(),
            fence: Fence::default(),
            due: None,
            turns: VecDeque::new(),
            reads: VecDeque::new(),
            holds_turns: false,
            unreadable: Vec::new(),
            images: Vec::new(),
        };
        for &id in members {
            world.add(id);
        }
        world
    }

    /// Copies with an active primary and nothing under way.
    pub(super) fn serving(members: &[ReplicaId]) -> Self {
        let mut world = Self::new(members);
        world.configure_all();
        world.settle();
        assert_eq!(world.serves(members[0]), Some(Epoch(1)), "the first primary is active");
        world
    }

    pub(super) fn add(&mut self, id: ReplicaId) {
        let run = RunId(id.0 * 100);
        let node = Node { replica: None, disk: Disk::empty(), run, shelf: Shelf::default() };
        self.nodes.insert(id, node);
        self.start(id);
    }

    pub(super) fn record(&self) -> &SegmentRecord {
        &self.record.0
    }

    pub(super) fn node(&self, id: ReplicaId) -> &Node {
        &self.nodes[&id]
    }

    pub(super) fn replica(&self, id: ReplicaId) -> &Replica<Value> {
        self.nodes[&id].replica.as_ref().expect("runs")
    }

    pub(super) fn serves(&self, id: ReplicaId) -> Option<Epoch> {
        self.nodes[&id].replica.as_ref().and_then(Replica::serves)
    }

    fn start(&mut self, id: ReplicaId) {
        let node = self.nodes.get_mut(&id).expect("known");
        let (copying, base) = (node.disk.copying, node.disk.base);
        let restored = Restored {
            id,
            segment: segment(),
            promised: node.disk.promised,
            token: node.disk.token,
            base,
            applied: node.disk.applied.clone(),
            entries: if copying.is_some() { Vec::new() } else { node.disk.entries_above(base) },
            commit: if copying.is_some() { base.sequence } else { node.disk.commit },
            copying,
        };
        node.disk.persisted = 0;
        node.shelf = Shelf::found(&node.disk);
        let (replica, effects) = Replica::restore(restored, node.run, timing(), self.now);
        node.replica = Some(replica);
        self.perform(id, effects);
    }

    /// SIGKILL: what is not persisted is gone, and so is what is under way to and from it.
    pub(super) fn crash(&mut self, id: ReplicaId) {
        let node = self.nodes.get_mut(&id).expect("known");
        node.replica = None;
        node.disk.queued.clear();
        self.reads.retain(|read| read.by != id);
        self.links.retain(|(from, to), _| *from != id && *to != id);
        if let Some(due) = &mut self.due {
            due.retain(|due| match *due {
                Due::Disk(of) | Due::Record(of) => of != id,
                Due::Message((from, to)) => from != id && to != id,
            });
        }
    }

    pub(super) fn restart(&mut self, id: ReplicaId) {
        let node = self.nodes.get_mut(&id).expect("known");
        node.run = RunId(node.run.0 + 1);
        self.start(id);
        for other in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.step(other, Event::Connected(id));
        }
    }

    pub(super) fn step(&mut self, id: ReplicaId, event: Event<Value>) {
        let now = self.now;
        let node = self.nodes.get_mut(&id).expect("known");
        let Some(replica) = &mut node.replica else { return };
        let mut effects = Vec::new();
        replica.step(now, event, &mut effects);
        self.perform(id, effects);
    }

    fn perform(&mut self, id: ReplicaId, effects: Vec<Effect<Value>>) {
        for effect in effects {
            self.effect(id, effect);
        }
    }

    fn effect(&mut self, id: ReplicaId, effect: Effect<Value>) {
        let node = self.nodes.get_mut(&id).expect("known");
        match effect {
            Effect::Persist(record) => {
                node.disk.queued.push_back(record);
                if let Some(due) = self.due.as_mut().filter(|due| !due.contains(&Due::Disk(id))) {
                    due.push_back(Due::Disk(id));
                }
            }
            Effect::Send(envelope) => {
                let up = self.nodes.get(&envelope.to).is_some_and(|n| n.replica.is_some());
                if up {
                    let link = (id, envelope.to);
                    self.links.entry(link).or_default().push_back(envelope);
                    self.due.iter_mut().for_each(|due| due.push_back(Due::Message(link)));
                }
            }
            Effect::Apply(entry) => node.shelf.apply(&entry),
            Effect::Reply(request, reply) => self.replied(request, &reply),
            Effect::Read(request, extent) => {
                let read = node.shelf.read(extent);
                self.replies.push((request, Answer::Read(read)));
            }
            Effect::Extents(request, _) => self.replies.push((request, Answer::Other)),
            Effect::Compare { id: request, extent, expect } => {
                let equal = node.shelf.read(extent).iter().all(|value| *value == expect);
                self.step(id, Event::Compared { id: request, equal });
            }
            Effect::Propose { epoch, change, .. } => {
                if !self.proposals.contains(&(epoch, change)) {
                    self.proposals.push((epoch, change));
                }
            }
            Effect::Active { epoch, token } => self.reported_active(id, epoch, token),
            Effect::PlanCopy { learner } => {
                let chunks = node.shelf.table();
                self.step(id, Event::CopyPlan { learner, chunks });
            }
            Effect::AwaitTurn { learner } => self.turns.push_back((id, learner)),
            Effect::ReadChunk { learner, chunk } => self.read_chunk(id, learner, chunk),
            Effect::BeginCopy { at, have, live, follow, own } => {
                node.shelf.begin_copy(&mut node.disk, (at, have), (live, follow), own);
            }
            Effect::TakeChunk { chunk, changed, at, image } => {
                let sectors = image.map(|i| self.images[i as usize].clone()).unwrap_or_default();
                node.shelf.put(&mut node.disk, chunk, Chunk { changed, sectors }, at);
                self.step(id, Event::ChunkTaken(chunk));
            }
            Effect::EndCopy { at, applied } => {
                node.shelf.end_copy(&mut node.disk, at, applied);
                self.step(id, Event::CopyEnded(at));
            }
        }
    }

    /// Chunks that were read for learners so far.
    pub(super) fn images(&self) -> usize {
        self.images.len()
    }

    fn read_chunk(&mut self, id: ReplicaId, learner: ReplicaId, chunk: u32) {
        if self.unreadable.contains(&chunk) {
            self.step(id, Event::CopyUnread { learner, chunk });
            return;
        }
        let (changed, image) = match self.nodes[&id].shelf.chunk(chunk) {
            Some(Chunk { changed, sectors }) => {
                self.images.push(sectors);
                (changed, Some(self.images.len() as Value - 1))
            }
            None => (self.replica(id).commit_point(), None),
        };
        self.reads.push_back(ChunkRead { by: id, learner, chunk, changed, image });
    }

    /// The oldest read of a chunk is done; what was applied meanwhile is not in it.
    pub(super) fn finish_read(&mut self) -> bool {
        let Some(read) = self.reads.pop_front() else { return false };
        let ChunkRead { by, learner, chunk, changed, image } = read;
        self.step(by, Event::CopyRead { learner, chunk, changed, image });
        true
    }

    /// Raft takes the report if it is of the current epoch's primary; with it an attachment returns.
    fn reported_active(&mut self, id: ReplicaId, epoch: Epoch, token: Token) {
        self.active.push((id, epoch, token));
        let record = &self.record.0;
        let current = (record.primary, record.epoch, record.token) == (id, epoch, token);
        if current && token > self.fence.token {
            self.fence = Fence { token, upto: self.replica(id).commit_point() };
        }
    }

    fn replied(&mut self, request: RequestId, reply: &Reply) {
        let answer = match reply {
            Reply::Done(at) => {
                self.acked.push((request, *at));
                Answer::Done(*at)
            }
            Reply::Differs => Answer::Differs,
            Reply::Refused(refusal) => Answer::Refused(match refusal {
                Refusal::WrongEpoch(_) => Refused::WrongEpoch,
                Refusal::NotPrimary => Refused::NotPrimary,
                Refusal::Fenced(_) => Refused::Fenced,
                Refusal::Old => Refused::Old,
                Refusal::Busy => Refused::Busy,
                Refusal::Lost => Refused::Lost,
                Refusal::NoSpace => Refused::NoSpace,
                Refusal::BadSum | Refusal::Invalid | Refusal::Corrupt | Refusal::Failed => {
                    Refused::Other
                }
            }),
            Reply::Data(_) | Reply::Extents(_) => Answer::Other,
        };
        self.replies.push((request, answer));
    }

    pub(super) fn answer(&self, id: u64) -> Option<&Answer> {
        self.replies.iter().rev().find(|(r, _)| r.0 == id).map(|(_, a)| a)
    }

    // ---------- what may happen ----------

    pub(super) fn configure(&mut self, id: ReplicaId) {
        let record = self.record.0.clone();
        self.step(id, Event::Configure(record));
    }

    pub(super) fn configure_all(&mut self) {
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.configure(id);
        }
    }

    /// The oldest record of a disk becomes durable.
    pub(super) fn persist_one(&mut self, id: ReplicaId) -> bool {
        let node = self.nodes.get_mut(&id).expect("known");
        let Some(record) = node.disk.queued.pop_front() else { return false };
        node.disk.write(record);
        let count = node.disk.persisted;
        self.step(id, Event::Persisted(count));
        true
    }

    pub(super) fn deliver(&mut self, link: (ReplicaId, ReplicaId), place: usize) -> bool {
        let Some(queue) = self.links.get_mut(&link) else { return false };
        let Some(envelope) = queue.remove(place) else { return false };
        if queue.is_empty() {
            self.links.remove(&link);
        }
        self.step(link.1, Event::Message(envelope));
        true
    }

    pub(super) fn has_queued(&self, id: ReplicaId) -> bool {
        !self.nodes[&id].disk.queued.is_empty()
    }

    /// The oldest message of a link is lost.
    pub(super) fn lose(&mut self, link: (ReplicaId, ReplicaId)) {
        if let Some(queue) = self.links.get_mut(&link) {
            queue.pop_front();
            if queue.is_empty() {
                self.links.remove(&link);
            }
        }
    }

    /// The second message of a link is before the first.
    pub(super) fn overtake(&mut self, link: (ReplicaId, ReplicaId)) {
        if let Some(queue) = self.links.get_mut(&link).filter(|queue| queue.len() > 1) {
            queue.swap(0, 1);
        }
    }

    /// The oldest message of a link comes twice.
    pub(super) fn repeat(&mut self, link: (ReplicaId, ReplicaId)) {
        if let Some(queue) = self.links.get_mut(&link) {
            let first = queue.front().cloned();
            queue.extend(first);
            queue.rotate_right(1);
        }
    }

    /// Delivers and persists until nothing is under way.
    pub(super) fn settle(&mut self) {
        for _ in 0..10_000 {
            let ids: Vec<_> = self.nodes.keys().copied().collect();
            let links: Vec<_> = self.links.keys().copied().collect();
            let mut busy = false;
            for id in ids {
                busy |= self.persist_one(id);
            }
            for link in links {
                busy |= self.deliver(link, 0);
            }
            busy |= !self.holds_turns && self.give_turn();
            busy |= self.finish_read();
            self.check();
            if !busy {
                return;
            }
        }
        panic!("the world does not come to rest: {self:?}");
    }

    /// Whoever waits longest may send something bulky.
    pub(super) fn give_turn(&mut self) -> bool {
        let Some((primary, learner)) = self.turns.pop_front() else { return false };
        self.step(primary, Event::Turn { learner });
        true
    }

    /// Time passes, seen by everyone.
    pub(super) fn advance(&mut self, by: Duration) {
        self.now = self.now.after(by);
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.step(id, Event::Tick);
        }
    }

    /// Time passes unseen by primaries, whose timers would only add messages.
    pub(super) fn lapse(&mut self, by: Duration) {
        self.now = self.now.after(by);
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            if self.nodes[&id].replica.as_ref().is_some_and(|r| !r.leads()) {
                self.step(id, Event::Tick);
            }
        }
    }

    /// Time passes in small steps, everything being delivered.
    pub(super) fn run_for(&mut self, duration: Duration) {
        let step = Duration::from_millis(50);
        let mut passed = Duration::ZERO;
        while passed < duration {
            self.advance(step);
            self.settle();
            passed += step;
        }
    }

    pub(super) fn request(&mut self, to: ReplicaId, id: u64, number: u64, action: Action<Value>) {
        let (epoch, token) = (self.record.0.epoch, self.record.0.token);
        self.request_as(to, id, number, epoch, token, action);
    }

    pub(super) fn request_as(
        &mut self,
        to: ReplicaId,
        id: u64,
        number: u64,
        epoch: Epoch,
        token: Token,
        action: Action<Value>,
    ) {
        let op = OpId { session: SessionId(7), number };
        self.request_op(to, id, op, (epoch, token), action);
    }

    pub(super) fn request_op(
        &mut self,
        to: ReplicaId,
        id: u64,
        op: OpId,
        (epoch, token): (Epoch, Token),
        action: Action<Value>,
    ) {
        let request = Request { segment: segment(), epoch, token, op, lowest_open: 1, action };
        let fresh = self.fresh_chunks(to, &request.action);
        self.step(to, Event::Request { id: RequestId(id), request, fresh });
    }

    /// Chunks that a copy would have to give space to.
    pub(super) fn fresh_chunks(&self, id: ReplicaId, action: &Action<Value>) -> Vec<u32> {
        let (Action::Write { extent, .. } | Action::Compare { extent, .. }) = action else {
            return Vec::new();
        };
        let shelf = &self.nodes[&id].shelf;
        extent.chunks().filter(|chunk| !shelf.holds(*chunk)).collect()
    }

    pub(super) fn write(&mut self, to: ReplicaId, number: u64, value: Value) {
        self.request(to, number, number, Action::Write { extent: block(), data: value });
    }

    /// Raft commits a change of the record.
    pub(super) fn commit(&mut self, change: impl FnOnce(&mut SegmentRecord)) {
        let record = &mut self.record.0;
        record.revision = Revision(record.revision.0 + 1);
        change(record);
        let run = self.nodes[&record.primary].run;
        record.primary_run = run;
    }

    /// Raft commits that another member leads, the old primary staying or leaving.
    pub(super) fn change_primary(&mut self, to: ReplicaId, leaves: bool) {
        self.commit(|r| {
            r.epoch = r.epoch.next();
            if leaves {
                r.members.retain(|m| m.replica != r.primary);
            }
            r.primary = to;
        });
    }

    /// Raft decides on a proposal as `apply` would.
    pub(super) fn decide(&mut self, epoch: Epoch, change: SetChange) -> bool {
        if self.record.0.epoch != epoch {
            return false;
        }
        let floor = usize::from(self.record.0.floor);
        match change {
            SetChange::Remove { replica } | SetChange::Lost { replica } => {
                let is_member = self.record.0.member(replica).is_some();
                if is_member && self.record.0.members.len() <= floor {
                    return false;
                }
                self.commit(|r| {
                    r.epoch = r.epoch.next();
                    r.members.retain(|m| m.replica != replica);
                    r.learners.retain(|m| m.replica != replica);
                });
            }
            SetChange::Promote { replica } => self.commit(|r| {
                r.epoch = r.epoch.next();
                let place = r.learners.iter().position(|m| m.replica == replica);
                let learner = r.learners.remove(place.expect("a learner is promoted"));
                r.members.push(learner);
            }),
            SetChange::Withdraw => self.commit(|r| r.epoch = r.epoch.next()),
            SetChange::Handover { .. } | SetChange::Replace { .. } => return false,
        }
        true
    }

    /// Decides on every proposal there is and tells everyone.
    pub(super) fn decide_all(&mut self) {
        for (epoch, change) in std::mem::take(&mut self.proposals) {
            self.decide(epoch, change);
        }
        self.configure_all();
    }

    // ---------- what is due, in order ----------

    /// Everybody who runs is to hear of the record, `first` before the others.
    pub(super) fn tell_in_order(&mut self, first: ReplicaId) {
        let others = self.nodes.keys().copied().filter(|id| *id != first);
        let told: Vec<_> = std::iter::once(first).chain(others).collect();
        let Some(due) = &mut self.due else { return };
        due.retain(|due| !matches!(due, Due::Record(_)));
        due.extend(told.into_iter().map(Due::Record));
    }

    /// Takes what is due next out of the order; a message is given with it.
    pub(super) fn take_due(&mut self) -> Option<(Due, Option<Envelope<Value>>)> {
        let due = self.due.as_mut()?.pop_front()?;
        let Due::Message(link) = due else { return Some((due, None)) };
        let queue = self.links.get_mut(&link)?;
        let envelope = queue.pop_front();
        if queue.is_empty() {
            self.links.remove(&link);
        }
        Some((due, envelope))
    }

    /// What was due happens.
    pub(super) fn happen(&mut self, due: Due, envelope: Option<Envelope<Value>>) {
        match (due, envelope) {
            (Due::Disk(id), _) => while self.persist_one(id) {},
            (Due::Record(id), _) => self.configure(id),
            (Due::Message((_, to)), Some(envelope)) => self.step(to, Event::Message(envelope)),
            (Due::Message(_), None) => panic!("a message is due that is not there"),
        }
    }

    /// Forgets what has no influence on what comes.
    pub(super) fn forget_answers(&mut self) {
        self.acked.sort_unstable();
        self.acked.dedup();
        self.replies.clear();
        self.active.clear();
        self.proposals.clear();
    }

    // ---------- what must hold ----------

    /// INV-EPOCH, INV-LOG, INV-ACK and INV-LIN in this state.
    pub(super) fn check(&self) {
        let serving: Vec<ReplicaId> = self
            .nodes
            .iter()
            .filter(|(_, n)| n.replica.as_ref().is_some_and(|r| self.may_serve_reads(r)))
            .map(|(&id, _)| id)
            .collect();
        assert!(serving.len() <= 1, "INV-EPOCH: {serving:?} serve reads at once\n{self:?}");
        for &id in &serving {
            self.check_sees_everything(id);
        }
        self.check_logs_agree();
        self.check_acked_is_everywhere();
        self.check_fence();
    }

    fn may_serve_reads(&self, replica: &Replica<Value>) -> bool {
        match &replica.role {
            Role::Serving(s) => s.is_active(replica.commit) && s.has_lease(self.now),
            Role::Idle | Role::Following(_) | Role::Activating(_) => false,
        }
    }

    /// INV-LIN: who may answer reads has applied, or has in its log before any later read, every
    /// acknowledged write.
    fn check_sees_everything(&self, id: ReplicaId) {
        let replica = self.replica(id);
        for (request, at) in &self.acked {
            // Below the base the log has only what is committed, and no epochs after a restart.
            let kept = at.sequence <= replica.log.base().sequence || replica.log.kept(*at);
            let there = kept && at.sequence <= replica.commit;
            assert!(there, "INV-LIN: {id} serves reads without {request:?} at {at}\n{self:?}");
        }
    }

    fn check_logs_agree(&self) {
        let running = || self.nodes.iter().filter_map(|(id, n)| Some((id, n.replica.as_ref()?)));
        for (x, left) in running() {
            for (y, right) in running().filter(|(y, _)| *y > x) {
                let upto = left.commit.min(right.commit);
                let first = left.log.base().sequence.max(right.log.base().sequence).next();
                for sequence in first.0..=upto.0 {
                    let sequence = Sequence(sequence);
                    let (a, b) = (left.log.position(sequence), right.log.position(sequence));
                    assert_eq!(a, b, "INV-LOG: {x} and {y} differ at {sequence}\n{self:?}");
                }
            }
        }
    }

    /// INV-ACK: what is acknowledged is on the disk of every member of the set.
    fn check_acked_is_everywhere(&self) {
        for member in &self.record.0.members {
            let disk = &self.nodes[&member.replica].disk;
            if self.nodes[&member.replica].disk.copying.is_some() {
                continue;
            }
            for (request, at) in &self.acked {
                let there = disk.has(*at);
                assert!(there, "INV-ACK: {} lacks {request:?} at {at}\n{self:?}", member.replica);
            }
        }
    }

    /// INV-FENCE: once an exclusive attach has returned, nothing with an older token is applied.
    fn check_fence(&self) {
        let Fence { token, upto } = self.fence;
        for (id, node) in &self.nodes {
            let Some(replica) = &node.replica else { continue };
            let applied = |at: &Position| at.sequence <= replica.commit;
            for entry in replica.log.above(upto).take_while(|e| applied(&e.position)) {
                let fenced = entry.token >= token;
                assert!(fenced, "INV-FENCE: {id} applies {entry:?} behind {upto}\n{self:?}");
            }
        }
    }

    /// The applied operations as they would be saved.
    pub(super) fn applied_of(&self, id: ReplicaId) -> Vec<AppliedSession> {
        self.replica(id).freeze_point().1
    }

    pub(super) fn destage(&mut self, id: ReplicaId) {
        let (at, applied) = self.replica(id).freeze_point();
        let node = self.nodes.get_mut(&id).expect("known");
        if node.shelf.freeze(&mut node.disk, at, applied) {
            self.step(id, Event::Destaged(at));
        }
    }

    pub(super) fn table(applied: Vec<AppliedSession>) -> Applied {
        Applied::load(applied)
    }
}

impl World {
    /// Settles among some copies only; the others are cut off.
    pub(super) fn settle_between(&mut self, ids: &[tidewater_proto::ids::ReplicaId]) {
        for _ in 0..1_000 {
            let mut busy = false;
            for &id in ids {
                busy |= self.persist_one(id);
            }
            for &from in ids {
                for &to in ids {
                    busy |= self.deliver((from, to), 0);
                }
            }
            self.check();
            if !busy {
                return;
            }
        }
        panic!("the world does not come to rest: {self:?}");
    }

    /// Takes one step after another until `reached`.
    pub(super) fn settle_until(&mut self, reached: impl Fn(&Self) -> bool) {
        for _ in 0..1_000 {
            if reached(self) {
                return;
            }
            let ids: Vec<_> = self.nodes.keys().copied().collect();
            let links: Vec<_> = self.links.keys().copied().collect();
            for id in ids {
                self.persist_one(id);
            }
            self.give_turn();
            self.finish_read();
            for link in links {
                if reached(self) {
                    return;
                }
                self.deliver(link, 0);
            }
        }
        panic!("never reached: {self:?}");
    }
}
