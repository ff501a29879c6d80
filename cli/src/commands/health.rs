//! `tidewater health`: everything that is not as it should be, one line each.

use serde::Serialize;
use tidewater_proto::rpc;

use super::{cluster, node, segment, volume};
use crate::{
    args::Context,
    failure::{Code, Failure},
    output::{Format, Item, Output, Sizes},
};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// Redundancy is below what was asked for.
    Warning,
    /// Some I/O waits.
    Error,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    code: &'static str,
    severity: Severity,
    subject: String,
    message: String,
}

pub(crate) async fn run(context: &Context) -> Result<(), Failure> {
    let status = cluster::status(context).await?;
    let servers = node::list(context).await?;
    let mut findings = of_status(&status);
    findings.extend(of_servers(&servers));
    for volume in volume::list(context, false).await? {
        findings.extend(of_segments(&volume.name, &segment::all(context, volume.id).await?));
    }
    let output = context.output;
    match output.format {
        Format::Table if findings.is_empty() => crate::output::line("OK")?,
        _ => Output { ..output }.list(&findings)?,
    }
    if findings.is_empty() {
        return Ok(());
    }
    Err(Failure::new(Code::Unhealthy, format!("{} findings", findings.len())))
}

fn of_status(status: &rpc::StatusReply) -> Vec<Finding> {
    let mut findings = Vec::new();
    if status.leader.is_none() {
        findings.push(Finding {
            code: "META_NO_LEADER",
            severity: Severity::Error,
            subject: "cluster".to_owned(),
            message: "no meta node leads; attached volumes go on, nothing can be changed"
                .to_owned(),
        });
    }
    findings
}

fn of_servers(servers: &[rpc::Server]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for server in servers {
        let subject = format!("s{}", node::id_of(server));
        if !server.alive {
            findings.push(Finding {
                code: "NODE_DOWN",
                severity: Severity::Warning,
                subject: subject.clone(),
                message: "the server has not been heard from".to_owned(),
            });
        }
        for device in server.devices.iter().filter(|d| d.failed) {
            findings.push(Finding {
                code: "DEVICE_FAILED",
                severity: Severity::Warning,
                subject: format!("{subject}/{}", device.name),
                message: "the device failed a write and is out of service".to_owned(),
            });
        }
    }
    findings
}

fn of_segments(volume: &str, segments: &[rpc::Segment]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for segment in segments {
        let subject = format!("{volume}#{}", segment.index);
        let members = segment.members.len();
        if segment.active_epoch != Some(segment.epoch) {
            findings.push(Finding {
                code: "SEGMENT_INACTIVE",
                severity: Severity::Error,
                subject: subject.clone(),
                message: format!("no primary has activated epoch {}; I/O waits", segment.epoch),
            });
        }
        if members < segment.replicas as usize {
            findings.push(Finding {
                code: "SEGMENT_DEGRADED",
                severity: Severity::Warning,
                subject,
                message: format!("{members} of {} copies", segment.replicas),
            });
        }
    }
    findings
}

impl Item for Finding {
    const KIND: &'static str = "Finding";
    const COLUMNS: &'static [&'static str] = &["CODE", "SEVERITY", "SUBJECT", "MESSAGE"];

    fn name(&self) -> String {
        self.code.to_owned()
    }

    fn cells(&self, _: Sizes) -> Vec<String> {
        let severity = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        vec![self.code.to_owned(), severity.to_owned(), self.subject.clone(), self.message.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(members: u64, active_epoch: Option<u64>) -> rpc::Segment {
        let member = |i| rpc::Member { replica: i, server: i, fresh: false };
        rpc::Segment {
            epoch: 5,
            replicas: 3,
            members: (1..=members).map(member).collect(),
            active_epoch,
            ..Default::default()
        }
    }

    #[test]
    fn a_segment_with_all_copies_and_an_active_primary_is_healthy() {
        assert_eq!(of_segments("v", &[segment(3, Some(5))]), []);
    }

    #[test]
    fn missing_copies_warn_and_a_stale_active_epoch_is_an_error() {
        let codes = |s| of_segments("v", &[s]).iter().map(|f| f.code).collect::<Vec<_>>();
        assert_eq!(codes(segment(2, Some(5))), ["SEGMENT_DEGRADED"]);
        assert_eq!(codes(segment(3, Some(4))), ["SEGMENT_INACTIVE"]);
        assert_eq!(codes(segment(2, None)), ["SEGMENT_INACTIVE", "SEGMENT_DEGRADED"]);
    }

    #[test]
    fn a_silent_server_and_a_failed_device_are_findings() {
        let device = rpc::Device { name: "d0".into(), failed: true, ..Default::default() };
        let server = rpc::Server { alive: false, devices: vec![device], ..Default::default() };
        let codes: Vec<_> = of_servers(&[server]).iter().map(|f| f.code).collect();
        assert_eq!(codes, ["NODE_DOWN", "DEVICE_FAILED"]);
    }
}
