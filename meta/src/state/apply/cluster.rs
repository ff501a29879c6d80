#![deny(clippy::disallowed_methods, clippy::disallowed_types)]
//! The cluster itself.

use tidewater_proto::geometry::{CHUNK_BYTES, SEGMENT_BYTES};

use super::{Step, events::Note};
use crate::state::{
    outcome::{Applied, Outcome, Rejected},
    rows::{ClusterRow, EventKind},
    table::Single,
};

pub(super) fn init(step: &mut Step<'_>, uuid: &str, segment_bytes: u64) -> Outcome {
    if let Some(cluster) = step.state.cluster() {
        return Err(Rejected::ClusterExists { uuid: cluster.uuid.clone() });
    }
    let valid = (CHUNK_BYTES..=SEGMENT_BYTES).contains(&segment_bytes);
    if !valid || !segment_bytes.is_multiple_of(CHUNK_BYTES) {
        return Err(Rejected::BadSegmentBytes { segment_bytes });
    }
    let row = ClusterRow { uuid: uuid.to_owned(), segment_bytes, created_ms: step.now_ms };
    step.state.cluster.insert(Single, row);
    step.event(
        EventKind::ClusterCreated,
        Note { actor: "operator", reason: "", subject: uuid.to_owned(), detail: String::new() },
    );
    Ok(Applied::Done)
}
