//! Shards with real stores on simulated ground, stepped by hand.

mod cluster;
mod copies;
mod net;
