//! One request to one segment, driven to its end.

use std::{rc::Rc, time::Duration};

use tidewater_proto::{
    entry::Payload,
    frame::Frame,
    geometry::Extent,
    ids::{Epoch, OpId, SegmentId, ServerId, Token},
    peer::{Action as Ask, Refusal, Reply, Request},
};
use tokio::time::{Instant, sleep};

use super::{
    attach::Session,
    dial::{Dial, FrameSink as _},
    tries::TryEnd,
};
use crate::{
    error::{BlockError, Kind},
    retry::{Action, Class, End, Event, Retry},
};

/// What became of a request.
#[derive(Debug)]
pub(crate) enum PartDone {
    /// The server's answer; never a refusal.
    Reply(Reply),
    /// There is no such segment.
    Hole,
}

/// A number of the session, open as long as this lives.
struct Number<'a, D: Dial> {
    session: &'a Session<D>,
    number: u64,
}

impl<D: Dial> Drop for Number<'_, D> {
    fn drop(&mut self) {
        if self.session.window.borrow_mut().close(self.number) {
            self.session.window_moved.notify_waiters();
        }
    }
}

impl<D: Dial> Session<D> {
    async fn open_number(&self) -> Number<'_, D> {
        loop {
            let opened = self.window.borrow_mut().open();
            if let Some(number) = opened {
                return Number { session: self, number };
            }
            self.window_moved.notified().await;
        }
    }

    /// Sends `ask` to the segment's primary, and again, until it is answered or fails for good.
    ///
    /// What is rare is boxed, so that the state of a request is small: it is moved as it is made.
    pub(crate) async fn run_part(
        self: &Rc<Self>,
        segment: u32,
        extent: Option<Extent>,
        ask: Ask<Payload>,
    ) -> Result<PartDone, BlockError> {
        let deadline = Instant::now() + self.io_timeout;
        let number = self.open_number().await;
        let (mut retry, mut action) = Retry::new(class(&ask), self.map.route(segment));
        let mut frame = self.frame(segment, number.number, ask);
        let mut answer = None;
        loop {
            let event = match &action {
                Action::Send { server, epoch } => {
                    self.try_once(*server, *epoch, &mut frame, &mut answer).await
                }
                Action::RefreshMap { fresh } => Box::pin(self.map.refresh(segment, *fresh)).await,
                Action::Place => Box::pin(self.map.place(segment)).await,
                Action::CheckToken(token) => Box::pin(self.check_token(*token)).await,
                Action::Pause { ms } => {
                    Box::pin(sleep(Duration::from_millis(*ms))).await;
                    Event::Paused
                }
                Action::Finish(end) => {
                    self.stats.retried(retry.tries().saturating_sub(1));
                    return self.part_end(*end, answer, segment, extent, retry.tries());
                }
            };
            let jitter =
                if event == Event::Answered { 0 } else { self.random.borrow_mut().next_u64() };
            action = retry.step(event, jitter);
            let over = !matches!(action, Action::Finish(_)) && Instant::now() >= deadline;
            if over {
                action = retry.step(Event::Expired, 0);
            }
        }
    }

    /// The request as sent; each try fills in what is its own.
    fn frame(&self, segment: u32, number: u64, action: Ask<Payload>) -> Frame {
        let request = Request {
            segment: SegmentId { volume: self.volume, index: segment },
            epoch: Epoch(0),
            token: Token(0),
            op: OpId { session: self.id, number },
            lowest_open: 0,
            action,
        };
        Frame::Request { id: 0, request }
    }

    async fn try_once(
        self: &Rc<Self>,
        server: ServerId,
        epoch: Epoch,
        frame: &mut Frame,
        answer: &mut Option<Reply>,
    ) -> Event {
        let Frame::Request { id, request } = frame else {
            unreachable!("a request is a request");
        };
        let Some((key, address)) = self.map.shard(server, request.segment) else {
            return Event::ConnectionLost { sent: false };
        };
        let up = match self.links.up(key) {
            Some(up) => Some(up),
            None => Box::pin(self.links.get(key, address)).await,
        };
        let Some((link, sender)) = up else {
            return Event::ConnectionLost { sent: false };
        };
        let read = match &request.action {
            Ask::Read { extent } => Some(*extent),
            Ask::Write { .. }
            | Ask::Zero { .. }
            | Ask::Compare { .. }
            | Ask::Flush { .. }
            | Ask::Extents { .. } => None,
        };
        let sent = self.tries.start(link);
        *id = sent.id();
        request.epoch = epoch;
        request.token = self.token.get();
        request.lowest_open = self.window.borrow().lowest_open();
        sender.send(frame);
        let reply = match sent.await {
            TryEnd::Reply(Reply::Refused(refusal)) => return self.refused(refusal),
            TryEnd::Reply(reply) => reply,
            TryEnd::Lost => return Event::ConnectionLost { sent: true },
            TryEnd::TimedOut => return Event::TryTimedOut,
        };
        let event = judge(&reply, read);
        *answer = Some(reply);
        event
    }

    fn refused(&self, refusal: Refusal) -> Event {
        if let Refusal::WrongEpoch(route) = &refusal {
            self.map.learn(&Rc::new(route.clone()));
        }
        Event::Refused(refusal)
    }

    fn part_end(
        &self,
        end: End,
        answer: Option<Reply>,
        segment: u32,
        extent: Option<Extent>,
        tries: u32,
    ) -> Result<PartDone, BlockError> {
        let (kind, outcome) = match (end, answer) {
            (End::Answered, Some(reply)) => return Ok(PartDone::Reply(reply)),
            (End::Hole, _) => return Ok(PartDone::Hole),
            (End::Failed { kind, outcome }, _) => (kind, outcome),
            (End::Answered, None) => unreachable!("an answered request has an answer"),
        };
        if kind == Kind::Fenced {
            self.fenced.set(true);
        }
        let start = u64::from(segment) * self.segment_bytes;
        let offset = start + extent.map_or(0, Extent::offset);
        Err(BlockError { kind, outcome, offset, len: extent.map_or(0, Extent::len), tries })
    }
}

fn class(ask: &Ask<Payload>) -> Class {
    match ask {
        Ask::Read { .. } | Ask::Extents { .. } => Class::Read,
        Ask::Write { .. } | Ask::Compare { .. } => Class::Write,
        Ask::Zero { .. } => Class::Zero,
        Ask::Flush { .. } => Class::Flush,
    }
}

/// INV-SUM: bytes count as an answer only if they match their checksums.
fn judge(reply: &Reply, read: Option<Extent>) -> Event {
    match (reply, read) {
        (Reply::Data(payload), Some(extent)) => {
            let whole = payload.data.len() as u64 == extent.len();
            if whole && payload.verify(extent).is_ok() { Event::Answered } else { Event::Damaged }
        }
        (Reply::Data(_), None) | (_, Some(_)) => Event::Damaged,
        (Reply::Done(_) | Reply::Differs | Reply::Extents(_) | Reply::Refused(_), None) => {
            Event::Answered
        }
    }
}
