//! Waiting for what other processes do: a condition, asked again and again, and a deadline.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::ClusterError;

/// Pause between two looks at another process. Nothing tells us when its state changes.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Asks `look` until it says `Ok`; `Err` is what was seen instead, for the report.
///
/// # Errors
///
/// [`ClusterError::Timeout`] with the last thing seen.
pub fn wait_until<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<T, String>,
) -> Result<T, ClusterError> {
    let start = Instant::now();
    loop {
        let last = match look() {
            Ok(found) => return Ok(found),
            Err(last) => last,
        };
        if start.elapsed() >= limit {
            return Err(ClusterError::Timeout { what: what.to_owned(), waited: limit, last });
        }
        thread::sleep(LOOK_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_never_holds_is_reported_with_what_was_seen() {
        let mut looks = 0;
        let error = wait_until("the tide", Duration::from_millis(30), || -> Result<(), _> {
            looks += 1;
            Err("low water".to_owned())
        })
        .expect_err("never holds");
        assert!(looks > 1);
        assert!(error.to_string().ends_with("last seen: low water"), "{error}");
    }

    #[test]
    fn a_condition_that_holds_is_not_waited_for() {
        let found = wait_until("now", Duration::ZERO, || Ok::<_, String>(7));
        assert_eq!(found.expect("holds"), 7);
    }
}
