#![deny(clippy::disallowed_methods, clippy::disallowed_types)]
//! Programs and their instances.

use std::collections::BTreeMap;

use super::{Step, volumes::is_name};
use crate::state::{
    outcome::{Applied, Limit, Outcome, Rejected},
    rows::{Instance, ProgramRow},
};

const PROGRAMS_MAX: usize = 10_000;
const INSTANCES_MAX: usize = 10_000;

pub(super) fn register(
    step: &mut Step<'_>,
    name: &str,
    instances: &[(String, Instance)],
) -> Outcome {
    if !is_name(name) || !instances.iter().all(|(id, _)| is_name(id)) {
        return Err(Rejected::BadName);
    }
    let known = step.state.programs.get(&name.to_owned());
    if known.is_none() && step.state.programs.len() >= PROGRAMS_MAX {
        return Err(Rejected::LimitReached { what: Limit::Programs, limit: PROGRAMS_MAX });
    }
    let new = ProgramRow { created_ms: step.now_ms, instances: BTreeMap::new() };
    let mut program = known.cloned().unwrap_or(new);
    program.instances.extend(instances.iter().cloned());
    if program.instances.len() > INSTANCES_MAX {
        return Err(Rejected::LimitReached { what: Limit::Instances, limit: INSTANCES_MAX });
    }
    step.state.programs.insert(name.to_owned(), program);
    Ok(Applied::Done)
}

pub(super) fn remove(step: &mut Step<'_>, name: &str, instance: Option<&str>) -> Outcome {
    let key = name.to_owned();
    if !step.state.programs.contains(&key) {
        return Err(Rejected::UnknownProgram { name: key });
    }
    let Some(instance) = instance else {
        step.state.programs.remove(&key);
        return Ok(Applied::Done);
    };
    let removed =
        step.state.programs.get_mut(&key).and_then(|program| program.instances.remove(instance));
    match removed {
        Some(_) => Ok(Applied::Done),
        None => Err(Rejected::UnknownInstance { name: key, instance: instance.to_owned() }),
    }
}
