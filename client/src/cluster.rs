//! The cluster as seen by programs and by the command line.

use std::{sync::Arc, time::Duration};

use tidewater_proto::{
    meta_client::{MetaClient, MetaError, Patience},
    rpc,
};

use crate::{open::Open, session::OpenError, volume::Volume};

/// Time for a call unless told otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Time for one node to answer, so that a dead one does not use up the whole.
const PER_TRY: Duration = Duration::from_secs(3);

/// A cluster. Clones share their connections. Bound to the runtime that first uses it.
#[derive(Clone)]
pub struct Cluster {
    endpoints: Vec<String>,
    meta: Arc<MetaClient>,
    patience: Patience,
}

/// Settings for a [`Cluster`].
#[derive(Clone, Debug)]
pub struct ClusterBuilder {
    endpoints: Vec<String>,
    timeout: Duration,
}

impl ClusterBuilder {
    /// Addresses of meta nodes, `host:port` each; one that is alive is enough.
    #[must_use]
    pub fn endpoints<S: Into<String>>(self, endpoints: impl IntoIterator<Item = S>) -> Self {
        Self { endpoints: endpoints.into_iter().map(Into::into).collect(), ..self }
    }

    /// Time for each call, following the leader included.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// The cluster; nothing is connected yet.
    ///
    /// # Errors
    ///
    /// `Invalid` if no endpoint was given.
    pub fn build(self) -> Result<Cluster, MetaError> {
        let meta = Arc::new(MetaClient::new(&self.endpoints)?);
        let patience = Patience { per_try: PER_TRY.min(self.timeout), total: self.timeout };
        Ok(Cluster { endpoints: self.endpoints, meta, patience })
    }
}

/// A volume by name, not opened yet.
#[derive(Clone, Debug)]
pub struct VolumeRef {
    endpoints: Vec<String>,
    name: String,
}

impl VolumeRef {
    /// Attaches the volume and starts a thread for its session.
    ///
    /// # Errors
    ///
    /// [`OpenError`]: no such volume, attached by someone else, cluster unreachable.
    pub async fn open(self, options: Open) -> Result<Volume, OpenError> {
        Volume::open(self.endpoints, self.name, options).await
    }
}

macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident($request:ident) -> $reply:ident;)*) => {
        impl Cluster {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                ///
                /// [`MetaError`]: refused by the leader, or no leader within the time. In the latter
                /// case the call may have taken effect.
                pub async fn $name(&self, request: rpc::$request) -> Result<rpc::$reply, MetaError> {
                    self.meta
                        .call(self.patience, |mut meta| {
                            let request = request.clone();
                            async move { meta.$name(request).await }
                        })
                        .await
                }
            )*
        }
    };
}

calls! {
    /// State of the Raft group, as the node that answers sees it.
    status(StatusRequest) -> StatusReply;
    /// Makes a cluster of fresh meta nodes.
    init_cluster(InitClusterRequest) -> InitClusterReply;
    /// Adds a meta node as a voter, once it has caught up.
    add_meta_node(AddMetaNodeRequest) -> Empty;
    /// Takes a meta node out of the group.
    remove_meta_node(RemoveMetaNodeRequest) -> Empty;
    /// Has a restored cluster go on without chunkservers that are gone for good.
    finish_restore(FinishRestoreRequest) -> Empty;
    /// Has another meta node lead.
    transfer_leader(TransferLeaderRequest) -> Empty;
    /// All chunkservers.
    list_servers(Empty) -> ListServersReply;
    /// Cordons or uncordons a chunkserver.
    set_server(SetServerRequest) -> Empty;
    /// Forgets a chunkserver.
    remove_server(RemoveServerRequest) -> Empty;
    /// Makes a volume.
    create_volume(CreateVolumeRequest) -> Volume;
    /// All volumes, or those in the trash.
    list_volumes(ListVolumesRequest) -> ListVolumesReply;
    /// One volume with its attachments.
    get_volume(GetVolumeRequest) -> Volume;
    /// Makes a volume larger.
    resize_volume(ResizeVolumeRequest) -> Volume;
    /// Gives a volume another name.
    rename_volume(RenameVolumeRequest) -> Volume;
    /// Puts a volume into the trash.
    delete_volume(DeleteVolumeRequest) -> Volume;
    /// Takes a volume out of the trash.
    restore_volume(RestoreVolumeRequest) -> Volume;
    /// Deletes a volume in the trash for good.
    purge_volume(PurgeVolumeRequest) -> Empty;
    /// Registers a program or instances of it.
    register_program(RegisterProgramRequest) -> Program;
    /// All programs.
    list_programs(Empty) -> ListProgramsReply;
    /// Removes a program or one of its instances.
    remove_program(RemoveProgramRequest) -> Empty;
    /// Ends an attachment; by force, its holder is fenced off.
    detach(DetachRequest) -> Empty;
    /// Places a segment, if it is not.
    ensure_segment(SegmentRequest) -> Segment;
    /// Segments of a volume.
    list_segments(ListSegmentsRequest) -> ListSegmentsReply;
    /// Has another member lead a segment.
    move_primary(MovePrimaryRequest) -> Segment;
    /// The audit trail.
    list_events(ListEventsRequest) -> ListEventsReply;
}

impl Cluster {
    /// Settings.
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder { endpoints: Vec::new(), timeout: TIMEOUT }
    }

    /// A cluster at these addresses, once a node has answered.
    ///
    /// # Errors
    ///
    /// [`MetaError`] if no node answers in time.
    pub async fn connect<S: Into<String>>(
        endpoints: impl IntoIterator<Item = S>,
    ) -> Result<Self, MetaError> {
        let cluster = Self::builder().endpoints(endpoints).build()?;
        cluster.status(rpc::StatusRequest {}).await?;
        Ok(cluster)
    }

    /// A volume by name.
    pub fn volume(&self, name: impl Into<String>) -> VolumeRef {
        VolumeRef { endpoints: self.endpoints.clone(), name: name.into() }
    }
}
