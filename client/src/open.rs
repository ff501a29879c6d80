//! How a volume is opened.

use std::time::Duration;

use tidewater_proto::rpc;

/// Operations in flight on a handle unless told otherwise: where block clients stop gaining.
const QUEUE_DEPTH: usize = 128;
/// Most operations in flight; the servers remember the numbers of all.
const QUEUE_DEPTH_MAX: usize = 4096;
/// Time for one operation, with all its retries: longer than any failover.
const IO_TIMEOUT: Duration = Duration::from_secs(30);

/// Who else may have the volume open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Nobody; an older exclusive attachment is fenced off. Refused while one exists, unless
    /// [`Open::take_over`] is asked for.
    #[default]
    Exclusive,
    /// Others who share.
    Shared,
    /// Anyone; this handle cannot write.
    ReadOnly,
}

/// Options for opening a volume.
#[derive(Clone, Debug)]
pub struct Open {
    pub(crate) mode: Mode,
    pub(crate) take_over: bool,
    pub(crate) program: String,
    pub(crate) instance: String,
    pub(crate) host: String,
    pub(crate) topology: rpc::Topology,
    pub(crate) queue_depth: usize,
    pub(crate) io_timeout: Duration,
}

impl Open {
    /// Opens with this mode.
    pub fn with_mode(mode: Mode) -> Self {
        Self {
            mode,
            take_over: false,
            program: String::new(),
            instance: String::new(),
            host: hostname(),
            topology: rpc::Topology::default(),
            queue_depth: QUEUE_DEPTH,
            io_timeout: IO_TIMEOUT,
        }
    }

    /// For this handle alone.
    pub fn exclusive() -> Self {
        Self::with_mode(Mode::Exclusive)
    }

    /// Together with others who share.
    pub fn shared() -> Self {
        Self::with_mode(Mode::Shared)
    }

    /// To read only.
    pub fn read_only() -> Self {
        Self::with_mode(Mode::ReadOnly)
    }

    /// Detaches whoever has the volume.
    #[must_use]
    pub fn take_over(self) -> Self {
        Self { take_over: true, ..self }
    }

    /// On behalf of this instance of a program.
    #[must_use]
    pub fn program(self, program: impl Into<String>, instance: impl Into<String>) -> Self {
        Self { program: program.into(), instance: instance.into(), ..self }
    }

    /// Where this process runs, for proximity.
    #[must_use]
    pub fn topology(self, topology: rpc::Topology) -> Self {
        Self { topology, ..self }
    }

    /// Operations in flight, 1 to 4,096; more of them wait.
    #[must_use]
    pub fn queue_depth(self, queue_depth: usize) -> Self {
        Self { queue_depth: queue_depth.clamp(1, QUEUE_DEPTH_MAX), ..self }
    }

    /// Time for one operation with all its retries; after it the operation fails with `TimedOut`.
    #[must_use]
    pub fn io_timeout(self, io_timeout: Duration) -> Self {
        Self { io_timeout, ..self }
    }

    pub(crate) fn attach_request(&self, volume: &str, request: String) -> rpc::AttachRequest {
        let mode = match self.mode {
            Mode::Exclusive => rpc::AttachMode::Exclusive,
            Mode::Shared => rpc::AttachMode::Shared,
            Mode::ReadOnly => rpc::AttachMode::ReadOnly,
        };
        rpc::AttachRequest {
            volume: volume.to_owned(),
            mode: mode.into(),
            program: self.program.clone(),
            instance: self.instance.clone(),
            host: self.host.clone(),
            topology: Some(self.topology.clone()),
            take_over: self.take_over,
            request,
        }
    }
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "unknown".to_owned(), |name| name.trim().to_owned())
}
