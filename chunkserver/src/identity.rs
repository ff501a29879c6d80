//! Who a data folder belongs to: a file beside the store, because a server has no id before its first
//! registration and must not register before it holds the folder alone.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use tidewater_proto::ids::ServerId;

/// Version of the file.
const FORMAT: u32 = 1;
const FILE: &str = "identity.json";
const LOCK: &str = "server.lock";

/// Contents of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    format: u32,
    /// Drawn at random when the folder was made.
    pub(crate) store: String,
    /// Set by the first registration.
    pub(crate) member: Option<Membership>,
}

/// What a registration gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Membership {
    pub(crate) cluster: String,
    pub(crate) server: ServerId,
    pub(crate) segment_bytes: u64,
}

/// The folder cannot be used. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Another process runs on the folder.
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// The system refused.
    #[error("{}", .path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not what this version writes.
    #[error("{} is no identity file of format {FORMAT}", .0.display())]
    Format(PathBuf),
}

/// A data folder held by this process.
pub(crate) struct Folder {
    dir: PathBuf,
    pub(crate) identity: Identity,
    /// Dropped with the process; the lock goes with it.
    _lock: File,
}

impl Folder {
    /// Makes or opens the folder and locks it.
    pub(crate) fn open(
        dir: &Path,
        new_store: impl FnOnce() -> String,
    ) -> Result<Self, IdentityError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| IdentityError::Io { path, source }
        };
        std::fs::create_dir_all(dir).map_err(at(dir))?;
        let lock_path = dir.join(LOCK);
        let lock = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&lock_path)
            .map_err(at(&lock_path))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| IdentityError::InUse(dir.to_owned()))?;
        let path = dir.join(FILE);
        let identity = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice::<Identity>(&bytes)
                .ok()
                .filter(|i| i.format == FORMAT)
                .ok_or_else(|| IdentityError::Format(path.clone()))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Identity { format: FORMAT, store: new_store(), member: None }
            }
            Err(e) => return Err(at(&path)(e)),
        };
        let folder = Self { dir: dir.to_owned(), identity, _lock: lock };
        folder.save()?;
        Ok(folder)
    }

    /// Keeps what a registration gave, durably.
    pub(crate) fn join(&mut self, member: Membership) -> Result<(), IdentityError> {
        self.identity.member = Some(member);
        self.save()
    }

    fn save(&self) -> Result<(), IdentityError> {
        let path = self.dir.join(FILE);
        let temporary = self.dir.join("identity.json.new");
        let write = || -> io::Result<()> {
            let mut file = File::create(&temporary)?;
            file.write_all(&serde_json::to_vec_pretty(&self.identity)?)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(|source| IdentityError::Io { path: path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_outlives_the_process_and_admits_one_at_a_time() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut folder = Folder::open(dir.path(), || "one".into()).expect("new");
        let member =
            Membership { cluster: "c".into(), server: ServerId(3), segment_bytes: 1 << 20 };
        folder.join(member.clone()).expect("saved");
        let second = Folder::open(dir.path(), || "two".into());
        assert!(matches!(second, Err(IdentityError::InUse(_))));
        drop(folder);
        let again = Folder::open(dir.path(), || "three".into()).expect("opened");
        assert_eq!((again.identity.store.as_str(), again.identity.member), ("one", Some(member)));
    }

    #[test]
    fn another_format_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join(FILE), br#"{"format":9,"store":"x","member":null}"#)
            .expect("written");
        let opened = Folder::open(dir.path(), || "one".into());
        assert!(matches!(opened, Err(IdentityError::Format(_))));
    }
}
