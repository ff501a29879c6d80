//! The gRPC service `Meta`: each method in the file of its noun.

mod attachments;
mod cluster;
mod decide;
mod failure;
mod segments;
mod servers;
mod volumes;
mod watch;
mod wire;

use std::sync::Arc;

use tidewater_proto::rpc::{self, meta_server::Meta};
use tonic::{Request, Response, Status};

use self::failure::Failure;
use crate::node::Node;

/// The service of one node.
pub(crate) struct MetaService {
    pub(crate) node: Arc<Node>,
}

type Answer<T> = Result<Response<T>, Status>;

fn answer<T>(done: Result<T, Failure>) -> Answer<T> {
    done.map(Response::new).map_err(Status::from)
}

#[tonic::async_trait]
impl Meta for MetaService {
    type WatchStream = watch::Stream;

    async fn status(&self, _: Request<rpc::StatusRequest>) -> Answer<rpc::StatusReply> {
        Ok(Response::new(cluster::status(&self.node)))
    }

    async fn list_segments(
        &self,
        request: Request<rpc::ListSegmentsRequest>,
    ) -> Answer<rpc::ListSegmentsReply> {
        answer(segments::list(&self.node, request.get_ref()).await)
    }

    async fn watch(&self, request: Request<rpc::WatchRequest>) -> Answer<watch::Stream> {
        answer(watch::watch(Arc::clone(&self.node), request.get_ref()))
    }

    async fn init_cluster(
        &self,
        request: Request<rpc::InitClusterRequest>,
    ) -> Answer<rpc::InitClusterReply> {
        answer(cluster::init(&self.node, request.into_inner()).await)
    }

    async fn add_meta_node(&self, request: Request<rpc::AddMetaNodeRequest>) -> Answer<rpc::Empty> {
        answer(cluster::add_node(&self.node, request.into_inner()).await)
    }

    async fn remove_meta_node(
        &self,
        request: Request<rpc::RemoveMetaNodeRequest>,
    ) -> Answer<rpc::Empty> {
        answer(cluster::remove_node(&self.node, request.into_inner()).await)
    }

    async fn transfer_leader(
        &self,
        request: Request<rpc::TransferLeaderRequest>,
    ) -> Answer<rpc::Empty> {
        answer(cluster::transfer_leader(&self.node, request.into_inner()).await)
    }

    async fn register_server(
        &self,
        request: Request<rpc::RegisterServerRequest>,
    ) -> Answer<rpc::RegisterServerReply> {
        answer(servers::register(&self.node, request.into_inner()).await)
    }

    async fn heartbeat(
        &self,
        request: Request<rpc::HeartbeatRequest>,
    ) -> Answer<rpc::HeartbeatReply> {
        answer(servers::heartbeat(&self.node, request.into_inner()).await)
    }

    async fn list_servers(&self, _: Request<rpc::Empty>) -> Answer<rpc::ListServersReply> {
        answer(servers::list(&self.node).await)
    }

    async fn set_server(&self, request: Request<rpc::SetServerRequest>) -> Answer<rpc::Empty> {
        answer(servers::set(&self.node, request.into_inner()).await)
    }

    async fn remove_server(
        &self,
        request: Request<rpc::RemoveServerRequest>,
    ) -> Answer<rpc::Empty> {
        answer(servers::remove(&self.node, request.into_inner()).await)
    }

    async fn change_set(
        &self,
        request: Request<rpc::ChangeSetRequest>,
    ) -> Answer<rpc::ChangeSetReply> {
        answer(segments::change_set(&self.node, request.into_inner()).await)
    }

    async fn report_active(
        &self,
        request: Request<rpc::ReportActiveRequest>,
    ) -> Answer<rpc::Empty> {
        answer(segments::report_active(&self.node, request.into_inner()).await)
    }

    async fn report_deleted(
        &self,
        request: Request<rpc::ReportDeletedRequest>,
    ) -> Answer<rpc::Empty> {
        answer(segments::report_deleted(&self.node, request.into_inner()).await)
    }

    async fn report_copies(
        &self,
        request: Request<rpc::ReportCopiesRequest>,
    ) -> Answer<rpc::Empty> {
        answer(servers::report_copies(&self.node, request.into_inner()).await)
    }

    async fn finish_restore(
        &self,
        request: Request<rpc::FinishRestoreRequest>,
    ) -> Answer<rpc::Empty> {
        answer(cluster::finish_restore(&self.node, request.into_inner()).await)
    }

    async fn get_attachment(
        &self,
        request: Request<rpc::AttachmentRequest>,
    ) -> Answer<rpc::Attachment> {
        answer(attachments::get(&self.node, *request.get_ref()).await)
    }

    async fn find_segment(
        &self,
        request: Request<rpc::SegmentRequest>,
    ) -> Answer<rpc::FindSegmentReply> {
        answer(segments::find(&self.node, *request.get_ref()).await)
    }

    async fn create_volume(
        &self,
        request: Request<rpc::CreateVolumeRequest>,
    ) -> Answer<rpc::Volume> {
        answer(volumes::create(&self.node, request.into_inner()).await)
    }

    async fn list_volumes(
        &self,
        request: Request<rpc::ListVolumesRequest>,
    ) -> Answer<rpc::ListVolumesReply> {
        answer(volumes::list(&self.node, request.into_inner()).await)
    }

    async fn get_volume(&self, request: Request<rpc::GetVolumeRequest>) -> Answer<rpc::Volume> {
        answer(volumes::get(&self.node, request.into_inner()).await)
    }

    async fn resize_volume(
        &self,
        request: Request<rpc::ResizeVolumeRequest>,
    ) -> Answer<rpc::Volume> {
        answer(volumes::resize(&self.node, request.into_inner()).await)
    }

    async fn rename_volume(
        &self,
        request: Request<rpc::RenameVolumeRequest>,
    ) -> Answer<rpc::Volume> {
        answer(volumes::rename(&self.node, request.into_inner()).await)
    }

    async fn delete_volume(
        &self,
        request: Request<rpc::DeleteVolumeRequest>,
    ) -> Answer<rpc::Volume> {
        answer(volumes::delete(&self.node, request.into_inner()).await)
    }

    async fn restore_volume(
        &self,
        request: Request<rpc::RestoreVolumeRequest>,
    ) -> Answer<rpc::Volume> {
        answer(volumes::restore(&self.node, request.into_inner()).await)
    }

    async fn purge_volume(&self, request: Request<rpc::PurgeVolumeRequest>) -> Answer<rpc::Empty> {
        answer(volumes::purge(&self.node, request.into_inner()).await)
    }

    async fn register_program(
        &self,
        request: Request<rpc::RegisterProgramRequest>,
    ) -> Answer<rpc::Program> {
        answer(volumes::register_program(&self.node, request.into_inner()).await)
    }

    async fn list_programs(&self, _: Request<rpc::Empty>) -> Answer<rpc::ListProgramsReply> {
        answer(volumes::list_programs(&self.node).await)
    }

    async fn remove_program(
        &self,
        request: Request<rpc::RemoveProgramRequest>,
    ) -> Answer<rpc::Empty> {
        answer(volumes::remove_program(&self.node, request.into_inner()).await)
    }

    async fn attach(&self, request: Request<rpc::AttachRequest>) -> Answer<rpc::AttachReply> {
        answer(attachments::attach(&self.node, request.into_inner()).await)
    }

    async fn detach(&self, request: Request<rpc::DetachRequest>) -> Answer<rpc::Empty> {
        answer(attachments::detach(&self.node, request.into_inner()).await)
    }

    async fn ensure_segment(&self, request: Request<rpc::SegmentRequest>) -> Answer<rpc::Segment> {
        answer(segments::ensure(&self.node, request.into_inner()).await)
    }

    async fn move_primary(
        &self,
        request: Request<rpc::MovePrimaryRequest>,
    ) -> Answer<rpc::Segment> {
        answer(segments::move_primary(&self.node, request.into_inner()).await)
    }

    async fn list_events(
        &self,
        request: Request<rpc::ListEventsRequest>,
    ) -> Answer<rpc::ListEventsReply> {
        answer(cluster::events(&self.node, request.into_inner()).await)
    }
}
