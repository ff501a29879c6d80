//! A register that is linearizable by making, and the histories that clients of it record; with a bug,
//! one that is not.

use rand::{Rng, rngs::StdRng, seq::IndexedRandom as _};

use crate::history::{
    Event, Kind, Op, Operation, Process, RegisterValue, UNWRITTEN, Value, registers,
};

/// Longest time between two steps of a process.
const STEP_NS: u64 = 1000;

/// What a broken register does, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bug {
    /// A read gives the value before the last.
    StaleRead,
    /// A write is acknowledged and forgotten.
    LostWrite,
    /// A compare succeeds on the value before the last: two that expect the same both win.
    BothWin,
    /// An acknowledged write takes effect after the one that follows it.
    Reordered,
    /// A write that is reported as failed takes effect.
    FailedAndDone,
    /// A read gives parts of two writes.
    Torn,
}

impl Bug {
    pub(super) const ALL: [Self; 6] = [
        Self::StaleRead,
        Self::LostWrite,
        Self::BothWin,
        Self::Reordered,
        Self::FailedAndDone,
        Self::Torn,
    ];
}

/// Clients of one register.
pub(super) struct Simulation {
    pub(super) processes: u64,
    pub(super) operations: usize,
    /// Part of the operations whose outcome the client does not learn.
    pub(super) unknown: f64,
    pub(super) bug: Option<Bug>,
}

/// What happened, by time; the register's number is 1.
pub(super) struct Simulated(pub(super) Vec<Event>);

impl Simulated {
    pub(super) fn operations(&self) -> Vec<Operation> {
        registers(&self.0).expect("a history").remove(&1).unwrap_or_default()
    }
}

/// An operation before it is known what it does.
struct Plan {
    process: u64,
    call: u64,
    effect: u64,
    end: u64,
    op: Op,
    unknown: bool,
    happens: bool,
}

impl Simulation {
    pub(super) fn run(&self, random: &mut StdRng) -> Simulated {
        let mut plans = self.plan(random);
        plans.sort_by_key(|plan| plan.effect);
        let mut register = Register { history: vec![UNWRITTEN], held: None };
        // Not the first and not the last: there is something before it and something to see it.
        let mut breaks_from = match self.bug {
            Some(_) => random.random_range(1..plans.len().max(2)),
            None => usize::MAX,
        };
        let mut events = Vec::with_capacity(plans.len() * 2);
        for ((at, plan), fresh) in plans.iter().enumerate().zip(1..) {
            let bug = self.bug.filter(|_| at >= breaks_from);
            if register.apply(plan, fresh, bug, random, &mut events) {
                breaks_from = usize::MAX;
            }
        }
        events.sort_by_key(|event| event.time);
        Simulated(events)
    }

    fn plan(&self, random: &mut StdRng) -> Vec<Plan> {
        let mut free_at: Vec<u64> =
            (0..self.processes).map(|_| random.random_range(0..STEP_NS)).collect();
        let mut numbers: Vec<u64> = (0..self.processes).collect();
        let mut plans = Vec::new();
        for at in 0..self.operations {
            let who = at % self.processes as usize;
            let mut later = |from: u64| from + random.random_range(1..STEP_NS);
            let call = later(free_at[who]);
            let mut effect = later(call);
            let end = later(effect);
            let op = *[Op::Read, Op::Write, Op::Cas].choose(random).expect("not empty");
            let unknown = random.random_bool(self.unknown);
            if unknown && random.random_bool(0.5) {
                effect = end + random.random_range(1..STEP_NS * 10);
            }
            let happens = !unknown || random.random_bool(0.5);
            plans.push(Plan { process: numbers[who], call, effect, end, op, unknown, happens });
            free_at[who] = end;
            if unknown {
                numbers[who] += self.processes;
            }
        }
        plans
    }
}

struct Register {
    /// Every value it had, the present one last.
    history: Vec<RegisterValue>,
    /// A write that waits for the next one to overtake it.
    held: Option<RegisterValue>,
}

impl Register {
    fn set(&mut self, value: RegisterValue) {
        self.history.push(value);
        self.history.extend(self.held.take());
    }

    /// Applies a planned operation and records it. True if the bug was let loose.
    fn apply(
        &mut self,
        plan: &Plan,
        fresh: RegisterValue,
        bug: Option<Bug>,
        random: &mut StdRng,
        events: &mut Vec<Event>,
    ) -> bool {
        let bug = bug.filter(|_| !plan.unknown);
        let effect = match plan.op {
            Op::Read => self.read(bug),
            Op::Write => self.write(plan, fresh, bug),
            _ => self.cas(plan, fresh, bug, random.random_bool(0.7)),
        };
        let end = if plan.unknown { Kind::Info } else { effect.end };
        let event = |time, kind, value| Event {
            time,
            process: Process::Client(plan.process),
            kind,
            op: plan.op,
            block: Some(1),
            span: 1,
            value,
            session: None,
            error: None,
        };
        let given = if plan.op == Op::Read { Value::None } else { effect.value.clone() };
        let found = if end == Kind::Info { given.clone() } else { effect.value };
        let differs = plan.op == Op::Cas && end == Kind::Fail;
        let error = differs.then(|| Event::DIFFERS.to_owned());
        events.push(event(plan.call, Kind::Invoke, given));
        events.push(Event { error, ..event(plan.end, end, found) });
        effect.loose
    }

    fn now(&self) -> RegisterValue {
        self.history[self.history.len() - 1]
    }

    /// The value before the last.
    fn before(&self) -> Option<RegisterValue> {
        self.history.iter().rev().nth(1).copied()
    }

    fn read(&self, bug: Option<Bug>) -> Effect {
        let wrong = match bug {
            Some(Bug::StaleRead) => self.before(),
            Some(Bug::Torn) => Some(-1),
            Some(_) | None => None,
        };
        let value = Value::One(wrong.unwrap_or_else(|| self.now()));
        Effect { value, end: Kind::Ok, loose: wrong.is_some() }
    }

    fn write(&mut self, plan: &Plan, fresh: RegisterValue, bug: Option<Bug>) -> Effect {
        let mut effect = Effect { value: Value::One(fresh), end: Kind::Ok, loose: true };
        match bug {
            Some(Bug::LostWrite) => {}
            Some(Bug::Reordered) => self.held = Some(fresh),
            Some(Bug::FailedAndDone) => {
                effect.end = Kind::Fail;
                self.set(fresh);
            }
            Some(Bug::StaleRead | Bug::BothWin | Bug::Torn) | None => {
                effect.loose = false;
                if plan.happens {
                    self.set(fresh);
                }
            }
        }
        effect
    }

    fn cas(&mut self, plan: &Plan, fresh: RegisterValue, bug: Option<Bug>, hit: bool) -> Effect {
        let stale = self.before().filter(|_| bug == Some(Bug::BothWin));
        let from = stale.unwrap_or(if hit { self.now() } else { UNWRITTEN });
        let holds = stale.is_some() || from == self.now();
        if holds && plan.happens {
            self.set(fresh);
        }
        let end = if holds { Kind::Ok } else { Kind::Fail };
        Effect { value: Value::Many(vec![from, fresh]), end, loose: stale.is_some() }
    }
}

/// What an operation came to.
struct Effect {
    value: Value,
    end: Kind,
    /// The bug showed itself.
    loose: bool,
}
