//! A leader of the metadata that stood still while another was elected does not tell what is past.

use std::time::Duration;

use tidewater_cli::cluster::{Cluster, ClusterSpec, Seat};
use tidewater_proto::rpc::{self, Durability, meta_client::MetaClient};
use tokio::task::JoinSet;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::scene::HEAL_LIMIT;

/// Times that a leader is deposed: when it wakes, what it hears first is open.
const ROUNDS: u32 = 4;
/// Questions that wait for a node when it wakes, of each kind.
const QUESTIONS: usize = 16;
/// While it stands still it answers nothing; a moment in which that is looked at.
const MOMENT: Duration = Duration::from_millis(300);
/// A node that has been woken answers by then.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// What a node said of a volume's name: whether the volume is there under it.
type Answers = JoinSet<(&'static str, Result<bool, Status>)>;

/// Asks one node, and nobody else, many times whether there is a volume of this name.
fn ask(channel: &Channel, name: &str) -> Answers {
    let mut answers = Answers::new();
    for _ in 0..QUESTIONS {
        let (mut client, name) = (MetaClient::new(channel.clone()), name.to_owned());
        let request = rpc::GetVolumeRequest { name: name.clone() };
        answers.spawn(async move {
            let found = match client.get_volume(request).await {
                Ok(_) => Ok(true),
                Err(status) if status.code() == tonic::Code::NotFound => Ok(false),
                Err(status) => Err(status),
            };
            ("get-volume", found)
        });
        let mut client = MetaClient::new(channel.clone());
        answers.spawn(async move {
            let listed = client.list_volumes(rpc::ListVolumesRequest { trash: false }).await;
            let named =
                |reply: &rpc::ListVolumesReply| reply.volumes.iter().any(|v| v.name == name);
            ("list-volumes", listed.map(|reply| named(reply.get_ref())))
        });
    }
    answers
}

/// Until another node than `old` leads.
fn await_successor(cluster: &mut Cluster, old: Seat) {
    let next = cluster.await_condition("another leader", HEAL_LIMIT, |cluster| {
        cluster.leader().filter(|seat| *seat != old).ok_or_else(|| "none yet".to_owned())
    });
    next.expect("elected");
}

#[test]
fn a_leader_that_was_deposed_while_it_stood_still_refuses_or_tells_the_newer_state() {
    let spec = ClusterSpec { chunkservers: 0, ..ClusterSpec::default() };
    let mut cluster = Cluster::start(spec).expect("the cluster starts");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    cluster.create_volume("v0", 4096, 1, Durability::Sync).expect("made");
    let (mut refused, mut newer) = (0, 0);
    for round in 0..ROUNDS {
        let (old, new) = (format!("v{round}"), format!("v{}", round + 1));
        let leader = cluster.await_leader().expect("a leader");
        let Seat::Meta(index) = leader else { panic!("{leader} leads") };
        let address = format!("http://{}", cluster.endpoints()[index]);
        let channel = runtime.block_on(async {
            let channel = Endpoint::from_shared(address).expect("an address").connect_lazy();
            let mut before = ask(&channel, &old);
            while let Some(answer) = before.join_next().await {
                let (question, answer) = answer.expect("asked");
                assert!(answer.expect("it leads"), "{question}: {old} is not there");
            }
            channel
        });

        cluster.pause(leader).expect("paused");
        await_successor(&mut cluster, leader);
        let rename = rpc::RenameVolumeRequest { name: old.clone(), to: new };
        cluster.block_on(cluster.control().rename_volume(rename)).expect("renamed");
        // The questions wait for it when it wakes, before it has heard that it does not lead.
        let mut answers = runtime.block_on(async {
            let mut answers = ask(&channel, &old);
            let early = tokio::time::timeout(MOMENT, answers.join_next()).await;
            assert!(early.is_err(), "a node that stands still answers: {early:?}");
            answers
        });
        cluster.resume(leader).expect("resumed");
        runtime.block_on(async {
            let all = async {
                while let Some(answer) = answers.join_next().await {
                    match answer.expect("asked") {
                        (question, Ok(true)) => panic!("{question} tells what is past: {old}"),
                        (_, Ok(false)) => newer += 1,
                        (_, Err(_)) => refused += 1,
                    }
                }
            };
            tokio::time::timeout(ANSWER_LIMIT, all).await.expect("it answers when it is woken");
        });
    }
    println!("{refused} questions refused, {newer} answered with the newer state");
    assert_eq!(refused + newer, 2 * QUESTIONS * ROUNDS as usize);
}
