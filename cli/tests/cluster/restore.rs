//! The metadata is lost for good and made again from a backup, by the commands of docs/operations.md.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use tidewater_cli::{
    cluster::{Cluster, Seat, wait_until},
    nbd_client::NbdClient,
};
use tidewater_proto::rpc::Durability;

use crate::{
    markdown::{page, sections},
    scene::{HEAL_LIMIT, Scene, three_servers},
    shell::{Background, LIMIT, Shell},
    tool::have,
};

const SEGMENT_BYTES: u64 = 16 << 20;
const SEGMENTS: u64 = 6;
/// Placed before the backup; the others after it.
const PLACED: u64 = 3;
/// Where the page puts data, and the first two addresses that it takes.
const PAGE_SNAPSHOT: &str = "/var/lib/tidewater/m1/snapshots/00000000000000000007";
const PAGE_BACKUP: &str = "/backup/meta";
const PAGE_FOLDER: &str = "/var/lib/tidewater";
const PAGE_ADDRESSES: [&str; 2] = ["127.0.0.1:7401", "127.0.0.1:7402"];

/// What was acknowledged: the last round, by segment.
type Acked = BTreeMap<u64, u64>;

fn block(segment: u64, round: u64) -> Vec<u8> {
    (segment ^ (round << 8)).to_le_bytes().repeat(4096 / 8)
}

fn write(nbd: &mut NbdClient, acked: &mut Acked, segments: std::ops::Range<u64>, round: u64) {
    for segment in segments {
        nbd.write(segment * SEGMENT_BYTES, &block(segment, round), false).expect("written");
        acked.insert(segment, round);
    }
}

fn check(nbd: &mut NbdClient, acked: &Acked) {
    for (&segment, &round) in acked {
        let mut back = vec![0; 4096];
        nbd.read(segment * SEGMENT_BYTES, &mut back).expect("read");
        assert_eq!(back, block(segment, round), "segment {segment}, round {round}");
    }
}

/// Whole snapshots of a meta node.
fn snapshots(folder: &Path) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(folder.join("snapshots")).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.join("meta.json").exists()).collect()
}

/// Has the first meta node make a snapshot that shows all there is now. Returns its folder.
fn make_snapshot(cluster: &mut Cluster) -> PathBuf {
    let folder = cluster.folder().join(Seat::Meta(0).to_string());
    let config = cluster.folder().join(format!("{}.toml", Seat::Meta(0)));
    let mut file = fs::File::options().append(true).open(config).expect("its configuration");
    writeln!(file, "snapshot-entries = 20").expect("written");
    cluster.restart(Seat::Meta(0)).expect("restarted");
    cluster.await_leader().expect("a leader");
    let before = snapshots(&folder);
    for number in 0..40 {
        let name = format!("another-{number}");
        cluster.create_volume(&name, 4096, 1, Durability::Sync).expect("made");
    }
    cluster
        .await_condition("a snapshot", HEAL_LIMIT, |_| {
            let newer = snapshots(&folder).into_iter().any(|snapshot| !before.contains(&snapshot));
            if newer { Ok(()) } else { Err("none".to_owned()) }
        })
        .expect("made");
    folder
}

/// The commands of the page, with this cluster's folders and addresses.
struct Restore {
    shell: Shell,
    /// Folder of the meta node that is backed up.
    node: PathBuf,
    folder: String,
    addresses: Vec<String>,
    running: Vec<Background>,
}

impl Restore {
    /// Copies a snapshot. One that goes while it is copied is no backup, so the next one is taken.
    fn back_up(&mut self, text: &str) {
        let backup = Path::new(&self.folder).join("backup");
        wait_until("a whole copy", LIMIT, || {
            if backup.exists() {
                fs::remove_dir_all(&backup).expect("removed");
            }
            let code = self.shell.code_of(&self.ours(text));
            let whole = code == Some(0) && backup.join("meta.json").exists();
            if whole { Ok(()) } else { Err(format!("exit code {code:?}")) }
        })
        .unwrap_or_else(|error| panic!("{error}\n{}", self.shell.printed()));
    }

    fn ours(&self, text: &str) -> String {
        // The one before goes when there is another.
        let snapshot = snapshots(&self.node).pop_last().unwrap_or_default();
        let text = text
            .replace(PAGE_SNAPSHOT, snapshot.to_str().expect("UTF-8"))
            .replace(PAGE_BACKUP, &format!("{}/backup", self.folder))
            .replace(PAGE_FOLDER, &self.folder);
        let place = |text: String, (theirs, ours): (&&str, &String)| text.replace(*theirs, ours);
        PAGE_ADDRESSES.iter().zip(&self.addresses).fold(text, place)
    }

    fn run(&mut self, text: &str) {
        if text.contains(" run ") {
            self.running.push(self.shell.start(&self.ours(text)));
            return;
        }
        // What it needs has just been started.
        wait_until(text, LIMIT, || match self.shell.code_of(&self.ours(text)) {
            Some(0) => Ok(()),
            other => Err(format!("exit code {other:?}")),
        })
        .unwrap_or_else(|error| panic!("{error}\n{}", self.shell.printed()));
    }
}

#[test]
fn a_cluster_restored_from_a_backup_goes_on_with_all_that_was_acknowledged_since() {
    if !have(&["bash", "cp"]) {
        return;
    }
    let mut scene = Scene::start(three_servers(SEGMENT_BYTES), SEGMENTS * SEGMENT_BYTES);
    let (mut nbd, mut acked) = (scene.nbd(), Acked::new());
    write(&mut nbd, &mut acked, 0..PLACED, 1);
    let node = make_snapshot(&mut scene.cluster);
    let title = "Backup and restore of the metadata";
    let section = sections(&page("docs/operations.md")).into_iter().find(|s| s.title == title);
    let mut commands = section.expect("on the page").commands.into_iter().map(|shown| shown.text);
    let folder = scene.cluster.folder().to_str().expect("UTF-8").to_owned();
    let mut shell = Shell::new(scene.cluster.folder());
    let addresses = scene.cluster.endpoints().to_vec();
    shell.set("TIDEWATER_ENDPOINT", addresses.join(","));
    let mut restore = Restore { shell, node, folder, addresses, running: Vec::new() };
    restore.back_up(&commands.next().expect("the copy"));

    // What the backup does not know: newer data, segments, epochs, sets and tokens.
    write(&mut nbd, &mut acked, 0..PLACED + 1, 2);
    let away = Seat::Chunkserver(1);
    scene.cluster.kill(away).expect("killed");
    write(&mut nbd, &mut acked, 0..PLACED + 1, 3);
    scene.cluster.restart(away).expect("restarted");
    scene.await_full_redundancy();
    scene.cluster.restart(scene.gateway).expect("attached again");
    let mut nbd = scene.nbd();
    write(&mut nbd, &mut acked, PLACED..SEGMENTS, 4);
    let known = scene.cluster.segments(scene.volume).expect("listed");

    // The metadata is gone; what is open goes on.
    for meta in (0..scene.cluster.spec().metas).map(Seat::Meta) {
        scene.cluster.kill(meta).expect("killed");
        fs::remove_dir_all(scene.cluster.folder().join(meta.to_string())).expect("removed");
    }
    write(&mut nbd, &mut acked, 0..SEGMENTS, 5);
    for text in commands {
        if text.contains("finish-restore") {
            // All servers tell what they hold, so nobody needs to be given up.
            scene.await_full_redundancy();
            let now = scene.cluster.segments(scene.volume).expect("listed");
            assert_eq!(now.len(), SEGMENTS as usize, "segments placed later are taken over");
            for (before, now) in known.iter().zip(&now) {
                let raised = now.epoch > before.epoch && now.token > before.token;
                assert!(raised, "{before:?} became {now:?}");
            }
        }
        restore.run(&text);
    }
    scene.cluster.restart(scene.gateway).expect("attached again");
    let mut nbd = scene.nbd();
    check(&mut nbd, &acked);
    write(&mut nbd, &mut acked, 0..SEGMENTS, 6);
    check(&mut nbd, &acked);
}
