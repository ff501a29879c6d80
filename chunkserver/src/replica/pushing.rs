//! Entries on their way to the other copies: at once to members, in bounded amounts to learners, so that
//! one that catches up holds up neither the link it shares with others nor its own server.
//!
//! A learner is sent as much as clients write, plus what it is behind, a turn at a time: the driver gives
//! turns as fast as rebuilding may be.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::VecDeque;

use tidewater_proto::{
    entry::{Change, Entry},
    ids::{Position, ReplicaId, Sequence},
    peer::{Envelope, FromPrimary},
};

use super::{Effect, Replica, Role, Time, serving::Part};

/// Bytes sent to a learner and not yet acknowledged.
const FLIGHT_BYTES_MAX: u64 = 8 << 20;
/// Bytes of the log that a learner is sent in one turn.
const TURN_BYTES: u64 = 1 << 20;
/// Counted for an entry besides its payload.
const ENTRY_BYTES: u64 = 256;
/// Bytes of destaged entries that the log keeps for learners that are yet to be sent them.
const HELD_BYTES_MAX: u64 = 16 << 20;

/// What an entry counts for.
fn weight<P>(entry: &Entry<P>) -> u64 {
    let payload = match &entry.change {
        Change::Write { extent, .. } => extent.len(),
        Change::Activate | Change::Zero { .. } => 0,
    };
    payload + ENTRY_BYTES
}

/// How much a learner is sent. Members need none of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    /// Sent and not acknowledged, oldest first, with their weights.
    flight: VecDeque<(Sequence, u64)>,
    flight_bytes: u64,
    /// Bytes that may be sent of what it is behind.
    credit: u64,
    /// A turn was asked for.
    turn: bool,
}

impl Flow {
    /// The learner has everything up to here.
    pub(super) fn received(&mut self, upto: Sequence) {
        while let Some(&(sequence, weight)) = self.flight.front() {
            if sequence > upto {
                return;
            }
            self.flight.pop_front();
            self.flight_bytes -= weight;
        }
    }

    /// What was sent may be lost.
    pub(super) fn broken(&mut self) {
        self.flight.clear();
        self.flight_bytes = 0;
    }

    /// Whether a turn has to be asked for now.
    pub(super) fn wants_turn(&mut self) -> bool {
        !std::mem::replace(&mut self.turn, true)
    }

    /// Whether a turn that came was asked for.
    pub(super) fn take_turn(&mut self) -> bool {
        std::mem::take(&mut self.turn)
    }

    fn sent<P>(&mut self, entry: &Entry<P>) {
        let weight = weight(entry);
        self.flight.push_back((entry.position.sequence, weight));
        self.flight_bytes += weight;
        self.credit = self.credit.saturating_sub(weight);
    }

    fn is_full(&self) -> bool {
        self.flight_bytes >= FLIGHT_BYTES_MAX
    }
}

impl<P: Clone> Replica<P> {
    /// Sends every peer the entries it was not sent yet.
    pub(super) fn push_all(&mut self, out: &mut Vec<Effect<P>>) {
        let Role::Serving(s) = &self.role else { return };
        let peers: Vec<_> = s.peers.keys().copied().collect();
        for peer in peers {
            self.push(peer, out);
        }
    }

    /// Sends the entry that was just given its sequence, and to learners as much of what they lack.
    pub(super) fn push_new(&mut self, out: &mut Vec<Effect<P>>) {
        let weight = self.log.get(self.log.last().sequence).map_or(0, weight);
        let Role::Serving(s) = &mut self.role else { return };
        for peer in s.peers.values_mut().filter(|p| matches!(p.part, Part::Follows)) {
            peer.flow.credit += weight;
        }
        self.push_all(out);
    }

    /// Sends a peer what it was not sent yet, as far as it may be.
    pub(super) fn push(&mut self, to: ReplicaId, out: &mut Vec<Effect<P>>) {
        let (last, commit) = (self.log.last().sequence, self.commit);
        let (segment, from, epoch) = (self.segment, self.id, self.promised);
        let Role::Serving(s) = &mut self.role else { return };
        let adding = s.adding == Some(to);
        let Some(peer) = s.peers.get_mut(&to) else { return };
        let (upto, told, limited) = match &mut peer.part {
            Part::Member => (last, commit, false),
            Part::Follows => (last, commit, !adding),
            // What is not committed may be replaced, and a chunk's image cannot be undone.
            Part::Copies(copy) if copy.begun() => {
                let reach = copy.reach(commit);
                (reach, reach, true)
            }
            Part::Copies(_) | Part::Probed => return,
        };
        let Some(mut previous) = self.log.position(peer.sent) else {
            // Out of the log's reach: only a learner can be, a member has all that is committed.
            self.probe_again(to, out);
            return;
        };
        let paced = limited && matches!(peer.part, Part::Follows);
        for entry in self.log.above(peer.sent).take_while(|e| e.position.sequence <= upto) {
            if limited && peer.flow.is_full() || paced && peer.flow.credit == 0 {
                break;
            }
            let entry = match &peer.part {
                Part::Copies(copy) => copy.as_sent(entry),
                Part::Member | Part::Follows | Part::Probed => entry.clone(),
            };
            if limited {
                peer.flow.sent(&entry);
            }
            let position = entry.position;
            peer.sent = position.sequence;
            let message = FromPrimary::Append { previous, entry, commit: told }.into();
            out.push(Effect::Send(Envelope { segment, from, to, epoch, message }));
            previous = position;
        }
        if peer.sent == upto {
            // Nothing is saved up.
            peer.flow.credit = 0;
        } else if paced && !peer.flow.is_full() && peer.flow.wants_turn() {
            out.push(Effect::AwaitTurn { learner: to });
        }
    }

    /// There is time for a piece of what a learner lacks.
    pub(super) fn turn(&mut self, learner: ReplicaId, out: &mut Vec<Effect<P>>) {
        let Role::Serving(s) = &mut self.role else { return };
        let Some(peer) = s.peers.get_mut(&learner) else { return };
        if !peer.flow.take_turn() {
            return;
        }
        match peer.part {
            Part::Follows => {
                peer.flow.credit += TURN_BYTES;
                self.push(learner, out);
            }
            Part::Copies(_) => self.copy_next(learner, out),
            Part::Member | Part::Probed => {}
        }
    }

    /// Tells every peer how far its log should be and what is committed.
    pub(super) fn probe(&mut self, now: Time, out: &mut Vec<Effect<P>>) {
        let (end, commit) = (self.log.last(), self.commit);
        let Role::Serving(s) = &mut self.role else { return };
        s.probed_at = now;
        let mut beyond = Vec::new();
        let mut probes: Vec<(ReplicaId, Position, Sequence)> = Vec::new();
        for (&peer, known) in &s.peers {
            let told = match &known.part {
                Part::Member | Part::Probed => {
                    probes.push((peer, end, commit));
                    continue;
                }
                Part::Follows => commit,
                Part::Copies(copy) if copy.begun() => copy.cap(),
                Part::Copies(_) => continue,
            };
            match self.log.position(known.sent) {
                Some(sent) => probes.push((peer, sent, told)),
                None => beyond.push(peer),
            }
        }
        for (peer, last, commit) in probes {
            self.send(peer, FromPrimary::Commit { last, commit }, out);
        }
        for learner in beyond {
            self.probe_again(learner, out);
        }
    }

    /// Everything up to `base` is in the chunks. The log keeps what learners are yet to be sent, within
    /// bounds.
    pub(super) fn destaged(&mut self, base: Position) {
        self.destaged = self.destaged.max(base);
        let held = self.held_from();
        let (from, upto) = (held.sequence, self.destaged.sequence);
        let entries = self.log.above(from).take_while(|e| e.position.sequence <= upto);
        let bytes: u64 = entries.map(weight).sum();
        self.log.advance_base(if bytes > HELD_BYTES_MAX { self.destaged } else { held });
    }

    /// Lets go of what was kept for learners and is sent.
    pub(super) fn trim_log(&mut self) {
        if self.log.base() < self.destaged {
            let held = self.held_from();
            self.log.advance_base(held);
        }
    }

    /// The destaged point, or where the learner that was sent least is if that is below it.
    fn held_from(&self) -> Position {
        let Role::Serving(s) = &self.role else { return self.destaged };
        let streams = |part: &Part| match part {
            Part::Follows => true,
            Part::Copies(copy) => copy.begun(),
            Part::Member | Part::Probed => false,
        };
        let learners = s.peers.values().filter(|p| streams(&p.part));
        let sent = learners.filter_map(|p| self.log.position(p.sent));
        sent.chain([self.destaged]).min_by_key(|at| at.sequence).unwrap_or(self.destaged)
    }
}
