//! What the demo says: lines as things happen, a status line on a terminal, and the summary.

use std::{
    io::{self, IsTerminal, Write},
    sync::Mutex,
    time::Instant,
};

use super::{faults::Fault, load::Tally};
use crate::units::ByteSize;

/// Where the demo's lines go.
pub(super) struct Screen {
    begun: Instant,
    to_stdout: bool,
    terminal: bool,
    /// What the status line showed last, for rates. A lock because lines are said through `&self`.
    last: Mutex<(Instant, u64)>,
}

impl Screen {
    /// The demo's own output, on standard output.
    pub(super) fn lines() -> Self {
        Self::to(true, io::stdout().is_terminal())
    }

    /// Messages beside an output that programs read: on standard error.
    pub(super) fn messages() -> Self {
        Self::to(false, false)
    }

    fn to(to_stdout: bool, terminal: bool) -> Self {
        let now = Instant::now();
        Self { begun: now, to_stdout, terminal, last: Mutex::new((now, 0)) }
    }

    /// Says a line for good.
    pub(super) fn say(&self, text: &str) {
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        self.write(&format!("{clear}{:5.1}  {text}\n", self.begun.elapsed().as_secs_f64()));
    }

    /// Shows how the load does: over the last status on a terminal, else as a line.
    pub(super) fn progress(&self, tally: &Tally) {
        let operations = tally.reads + tally.writes;
        let now = Instant::now();
        let rate = {
            let mut last = self.last.lock().expect("no panic while held");
            let seconds = (now - last.0).as_secs_f64().max(1e-3);
            let rate = (operations - last.1) as f64 / seconds;
            *last = (now, operations);
            rate
        };
        let text = format!(
            "load       {rate:6.0} op/s   reads {}   writes {}   verified {}   {} wrong",
            tally.reads,
            tally.writes,
            ByteSize(tally.bytes_verified),
            u8::from(tally.wrong.is_some())
        );
        if self.terminal {
            self.write(&format!("\r\x1b[K{:5.1}  {text}", self.begun.elapsed().as_secs_f64()));
        } else {
            self.say(&text);
        }
    }

    fn write(&self, text: &str) {
        let written = if self.to_stdout {
            let mut out = io::stdout().lock();
            out.write_all(text.as_bytes()).and_then(|()| out.flush())
        } else {
            io::stderr().lock().write_all(text.as_bytes())
        };
        // Nobody listens: the demo goes on, its exit code says the rest.
        drop(written);
    }
}

/// What the demo proved.
#[derive(Debug)]
pub(super) struct Summary {
    faults: Vec<Fault>,
    tally: Tally,
    /// Every fault healed in time.
    is_complete: bool,
}

impl Summary {
    pub(super) fn new(faults: Vec<Fault>, tally: Tally, is_complete: bool) -> Self {
        Self { faults, tally, is_complete }
    }

    pub(super) fn passed(&self) -> bool {
        self.is_complete && self.tally.wrong.is_none() && self.tally.bytes_verified > 0
    }

    pub(super) fn print(&self, screen: &Screen) {
        screen.say("summary");
        for fault in &self.faults {
            screen.say(&format!(
                "  killed {:28} I/O resumed after {:6.0} ms   whole again after {:5.1} s",
                fault.what,
                fault.felt.as_secs_f64() * 1e3,
                fault.healed.as_secs_f64()
            ));
        }
        let Tally { reads, writes, bytes_verified, wrong } = &self.tally;
        screen.say(&format!("  operations {}   ({reads} reads, {writes} writes)", reads + writes));
        screen.say(&format!("  verified   {} in {reads} reads", ByteSize(*bytes_verified)));
        match wrong {
            None if self.passed() => screen.say("data check PASS: nothing acknowledged was lost"),
            None if self.is_complete => screen.say("data check FAIL: nothing was verified"),
            None => screen.say("data check FAIL: the demo did not get to its end"),
            Some(wrong) => screen.say(&format!("data check FAIL: {wrong}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_passes_only_if_all_was_done_something_was_read_and_nothing_was_wrong() {
        let read = Tally { reads: 1, bytes_verified: 4096, ..Tally::default() };
        let wrong = Tally { wrong: Some("block 1".to_owned()), ..read.clone() };
        for (tally, is_complete, passed) in [
            (read.clone(), true, true),
            (read, false, false),
            (Tally::default(), true, false),
            (wrong, true, false),
        ] {
            let summary = Summary::new(Vec::new(), tally, is_complete);
            assert_eq!(summary.passed(), passed, "{summary:?}");
        }
    }
}
