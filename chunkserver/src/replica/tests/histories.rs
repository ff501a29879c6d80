//! Every history of three copies with few faults, in which every link and every disk is as slow as it likes: a
//! walk over all distinct states, with the invariants checked in each. `together` has more faults at once.

use tidewater_proto::ids::ReplicaId;

use super::{
    walk::{Walked, walk},
    world::{A, B, C, World, timing},
};

/// What may still happen beside deliveries and disk writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Budget {
    writes: u8,
    epoch_changes: u8,
    /// Whether the old primary leaves the set with the epoch change.
    leaves: bool,
    crashes: u8,
    restarts: u8,
    lost: u8,
    late: u8,
    lapses: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    world: World,
    budget: Budget,
    /// Who has heard of the present record.
    told: Vec<ReplicaId>,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Persist(ReplicaId),
    Deliver((ReplicaId, ReplicaId)),
    Late((ReplicaId, ReplicaId)),
    Lose((ReplicaId, ReplicaId)),
    Write(u8, ReplicaId),
    ChangeEpoch(ReplicaId, bool),
    Tell(ReplicaId),
    Crash(ReplicaId),
    Restart(ReplicaId),
    Lapse,
}

const ALL: [ReplicaId; 3] = [A, B, C];

impl Walked for State {
    type Step = Step;

    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        let running = |id: &ReplicaId| self.world.nodes[id].replica.is_some();
        for id in ALL.iter().copied().filter(|id| running(id)) {
            if self.world.has_queued(id) {
                steps.push(Step::Persist(id));
            }
            if !self.told.contains(&id) {
                steps.push(Step::Tell(id));
            }
            if self.budget.crashes > 0 {
                steps.push(Step::Crash(id));
            }
            if self.budget.writes > 0 && self.world.serves(id).is_some() {
                steps.push(Step::Write(self.budget.writes, id));
            }
        }
        for (&link, queue) in &self.world.links {
            steps.push(Step::Deliver(link));
            if self.budget.late > 0 && queue.len() > 1 {
                steps.push(Step::Late(link));
            }
            if self.budget.lost > 0 {
                steps.push(Step::Lose(link));
            }
        }
        if self.budget.epoch_changes > 0 {
            steps.push(Step::ChangeEpoch(B, self.budget.leaves));
        }
        if self.budget.restarts > 0 {
            steps.extend(ALL.iter().filter(|id| !running(id)).map(|&id| Step::Restart(id)));
        }
        if self.budget.lapses > 0 {
            steps.push(Step::Lapse);
        }
        steps
    }

    fn take(&mut self, step: Step) {
        match step {
            // A group commit: all that waits becomes durable together.
            Step::Persist(id) => while self.world.persist_one(id) {},
            Step::Deliver(link) => {
                self.world.deliver(link, 0);
            }
            Step::Late(link) => {
                self.budget.late -= 1;
                self.world.deliver(link, 1);
            }
            Step::Lose(link) => {
                self.budget.lost -= 1;
                self.world.lose(link);
            }
            Step::Write(value, id) => {
                self.budget.writes -= 1;
                self.world.write(id, u64::from(value), value.into());
            }
            Step::ChangeEpoch(to, leaves) => {
                self.budget.epoch_changes -= 1;
                self.world.change_primary(to, leaves);
                self.told.clear();
            }
            Step::Tell(id) => {
                self.world.configure(id);
                self.told.push(id);
                self.told.sort_unstable();
            }
            Step::Crash(id) => {
                self.budget.crashes -= 1;
                self.world.crash(id);
                self.told.retain(|t| *t != id);
            }
            Step::Restart(id) => {
                self.budget.restarts -= 1;
                self.world.restart(id);
            }
            Step::Lapse => {
                self.budget.lapses -= 1;
                self.world.lapse(timing().lease);
            }
        }
    }

    fn check(&self) {
        self.world.check();
    }
}

fn start(budget: Budget) -> State {
    let world = World::serving(&ALL);
    State { world, budget, told: ALL.to_vec() }
}

/// A walk that is larger fails: something blew it up.
const STATES_MAX: usize = 3_000_000;

const NONE: Budget = Budget {
    writes: 1,
    epoch_changes: 1,
    leaves: true,
    crashes: 0,
    restarts: 0,
    lost: 0,
    late: 0,
    lapses: 0,
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

// Two tests, so that two cores share the work; together well above 1,000,000 states.

#[test]
fn every_history_with_one_fault_keeps_the_invariants() {
    let budgets = [
        Budget { lapses: 1, ..NONE },
        Budget { leaves: false, ..NONE },
        Budget { writes: 2, ..NONE },
        Budget { crashes: 1, ..NONE },
        Budget { lost: 1, ..NONE },
        Budget { late: 1, ..NONE },
        Budget { crashes: 1, lapses: 1, ..NONE },
        Budget { crashes: 1, restarts: 1, epoch_changes: 0, ..NONE },
        Budget { lost: 1, late: 1, ..NONE },
    ];
    walk_all(&budgets, 900_000);
}

#[test]
fn every_history_of_two_writes_a_crash_and_a_hand_over_keeps_the_invariants() {
    walk_all(&[Budget { writes: 2, crashes: 1, leaves: false, ..NONE }], 900_000);
}
