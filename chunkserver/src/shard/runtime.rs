//! The shard's thread: one single-threaded runtime, one listener, and a turn that hands the journal
//! everything that came together.

use std::{
    cell::RefCell,
    io,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
    time::Duration,
};

use tidewater_proto::{
    frame::Frame,
    header,
    ids::ServerId,
    link::{self, FrameReader, LinkError},
    rpc,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc},
    task::LocalSet,
};
use tokio_util::sync::CancellationToken;

use super::{Client, PeerShard, Shard, ShardCommand, ShardCounters, ShardParts, links};
use crate::{
    clock::BootClock,
    store::{Ready, Recovered},
};

/// How often replicas see time pass.
const TICK: Duration = Duration::from_millis(25);
/// Time for a connection to say who it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest name of a program, which becomes a label of metrics.
const PROGRAM_BYTES_MAX: usize = 256;
/// Most connections of one shard.
const CONNECTIONS_MAX: usize = 1_024;

/// Everything a shard's thread starts with.
pub(crate) struct ShardStart {
    pub(crate) parts: ShardParts,
    pub(crate) recovered: Vec<Recovered>,
    pub(crate) listener: std::net::TcpListener,
    pub(crate) commands: mpsc::Receiver<ShardCommand>,
    pub(crate) shutdown: CancellationToken,
}

/// Starts the shard's thread.
///
/// # Errors
///
/// If the thread cannot be started.
pub(crate) fn start(start: ShardStart) -> io::Result<JoinHandle<io::Result<()>>> {
    let name = format!("shard-{}", start.parts.index);
    std::thread::Builder::new().name(name).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        LocalSet::new().block_on(&runtime, run(start))
    })
}

async fn run(start: ShardStart) -> io::Result<()> {
    let listener = TcpListener::from_std(start.listener)?;
    let counters = Arc::clone(&start.parts.counters);
    let shard = Shard::new(start.parts, Box::new(BootClock), start.recovered);
    let (turn, completions) = (shard.turn(), shard.completions()?);
    let shard = Rc::new(RefCell::new(shard));
    links::connect(&shard);
    let shutdown = start.shutdown;
    let mut commands = start.commands;
    let tasks = async {
        tokio::join!(
            accept(&shard, &listener),
            turns(&shard, &turn),
            complete(&shard, &completions),
            tick(&shard, &counters),
            async {
                while let Some(command) = commands.recv().await {
                    shard.borrow_mut().command(command);
                    links::connect(&shard);
                }
            },
        );
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = tasks => {}
    }
    Ok(())
}

/// Ends each turn of the loop: what was read together goes to the journal together. First the other tasks have
/// their turn, for what they send to other members must not wait for this member's journal.
async fn turns(shard: &Rc<RefCell<Shard>>, turn: &Notify) {
    loop {
        turn.notified().await;
        if shard.borrow().store.has_queued() {
            tokio::task::yield_now().await;
        }
        shard.borrow_mut().end_turn();
    }
}

async fn complete(shard: &Rc<RefCell<Shard>>, completions: &Ready) {
    loop {
        completions.wait().await;
        shard.borrow_mut().poll_store();
    }
}

async fn tick(shard: &Rc<RefCell<Shard>>, counters: &ShardCounters) {
    let runtime = tokio::runtime::Handle::current().metrics();
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        shard.borrow_mut().tick();
        let busy = runtime.worker_total_busy_duration(0);
        counters.busy_us.store(busy.as_micros() as u64, Ordering::Relaxed);
    }
}

async fn accept(shard: &Rc<RefCell<Shard>>, listener: &TcpListener) {
    let connections = Rc::new(());
    loop {
        match listener.accept().await {
            Ok((stream, from)) if Rc::strong_count(&connections) <= CONNECTIONS_MAX => {
                let (shard, counted) = (Rc::clone(shard), Rc::clone(&connections));
                tokio::task::spawn_local(async move {
                    if let Err(error) = serve(&shard, stream).await {
                        tracing::debug!(%from, %error, "connection ended");
                    }
                    drop(counted);
                });
            }
            Ok((_, from)) => tracing::warn!(%from, "too many connections: refused"),
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(TICK).await;
            }
        }
    }
}

/// One connection, from hello to end.
async fn serve(shard: &Rc<RefCell<Shard>>, stream: TcpStream) -> Result<(), LinkError> {
    let (mut reader, sender, writer) = link::split(stream)?;
    let writing = tokio::task::spawn_local(writer.run());
    let hello = tokio::time::timeout(HELLO_TIMEOUT, reader.next()).await;
    let result = match hello {
        Ok(Ok(Some(Frame::Hello(hello)))) => {
            let refused = shard.borrow().refusal(&hello);
            sender.send(&Frame::Welcome(shard.borrow().welcome(refused)));
            match hello.who {
                _ if refused.is_some() => Ok(()),
                Some(rpc::hello::Who::Client(who)) => {
                    let outlet = Rc::new(sender.clone());
                    let client = shard.borrow_mut().client_connected(&who, outlet);
                    let ended = clients(shard, &mut reader, &client).await;
                    shard.borrow_mut().client_gone(&client);
                    ended
                }
                Some(rpc::hello::Who::Server(who)) => peers(shard, &mut reader, &who).await,
                None => Ok(()),
            }
        }
        Ok(Ok(Some(_) | None)) | Err(_) => Ok(()),
        Ok(Err(error)) => Err(error),
    };
    sender.close();
    // The writer sends what is queued, then ends by itself.
    drop(writing);
    result
}

async fn clients(
    shard: &Rc<RefCell<Shard>>,
    reader: &mut FrameReader,
    client: &Client,
) -> Result<(), LinkError> {
    while let Some(frame) = reader.next().await? {
        if !shard.borrow_mut().client_frame(client, frame) {
            return Ok(());
        }
    }
    Ok(())
}

async fn peers(
    shard: &Rc<RefCell<Shard>>,
    reader: &mut FrameReader,
    who: &rpc::HelloServer,
) -> Result<(), LinkError> {
    let peer = PeerShard { server: ServerId(who.server), shard: who.shard as usize };
    let connection = shard.borrow_mut().peer_connected(peer);
    while let Some(frame) = reader.next().await? {
        if !shard.borrow_mut().peer_frame(peer, connection, frame) {
            return Ok(());
        }
    }
    Ok(())
}

impl Shard {
    /// Why a connection is not wanted.
    fn refusal(&self, hello: &rpc::Hello) -> Option<&'static str> {
        if hello.cluster != self.cluster {
            return Some("another cluster");
        }
        let named = match &hello.who {
            Some(rpc::hello::Who::Client(who)) => who.program.len() <= PROGRAM_BYTES_MAX,
            Some(rpc::hello::Who::Server(_)) => true,
            None => false,
        };
        if hello.version == 0 || !named {
            return Some("malformed hello");
        }
        None
    }

    fn welcome(&self, refused: Option<&'static str>) -> rpc::Welcome {
        rpc::Welcome {
            version: header::VERSION.into(),
            features: 0,
            server: self.server.0,
            run: self.run.0,
            refused: refused.unwrap_or_default().to_owned(),
        }
    }
}
