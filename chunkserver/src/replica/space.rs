//! Space for new chunks. A write to a chunk without data takes space on every member, for good. So each
//! member says with its acknowledgements how many such chunks may be under way to it; a primary lets
//! writes wait that would be more, and refuses them while a member has room for none.
//!
//! A learner has no say: it takes what it has space for and falls behind, until it is proposed as a
//! member.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{BTreeMap, VecDeque};

use tidewater_proto::{
    ids::Sequence,
    peer::{Refusal, Reply, Room},
};

use super::{Effect, Replica, Role, Time, requests::Held};

/// Most writes that wait for room.
const CROWDED_MAX: usize = 256;

/// Chunks that are being given data, and writes that wait until they may.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct NewChunks<P> {
    /// The last entry, not committed yet, that writes to each.
    under_way: BTreeMap<u32, Sequence>,
    /// Oldest first.
    crowded: VecDeque<Held<P>>,
}

impl<P> Default for NewChunks<P> {
    fn default() -> Self {
        Self { under_way: BTreeMap::new(), crowded: VecDeque::new() }
    }
}

/// Whether there is room for a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// On every member.
    Go,
    /// Once a member has acknowledged more.
    Wait,
    /// Not before a member has space again.
    Refuse,
}

impl<P> NewChunks<P> {
    /// The entry at `at` writes to these chunks, which hold no data.
    pub(super) fn sequenced(&mut self, chunks: &[u32], at: Sequence) {
        self.under_way.extend(chunks.iter().map(|&chunk| (chunk, at)));
    }

    /// Chunks written by entries up to `commit` hold data.
    pub(super) fn committed(&mut self, commit: Sequence) {
        if !self.under_way.is_empty() {
            self.under_way.retain(|_, at| *at > commit);
        }
    }

    fn behind(&self, received: Sequence) -> usize {
        self.under_way.values().filter(|at| **at > received).count()
    }

    pub(super) fn into_crowded(self) -> impl Iterator<Item = Held<P>> {
        self.crowded.into_iter()
    }
}

impl<P: Clone> Replica<P> {
    fn room_for(&self, fresh: &[u32]) -> Verdict {
        let Role::Serving(s) = &self.role else { return Verdict::Go };
        let known = &s.new_chunks.under_way;
        let new = fresh.iter().filter(|chunk| !known.contains_key(chunk)).count();
        if new == 0 {
            return Verdict::Go;
        }
        if self.room == Room::NONE || s.required().any(|(_, p)| p.room == Room::NONE) {
            return Verdict::Refuse;
        }
        let crowds = |room: Room, under_way: usize| {
            under_way > 0 && under_way + new > usize::try_from(room.0).unwrap_or(usize::MAX)
        };
        let crowded = s.required().any(|(_, p)| crowds(p.room, s.new_chunks.behind(p.received)));
        if crowded { Verdict::Wait } else { Verdict::Go }
    }

    /// Gives a write back if there is room for it; else it waits or is refused.
    pub(super) fn find_room(
        &mut self,
        write: Held<P>,
        out: &mut Vec<Effect<P>>,
    ) -> Option<Held<P>> {
        let refusal = match self.room_for(&write.fresh) {
            Verdict::Go => return Some(write),
            Verdict::Refuse => Refusal::NoSpace,
            Verdict::Wait => {
                let Role::Serving(s) = &mut self.role else { return None };
                if s.new_chunks.crowded.len() < CROWDED_MAX {
                    s.new_chunks.crowded.push_back(write);
                    return None;
                }
                Refusal::Busy
            }
        };
        out.push(Effect::Reply(write.id, Reply::Refused(refusal)));
        None
    }

    /// Why a compare-and-write that needs these chunks cannot be taken now; it does not wait.
    pub(super) fn no_room(&self, fresh: &[u32]) -> Option<Refusal> {
        match self.room_for(fresh) {
            Verdict::Go => None,
            Verdict::Wait => Some(Refusal::Busy),
            Verdict::Refuse => Some(Refusal::NoSpace),
        }
    }

    /// The own server has room for so many now.
    pub(super) fn take_room(&mut self, now: Time, room: Room, out: &mut Vec<Effect<P>>) {
        if std::mem::replace(&mut self.room, room) == room {
            return;
        }
        match &self.role {
            Role::Following(_) => self.tell_room(out),
            Role::Serving(_) => self.uncrowd(now, out),
            Role::Idle | Role::Activating(_) => {}
        }
    }

    /// Lets writes go on that waited for room, in their order.
    pub(super) fn uncrowd(&mut self, now: Time, out: &mut Vec<Effect<P>>) {
        loop {
            let Role::Serving(s) = &self.role else { return };
            let Some(first) = s.new_chunks.crowded.front() else { return };
            if self.room_for(&first.fresh) == Verdict::Wait {
                return;
            }
            let Role::Serving(s) = &mut self.role else { return };
            let Some(write) = s.new_chunks.crowded.pop_front() else { return };
            self.write_again(now, write, out);
        }
    }
}
