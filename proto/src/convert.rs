//! Between gRPC messages and domain types. The one place where control-plane input is validated.

use std::net::SocketAddr;

use crate::{
    ids::{
        Epoch, Position, ReplicaId, Revision, RunId, SegmentId, Sequence, ServerId, Token, VolumeId,
    },
    record::{CopyReport, Durability, Member, SegmentRecord, ServerAddress},
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
    /// A copy is told with the record of another segment.
    #[error("copy of segment {segment} comes with the record of {named}")]
    OtherSegment {
        /// Of the copy.
        segment: SegmentId,
        /// Of the record.
        named: SegmentId,
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

impl From<&CopyReport> for rpc::ReportedCopy {
    fn from(c: &CopyReport) -> Self {
        Self {
            volume: c.segment.volume.0,
            index: c.segment.index,
            replica: c.replica.0,
            epoch: c.epoch.0,
            token: c.token.0,
            last_epoch: c.last.epoch.0,
            last_sequence: c.last.sequence.0,
            copying: c.copying,
            record: c.record.as_ref().map(Into::into),
        }
    }
}

impl TryFrom<&rpc::ReportedCopy> for CopyReport {
    type Error = Malformed;

    fn try_from(c: &rpc::ReportedCopy) -> Result<Self, Malformed> {
        let segment = SegmentId { volume: VolumeId(c.volume), index: c.index };
        let record: Option<SegmentRecord> = c.record.as_ref().map(TryInto::try_into).transpose()?;
        if let Some(other) = record.as_ref().filter(|r| r.segment != segment) {
            return Err(Malformed::OtherSegment { segment, named: other.segment });
        }
        Ok(Self {
            segment,
            replica: ReplicaId(c.replica),
            epoch: Epoch(c.epoch),
            token: Token(c.token),
            last: Position { epoch: Epoch(c.last_epoch), sequence: Sequence(c.last_sequence) },
            copying: c.copying,
            record,
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> CopyReport {
        let member = Member { replica: ReplicaId(7), server: ServerId(2), fresh: false };
        let segment = SegmentId { volume: VolumeId(3), index: 4 };
        let record = SegmentRecord {
            segment,
            revision: Revision(9),
            epoch: Epoch(5),
            token: Token(6),
            primary: ReplicaId(7),
            primary_run: RunId(8),
            members: vec![member],
            learners: Vec::new(),
            former: Vec::new(),
            retired: Vec::new(),
            floor: 1,
            replicas: 1,
            durability: Durability::Flush,
            active: Some((Epoch(5), Token(6))),
        };
        CopyReport {
            segment,
            replica: ReplicaId(7),
            epoch: Epoch(5),
            token: Token(6),
            last: Position { epoch: Epoch(4), sequence: Sequence(11) },
            copying: true,
            record: Some(record),
        }
    }

    #[test]
    fn a_reported_copy_comes_over_the_wire_as_it_was() {
        for report in [report(), CopyReport { record: None, copying: false, ..report() }] {
            let sent = rpc::ReportedCopy::from(&report);
            assert_eq!(CopyReport::try_from(&sent), Ok(report));
        }
    }

    #[test]
    fn a_copy_with_the_record_of_another_segment_is_malformed() {
        let mut sent = rpc::ReportedCopy::from(&report());
        sent.index += 1;
        assert!(matches!(CopyReport::try_from(&sent), Err(Malformed::OtherSegment { .. })));
    }
}
