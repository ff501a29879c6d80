//! Copies: deleted on a retired id alone, told to a restored cluster, and answered as lost when they are gone.

use std::rc::Rc;

use tidewater_proto::{
    frame::Frame,
    ids::{Epoch, ReplicaId, ServerId},
    peer::{Envelope, FromPrimary, PeerMessage, Reply, ToPrimary},
    record::SetChange,
};
use tokio::sync::oneshot;

use super::net::{Net, SEGMENT, extent, member};
use crate::shard::{PeerShard, ShardCommand, SimOutlet};

const LARGE: u64 = 256 << 20;
const BYTES: u64 = 16_384;

fn written() -> Net {
    let mut net = Net::new(&[LARGE, LARGE, LARGE], 0);
    assert!(matches!(net.write(extent(0, BYTES), 5), Reply::Done(_)));
    net.run_for(std::time::Duration::from_millis(300));
    net
}

fn has_data(net: &mut Net, server: u64) -> bool {
    net.destage(server);
    net.shard(server).owned.contains_key(&ReplicaId(server))
        && net.content(server, extent(0, BYTES)) == [5; BYTES as usize]
}

#[test]
fn a_copy_is_deleted_when_its_id_is_retired_and_for_nothing_else() {
    let mut net = written();
    // Nobody names the copy any more, as when a watch begins anew on metadata that lost its record.
    net.shard(3).command(ShardCommand::Gone(SEGMENT));
    net.settle();
    assert!(has_data(&mut net, 3), "a copy that is not named was deleted");
    // A record in which it is neither member nor retired.
    net.commit(|r| {
        r.epoch = r.epoch.next();
        r.members.pop();
    });
    assert!(has_data(&mut net, 3), "a copy that left the set was deleted");
    // Another id of the same segment is retired.
    net.shard(3).command(ShardCommand::Retired(SEGMENT, ReplicaId(9)));
    net.settle();
    assert!(has_data(&mut net, 3), "another copy was retired");
    net.stop(ServerId(3));
    net.start(ServerId(3));
    assert!(has_data(&mut net, 3), "it was gone after a restart");
    net.commit(|r| r.retired.push(member(3)));
    net.settle();
    assert!(!net.shard(3).owned.contains_key(&ReplicaId(3)), "a retired copy is still there");
    let deleted = [9, 3].map(|id| (SEGMENT, ReplicaId(id)));
    assert_eq!(net.deleted, deleted, "what is retired is reported as deleted, there or not");
    net.stop(ServerId(3));
    net.start(ServerId(3));
    assert!(!net.shard(3).owned.contains_key(&ReplicaId(3)), "it came back");
}

/// What server 3 answers a primary on server 1 that asks copy `to` how far it is.
fn asked(net: &mut Net, to: ReplicaId) -> Vec<PeerMessage<tidewater_proto::entry::Payload>> {
    let peer = PeerShard { server: ServerId(1), shard: 0 };
    let outlet = SimOutlet::default();
    let connection = net.shard(3).peer_connected(peer);
    net.shard(3).link_up(peer, Rc::new(outlet.clone()));
    let epoch = net.record.epoch;
    let message = FromPrimary::Query.into();
    let query = Envelope { segment: SEGMENT, from: ReplicaId(1), to, epoch, message };
    assert!(net.shard(3).peer_frame(peer, connection, Frame::Peer(query)), "kept");
    net.shard(3).end_turn();
    let mut answers = Vec::new();
    while let Some(frame) = outlet.take() {
        if let Frame::Peer(wire) = frame {
            assert_eq!((wire.from, wire.to), (to, ReplicaId(1)));
            answers.push(wire.message);
        }
    }
    answers
}

#[test]
fn a_server_without_a_copy_that_it_should_have_answers_lost_and_is_silent_about_others() {
    let lost: PeerMessage<_> = ToPrimary::Lost.into();
    let mut net = written();
    assert!(!asked(&mut net, ReplicaId(3)).contains(&lost), "it has the copy");
    net.stop(ServerId(3));
    net.forget(ServerId(3));
    net.start(ServerId(3));
    // Before it has heard of the record it cannot know that it lost anything.
    assert_eq!(asked(&mut net, ReplicaId(3)), []);
    // The record says that the copy was there before: it is not to be made anew.
    net.commit(|r| r.members[2].fresh = false);
    assert_eq!(asked(&mut net, ReplicaId(3)), std::slice::from_ref(&lost));
    assert_eq!(asked(&mut net, ReplicaId(9)), [], "a copy that is not its own");
    assert!(net.shard(3).owned.is_empty(), "an empty copy was made in its place");
    net.await_proposal(SetChange::Lost { replica: ReplicaId(3) });
}

#[test]
fn a_restored_cluster_is_told_of_every_copy_as_it_is() {
    let mut net = written();
    net.commit(|r| r.token.0 = 7);
    net.run_for(std::time::Duration::from_millis(300));
    for server in 1..=3 {
        let (answer, mut told) = oneshot::channel();
        net.shard(server).command(ShardCommand::TellCopies(answer));
        let copies = told.try_recv().expect("answered at once");
        let [copy] = copies.as_slice() else { panic!("server {server} holds one: {copies:?}") };
        let last = net.shard(server).owned[&ReplicaId(server)].replica.last();
        assert!(last.sequence.0 >= 2, "the write is behind the first entry");
        assert_eq!((copy.segment, copy.replica), (SEGMENT, ReplicaId(server)));
        assert_eq!((copy.epoch, copy.last, copy.copying), (Epoch(1), last, false));
        assert_eq!(copy.token.0, 7);
        let record = copy.record.as_ref().expect("it was told");
        assert_eq!((record.revision, record.token.0), (net.record.revision, 7));
    }
    // After a restart nobody has told it anything, but what it promised is on its disk.
    net.stop(ServerId(2));
    net.start(ServerId(2));
    let (answer, mut told) = oneshot::channel();
    net.shard(2).command(ShardCommand::TellCopies(answer));
    let copies = told.try_recv().expect("answered at once");
    assert_eq!(copies.len(), 1);
    assert_eq!((copies[0].epoch, &copies[0].record), (Epoch(1), &None));
}
