#![deny(clippy::disallowed_methods, clippy::disallowed_types)]
//! The audit trail: who changed what and why.

use super::Step;
use crate::state::rows::{EventKind, EventRow};

/// Events kept; older ones are dropped.
pub(crate) const EVENTS_MAX: usize = 10_000;
/// Longest text of an event, bytes.
const TEXT_BYTES_MAX: usize = 1024;

/// An event's texts.
pub(super) struct Note<'a> {
    pub(super) actor: &'a str,
    pub(super) reason: &'a str,
    pub(super) subject: String,
    pub(super) detail: String,
}

impl Step<'_> {
    pub(super) fn event(&mut self, kind: EventKind, note: Note<'_>) {
        let number = self.draw(|c| &mut c.event);
        let row = EventRow {
            revision: self.revision.0,
            time_ms: self.now_ms,
            kind,
            actor: bounded(note.actor.to_owned()),
            reason: bounded(note.reason.to_owned()),
            subject: bounded(note.subject),
            detail: bounded(note.detail),
        };
        self.state.events.insert(number, row);
        while self.state.events.len() > EVENTS_MAX {
            let oldest = self.state.events.iter().next().map(|(&number, _)| number);
            oldest.and_then(|number| self.state.events.remove(&number));
        }
    }
}

fn bounded(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
    text
}
