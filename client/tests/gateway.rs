//! The gateway over devices in memory, with a client that speaks raw NBD.

mod raw;

use std::{
    future::Future,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, Mutex},
};

use raw::{Client, DEADLINE, READ, WRITE};
use tidewater_client::{
    BlockDevice, BlockDeviceExt as _, BlockError, DeviceInfo, Io, IoDone, MemDevice,
    gateway::{Export, GatewayMetrics, Listeners, Server},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Semaphore,
    task::{LocalSet, spawn_local},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const CACHE: u16 = 5;
const CAN_MULTI_CONN: u16 = 1 << 8;

/// Holds operations at [`GATED`] back until a permit is given; notes flushes.
#[derive(Clone)]
struct Gated {
    inner: MemDevice,
    gate: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    /// What was in the first sector when a flush came.
    flushed: Arc<Mutex<Vec<u8>>>,
}

const GATED: u64 = 1 << 20;

impl Gated {
    fn new() -> Self {
        Self {
            inner: MemDevice::new(64 << 20),
            gate: Arc::new(Semaphore::new(0)),
            waiting: Arc::new(Semaphore::new(0)),
            flushed: Arc::default(),
        }
    }
}

impl BlockDevice for Gated {
    fn info(&self) -> DeviceInfo {
        BlockDevice::info(&self.inner)
    }

    fn submit(&self, io: Io) -> impl Future<Output = Result<IoDone, BlockError>> + Send + 'static {
        let this = self.clone();
        async move {
            if io.range().is_some_and(|(offset, _)| offset == GATED) {
                this.waiting.add_permits(1);
                this.gate.acquire().await.expect("open").forget();
            }
            // A slow device: others run between the read and the write of a read-modify-write.
            tokio::task::yield_now().await;
            if io == Io::Flush {
                let first = this.inner.read_at(0, 512).await?;
                *this.flushed.lock().expect("no panic") = first.to_vec();
            }
            BlockDevice::submit(&this.inner, io).await
        }
    }
}

struct Gateway {
    address: SocketAddr,
    metrics: GatewayMetrics,
    stop: CancellationToken,
}

async fn start<D: BlockDevice>(device: D, max_connections: usize) -> Gateway {
    let exports = vec![Export::new("disk", "in memory", device)];
    start_with(exports, max_connections, GatewayMetrics::default()).await
}

async fn start_with<D: BlockDevice>(
    exports: Vec<Export<D>>,
    max_connections: usize,
    metrics: GatewayMetrics,
) -> Gateway {
    let server = Rc::new(Server::new(exports, max_connections, metrics.clone()));
    let any = "127.0.0.1:0".parse().expect("an address");
    let listeners = Listeners::bind(&[any], &[]).await.expect("a port");
    let address = listeners.addresses()[0];
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    spawn_local(async move { server.serve(listeners, stopping).await });
    Gateway { address, metrics, stop }
}

async fn within(what: &str, work: impl Future<Output = ()>) {
    timeout(DEADLINE, work).await.unwrap_or_else(|_| panic!("{what}: not within {DEADLINE:?}"));
}

#[tokio::test]
async fn a_slow_request_does_not_hold_up_the_next_one() {
    LocalSet::new()
        .run_until(async {
            let device = Gated::new();
            let gateway = start(device.clone(), 8).await;
            let mut client = Client::connect(gateway.address).await;
            assert_eq!(client.size_bytes, 64 << 20);
            client.send(READ, 1, GATED, 512, &[]).await;
            client.send(READ, 2, 0, 512, &[]).await;
            assert_eq!(client.reply(512).await.0, 2, "the later request is answered first");
            device.gate.add_permits(1);
            assert_eq!(client.reply(512).await.0, 1);
        })
        .await;
}

#[tokio::test]
async fn what_a_client_leaves_in_flight_is_done_and_disturbs_nobody() {
    LocalSet::new()
        .run_until(async {
            let device = Gated::new();
            let gateway = start(device.clone(), 8).await;
            let mut leaver = Client::connect(gateway.address).await;
            let mut other = Client::connect(gateway.address).await;
            leaver.send(WRITE, 1, GATED, 512, &[7; 512]).await;
            device.waiting.acquire().await.expect("open").forget();
            drop(leaver);
            other.write(0, &[1; 512]).await;
            device.gate.add_permits(2);
            assert_eq!(other.read(GATED, 512).await, vec![7; 512]);
            drop(other);
            within("all requests end", gateway.metrics.idle()).await;
        })
        .await;
}

#[tokio::test]
async fn a_flush_on_one_connection_covers_writes_completed_on_another() {
    LocalSet::new()
        .run_until(async {
            let device = Gated::new();
            let gateway = start(device.clone(), 8).await;
            let mut writer = Client::connect(gateway.address).await;
            let mut flusher = Client::connect(gateway.address).await;
            assert_ne!(flusher.flags & CAN_MULTI_CONN, 0, "it is promised");
            writer.write(0, &[9; 512]).await;
            flusher.send(FLUSH, 3, 0, 0, &[]).await;
            flusher.reply(0).await;
            assert_eq!(*device.flushed.lock().expect("no panic"), vec![9; 512]);
        })
        .await;
}

#[tokio::test]
async fn unaligned_writes_to_one_sector_are_all_kept() {
    LocalSet::new()
        .run_until(async {
            let gateway = start(Gated::new(), 32).await;
            let writers = (0..16_u8).map(|i| (i, &gateway)).map(|(i, gateway)| async move {
                let mut client = Client::connect(gateway.address).await;
                for j in 0..32_u64 {
                    let at = u64::from(i) * 32 + j;
                    // Every other byte is written together with the whole of the next sector.
                    let len = if j % 2 == 0 { 1 } else { 512 - at as usize + 512 };
                    if len == 1 {
                        client.write(at, &[i + 1]).await;
                    } else {
                        client.write(512, &[i + 1; 512]).await;
                    }
                }
            });
            futures::future::join_all(writers.collect::<Vec<_>>()).await;
            let mut client = Client::connect(gateway.address).await;
            let sector = client.read(0, 512).await;
            let expected: Vec<u8> =
                (0..512).map(|i| if i % 2 == 0 { (i / 32) as u8 + 1 } else { 0 }).collect();
            assert_eq!(sector, expected);
        })
        .await;
}

#[tokio::test]
async fn the_longest_payload_passes_both_ways() {
    LocalSet::new()
        .run_until(async {
            let gateway = start(MemDevice::new(64 << 20), 8).await;
            let mut client = Client::connect(gateway.address).await;
            let data: Vec<u8> = (0..32 << 20).map(|i: u32| (i / 4096) as u8).collect();
            let other = gateway.address;
            let writer = async {
                client.write(512, &data).await;
                assert!(client.read(512, 32 << 20).await == data, "reads back whole");
            };
            within("32 MiB there and back", writer).await;
            assert!(TcpStream::connect(other).await.is_ok());
        })
        .await;
}

#[tokio::test]
async fn garbage_ends_its_connection_and_no_other() {
    LocalSet::new()
        .run_until(async {
            let gateway = start(MemDevice::new(1 << 20), 8).await;
            let mut good = Client::connect(gateway.address).await;
            let mut bad = Client::connect(gateway.address).await;
            bad.socket.write_all(&[0xff; 4096]).await.expect("writes");
            let mut rest = Vec::new();
            // Closed, or reset because some of the garbage was not read.
            let ended = timeout(DEADLINE, bad.socket.read_to_end(&mut rest)).await;
            assert!(ended.is_ok(), "the connection with garbage was not closed");
            good.write(0, &[1; 512]).await;
            assert_eq!(good.read(0, 512).await, vec![1; 512]);
        })
        .await;
}

#[tokio::test]
async fn sessions_and_requests_are_counted_by_volume_and_program() {
    LocalSet::new()
        .run_until(async {
            let device = Gated::new();
            let metrics = GatewayMetrics::default();
            let exports = vec![
                Export::new("disk", "", device.clone()).used_by("prod/db", "db"),
                Export::new("other", "", Gated::new()).used_by("v2", "web"),
            ];
            let gateway = start_with(exports, 8, metrics.clone()).await;
            let counted = |name: &str, value: u64| {
                let want = format!("tidewater_gateway_{name} {value}");
                let text = metrics.prometheus_text();
                assert!(text.lines().any(|l| l == want), "{want} is not in\n{text}");
            };
            let (db, web) = ("volume=\"prod/db\",program=\"db\"", "volume=\"v2\",program=\"web\"");
            let undecided = TcpStream::connect(gateway.address).await.expect("connects");
            let mut client = Client::connect(gateway.address).await;
            client.write(0, &[1; 512]).await;
            client.send(READ, 2, GATED, 512, &[]).await;
            device.waiting.acquire().await.expect("open").forget();
            counted(&format!("sessions{{{db}}}"), 1);
            counted(&format!("sessions{{{web}}}"), 0);
            counted("sessions{volume=\"\",program=\"\"}", 1);
            counted(&format!("inflight_requests{{{db}}}"), 1);
            counted(&format!("requests_total{{{db}}}"), 1);
            counted(&format!("requests_total{{{web}}}"), 0);
            counted("accepted_total", 2);
            assert_eq!((metrics.connections(), metrics.in_flight()), (2, 1));
            device.gate.add_permits(1);
            client.reply(512).await;
            counted(&format!("requests_total{{{db}}}"), 2);
            drop((client, undecided));
            within("all have gone", metrics.idle()).await;
            counted(&format!("sessions{{{db}}}"), 0);
            counted(&format!("failed_total{{{db}}}"), 0);
        })
        .await;
}

#[tokio::test]
async fn one_connection_too_many_is_closed() {
    LocalSet::new()
        .run_until(async {
            let gateway = start(MemDevice::new(1 << 20), 1).await;
            let first = Client::connect(gateway.address).await;
            let mut second = TcpStream::connect(gateway.address).await.expect("connects");
            let read = timeout(DEADLINE, second.read(&mut [0; 64])).await.expect("in time");
            assert!(matches!(read, Ok(0) | Err(_)));
            drop(first);
            within("the first has gone", gateway.metrics.idle()).await;
            Client::connect(gateway.address).await;
        })
        .await;
}

#[tokio::test]
async fn a_hint_to_cache_is_answered_and_changes_nothing() {
    LocalSet::new()
        .run_until(async {
            let gateway = start(MemDevice::new(1 << 20), 8).await;
            let mut client = Client::connect(gateway.address).await;
            client.write(0, &[3; 512]).await;
            client.send(CACHE, 9, 0, 1 << 20, &[]).await;
            assert_eq!(client.reply(0).await.0, 9);
            assert_eq!(client.read(0, 512).await, vec![3; 512]);
        })
        .await;
}

#[tokio::test]
async fn a_goodbye_is_taken_once_what_is_in_flight_is_answered() {
    LocalSet::new()
        .run_until(async {
            let device = Gated::new();
            let gateway = start(device.clone(), 8).await;
            let mut client = Client::connect(gateway.address).await;
            client.send(WRITE, 4, GATED, 512, &[8; 512]).await;
            client.send(WRITE, 5, GATED, 512, &[9; 512]).await;
            client.send(DISCONNECT, 6, 0, 0, &[]).await;
            device.waiting.acquire_many(2).await.expect("open").forget();
            device.gate.add_permits(2);
            let mut answered = [client.reply(0).await.0, client.reply(0).await.0];
            answered.sort_unstable();
            assert_eq!(answered, [4, 5]);
            let rest = timeout(DEADLINE, client.socket.read(&mut [0; 1])).await.expect("in time");
            assert_eq!(rest.expect("closed in order"), 0, "a goodbye has no answer");
            within("the connection ends", gateway.metrics.idle()).await;
        })
        .await;
}

#[tokio::test]
async fn stopping_answers_what_is_in_flight() {
    LocalSet::new()
        .run_until(async {
            let device = Gated::new();
            let gateway = start(device.clone(), 8).await;
            let mut client = Client::connect(gateway.address).await;
            client.send(READ, 5, GATED, 512, &[]).await;
            device.waiting.acquire().await.expect("open").forget();
            gateway.stop.cancel();
            device.gate.add_permits(1);
            assert_eq!(client.reply(512).await.0, 5);
            within("the gateway is idle", gateway.metrics.idle()).await;
        })
        .await;
}
