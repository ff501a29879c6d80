//! One attachment of a volume: operations become requests to the segments' primaries.
//!
//! A session lives on one thread, in a `LocalSet`. Futures do the waiting; what to do next with a
//! request is decided by [`crate::retry`]. What it has from outside - connections, the metadata cluster,
//! randomness, clocks - it is handed (`outside`, `dial`), so that `tests` runs one in memory.

mod absent;
mod attach;
mod dial;
mod inlet;
mod links;
mod map;
mod outside;
mod part;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;
mod tries;
mod volume;
mod window;

pub use attach::{CloseError, OpenError};
pub(crate) use volume::LocalVolume;
pub use window::Window;
