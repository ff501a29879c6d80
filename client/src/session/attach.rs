//! Attaching to a volume, keeping the token, detaching.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use rand::RngCore;
use tidewater_proto::{
    ids::{SessionId, Token, VolumeId},
    meta_client::{MetaCode, MetaError},
    record::Durability,
    rpc,
};
use tokio::{
    sync::{Notify, Semaphore},
    task::{AbortHandle, spawn_local},
    time::{MissedTickBehavior, interval},
};

use super::{
    dial::Dial,
    links::Links,
    map::Map,
    outside::{Control, Outside},
    tries::Tries,
    window::Window,
};
use crate::{
    device::DeviceInfo,
    error::BlockError,
    open::{Mode, Open},
    retry::Event,
    stats::VolumeStats,
};

/// How often tries are looked at for being late.
const TICK: Duration = Duration::from_millis(50);
/// Ticks until a try is late.
const TRY_TICKS: u64 = 10;

/// Why a volume could not be opened.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// The metadata cluster refused, or did not answer.
    #[error("attach volume {volume}: {source}")]
    Meta {
        /// Volume.
        volume: String,
        /// What it said.
        #[source]
        source: MetaError,
    },
    /// An answer that no correct meta node gives.
    #[error("attach volume {volume}: the answer lacks {what}")]
    Malformed {
        /// Volume.
        volume: String,
        /// Field.
        what: &'static str,
    },
    /// The thread for the session could not be started.
    #[error("no thread for the session")]
    Thread,
}

/// Why a volume was not closed cleanly.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CloseError {
    /// What was acknowledged may not be durable (durability `flush` only), or the handle was closed
    /// already.
    #[error("volume was not flushed")]
    Flush(#[source] BlockError),
    /// Everything is durable, but the attachment stays until someone takes it over.
    #[error("volume was not detached")]
    Detach(#[source] MetaError),
}

/// State of one attachment.
pub(crate) struct Session<D: Dial> {
    pub(crate) id: SessionId,
    pub(crate) volume: VolumeId,
    read_only: bool,
    pub(crate) segment_bytes: u64,
    pub(crate) durability: Durability,
    pub(crate) io_timeout: Duration,
    pub(crate) token: Cell<Token>,
    /// The attachment is gone: everything fails at once.
    pub(crate) fenced: Cell<bool>,
    control: Rc<dyn Control>,
    /// For pauses before a request is sent again.
    pub(crate) random: RefCell<Box<dyn RngCore>>,
    pub(crate) map: Rc<Map>,
    pub(crate) links: Rc<Links<D>>,
    pub(crate) tries: Rc<Tries>,
    pub(crate) window: RefCell<Window>,
    pub(crate) window_moved: Notify,
    pub(crate) slots: Arc<Semaphore>,
    pub(crate) stats: Arc<VolumeStats>,
    /// Ends with the attachment: the clock of the tries, the watch of the map.
    background: [AbortHandle; 2],
}

impl<D: Dial> Session<D> {
    /// Attaches. Must run in a `LocalSet`.
    pub(crate) async fn open(
        mut outside: Outside<D>,
        volume: &str,
        options: &Open,
        stats: Arc<VolumeStats>,
    ) -> Result<Rc<Self>, OpenError> {
        let failed = |source| OpenError::Meta { volume: volume.to_owned(), source };
        let lacks = |what| OpenError::Malformed { volume: volume.to_owned(), what };
        let status = outside.control.status().await.map_err(failed)?;
        let request = options.attach_request(volume, outside.request_name());
        let reply = outside.control.attach(request).await.map_err(failed)?;
        let attachment = reply.attachment.ok_or_else(|| lacks("the attachment"))?;
        let record = reply.volume.ok_or_else(|| lacks("the volume"))?;
        if record.segment_bytes == 0 {
            return Err(lacks("the size of a segment"));
        }
        let session = SessionId(attachment.session);
        let Outside { dial, control, random, boot_time } = outside;
        let volume = VolumeId(record.id);
        let map = Map::new(volume, session, Rc::clone(&control), boot_time, record.size_bytes);
        map.take(&reply.segments, &reply.servers);
        let hello = hello(&attachment, &record, options);
        let tries = Rc::new(Tries::default());
        let links = Links::new(dial, status.cluster, hello, Rc::clone(&tries));
        let (links, map) = (Rc::new(links), Rc::new(map));
        let ticker = spawn_local(tick(Rc::clone(&tries), Rc::clone(&links))).abort_handle();
        let follower = spawn_local(Rc::clone(&map).follow()).abort_handle();
        Ok(Rc::new(Self {
            id: session,
            volume,
            read_only: options.mode == Mode::ReadOnly,
            segment_bytes: record.segment_bytes,
            durability: record.durability().into(),
            io_timeout: options.io_timeout,
            token: Cell::new(Token(attachment.token)),
            fenced: Cell::new(false),
            control,
            random: RefCell::new(random),
            map,
            links,
            tries,
            window: RefCell::new(Window::new()),
            window_moved: Notify::new(),
            slots: Arc::new(Semaphore::new(options.queue_depth)),
            stats,
            background: [ticker, follower],
        }))
    }

    /// The volume as it is now known.
    pub(crate) fn info(&self) -> DeviceInfo {
        let size_bytes = self.map.size_bytes().load(Ordering::Relaxed);
        DeviceInfo { size_bytes, read_only: self.read_only, fast_zero: true }
    }

    /// A server asked for a newer token: either this session has been given one, as those who stay
    /// after a forced detach are, or it was detached.
    pub(crate) async fn check_token(&self, wanted: Token) -> Event {
        if self.fenced.get() {
            return Event::Detached;
        }
        if self.token.get() >= wanted {
            return Event::TokenRaised;
        }
        let request = rpc::AttachmentRequest { session: self.id.0 };
        match self.control.attachment(request).await {
            Ok(attachment) if Token(attachment.token) >= wanted => {
                self.token.set(self.token.get().max(Token(attachment.token)));
                Event::TokenRaised
            }
            Err(error) if error.code == MetaCode::NotFound => {
                tracing::warn!(volume = %self.volume, session = %self.id, "fenced off");
                self.fenced.set(true);
                Event::Detached
            }
            // The server that refused is ahead of the node that answered, or none answered.
            Ok(_) | Err(_) => Event::MapUnavailable,
        }
    }

    /// Gives the attachment back and ends all connections.
    pub(crate) async fn detach(&self) -> Result<(), MetaError> {
        self.links.close_all();
        self.background.iter().for_each(AbortHandle::abort);
        if self.fenced.replace(true) {
            return Ok(());
        }
        let request = rpc::DetachRequest { session: self.id.0, force: false };
        match self.control.detach(request).await {
            Err(error) if error.code != MetaCode::NotFound => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

/// What servers are told of a client when it connects.
fn hello(attachment: &rpc::Attachment, record: &rpc::Volume, options: &Open) -> rpc::HelloClient {
    rpc::HelloClient {
        session: attachment.session,
        volume: record.id,
        program: options.program.clone(),
        instance: options.instance.clone(),
        host: options.host.clone(),
        topology: Some(options.topology.clone()),
    }
}

async fn tick<D: Dial>(tries: Rc<Tries>, links: Rc<Links<D>>) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for tick in 0_u64.. {
        ticks.tick().await;
        for late in tries.tick(TRY_TICKS) {
            links.suspect(late, tick, TRY_TICKS);
        }
    }
}
