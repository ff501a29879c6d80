//! One child process: started with its log in a file, signalled, awaited, never left behind.

use std::{
    env,
    fs::{self, File},
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{OnceLock, mpsc},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal};

use super::{ClusterError, Seat, wait_until};

/// Carries the harness's process id to the children, who die with the thread that started them.
pub const PARENT_VARIABLE: &str = "TIDEWATER_PARENT";
/// Names the binary where it does not lie beside the running program.
const BINARY_VARIABLE: &str = "TIDEWATER_BIN";
/// How much of a log an error shows.
const LOG_TAIL_LINES: usize = 30;

/// In a child of the harness: asks the kernel for SIGKILL when the harness ends, however it ends.
pub fn follow_parent() {
    let Some(parent) = env::var(PARENT_VARIABLE).ok().and_then(|text| text.parse::<i32>().ok())
    else {
        return;
    };
    let asked = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    // The harness may have ended before the request.
    let alive = rustix::process::getppid().map(Pid::as_raw_nonzero).map(std::num::NonZero::get);
    if asked.is_err() || alive != Some(parent) {
        eprintln!("the process that started this one is gone");
        std::process::exit(1);
    }
}

/// The `tidewater` binary that belongs to the running program.
///
/// # Errors
///
/// [`ClusterError::NoBinary`].
pub fn binary() -> Result<PathBuf, ClusterError> {
    if let Some(path) = env::var_os(BINARY_VARIABLE) {
        return Ok(path.into());
    }
    let own = env::current_exe().map_err(ClusterError::file("/proc/self/exe"))?;
    if own.file_name().is_some_and(|name| name == "tidewater") {
        return Ok(own);
    }
    // Tests, benches and examples run from a folder below the one with the binaries.
    let mut looked = own.clone();
    for folder in own.ancestors().skip(1).take(2) {
        looked = folder.join("tidewater");
        if looked.is_file() {
            return Ok(looked);
        }
    }
    Err(ClusterError::NoBinary { looked })
}

/// The `tidewater` binary; `nsenter` becomes it, so the process keeps its id and its parent.
fn command(namespace: Option<&Path>) -> Result<Command, ClusterError> {
    let binary = binary()?;
    let Some(namespace) = namespace else { return Ok(Command::new(binary)) };
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", namespace.display())).arg(binary);
    Ok(command)
}

type Started = io::Result<Child>;
type Job = (Command, mpsc::SyncSender<Started>);

/// Starts `command` from a thread that lives as long as this process: the kernel sends the
/// death signal when the *thread* that started a child ends.
fn spawn_from_lasting_thread(command: Command) -> Started {
    static SPAWNER: OnceLock<mpsc::SyncSender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, queue) = mpsc::sync_channel::<Job>(1);
        let work = move || {
            for (mut command, answer) in queue {
                if answer.send(command.spawn()).is_err() {
                    break;
                }
            }
        };
        thread::Builder::new().name("spawner".to_owned()).spawn(work).expect("a thread");
        jobs
    });
    let gone = |_| io::Error::other("the spawning thread is gone");
    let (answer, started) = mpsc::sync_channel(1);
    spawner.send((command, answer)).map_err(|_| io::Error::other("the spawning thread is gone"))?;
    started.recv().map_err(gone)?
}

/// A running child.
#[derive(Debug)]
pub(crate) struct Process {
    seat: Seat,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `tidewater` with `args`, in a network namespace where one is given; output is appended to
    /// `log`.
    pub(crate) fn start(
        seat: Seat,
        args: &[&str],
        log: &Path,
        filter: &str,
        namespace: Option<&Path>,
    ) -> Result<Self, ClusterError> {
        let file = File::options().create(true).append(true).open(log);
        let file = file.map_err(ClusterError::file(log))?;
        let copy = file.try_clone().map_err(ClusterError::file(log))?;
        let mut command = command(namespace)?;
        command
            .args(args)
            .env(PARENT_VARIABLE, std::process::id().to_string())
            .env("RUST_LOG", filter)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(copy)
            // A Ctrl-C at the terminal is for the harness; it stops the children in order.
            .process_group(0);
        let child = spawn_from_lasting_thread(command).map_err(ClusterError::process(seat))?;
        Ok(Self { seat, child, log: log.to_path_buf() })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<(), ClusterError> {
        let pid = Pid::from_child(&self.child);
        let sent = rustix::process::kill_process(pid, signal).map_err(io::Error::from);
        sent.map_err(ClusterError::process(self.seat))
    }

    /// An error if the process has ended.
    pub(crate) fn check(&mut self) -> Result<(), ClusterError> {
        match self.child.try_wait().map_err(ClusterError::process(self.seat))? {
            None => Ok(()),
            Some(status) => Err(ClusterError::Ended { seat: self.seat, status, log: self.tail() }),
        }
    }

    /// SIGKILL, and waits until the process is gone.
    pub(crate) fn kill(mut self) -> Result<(), ClusterError> {
        self.end()
    }

    /// SIGTERM, and waits for a clean end.
    pub(crate) fn stop(mut self, limit: Duration) -> Result<ExitStatus, ClusterError> {
        self.signal(Signal::TERM)?;
        let what = format!("{} to stop", self.seat);
        let status = wait_until(&what, limit, || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("still running".to_owned()),
            Err(error) => Err(error.to_string()),
        })?;
        Ok(status)
    }

    /// The last lines of the log.
    pub(crate) fn tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_else(|e| e.to_string().into_bytes());
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
    }

    fn end(&mut self) -> Result<(), ClusterError> {
        let killed = self.child.kill().and_then(|()| self.child.wait());
        killed.map(|_| ()).map_err(ClusterError::process(self.seat))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("cannot end a child: {error}");
        }
    }
}
