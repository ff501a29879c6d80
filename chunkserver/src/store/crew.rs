//! Who does the blocking work: threads in production, the caller itself in tests.

use std::{
    collections::VecDeque,
    fmt, io,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::{self, JoinHandle},
};

use tokio::sync::Notify;

/// Does jobs that block.
pub(crate) trait Worker: Send + 'static {
    /// What it is given.
    type Job: Send + 'static;
    /// What it reports.
    type Report: Send + 'static;
    /// Whether it wants all waiting jobs at once; else one at a time.
    const GROUPS: bool = false;

    /// Accepts a job; does not block.
    fn take(&mut self, job: Self::Job);

    /// Does a piece of work; `None` if there is none until the next job.
    fn step(&mut self) -> Option<Self::Report>;
}

/// Whether jobs are done by threads or by the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crew {
    /// By threads of their own.
    Threads,
    /// By the caller, within `submit` and `poll`: every run is the same.
    Inline,
}

/// Reports on their way back. The lock is held for a push or a swap, by threads that do nothing
/// else meanwhile.
pub(crate) struct Inbox<R> {
    reports: Mutex<VecDeque<R>>,
    notify: Arc<Notify>,
}

impl<R> Inbox<R> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { reports: Mutex::default(), notify: Arc::default() })
    }

    pub(crate) fn notifier(&self) -> Arc<Notify> {
        self.notify.clone()
    }

    pub(crate) fn push(&self, report: R) {
        self.reports.lock().expect("no holder of this lock panics").push_back(report);
        self.notify.notify_one();
    }

    pub(crate) fn drain(&self) -> VecDeque<R> {
        std::mem::take(&mut *self.reports.lock().expect("no holder of this lock panics"))
    }
}

pub(crate) struct Queue<J> {
    state: Mutex<QueueState<J>>,
    ready: Condvar,
}

struct QueueState<J> {
    jobs: VecDeque<J>,
    closed: bool,
}

impl<J> Queue<J> {
    fn lock(&self) -> MutexGuard<'_, QueueState<J>> {
        self.state.lock().expect("no holder of this lock panics")
    }

    fn push(&self, job: J) {
        self.lock().jobs.push_back(job);
        self.ready.notify_one();
    }

    fn wait(&self) -> Option<J> {
        let waiting = |state: &mut QueueState<J>| state.jobs.is_empty() && !state.closed;
        let mut state =
            self.ready.wait_while(self.lock(), waiting).expect("no holder of this lock panics");
        state.jobs.pop_front()
    }

    fn close(&self) {
        self.lock().closed = true;
        self.ready.notify_all();
    }
}

/// Workers of one kind, and the way to give them jobs.
pub(crate) enum Station<W: Worker> {
    Inline(W),
    Threads { queue: Arc<Queue<W::Job>>, threads: Vec<JoinHandle<()>> },
}

impl<W: Worker> fmt::Debug for Station<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inline(_) => "Station::Inline",
            Self::Threads { .. } => "Station::Threads",
        })
    }
}

impl<W: Worker> Station<W> {
    /// Starts one thread a worker, or keeps the first worker for the caller.
    pub(crate) fn start<R: From<W::Report> + Send + 'static>(
        crew: Crew,
        name: &str,
        mut workers: Vec<W>,
        inbox: &Arc<Inbox<R>>,
    ) -> io::Result<Self> {
        if crew == Crew::Inline {
            return Ok(Self::Inline(workers.swap_remove(0)));
        }
        let state = QueueState { jobs: VecDeque::new(), closed: false };
        let queue = Arc::new(Queue { state: Mutex::new(state), ready: Condvar::new() });
        let mut threads = Vec::with_capacity(workers.len());
        for worker in workers {
            let (queue, inbox) = (queue.clone(), inbox.clone());
            let thread = thread::Builder::new().name(name.to_string());
            threads.push(thread.spawn(move || run(worker, &queue, &inbox))?);
        }
        Ok(Self::Threads { queue, threads })
    }

    /// Hands over a job.
    pub(crate) fn give(&mut self, job: W::Job) {
        match self {
            Self::Inline(worker) => worker.take(job),
            Self::Threads { queue, .. } => queue.push(job),
        }
    }

    /// Does what there is to do, if the caller is the worker.
    pub(crate) fn turn<R: From<W::Report>>(&mut self, inbox: &Inbox<R>) {
        if let Self::Inline(worker) = self {
            while let Some(report) = worker.step() {
                inbox.push(report.into());
            }
        }
    }
}

impl<W: Worker> Drop for Station<W> {
    fn drop(&mut self) {
        if let Self::Threads { queue, threads } = self {
            queue.close();
            for thread in threads.drain(..) {
                // A worker that panicked has said so already; dropping must not panic again.
                thread.join().ok();
            }
        }
    }
}

fn run<W: Worker, R: From<W::Report>>(mut worker: W, queue: &Queue<W::Job>, inbox: &Inbox<R>) {
    while let Some(job) = queue.wait() {
        worker.take(job);
        loop {
            if W::GROUPS {
                let waiting = std::mem::take(&mut queue.lock().jobs);
                for job in waiting {
                    worker.take(job);
                }
            }
            let Some(report) = worker.step() else { break };
            inbox.push(report.into());
        }
    }
}
