//! What an operator sees of a working cluster: metrics of every process, and a hand-over under I/O.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use tidewater_cli::cluster::{Cluster, Seat, wait_until};
use tidewater_proto::rpc;

use crate::scene::{Scene, four_servers};

const ANSWER_LIMIT: Duration = Duration::from_secs(30);

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(ANSWER_LIMIT)).expect("settable");
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer to its end");
    text
}

/// A figure without labels, as a process of the cluster shows it.
pub(crate) fn metric(cluster: &Cluster, seat: Seat, name: &str) -> f64 {
    let named = |text: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.trim().parse().ok())
    };
    // The port answers before the process serves, with less.
    let shown = wait_until(name, ANSWER_LIMIT, || {
        let text = get(cluster.metrics_address(seat), "/metrics");
        named(&text).ok_or(text)
    });
    shown.unwrap_or_else(|error| panic!("{seat}: {error}"))
}

fn start() -> Scene {
    Scene::start(four_servers(64 << 20), 64 << 20)
}

#[test]
fn every_process_serves_its_metrics() {
    let scene = start();
    let (cluster, gateway) = (&scene.cluster, scene.gateway);
    let mut nbd = scene.nbd();
    nbd.write(0, &[1; 4096], false).expect("written");
    let segment = cluster.segments(scene.volume).expect("listed").remove(0);
    let primary = segment.members.iter().find(|m| m.replica == segment.primary).expect("a member");
    for seat in cluster.seats() {
        let named = match seat {
            Seat::Meta(_) => "tidewater_segments{state=\"placed\"} 1",
            Seat::Chunkserver(_) => "tidewater_shard_ops_total{op=\"write\"}",
            Seat::Gateway(_) => {
                "tidewater_volume_ops_total{volume=\"v\",program=\"nbd\",op=\"write\"} 1"
            }
        };
        // The port answers before the process serves, with less.
        let told = wait_until(named, ANSWER_LIMIT, || {
            let text = get(cluster.metrics_address(seat), "/metrics");
            assert!(text.starts_with("HTTP/1.1 200 "), "{seat}: {text}");
            if text.contains(named) { Ok(text) } else { Err(text) }
        });
        let text = told.unwrap_or_else(|error| panic!("{seat}: {error}"));
        let leads = matches!(seat, Seat::Chunkserver(_))
            && cluster.server_run(seat).expect("up").server == primary.server;
        if leads {
            let busy =
                text.lines().find_map(|l| l.strip_prefix("tidewater_shard_busy_seconds_total "));
            let busy: f64 = busy.and_then(|value| value.parse().ok()).expect("a number");
            assert!(busy > 0.0, "{text}");
            for line in [
                "tidewater_program_ops_total{program=\"nbd\",volume=\"v1\",op=\"write\"} 1",
                "tidewater_program_bytes_total{program=\"nbd\",volume=\"v1\",op=\"write\"} 4096",
                "tidewater_program_io_duration_seconds_count{program=\"nbd\",volume=\"v1\",op=\"write\"} 1",
            ] {
                assert!(text.lines().any(|l| l == line), "{seat}: {line} is not in\n{text}");
            }
        }
    }
    assert!(get(cluster.metrics_address(gateway), "/").starts_with("HTTP/1.1 404 "));
}

#[test]
fn a_primary_moves_where_it_is_told_and_io_goes_on() {
    let scene = start();
    let (cluster, volume) = (&scene.cluster, scene.volume);
    let mut nbd = scene.nbd();
    nbd.write(0, &[1; 4096], false).expect("written");
    let before = cluster.segments(volume).expect("listed").remove(0);
    let to = before.members.iter().find(|m| m.replica != before.primary).expect("a secondary");
    let request = rpc::MovePrimaryRequest {
        volume,
        index: 0,
        to_server: to.server,
        actor: "test".to_owned(),
    };
    let moved = cluster.block_on(cluster.control().move_primary(request)).expect("moved");
    assert_eq!(moved.primary, to.replica);
    assert!(moved.epoch > before.epoch);
    let mut back = [0; 4096];
    nbd.read(0, &mut back).expect("read");
    assert_eq!(back, [1; 4096]);
    nbd.write(4096, &[2; 4096], false).expect("written");
}
