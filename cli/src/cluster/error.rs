//! What can go wrong with a cluster under test.

use std::{io, path::PathBuf, process::ExitStatus, time::Duration};

use tidewater_client::MetaError;

use super::spec::Seat;

/// Failure of the harness, or of a process it runs.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The data folder is on a file system that keeps files in memory only, or refuses `O_DIRECT`.
    #[error(
        "{} cannot do O_DIRECT (a tmpfs?); name a folder on a disk with --dir or TMPDIR", .folder.display()
    )]
    NoDirectIo {
        /// Where.
        folder: PathBuf,
    },
    /// A file or folder of the harness.
    #[error("{}: {source}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The `tidewater` binary was not found beside the running program.
    #[error("no tidewater binary at {}; build it, or set TIDEWATER_BIN", .looked.display())]
    NoBinary {
        /// Last place tried.
        looked: PathBuf,
    },
    /// All port ranges are taken by other clusters.
    #[error("no free range of ports on 127.0.0.1")]
    NoPorts,
    /// A process could not be started, signalled or waited for.
    #[error("{seat}: {source}")]
    Process {
        /// Which.
        seat: Seat,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A process ended by itself.
    #[error("{seat} ended with {status}; the end of its log:\n{log}")]
    Ended {
        /// Which.
        seat: Seat,
        /// How.
        status: ExitStatus,
        /// Last lines of its log.
        log: String,
    },
    /// There is no such process in the cluster, or it is not running.
    #[error("{seat} is not running")]
    NotRunning {
        /// Which.
        seat: Seat,
    },
    /// A condition did not come true in time.
    #[error("waited {waited:?} for {what}; last seen: {last}")]
    Timeout {
        /// The condition.
        what: String,
        /// How long.
        waited: Duration,
        /// What was seen instead.
        last: String,
    },
    /// The metadata cluster did not answer or refused.
    #[error(transparent)]
    Meta(#[from] MetaError),
}

impl ClusterError {
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        |source| Self::File { path, source }
    }

    pub(crate) fn process(seat: Seat) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Process { seat, source }
    }
}
