//! Several programs count together in one block of a shared volume, by compare-and-write.

use std::env;

use bytes::Bytes;
use tidewater_client::{Open, blocking::Cluster};

fn main() -> anyhow::Result<()> {
    let endpoints = env::var("TIDEWATER_ENDPOINT").unwrap_or_else(|_| "127.0.0.1:7400".to_owned());
    let cluster = Cluster::connect(endpoints.split(','))?;
    let disk = cluster.open("hello", Open::shared())?;
    for _ in 0..100 {
        loop {
            let old = disk.read_at(0, 4096)?;
            let (head, _) = old.split_first_chunk().expect("4,096 bytes");
            let count = u64::from_le_bytes(*head).wrapping_add(1);
            let mut new = old.to_vec();
            new[..8].copy_from_slice(&count.to_le_bytes());
            if disk.compare_and_write(0, old, Bytes::from(new))? {
                println!("{count}");
                break;
            }
        }
    }
    disk.close()?;
    Ok(())
}
