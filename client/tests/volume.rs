//! A volume over a cluster that misbehaves on purpose.

mod fake;
mod raw;

use std::{future::Future, net::SocketAddr, time::Duration};

use fake::{A, B, Fake, Mischief, SIZE};
use raw::{Client, WRITE};
use tidewater_client::{
    BlockDevice as _, BlockDeviceExt as _, Cluster, Io, Kind, Mode, Open, Outcome,
    device::contract,
    gateway::{ExportConfig, Gateway, GatewayConfig, GatewayError, GatewayMetrics, Listeners},
};
use tidewater_proto::{ids::Token, rpc};
use tokio::{
    io::AsyncReadExt as _,
    sync::oneshot,
    task::LocalSet,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(15);

async fn with_fake<F: Future<Output = ()>>(test: impl FnOnce(Fake) -> F) {
    LocalSet::new()
        .run_until(async {
            let test = test(Fake::start().await);
            timeout(DEADLINE, test).await.expect("the test ends in time");
        })
        .await;
}

fn open() -> Open {
    Open::exclusive().program("db", "1")
}

#[tokio::test]
async fn volume_keeps_the_contract() {
    with_fake(|fake| async move {
        let volume = fake.open(open()).await;
        contract::check(&volume).await.expect("no errors");
        volume.close().await.expect("flushed and detached");
        assert!(!fake.world().attached);
    })
    .await;
}

#[tokio::test]
async fn a_write_whose_reply_is_lost_is_applied_once() {
    with_fake(|fake| async move {
        let volume = fake.open(open()).await;
        fake.world().mischief = vec![Mischief::LoseReply];
        volume.write_at(0, vec![7; 4096]).await.expect("retried");
        let world = fake.world();
        assert_eq!(world.arrived.len(), 2, "sent twice");
        assert_eq!(world.arrived[0], world.arrived[1], "under one number");
        assert_eq!(world.segments[&0].sequence, 1, "applied once");
    })
    .await;
}

#[tokio::test]
async fn a_segment_that_was_never_written_reads_as_zeroes_and_is_not_placed() {
    with_fake(|fake| async move {
        let volume = fake.open(open()).await;
        assert_eq!(volume.read_at(SIZE - 4096, 4096).await.expect("reads"), vec![0; 4096]);
        volume.discard(0..SIZE).await.expect("nothing to do");
        let runs = volume.extents(0..SIZE).await.expect("known");
        assert_eq!((runs.len(), runs[0].data), (1, false));
        assert!(fake.world().segments.is_empty());
        // What another client places and writes is seen by the next read.
        fake.world().place(3);
        fake.world().segments.get_mut(&3).expect("placed").data.fill(9);
        assert_eq!(volume.read_at(SIZE - 4096, 4096).await.expect("reads"), vec![9; 4096]);
    })
    .await;
}

#[tokio::test]
async fn reads_of_a_hole_ask_meta_once_for_as_long_as_a_lease_lasts() {
    with_fake(|fake| async move {
        fake.world().absent_ms = 60_000;
        let volume = fake.open(open()).await;
        volume.write_at(8 << 20, vec![7; 4096]).await.expect("places segment 2");
        let calls = fake.world().meta_calls;
        for block in 0..64 {
            let read = volume.read_at(block * 4096, 4096).await.expect("reads");
            assert_eq!(read, vec![0; 4096]);
        }
        assert_eq!(volume.read_at(4 << 20, 512).await.expect("reads"), vec![0; 512]);
        assert_eq!(fake.world().meta_calls, calls + 1, "one answer is for both segments");
        assert_eq!(volume.read_at(8 << 20, 4096).await.expect("reads"), vec![7; 4096]);
        // The own write is seen, whatever was believed before it.
        volume.write_at(0, vec![9; 4096]).await.expect("places segment 0");
        assert_eq!(volume.read_at(0, 4096).await.expect("reads"), vec![9; 4096]);
    })
    .await;
}

#[tokio::test]
async fn what_another_client_places_is_seen_once_the_lease_is_over() {
    with_fake(|fake| async move {
        fake.world().absent_ms = 100;
        let volume = fake.open(Open::shared()).await;
        assert_eq!(volume.read_at(0, 512).await.expect("reads"), vec![0; 512]);
        let asked = Instant::now();
        fake.world().place(0);
        fake.world().segments.get_mut(&0).expect("placed").data.fill(9);
        loop {
            let begun = asked.elapsed();
            if volume.read_at(0, 512).await.expect("reads") == vec![9; 512] {
                break;
            }
            assert!(begun < Duration::from_millis(100), "believed for too long: {begun:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_resize_is_seen_by_the_handle_and_what_others_place_without_a_refusal() {
    with_fake(|fake| async move {
        fake.world().absent_ms = 60_000;
        let volume = fake.open(Open::shared()).await;
        assert_eq!(volume.read_at(0, 512).await.expect("reads"), vec![0; 512]);
        let past = volume.write_at(SIZE, vec![1; 512]).await.expect_err("past the end");
        assert_eq!(past.kind, Kind::OutOfRange);
        {
            let mut world = fake.world();
            world.size = 2 * SIZE;
            world.place(0);
            world.segments.get_mut(&0).expect("placed").data.fill(9);
        }
        fake.announce();
        while volume.info().size_bytes != 2 * SIZE {
            tokio::task::yield_now().await;
        }
        volume.write_at(SIZE, vec![1; 512]).await.expect("within the volume now");
        let calls = fake.world().meta_calls;
        assert_eq!(volume.read_at(0, 512).await.expect("reads"), vec![9; 512]);
        assert_eq!(fake.world().meta_calls, calls, "the watch has told where segment 0 is");
    })
    .await;
}

#[tokio::test]
async fn a_moved_primary_is_followed_without_asking_meta() {
    with_fake(|fake| async move {
        let volume = fake.open(open()).await;
        volume.write_at(0, vec![1; 512]).await.expect("placed");
        let calls = {
            let mut world = fake.world();
            world.move_primaries(B);
            world.meta_down = true;
            world.meta_calls
        };
        volume.write_at(0, vec![2; 512]).await.expect("follows");
        assert_eq!(volume.read_at(0, 512).await.expect("reads"), vec![2; 512]);
        assert_eq!(fake.world().meta_calls, calls);
    })
    .await;
}

#[tokio::test]
async fn with_meta_down_placed_segments_go_on_even_when_their_server_dies() {
    with_fake(|fake| async move {
        let volume = fake.open(open()).await;
        volume.write_at(0, vec![1; 512]).await.expect("placed");
        fake.world().move_primaries(B);
        fake.world().meta_down = true;
        fake.kill(A);
        let started = Instant::now();
        volume.write_at(0, vec![2; 512]).await.expect("the other server knows the epoch");
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
        assert_eq!(fake.world().segments[&0].data[..512], [2; 512]);
    })
    .await;
}

#[tokio::test]
async fn a_dead_server_costs_milliseconds_once_meta_knows_the_new_primary() {
    with_fake(|fake| async move {
        let volume = fake.open(open()).await;
        volume.write_at(0, vec![1; 512]).await.expect("placed");
        fake.kill(A);
        fake.world().move_primaries(B);
        let started = Instant::now();
        volume.write_at(0, vec![2; 512]).await.expect("fails over");
        assert!(started.elapsed() < Duration::from_millis(450), "{:?}", started.elapsed());
    })
    .await;
}

#[tokio::test]
async fn a_busy_server_is_asked_again() {
    with_fake(|fake| async move {
        let volume = fake.open(open()).await;
        fake.world().mischief = vec![Mischief::Busy; 3];
        volume.write_at(0, vec![1; 512]).await.expect("at last");
        assert_eq!(volume.stats().retries(), 3);
    })
    .await;
}

#[tokio::test]
async fn damaged_bytes_are_never_handed_out() {
    with_fake(|fake| async move {
        let volume = fake.open(open()).await;
        volume.write_at(0, vec![1; 8192]).await.expect("placed");
        fake.world().mischief = vec![Mischief::Damage];
        assert_eq!(volume.read_at(0, 8192).await.expect("read again"), vec![1; 8192]);
        fake.world().mischief = vec![Mischief::Damage; 10];
        let error = volume.read_at(0, 8192).await.expect_err("given up");
        assert_eq!(error.kind, Kind::Corrupt);
    })
    .await;
}

#[tokio::test]
async fn a_fenced_handle_fails_and_stays_failed() {
    with_fake(|fake| async move {
        let volume = fake.open(open()).await;
        volume.write_at(0, vec![1; 512]).await.expect("placed");
        {
            let mut world = fake.world();
            world.token = Token(6);
            world.attached = false;
        }
        let error = volume.write_at(0, vec![2; 512]).await.expect_err("fenced");
        assert_eq!((error.kind, error.outcome), (Kind::Fenced, Outcome::NotApplied));
        let calls = fake.world().meta_calls;
        let error = volume.read_at(0, 512).await.expect_err("fails fast");
        assert_eq!((error.kind, fake.world().meta_calls), (Kind::Fenced, calls));
    })
    .await;
}

#[tokio::test]
async fn a_handle_that_stays_attached_takes_the_raised_token() {
    with_fake(|fake| async move {
        let volume = fake.open(Open::shared()).await;
        volume.write_at(0, vec![1; 512]).await.expect("placed");
        fake.world().token = Token(6);
        volume.write_at(0, vec![2; 512]).await.expect("goes on");
    })
    .await;
}

#[tokio::test]
async fn time_over_is_an_error_with_an_open_outcome() {
    with_fake(|fake| async move {
        let volume = fake.open(open().io_timeout(Duration::from_millis(700))).await;
        fake.world().mischief = vec![Mischief::Ignore; 100];
        let error = volume.write_at(0, vec![1; 512]).await.expect_err("never answered");
        assert_eq!((error.kind, error.outcome), (Kind::TimedOut, Outcome::Unknown));
    })
    .await;
}

#[tokio::test]
async fn a_server_that_is_silent_once_is_asked_again() {
    with_fake(|fake| async move {
        let volume = fake.open(open()).await;
        fake.world().mischief = vec![Mischief::Ignore];
        volume.write_at(0, vec![1; 512]).await.expect("asked again");
        assert_eq!(fake.world().segments[&0].sequence, 1);
    })
    .await;
}

#[tokio::test]
async fn a_dropped_write_runs_on() {
    with_fake(|fake| async move {
        let volume = fake.open(open()).await;
        volume.write_at(0, vec![1; 512]).await.expect("placed");
        let data = vec![2; 3 << 20].into();
        drop(volume.try_submit(Io::Write { offset: 0, data, fua: false }).expect("room"));
        volume.close().await.expect("drained and detached");
        let world = fake.world();
        assert!(world.segments[&0].data[..3 << 20].iter().all(|&b| b == 2), "torn");
    })
    .await;
}

#[tokio::test]
async fn a_full_queue_is_busy_for_try_submit_and_makes_submit_wait() {
    with_fake(|fake| async move {
        let volume = fake.open(open().queue_depth(1)).await;
        volume.write_at(0, vec![1; 512]).await.expect("placed");
        fake.world().mischief = vec![Mischief::Ignore];
        let io = Io::Read { offset: 0, len: 512 };
        let slow = volume.try_submit(io.clone()).expect("room");
        let busy = volume.try_submit(io.clone()).err().expect("no room");
        assert_eq!((busy.kind, busy.outcome), (Kind::Busy, Outcome::NotApplied));
        let (slow, waited) = futures::join!(slow, volume.submit(io));
        assert!(slow.is_ok() && waited.is_ok());
    })
    .await;
}

#[tokio::test]
async fn a_flush_tells_once_that_an_acknowledged_write_was_lost() {
    with_fake(|fake| async move {
        fake.world().durability = rpc::Durability::Flush;
        let volume = fake.open(open()).await;
        volume.write_at(0, vec![1; 512]).await.expect("acknowledged");
        fake.world().mischief = vec![Mischief::LoseWrite];
        let error = volume.flush().await.expect_err("lost");
        assert_eq!(error.kind, Kind::Lost);
        volume.flush().await.expect("nothing is left to flush");
        fake.world().mischief = vec![];
        volume.write_at_fua(0, vec![2; 512]).await.expect("durable");
    })
    .await;
}

#[tokio::test]
async fn an_unreachable_cluster_is_an_error_in_time() {
    let cluster = Cluster::builder()
        .endpoints(["127.0.0.1:1"])
        .timeout(Duration::from_millis(300))
        .build()
        .expect("has an endpoint");
    let started = Instant::now();
    assert!(cluster.status(rpc::StatusRequest {}).await.is_err());
    assert!(started.elapsed() < Duration::from_secs(2));
}

/// A gateway on a thread of its own.
struct Running {
    address: SocketAddr,
    metrics: GatewayMetrics,
    stop: CancellationToken,
    ended: oneshot::Receiver<Result<(), GatewayError>>,
}

impl Running {
    async fn start(fake: &Fake) -> Self {
        Self::with_mode(fake, Mode::Exclusive).await
    }

    async fn with_mode(fake: &Fake, mode: Mode) -> Self {
        let export = ExportConfig {
            name: "disk".to_owned(),
            program: "db".to_owned(),
            mode,
            ..ExportConfig::new("vol")
        };
        let gateway = Gateway::new(GatewayConfig {
            endpoints: vec![fake.meta.clone()],
            listen: vec![([127, 0, 0, 1], 0).into()],
            exports: vec![export],
            max_connections: 8,
            ..GatewayConfig::default()
        });
        let gateway = gateway.expect("an export");
        let metrics = gateway.metrics();
        let (ready, is_ready) = oneshot::channel();
        let stop = CancellationToken::new();
        let stopping = stop.clone();
        let (done, ended) = oneshot::channel();
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runs");
            let ready = |listeners: &Listeners| {
                ready.send(listeners.addresses()[0]).expect("the test waits");
            };
            let running = gateway.run(ready, async move { stopping.cancelled().await });
            done.send(runtime.block_on(running)).expect("the test waits");
        });
        let address = is_ready.await.expect("ready");
        Self { address, metrics, stop, ended }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.ended.await.expect("no panic").expect("flushed and detached");
    }
}

#[tokio::test]
async fn a_gateway_serves_a_volume_and_detaches_at_the_end() {
    with_fake(|fake| async move {
        let gateway = Running::start(&fake).await;
        let mut client = Client::connect(gateway.address).await;
        let data: Vec<u8> = (0..3 << 20).map(|i: u32| (i / 512) as u8).collect();
        client.write((4 << 20) - 512, &data).await;
        client.write(5, b"unaligned").await;
        assert!(client.read((4 << 20) - 512, 3 << 20).await == data);
        assert_eq!(client.read(4, 11).await[..], *b"\0unaligned\0");
        let counted = "tidewater_volume_ops_total{volume=\"vol\",program=\"db\",op=\"write\"} 2";
        let text = gateway.metrics.prometheus_text();
        assert!(text.contains(counted), "{text}");
        gateway.stop().await;
        assert!(!fake.world().attached);
    })
    .await;
}

#[tokio::test]
async fn a_volume_that_grows_is_larger_for_new_connections_and_as_before_for_old_ones() {
    with_fake(|fake| async move {
        let gateway = Running::start(&fake).await;
        let mut old = Client::connect(gateway.address).await;
        assert_eq!(old.size_bytes, SIZE);
        fake.world().size = 2 * SIZE;
        fake.announce();
        let mut new = Client::connect(gateway.address).await;
        while new.size_bytes == SIZE {
            new = Client::connect(gateway.address).await;
        }
        assert_eq!(new.size_bytes, 2 * SIZE);
        new.write(SIZE, b"behind the old end").await;
        old.send(WRITE, 1, SIZE, 1, b"x").await;
        let mut reply = [0; 16];
        old.socket.read_exact(&mut reply).await.expect("a reply");
        assert_eq!(reply[4..8], [0, 0, 0, 28], "no space past the end that it was told");
        assert_eq!(new.read(SIZE, 4).await[..], *b"behi");
        gateway.stop().await;
    })
    .await;
}

#[tokio::test]
async fn connections_see_each_other_unless_other_gateways_may_serve_the_volume() {
    const CAN_MULTI_CONN: u16 = 1 << 8;
    for (mode, promised) in [(Mode::Exclusive, true), (Mode::Shared, false), (Mode::ReadOnly, true)]
    {
        with_fake(|fake| async move {
            let gateway = Running::with_mode(&fake, mode).await;
            let client = Client::connect(gateway.address).await;
            assert_eq!(client.flags & CAN_MULTI_CONN != 0, promised, "{mode:?}");
            drop(client);
            gateway.stop().await;
        })
        .await;
    }
}

#[test]
fn a_gateway_refuses_two_exports_of_one_name() {
    let exports = vec![ExportConfig::new("vol"), ExportConfig::new("vol")];
    let config = GatewayConfig { exports, ..GatewayConfig::default() };
    assert!(matches!(Gateway::new(config), Err(GatewayError::SameName { .. })));
}
