//! The receiving end of [`network`](super::network).

use std::{
    fs, io,
    io::Write,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Serialize, de::DeserializeOwned};
use tidewater_proto::rpc::{RaftBytes, SnapshotPart, raft_server};
use tonic::{Request, Response, Status, Streaming};

use super::{
    Raft, Snapshot,
    network::{SnapshotHeader, TO_NODE},
    snapshot::{SnapshotData, SnapshotDir, Snapshots},
};

/// Takes messages of other meta nodes.
pub(crate) struct RaftService {
    pub(crate) node: u64,
    pub(crate) raft: Raft,
    pub(crate) snapshots: Arc<Mutex<Snapshots>>,
}

type Answer = Result<Response<RaftBytes>, Status>;

impl RaftService {
    fn check_target<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let target = request.metadata().get(TO_NODE).and_then(|to| to.to_str().ok());
        if target.and_then(|to| to.parse().ok()) == Some(self.node) {
            return Ok(());
        }
        Err(Status::failed_precondition(format!("this is meta node {}", self.node)))
    }

    fn decode<T: DeserializeOwned>(&self, request: &Request<RaftBytes>) -> Result<T, Status> {
        self.check_target(request)?;
        parse(&request.get_ref().data)
    }

    async fn receive(
        &self,
        mut parts: Streaming<SnapshotPart>,
    ) -> Result<(SnapshotHeader, SnapshotData), Status> {
        let missing = || Status::invalid_argument("snapshot ended early");
        let first = parts.message().await?.ok_or_else(missing)?;
        let header: SnapshotHeader = parse(&first.header)?;
        let path = self.snapshots.lock().unwrap_or_else(PoisonError::into_inner).building();
        fs::create_dir(&path).map_err(|error| failed(&error))?;
        let dir = SnapshotDir::temporary(path);
        let mut received = vec![0_u64; header.files.len()];
        while let Some(part) = parts.message().await? {
            let place = header.files.iter().position(|(name, _)| *name == part.file);
            let place =
                place.ok_or_else(|| Status::invalid_argument("file is not in the header"))?;
            received[place] += part.data.len() as u64;
            append(dir.path(), &part).map_err(|error| failed(&error))?;
        }
        if !header.files.iter().map(|(_, bytes)| *bytes).eq(received) {
            return Err(missing());
        }
        for (name, _) in &header.files {
            finish(dir.path(), name).map_err(|error| failed(&error))?;
        }
        Ok((header, dir))
    }
}

fn append(dir: &Path, part: &SnapshotPart) -> io::Result<()> {
    let plain = Path::new(&part.file).file_name().is_some_and(|name| name == part.file.as_str());
    if !plain {
        return Err(io::ErrorKind::InvalidFilename.into());
    }
    let mut file = fs::File::options().create(true).append(true).open(dir.join(&part.file))?;
    file.write_all(&part.data)
}

/// Makes a received file durable; an empty one came without parts.
fn finish(dir: &Path, name: &str) -> io::Result<()> {
    append(dir, &SnapshotPart { file: name.to_owned(), ..SnapshotPart::default() })?;
    fs::File::open(dir.join(name))?.sync_all()
}

fn parse<T: DeserializeOwned>(data: &[u8]) -> Result<T, Status> {
    serde_json::from_slice(data).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn failed(error: &dyn std::error::Error) -> Status {
    Status::unavailable(error.to_string())
}

fn answer<T: Serialize>(value: &T) -> Answer {
    let data = serde_json::to_vec(value).map_err(|error| failed(&error))?;
    Ok(Response::new(RaftBytes { data: data.into() }))
}

#[tonic::async_trait]
impl raft_server::Raft for RaftService {
    async fn append(&self, request: Request<RaftBytes>) -> Answer {
        let message = self.decode(&request)?;
        answer(&self.raft.append_entries(message).await.map_err(|error| failed(&error))?)
    }

    async fn vote(&self, request: Request<RaftBytes>) -> Answer {
        let message = self.decode(&request)?;
        answer(&self.raft.vote(message).await.map_err(|error| failed(&error))?)
    }

    async fn pre_vote(&self, request: Request<RaftBytes>) -> Answer {
        let message = self.decode(&request)?;
        answer(&self.raft.pre_vote(message).await.map_err(|error| failed(&error))?)
    }

    async fn transfer_leader(&self, request: Request<RaftBytes>) -> Answer {
        let message = self.decode(&request)?;
        answer(&self.raft.handle_transfer_leader(message).await.map_err(|error| failed(&error))?)
    }

    async fn snapshot(&self, request: Request<Streaming<SnapshotPart>>) -> Answer {
        self.check_target(&request)?;
        let (header, data) = self.receive(request.into_inner()).await?;
        let snapshot = Snapshot { meta: header.meta, snapshot: data };
        let installed = self.raft.install_full_snapshot(header.vote, snapshot).await;
        answer(&installed.map_err(|error| failed(&error))?)
    }
}
