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

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use tidewater_cli::cluster::{Host, Seat};

pub use command::NetError;
use command::{run, run_with_input};
use rules::Rules;

/// Begin of every name that is made here. The owner's process id follows, then `x` and which of its
/// networks it is; then `-` and a number for a namespace, `v` and the number for its cable.
const PREFIX: &str = "twj";
/// Where `ip netns` keeps namespaces.
const NAMESPACES: &str = "/run/netns";
/// Where the kernel shows network devices.
const LINKS: &str = "/sys/class/net";
/// Bytes that may leave at once whatever the rate; a frame of 64 KiB has to fit.
const BURST_BYTES: u32 = 128 << 10;

/// Networks that this process made.
static MADE: AtomicU32 = AtomicU32::new(0);

/// A network, until it is dropped.
pub struct Net {
    /// Of the bridge; begin of all other names.
    name: String,
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
        let (owner, serial) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let bridge = format!("{PREFIX}{owner}x{serial}");
        let subnet = (owner.wrapping_add(serial) % 250) as u8;
        let mut net = Self { name: bridge.clone(), hosts: BTreeMap::new() };
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

/// Removes a network, as far as it is there.
fn remove(name: &str) {
    // The cables go with their namespaces.
    for namespace in namespaces().filter(|namespace| net_of(namespace) == Some(name)) {
        report(run(&["ip", "netns", "delete", &namespace]));
    }
    if Path::new(LINKS).join(name).exists() {
        report(run(&["ip", "link", "delete", name]));
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

/// The network that a name belongs to.
fn net_of(name: &str) -> Option<&str> {
    let end = name.find(['-', 'v']).unwrap_or(name.len());
    owner_of(&name[..end]).map(|_| &name[..end])
}

/// The process that made a network.
fn owner_of(net: &str) -> Option<u32> {
    net.strip_prefix(PREFIX)?.split_once('x')?.0.parse().ok()
}

/// Removes the networks of owners that are gone.
pub fn sweep() {
    let all: Vec<_> = namespaces().chain(names(LINKS)).collect();
    let gone = |net: &&str| {
        owner_of(net).is_some_and(|owner| !Path::new("/proc").join(owner.to_string()).exists())
    };
    let left: BTreeSet<_> = all.iter().filter_map(|name| net_of(name)).filter(gone).collect();
    left.into_iter().for_each(remove);
}

impl Drop for Net {
    fn drop(&mut self) {
        remove(&self.name);
    }
}
