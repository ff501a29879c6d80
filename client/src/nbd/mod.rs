//! The NBD protocol, server side: a pure session and the encoding of replies.

mod cursor;
mod export;
mod handshake;
mod reply;
mod request;
mod session;
mod wire;

#[cfg(test)]
mod tests;

pub use export::ExportInfo;
pub use reply::{Replies, Run};
pub use request::{Command, Request};
pub use session::{Close, Limits, Session, Step};
pub use wire::{Errno, PAYLOAD_BYTES_MAX};
