//! openraft's messages to other meta nodes, as JSON over gRPC.

use std::{future::Future, io, sync::Arc, time::Duration};

use futures::FutureExt;
use openraft::{
    BasicNode, OptionalSend, RaftNetworkFactory,
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable},
    network::{RPCOption, RPCTypes, v2::RaftNetworkV2},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
        TransferLeaderResponse, VoteRequest, VoteResponse,
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tidewater_proto::rpc::{RaftBytes, SnapshotPart, raft_client::RaftClient};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};

use super::{Snapshot, SnapshotMeta, TypeConfig, Vote, snapshot::SnapshotData};

/// Names the node that a message is for, so that one with a reused address does not take it.
pub(crate) const TO_NODE: &str = "tidewater-to";
/// Largest message between meta nodes.
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
const PART_BYTES: usize = 1 << 20;
/// Parts of a snapshot read ahead of the network.
const PARTS_AHEAD: usize = 4;

/// First part of a snapshot.
#[derive(Serialize, Deserialize)]
pub(crate) struct SnapshotHeader {
    pub(crate) vote: Vote,
    pub(crate) meta: SnapshotMeta,
    /// Name and bytes of each file, in the order sent.
    pub(crate) files: Vec<(String, u64)>,
}

/// Connects to nodes.
pub(crate) struct Factory {
    pub(crate) from: u64,
}

/// The connection to one node.
pub(crate) struct Connection {
    from: u64,
    target: u64,
    to: MetadataValue<Ascii>,
    client: Option<RaftClient<Channel>>,
}

impl RaftNetworkFactory<TypeConfig> for Factory {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Connection {
        let endpoint = Endpoint::from_shared(format!("http://{}", node.addr));
        let client = endpoint.ok().map(|endpoint| {
            let channel =
                endpoint.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true).connect_lazy();
            RaftClient::new(channel)
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX)
        });
        Connection { from: self.from, target, to: MetadataValue::from(target), client }
    }
}

fn unreachable(error: &Status) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::new(error))
}

fn malformed(error: &(impl std::error::Error + 'static)) -> RPCError<TypeConfig> {
    RPCError::Network(NetworkError::new(error))
}

impl Connection {
    fn client(&self) -> Result<RaftClient<Channel>, RPCError<TypeConfig>> {
        let bad = || unreachable(&Status::invalid_argument("node's address is no address"));
        self.client.clone().ok_or_else(bad)
    }

    fn timeout(&self, action: RPCTypes, after: Duration) -> Timeout<TypeConfig> {
        Timeout { action, id: self.from, target: self.target, timeout: after }
    }

    /// One request and its response, within the time openraft gives it.
    async fn call<Q, A, F>(
        &self,
        action: RPCTypes,
        option: &RPCOption,
        message: &Q,
        send: impl FnOnce(RaftClient<Channel>, Request<RaftBytes>) -> F,
    ) -> Result<A, RPCError<TypeConfig>>
    where
        Q: Serialize,
        A: DeserializeOwned,
        F: Future<Output = Result<Response<RaftBytes>, Status>>,
    {
        let data = serde_json::to_vec(message).map_err(|error| malformed(&error))?;
        let mut request = Request::new(RaftBytes { data: data.into() });
        request.metadata_mut().insert(TO_NODE, self.to.clone());
        let limit = option.soft_ttl();
        let answer = tokio::time::timeout(limit, send(self.client()?, request)).await;
        let response = answer
            .map_err(|_| RPCError::Timeout(self.timeout(action, limit)))?
            .map_err(|status| unreachable(&status))?;
        serde_json::from_slice(&response.into_inner().data).map_err(|error| malformed(&error))
    }
}

impl RaftNetworkV2<TypeConfig> for Connection {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let send =
            |mut client: RaftClient<Channel>, request| async move { client.append(request).await };
        self.call(RPCTypes::AppendEntries, &option, &rpc, send).await
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let send =
            |mut client: RaftClient<Channel>, request| async move { client.vote(request).await };
        self.call(RPCTypes::Vote, &option, &rpc, send).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let send = |mut client: RaftClient<Channel>, request| async move {
            client.pre_vote(request).await
        };
        self.call(RPCTypes::Vote, &option, &rpc, send).await
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let send = |mut client: RaftClient<Channel>, request| async move {
            client.transfer_leader(request).await
        };
        self.call(RPCTypes::TransferLeader, &option, &rpc, send).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let mut client = self.client().map_err(StreamingError::from)?;
        let (parts, queue) = mpsc::channel(PARTS_AHEAD);
        let reader = tokio::task::spawn_blocking(move || read_parts(vote, &snapshot, &parts));
        let mut request = Request::new(ReceiverStream::new(queue));
        request.metadata_mut().insert(TO_NODE, self.to.clone());
        let limit = option.hard_ttl();
        let answer = tokio::select! {
            answer = tokio::time::timeout(limit, client.snapshot(request)) => answer,
            closed = cancel => return Err(StreamingError::Closed(closed)),
        };
        // The reader's own error, if it had one, says more than the broken stream.
        if let Some(Ok(Err(error))) = reader.now_or_never() {
            return Err(StreamingError::Network(NetworkError::new(&error)));
        }
        let response = answer
            .map_err(|_| StreamingError::Timeout(self.timeout(RPCTypes::InstallSnapshot, limit)))?
            .map_err(|status| StreamingError::from(unreachable(&status)))?;
        serde_json::from_slice(&response.into_inner().data)
            .map_err(|error| StreamingError::from(malformed(&error)))
    }
}

fn read_parts(
    vote: Vote,
    snapshot: &Snapshot,
    parts: &mpsc::Sender<SnapshotPart>,
) -> io::Result<()> {
    let dir = Arc::clone(&snapshot.snapshot);
    let files = dir.files()?;
    let names: Vec<_> = files.iter().map(|(name, _)| name.clone()).collect();
    let header = serde_json::to_vec(&SnapshotHeader { vote, meta: snapshot.meta.clone(), files })?;
    let closed = |_| io::Error::from(io::ErrorKind::BrokenPipe);
    let first = SnapshotPart { header: header.into(), ..SnapshotPart::default() };
    parts.blocking_send(first).map_err(closed)?;
    for name in names {
        let content = std::fs::read(dir.path().join(&name))?;
        let content = bytes::Bytes::from(content);
        for start in (0..content.len()).step_by(PART_BYTES) {
            let data = content.slice(start..content.len().min(start + PART_BYTES));
            let part = SnapshotPart { header: bytes::Bytes::new(), file: name.clone(), data };
            parts.blocking_send(part).map_err(closed)?;
        }
    }
    Ok(())
}
