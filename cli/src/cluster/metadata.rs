//! The metadata cluster as the harness sees it: leaders, servers, volumes and who leads their segments.

use std::{collections::BTreeMap, time::Duration};

use tidewater_client::MetaError;
use tidewater_proto::rpc;

use super::{
    Cluster, ClusterError, Seat,
    harness::{START_LIMIT, ServerRun},
};

impl Cluster {
    /// The meta node that leads now.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Timeout`] where none does for long.
    pub fn await_leader(&mut self) -> Result<Seat, ClusterError> {
        self.await_condition("a meta leader", START_LIMIT, |cluster| {
            cluster.servers().map_err(|e| e.to_string())?;
            cluster.leader().ok_or_else(|| "no node says it leads".to_owned())
        })
    }

    /// The running meta node that says it leads, in the highest term.
    pub fn leader(&self) -> Option<Seat> {
        let metas = (0..self.spec().metas).map(Seat::Meta).filter(|&seat| self.is_running(seat));
        let claims = metas.filter_map(|seat| {
            let status = self.status_of(seat).ok()?;
            (status.leader == Some(status.node)).then_some((status.term, seat))
        });
        claims.max().map(|(_, seat)| seat)
    }

    /// All chunkservers as the leader knows them.
    ///
    /// # Errors
    ///
    /// [`MetaError`].
    pub fn servers(&self) -> Result<Vec<rpc::Server>, MetaError> {
        Ok(self.block_on(self.control().list_servers(rpc::Empty {}))?.servers)
    }

    /// A chunkserver as the leader knows it.
    ///
    /// # Errors
    ///
    /// [`ClusterError::NotRunning`] where it never registered.
    pub fn server(&self, seat: Seat) -> Result<rpc::Server, ClusterError> {
        let place = self.places.get(&seat).ok_or(ClusterError::NotRunning { seat })?;
        let control = place.address.to_string();
        let mut known = self.servers()?.into_iter();
        known
            .rfind(|s| s.address.as_ref().is_some_and(|a| a.control == control))
            .ok_or(ClusterError::NotRunning { seat })
    }

    /// Id and run of a chunkserver.
    ///
    /// # Errors
    ///
    /// As [`Cluster::server`].
    pub fn server_run(&self, seat: Seat) -> Result<ServerRun, ClusterError> {
        let server = self.server(seat)?;
        Ok(ServerRun { server: server.address.map_or(0, |a| a.server), run: server.run })
    }

    /// The seat of the chunkserver with this id.
    ///
    /// # Errors
    ///
    /// [`MetaError`]; `None` where the id is not of this cluster.
    pub fn seat_of(&self, server: u64) -> Result<Option<Seat>, MetaError> {
        let known = self.servers()?;
        let address = known.iter().filter_map(|s| s.address.as_ref()).find(|a| a.server == server);
        Ok(address.and_then(|a| self.seat_at(&a.control)))
    }

    /// Makes a volume.
    ///
    /// # Errors
    ///
    /// [`MetaError`].
    pub fn create_volume(
        &self,
        name: &str,
        size_bytes: u64,
        replicas: u32,
        durability: rpc::Durability,
    ) -> Result<rpc::Volume, MetaError> {
        let request = rpc::CreateVolumeRequest {
            name: name.to_owned(),
            size_bytes,
            replicas,
            durability: durability.into(),
        };
        self.block_on(self.control().create_volume(request))
    }

    /// The placed segments of a volume; at most the server's page, 4,096.
    ///
    /// # Errors
    ///
    /// [`MetaError`].
    pub fn segments(&self, volume: u64) -> Result<Vec<rpc::Segment>, MetaError> {
        let request = rpc::ListSegmentsRequest { volume, first: 0, limit: 0, linearizable: true };
        Ok(self.block_on(self.control().list_segments(request))?.segments)
    }

    /// Until every placed segment of the volume has all its copies and an active primary.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Timeout`] with those that do not.
    pub fn await_full_redundancy(
        &mut self,
        volume: u64,
        limit: Duration,
    ) -> Result<(), ClusterError> {
        self.await_condition("full redundancy", limit, |cluster| {
            let segments = cluster.segments(volume).map_err(|e| e.to_string())?;
            let lacking = segments.iter().filter(|s| {
                s.members.len() < s.replicas as usize || s.active_epoch != Some(s.epoch)
            });
            let lacking: Vec<_> = lacking
                .map(|s| {
                    format!("#{} {} of {} at e{}", s.index, s.members.len(), s.replicas, s.epoch)
                })
                .collect();
            if lacking.is_empty() { Ok(()) } else { Err(lacking.join(", ")) }
        })
    }

    /// Which segments of the volume each chunkserver leads; those that lead none are there too.
    ///
    /// # Errors
    ///
    /// [`MetaError`].
    pub fn led(&self, volume: u64) -> Result<BTreeMap<Seat, Vec<u32>>, MetaError> {
        let servers = self.servers()?;
        let addresses = servers.iter().filter_map(|s| s.address.as_ref());
        let seats: BTreeMap<_, _> =
            addresses.filter_map(|a| Some((a.server, self.seat_at(&a.control)?))).collect();
        let mut led: BTreeMap<_, Vec<_>> = seats.values().map(|&seat| (seat, Vec::new())).collect();
        for segment in self.segments(volume)? {
            let primary = segment.members.iter().find(|m| m.replica == segment.primary);
            if let Some(seat) = primary.and_then(|member| seats.get(&member.server)) {
                led.entry(*seat).or_default().push(segment.index);
            }
        }
        Ok(led)
    }

    /// The chunkserver that leads most segments of the volume; none where no segment is placed.
    ///
    /// # Errors
    ///
    /// [`MetaError`].
    pub fn busiest(&self, volume: u64) -> Result<Option<Seat>, MetaError> {
        let led = self.led(volume)?.into_iter().filter(|(_, segments)| !segments.is_empty());
        Ok(led.max_by_key(|(_, segments)| segments.len()).map(|(seat, _)| seat))
    }

    fn seat_at(&self, control: &str) -> Option<Seat> {
        let found = self.places.iter().find(|(_, place)| place.address.to_string() == control);
        found.map(|(seat, _)| *seat)
    }

    /// Until a meta node has applied what the leader has.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Timeout`].
    pub fn await_caught_up(&mut self, meta: Seat, limit: Duration) -> Result<(), ClusterError> {
        self.await_condition("the meta node to catch up", limit, |cluster| {
            let leader = cluster.leader().ok_or("no leader")?;
            let applied =
                |seat| cluster.status_of(seat).map(|s| s.applied).map_err(|e| e.to_string());
            let (want, got) = (applied(leader)?, applied(meta)?);
            if got >= want { Ok(()) } else { Err(format!("{got} of {want}")) }
        })
    }
}
