//! A session in memory: connections that are queues, a metadata node that is called directly, seeded
//! randomness, and a clock that stands until all wait for it.

use std::{cell::RefCell, future::Future, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use futures::StreamExt as _;
use rand::{SeedableRng as _, rngs::StdRng};
use tidewater_proto::{
    frame::Frame,
    ids::ServerId,
    meta_client::{MetaClient, MetaCode, MetaError},
    rpc::{self, meta_server::Meta},
};
use tokio::{
    task::{LocalSet, spawn_local},
    time::Instant,
};
use tonic::Request;

use super::{
    dial::{FrameSink as _, FrameSource as _},
    outside::{Answer, Control, News, Outside},
    sim::{SimConnection, SimNet},
    volume::LocalVolume,
};
use crate::{
    device::{Io, IoDone, LocalBlockDevice as _},
    error::{BlockError, Kind, Outcome},
    open::Open,
    stats::VolumeStats,
};

#[expect(dead_code, reason = "the tests over sockets use the rest")]
#[path = "../../tests/fake/mod.rs"]
mod fake;

use fake::{A, B, Fake, Mischief, SESSION, server};

macro_rules! calls {
    ($($name:ident: $call:ident($request:ident) -> $reply:ident;)*) => {
        $(fn $name(&self, request: rpc::$request) -> Answer<'_, rpc::$reply> {
            Box::pin(async move {
                let answered = Meta::$call(self, Request::new(request)).await;
                answered.map(tonic::Response::into_inner).map_err(|status| (&status).into())
            })
        })*
    };
}

impl Control for Fake {
    fn status(&self) -> Answer<'_, rpc::StatusReply> {
        Box::pin(async move {
            let answered = Meta::status(self, Request::new(rpc::StatusRequest {})).await;
            answered.map(tonic::Response::into_inner).map_err(|status| (&status).into())
        })
    }

    calls! {
        attach: attach(AttachRequest) -> AttachReply;
        detach: detach(DetachRequest) -> Empty;
        attachment: get_attachment(AttachmentRequest) -> Attachment;
        list_segments: list_segments(ListSegmentsRequest) -> ListSegmentsReply;
        find_segment: find_segment(SegmentRequest) -> FindSegmentReply;
        ensure_segment: ensure_segment(SegmentRequest) -> Segment;
    }

    fn watch(&self, request: rpc::WatchRequest) -> Answer<'_, News> {
        Box::pin(async move {
            let begun = Meta::watch(self, Request::new(request)).await;
            let news = begun.map_err(|status| MetaError::from(&status))?.into_inner();
            Ok(news.map(|told| told.map_err(|status| MetaError::from(&status))).boxed_local())
        })
    }
}

/// What both sides of [`Control`] do, as far as a session relies on it.
async fn control_keeps_the_contract(control: &dyn Control, fake: &Fake) {
    assert_eq!(control.status().await.expect("answers").cluster, "fake");
    let attached = control.attach(rpc::AttachRequest::default()).await.expect("attached");
    assert_eq!(attached.attachment.expect("told").session, SESSION.0);
    let request = rpc::SegmentRequest { volume: 3, index: 1, session: SESSION.0 };
    fake.world().absent_ms = 70;
    let absent = control.find_segment(request).await.expect("answers");
    assert_eq!((absent.segment, absent.absent_ms), (None, 70));
    let placed = control.ensure_segment(request).await.expect("placed");
    let found = control.find_segment(request).await.expect("answers");
    assert_eq!(found.segment.as_ref(), Some(&placed));
    let list = rpc::ListSegmentsRequest { volume: 3, limit: 9, ..Default::default() };
    assert_eq!(control.list_segments(list).await.expect("answers").segments.len(), 1);

    let mut news = control.watch(rpc::WatchRequest::default()).await.expect("begins");
    let first = news.next().await.expect("goes on").expect("news");
    assert_eq!(first.segments, [placed]);
    fake.world().size *= 2;
    fake.announce();
    let second = news.next().await.expect("goes on").expect("news");
    assert_eq!(second.size_bytes, 2 * first.size_bytes);

    let attachment = rpc::AttachmentRequest { session: SESSION.0 };
    assert_eq!(control.attachment(attachment).await.expect("is there").token, 5);
    control.detach(rpc::DetachRequest::default()).await.expect("detached");
    let gone = control.attachment(attachment).await.expect_err("is not there");
    assert_eq!(gone.code, MetaCode::NotFound);
    fake.world().meta_down = true;
    let unanswered = control.attachment(attachment).await.expect_err("nobody answers");
    assert_eq!(unanswered.code, MetaCode::Unreachable);
}

#[tokio::test]
async fn meta_nodes_over_grpc_keep_the_contract() {
    LocalSet::new()
        .run_until(async {
            let fake = Fake::start().await;
            let client = MetaClient::new(std::slice::from_ref(&fake.meta)).expect("an address");
            control_keeps_the_contract(&client, &fake).await;
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_meta_node_in_memory_keeps_the_contract() {
    let fake = Fake::bare();
    control_keeps_the_contract(&fake, &fake).await;
}

/// A request as a server got it: milliseconds since the start, who, number, epoch.
type Got = (u64, ServerId, u64, u64);

/// A cluster in memory, and what its servers got.
struct Sim {
    fake: Fake,
    net: SimNet,
    start: Instant,
    got: Rc<RefCell<Vec<Got>>>,
}

impl Sim {
    fn new() -> Self {
        let (fake, net) = (Fake::bare(), SimNet::default());
        let sim = Self { fake, net, start: Instant::now(), got: Rc::default() };
        for id in [A, B] {
            let address: SocketAddr = ([10, 0, 0, id.0 as u8], 7411).into();
            sim.fake.world().addresses.insert(id, address);
            let mut connections = sim.net.listen(address);
            let (fake, got, start) = (sim.fake.clone(), Rc::clone(&sim.got), sim.start);
            spawn_local(async move {
                while let Some(connection) = connections.recv().await {
                    let (fake, got) = (fake.clone(), Rc::clone(&got));
                    spawn_local(serve(fake, id, connection, move |number, epoch| {
                        let at = start.elapsed().as_millis() as u64;
                        got.borrow_mut().push((at, id, number, epoch));
                    }));
                }
            });
        }
        sim
    }

    async fn open(&self, seed: u64, options: Open) -> LocalVolume<SimNet> {
        let start = self.start;
        let outside = Outside {
            dial: self.net.clone(),
            control: Rc::new(self.fake.clone()),
            random: Box::new(StdRng::seed_from_u64(seed)),
            boot_time: Box::new(move || start.elapsed().as_micros() as u64),
        };
        let stats = Arc::new(VolumeStats::default());
        LocalVolume::open_in(outside, "vol", &options, stats).await.expect("opens")
    }
}

async fn serve(
    fake: Fake,
    id: ServerId,
    (mut reader, sender): SimConnection,
    note: impl Fn(u64, u64),
) {
    while let Ok(Some(frame)) = reader.next().await {
        match frame {
            Frame::Hello(_) => {
                let welcome = rpc::Welcome { server: id.0, ..rpc::Welcome::default() };
                sender.send(&Frame::Welcome(welcome));
            }
            Frame::Request { id: number, request } => {
                note(request.op.number, request.epoch.0);
                match server::answer(&fake, id, &request) {
                    server::Answer::Reply(reply) => {
                        sender.send(&Frame::Reply { id: number, reply });
                    }
                    server::Answer::Nothing => {}
                    server::Answer::HangUp => return,
                }
            }
            other => panic!("a client sent {other:?}"),
        }
    }
}

async fn in_memory<F: Future<Output = T>, T>(test: impl FnOnce(Sim) -> F) -> T {
    LocalSet::new().run_until(async { test(Sim::new()).await }).await
}

async fn write(volume: &LocalVolume<SimNet>, offset: u64, byte: u8) -> Result<IoDone, BlockError> {
    let data = vec![byte; 4096].into();
    volume.submit(Io::Write { offset, data, fua: false }).await
}

/// Requests as they came to servers that are busy, silent and gone in turn, by a session of this seed.
async fn history(seed: u64) -> Vec<Got> {
    in_memory(|sim| async move {
        let volume = sim.open(seed, Open::exclusive()).await;
        for round in 0..8_u8 {
            let mut mischief = vec![Mischief::Busy; 3];
            mischief.extend([Mischief::LoseReply, Mischief::Busy, Mischief::Ignore]);
            sim.fake.world().mischief = mischief;
            let at = |segment: u64| (segment << 22) + u64::from(round) * 4096;
            let (one, other) =
                futures::join!(write(&volume, at(0), round), write(&volume, at(1), round));
            one.and(other).unwrap_or_else(|e| panic!("seed {seed}, round {round}: {e}"));
            sim.fake.world().move_primaries(if round % 2 == 0 { B } else { A });
        }
        volume.close().await.expect("detached");
        sim.got.take()
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn what_a_session_does_and_when_follows_from_its_seed() {
    let first = history(1).await;
    assert!(first.len() > 60, "{} requests", first.len());
    assert_eq!(first, history(1).await);
    let other = history(2).await;
    assert_ne!(first, other, "pauses come from the randomness that is handed in");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_stays_silent_is_connected_to_anew_until_the_time_is_over() {
    let limit = Duration::from_mins(5);
    in_memory(|sim| async move {
        let volume = sim.open(3, Open::exclusive().io_timeout(limit)).await;
        write(&volume, 0, 1).await.expect("placed");
        sim.fake.world().mischief = vec![Mischief::Ignore; 1_000_000];
        let begun = Instant::now();
        let error = write(&volume, 0, 2).await.expect_err("never answered");
        assert_eq!((error.kind, error.outcome), (Kind::TimedOut, Outcome::Unknown));
        let took = begun.elapsed();
        assert!(took >= limit && took < limit + Duration::from_secs(2), "{took:?}");
        assert!(error.tries > 100, "{} tries", error.tries);
    })
    .await;
}
