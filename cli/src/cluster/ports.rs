//! Ports for a cluster: a block of numbers that no other cluster on this machine uses.
//!
//! The blocks lie below the range from which the kernel takes ports for outgoing connections, so
//! that nobody takes a killed server's port before it is back. A block is owned by holding a lock on
//! a file; the kernel lets go of it when the owner dies.

use std::{
    env,
    fs::{self, File},
    net::TcpListener,
};

use rustix::fs::FlockOperation;

use super::ClusterError;

const FIRST_PORT: u16 = 20_000;
/// Enough for five meta nodes, sixteen chunkservers of four shards and four gateways, with metrics.
const BLOCK_PORTS: u16 = 160;
const BLOCKS: u16 = 75;

/// A block of ports, owned until it is dropped.
#[derive(Debug)]
pub(crate) struct Ports {
    _lock: File,
    next: u16,
    end: u16,
}

impl Ports {
    /// Takes a free block. Different processes start looking at different ones.
    pub(crate) fn claim() -> Result<Self, ClusterError> {
        let folder = env::temp_dir().join("tidewater-ports");
        fs::create_dir_all(&folder).map_err(ClusterError::file(&folder))?;
        let start = std::process::id() as u16 % BLOCKS;
        for block in (start..BLOCKS).chain(0..start) {
            let path = folder.join(block.to_string());
            let lock = File::options().create(true).truncate(false).write(true).open(&path);
            let lock = lock.map_err(ClusterError::file(&path))?;
            if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
                let next = FIRST_PORT + block * BLOCK_PORTS;
                return Ok(Self { _lock: lock, next, end: next + BLOCK_PORTS });
            }
        }
        Err(ClusterError::NoPorts)
    }

    /// The next port of the block on which nothing listens.
    pub(crate) fn take(&mut self) -> Result<u16, ClusterError> {
        while self.next < self.end {
            let port = self.next;
            self.next += 1;
            if TcpListener::bind(("127.0.0.1", port)).is_ok() {
                return Ok(port);
            }
        }
        Err(ClusterError::NoPorts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_owners_never_get_the_same_port() {
        let mut a = Ports::claim().expect("a block");
        let mut b = Ports::claim().expect("another block");
        let ports_a: Vec<_> = (0..5).map(|_| a.take().expect("a port")).collect();
        let ports_b: Vec<_> = (0..5).map(|_| b.take().expect("a port")).collect();
        assert!(ports_a.iter().all(|p| !ports_b.contains(p)), "{ports_a:?} {ports_b:?}");
    }

    #[test]
    fn a_port_in_use_is_passed_over() {
        let mut ports = Ports::claim().expect("a block");
        let taken = ports.next;
        let _listener = TcpListener::bind(("127.0.0.1", taken)).expect("free so far");
        assert_ne!(ports.take().expect("another port"), taken);
    }
}
