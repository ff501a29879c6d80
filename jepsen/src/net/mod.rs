//! A network for one cluster: a namespace for each process, joined by a bridge on which the clients
//! are, and faults between them.
//!
//! ```text
//! namespace meta-1: eth0 10.213.x.11 ┐
//! namespace chunkserver-1: eth0 ...  ┼── bridge 10.213.x.1 (clients and the harness)
//! ```
//!
//! Packets are dropped by nftables where they come in, so one direction can be cut alone; rates are
//! limited by a token bucket where they go out. Everything carries the process id of its owner in its
//! name, goes when the owner drops it, and is swept by the next owner if this one was killed.

mod command;
mod rules;

use std::{collections::BTreeMap, net::Ipv4Addr, path::Path, sync::Mutex};

use tidewater_cli::cluster::{Host, Seat};

pub use command::NetError;
use command::{run, run_with_input};
use rules::Rules;

/// Begin of every name that is made here; the owner's process id follows.
const PREFIX: &str = "twj";
/// Where `ip netns` keeps namespaces.
const NAMESPACES: &str = "/run/netns";
/// Bytes that may leave at once whatever the rate; a frame of 64 KiB has to fit.
const BURST_BYTES: u32 = 128 << 10;

/// A network, until it is dropped.
pub struct Net {
    hosts: BTreeMap<Seat, NetHost>,
}

struct NetHost {
    namespace: String,
    address: Ipv4Addr,
    /// What is dropped here. A lock because faults come from whoever has the network.
    rules: Mutex<Rules>,
}

/// Whether networks can be made here; the reason if not.
///
/// # Errors
///
/// For people.
pub fn can_cut() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("network namespaces need root".to_owned());
    }
    for program in ["ip", "nft", "tc", "nsenter"] {
        run(&[program, if program == "tc" || program == "ip" { "-V" } else { "--version" }])
            .map_err(|error| format!("{error}; `make test` installs what is missing as root"))?;
    }
    Net::new([]).map(drop).map_err(|error| error.to_string())
}

impl Net {
    /// A network with a namespace for each of `seats`.
    ///
    /// # Errors
    ///
    /// [`NetError`]; whatever was made is removed.
    pub fn new(seats: impl IntoIterator<Item = Seat>) -> Result<Self, NetError> {
        sweep();
        let owner = std::process::id();
        let bridge = format!("{PREFIX}{owner}");
        let subnet = (owner % 250) as u8;
        let mut net = Self { hosts: BTreeMap::new() };
        run(&["ip", "link", "add", &bridge, "type", "bridge"])?;
        run(&["ip", "addr", "add", &format!("10.213.{subnet}.1/24"), "dev", &bridge])?;
        run(&["ip", "link", "set", &bridge, "up"])?;
        for (at, seat) in (0_u8..).zip(seats) {
            let namespace = format!("{bridge}-{at}");
            let address = Ipv4Addr::new(10, 213, subnet, 11 + at);
            // Known before it is made, so that a failure on the way removes it.
            let rules = Mutex::default();
            net.hosts.insert(seat, NetHost { namespace: namespace.clone(), address, rules });
            join(&bridge, &namespace, address, at)?;
        }
        Ok(net)
    }

    /// Where each process belongs, for the cluster's specification.
    pub fn hosts(&self) -> BTreeMap<Seat, Host> {
        let host = |host: &NetHost| Host {
            address: host.address.into(),
            namespace: Some(Path::new(NAMESPACES).join(&host.namespace)),
        };
        self.hosts.iter().map(|(seat, at)| (*seat, host(at))).collect()
    }

    /// `seat` hears nothing of `others` any more; they may still hear it.
    ///
    /// # Errors
    ///
    /// [`NetError`].
    pub fn block(
        &self,
        seat: Seat,
        others: impl IntoIterator<Item = Seat>,
    ) -> Result<(), NetError> {
        let from: Vec<_> = others
            .into_iter()
            .filter_map(|other| self.hosts.get(&other).map(|host| host.address))
            .collect();
        self.change(seat, |rules| rules.deaf_to.extend(from))
    }

    /// Part of the packets to `seat` are lost, percent.
    ///
    /// # Errors
    ///
    /// [`NetError`].
    pub fn lose(&self, seat: Seat, percent: u8) -> Result<(), NetError> {
        self.change(seat, |rules| rules.loss_percent = percent)
    }

    /// `seat` sends no faster than this, kbit/s.
    ///
    /// # Errors
    ///
    /// [`NetError`].
    pub fn slow(&self, seat: Seat, kbit: u32) -> Result<(), NetError> {
        let Some(host) = self.hosts.get(&seat) else { return Ok(()) };
        let (rate, burst) = (format!("{kbit}kbit"), BURST_BYTES.to_string());
        run(&[
            "tc",
            "-n",
            &host.namespace,
            "qdisc",
            "replace",
            "dev",
            "eth0",
            "root",
            "tbf",
            "rate",
            &rate,
            "burst",
            &burst,
            "latency",
            "400ms",
        ])
    }

    /// Takes every fault back.
    ///
    /// # Errors
    ///
    /// [`NetError`].
    pub fn heal(&self) -> Result<(), NetError> {
        for (seat, host) in &self.hosts {
            self.change(*seat, |rules| *rules = Rules::default())?;
            // Replaced by the default, so that there is no error where there was no limit.
            run(&[
                "tc",
                "-n",
                &host.namespace,
                "qdisc",
                "replace",
                "dev",
                "eth0",
                "root",
                "pfifo",
            ])?;
        }
        Ok(())
    }

    fn change(&self, seat: Seat, change: impl FnOnce(&mut Rules)) -> Result<(), NetError> {
        let Some(host) = self.hosts.get(&seat) else { return Ok(()) };
        let text = {
            let mut rules = host.rules.lock().expect("no panic while held");
            change(&mut rules);
            rules.text()
        };
        let namespace = format!("--net={NAMESPACES}/{}", host.namespace);
        run_with_input(&["nsenter", &namespace, "nft", "-f", "-"], &text)
    }
}

/// Makes a namespace whose `eth0` is on the bridge.
fn join(bridge: &str, namespace: &str, address: Ipv4Addr, at: u8) -> Result<(), NetError> {
    let outside = format!("{bridge}v{at}");
    run(&["ip", "netns", "add", namespace])?;
    run(&[
        "ip", "link", "add", &outside, "type", "veth", "peer", "name", "eth0", "netns", namespace,
    ])?;
    run(&["ip", "link", "set", &outside, "master", bridge, "up"])?;
    run(&["ip", "-n", namespace, "addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
    run(&["ip", "-n", namespace, "link", "set", "lo", "up"])?;
    run(&["ip", "-n", namespace, "link", "set", "eth0", "up"])
}

/// Removes the network of `owner`, as far as it is there.
fn remove(owner: u32) {
    let bridge = format!("{PREFIX}{owner}");
    // The cables go with their namespaces.
    for namespace in namespaces().filter(|name| owner_of(name) == Some(owner)) {
        report(run(&["ip", "netns", "delete", &namespace]));
    }
    if Path::new("/sys/class/net").join(&bridge).exists() {
        report(run(&["ip", "link", "delete", &bridge]));
    }
}

fn report(result: Result<(), NetError>) {
    if let Err(error) = result {
        eprintln!("cannot remove a network: {error}");
    }
}

fn names(folder: &str) -> impl Iterator<Item = String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

fn namespaces() -> impl Iterator<Item = String> {
    names(NAMESPACES)
}

/// The process id in a name that was made here.
fn owner_of(name: &str) -> Option<u32> {
    let rest = name.strip_prefix(PREFIX)?;
    let digits = rest.split_once(['-', 'v']).map_or(rest, |(digits, _)| digits);
    digits.parse().ok()
}

/// Removes the networks of owners that are gone.
pub fn sweep() {
    let owners = namespaces().chain(names("/sys/class/net")).filter_map(|name| owner_of(&name));
    let gone = |owner: &u32| !Path::new("/proc").join(owner.to_string()).exists();
    for owner in owners.filter(gone).collect::<std::collections::BTreeSet<_>>() {
        remove(owner);
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        remove(std::process::id());
    }
}
