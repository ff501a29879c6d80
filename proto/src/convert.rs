//! Between gRPC messages and domain types. The one place where control-plane input is validated.

use std::net::SocketAddr;

use crate::{
    ids::{Epoch, ReplicaId, Revision, RunId, SegmentId, ServerId, Token, VolumeId},
    record::{Durability, Member, SegmentRecord, ServerAddress},
    rpc,
};

/// A control-plane message that no correct peer sends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The primary is not among the members.
    #[error("segment {segment}: primary {primary} is not a member")]
    PrimaryNotMember {
        /// Which segment.
        segment: SegmentId,
        /// Primary named.
        primary: ReplicaId,
    },
    /// Not an address.
    #[error("server {server}: bad address {address:?}")]
    Address {
        /// Whose.
        server: ServerId,
        /// What was sent.
        address: String,
    },
    /// A server must have at least one shard.
    #[error("server {server} has no shards")]
    NoShards {
        /// Which server.
        server: ServerId,
    },
}

impl From<&Member> for rpc::Member {
    fn from(m: &Member) -> Self {
        Self { replica: m.replica.0, server: m.server.0, fresh: m.fresh }
    }
}

impl From<&rpc::Member> for Member {
    fn from(m: &rpc::Member) -> Self {
        Self { replica: ReplicaId(m.replica), server: ServerId(m.server), fresh: m.fresh }
    }
}

impl From<Durability> for rpc::Durability {
    fn from(d: Durability) -> Self {
        match d {
            Durability::Sync => Self::Sync,
            Durability::Flush => Self::Flush,
        }
    }
}

impl From<rpc::Durability> for Durability {
    fn from(d: rpc::Durability) -> Self {
        match d {
            rpc::Durability::Sync => Self::Sync,
            rpc::Durability::Flush => Self::Flush,
        }
    }
}

impl From<&SegmentRecord> for rpc::Segment {
    fn from(r: &SegmentRecord) -> Self {
        let all = |members: &[Member]| members.iter().map(Into::into).collect();
        Self {
            volume: r.segment.volume.0,
            index: r.segment.index,
            revision: r.revision.0,
            epoch: r.epoch.0,
            token: r.token.0,
            primary: r.primary.0,
            primary_run: r.primary_run.0,
            members: all(&r.members),
            learners: all(&r.learners),
            former: all(&r.former),
            retired: all(&r.retired),
            floor: r.floor.into(),
            replicas: r.replicas.into(),
            durability: rpc::Durability::from(r.durability).into(),
            active_epoch: r.active.map(|(epoch, _)| epoch.0),
            active_token: r.active.map(|(_, token)| token.0),
        }
    }
}

impl TryFrom<&rpc::Segment> for SegmentRecord {
    type Error = Malformed;

    fn try_from(r: &rpc::Segment) -> Result<Self, Malformed> {
        let all = |members: &[rpc::Member]| members.iter().map(Member::from).collect();
        let segment = SegmentId { volume: VolumeId(r.volume), index: r.index };
        let record = Self {
            segment,
            revision: Revision(r.revision),
            epoch: Epoch(r.epoch),
            token: Token(r.token),
            primary: ReplicaId(r.primary),
            primary_run: RunId(r.primary_run),
            members: all(&r.members),
            learners: all(&r.learners),
            former: all(&r.former),
            retired: all(&r.retired),
            floor: r.floor.min(255) as u8,
            replicas: r.replicas.min(255) as u8,
            durability: r.durability().into(),
            active: r.active_epoch.map(Epoch).zip(r.active_token.map(Token)),
        };
        if record.member(record.primary).is_none() {
            return Err(Malformed::PrimaryNotMember { segment, primary: record.primary });
        }
        Ok(record)
    }
}

impl From<&ServerAddress> for rpc::ServerAddress {
    fn from(a: &ServerAddress) -> Self {
        Self {
            server: a.server.0,
            control: a.control.to_string(),
            shards: a.shards.iter().map(ToString::to_string).collect(),
        }
    }
}

impl TryFrom<&rpc::ServerAddress> for ServerAddress {
    type Error = Malformed;

    fn try_from(a: &rpc::ServerAddress) -> Result<Self, Malformed> {
        let server = ServerId(a.server);
        let parse = |text: &String| -> Result<SocketAddr, Malformed> {
            text.parse().map_err(|_| Malformed::Address { server, address: text.clone() })
        };
        let shards: Vec<_> = a.shards.iter().map(parse).collect::<Result<_, _>>()?;
        if shards.is_empty() {
            return Err(Malformed::NoShards { server });
        }
        Ok(Self { server, control: parse(&a.control)?, shards })
    }
}
