//! Snapshots on disk: a RocksDB checkpoint in a folder of its own.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{SnapshotMeta, store::Store};

const META_FILE: &str = "meta.json";

/// A snapshot's folder. It is removed when the last user of an obsolete one lets go, so that one
/// being sent is not pulled away.
#[derive(Debug)]
pub(crate) struct SnapshotDir {
    path: PathBuf,
    obsolete: AtomicBool,
}

/// What openraft passes around as a snapshot's data.
pub(crate) type SnapshotData = Arc<SnapshotDir>;

impl SnapshotDir {
    /// An existing folder; removed on drop unless it is kept.
    pub(crate) fn temporary(path: PathBuf) -> SnapshotData {
        Arc::new(Self { path, obsolete: AtomicBool::new(true) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Files of the checkpoint: name and bytes.
    pub(crate) fn files(&self) -> io::Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            // RocksDB's own log and lock appear when a checkpoint is read.
            if name != META_FILE && !name.starts_with("LO") {
                files.push((name, entry.metadata()?.len()));
            }
        }
        files.sort_unstable();
        Ok(files)
    }
}

impl Drop for SnapshotDir {
    fn drop(&mut self) {
        if self.obsolete.load(Ordering::Relaxed)
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove old snapshot");
        }
    }
}

/// Up to where a snapshot reaches.
pub(super) fn read_meta(path: &Path) -> io::Result<SnapshotMeta> {
    Ok(serde_json::from_slice(&fs::read(path.join(META_FILE))?)?)
}

fn write_meta(path: &Path, meta: &SnapshotMeta) -> io::Result<()> {
    let mut file = fs::File::create(path.join(META_FILE))?;
    file.write_all(&serde_json::to_vec(meta)?)?;
    file.sync_all()?;
    fs::File::open(path)?.sync_all()
}

/// The folder that holds the snapshots of one node.
pub(crate) struct Snapshots {
    dir: PathBuf,
    next: u64,
    current: Option<(SnapshotMeta, SnapshotData)>,
}

impl Snapshots {
    /// Finds the newest complete snapshot and removes all else.
    pub(crate) fn open(store: &Store) -> io::Result<Self> {
        let dir = store.dir().join("snapshots");
        fs::create_dir_all(&dir)?;
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            match entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok()) {
                Some(number) => numbers.push(number),
                None => fs::remove_dir_all(entry.path())?,
            }
        }
        numbers.sort_unstable();
        let mut snapshots = Self { dir, next: numbers.last().map_or(1, |n| n + 1), current: None };
        for number in numbers.into_iter().rev() {
            let path = snapshots.numbered(number);
            if snapshots.current.is_some() {
                fs::remove_dir_all(path)?;
                continue;
            }
            // A snapshot is for sending only: one damaged by a power loss is made again when needed.
            let Ok(meta) = read_meta(&path) else {
                tracing::warn!(path = %path.display(), "removes a damaged snapshot");
                fs::remove_dir_all(path)?;
                continue;
            };
            let data = SnapshotDir { path, obsolete: AtomicBool::new(false) };
            snapshots.current = Some((meta, Arc::new(data)));
        }
        Ok(snapshots)
    }

    fn numbered(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number:020}"))
    }

    pub(crate) fn current(&self) -> Option<&(SnapshotMeta, SnapshotData)> {
        self.current.as_ref()
    }

    /// A path for a snapshot being made; what is left there at a crash is removed at the next start.
    pub(crate) fn building(&mut self) -> PathBuf {
        self.next += 1;
        self.dir.join(format!("building-{}", self.next))
    }

    /// Makes the finished folder the current snapshot and drops the one before.
    pub(crate) fn keep(
        &mut self,
        meta: &SnapshotMeta,
        data: &SnapshotData,
    ) -> io::Result<SnapshotData> {
        if let Some((_, current)) = &self.current
            && current.path == data.path
        {
            return Ok(Arc::clone(current));
        }
        write_meta(&data.path, meta)?;
        self.next += 1;
        let path = self.numbered(self.next);
        fs::rename(&data.path, &path)?;
        data.obsolete.store(false, Ordering::Relaxed);
        fs::File::open(&self.dir)?.sync_all()?;
        let kept = Arc::new(SnapshotDir { path, obsolete: AtomicBool::new(false) });
        if let Some((_, old)) = self.current.replace((meta.clone(), Arc::clone(&kept))) {
            old.obsolete.store(true, Ordering::Relaxed);
        }
        Ok(kept)
    }
}
