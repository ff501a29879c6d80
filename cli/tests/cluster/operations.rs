//! Every command of docs/operations.md is run, section by section in the order of the page: those about
//! servers on a cluster that the page's own commands start, the others on clusters of the harness.

use std::path::Path;

use tidewater_cli::cluster::{Cluster, ClusterSpec, ExportSpec, wait_until};
use tidewater_proto::rpc;

use crate::{
    markdown::{Section, page, sections},
    shell::{Background, LIMIT, Shell, free_port},
    tool::have,
};

const PAGE: &str = "docs/operations.md";
/// As in the page.
const VOLUME: &str = "prod/db-01";
/// `tidewater health` has found something.
const UNHEALTHY: i32 = 6;
/// Where the page puts data, and the ports that it takes: instead of these, those of the test.
const PAGE_FOLDER: &str = "/var/lib/tidewater";
const PAGE_PORTS: [u16; 11] = [7401, 7402, 7403, 7404, 7411, 7412, 7421, 7422, 7431, 7432, 7400];

/// Sections that start servers by hand.
const START: &str = "Starting a cluster by hand";
const REPLACE: &str = "Replacing a meta node";
/// Run on a cluster that has lost its metadata, in `restore`.
const RESTORE: &str = "Backup and restore of the metadata";
const REMOVE: &str = "Removing a chunkserver";
/// Sections for which any cluster will do.
const ON_ANY: [&str; 4] =
    ["Volumes and the trash", "Attachments and take-over", "Programs", "Events"];

/// The sections of the page that show commands.
fn shown() -> Vec<Section> {
    sections(&page(PAGE)).into_iter().filter(|section| !section.commands.is_empty()).collect()
}

fn section(title: &str) -> Vec<String> {
    let found = shown().into_iter().find(|section| section.title == title);
    let commands = found.unwrap_or_else(|| panic!("{PAGE} has no commands in {title:?}")).commands;
    commands.into_iter().map(|shown| shown.text).collect()
}

#[test]
fn every_section_of_the_operations_page_with_commands_is_run() {
    for Section { title, .. } in shown() {
        let by_hand = [START, REPLACE, RESTORE, REMOVE];
        let is_run = by_hand.contains(&title.as_str()) || ON_ANY.contains(&title.as_str());
        assert!(is_run, "no test runs the commands of {title:?}");
    }
}

/// A cluster that grows by the page's commands.
struct ByHand {
    shell: Shell,
    folder: String,
    ports: Vec<(u16, u16)>,
    /// Servers and the commands that started them.
    running: Vec<(String, Background)>,
    chunkservers: usize,
}

impl ByHand {
    fn new(folder: &Path) -> Self {
        Self {
            shell: Shell::new(folder),
            folder: folder.to_str().expect("UTF-8").to_owned(),
            ports: PAGE_PORTS.map(|port| (port, free_port())).into(),
            running: Vec::new(),
            chunkservers: 0,
        }
    }

    /// The command with the test's folder and ports.
    fn ours(&self, text: &str) -> String {
        let moved = text.replace(PAGE_FOLDER, &self.folder);
        let place = |text: String, (theirs, ours): &(u16, u16)| {
            text.replace(&format!("127.0.0.1:{theirs}"), &format!("127.0.0.1:{ours}"))
        };
        self.ports.iter().fold(moved, place)
    }

    fn run(&mut self, title: &str) {
        for text in section(title) {
            self.one(&text);
        }
    }

    fn one(&mut self, text: &str) {
        let ours = self.ours(text);
        if let Some(value) = ours.strip_prefix("export TIDEWATER_ENDPOINT=") {
            self.shell.set("TIDEWATER_ENDPOINT", value);
        } else if ours.contains(" gateway run ") {
            self.running.push((ours.clone(), self.shell.serve(&ours, VOLUME)));
        } else if ours.contains(" run ") {
            let server = self.shell.start(&ours);
            self.running.push((ours, server));
            self.await_new_server(text);
        } else if ours == "tidewater health" {
            self.await_code(&ours, UNHEALTHY);
        } else {
            // What it needs has just been started.
            self.await_code(&ours, 0);
        }
    }

    /// Chunkservers get their ids in the order in which they come.
    fn await_new_server(&mut self, text: &str) {
        if text.contains(" chunkserver run ") {
            self.chunkservers += 1;
            self.await_servers(self.chunkservers);
        }
    }

    /// Ends the servers whose commands have this in them.
    fn stop(&mut self, part: &str) {
        let before = self.running.len();
        self.running.retain(|(text, _)| !text.contains(part));
        assert!(self.running.len() < before, "{part} runs");
    }

    fn await_code(&self, text: &str, wanted: i32) {
        wait_until(text, LIMIT, || match self.shell.code_of(text) {
            Some(code) if code == wanted => Ok(()),
            other => Err(format!("exit code {other:?}")),
        })
        .unwrap_or_else(|error| panic!("{error}\n{}", self.shell.printed()));
    }

    /// Until so many chunkservers are alive.
    fn await_servers(&self, count: usize) {
        let list = "tidewater node list -o jsonl | grep -c '\"alive\":true'";
        self.await_code(&format!("test $({list}) = {count}"), 0);
    }
}

#[test]
fn the_commands_for_servers_start_a_cluster_and_replace_its_parts() {
    if !have(&["bash", "grep"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mut cluster = ByHand::new(folder.path());
    cluster.run(START);
    cluster.run(REPLACE);
    // The server that is going to be removed.
    let meta = "--meta 127.0.0.1:7401,127.0.0.1:7402,127.0.0.1:7403";
    let (control, shard) = (free_port(), free_port());
    cluster.one(&format!(
        "tidewater chunkserver run --data-dir {PAGE_FOLDER}/c4 {meta} \
         --listen 127.0.0.1:{control} --shard-listen 127.0.0.1:{shard} --host d"
    ));
    for text in section(REMOVE) {
        if text == "tidewater health" {
            cluster.stop("/c4 ");
        }
        cluster.one(&text);
    }
    cluster.await_servers(3);
    assert!(cluster.shell.printed().contains("NODE_DOWN"), "health names the server that stopped");
}

#[test]
fn the_commands_for_a_working_cluster_run() {
    if !have(&["bash"]) {
        return;
    }
    for title in ON_ANY {
        let spec = ClusterSpec { metas: 1, chunkservers: 3, ..ClusterSpec::default() };
        let mut cluster = Cluster::start(spec).expect("the cluster starts");
        let mut shell = Shell::new(cluster.folder());
        shell.set("TIDEWATER_ENDPOINT", cluster.endpoints().join(","));
        if title == "Attachments and take-over" {
            cluster.create_volume(VOLUME, 1 << 30, 3, rpc::Durability::Sync).expect("made");
            cluster.add_gateway(&[ExportSpec::exclusive(VOLUME)]).expect("a gateway");
        }
        let mut running = Vec::new();
        for text in section(title) {
            if text.contains(" gateway run ") {
                running.push(shell.serve(&text, VOLUME));
            } else if text.contains(" --watch") {
                shell.watch(&text);
            } else {
                shell.run(&text);
            }
        }
    }
}
