//! Calls to the metadata cluster: finds the leader, follows it, gives up after a deadline.

use std::{
    collections::BTreeMap,
    error::Error as _,
    fmt,
    future::Future,
    iter,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::rpc::meta_client::MetaClient as Grpc;
use tokio::time::{Instant, sleep, timeout};
use tonic::{
    Code, ConnectError, Response, Status,
    transport::{Channel, Endpoint},
};

/// How a node that does not lead names the leader; empty where it knows of none.
const LEADER_KEY: &str = "tidewater-leader";
/// Time for a TCP connection to a meta node.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// A node from which nothing has come for this time is asked for a sign of life, and given up after as much again:
/// a watch of a node that hangs or is cut off would wait for ever.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
/// Pause after each endpoint failed once, so that a cluster without a leader is not hammered.
const ROUND_PAUSE: Duration = Duration::from_millis(50);
/// Largest answer: the segments of a 64 TiB volume.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Addresses remembered beside the given ones; leaders that were named.
const ADDRESSES_MAX: usize = 64;

/// A call that the metadata cluster refused, or that did not reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaError {
    /// What went wrong.
    pub code: MetaCode,
    /// The server's words, for people.
    pub message: String,
}

/// What went wrong with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MetaCode {
    /// No such volume, program, server or segment.
    NotFound,
    /// The name is taken.
    Exists,
    /// The state does not allow it: attached, stale, wrong phase.
    Conflict,
    /// Malformed.
    Invalid,
    /// No placement: too few servers with room.
    NoRoom,
    /// No meta node answered, or none of them leads. Whether the call took effect is open.
    Unreachable,
    /// The name is taken, and a first try of the same call was not answered: either that try took it,
    /// or somebody else did.
    Unknown,
    /// The server does not know the call.
    Unsupported,
    /// The server failed.
    Internal,
}

impl fmt::Display for MetaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            MetaCode::Unreachable => write!(f, "metadata cluster unreachable: {}", self.message),
            MetaCode::NotFound
            | MetaCode::Exists
            | MetaCode::Conflict
            | MetaCode::Invalid
            | MetaCode::NoRoom
            | MetaCode::Unsupported
            | MetaCode::Internal => f.write_str(&self.message),
            MetaCode::Unknown => {
                write!(
                    f,
                    "{}, perhaps by this call, whose first try was not answered",
                    self.message
                )
            }
        }
    }
}

impl std::error::Error for MetaError {}

impl MetaError {
    /// Whether another try may succeed by itself.
    pub fn is_transient(&self) -> bool {
        self.code == MetaCode::Unreachable
    }
}

impl From<&Status> for MetaError {
    fn from(status: &Status) -> Self {
        let code = match status.code() {
            Code::NotFound => MetaCode::NotFound,
            Code::AlreadyExists => MetaCode::Exists,
            Code::FailedPrecondition => MetaCode::Conflict,
            Code::InvalidArgument | Code::OutOfRange => MetaCode::Invalid,
            Code::ResourceExhausted => MetaCode::NoRoom,
            Code::Unimplemented => MetaCode::Unsupported,
            Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::Aborted
            | Code::Unknown => MetaCode::Unreachable,
            Code::Ok
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Internal
            | Code::DataLoss => MetaCode::Internal,
        };
        Self { code, message: status.message().to_owned() }
    }
}

/// How long a call may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// One node's time to answer.
    pub per_try: Duration,
    /// All tries together.
    pub total: Duration,
}

/// Client of all meta nodes. Bound to the runtime that first uses it.
pub struct MetaClient {
    /// A lock, because calls of many tasks share it; never held across an await.
    nodes: Mutex<Nodes>,
}

struct Nodes {
    addresses: Vec<String>,
    current: usize,
    channels: BTreeMap<String, Channel>,
}

impl Nodes {
    fn client(&mut self) -> Result<(usize, Grpc<Channel>), MetaError> {
        let address = self.addresses[self.current].clone();
        let channel = if let Some(channel) = self.channels.get(&address) {
            channel.clone()
        } else {
            let endpoint = Endpoint::from_shared(format!("http://{address}"))
                .map_err(|e| MetaError { code: MetaCode::Invalid, message: e.to_string() })?;
            let channel = endpoint
                .connect_timeout(CONNECT_TIMEOUT)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(SIGN_OF_LIFE)
                .keep_alive_timeout(SIGN_OF_LIFE)
                .connect_lazy();
            self.channels.insert(address, channel.clone());
            channel
        };
        let client = Grpc::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        Ok((self.current, client))
    }

    /// Goes to the leader that was named, or else to the next node. Nothing to do if another call
    /// has gone on already. True if all nodes have had their turn.
    fn move_on(&mut self, failed: usize, leader: Option<&str>) -> bool {
        if self.current != failed {
            return false;
        }
        let known = leader.and_then(|l| self.addresses.iter().position(|a| a == l));
        self.current = match (known, leader) {
            (Some(at), _) if at != failed => at,
            (None, Some(leader)) if self.addresses.len() < ADDRESSES_MAX => {
                self.addresses.push(leader.to_owned());
                self.addresses.len() - 1
            }
            (_, _) => (failed + 1) % self.addresses.len(),
        };
        leader.is_none() && self.current == 0
    }
}

impl MetaClient {
    /// A client that starts with these addresses, `host:port` each.
    ///
    /// # Errors
    ///
    /// `Invalid` if there are none.
    pub fn new(endpoints: &[String]) -> Result<Self, MetaError> {
        if endpoints.is_empty() {
            let message = "no endpoint of a meta node given".to_owned();
            return Err(MetaError { code: MetaCode::Invalid, message });
        }
        let addresses = endpoints
            .iter()
            .map(|e| e.trim_start_matches("http://").trim_end_matches('/').to_owned())
            .collect();
        let nodes = Nodes { addresses, current: 0, channels: BTreeMap::new() };
        Ok(Self { nodes: Mutex::new(nodes) })
    }

    fn nodes(&self) -> std::sync::MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls until a node answers for good or the patience ends.
    ///
    /// # Errors
    ///
    /// [`MetaError`].
    pub async fn call<R, F, Fut>(&self, patience: Patience, mut call: F) -> Result<R, MetaError>
    where
        F: FnMut(Grpc<Channel>) -> Fut,
        Fut: Future<Output = Result<Response<R>, Status>>,
    {
        let deadline = Instant::now() + patience.total;
        let mut unanswered = false;
        loop {
            let (node, client) = self.nodes().client()?;
            let left = deadline.saturating_duration_since(Instant::now());
            let status = match timeout(patience.per_try.min(left), call(client)).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded("no answer in time"),
            };
            let mut error = MetaError::from(&status);
            if unanswered && error.code == MetaCode::Exists {
                error.code = MetaCode::Unknown;
            }
            if error.code != MetaCode::Unreachable || Instant::now() >= deadline {
                return Err(error);
            }
            unanswered |= !is_untouched(&status);
            let leader = status.metadata().get(LEADER_KEY).and_then(|v| v.to_str().ok());
            let leader = leader.filter(|l| !l.is_empty());
            let round_over = self.nodes().move_on(node, leader);
            if round_over || leader.is_some() && error_repeats(node, &self.nodes()) {
                sleep(ROUND_PAUSE.min(deadline.saturating_duration_since(Instant::now()))).await;
            }
        }
    }
}

/// Whether the call has certainly done nothing: it reached nobody, or a node that does not lead.
fn is_untouched(status: &Status) -> bool {
    if status.metadata().contains_key(LEADER_KEY) {
        return true;
    }
    let first = status.source();
    iter::successors(first, |&error| error.source())
        .any(|error| error.downcast_ref::<ConnectError>().is_some())
}

/// A node that names itself the leader and yet refuses is about to change its mind.
fn error_repeats(node: usize, nodes: &Nodes) -> bool {
    nodes.current == node
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes() -> Nodes {
        let addresses = ["a:1", "b:1", "c:1"].map(str::to_owned).to_vec();
        Nodes { addresses, current: 0, channels: BTreeMap::new() }
    }

    #[test]
    fn a_named_leader_is_followed_even_if_it_was_unknown() {
        let mut nodes = nodes();
        assert!(!nodes.move_on(0, Some("c:1")));
        assert_eq!(nodes.current, 2);
        assert!(!nodes.move_on(2, Some("d:1")));
        assert_eq!(nodes.addresses[nodes.current], "d:1");
    }

    /// What a call ends with whose tries are answered so, one after the other.
    async fn call_answered(answers: Vec<Status>) -> MetaCode {
        let meta = MetaClient::new(&["a:1".to_owned(), "b:1".to_owned()]).expect("addresses");
        let limit = Duration::from_secs(10);
        let mut answers = answers.into_iter();
        let error = meta.call(Patience { per_try: limit, total: limit }, |_| {
            let answer = answers.next().expect("no more tries than answers");
            async move { Err::<Response<()>, _>(answer) }
        });
        error.await.expect_err("refused").code
    }

    #[tokio::test]
    async fn a_name_taken_after_an_unanswered_try_is_not_told_as_taken_by_others() {
        let taken = || Status::already_exists("volume v exists");
        let mut elsewhere = Status::unavailable("does not lead");
        elsewhere.metadata_mut().insert(LEADER_KEY, "".parse().expect("ASCII"));
        let lost = Status::unavailable("connection reset");
        let nobody = Status::from_error(Box::new(ConnectError("refused".into())));
        assert_eq!(call_answered(vec![taken()]).await, MetaCode::Exists);
        assert_eq!(call_answered(vec![elsewhere, taken()]).await, MetaCode::Exists);
        assert_eq!(call_answered(vec![nobody, taken()]).await, MetaCode::Exists);
        assert_eq!(call_answered(vec![lost, taken()]).await, MetaCode::Unknown);
    }

    #[test]
    fn without_a_leader_every_node_has_its_turn() {
        let mut nodes = nodes();
        assert!(!nodes.move_on(0, None));
        assert!(!nodes.move_on(0, None), "another call has gone on already");
        assert!(!nodes.move_on(1, None));
        assert!(nodes.move_on(2, None), "the round is over");
    }
}
