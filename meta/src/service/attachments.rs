//! Attachments.

use tidewater_proto::{ids::SessionId, rpc};

use super::{failure::Failure, wire};
use crate::{
    live::View,
    node::Node,
    state::{
        command::{Attach, Command},
        outcome::{Applied, Rejected},
        rows::{AttachState, Holder},
    },
};

/// Returns once no write with an older token can be accepted any more. The attachment stays if the wait
/// is too long: the request repeated waits on.
pub(super) async fn attach(
    node: &Node,
    request: rpc::AttachRequest,
) -> Result<rpc::AttachReply, Failure> {
    let args = Attach {
        mode: wire::mode(request.mode()),
        volume: request.volume,
        holder: Holder {
            program: request.program,
            instance: request.instance,
            host: request.host,
            topology: wire::topology(request.topology),
        },
        take_over: request.take_over,
        request: request.request,
    };
    let applied = node.propose(Command::Attach(args)).await?;
    let Applied::Session(session) = applied else { return Err(Failure::Unexpected { applied }) };
    let limit = node.config.attach_timeout();
    let ready = |view: &View| match view.state.attachments.get(&session) {
        None => Some(Err(Failure::AttachmentEnded)),
        Some(row) => (row.state == AttachState::Ready).then_some(Ok(())),
    };
    node.wait_until(limit, "primaries acknowledge the token", ready).await??;
    reply(&node.live.read(), session)
}

fn reply(view: &View, session: SessionId) -> Result<rpc::AttachReply, Failure> {
    let state = &view.state;
    let row = state.attachments.get(&session).ok_or(Failure::AttachmentEnded)?;
    let id = row.volume;
    let volume = state.volumes.get(&id).ok_or(Rejected::UnknownVolumeId { id })?;
    Ok(rpc::AttachReply {
        attachment: Some(wire::attachment(row)),
        volume: Some(wire::volume(state, volume)),
        segments: state.segments_of(id, 0).map(|record| record.as_ref().into()).collect(),
        servers: wire::addresses(state),
    })
}

pub(super) async fn detach(
    node: &Node,
    request: rpc::DetachRequest,
) -> Result<rpc::Empty, Failure> {
    let (session, force) = (SessionId(request.session), request.force);
    node.propose(Command::Detach { session, force }).await?;
    Ok(rpc::Empty {})
}

pub(super) async fn get(
    node: &Node,
    request: rpc::AttachmentRequest,
) -> Result<rpc::Attachment, Failure> {
    node.linearized().await?;
    node.check_decides()?;
    let session = SessionId(request.session);
    let view = node.live.read();
    let row = view.state.attachments.get(&session).ok_or(Rejected::UnknownSession { session })?;
    Ok(wire::attachment(row))
}
