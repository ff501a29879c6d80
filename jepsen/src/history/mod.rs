//! What clients and nemeses did, event by event; its two file formats; and the operations that the
//! events make up.
//!
//! A history is a list of [`Event`]s in the order of their time. A client's operation is two of them:
//! `invoke`, then `ok` (it happened), `fail` (it did not) or `info` (nobody knows). After `info` the
//! process number is never used again, as what it started may still happen. These are Jepsen's rules.

mod edn;
mod event;
mod json;
mod operation;
#[cfg(test)]
mod tests;

pub use edn::write_edn;
pub use event::{Event, Kind, Op, Process, Stage, Value};
pub use json::{ReadError, read_json, write_json};
pub use operation::{
    Action, Malformed, Operation, RegisterValue, UNWRITTEN, final_reads, registers,
};
