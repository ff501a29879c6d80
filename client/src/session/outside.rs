//! What a session has from outside: the network, the metadata cluster, randomness, and a clock that counts
//! time asleep. All other time is tokio's.

use std::{rc::Rc, time::Duration};

use futures::{
    future::LocalBoxFuture,
    stream::{self, LocalBoxStream},
};
use rand::RngCore;
use rustix::time::{ClockId, clock_gettime};
use tidewater_proto::{
    meta_client::{MetaClient, MetaError, Patience},
    rpc,
};

use super::{
    absent::BootTime,
    dial::{Dial, Tcp},
};

/// Short calls.
const CALL: Patience = Patience { per_try: Duration::from_secs(2), total: Duration::from_secs(10) };
/// Attaching waits until every primary has acknowledged the token; dead ones are replaced first.
const ATTACH: Patience =
    Patience { per_try: Duration::from_secs(15), total: Duration::from_mins(1) };
/// Finding out about a token is repeated by the retry core.
const CHECK: Patience =
    Patience { per_try: Duration::from_millis(500), total: Duration::from_secs(1) };
/// A lookup is short: with meta down, requests go on by the routes they have.
const LOOKUP: Patience =
    Patience { per_try: Duration::from_millis(250), total: Duration::from_millis(600) };
/// Placing a segment takes a Raft commit, an activation, and maybe the removal of a dead server.
const PLACE: Patience = Patience { per_try: Duration::from_secs(3), total: Duration::from_secs(5) };
/// For a watch to begin.
const WATCH: Patience = Patience { per_try: Duration::from_secs(2), total: Duration::from_secs(5) };

/// An answer of the metadata cluster. Boxed, as these calls are rare.
pub(crate) type Answer<'a, T> = LocalBoxFuture<'a, Result<T, MetaError>>;

/// News of a watch, until it ends.
pub(crate) type News = LocalBoxStream<'static, Result<rpc::WatchReply, MetaError>>;

/// The calls that a session makes to the metadata cluster; as in `proto/proto/tidewater.proto`.
pub(crate) trait Control {
    /// Which cluster it is.
    fn status(&self) -> Answer<'_, rpc::StatusReply>;
    /// Attaches a volume.
    fn attach(&self, request: rpc::AttachRequest) -> Answer<'_, rpc::AttachReply>;
    /// Gives an attachment back.
    fn detach(&self, request: rpc::DetachRequest) -> Answer<'_, rpc::Empty>;
    /// An attachment as it is now.
    fn attachment(&self, request: rpc::AttachmentRequest) -> Answer<'_, rpc::Attachment>;
    /// Segments from any node, perhaps out of date.
    fn list_segments(
        &self,
        request: rpc::ListSegmentsRequest,
    ) -> Answer<'_, rpc::ListSegmentsReply>;
    /// A segment from the leader, linearizably.
    fn find_segment(&self, request: rpc::SegmentRequest) -> Answer<'_, rpc::FindSegmentReply>;
    /// Has a segment placed.
    fn ensure_segment(&self, request: rpc::SegmentRequest) -> Answer<'_, rpc::Segment>;
    /// Begins a watch.
    fn watch(&self, request: rpc::WatchRequest) -> Answer<'_, News>;
}

macro_rules! calls {
    ($($name:ident: $call:ident($request:ident) -> $reply:ident within $patience:ident;)*) => {
        $(fn $name(&self, request: rpc::$request) -> Answer<'_, rpc::$reply> {
            Box::pin(self.call($patience, move |mut meta| async move { meta.$call(request).await }))
        })*
    };
}

impl Control for MetaClient {
    fn status(&self) -> Answer<'_, rpc::StatusReply> {
        Box::pin(
            self.call(CALL, |mut meta| async move { meta.status(rpc::StatusRequest {}).await }),
        )
    }

    fn attach(&self, request: rpc::AttachRequest) -> Answer<'_, rpc::AttachReply> {
        Box::pin(self.call(ATTACH, move |mut meta| {
            let request = request.clone();
            async move { meta.attach(request).await }
        }))
    }

    calls! {
        detach: detach(DetachRequest) -> Empty within CALL;
        attachment: get_attachment(AttachmentRequest) -> Attachment within CHECK;
        list_segments: list_segments(ListSegmentsRequest) -> ListSegmentsReply within LOOKUP;
        find_segment: find_segment(SegmentRequest) -> FindSegmentReply within LOOKUP;
        ensure_segment: ensure_segment(SegmentRequest) -> Segment within PLACE;
    }

    fn watch(&self, request: rpc::WatchRequest) -> Answer<'_, News> {
        Box::pin(async move {
            let watch = |mut meta: rpc::meta_client::MetaClient<_>| async move {
                meta.watch(request).await
            };
            let news = self.call(WATCH, watch).await?;
            let next = |mut news: tonic::Streaming<rpc::WatchReply>| async move {
                let told = news.message().await.map_err(|status| MetaError::from(&status))?;
                Ok::<_, MetaError>(told.map(|told| (told, news)))
            };
            Ok(Box::pin(stream::try_unfold(news, next)) as News)
        })
    }
}

/// What a session has from outside.
pub(crate) struct Outside<D> {
    /// Reaches the shards.
    pub(crate) dial: D,
    /// Reaches the metadata cluster.
    pub(crate) control: Rc<dyn Control>,
    /// For the name of the attach request, and for how long pauses are.
    pub(crate) random: Box<dyn RngCore>,
    /// Counts time asleep, for leases.
    pub(crate) boot_time: Box<dyn Fn() -> BootTime>,
}

impl Outside<Tcp> {
    /// Sockets, the operating system's randomness and its clocks.
    ///
    /// # Errors
    ///
    /// `Invalid` if no endpoint was given.
    pub(crate) fn real(endpoints: &[String]) -> Result<Self, MetaError> {
        Ok(Self {
            dial: Tcp,
            control: Rc::new(MetaClient::new(endpoints)?),
            random: Box::new(rand::rng()),
            boot_time: Box::new(boot_time),
        })
    }
}

impl<D: Dial> Outside<D> {
    /// A name for the attach request that no other has.
    pub(crate) fn request_name(&mut self) -> String {
        let (high, low) = (self.random.next_u64(), self.random.next_u64());
        format!("{high:016x}{low:016x}")
    }
}

/// Now, by `CLOCK_BOOTTIME`: a machine that was suspended must not believe in leases that ran out.
fn boot_time() -> BootTime {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000
}
