//! One attachment of a volume: operations become requests to the segments' primaries.
//!
//! A session lives on one thread, in a `LocalSet`. Futures do the waiting; what to do next with a
//! request is decided by [`crate::retry`].

mod absent;
mod attach;
mod inlet;
mod links;
mod map;
mod part;
mod tries;
mod volume;
mod window;

pub use attach::{CloseError, OpenError};
pub(crate) use volume::LocalVolume;
pub use window::Window;
