//! The client library on real servers: handles that share a volume, one that only reads, and the examples.

use std::{
    collections::BTreeSet,
    process::{Command, Output},
    thread,
};

use tidewater_cli::cluster::{Cluster as Servers, ClusterSpec, binary};
use tidewater_client::{
    Kind, MetaCode, Open, OpenError, Outcome, Volume,
    blocking::{Cluster, Disk},
};
use tidewater_proto::rpc::Durability;

use crate::tool::skip;

const BLOCK: u32 = 4096;
const ROUNDS: u64 = 50;

fn start() -> Servers {
    Servers::start(ClusterSpec { metas: 1, chunkservers: 3, ..ClusterSpec::default() })
        .expect("the cluster starts")
}

fn open(servers: &Servers, options: Open) -> Result<Disk<Volume>, OpenError> {
    Cluster::connect(servers.endpoints()).expect("a meta node").open("v", options)
}

/// Counts in a block that others count in, too.
fn count(disk: &Disk<Volume>) {
    for _ in 0..ROUNDS {
        loop {
            let old = disk.read_at(0, BLOCK).expect("read");
            let (head, _) = old.split_first_chunk().expect("a block");
            let mut new = old.to_vec();
            new[..8].copy_from_slice(&(u64::from_le_bytes(*head) + 1).to_le_bytes());
            if disk.compare_and_write(0, old, new.into()).expect("compared") {
                break;
            }
        }
    }
}

#[test]
fn shared_handles_see_each_others_writes_and_a_read_only_one_sees_all_and_writes_nothing() {
    let servers = start();
    servers.create_volume("v", 256 << 20, 3, Durability::Sync).expect("made");
    let first = open(&servers, Open::shared()).expect("shared");
    let second = open(&servers, Open::shared()).expect("shared by two");
    let reader = open(&servers, Open::read_only()).expect("and read by one more");
    let refused = open(&servers, Open::exclusive()).err().expect("not alone");
    assert!(
        matches!(&refused, OpenError::Meta { source, .. } if source.code == MetaCode::Conflict),
        "{refused}"
    );

    // In a segment that no handle has seen placed.
    assert_eq!(reader.read_at(128 << 20, BLOCK).expect("a hole"), vec![0; BLOCK as usize]);
    first.write_at(128 << 20, vec![7; BLOCK as usize]).expect("written");
    for handle in [&second, &reader] {
        assert_eq!(handle.read_at(128 << 20, BLOCK).expect("read"), vec![7; BLOCK as usize]);
    }
    thread::scope(|scope| {
        for disk in [&first, &second] {
            scope.spawn(|| count(disk));
        }
    });
    let counted = reader.read_at(0, 512).expect("read");
    assert_eq!(counted[..8], (2 * ROUNDS).to_le_bytes());

    let error = reader.write_at(0, vec![1; 512]).expect_err("read-only");
    assert_eq!((error.kind, error.outcome), (Kind::ReadOnly, Outcome::NotApplied));
    assert!(reader.info().read_only && !first.info().read_only);
    for disk in [first, second, reader] {
        disk.close().expect("given back");
    }
    open(&servers, Open::exclusive()).expect("alone now").close().expect("given back");
}

/// One of `client/examples`, which `cargo test` builds with the rest of the workspace.
fn example(name: &str, servers: &Servers) -> Option<Command> {
    let path = binary().expect("built").with_file_name("examples").join(name);
    if !path.is_file() {
        skip("the examples are not built: this is not a run of the whole workspace");
        return None;
    }
    let mut command = Command::new(path);
    command.env("TIDEWATER_ENDPOINT", servers.endpoints().join(","));
    Some(command)
}

fn printed(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{errors}", output.status);
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

#[test]
fn the_examples_run() {
    let servers = start();
    let (Some(mut hello), Some(mut counter)) =
        (example("hello", &servers), example("counter", &servers))
    else {
        return;
    };
    let said = printed(&hello.output().expect("it runs"));
    assert!(said.contains("made volume hello") && said.contains("hello, tidewater"), "{said}");
    let again = printed(&hello.output().expect("it runs"));
    assert!(again.contains("is there already"), "{again}");

    let mut other = example("counter", &servers).expect("as before");
    let counts: Vec<_> = thread::scope(|scope| {
        let running = [&mut counter, &mut other].map(|c| scope.spawn(move || c.output()));
        let outputs = running.map(|r| r.join().expect("no panic").expect("it runs"));
        outputs
            .iter()
            .flat_map(|o| printed(o).lines().map(str::to_owned).collect::<Vec<_>>())
            .collect()
    });
    let distinct: BTreeSet<u64> = counts.iter().map(|c| c.parse().expect("a number")).collect();
    assert_eq!((counts.len(), distinct.len()), (200, 200), "every number is counted once");
    let (first, last) = (distinct.first().expect("some"), distinct.last().expect("some"));
    assert_eq!(last - first, 199, "none is left out");
}
