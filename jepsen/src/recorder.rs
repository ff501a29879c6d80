//! Writes the history down while it happens, for many threads.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, BufWriter, Write as _},
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use crate::history::{Event, Kind, Op, Process, RegisterValue, Value, write_json};

/// Events of one run; beyond it the run ends early. About a gigabyte of memory.
const EVENTS_MAX: usize = 4_000_000;
/// Values of a process: its number, shifted by this, and a counter. Fits 53 bits, as JSON wants.
const COUNTER_BITS: u32 = 24;

/// The history of a run in the making. The lock orders events of all threads by time.
pub(crate) struct Recorder {
    begun: Instant,
    next_process: AtomicU64,
    state: Mutex<State>,
}

struct State {
    events: Vec<Event>,
    /// Processes with an operation in flight.
    open: BTreeSet<u64>,
    out: BufWriter<File>,
    /// The first failure to write; the run is of no use after it.
    broken: Option<io::Error>,
}

impl Recorder {
    /// Records into a file of JSON lines.
    pub(crate) fn new(file: File) -> Self {
        let out = BufWriter::new(file);
        let state = State { events: Vec::new(), open: BTreeSet::new(), out, broken: None };
        Self { begun: Instant::now(), next_process: AtomicU64::new(0), state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }

    /// Nanoseconds since the run began.
    pub(crate) fn now(&self) -> u64 {
        self.begun.elapsed().as_nanos() as u64
    }

    /// Stamps and keeps an event.
    fn put(&self, event: Event) {
        let mut state = self.state();
        let event = Event { time: self.now(), ..event };
        if let Process::Client(process) = event.process {
            if event.kind == Kind::Invoke {
                state.open.insert(process);
            } else {
                state.open.remove(&process);
            }
        }
        if let Err(error) = write_json(&mut state.out, &event) {
            state.broken.get_or_insert(error);
        }
        state.events.push(event);
    }

    /// Records what the nemesis does.
    pub(crate) fn nemesis(&self, op: Op, text: impl Into<String>) {
        self.put(Event::nemesis(0, op, text));
    }

    /// Operations in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.state().open.len()
    }

    /// Events so far.
    pub(crate) fn len(&self) -> usize {
        self.state().events.len()
    }

    /// Whether no more events should come.
    pub(crate) fn is_full(&self) -> bool {
        self.len() >= EVENTS_MAX
    }

    /// A number that no process had.
    fn new_process(&self) -> u64 {
        self.next_process.fetch_add(1, Ordering::Relaxed)
    }

    /// The whole history.
    ///
    /// # Errors
    ///
    /// If any of it could not be written to the file.
    pub(crate) fn finish(self) -> io::Result<Vec<Event>> {
        let mut state = self.state.into_inner().expect("no panic while held");
        state.out.flush()?;
        state.broken.map_or(Ok(state.events), Err)
    }
}

/// A logical process: it has at most one operation in flight, and another number after one of unknown
/// outcome.
pub(crate) struct Voice<'a> {
    recorder: &'a Recorder,
    process: u64,
    counter: u64,
    pub(crate) session: Option<u64>,
}

/// An operation that was announced.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) op: Op,
    pub(crate) block: Option<u64>,
    pub(crate) span: u32,
    pub(crate) value: Value,
}

impl<'a> Voice<'a> {
    pub(crate) fn new(recorder: &'a Recorder, session: Option<u64>) -> Self {
        Self { recorder, process: recorder.new_process(), counter: 0, session }
    }

    pub(crate) fn process(&self) -> u64 {
        self.process
    }

    /// A value that no other write of the run has.
    pub(crate) fn fresh(&mut self) -> RegisterValue {
        self.counter += 1;
        ((self.process << COUNTER_BITS) | self.counter).cast_signed()
    }

    fn event(&self, kind: Kind, call: &Call) -> Event {
        Event {
            time: 0,
            process: Process::Client(self.process),
            kind,
            op: call.op,
            block: call.block,
            span: call.span,
            value: call.value.clone(),
            session: self.session,
            error: None,
        }
    }

    /// An operation starts.
    pub(crate) fn invoke(&self, call: &Call) {
        self.recorder.put(self.event(Kind::Invoke, call));
    }

    /// It took effect; a read found `found`.
    pub(crate) fn ok(&self, call: &Call, found: Option<Value>) {
        let event = self.event(Kind::Ok, call);
        let value = found.unwrap_or_else(|| call.value.clone());
        self.recorder.put(Event { value, ..event });
    }

    /// It did not take effect.
    pub(crate) fn fail(&self, call: &Call, error: impl Into<String>) {
        let event = self.event(Kind::Fail, call);
        self.recorder.put(Event { error: Some(error.into()), ..event });
    }

    /// Nobody knows whether it took effect.
    pub(crate) fn info(&mut self, call: &Call, error: impl Into<String>) {
        let event = self.event(Kind::Info, call);
        self.recorder.put(Event { error: Some(error.into()), ..event });
        self.process = self.recorder.new_process();
        self.counter = 0;
    }
}
