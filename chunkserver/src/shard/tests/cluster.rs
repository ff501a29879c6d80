//! What shards do together.

use std::time::Duration;

use tidewater_proto::{
    geometry::CHUNK_BYTES,
    ids::{ReplicaId, ServerId},
    peer::{Action, Refusal, Reply},
    record::SetChange,
};

use super::net::{Net, SEGMENT_BYTES, extent, member};

const LARGE: u64 = 256 << 20;

fn done(reply: &Reply) -> bool {
    matches!(reply, Reply::Done(_))
}

/// A little of everything, and the bytes of all that was sent.
fn script() -> Vec<u8> {
    let mut net = Net::new(&[LARGE, LARGE, LARGE], 0);
    assert!(done(&net.write(extent(512, 8192), 1)));
    assert!(done(&net.write(extent(CHUNK_BYTES - 512, 1024), 2)));
    net.destage(1);
    assert_eq!(net.read(extent(CHUNK_BYTES - 1024, 2048))[512..1536], [2; 1024]);
    net.stop(ServerId(3));
    net.await_proposal(SetChange::Remove { replica: ReplicaId(3) });
    net.commit(|r| {
        r.epoch = r.epoch.next();
        r.members.pop();
    });
    assert!(done(&net.write(extent(0, 4096), 3)));
    assert_eq!(net.read(extent(0, 4096)), [3; 4096]);
    net.start(ServerId(2));
    std::mem::take(&mut net.history)
}

#[test]
fn a_write_is_on_every_server_and_read_back() {
    let mut net = Net::new(&[LARGE, LARGE, LARGE], 0);
    assert!(done(&net.write(extent(4096, 12_288), 7)));
    net.run_for(Duration::from_millis(300));
    for server in 1..=3 {
        assert_eq!(net.content(server, extent(4096, 12_288)), [7; 12_288], "server {server}");
    }
    assert_eq!(net.read(extent(0, 8192))[4096..], [7; 4096]);
}

#[test]
fn what_was_acknowledged_is_there_after_every_server_was_off() {
    let mut net = Net::new(&[LARGE, LARGE], 0);
    assert!(done(&net.write(extent(0, 16_384), 5)));
    for server in [1, 2] {
        net.stop(ServerId(server));
    }
    for server in [1, 2] {
        net.start(ServerId(server));
    }
    net.commit(|r| r.epoch = r.epoch.next());
    net.run_for(Duration::from_secs(2));
    assert_eq!(net.read(extent(0, 16_384)), [5; 16_384]);
}

#[test]
fn the_same_steps_send_the_same_bytes() {
    let (first, second) = (script(), script());
    assert!(!first.is_empty());
    assert_eq!(first.len(), second.len());
    assert!(first == second, "a shard depends on something that is not given to it");
}

#[test]
fn a_learner_is_filled_while_clients_write_and_has_all_of_it() {
    let mut net = Net::new(&[LARGE, LARGE, LARGE], 1);
    for chunk in 0..32 {
        assert!(done(&net.write(extent(chunk * CHUNK_BYTES, 4096), 1)));
    }
    net.destage(1);
    net.commit(|r| r.learners.push(member(3)));
    for round in 2..=40 {
        for chunk in 0..40 {
            let at = chunk * CHUNK_BYTES + u64::from(round) * 512;
            assert!(done(&net.write(extent(at, 1024), round)));
        }
        if round % 5 == 0 {
            net.destage(1);
        }
        net.run_for(Duration::from_millis(25));
    }
    net.await_proposal(SetChange::Promote { replica: ReplicaId(3) });
    net.run_for(Duration::from_millis(300));
    for chunk in 0..40 {
        let all = extent(chunk * CHUNK_BYTES, CHUNK_BYTES);
        assert!(net.content(1, all) == net.content(3, all), "chunk {chunk} differs");
    }
}

#[test]
fn a_chunk_that_the_primary_dropped_does_not_show_below_later_writes() {
    let mut net = Net::new(&[LARGE, LARGE, LARGE], 0);
    for chunk in 0..3 {
        assert!(done(&net.write(extent(chunk * CHUNK_BYTES, CHUNK_BYTES), 1)));
    }
    net.run_for(Duration::from_millis(300));
    for server in 1..=3 {
        net.destage(server);
    }
    net.stop(ServerId(3));
    net.commit(|r| {
        r.epoch = r.epoch.next();
        r.members.pop();
    });
    // While server 3 is away a chunk is given back, and the log forgets it.
    let chunk = extent(CHUNK_BYTES, CHUNK_BYTES);
    assert!(done(&net.ask(Action::Zero { extent: chunk, discard: true })));
    assert!(done(&net.write(extent(2 * CHUNK_BYTES, 4096), 2)));
    net.run_for(Duration::from_millis(300));
    net.destage(1);
    net.start(ServerId(3));
    let mut back = member(3);
    back.fresh = false;
    net.commit(|r| r.learners.push(back));
    // Before the copy is whole the chunk is used again.
    assert!(done(&net.write(extent(CHUNK_BYTES + 8192, 4096), 3)));
    net.await_proposal(SetChange::Promote { replica: ReplicaId(3) });
    net.run_for(Duration::from_millis(300));
    for chunk in 0..3 {
        let all = extent(chunk * CHUNK_BYTES, CHUNK_BYTES);
        assert!(net.content(1, all) == net.content(3, all), "chunk {chunk} differs");
    }
}

#[test]
fn a_member_with_a_small_device_stops_new_chunks_and_takes_all_else() {
    const SMALL: u64 = 24 << 20;
    let mut net = Net::new(&[LARGE, SMALL], 0);
    let chunk = |n: u64| extent(n * CHUNK_BYTES, CHUNK_BYTES);
    let mut written = 0;
    let refused = loop {
        match net.write(chunk(written), 1) {
            Reply::Done(_) => written += 1,
            other => break other,
        }
        net.run_for(Duration::from_millis(25));
    };
    assert_eq!(refused, Reply::Refused(Refusal::NoSpace));
    assert!((16..24).contains(&written), "{written} chunks fitted into 24");
    for n in 0..written {
        assert!(done(&net.write(extent(n * CHUNK_BYTES + 512, 1024), 2)), "chunk {n}");
        net.destage(2);
    }
    for n in 0..4 {
        assert!(done(&net.ask(Action::Zero { extent: chunk(n), discard: true })));
    }
    net.run_for(Duration::from_millis(500));
    for n in 0..4 {
        let reply = net.write(chunk(written + n), 3);
        assert!(done(&reply), "space of chunk {n} was given back: {reply:?}");
        net.run_for(Duration::from_millis(250));
    }
    assert_eq!(net.write(chunk(written + 5), 4), Reply::Refused(Refusal::NoSpace));
    assert!(written + 5 < SEGMENT_BYTES / CHUNK_BYTES);
    assert_eq!(net.read(extent(5 * CHUNK_BYTES, 1024))[512..], [2; 512]);
}
