//! Watches: records as they change. Level-triggered: what is sent is the record as it is now, and a
//! receiver may get the same one many times. From any node.

use std::{collections::BTreeMap, sync::Arc};

use tidewater_proto::{
    ids::{Revision, SegmentId, ServerId, VolumeId},
    record::SegmentRecord,
    rpc,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{failure::Failure, wire};
use crate::{feed::Change, live::View, node::Node};

/// Segments of one reply. More come in several, of which only the last has the revision.
const SEGMENTS_MAX: usize = 4_096;
/// Replies ahead of the receiver.
const REPLIES_AHEAD: usize = 4;

/// What a watch is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filter {
    Server(ServerId),
    Volume(VolumeId),
}

pub(super) type Stream = ReceiverStream<Result<rpc::WatchReply, Status>>;

pub(super) fn watch(node: Arc<Node>, request: &rpc::WatchRequest) -> Result<Stream, Failure> {
    use rpc::watch_request::Filter as Asked;
    let filter = match request.filter {
        Some(Asked::Server(server)) => Filter::Server(ServerId(server)),
        Some(Asked::Volume(volume)) => Filter::Volume(VolumeId(volume)),
        None => return Err(Failure::Invalid { field: "filter", reason: "none given" }),
    };
    let (replies, stream) = mpsc::channel(REPLIES_AHEAD);
    tokio::spawn(feed(node, filter, Revision(request.from_revision), replies));
    Ok(ReceiverStream::new(stream))
}

async fn feed(
    node: Arc<Node>,
    filter: Filter,
    from: Revision,
    replies: mpsc::Sender<Result<rpc::WatchReply, Status>>,
) {
    let mut moved = node.live.watch();
    // Nothing is covered from 0: a receiver that has nothing wants the full state, and to know so.
    let mut told = Told { at: (from > Revision(0)).then_some(from), size_bytes: 0 };
    loop {
        moved.mark_unchanged();
        let news = told.next(&node.live.read(), filter);
        for reply in news.into_replies() {
            if replies.send(Ok(reply)).await.is_err() {
                return;
            }
        }
        tokio::select! {
            changed = moved.changed() => if changed.is_err() { return },
            () = replies.closed() => return,
            () = node.closing.cancelled() => return,
        }
    }
}

/// What a receiver has been told.
struct Told {
    at: Option<Revision>,
    /// Of the volume it watches.
    size_bytes: u64,
}

impl Told {
    /// What is new. Nothing while a restored cluster collects: its records may be long past.
    fn next(&mut self, view: &View, filter: Filter) -> News {
        if view.state.restoring().is_some() {
            return News::default();
        }
        let mut news = next(view, filter, self.at);
        self.at = Some(news.revision);
        if let Filter::Volume(volume) = filter {
            let size_bytes = view.state.volumes.get(&volume).map_or(0, |row| row.size_bytes);
            if size_bytes != self.size_bytes {
                (self.size_bytes, news.size_bytes) = (size_bytes, size_bytes);
            }
            let records = news.segments.iter().map(AsRef::as_ref);
            news.servers = wire::addresses_of(&view.state, records);
        }
        news
    }
}

/// What a receiver is to be told.
#[derive(Debug, Default, PartialEq)]
struct News {
    revision: Revision,
    full: bool,
    segments: Vec<Arc<SegmentRecord>>,
    gone: Vec<SegmentId>,
    retired: Vec<rpc::RetiredCopy>,
    servers: Vec<rpc::ServerAddress>,
    /// 0 if it is not new.
    size_bytes: u64,
}

impl News {
    fn is_empty(&self) -> bool {
        let nothing = self.segments.is_empty() && self.gone.is_empty() && self.retired.is_empty();
        !self.full && nothing && self.size_bytes == 0
    }

    fn into_replies(self) -> Vec<rpc::WatchReply> {
        if self.is_empty() {
            return Vec::new();
        }
        let mut replies: Vec<_> = self
            .segments
            .chunks(SEGMENTS_MAX)
            .map(|records| rpc::WatchReply {
                segments: records.iter().map(|record| record.as_ref().into()).collect(),
                ..rpc::WatchReply::default()
            })
            .collect();
        if replies.is_empty() {
            replies.push(rpc::WatchReply::default());
        }
        replies[0].full = self.full;
        replies[0].servers = self.servers;
        replies[0].size_bytes = self.size_bytes;
        if let Some(last) = replies.last_mut() {
            last.revision = self.revision.0;
            let gone = |s: SegmentId| rpc::SegmentRequest {
                volume: s.volume.0,
                index: s.index,
                session: 0,
            };
            last.gone = self.gone.into_iter().map(gone).collect();
            last.retired = self.retired;
        }
        replies
    }
}

/// News since revision `at`, or the full state where the feed does not reach back.
fn next(view: &View, filter: Filter, at: Option<Revision>) -> News {
    // A receiver that has seen more than this node has is not sent back in time.
    let revision = view.revision().max(at.unwrap_or_default());
    let changes = at.and_then(|at| view.feed.since(at));
    match changes {
        Some(changes) => News { revision, ..changed(view, filter, changes) },
        None => News { revision, full: true, ..full(view, filter) },
    }
}

fn full(view: &View, filter: Filter) -> News {
    let state = &view.state;
    match filter {
        Filter::Server(server) => {
            let named = state.index.on_server(server);
            let segments = named.filter_map(|segment| state.segment(segment)).cloned().collect();
            let retired = state.retired_on(server).map(|key| retired_copy(&key)).collect();
            News { segments, retired, ..News::default() }
        }
        Filter::Volume(volume) => {
            let segments = state.segments_of(volume, 0).cloned().collect();
            News { segments, ..News::default() }
        }
    }
}

fn retired_copy(key: &crate::state::table::RetiredKey) -> rpc::RetiredCopy {
    let (volume, index) = (key.segment.volume.0, key.segment.index);
    rpc::RetiredCopy { volume, index, replica: key.replica.0 }
}

fn changed<'a>(view: &View, filter: Filter, changes: impl Iterator<Item = &'a Change>) -> News {
    let mut news = News::default();
    // Segments that changed, and whether they concerned the receiver before.
    let mut touched: BTreeMap<SegmentId, bool> = BTreeMap::new();
    for change in changes {
        let before = match filter {
            Filter::Server(server) => change.before.contains(&server),
            Filter::Volume(volume) => change.segment.volume == volume,
        };
        *touched.entry(change.segment).or_default() |= before;
    }
    for (segment, before) in touched {
        let record = view.state.segment(segment);
        let concerns = |record: &&Arc<SegmentRecord>| match filter {
            Filter::Server(server) => record.copies().any(|copy| copy.server == server),
            Filter::Volume(volume) => segment.volume == volume,
        };
        match record.filter(concerns) {
            Some(record) => news.segments.push(Arc::clone(record)),
            None if before => {
                news.gone.push(segment);
                if let Filter::Server(server) = filter {
                    let keys = view.state.retired_on(server).filter(|key| key.segment == segment);
                    news.retired.extend(keys.map(|key| retired_copy(&key)));
                }
            }
            None => {}
        }
    }
    news
}

#[cfg(test)]
mod tests {
    use openraft::{impls::leader_id_std::LeaderId, vote::RaftLeaderId};

    use super::*;
    use crate::{
        feed::Feed,
        raft::LogId,
        testing::{member, record, segment},
    };

    /// A view at `revision` in which each step put or removed one record.
    struct Steps {
        view: View,
        revision: u64,
    }

    impl Steps {
        fn new() -> Self {
            let view = View { feed: Feed::starting_after(Revision(10)), ..View::default() };
            Self { view, revision: 10 }
        }

        fn step(&mut self, change: impl FnOnce(&mut crate::state::State)) {
            change(&mut self.view.state);
            self.revision += 1;
            let leader = LeaderId::<u64, u64>::new(1, 1).to_committed();
            self.view.applied = Some(LogId::new(leader, self.revision));
            let touched = self.view.state.drain_touched();
            self.view.feed.push(Revision(self.revision), touched);
        }

        fn put(&mut self, index: u32, servers: &[u64]) {
            let record = SegmentRecord { segment: segment(index), ..record(servers) };
            self.step(|state| state.put_segment(record));
        }

        /// (full, segments sent, segments gone) for server 1.
        fn news(&self, at: Option<u64>) -> (bool, Vec<u32>, Vec<u32>) {
            let news = next(&self.view, Filter::Server(ServerId(1)), at.map(Revision));
            let sent = news.segments.iter().map(|r| r.segment.index).collect();
            (news.full, sent, news.gone.iter().map(|s| s.index).collect())
        }
    }

    #[test]
    fn a_receiver_gets_what_changed_since_or_everything() {
        let mut steps = Steps::new();
        steps.put(0, &[1, 2, 3]);
        steps.put(1, &[2, 3, 4]);
        steps.put(2, &[3, 1, 2]);
        assert_eq!(steps.news(None), (true, vec![0, 2], vec![]));
        assert_eq!(steps.news(Some(9)), (true, vec![0, 2], vec![]), "forgotten");
        assert_eq!(steps.news(Some(10)), (false, vec![0, 2], vec![]));
        assert_eq!(steps.news(Some(12)), (false, vec![2], vec![]));
        assert_eq!(steps.news(Some(13)), (false, vec![], vec![]));
        assert_eq!(steps.news(Some(99)), (false, vec![], vec![]), "ahead of this node");
        let ahead = next(&steps.view, Filter::Server(ServerId(1)), Some(Revision(99)));
        assert_eq!(ahead.revision, Revision(99));
    }

    #[test]
    fn a_segment_that_no_longer_names_the_server_is_gone_and_a_retired_copy_still_names_it() {
        let mut steps = Steps::new();
        steps.put(0, &[1, 2, 3]);
        let retired = SegmentRecord { retired: vec![member(1)], ..record(&[2, 3]) };
        steps.step(|state| state.put_segment(retired));
        assert_eq!(steps.news(Some(11)), (false, vec![0], vec![]));
        steps.put(0, &[2, 3]);
        assert_eq!(steps.news(Some(12)), (false, vec![], vec![0]));
        assert_eq!(steps.news(Some(11)), (false, vec![], vec![0]), "levels, not steps");
        steps.put(0, &[3, 2]);
        assert_eq!(steps.news(Some(13)), (false, vec![], vec![]));
        assert_eq!(steps.news(None), (true, vec![], vec![]));
    }

    #[test]
    fn copies_of_a_purged_segment_are_sent_to_be_deleted() {
        use crate::state::{rows::RetiredRow, table::RetiredKey};
        let mut steps = Steps::new();
        steps.put(0, &[1, 2]);
        steps.step(|state| {
            let record = state.remove_segment(segment(0)).expect("placed");
            for copy in record.copies() {
                let (server, replica) = (copy.server, copy.replica);
                let key = RetiredKey { server, segment: segment(0), replica };
                state.retired.insert(key, RetiredRow { retired_ms: 0 });
            }
        });
        for at in [Some(Revision(11)), None] {
            let news = next(&steps.view, Filter::Server(ServerId(1)), at);
            let replicas: Vec<_> = news.retired.iter().map(|copy| copy.replica).collect();
            assert_eq!(replicas, [1], "{at:?}");
        }
        let volume = next(&steps.view, Filter::Volume(VolumeId(1)), Some(Revision(11)));
        assert_eq!((volume.gone.len(), volume.retired.len()), (1, 0));
    }

    #[test]
    fn a_volumes_watch_tells_its_size_and_where_servers_listen_and_nothing_during_a_restore() {
        let mut world = crate::testing::World::new(2);
        let create = crate::state::command::Command::CreateVolume(crate::testing::volume("v", 2));
        world.run(create).expect("create");
        let mut view = View { state: world.state, ..View::default() };
        view.state.put_segment(record(&[1, 2]));
        let filter = Filter::Volume(VolumeId(1));
        let mut told = Told { at: None, size_bytes: 0 };
        let size = 64 * crate::testing::MIB;
        let news = told.next(&view, filter);
        assert_eq!((news.full, news.size_bytes, news.servers.len()), (true, size, 2));
        assert!(told.next(&view, filter).is_empty());
        view.state.volumes.get_mut(&VolumeId(1)).expect("volume").size_bytes = 2 * size;
        let news = told.next(&view, filter);
        assert_eq!((news.full, news.size_bytes, news.segments.len()), (false, 2 * size, 0));
        let replies = news.into_replies();
        assert_eq!((replies.len(), replies[0].size_bytes), (1, 2 * size));

        crate::state::apply::restore::begin(&mut view.state, 2);
        let mut late = Told { at: None, size_bytes: 0 };
        assert!(late.next(&view, filter).into_replies().is_empty());
        assert!(late.at.is_none(), "it is told all once the cluster serves");
    }

    #[test]
    fn a_long_answer_comes_in_parts_of_which_the_last_has_the_revision() {
        let mut steps = Steps::new();
        for index in 0..=SEGMENTS_MAX as u32 {
            let record = SegmentRecord { segment: segment(index), ..record(&[1]) };
            steps.step(|state| state.put_segment(record));
        }
        let replies = next(&steps.view, Filter::Volume(VolumeId(1)), None).into_replies();
        let parts: Vec<_> =
            replies.iter().map(|r| (r.full, r.revision, r.segments.len())).collect();
        assert_eq!(parts, [(true, 0, SEGMENTS_MAX), (false, steps.revision, 1)]);
    }
}
