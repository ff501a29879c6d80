//! The metadata node.

use std::pin::Pin;

use tidewater_proto::rpc::{
    self,
    meta_server::{Meta, MetaServer},
};
use tokio::{net::TcpListener, task::spawn_local};
use tokio_stream::{
    Stream, StreamExt as _,
    wrappers::{TcpListenerStream, WatchStream},
};
use tonic::{Request, Response, Status, transport::Server};

use super::{Fake, SEGMENT_BYTES, SESSION, VOLUME, World};

pub(super) async fn start(fake: Fake) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    spawn_local(
        Server::builder()
            .add_service(MetaServer::new(fake))
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    address
}

fn volume(world: &World) -> rpc::Volume {
    rpc::Volume {
        id: VOLUME.0,
        name: "vol".to_owned(),
        size_bytes: world.size,
        replicas: 2,
        durability: world.durability.into(),
        token: world.token.0,
        segment_bytes: SEGMENT_BYTES,
        attachments: world.attached.then(|| attachment(world)).into_iter().collect(),
        ..rpc::Volume::default()
    }
}

fn attachment(world: &World) -> rpc::Attachment {
    rpc::Attachment {
        session: SESSION.0,
        volume: VOLUME.0,
        token: world.token.0,
        ready: true,
        ..rpc::Attachment::default()
    }
}

fn segment(world: &World, index: u32) -> Option<rpc::Segment> {
    let route = world.route(index)?;
    let members =
        route.servers.iter().map(|s| rpc::Member { replica: s.0, server: s.0, fresh: false });
    Some(rpc::Segment {
        volume: VOLUME.0,
        index,
        epoch: route.epoch.0,
        token: world.token.0,
        primary: route.primary.0,
        members: members.collect(),
        ..rpc::Segment::default()
    })
}

fn servers(world: &World) -> Vec<rpc::ServerAddress> {
    let address = |(id, at): (&tidewater_proto::ids::ServerId, &std::net::SocketAddr)| {
        rpc::ServerAddress { server: id.0, control: at.to_string(), shards: vec![at.to_string()] }
    };
    world.addresses.iter().map(address).collect()
}

impl Fake {
    fn called(&self) -> Result<std::sync::MutexGuard<'_, World>, Status> {
        let mut world = self.world();
        world.meta_calls += 1;
        if world.meta_down { Err(Status::unavailable("no leader")) } else { Ok(world) }
    }
}

macro_rules! meta {
    ({ $($name:ident($request:ident) -> $reply:ident;)* } $($rest:tt)*) => {
        #[tonic::async_trait]
        impl Meta for Fake {
            $(async fn $name(
                &self,
                _: Request<rpc::$request>,
            ) -> Result<Response<rpc::$reply>, Status> {
                Err(Status::unimplemented("not needed here"))
            })*
            $($rest)*
        }
    };
}

meta! {
    {
        init_cluster(InitClusterRequest) -> InitClusterReply;
        add_meta_node(AddMetaNodeRequest) -> Empty;
        remove_meta_node(RemoveMetaNodeRequest) -> Empty;
        transfer_leader(TransferLeaderRequest) -> Empty;
        register_server(RegisterServerRequest) -> RegisterServerReply;
        heartbeat(HeartbeatRequest) -> HeartbeatReply;
        list_servers(Empty) -> ListServersReply;
        set_server(SetServerRequest) -> Empty;
        remove_server(RemoveServerRequest) -> Empty;
        change_set(ChangeSetRequest) -> ChangeSetReply;
        report_active(ReportActiveRequest) -> Empty;
        report_deleted(ReportDeletedRequest) -> Empty;
        report_copies(ReportCopiesRequest) -> Empty;
        finish_restore(FinishRestoreRequest) -> Empty;
        create_volume(CreateVolumeRequest) -> Volume;
        list_volumes(ListVolumesRequest) -> ListVolumesReply;
        get_volume(GetVolumeRequest) -> Volume;
        resize_volume(ResizeVolumeRequest) -> Volume;
        rename_volume(RenameVolumeRequest) -> Volume;
        delete_volume(DeleteVolumeRequest) -> Volume;
        restore_volume(RestoreVolumeRequest) -> Volume;
        purge_volume(PurgeVolumeRequest) -> Empty;
        register_program(RegisterProgramRequest) -> Program;
        list_programs(Empty) -> ListProgramsReply;
        remove_program(RemoveProgramRequest) -> Empty;
        move_primary(MovePrimaryRequest) -> Segment;
        list_events(ListEventsRequest) -> ListEventsReply;
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<rpc::WatchReply, Status>> + Send>>;

    async fn watch(
        &self,
        _: Request<rpc::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let fake = self.clone();
        let news = WatchStream::new(self.news.subscribe());
        Ok(Response::new(Box::pin(news.map(move |revision| {
            let world = fake.world();
            Ok(rpc::WatchReply {
                revision,
                full: true,
                segments: world.segments.keys().filter_map(|i| segment(&world, *i)).collect(),
                servers: servers(&world),
                size_bytes: world.size,
                ..rpc::WatchReply::default()
            })
        }))))
    }

    async fn status(
        &self,
        _: Request<rpc::StatusRequest>,
    ) -> Result<Response<rpc::StatusReply>, Status> {
        drop(self.called()?);
        let cluster = "fake".to_owned();
        Ok(Response::new(rpc::StatusReply { cluster, ..rpc::StatusReply::default() }))
    }

    async fn attach(
        &self,
        _: Request<rpc::AttachRequest>,
    ) -> Result<Response<rpc::AttachReply>, Status> {
        let world = self.called()?;
        Ok(Response::new(rpc::AttachReply {
            attachment: Some(attachment(&world)),
            volume: Some(volume(&world)),
            segments: world.segments.keys().filter_map(|i| segment(&world, *i)).collect(),
            servers: servers(&world),
        }))
    }

    async fn detach(
        &self,
        _: Request<rpc::DetachRequest>,
    ) -> Result<Response<rpc::Empty>, Status> {
        self.called()?.attached = false;
        Ok(Response::new(rpc::Empty {}))
    }

    async fn get_attachment(
        &self,
        request: Request<rpc::AttachmentRequest>,
    ) -> Result<Response<rpc::Attachment>, Status> {
        let world = self.called()?;
        assert_eq!(request.into_inner().session, SESSION.0);
        if !world.attached {
            return Err(Status::not_found("the attachment has ended"));
        }
        Ok(Response::new(attachment(&world)))
    }

    async fn find_segment(
        &self,
        request: Request<rpc::SegmentRequest>,
    ) -> Result<Response<rpc::FindSegmentReply>, Status> {
        let world = self.called()?;
        let rpc::SegmentRequest { index, session, .. } = request.into_inner();
        assert_eq!(session, SESSION.0, "who asks may hold a lease");
        if let Some(segment) = segment(&world, index) {
            let (segment, servers) = (Some(segment), servers(&world));
            let found = rpc::FindSegmentReply { segment, servers, ..Default::default() };
            return Ok(Response::new(found));
        }
        let absent_before = world.segments.range(index..).next().map_or(u32::MAX, |(&i, _)| i);
        let absent_ms = world.absent_ms;
        let absent = rpc::FindSegmentReply { absent_before, absent_ms, ..Default::default() };
        Ok(Response::new(absent))
    }

    async fn ensure_segment(
        &self,
        request: Request<rpc::SegmentRequest>,
    ) -> Result<Response<rpc::Segment>, Status> {
        let mut world = self.called()?;
        let index = request.into_inner().index;
        world.place(index);
        Ok(Response::new(segment(&world, index).expect("just placed")))
    }

    async fn list_segments(
        &self,
        request: Request<rpc::ListSegmentsRequest>,
    ) -> Result<Response<rpc::ListSegmentsReply>, Status> {
        let world = self.called()?;
        let request = request.into_inner();
        let segments = world
            .segments
            .range(request.first..)
            .take(request.limit as usize)
            .filter_map(|(i, _)| segment(&world, *i))
            .collect();
        Ok(Response::new(rpc::ListSegmentsReply { segments, servers: servers(&world) }))
    }
}
