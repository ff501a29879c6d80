//! The demo ends in time, whatever happens: waits are cut to what is left, and what cannot be cut is ended
//! with the process.

use std::{
    io,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

/// A moment by which something is over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline(Instant);

impl Deadline {
    /// The moment `limit` from now.
    pub(super) fn after(limit: Duration) -> Self {
        Self(Instant::now() + limit)
    }

    /// Time left; none when it has passed.
    pub(super) fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// `limit`, or what is left if that is less.
    pub(super) fn within(self, limit: Duration) -> Duration {
        limit.min(self.left())
    }
}

/// Does something unless it is dropped in time.
pub(super) struct Watchdog {
    _held: mpsc::Sender<()>,
}

impl Watchdog {
    /// Calls `overdue` on a thread of its own unless dropped within `limit`.
    ///
    /// # Errors
    ///
    /// Where there is no thread.
    pub(super) fn start(
        limit: Duration,
        overdue: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let (held, watched) = mpsc::channel();
        thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
            if watched.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                overdue();
            }
        })?;
        Ok(Self { _held: held })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_cut_to_what_is_left() {
        let deadline = Deadline::after(Duration::from_secs(10));
        assert_eq!(deadline.within(Duration::from_secs(3)), Duration::from_secs(3));
        assert!(deadline.within(Duration::from_mins(1)) <= Duration::from_secs(10));
        assert_eq!(Deadline::after(Duration::ZERO).within(Duration::from_secs(3)), Duration::ZERO);
    }

    #[test]
    fn what_is_not_over_in_time_is_ended_and_what_is_over_is_not() {
        let (tell, told) = mpsc::channel();
        let watchdog = Watchdog::start(Duration::from_millis(20), {
            let tell = tell.clone();
            move || tell.send("overdue").expect("the test waits")
        });
        assert_eq!(told.recv_timeout(Duration::from_secs(20)), Ok("overdue"));
        drop(watchdog);
        let in_time = Watchdog::start(Duration::from_mins(1), move || {
            tell.send("overdue").expect("the test waits");
        });
        drop(in_time);
        // The thread has ended without a word, and with it the last sender.
        assert_eq!(told.recv_timeout(Duration::from_secs(20)), Err(RecvTimeoutError::Disconnected));
    }
}
