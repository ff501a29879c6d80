//! A network of namespaces: cuts, and what is left behind.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use tidewater_cli::cluster::Seat;
use tidewater_jepsen::net::{Net, can_cut, sweep};

const A: Seat = Seat::Meta(0);
const B: Seat = Seat::Meta(1);
const C: Seat = Seat::Chunkserver(0);

/// Whether networks can be made; a test that needs one says why it is skipped.
fn is_possible() -> bool {
    let Err(why) = can_cut() else { return true };
    let required = std::env::var_os("TIDEWATER_REQUIRE_TOOLS").is_some();
    assert!(!required, "{why}, and TIDEWATER_REQUIRE_TOOLS is set");
    eprintln!("skipped: {why}");
    false
}

/// How `timeout` ends what took too long.
const TIMED_OUT: i32 = 124;

/// Whether `from` hears back from `to`: no port is open there, so what it hears is a refusal, at once.
fn hears_back(net: &Net, from: Seat, to: Seat) -> bool {
    let hosts = net.hosts();
    let namespace = hosts[&from].namespace.as_ref().expect("in a namespace");
    let connect = format!("exec 3<>/dev/tcp/{}/9", hosts[&to].address);
    let status = Command::new("nsenter")
        .arg(format!("--net={}", namespace.display()))
        .args(["timeout", "1", "bash", "-c", &connect])
        .stderr(Stdio::null())
        .status()
        .expect("nsenter runs");
    status.code() != Some(TIMED_OUT)
}

#[test]
fn a_network_cuts_what_it_is_told_and_leaves_nothing_behind() {
    if !is_possible() {
        return;
    }
    let net = Net::new([A, B, C]).expect("a network");
    let pairs = [(A, B), (B, A), (A, C), (C, A), (B, C), (C, B)];
    assert!(pairs.iter().all(|&(from, to)| hears_back(&net, from, to)), "whole at first");
    net.block(A, [B]).expect("cut");
    assert!(!hears_back(&net, A, B) && !hears_back(&net, B, A), "either way, an answer is lost");
    assert!(hears_back(&net, A, C) && hears_back(&net, C, B), "others are not touched");
    net.lose(C, 100).expect("lossy");
    assert!(!hears_back(&net, B, C), "everything is lost");
    net.slow(B, 1000).expect("slow");
    net.heal().expect("healed");
    assert!(pairs.iter().all(|&(from, to)| hears_back(&net, from, to)), "whole again");
    let namespaces: Vec<_> = net.hosts().into_values().filter_map(|host| host.namespace).collect();
    assert!(namespaces.iter().all(|path| path.exists()));
    drop(net);
    assert!(!namespaces.iter().any(|path| path.exists()), "{namespaces:?}");
}

#[test]
fn what_a_killed_owner_left_behind_is_swept() {
    if !is_possible() {
        return;
    }
    let mut owner = Command::new("true").spawn().expect("it runs");
    owner.wait().expect("it ends");
    let net = format!("twj{}x0", owner.id());
    let ip = |args: &[&str]| {
        let status = Command::new("ip").args(args).status().expect("ip runs");
        assert!(status.success(), "{args:?}");
    };
    ip(&["netns", "add", &format!("{net}-0")]);
    ip(&["link", "add", &net, "type", "bridge"]);
    let (namespace, link) = (format!("/run/netns/{net}-0"), format!("/sys/class/net/{net}"));
    assert!(Path::new(&namespace).exists() && Path::new(&link).exists());
    sweep();
    assert!(!Path::new(&namespace).exists() && !Path::new(&link).exists());
}
