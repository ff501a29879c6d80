//! The command line: what it prints, where, and with which exit code.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // An edge.

mod run;
mod usage;
mod verbs;
