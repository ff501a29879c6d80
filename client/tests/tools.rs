//! Real NBD clients against a device in memory. A test whose tool is missing says so and passes,
//! unless `TIDEWATER_REQUIRE_TOOLS=1`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    rc::Rc,
    sync::mpsc,
    thread::JoinHandle,
};

use tidewater_client::{
    MemDevice,
    gateway::{Export, GatewayMetrics, Listeners, Server},
};
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

/// Seconds for one run of a tool.
const TOOL_SECONDS: &str = "60";
const SIZE: u64 = 64 << 20;

fn has_tool(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).any(|dir| dir.join(name).is_file());
    if !found {
        skip(&format!("{name} is not installed"));
    }
    found
}

/// Says why a test is skipped; where nothing may be skipped, it fails.
fn skip(why: &str) {
    let required = env::var_os("TIDEWATER_REQUIRE_TOOLS").is_some();
    assert!(!required, "{why}, and TIDEWATER_REQUIRE_TOOLS is set");
    println!("skipped: {why}");
}

fn run(tool: &str, args: &[&str]) -> Output {
    let output = Command::new("timeout")
        .args([TOOL_SECONDS, tool])
        .args(args)
        .output()
        .expect("coreutils' timeout starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{tool} {args:?}: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr),
    );
    output
}

/// A gateway on a thread of its own, stopped when dropped.
struct Gateway {
    dir: tempfile::TempDir,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Gateway {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let socket = dir.path().join("nbd.sock");
        let stop = CancellationToken::new();
        let stopping = stop.clone();
        let (ready, is_ready) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runs");
            LocalSet::new().block_on(&runtime, async move {
                let listeners = Listeners::bind(&[], &[socket]).await.expect("a socket");
                let exports = vec![Export::new("disk", "in memory", MemDevice::new(SIZE))];
                let server = Rc::new(Server::new(exports, 64, GatewayMetrics::default()));
                ready.send(()).expect("the test waits");
                server.serve(listeners, stopping).await;
            });
        });
        is_ready.recv().expect("the gateway starts");
        Self { dir, stop, thread: Some(thread) }
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///disk?socket={}", self.path("nbd.sock").display())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop.cancel();
        let ended = self.thread.take().expect("started once").join();
        assert!(ended.is_ok() || std::thread::panicking(), "the gateway panicked");
    }
}

/// A file with data, holes and text; its length is no multiple of 4,096.
fn write_image(path: &Path) -> Vec<u8> {
    let mut image = vec![0; 20 << 20];
    let mut state = 1_u64;
    for (i, byte) in image.iter_mut().enumerate() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        if (i >> 20) % 3 != 1 {
            *byte = (state >> 56) as u8;
        }
    }
    fs::write(path, &image).expect("writes");
    image
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn nbdinfo_understands_the_export() {
    if !has_tool("nbdinfo") {
        return;
    }
    let gateway = Gateway::start();
    let info = String::from_utf8(run("nbdinfo", &[&gateway.uri()]).stdout).expect("UTF-8");
    for part in ["export-size: 67108864", "can_multi_conn: true", "base:allocation", "in memory"] {
        assert!(info.contains(part), "{part:?} is not in\n{info}");
    }
    let list = gateway.uri().replace("/disk", "/");
    run("nbdinfo", &["--list", &list]);
    let map = String::from_utf8(run("nbdinfo", &["--map", &gateway.uri()]).stdout).expect("UTF-8");
    assert!(map.contains("hole,zero"), "{map}");
}

#[test]
fn nbdcopy_brings_an_image_in_and_out_unchanged() {
    if !has_tool("nbdcopy") {
        return;
    }
    let gateway = Gateway::start();
    let (image, back) = (gateway.path("image"), gateway.path("back"));
    let data = write_image(&image);
    run("nbdcopy", &["--connections=4", "--flush", text(&image), &gateway.uri()]);
    run("nbdcopy", &[&gateway.uri(), text(&back)]);
    let back = fs::read(&back).expect("reads");
    assert_eq!(back.len() as u64, SIZE);
    assert!(back[..data.len()] == data, "the image came back changed");
    assert!(back[data.len()..].iter().all(|&b| b == 0));
}

#[test]
fn qemu_img_converts_compares_and_maps() {
    if !has_tool("qemu-img") {
        return;
    }
    let gateway = Gateway::start();
    let image = gateway.path("image");
    write_image(&image);
    fs::File::options().write(true).open(&image).and_then(|f| f.set_len(SIZE)).expect("grows");
    let uri = gateway.uri();
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", text(&image), &uri]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&image), &uri]);
    let map = run("qemu-img", &["map", "-f", "raw", "--output=json", &uri]).stdout;
    let map = String::from_utf8(map).expect("UTF-8");
    assert!(map.contains("\"data\": true") && map.contains("\"zero\": true"), "{map}");
}

#[test]
fn fio_verifies_what_it_wrote() {
    if !has_tool("fio") {
        return;
    }
    let engines = String::from_utf8(run("fio", &["--enghelp"]).stdout).expect("UTF-8");
    if !engines.split_whitespace().any(|e| e == "nbd") {
        skip("fio is built without its nbd engine");
        return;
    }
    let gateway = Gateway::start();
    let uri = format!("--uri={}", gateway.uri());
    run(
        "fio",
        &[
            "--name=verify",
            "--ioengine=nbd",
            &uri,
            "--rw=randrw",
            "--bs=4k",
            "--iodepth=32",
            "--size=16m",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
        ],
    );
}
