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

    /// Whether the next piece of work is so short that whoever gives it may as well do it.
    fn is_light(&self) -> bool {
        false
    }

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
    /// The worker has work beside the jobs here.
    loaded: bool,
    closed: bool,
}

impl<J> Queue<J> {
    fn new() -> Arc<Self> {
        let state = QueueState { jobs: VecDeque::new(), loaded: false, closed: false };
        Arc::new(Self { state: Mutex::new(state), ready: Condvar::new() })
    }

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

    /// Waits for work; what there is of jobs, or none once closed.
    fn wait_all(&self) -> Option<VecDeque<J>> {
        let idle = |s: &mut QueueState<J>| s.jobs.is_empty() && !s.loaded && !s.closed;
        let mut state =
            self.ready.wait_while(self.lock(), idle).expect("no holder of this lock panics");
        let stop = state.closed && state.jobs.is_empty() && !state.loaded;
        state.loaded = false;
        (!stop).then(|| std::mem::take(&mut state.jobs))
    }

    fn close(&self) {
        self.lock().closed = true;
        self.ready.notify_all();
    }
}

/// Workers of one kind, and the way to give them jobs.
pub(crate) enum Station<W: Worker> {
    Inline(W),
    Threads {
        queue: Arc<Queue<W::Job>>,
        threads: Vec<JoinHandle<()>>,
    },
    /// One worker that the caller runs for light work and a thread for the rest. The lock is what makes
    /// them take turns.
    Shared {
        worker: Arc<Mutex<W>>,
        queue: Arc<Queue<W::Job>>,
        thread: Option<JoinHandle<()>>,
    },
}

impl<W: Worker> fmt::Debug for Station<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inline(_) => "Station::Inline",
            Self::Threads { .. } => "Station::Threads",
            Self::Shared { .. } => "Station::Shared",
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
        let queue = Queue::new();
        let mut threads = Vec::with_capacity(workers.len());
        for worker in workers {
            let (queue, inbox) = (queue.clone(), inbox.clone());
            let thread = thread::Builder::new().name(name.to_string());
            threads.push(thread.spawn(move || run(worker, &queue, &inbox))?);
        }
        Ok(Self::Threads { queue, threads })
    }

    /// Starts one thread, and lets the caller do light work itself.
    pub(crate) fn share<R: From<W::Report> + Send + 'static>(
        crew: Crew,
        name: &str,
        worker: W,
        inbox: &Arc<Inbox<R>>,
    ) -> io::Result<Self> {
        if crew == Crew::Inline {
            return Ok(Self::Inline(worker));
        }
        let (worker, queue) = (Arc::new(Mutex::new(worker)), Queue::new());
        let theirs = (worker.clone(), queue.clone(), inbox.clone());
        let thread = thread::Builder::new().name(name.to_string()).spawn(move || {
            let (worker, queue, inbox) = theirs;
            while let Some(jobs) = queue.wait_all() {
                let mut worker = worker.lock().expect("no holder of this lock panics");
                for job in jobs {
                    worker.take(job);
                }
                while let Some(report) = worker.step() {
                    inbox.push(report.into());
                    let more = std::mem::take(&mut queue.lock().jobs);
                    for job in more {
                        worker.take(job);
                    }
                }
            }
        })?;
        Ok(Self::Shared { worker, queue, thread: Some(thread) })
    }

    /// Hands over a job.
    pub(crate) fn give(&mut self, job: W::Job) {
        match self {
            Self::Inline(worker) => worker.take(job),
            Self::Threads { queue, .. } => queue.push(job),
            Self::Shared { queue, .. } => queue.lock().jobs.push_back(job),
        }
    }

    /// Does what there is to do, if the caller is the worker.
    pub(crate) fn turn<R: From<W::Report>>(&mut self, inbox: &Inbox<R>) {
        match self {
            Self::Inline(worker) => {
                while let Some(report) = worker.step() {
                    inbox.push(report.into());
                }
            }
            Self::Threads { .. } => {}
            Self::Shared { worker, queue, .. } => {
                // The thread is at work: it takes what waits before it sleeps.
                let Ok(mut worker) = worker.try_lock() else {
                    queue.ready.notify_one();
                    return;
                };
                let jobs = std::mem::take(&mut queue.lock().jobs);
                for job in jobs {
                    worker.take(job);
                }
                while worker.is_light() {
                    let Some(report) = worker.step() else { return };
                    inbox.push(report.into());
                }
                queue.lock().loaded = true;
                queue.ready.notify_one();
            }
        }
    }
}

impl<W: Worker> Drop for Station<W> {
    fn drop(&mut self) {
        let (queue, threads) = match self {
            Self::Inline(_) => return,
            Self::Threads { queue, threads } => (queue, std::mem::take(threads)),
            Self::Shared { queue, thread, .. } => (queue, thread.take().into_iter().collect()),
        };
        queue.close();
        for thread in threads {
            // A worker that panicked has said so already; dropping must not panic again.
            thread.join().ok();
        }
    }
}

fn run<W: Worker, R: From<W::Report>>(mut worker: W, queue: &Queue<W::Job>, inbox: &Inbox<R>) {
    while let Some(job) = queue.wait() {
        worker.take(job);
        while let Some(report) = worker.step() {
            inbox.push(report.into());
        }
    }
}
