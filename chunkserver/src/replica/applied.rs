//! Which client operations are in the log's committed prefix (rule 9). A function of that prefix alone.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;

use tidewater_proto::{
    entry::Entry,
    ids::{OpId, Position, SessionId, Token},
    peer::AppliedSession,
};

/// Most sessions remembered; beyond it the one with the lowest token, then id, is forgotten.
const SESSIONS_MAX: usize = 1_024;
/// Most operations remembered for one session; its lowest open number normally keeps it far below.
const OPS_MAX: usize = 65_536;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Session {
    token: Token,
    lowest_open: u64,
    applied: BTreeMap<u64, Position>,
}

/// What the table says of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Not applied as far as the prefix goes.
    New,
    /// Applied by this entry.
    At(Position),
    /// Too old to say.
    Forgotten,
}

/// Operations applied so far, by session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Applied {
    sessions: BTreeMap<SessionId, Session>,
}

impl Applied {
    /// As it was saved.
    pub(crate) fn load(saved: Vec<AppliedSession>) -> Self {
        let session = |s: AppliedSession| {
            let applied = s.applied.into_iter().collect();
            (s.session, Session { token: s.token, lowest_open: s.lowest_open, applied })
        };
        Self { sessions: saved.into_iter().map(session).collect() }
    }

    /// For the catalog, and for learners.
    pub(crate) fn save(&self) -> Vec<AppliedSession> {
        let session = |(&session, s): (&SessionId, &Session)| AppliedSession {
            session,
            token: s.token,
            lowest_open: s.lowest_open,
            applied: s.applied.iter().map(|(&n, &at)| (n, at)).collect(),
        };
        self.sessions.iter().map(session).collect()
    }

    /// What is known of `op`.
    pub(crate) fn seen(&self, op: OpId) -> Seen {
        let Some(session) = self.sessions.get(&op.session) else {
            return Seen::New;
        };
        if op.number < session.lowest_open {
            return Seen::Forgotten;
        }
        session.applied.get(&op.number).map_or(Seen::New, |&at| Seen::At(at))
    }

    /// Takes the next committed entry.
    pub(crate) fn take<P>(&mut self, entry: &Entry<P>) {
        let Some(op) = entry.op else { return };
        let session = self.sessions.entry(op.session).or_default();
        session.token = session.token.max(entry.token);
        session.applied.insert(op.number, entry.position);
        if session.applied.len() > OPS_MAX {
            let lowest = *session.applied.keys().next().expect("not empty");
            session.lowest_open = session.lowest_open.max(lowest + 1);
        }
        if entry.lowest_open > session.lowest_open {
            session.lowest_open = entry.lowest_open;
        }
        while session.applied.first_key_value().is_some_and(|(n, _)| *n < session.lowest_open) {
            session.applied.pop_first();
        }
        self.bound();
    }

    fn bound(&mut self) {
        if self.sessions.len() <= SESSIONS_MAX {
            return;
        }
        let oldest = self.sessions.iter().min_by_key(|(id, s)| (s.token, **id)).map(|(id, _)| *id);
        if let Some(id) = oldest {
            self.sessions.remove(&id);
        }
    }
}
