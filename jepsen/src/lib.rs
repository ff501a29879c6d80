//! Fault testing; planned, nothing is here yet.
//!
//! It will run clusters of real processes with `tidewater_cli::cluster` and hold:
//!
//! | part | noun |
//! | --- | --- |
//! | nemesis | a fault and its end: kill, pause, network cut, full or failing disk, clock jump |
//! | workload | what clients do meanwhile, by operation id |
//! | history | every operation with its begin, end and outcome: applied, not applied, unknown |
//! | checker | a history judged against an invariant of `docs/invariants.md` |
//! | simulation | the pure cores of all crates in one process, stepped from a seed |
