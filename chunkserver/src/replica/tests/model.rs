//! Random histories of four copies against a model of the segment: for each sector, the values that it may
//! hold by what clients were told.
//!
//! A history is a list of [`Op`]s. Places, copies and messages are picked modulo what there is, so that
//! every list means something and shrinks well.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use proptest::{prelude::*, test_runner::TestRunner};
use tidewater_proto::{
    geometry::{CHUNK_BYTES, Extent, SECTOR_BYTES},
    ids::{OpId, ReplicaId, ServerId, SessionId, Token},
    peer::{Action, Request},
    record::Member,
};

use super::{
    store::{Value, sectors},
    world::{A, Answer, B, C, D, Refused, World, segment, timing},
};
use crate::replica::{Event, RequestId};

const CHUNKS: u64 = 4;
const SEGMENT: u64 = CHUNKS * CHUNK_BYTES;
const ALL: [ReplicaId; 4] = [A, B, C, D];
/// Sectors that histories touch, counted from each chunk's border: few, so that writes overlap.
const NEAR: u64 = 12;

/// Histories of one run of the test; about ten seconds.
const CASES: u32 = 3_000;

/// One thing that happens.
#[derive(Clone, Debug)]
enum Op {
    /// A client writes some sectors around the border of two chunks.
    Write { place: u8, sectors: u8, to: u8 },
    /// A client zeroes some sectors, or discards a chunk.
    Zero { place: u8, sectors: u8, discard: bool, to: u8 },
    /// A client tries a write again that it has no answer to.
    Retry { which: u8, to: u8 },
    /// A client reads.
    Read { place: u8, sectors: u8, to: u8 },
    /// A copy's disk takes what was asked of it.
    Persist(u8),
    /// So many messages arrive.
    Deliver { link: u8, count: u8 },
    /// The oldest message of a link is lost, and with it the connection, or alone.
    Lose { link: u8, connection: bool },
    /// A message overtakes another, or comes twice.
    Late { link: u8, twice: bool },
    /// A copy's process ends.
    Crash(u8),
    /// And starts again.
    Restart(u8),
    /// Raft makes another member primary; the old one stays or leaves.
    Lead { to: u8, leaves: bool },
    /// Raft decides on what was proposed.
    Decide,
    /// Raft makes a copy that is out a learner.
    Learn(u8),
    /// A copy hears of the record.
    Tell(u8),
    /// The volume is attached anew: who held it before has an older token from now on.
    Attach,
    /// Time passes.
    Pass { ms: u16 },
    /// What a copy has applied goes to its slots.
    Destage(u8),
    /// A primary may send something bulky.
    Turn,
    /// A chunk has been read for a learner.
    ChunkRead,
    /// Everything on its way arrives.
    Settle,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let write = (any::<u8>(), 1..10_u8, any::<u8>()).prop_map(|(place, sectors, to)| Op::Write {
        place,
        sectors,
        to,
    });
    let zero = (any::<u8>(), 1..10_u8, any::<bool>(), any::<u8>())
        .prop_map(|(place, sectors, discard, to)| Op::Zero { place, sectors, discard, to });
    let read = (any::<u8>(), 1..24_u8, any::<u8>()).prop_map(|(place, sectors, to)| Op::Read {
        place,
        sectors,
        to,
    });
    let op = prop_oneof![
        6 => write,
        2 => zero,
        4 => read,
        2 => (any::<u8>(), any::<u8>()).prop_map(|(which, to)| Op::Retry { which, to }),
        6 => any::<u8>().prop_map(Op::Persist),
        10 => (any::<u8>(), 1..6_u8).prop_map(|(link, count)| Op::Deliver { link, count }),
        1 => (any::<u8>(), any::<bool>()).prop_map(|(link, connection)| Op::Lose { link, connection }),
        1 => (any::<u8>(), any::<bool>()).prop_map(|(link, twice)| Op::Late { link, twice }),
        1 => any::<u8>().prop_map(Op::Crash),
        2 => any::<u8>().prop_map(Op::Restart),
        1 => (any::<u8>(), any::<bool>()).prop_map(|(to, leaves)| Op::Lead { to, leaves }),
        3 => Just(Op::Decide),
        2 => any::<u8>().prop_map(Op::Learn),
        4 => any::<u8>().prop_map(Op::Tell),
        1 => Just(Op::Attach),
        3 => (1..700_u16).prop_map(|ms| Op::Pass { ms }),
        3 => any::<u8>().prop_map(Op::Destage),
        4 => Just(Op::Turn),
        4 => Just(Op::ChunkRead),
        5 => Just(Op::Settle),
    ];
    prop::collection::vec(op, 40..160)
}

/// What a client knows of one of its writes.
#[derive(Clone, Debug)]
struct Write {
    action: Action<Value>,
    extent: Extent,
    /// 0 for zeroes.
    value: Value,
    /// Writes that were acknowledged when this one was first sent.
    after: BTreeSet<u64>,
    open: BTreeSet<RequestId>,
    acked: bool,
    /// Some try of it ended without saying whether it took effect.
    unknown: bool,
}

/// A read under way: the values that each sector may have had since it was sent.
#[derive(Clone, Debug)]
struct Read {
    at: ReplicaId,
    extent: Extent,
    allowed: Vec<BTreeSet<Value>>,
}

/// The segment as clients know it.
#[derive(Clone, Debug, Default)]
struct Model {
    writes: BTreeMap<u64, Write>,
    reads: BTreeMap<RequestId, Read>,
    /// By sector, the writes that may be the last one; 0 stands for the zeroes before all.
    last: BTreeMap<u32, BTreeSet<u64>>,
    /// Tries of writes that are not answered: of which, and where.
    tries: BTreeMap<RequestId, (u64, ReplicaId)>,
    requests: u64,
}

impl Model {
    fn next(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }

    fn candidates(&mut self, sector: u32) -> &mut BTreeSet<u64> {
        self.last.entry(sector).or_insert_with(|| BTreeSet::from([0]))
    }

    fn value(&self, write: u64) -> Value {
        self.writes.get(&write).map_or(0, |write| write.value)
    }

    fn allowed(&mut self, sector: u32) -> BTreeSet<Value> {
        let candidates = self.candidates(sector).clone();
        candidates.into_iter().map(|write| self.value(write)).collect()
    }

    fn sent(&mut self, number: u64, write: Write) {
        for sector in sectors(write.extent) {
            self.candidates(sector).insert(number);
            for read in self.reads.values_mut() {
                let first = sectors(read.extent).start;
                let place = sector.checked_sub(first).map(|place| place as usize);
                if let Some(allowed) = place.and_then(|place| read.allowed.get_mut(place)) {
                    allowed.insert(write.value);
                }
            }
        }
        self.writes.insert(number, write);
    }

    /// It took effect before now, so nothing that had been acknowledged before it was sent is the last.
    fn settle(&mut self, number: u64, only: Option<u32>) {
        let Some(write) = self.writes.get(&number).cloned() else { return };
        let all = sectors(write.extent);
        for sector in only.map_or(all, |sector| sector..sector + 1) {
            self.candidates(sector).retain(|other| *other != 0 && !write.after.contains(other));
        }
    }

    fn acked(&mut self, number: u64) {
        let write = self.writes.get_mut(&number).expect("it was sent");
        if !std::mem::replace(&mut write.acked, true) {
            self.settle(number, None);
        }
    }

    /// A try did not take effect. If every try of the write is like that, neither did the write.
    fn refused(&mut self, number: u64, id: RequestId) {
        let write = self.writes.get_mut(&number).expect("it was sent");
        write.open.remove(&id);
        if write.open.is_empty() && !write.acked && !write.unknown {
            for sector in sectors(write.extent) {
                self.last.entry(sector).or_default().remove(&number);
            }
        }
    }

    fn read(&mut self, id: RequestId, found: &[Value], world: &World) {
        let Some(read) = self.reads.remove(&id) else { return };
        for (sector, (value, allowed)) in sectors(read.extent).zip(found.iter().zip(&read.allowed))
        {
            assert!(
                allowed.contains(value),
                "INV-LIN: sector {sector} reads as {value}, which is none of {allowed:?}\n{world:?}"
            );
            // The write that was read took effect.
            if let Some((&number, _)) =
                self.writes.iter().find(|(_, w)| w.value == *value && *value != 0)
            {
                self.settle(number, Some(sector));
            }
        }
    }
}

/// The world, the model and what goes on between them.
struct Run {
    world: World,
    model: Model,
    /// Replies taken so far.
    seen: usize,
}

fn pick<T: Copy>(from: &[T], n: u8) -> Option<T> {
    from.get(usize::from(n) % from.len().max(1)).copied()
}

/// Sectors around the border before one of the chunks, or at the segment's start.
fn place(place: u8, count: u8) -> Extent {
    let border = u64::from(place) % CHUNKS * CHUNK_BYTES / SECTOR_BYTES;
    let from = (border + u64::from(place) / CHUNKS % NEAR).saturating_sub(NEAR / 2);
    Extent::new(from * SECTOR_BYTES, u64::from(count) * SECTOR_BYTES, SEGMENT).expect("valid")
}

impl Run {
    fn new() -> Self {
        let mut world = World::serving(&[A, B, C]);
        world.add(D);
        world.run_for(timing().renew);
        world.holds_turns = true;
        let seen = world.replies.len();
        Self { world, model: Model::default(), seen }
    }

    fn running(&self) -> Vec<ReplicaId> {
        let runs = |id: &ReplicaId| self.world.nodes[id].replica.is_some();
        ALL.into_iter().filter(runs).collect()
    }

    /// Where a client turns: mostly to who leads by the record, now and then to somebody else.
    fn server(&self, to: u8) -> Option<ReplicaId> {
        let primary = self.world.record().primary;
        let id = if to < 200 { primary } else { pick(&ALL, to)? };
        self.running().contains(&id).then_some(id)
    }

    fn link(&self, n: u8) -> Option<(ReplicaId, ReplicaId)> {
        let links: Vec<_> = self.world.links.keys().copied().collect();
        pick(&links, n)
    }

    fn ask(&mut self, to: ReplicaId, number: u64, action: Action<Value>) -> RequestId {
        let id = self.model.next();
        let fresh = self.world.fresh_chunks(to, &action);
        let (epoch, token) = (self.world.record().epoch, self.world.record().token);
        // Every fourth request is of one who has not heard of the last attach.
        let older = number.is_multiple_of(4);
        let token = if older { Token((token.0 - 1).max(1)) } else { token };
        let session = SessionId(7 + u64::from(older));
        let op = OpId { session, number };
        let request = Request { segment: segment(), epoch, token, op, lowest_open: 1, action };
        if let Some(write) = self.model.writes.get_mut(&number) {
            write.open.insert(id);
            self.model.tries.insert(id, (number, to));
        }
        self.world.step(to, Event::Request { id, request, fresh });
        id
    }

    fn write(&mut self, to: u8, extent: Extent, zero: Option<bool>) {
        let Some(to) = self.server(to) else { return };
        let number = self.model.writes.len() as u64 + 1;
        let (action, value) = match zero {
            Some(discard) => (Action::Zero { extent, discard }, 0),
            None => (Action::Write { extent, data: number as Value }, number as Value),
        };
        let after = self.model.writes.iter().filter(|(_, w)| w.acked).map(|(n, _)| *n).collect();
        let write = Write {
            action: action.clone(),
            extent,
            value,
            after,
            open: BTreeSet::new(),
            acked: false,
            unknown: false,
        };
        self.model.sent(number, write);
        self.ask(to, number, action);
    }

    fn retry(&mut self, which: u8, to: u8) {
        let Some(to) = self.server(to) else { return };
        let open: Vec<u64> =
            self.model.writes.iter().filter(|(_, w)| !w.acked).map(|(n, _)| *n).collect();
        let Some(number) = pick(&open, which) else { return };
        // A client that was refused for good does not come again.
        let write = &self.model.writes[&number];
        if !write.open.is_empty() || write.unknown {
            let action = write.action.clone();
            self.ask(to, number, action);
        }
    }

    fn read(&mut self, to: u8, extent: Extent) {
        let Some(to) = self.server(to) else { return };
        let allowed = sectors(extent).map(|sector| self.model.allowed(sector)).collect();
        let id = RequestId(self.model.requests + 1);
        self.model.reads.insert(id, Read { at: to, extent, allowed });
        let number = 1_000_000 + id.0;
        let asked = self.ask(to, number, Action::Read { extent });
        assert_eq!(asked, id);
    }

    /// Takes what clients were told since.
    fn take_replies(&mut self) {
        let new: Vec<_> = self.world.replies[self.seen..].to_vec();
        self.seen = self.world.replies.len();
        for (id, answer) in new {
            let number = self.model.tries.remove(&id).map(|(number, _)| number);
            match (number, answer) {
                (Some(number), Answer::Done(_)) => self.model.acked(number),
                // Forgotten as too old: an earlier try may have taken effect.
                (Some(number), Answer::Refused(Refused::Old)) => {
                    self.model.writes.get_mut(&number).expect("sent").unknown = true;
                }
                (Some(number), Answer::Refused(_)) => self.model.refused(number, id),
                (None, Answer::Read(found)) => self.model.read(id, &found, &self.world),
                (None, Answer::Refused(_)) => {
                    self.model.reads.remove(&id);
                }
                (number, answer) => panic!("{answer:?} answers {number:?}"),
            }
        }
    }

    /// What was asked of a process that ended is not answered any more.
    fn forget_requests(&mut self, of: ReplicaId) {
        let gone: Vec<_> = self.model.tries.extract_if(.., |_, (_, at)| *at == of).collect();
        for (id, (number, _)) in gone {
            let write = self.model.writes.get_mut(&number).expect("it was sent");
            write.open.remove(&id);
            write.unknown = true;
        }
        self.model.reads.retain(|_, read| read.at != of);
    }

    fn step(&mut self, op: &Op) {
        match *op {
            Op::Write { place: at, sectors, to } => self.write(to, place(at, sectors), None),
            Op::Zero { place: at, sectors, discard, to } => {
                let chunk = u64::from(at) % CHUNKS * CHUNK_BYTES;
                let whole = Extent::new(chunk, CHUNK_BYTES, SEGMENT).expect("valid");
                let extent = if discard { whole } else { place(at, sectors) };
                self.write(to, extent, Some(discard));
            }
            Op::Retry { which, to } => self.retry(which, to),
            Op::Read { place: at, sectors, to } => self.read(to, place(at, sectors)),
            Op::Persist(id) => {
                if let Some(id) = pick(&self.running(), id) {
                    while self.world.persist_one(id) {}
                }
            }
            Op::Deliver { link, count } => {
                if let Some(link) = self.link(link) {
                    for _ in 0..count {
                        self.world.deliver(link, 0);
                    }
                }
            }
            Op::Lose { link, connection } => self.lose(link, connection),
            Op::Late { link, twice } => {
                if let Some(link) = self.link(link) {
                    if twice { self.world.repeat(link) } else { self.world.overtake(link) }
                }
            }
            Op::Crash(id) => {
                let id = pick(&ALL, id).expect("four");
                if self.world.nodes[&id].replica.is_some() {
                    self.take_replies();
                    self.world.crash(id);
                    self.forget_requests(id);
                }
            }
            Op::Restart(id) => self.restart(pick(&ALL, id).expect("four")),
            Op::Lead { to, leaves } => self.lead(to, leaves),
            Op::Decide => self.world.decide_all(),
            Op::Attach => self.world.commit(|r| r.token = Token(r.token.0 + 1)),
            Op::Learn(id) => self.learn(pick(&ALL, id).expect("four")),
            Op::Tell(id) => {
                let id = pick(&ALL, id).expect("four");
                self.world.configure(id);
            }
            Op::Pass { ms } => self.world.advance(std::time::Duration::from_millis(ms.into())),
            Op::Destage(id) => {
                if let Some(id) = pick(&self.running(), id) {
                    self.world.destage(id);
                }
            }
            Op::Turn => {
                self.world.give_turn();
            }
            Op::ChunkRead => {
                self.world.finish_read();
            }
            Op::Settle => self.world.settle(),
        }
        self.take_replies();
        self.world.check();
    }

    fn lose(&mut self, link: u8, connection: bool) {
        let Some((from, to)) = self.link(link) else { return };
        if !connection {
            self.world.lose((from, to));
            return;
        }
        self.world.links.remove(&(from, to));
        self.world.step(from, Event::Connected(to));
    }

    fn restart(&mut self, id: ReplicaId) {
        if self.world.nodes[&id].replica.is_some() {
            return;
        }
        self.world.restart(id);
        if self.world.record().primary == id {
            // The metadata cluster hears of the new run when it registers.
            self.world.commit(|r| r.epoch = r.epoch.next());
        }
    }

    fn lead(&mut self, to: u8, leaves: bool) {
        let record = self.world.record();
        let runs = |m: &&Member| self.world.nodes[&m.replica].replica.is_some();
        let others: Vec<_> = record.members.iter().filter(runs).map(|m| m.replica).collect();
        let others: Vec<_> = others.into_iter().filter(|m| *m != record.primary).collect();
        let Some(to) = pick(&others, to) else { return };
        let leaves = leaves && record.members.len() > usize::from(record.floor);
        self.world.change_primary(to, leaves);
    }

    fn learn(&mut self, id: ReplicaId) {
        let record = self.world.record();
        if record.copies().any(|m| m.replica == id) {
            return;
        }
        let learner = Member { replica: id, server: ServerId(id.0), fresh: false };
        self.world.commit(|r| r.learners.push(learner));
    }

    /// Every fault ends: all run, all are connected, Raft decides on what is proposed and brings every
    /// copy back, until one serves and all are members.
    fn heal(&mut self) {
        self.world.holds_turns = false;
        for id in ALL {
            self.restart(id);
        }
        for from in ALL {
            for to in ALL {
                self.world.step(from, Event::Connected(to));
            }
        }
        for round in 0..60 {
            for id in ALL {
                self.learn(id);
            }
            self.world.configure_all();
            self.world.run_for(timing().lease / 2);
            self.take_replies();
            self.world.decide_all();
            let record = self.world.record();
            let whole = record.members.len() == ALL.len();
            if whole && self.world.serves(record.primary) == Some(record.epoch) {
                return;
            }
            // A primary that does not activate is replaced; here, by starting it anew.
            if round % 10 == 9 && self.world.serves(record.primary).is_none() {
                self.world.commit(|r| r.epoch = r.epoch.next());
            }
        }
        panic!("it does not heal: {:?}", self.world);
    }

    /// All copies hold the same, which is what clients may read.
    fn check_whole(&mut self) {
        self.world.run_for(timing().renew * 2);
        self.take_replies();
        let primary = self.world.record().primary;
        let all = Extent::new(0, SEGMENT, SEGMENT).expect("valid");
        let found = self.world.node(primary).shelf.read(all);
        for id in ALL {
            let other = self.world.node(id).shelf.read(all);
            let differs = found.iter().zip(&other).position(|(a, b)| a != b);
            if let Some(sector) = differs {
                let (here, there) = (found[sector], other[sector]);
                panic!(
                    "INV-LOG: sector {sector} holds {here} at {primary} and {there} at {id}\n{:?}",
                    self.world
                );
            }
        }
        for (sector, value) in (0..).zip(found) {
            let allowed = self.model.allowed(sector);
            assert!(
                allowed.contains(&value),
                "INV-ACK: sector {sector} holds {value}, which is none of {allowed:?}\n{:?}",
                self.world
            );
        }
    }
}

/// What happened in the histories, so that ones in which nothing does are noticed.
#[derive(Clone, Debug, Default)]
struct Tally {
    acked: usize,
    reads: usize,
    epochs: u64,
    images: usize,
    refused: usize,
    /// Attaches that have returned.
    fenced: u64,
}

fn run(ops: &[Op]) -> Tally {
    let mut run = Run::new();
    for op in ops {
        run.step(op);
    }
    run.heal();
    run.check_whole();
    let answers = |wanted: fn(&Answer) -> bool| {
        run.world.replies.iter().filter(|(_, answer)| wanted(answer)).count()
    };
    Tally {
        acked: answers(|answer| matches!(answer, Answer::Done(_))),
        reads: answers(|answer| matches!(answer, Answer::Read(_))),
        refused: answers(|answer| matches!(answer, Answer::Refused(_))),
        epochs: run.world.record().epoch.0,
        fenced: run.world.fence.token.0,
        images: run.world.images(),
    }
}

#[test]
fn clients_read_what_the_model_allows_through_every_random_history() {
    let config = ProptestConfig { cases: CASES, ..ProptestConfig::with_source_file(file!()) };
    let mut runner = TestRunner::new(config);
    let sum = RefCell::new(Tally::default());
    let result = runner.run(&ops(), |ops| {
        let one = run(&ops);
        let mut sum = sum.borrow_mut();
        sum.acked += one.acked;
        sum.reads += one.reads;
        sum.refused += one.refused;
        sum.epochs += one.epochs;
        sum.images += one.images;
        sum.fenced += one.fenced;
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{failure}\n{runner}"));
    let Tally { acked, reads, refused, epochs, images, fenced } = sum.into_inner();
    println!(
        "{acked} acknowledged, {reads} reads, {refused} refused, {epochs} epochs, {images} images, \
         {fenced} attaches"
    );
    let cases = CASES as usize;
    assert!(acked > 4 * cases && reads > 2 * cases && refused > cases, "clients get nowhere");
    assert!(epochs > 3 * u64::from(CASES) && images > cases, "too little happens to the copies");
    assert!(fenced > u64::from(CASES), "nobody is fenced off");
}
