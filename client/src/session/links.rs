//! Connections to the shards of chunkservers: made on demand, shared by all requests of a session.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use tidewater_proto::{frame::Frame, header::VERSION, ids::ServerId, link::LinkError, rpc};
use tokio::{
    sync::Notify,
    task::{AbortHandle, spawn_local},
    time::timeout,
};

use super::{
    dial::{Dial, FrameSink as _, FrameSource as _},
    tries::{LinkId, Tries},
};

/// Time for a connection and the exchange of hellos.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// A shard of a server.
pub(crate) type ShardKey = (ServerId, usize);

/// Why a connection could not be used.
#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error("no connection in time")]
    TimedOut(#[from] tokio::time::error::Elapsed),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("the server closed the connection without a welcome")]
    NoWelcome,
    #[error("the server at this address is {found}")]
    OtherServer { found: ServerId },
    #[error("the server refused the connection: {reason}")]
    Refused { reason: String },
}

/// `S` is the sending end.
enum State<S> {
    Down,
    Connecting,
    Up(Up<S>),
}

#[derive(Clone)]
struct Up<S> {
    id: LinkId,
    sender: S,
    receiving: AbortHandle,
    /// Frames received, as a sign of life.
    heard: Rc<Cell<u64>>,
    /// Frames heard, and the tick, when a try first timed out with nothing heard since.
    silent_since: Rc<Cell<Option<(u64, u64)>>>,
}

struct Link<S> {
    state: RefCell<State<S>>,
    changed: Notify,
}

/// All connections of a session.
pub(crate) struct Links<D: Dial> {
    dial: D,
    hello: rpc::Hello,
    tries: Rc<Tries>,
    table: RefCell<BTreeMap<ShardKey, Rc<Link<D::Sender>>>>,
    next_id: Cell<LinkId>,
}

impl<D: Dial> Links<D> {
    pub(crate) fn new(
        dial: D,
        cluster: String,
        client: rpc::HelloClient,
        tries: Rc<Tries>,
    ) -> Self {
        let hello = rpc::Hello {
            version: VERSION.into(),
            features: 0,
            cluster,
            who: Some(rpc::hello::Who::Client(client)),
        };
        Self { dial, hello, tries, table: RefCell::default(), next_id: Cell::new(1) }
    }

    /// The connection to a shard that is up.
    pub(crate) fn up(&self, key: ShardKey) -> Option<(LinkId, D::Sender)> {
        self.table.borrow().get(&key)?.up()
    }

    /// A connection to a shard; made, or waited for, if there is none. None if that failed.
    pub(crate) async fn get(
        self: &Rc<Self>,
        key: ShardKey,
        address: SocketAddr,
    ) -> Option<(LinkId, D::Sender)> {
        let link = Rc::clone(self.table.borrow_mut().entry(key).or_insert_with(|| {
            Rc::new(Link { state: RefCell::new(State::Down), changed: Notify::new() })
        }));
        if let Some(up) = link.up() {
            return Some(up);
        }
        let changed = link.changed.notified();
        if matches!(*link.state.borrow(), State::Down) {
            self.start(&link, key, address);
        }
        changed.await;
        link.up()
    }

    fn start(self: &Rc<Self>, link: &Rc<Link<D::Sender>>, key: ShardKey, address: SocketAddr) {
        *link.state.borrow_mut() = State::Connecting;
        let (links, link) = (Rc::clone(self), Rc::clone(link));
        spawn_local(async move {
            let connected = timeout(CONNECT_TIMEOUT, links.connect(key.0, address)).await;
            match connected.map_err(ConnectError::from).flatten() {
                Ok((reader, sender)) => links.run(&link, key, reader, sender),
                Err(error) => {
                    tracing::debug!(server = %key.0, shard = key.1, %address, %error, "connect");
                    *link.state.borrow_mut() = State::Down;
                }
            }
            link.changed.notify_waiters();
        });
    }

    async fn connect(
        &self,
        server: ServerId,
        address: SocketAddr,
    ) -> Result<(D::Reader, D::Sender), ConnectError> {
        let (mut reader, sender) = self.dial.dial(address).await?;
        sender.send(&Frame::Hello(self.hello.clone()));
        let Some(Frame::Welcome(welcome)) = reader.next().await? else {
            return Err(ConnectError::NoWelcome);
        };
        if !welcome.refused.is_empty() {
            tracing::warn!(%server, reason = %welcome.refused, "server refused the connection");
            return Err(ConnectError::Refused { reason: welcome.refused });
        }
        if welcome.server != server.0 {
            return Err(ConnectError::OtherServer { found: ServerId(welcome.server) });
        }
        Ok((reader, sender))
    }

    /// The connection is up: replies go to their tries until it fails.
    fn run(
        self: &Rc<Self>,
        link: &Rc<Link<D::Sender>>,
        key: ShardKey,
        mut reader: D::Reader,
        sender: D::Sender,
    ) {
        let id = self.next_id.replace(self.next_id.get() + 1);
        let heard = Rc::new(Cell::new(0));
        let (links, count) = (Rc::clone(self), Rc::clone(&heard));
        let task = spawn_local(async move {
            let result = links.receive(&mut reader, &count).await;
            tracing::debug!(server = %key.0, shard = key.1, ?result, "connection ended");
            links.close(id);
        });
        let receiving = task.abort_handle();
        let up = Up { id, sender, receiving, heard, silent_since: Rc::default() };
        *link.state.borrow_mut() = State::Up(up);
    }

    async fn receive(&self, reader: &mut D::Reader, heard: &Cell<u64>) -> Result<(), LinkError> {
        while let Some(frame) = reader.next().await? {
            heard.set(heard.get() + 1);
            match frame {
                Frame::Reply { id, reply } => self.tries.answer(id, reply),
                Frame::Hello(_)
                | Frame::Welcome(_)
                | Frame::Request { .. }
                | Frame::Peer(_)
                | Frame::Leases(_) => tracing::warn!("server sent a frame that is no reply"),
            }
        }
        Ok(())
    }

    /// Ends a connection and every try on it.
    pub(crate) fn close(&self, id: LinkId) {
        let links: Vec<_> = self.table.borrow().values().cloned().collect();
        for link in links {
            let mut state = link.state.borrow_mut();
            let up = match &*state {
                State::Up(up) if up.id == id => up.clone(),
                State::Up(_) | State::Down | State::Connecting => continue,
            };
            *state = State::Down;
            drop(state);
            up.sender.end();
            self.tries.lose(id);
            up.receiving.abort();
        }
    }

    /// A try on this connection timed out at this tick. If nothing at all was heard since one did
    /// `limit_ticks` ago, the connection is taken for dead, so that a new one is tried.
    pub(crate) fn suspect(&self, id: LinkId, tick: u64, limit_ticks: u64) {
        let silent = self.table.borrow().values().any(|link| match &*link.state.borrow() {
            State::Up(up) if up.id == id => up.is_silent(tick, limit_ticks),
            State::Up(_) | State::Down | State::Connecting => false,
        });
        if silent {
            self.close(id);
        }
    }

    /// Ends every connection.
    pub(crate) fn close_all(&self) {
        let ids: Vec<_> =
            self.table.borrow().values().filter_map(|l| l.up().map(|(id, _)| id)).collect();
        for id in ids {
            self.close(id);
        }
    }
}

impl<S> Up<S> {
    fn is_silent(&self, tick: u64, limit_ticks: u64) -> bool {
        let heard = self.heard.get();
        match self.silent_since.get() {
            Some((then, since)) if then == heard => tick >= since + limit_ticks,
            Some(_) | None => {
                self.silent_since.set(Some((heard, tick)));
                false
            }
        }
    }
}

impl<S: Clone> Link<S> {
    fn up(&self) -> Option<(LinkId, S)> {
        match &*self.state.borrow() {
            State::Up(up) => Some((up.id, up.sender.clone())),
            State::Down | State::Connecting => None,
        }
    }
}
