//! Keeps a read-modify-write apart from every other change of the same sectors of an export.

use std::{
    cell::RefCell,
    future::Future,
    ops::Range,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

/// Who may hold overlapping ranges together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Changes of whole sectors: the device may order them as it likes.
    Whole,
    /// Changes of parts of sectors, which read first: alone.
    Partial,
}

struct Held {
    id: u64,
    kind: Kind,
    range: Range<u64>,
}

struct Waiting {
    id: u64,
    kind: Kind,
    range: Range<u64>,
    waker: Option<Waker>,
    granted: bool,
}

#[derive(Default)]
struct Table {
    next_id: u64,
    held: Vec<Held>,
    /// In order of arrival; nobody overtakes one they conflict with.
    waiting: Vec<Waiting>,
}

/// The ranges of one export that are being changed. Bounded by the requests in flight.
#[derive(Clone, Default)]
pub(crate) struct RangeLock(Rc<RefCell<Table>>);

/// A range held; given back when dropped.
pub(crate) struct Guard {
    lock: RangeLock,
    id: u64,
}

fn conflict(a: (Kind, &Range<u64>), b: (Kind, &Range<u64>)) -> bool {
    let overlap = a.1.start < b.1.end && b.1.start < a.1.end;
    overlap && (a.0 == Kind::Partial || b.0 == Kind::Partial)
}

impl RangeLock {
    /// Waits until nobody holds, or waited before for, what conflicts with the range.
    pub(crate) fn hold(&self, kind: Kind, range: Range<u64>) -> Hold {
        let mut table = self.0.borrow_mut();
        let id = table.next_id;
        table.next_id += 1;
        if table.is_free(kind, &range) {
            table.held.push(Held { id, kind, range });
        } else {
            table.waiting.push(Waiting { id, kind, range, waker: None, granted: false });
        }
        Hold { lock: Some(self.clone()), id }
    }
}

impl Table {
    fn is_free(&self, kind: Kind, range: &Range<u64>) -> bool {
        !self.held.iter().any(|h| conflict((kind, range), (h.kind, &h.range)))
            && !self.waiting.iter().any(|w| conflict((kind, range), (w.kind, &w.range)))
    }

    fn leave(&mut self, id: u64) {
        self.held.retain(|h| h.id != id);
        self.waiting.retain(|w| w.id != id);
        self.grant();
    }

    fn grant(&mut self) {
        for i in 0..self.waiting.len() {
            let (before, rest) = self.waiting.split_at_mut(i);
            let this = &mut rest[0];
            let me = (this.kind, &this.range);
            let blocked = this.granted
                || self.held.iter().any(|h| conflict(me, (h.kind, &h.range)))
                || before.iter().any(|w| !w.granted && conflict(me, (w.kind, &w.range)));
            if !blocked {
                this.granted = true;
                let (id, kind, range) = (this.id, this.kind, this.range.clone());
                self.held.push(Held { id, kind, range });
                if let Some(waker) = this.waker.take() {
                    waker.wake();
                }
            }
        }
        self.waiting.retain(|w| !w.granted);
    }
}

/// Waits for a range.
pub(crate) struct Hold {
    lock: Option<RangeLock>,
    id: u64,
}

impl Future for Hold {
    type Output = Guard;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Guard> {
        let id = self.id;
        let lock = self.lock.take().expect("polled after it was ready");
        let mut table = lock.0.borrow_mut();
        if let Some(waiting) = table.waiting.iter_mut().find(|w| w.id == id) {
            waiting.waker = Some(cx.waker().clone());
            drop(table);
            self.lock = Some(lock);
            return Poll::Pending;
        }
        drop(table);
        Poll::Ready(Guard { lock, id })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(lock) = &self.lock {
            lock.0.borrow_mut().leave(self.id);
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.lock.0.borrow_mut().leave(self.id);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn whole_changes_of_one_range_go_together_and_a_partial_one_alone() {
        let lock = RangeLock::default();
        let first = lock.hold(Kind::Whole, 0..1024).now_or_never().expect("free");
        let second = lock.hold(Kind::Whole, 512..1024).now_or_never().expect("shared");
        let mut partial = lock.hold(Kind::Partial, 512..1024);
        assert!((&mut partial).now_or_never().is_none());
        let mut late = lock.hold(Kind::Whole, 0..1024);
        assert!((&mut late).now_or_never().is_none(), "nobody overtakes");
        assert!(lock.hold(Kind::Partial, 1024..2048).now_or_never().is_some(), "elsewhere is free");
        drop((first, second));
        let partial = partial.now_or_never().expect("free now");
        assert!((&mut late).now_or_never().is_none());
        drop(partial);
        assert!(late.now_or_never().is_some());
    }

    #[test]
    fn who_stops_waiting_lets_the_next_one_in() {
        let lock = RangeLock::default();
        let first = lock.hold(Kind::Partial, 0..512).now_or_never().expect("free");
        let quitter = lock.hold(Kind::Partial, 0..512);
        let last = lock.hold(Kind::Partial, 0..512);
        drop(quitter);
        drop(first);
        assert!(last.now_or_never().is_some());
    }
}
