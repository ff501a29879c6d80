//! Fault testing: clusters of real processes under load and faults, and a verdict on what clients saw.
//!
//! | module | noun |
//! | --- | --- |
//! | [`history`] | every operation with its begin, end and outcome; as JSON lines, as EDN for Jepsen |
//! | [`checker`] | a history judged against the invariants of `docs/invariants.md` |
//! | [`workload`] | what clients do: registers of blocks and sectors, take-overs, a log |
//! | [`nemesis`] | faults as a schedule drawn from a seed: kill, pause, cut, loss, slow link |
//! | [`net`] | a network of namespaces for the processes, and the cuts in it |
//! | [`run`](mod@run), [`report`] | one run from start to verdict; what is said of it |
//! | `content`, `recorder` | what a register looks like on a disk; the history while it happens |
//!
//! `tidewater-jepsen run --workload registers --nemesis kills --seconds 30 --seed 1` is the whole of it.

pub mod checker;
mod content;
pub mod history;
pub mod nemesis;
pub mod net;
mod recorder;
pub mod report;
pub mod run;
pub mod workload;
