//! Every history of three copies, two writers of which one is fenced off, one epoch change, one crash, one lost
//! and one late message, all in one walk.
//!
//! What happens by itself happens in the order in which it came about: messages arrive and disks write one after
//! the other. When the rest happens is open: each of the writes, the epoch change, the attach, the crash and the
//! restart comes at any moment; any message may be lost; and any message or record may be late, and then
//! arrives at any moment after. `histories` has fewer faults, and every order.

use std::collections::VecDeque;

use tidewater_proto::{
    ids::{OpId, ReplicaId, SessionId, Token},
    peer::{Action, Envelope},
};

use super::{
    store::Value,
    walk::{Walked, walk},
    world::{A, B, C, Due, World, block, timing},
};

const ALL: [ReplicaId; 3] = [A, B, C];

/// What may still happen beside what happens by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Budget {
    /// Of the session that is there from the start, and of one that attaches.
    writes: [u8; 2],
    attaches: u8,
    epoch_changes: u8,
    /// Whether the old primary leaves the set with the epoch change.
    leaves: bool,
    /// Who may crash.
    crashes: Option<ReplicaId>,
    restarts: u8,
    lost: u8,
    late: u8,
    lapses: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    world: World,
    budget: Budget,
    late: Option<(Due, Option<Envelope<Value>>)>,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Next,
    Lose,
    Postpone,
    Arrive,
    Write(usize, ReplicaId),
    Attach,
    ChangeEpoch,
    Crash(ReplicaId),
    Restart(ReplicaId),
    Lapse,
}

impl State {
    fn runs(&self, id: ReplicaId) -> bool {
        self.world.nodes[&id].replica.is_some()
    }

    /// The token of each writer: the one that is there first knows no other, the one that attaches has its
    /// own once the attach has returned.
    fn token(&self, writer: usize) -> Option<Token> {
        match writer {
            0 => Some(Token(1)),
            _ => Some(self.world.fence.token).filter(|token| *token > Token(1)),
        }
    }

    fn write(&mut self, writer: usize, to: ReplicaId) {
        let token = self.token(writer).expect("it is attached");
        let epoch = self.world.serves(to).expect("it serves");
        let op = OpId { session: SessionId(writer as u64 + 7), number: 1 };
        let action = Action::Write { extent: block(), data: writer as Value + 1 };
        self.world.request_op(to, writer as u64 + 1, op, (epoch, token), action);
    }
}

impl Walked for State {
    type Step = Step;

    fn steps(&self) -> Vec<Step> {
        let (budget, world) = (&self.budget, &self.world);
        let mut steps = Vec::new();
        let next = world.due.as_ref().and_then(|due| due.front());
        if let Some(next) = next {
            steps.push(Step::Next);
            if budget.lost > 0 && matches!(next, Due::Message(_)) {
                steps.push(Step::Lose);
            }
            if budget.late > 0 && !matches!(next, Due::Disk(_)) {
                steps.push(Step::Postpone);
            }
        } else if budget.lapses > 0 {
            steps.push(Step::Lapse);
        }
        if self.late.is_some() {
            steps.push(Step::Arrive);
        }
        for id in ALL {
            let serves = world.serves(id).is_some();
            let may = |writer: &usize| budget.writes[*writer] > 0 && self.token(*writer).is_some();
            let writers = (0..2).filter(|writer| serves && may(writer));
            steps.extend(writers.map(|writer| Step::Write(writer, id)));
            if !self.runs(id) && budget.restarts > 0 {
                steps.push(Step::Restart(id));
            }
        }
        if let Some(id) = budget.crashes.filter(|id| self.runs(*id)) {
            steps.push(Step::Crash(id));
        }
        if budget.attaches > 0 {
            steps.push(Step::Attach);
        }
        if budget.epoch_changes > 0 {
            steps.push(Step::ChangeEpoch);
        }
        steps
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Next => {
                let (due, envelope) = self.world.take_due().expect("something is due");
                self.world.happen(due, envelope);
            }
            Step::Lose => {
                self.budget.lost -= 1;
                self.world.take_due();
            }
            Step::Postpone => {
                self.budget.late -= 1;
                self.late = self.world.take_due();
            }
            Step::Arrive => {
                let (due, envelope) = self.late.take().expect("something is late");
                self.world.happen(due, envelope);
            }
            Step::Write(writer, to) => {
                self.budget.writes[writer] -= 1;
                self.write(writer, to);
            }
            Step::Attach => {
                self.budget.attaches -= 1;
                self.world.commit(|r| r.token = Token(r.token.0 + 1));
                self.world.tell_in_order(self.world.record().primary);
            }
            Step::ChangeEpoch => {
                self.budget.epoch_changes -= 1;
                self.world.change_primary(B, self.budget.leaves);
                self.world.tell_in_order(B);
            }
            Step::Crash(id) => {
                self.budget.crashes = None;
                self.world.crash(id);
                // What was under way to and from it is gone.
                let of_it = self.late.as_ref().is_some_and(|(due, _)| match *due {
                    Due::Disk(of) | Due::Record(of) => of == id,
                    Due::Message((from, to)) => from == id || to == id,
                });
                if of_it {
                    self.late = None;
                }
            }
            Step::Restart(id) => {
                self.budget.restarts -= 1;
                self.world.restart(id);
                self.world.tell_in_order(id);
            }
            Step::Lapse => {
                self.budget.lapses -= 1;
                self.world.lapse(timing().lease);
            }
        }
        self.world.forget_answers();
    }

    fn check(&self) {
        self.world.check();
    }
}

fn start(budget: Budget) -> State {
    let mut world = World::serving(&ALL);
    world.due = Some(VecDeque::new());
    world.forget_answers();
    State { world, budget, late: None }
}

/// A walk that is larger fails: something blew it up.
const STATES_MAX: usize = 6_000_000;

const EVERYTHING: Budget = Budget {
    writes: [1, 1],
    attaches: 1,
    epoch_changes: 1,
    leaves: true,
    crashes: Some(A),
    restarts: 0,
    lost: 1,
    late: 1,
    lapses: 1,
};

/// Walks all of `budgets` and prints how many states there were; at least `at_least`.
fn walk_all(budgets: &[Budget], at_least: usize) {
    let mut total = 0;
    for &budget in budgets {
        let (states, whole) = walk(start(budget), STATES_MAX);
        println!("{budget:?}: {states} states");
        assert!(whole, "cut off: {budget:?}");
        total += states;
    }
    println!("states walked: {total}");
    assert!(total >= at_least, "only {total} states");
}

// Two tests, so that two cores share the work.

#[test]
fn every_history_with_all_faults_at_once_keeps_the_invariants() {
    walk_all(&[EVERYTHING], 1_000_000);
}

#[test]
fn every_history_with_a_crash_of_any_copy_and_its_return_keeps_the_invariants() {
    let lost = Budget { late: 0, ..EVERYTHING };
    let returns = Budget { restarts: 1, ..lost };
    let budgets = [
        Budget { leaves: false, ..lost },
        returns,
        Budget { crashes: Some(B), ..returns },
        Budget { crashes: Some(C), ..returns },
    ];
    walk_all(&budgets, 100_000);
}
