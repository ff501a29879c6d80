//! What does harm: a schedule of faults drawn from the seed, and the hand that carries it out.
//!
//! A fault has a begin and an end, both in the history. [`Bite`] says what it did to operations: a
//! fault that nobody felt shows nothing.

mod bite;
mod hand;
mod plan;

pub use bite::{Bite, bites};
pub(crate) use hand::Hand;
pub use plan::{Fault, Harm, Nemesis, On, plan};
