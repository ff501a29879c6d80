//! One request to one segment, driven to its end.

use std::{rc::Rc, time::Duration};

use rand::Rng as _;
use tidewater_proto::{
    entry::Payload,
    frame::Frame,
    geometry::Extent,
    ids::{Epoch, OpId, SegmentId, ServerId},
    peer::{Action as Ask, Refusal, Reply, Request},
};
use tokio::time::{Instant, sleep};

use super::{attach::Session, tries::TryEnd};
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
struct Number<'a> {
    session: &'a Session,
    number: u64,
}

impl Drop for Number<'_> {
    fn drop(&mut self) {
        if self.session.window.borrow_mut().close(self.number) {
            self.session.window_moved.notify_waiters();
        }
    }
}

impl Session {
    async fn open_number(&self) -> Number<'_> {
        loop {
            let moved = self.window_moved.notified();
            let opened = self.window.borrow_mut().open();
            match opened {
                Some(number) => return Number { session: self, number },
                None => moved.await,
            }
        }
    }

    /// Sends `ask` to the segment's primary, and again, until it is answered or fails for good.
    pub(crate) async fn run_part(
        self: &Rc<Self>,
        segment: u32,
        extent: Option<Extent>,
        ask: Ask<Payload>,
    ) -> Result<PartDone, BlockError> {
        let deadline = Instant::now() + self.io_timeout;
        let number = self.open_number().await;
        let segment_id = SegmentId { volume: self.volume, index: segment };
        let (mut retry, mut action) = Retry::new(class(&ask), self.map.route(segment));
        let mut answer = None;
        loop {
            let event = match &action {
                Action::Send { server, epoch } => {
                    let request = self.request(segment_id, *epoch, number.number, &ask);
                    self.try_once(*server, request, &mut answer).await
                }
                Action::RefreshMap { fresh } => self.map.refresh(segment, *fresh).await,
                Action::Place => self.map.place(segment).await,
                Action::CheckToken(token) => self.check_token(*token).await,
                Action::Pause { ms } => {
                    sleep(Duration::from_millis(*ms)).await;
                    Event::Paused
                }
                Action::Finish(end) => {
                    self.stats.retried(retry.tries().saturating_sub(1));
                    return self.part_end(*end, answer, segment, extent, retry.tries());
                }
            };
            action = retry.step(event, rand::rng().random());
            let over = !matches!(action, Action::Finish(_)) && Instant::now() >= deadline;
            if over {
                action = retry.step(Event::Expired, 0);
            }
        }
    }

    fn request(
        &self,
        segment: SegmentId,
        epoch: Epoch,
        number: u64,
        ask: &Ask<Payload>,
    ) -> Request<Payload> {
        Request {
            segment,
            epoch,
            token: self.token.get(),
            op: OpId { session: self.id, number },
            lowest_open: self.window.borrow().lowest_open(),
            action: ask.clone(),
        }
    }

    async fn try_once(
        self: &Rc<Self>,
        server: ServerId,
        request: Request<Payload>,
        answer: &mut Option<Reply>,
    ) -> Event {
        let Some((key, address)) = self.map.shard(server, request.segment) else {
            return Event::ConnectionLost { sent: false };
        };
        let Some((link, sender)) = self.links.get(key, address).await else {
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
        sender.send(&Frame::Request { id: sent.id(), request });
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
