//! Attaching to a volume, keeping the token, detaching.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use rand::Rng as _;
use tidewater_proto::{
    ids::{SessionId, Token, VolumeId},
    meta_client::{MetaClient, MetaCode, MetaError, Patience},
    record::Durability,
    rpc,
};
use tokio::{
    sync::{Notify, Semaphore},
    task::{AbortHandle, spawn_local},
    time::{MissedTickBehavior, interval},
};

use super::{links::Links, map::Map, tries::Tries, window::Window};
use crate::{
    device::DeviceInfo,
    error::BlockError,
    open::{Mode, Open},
    retry::Event,
    stats::VolumeStats,
};

/// Short calls.
const CALL: Patience = Patience { per_try: Duration::from_secs(2), total: Duration::from_secs(10) };
/// Attaching waits until every primary has acknowledged the token; dead ones are replaced first.
const ATTACH: Patience =
    Patience { per_try: Duration::from_secs(15), total: Duration::from_mins(1) };
/// Finding out about a token is repeated by the retry core.
const CHECK: Patience =
    Patience { per_try: Duration::from_millis(500), total: Duration::from_secs(1) };
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
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) volume: VolumeId,
    read_only: bool,
    pub(crate) segment_bytes: u64,
    pub(crate) durability: Durability,
    pub(crate) io_timeout: Duration,
    pub(crate) token: Cell<Token>,
    /// The attachment is gone: everything fails at once.
    pub(crate) fenced: Cell<bool>,
    pub(crate) meta: Rc<MetaClient>,
    pub(crate) map: Rc<Map>,
    pub(crate) links: Rc<Links>,
    pub(crate) tries: Rc<Tries>,
    pub(crate) window: RefCell<Window>,
    pub(crate) window_moved: Notify,
    pub(crate) slots: Arc<Semaphore>,
    pub(crate) stats: Arc<VolumeStats>,
    /// Ends with the attachment: the clock of the tries, the watch of the map.
    background: [AbortHandle; 2],
}

impl Session {
    /// Attaches. Must run in a `LocalSet`.
    pub(crate) async fn open(
        endpoints: &[String],
        volume: &str,
        options: &Open,
        stats: Arc<VolumeStats>,
    ) -> Result<Rc<Self>, OpenError> {
        let failed = |source| OpenError::Meta { volume: volume.to_owned(), source };
        let lacks = |what| OpenError::Malformed { volume: volume.to_owned(), what };
        let meta = Rc::new(MetaClient::new(endpoints).map_err(failed)?);
        let status = meta
            .call(CALL, |mut meta| async move { meta.status(rpc::StatusRequest {}).await })
            .await
            .map_err(failed)?;
        let request =
            options.attach_request(volume, format!("{:032x}", rand::rng().random::<u128>()));
        let reply = meta
            .call(ATTACH, |mut meta| {
                let request = request.clone();
                async move { meta.attach(request).await }
            })
            .await
            .map_err(failed)?;
        let attachment = reply.attachment.ok_or_else(|| lacks("the attachment"))?;
        let record = reply.volume.ok_or_else(|| lacks("the volume"))?;
        if record.segment_bytes == 0 {
            return Err(lacks("the size of a segment"));
        }
        let session = SessionId(attachment.session);
        let map = Map::new(VolumeId(record.id), session, Rc::clone(&meta), record.size_bytes);
        map.take(&reply.segments, &reply.servers);
        Ok(Self::start(status.cluster, &attachment, &record, options, meta, map, stats))
    }

    fn start(
        cluster: String,
        attachment: &rpc::Attachment,
        record: &rpc::Volume,
        options: &Open,
        meta: Rc<MetaClient>,
        map: Map,
        stats: Arc<VolumeStats>,
    ) -> Rc<Self> {
        let hello = rpc::HelloClient {
            session: attachment.session,
            volume: record.id,
            program: options.program.clone(),
            instance: options.instance.clone(),
            host: options.host.clone(),
            topology: Some(options.topology.clone()),
        };
        let tries = Rc::new(Tries::default());
        let links = Rc::new(Links::new(cluster, hello, Rc::clone(&tries)));
        let map = Rc::new(map);
        let ticker = spawn_local(tick(Rc::clone(&tries), Rc::clone(&links))).abort_handle();
        let follower = spawn_local(Rc::clone(&map).follow()).abort_handle();
        Rc::new(Self {
            id: SessionId(attachment.session),
            volume: VolumeId(record.id),
            read_only: options.mode == Mode::ReadOnly,
            segment_bytes: record.segment_bytes,
            durability: record.durability().into(),
            io_timeout: options.io_timeout,
            token: Cell::new(Token(attachment.token)),
            fenced: Cell::new(false),
            meta,
            map,
            links,
            tries,
            window: RefCell::new(Window::new()),
            window_moved: Notify::new(),
            slots: Arc::new(Semaphore::new(options.queue_depth)),
            stats,
            background: [ticker, follower],
        })
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
        let found = self
            .meta
            .call(CHECK, |mut meta| async move { meta.get_attachment(request).await })
            .await;
        match found {
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
        let reply =
            self.meta.call(CALL, |mut meta| async move { meta.detach(request).await }).await;
        match reply {
            Err(error) if error.code != MetaCode::NotFound => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

async fn tick(tries: Rc<Tries>, links: Rc<Links>) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for tick in 0_u64.. {
        ticks.tick().await;
        for late in tries.tick(TRY_TICKS) {
            links.suspect(late, tick, TRY_TICKS);
        }
    }
}
