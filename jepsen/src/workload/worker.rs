//! One logical process after the other on a thread: operations on random registers, recorded.

use std::{collections::BTreeMap, thread, time::Duration};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::{Failure, Registers, Scene};
use crate::{
    content::{FOREIGN, Layout},
    history::{Event, Op, RegisterValue, UNWRITTEN, Value},
    recorder::{Call, Voice},
};

/// Pause after a failure, so that a dead server does not fill the history with refusals.
const AFTER_FAILURE: Duration = Duration::from_millis(50);

/// Parts of each kind of operation; the rest are compares.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mix {
    read: f64,
    write: f64,
}

impl Mix {
    pub(crate) const ALL: Self = Self { read: 0.4, write: 0.4 };
    /// Who only reads is not told by failing writes that a server has lost its role.
    pub(crate) const READ: Self = Self { read: 1.0, write: 0.0 };
    pub(crate) const READ_WRITE: Self = Self { read: 0.5, write: 0.5 };
}

/// What one thread does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Worker {
    pub(crate) layout: Layout,
    pub(crate) registers: u64,
    pub(crate) mix: Mix,
    /// Registers of one operation, at most.
    pub(crate) span_max: u32,
    pub(crate) seed: u64,
    /// Tells its random numbers from those of others.
    pub(crate) number: u64,
}

impl Worker {
    /// Works until the scene is over or the attachment is gone.
    pub(crate) fn run(&self, scene: &Scene<'_>, registers: &mut impl Registers) {
        let mut random = StdRng::seed_from_u64(self.seed ^ (self.number << 32));
        let mut voice = Voice::new(scene.recorder, None);
        // What was last seen of each register, to compare with.
        let mut seen = BTreeMap::new();
        while !scene.is_over() {
            let Ok(session) = registers.session() else {
                thread::sleep(AFTER_FAILURE);
                continue;
            };
            voice.session = session;
            let call = self.next(&mut random, &mut voice, &seen);
            match perform(&mut voice, registers, &call) {
                Ok(values) => {
                    let first = call.block.unwrap_or_default();
                    seen.extend((first..).zip(values));
                }
                Err(failure) if failure.fenced => return,
                Err(_) => thread::sleep(AFTER_FAILURE),
            }
        }
    }

    fn next(
        &self,
        random: &mut StdRng,
        voice: &mut Voice<'_>,
        seen: &BTreeMap<u64, RegisterValue>,
    ) -> Call {
        let span = random.random_range(1..=self.span_max);
        let block = random.random_range(0..=self.registers - u64::from(span));
        let dice: f64 = random.random();
        let (op, value) = if dice < self.mix.read {
            (Op::Read, Value::None)
        } else if dice < self.mix.read + self.mix.write {
            (Op::Write, Value::One(voice.fresh()))
        } else {
            let from = seen.get(&block).copied().filter(|value| *value != FOREIGN);
            (Op::Cas, Value::Many(vec![from.unwrap_or(UNWRITTEN), voice.fresh()]))
        };
        Call { op, block: Some(block), span, value }
    }
}

/// Announces, performs and records one operation. Gives what the registers held when it ended, where
/// that is known.
pub(crate) fn perform(
    voice: &mut Voice<'_>,
    registers: &mut impl Registers,
    call: &Call,
) -> Result<Vec<RegisterValue>, Failure> {
    voice.invoke(call);
    let block = call.block.unwrap_or_default();
    let result = match (call.op, &call.value) {
        (Op::Write, Value::One(value)) => {
            registers.write(block, call.span, *value).map(|()| vec![*value; call.span as usize])
        }
        (Op::Cas, Value::Many(pair)) => match registers.cas(block, pair[0], pair[1]) {
            Ok(true) => Ok(vec![pair[1]]),
            Ok(false) => {
                voice.fail(call, Event::DIFFERS);
                return Ok(Vec::new());
            }
            Err(failure) => Err(failure),
        },
        _ => registers.read(block, call.span),
    };
    match &result {
        Ok(values) => voice.ok(call, (call.op == Op::Read).then(|| found(values))),
        // A read that failed changed nothing.
        Err(failure) if failure.maybe && call.op != Op::Read => voice.info(call, &*failure.text),
        Err(failure) => voice.fail(call, &*failure.text),
    }
    result
}

fn found(values: &[RegisterValue]) -> Value {
    match values {
        [value] => Value::One(*value),
        values => Value::Many(values.to_vec()),
    }
}
