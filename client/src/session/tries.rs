//! Requests that were sent and wait for a reply.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use tidewater_proto::peer::Reply;

/// Identity of a connection within a session; never used again.
pub(crate) type LinkId = u64;

/// How a try ended.
#[derive(Debug)]
pub(crate) enum TryEnd {
    /// The server answered.
    Reply(Reply),
    /// The connection failed.
    Lost,
    /// No answer in time.
    TimedOut,
}

enum State {
    Free,
    Waiting(Option<Waker>),
    Over(TryEnd),
}

struct Slot {
    generation: u32,
    link: LinkId,
    started_tick: u64,
    state: State,
}

/// All tries of a session.
#[derive(Default)]
pub(crate) struct Tries {
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<u32>>,
    tick: Cell<u64>,
}

/// One try: resolves with its end. Dropping it forgets the try.
pub(crate) struct Try {
    tries: Rc<Tries>,
    index: u32,
    generation: u32,
}

impl Tries {
    /// Starts a try on a connection.
    pub(crate) fn start(self: &Rc<Self>, link: LinkId) -> Try {
        let mut slots = self.slots.borrow_mut();
        let (state, started_tick) = (State::Waiting(None), self.tick.get());
        let index = self.free.borrow_mut().pop().unwrap_or_else(|| {
            slots.push(Slot { generation: 0, link, started_tick, state: State::Free });
            slots.len() as u32 - 1
        });
        let slot = &mut slots[index as usize];
        let generation = slot.generation.wrapping_add(1);
        *slot = Slot { generation, link, started_tick, state };
        Try { tries: Rc::clone(self), index, generation }
    }

    /// A reply came. One for a try that is forgotten is dropped.
    pub(crate) fn answer(&self, id: u64, reply: Reply) {
        let mut slots = self.slots.borrow_mut();
        let slot = slots.get_mut(id as u32 as usize);
        if let Some(slot) = slot.filter(|s| s.generation == (id >> 32) as u32) {
            slot.end(TryEnd::Reply(reply));
        }
    }

    /// A connection failed: so did every try on it.
    pub(crate) fn lose(&self, link: LinkId) {
        for slot in self.slots.borrow_mut().iter_mut().filter(|s| s.link == link) {
            slot.end(TryEnd::Lost);
        }
    }

    /// A tick of the clock passed: ends the tries older than `limit_ticks` and names their links.
    pub(crate) fn tick(&self, limit_ticks: u64) -> BTreeSet<LinkId> {
        let now = self.tick.get() + 1;
        self.tick.set(now);
        let mut late = BTreeSet::new();
        for slot in self.slots.borrow_mut().iter_mut() {
            if slot.started_tick + limit_ticks < now && slot.end(TryEnd::TimedOut) {
                late.insert(slot.link);
            }
        }
        late
    }
}

impl Slot {
    fn end(&mut self, end: TryEnd) -> bool {
        let State::Waiting(waker) = &mut self.state else {
            return false;
        };
        if let Some(waker) = waker.take() {
            waker.wake();
        }
        self.state = State::Over(end);
        true
    }
}

impl Try {
    /// What the request and its reply carry.
    pub(crate) fn id(&self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }
}

impl Future for Try {
    type Output = TryEnd;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TryEnd> {
        let mut slots = self.tries.slots.borrow_mut();
        let state = &mut slots[self.index as usize].state;
        if let State::Waiting(waker) = state {
            match waker {
                Some(waker) => waker.clone_from(cx.waker()),
                None => *waker = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        }
        match std::mem::replace(state, State::Free) {
            State::Over(end) => Poll::Ready(end),
            State::Free | State::Waiting(_) => unreachable!("a try is polled after its end"),
        }
    }
}

impl Drop for Try {
    fn drop(&mut self) {
        self.tries.slots.borrow_mut()[self.index as usize].state = State::Free;
        self.tries.free.borrow_mut().push(self.index);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tidewater_proto::ids::Position;

    use super::*;

    #[test]
    fn a_reply_reaches_its_try_and_no_later_one_in_the_same_slot() {
        let tries = Rc::new(Tries::default());
        let first = tries.start(1);
        let late = first.id();
        drop(first);
        let second = tries.start(1);
        assert_ne!(late, second.id());
        tries.answer(late, Reply::Differs);
        let mut second = second;
        assert!((&mut second).now_or_never().is_none());
        tries.answer(second.id(), Reply::Done(Position::default()));
        assert!(matches!(second.now_or_never(), Some(TryEnd::Reply(Reply::Done(_)))));
    }

    #[test]
    fn a_lost_link_ends_its_tries_and_no_others() {
        let tries = Rc::new(Tries::default());
        let (on_one, on_two) = (tries.start(1), tries.start(2));
        tries.lose(1);
        assert!(matches!(on_one.now_or_never(), Some(TryEnd::Lost)));
        assert!(on_two.now_or_never().is_none());
    }

    #[test]
    fn a_try_times_out_after_its_ticks_and_names_the_link() {
        let tries = Rc::new(Tries::default());
        let waiting = tries.start(7);
        for _ in 0..3 {
            assert!(tries.tick(3).is_empty());
        }
        assert_eq!(tries.tick(3), BTreeSet::from([7]));
        assert!(matches!(waiting.now_or_never(), Some(TryEnd::TimedOut)));
    }
}
