//! What to do next with one request to one segment, until it succeeds or its outcome is known to be
//! lost. Pure: no clock, no network; time and randomness come as events and arguments.
//!
//! Every send carries the same op id, so that the servers apply the request once.
//!
//! ```text
//!             ┌────────── newer route ───────────┐
//!             ▼                                  │
//! Locating ─► Trying ── lost, timeout, refused ─► Locating ── same route ─► Pausing ─► Trying
//!             │  │ └── fenced ─► CheckingToken ── raised ─► Trying
//!             │  └── busy ─► Pausing ─► Trying      │
//! Placing ────┘                                     └── detached ─► Finished
//! ```
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::rc::Rc;

use tidewater_proto::{
    ids::{Epoch, ServerId, Token},
    peer::Refusal,
    record::Route,
};

use crate::error::{Kind, Outcome};

/// First pause of a backoff.
pub(crate) const PAUSE_MIN_MS: u64 = 5;
/// Longest pause of a backoff.
pub(crate) const PAUSE_MAX_MS: u64 = 200;
/// Payloads damaged on their way before the request is given up.
const DAMAGED_MAX: u32 = 3;
/// Routes followed without a pause: more of them is a sign of servers that disagree.
const HOPS_MAX: u32 = 4;
/// Pauses without news after which the leader is asked: any other node may be cut off from it.
const STALE_MAX: u32 = 3;

/// What kind of request it is, as far as retrying goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Reads: no effect, and a segment that does not exist is a hole.
    Read,
    /// Writes and compares: the segment is placed if it does not exist.
    Write,
    /// Zeroes and discards: nothing to do where there is no segment.
    Zero,
    /// Flushes.
    Flush,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The server did it, or compared and found other bytes.
    Answered,
    /// The server answered a read with bytes that do not match their checksums.
    Damaged,
    /// The server refused.
    Refused(Refusal),
    /// The connection failed; `sent` if the request may have reached the server.
    ConnectionLost {
        /// Whether the request was handed to the connection.
        sent: bool,
    },
    /// No answer to this try in time.
    TryTimedOut,
    /// A map lookup, or the placement of the segment, gave this.
    Routed(Rc<Route>),
    /// A map lookup found no such segment; only final if the lookup had to be fresh.
    Absent,
    /// No meta node gave an answer.
    MapUnavailable,
    /// Meta refused to place the segment: no server has room.
    Unplaceable,
    /// Meta does not know the volume.
    NoVolume,
    /// A pause is over.
    Paused,
    /// The session holds a token at least as high as the servers ask for.
    TokenRaised,
    /// The session's attachment is gone.
    Detached,
    /// The time for the whole operation is over.
    Expired,
}

/// What the driver does next. Exactly one event answers each, except the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send the request to this server with this epoch and the session's current token.
    Send {
        /// Where to.
        server: ServerId,
        /// Epoch to carry.
        epoch: Epoch,
    },
    /// Look the segment up; `fresh`: linearizably.
    RefreshMap {
        /// Whether a stale answer would do harm.
        fresh: bool,
    },
    /// Have the segment placed.
    Place,
    /// Find out whether the attachment has been given this token or a newer one.
    CheckToken(Token),
    /// Wait.
    Pause {
        /// How long.
        ms: u64,
    },
    /// The request is over.
    Finish(End),
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The server's answer stands.
    Answered,
    /// There is no such segment: reads see zeroes, zeroes have nothing to do.
    Hole,
    /// It failed.
    Failed {
        /// Why.
        kind: Kind,
        /// Whether it happened.
        outcome: Outcome,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Locating,
    Placing,
    Trying,
    CheckingToken(Token),
    Pausing(Next),
    Finished(End),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Send,
    Locate,
    Place,
    CheckToken(Token),
}

/// State of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    class: Class,
    phase: Phase,
    route: Option<Rc<Route>>,
    /// Requests sent.
    tries: u32,
    /// Pauses since the last sign of progress.
    pauses: u32,
    hops: u32,
    damaged: u32,
    /// Which server of the route is asked while no map lookup succeeds.
    turn: usize,
    /// The last failure came at once, so sending again at once would be a busy loop.
    must_pause: bool,
    /// An earlier try may have taken effect.
    maybe_applied: bool,
}

impl Retry {
    /// A request that has not been sent, with what is known of its segment.
    pub fn new(class: Class, route: Option<Rc<Route>>) -> (Self, Action) {
        let mut retry = Self {
            class,
            phase: Phase::Locating,
            route,
            tries: 0,
            pauses: 0,
            hops: 0,
            damaged: 0,
            turn: 0,
            must_pause: false,
            maybe_applied: false,
        };
        let first = retry.send_or_find();
        (retry, first)
    }

    /// Requests sent so far.
    pub fn tries(&self) -> u32 {
        self.tries
    }

    /// Takes one event. Total: what does not fit the phase is answered by what the phase waits for.
    /// `jitter` is any number; it spreads pauses.
    pub fn step(&mut self, event: Event, jitter: u64) -> Action {
        if let Phase::Finished(end) = self.phase {
            return Action::Finish(end);
        }
        match event {
            Event::Answered => self.finish(End::Answered),
            Event::Damaged => self.on_damage(jitter),
            Event::Refused(refusal) => self.on_refusal(refusal, jitter),
            Event::ConnectionLost { sent } => {
                self.maybe_applied |= sent;
                self.must_pause = true;
                self.locate()
            }
            Event::TryTimedOut => {
                self.maybe_applied = true;
                self.locate()
            }
            Event::Routed(route) => self.on_route(route, jitter),
            Event::Absent => self.on_absent(jitter),
            Event::MapUnavailable => self.on_no_map(jitter),
            Event::Unplaceable => self.fail(Kind::NoSpace),
            Event::NoVolume => self.fail(Kind::NoVolume),
            Event::Paused => self.on_paused(),
            Event::TokenRaised => self.send_or_find(),
            Event::Detached => self.fail(Kind::Fenced),
            Event::Expired => {
                self.maybe_applied |= self.phase == Phase::Trying;
                self.fail(Kind::TimedOut)
            }
        }
    }

    fn finish(&mut self, end: End) -> Action {
        self.phase = Phase::Finished(end);
        Action::Finish(end)
    }

    /// Never guesses: without effect only if no try can have had one.
    fn fail(&mut self, kind: Kind) -> Action {
        let changes = matches!(self.class, Class::Write | Class::Zero);
        let outcome = match (changes && self.maybe_applied, self.class, kind) {
            (true, _, _) | (false, Class::Flush, Kind::Lost) => Outcome::Unknown,
            (false, _, _) => Outcome::NotApplied,
        };
        self.finish(End::Failed { kind, outcome })
    }

    fn on_refusal(&mut self, refusal: Refusal, jitter: u64) -> Action {
        match refusal {
            Refusal::WrongEpoch(route) => self.on_wrong_epoch(Rc::new(route)),
            Refusal::NotPrimary => {
                self.must_pause = true;
                self.locate()
            }
            Refusal::Busy => self.pause(Next::Send, jitter),
            Refusal::Fenced(token) => self.check_token(token),
            Refusal::Old => self.fail(Kind::Forgotten),
            Refusal::BadSum => self.on_damage(jitter),
            Refusal::Invalid => self.fail(Kind::Refused),
            Refusal::NoSpace => self.fail(Kind::NoSpace),
            Refusal::Corrupt => self.fail(Kind::Corrupt),
            Refusal::Lost => {
                self.maybe_applied = true;
                self.fail(Kind::Lost)
            }
            Refusal::Failed => {
                self.maybe_applied = true;
                self.must_pause = true;
                self.locate()
            }
        }
    }

    fn on_damage(&mut self, jitter: u64) -> Action {
        self.damaged += 1;
        if self.damaged >= DAMAGED_MAX {
            return self.fail(Kind::Corrupt);
        }
        self.pause(Next::Send, jitter)
    }

    /// Rule 10: the refuser names a route, which may be newer than any meta node can tell.
    fn on_wrong_epoch(&mut self, route: Rc<Route>) -> Action {
        self.hops += 1;
        if self.adopt(route) && self.hops <= HOPS_MAX {
            return self.send_or_find();
        }
        self.must_pause = true;
        self.locate()
    }

    fn on_route(&mut self, route: Rc<Route>, jitter: u64) -> Action {
        self.turn = 0;
        if self.adopt(route) || !self.must_pause {
            self.hops = 0;
            return self.send_or_find();
        }
        self.pause(Next::Send, jitter)
    }

    fn on_absent(&mut self, jitter: u64) -> Action {
        if self.route.is_some() {
            // The answer is older than what is known.
            return self.pause(Next::Send, jitter);
        }
        match self.class {
            Class::Read | Class::Zero | Class::Flush => self.finish(End::Hole),
            Class::Write => self.place(),
        }
    }

    fn on_no_map(&mut self, jitter: u64) -> Action {
        let next = match self.phase {
            Phase::CheckingToken(token) => Next::CheckToken(token),
            Phase::Placing => Next::Place,
            Phase::Locating | Phase::Trying | Phase::Pausing(_) | Phase::Finished(_) => {
                if self.route.is_some() {
                    // Any server of the set knows its newest epoch, or will soon.
                    self.turn += 1;
                    Next::Send
                } else {
                    Next::Locate
                }
            }
        };
        self.pause(next, jitter)
    }

    fn on_paused(&mut self) -> Action {
        match self.phase {
            Phase::Pausing(Next::Locate) => self.locate(),
            Phase::Pausing(Next::Place) => self.place(),
            Phase::Pausing(Next::CheckToken(token)) => self.check_token(token),
            Phase::Pausing(Next::Send)
            | Phase::Locating
            | Phase::Placing
            | Phase::Trying
            | Phase::CheckingToken(_)
            | Phase::Finished(_) => self.send_or_find(),
        }
    }

    /// Takes over a route that is newer than the one known. An epoch has one primary, ever.
    fn adopt(&mut self, route: Rc<Route>) -> bool {
        let newer = self.route.as_ref().is_none_or(|known| route.epoch > known.epoch);
        if newer {
            self.route = Some(route);
            self.turn = 0;
            self.pauses = 0;
        }
        newer
    }

    fn send_or_find(&mut self) -> Action {
        let Some(route) = &self.route else {
            return if self.class == Class::Write { self.place() } else { self.locate() };
        };
        let primary = route.servers.iter().position(|&s| s == route.primary).unwrap_or(0);
        let turned = (primary + self.turn) % route.servers.len().max(1);
        let server = route.servers.get(turned).copied().unwrap_or(route.primary);
        let epoch = route.epoch;
        self.tries += 1;
        self.must_pause = false;
        self.phase = Phase::Trying;
        Action::Send { server, epoch }
    }

    fn locate(&mut self) -> Action {
        self.phase = Phase::Locating;
        let fresh = self.route.is_none() || self.pauses >= STALE_MAX;
        Action::RefreshMap { fresh }
    }

    fn place(&mut self) -> Action {
        self.phase = Phase::Placing;
        Action::Place
    }

    fn check_token(&mut self, token: Token) -> Action {
        self.phase = Phase::CheckingToken(token);
        Action::CheckToken(token)
    }

    fn pause(&mut self, next: Next, jitter: u64) -> Action {
        self.phase = Phase::Pausing(next);
        let longest = (PAUSE_MIN_MS << self.pauses.min(16)).min(PAUSE_MAX_MS);
        self.pauses = self.pauses.saturating_add(1);
        let shortest = longest / 2;
        Action::Pause { ms: shortest + jitter % (longest - shortest + 1) }
    }
}

#[cfg(test)]
mod tests;
