//! What an agent says, in the store's words. Here wire types end.
use super::control::VERSION;
use crate::kernel::secret::Plain;
use crate::kernel::{Error, version};
use crate::store::{AssignmentRow, NodeReport};
use prost::Message;
use rhyzome_proto::v1::{Hello, NodeStatus, Order, OrderBody, OrderSecret, Report, ReportState};
use serde_json::{Value, json};
use std::future::Future;
use std::time::Duration;

/// A database that is away comes back: what an agent said is tried again this often.
const AGAIN: Duration = Duration::from_secs(1);
/// Characters of a message that are kept.
const LONGEST_TEXT: usize = 4096;

/// Bytes that no database keeps in a text, and texts without end, stop here.
pub(super) fn clean(text: &str) -> String {
    text.chars().take(LONGEST_TEXT).map(|c| if c == '\0' { '\u{fffd}' } else { c }).collect()
}

/// A report for the store; `None` if it says nothing.
pub(super) fn node_report(report: Report) -> Option<NodeReport> {
    let state = match report.state() {
        ReportState::Working => "working",
        ReportState::Applied => "applied",
        ReportState::Failed => "failed",
        ReportState::Gone => "gone",
        ReportState::Unspecified => return None,
    };
    let bytes = report.encode_to_vec();
    let rendered =
        report.rendered.into_iter().map(|(name, text)| (clean(&name), text.replace('\0', "\u{fffd}")));
    Some(NodeReport {
        state: state.to_owned(),
        message: clean(&report.message),
        permanent: report.permanent,
        progress: i64::from(report.progress_percent.min(100)),
        placement_epoch: signed(report.placement_epoch),
        generation: signed(report.generation),
        sequence: signed(report.sequence),
        rendered: rendered.collect(),
        object_id: clean(&report.object_id),
        bytes,
    })
}

/// What is known of an agent by its first words, as the status of its node has it.
pub(super) fn agent(hello: &Hello) -> Value {
    let version = clean(&hello.agent_version);
    let skew = version::skew(VERSION, &version);
    json!({
        "agent_version": version,
        "version_skew": skew.to_string(),
        "version_advice": skew.advice(VERSION, &version),
    })
}

/// What a node says of itself, as its kind's status has it.
pub(super) fn node_status(status: &NodeStatus) -> Value {
    let capability = |c: &rhyzome_proto::v1::Capability| json!({"name": clean(&c.name), "available": c.available, "detail": clean(&c.detail)});
    json!({
        "hostname": clean(&status.hostname),
        "agent_version": clean(&status.agent_version),
        "architecture": clean(&status.architecture),
        "vcpus": status.vcpus,
        "memory_bytes": status.memory_bytes,
        "disk_bytes": status.disk_bytes,
        "disk_available_bytes": status.disk_available_bytes,
        "accelerator": clean(&status.accelerator),
        "accelerator_reason": clean(&status.accelerator_reason),
        "capabilities": status.capabilities.iter().take(100).map(capability).collect::<Vec<_>>(),
        "kernel": clean(&status.kernel),
        "boot_id": clean(&status.boot_id),
        "simulated": status.simulated,
    })
}

/// An assignment as an order.
pub(super) fn order(row: AssignmentRow, db_epoch: i64) -> Result<Order, String> {
    let secret = |(marker, plain): (String, Plain)| OrderSecret { marker, value: plain.reveal().to_owned() };
    Ok(Order {
        secrets: row.secrets?.into_iter().map(secret).collect(),
        body: Some(OrderBody::decode(row.body.as_slice()).map_err(|error| error.to_string())?),
        object_id: row.object_id,
        kind: row.kind,
        tenant: row.tenant,
        name: row.name,
        db_epoch: unsigned(db_epoch),
        placement_epoch: unsigned(row.placement_epoch),
        generation: unsigned(row.generation),
        sequence: unsigned(row.sequence),
        remove: row.remove,
        needs: row.needs,
    })
}

/// The wire's numbers are unsigned, the database's signed; neither ever comes near the difference.
pub(super) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// The other way.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Does something with the store, and does it again while the database is away. What fails otherwise is
/// logged and passed over: one report that cannot be kept must not end the session.
pub(super) async fn insist<T, F>(what: &str, mut work: impl FnMut() -> F) -> Option<T>
where
    F: Future<Output = Result<T, Error>>,
{
    loop {
        match work().await {
            Ok(done) => return Some(done),
            Err(Error::Unavailable(_)) => tokio::time::sleep(AGAIN).await,
            Err(error) => {
                tracing::error!(%error, what, "the store refused");
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_cut_to_size_and_cleaned() {
        let report = Report {
            object_id: "inst_1".into(),
            message: "a\0b".to_owned() + &"x".repeat(10_000),
            progress_percent: 300,
            state: ReportState::Failed.into(),
            ..Report::default()
        };
        let kept = node_report(report).unwrap();
        assert_eq!(
            (kept.state.as_str(), kept.progress, kept.message.len()),
            ("failed", 100, LONGEST_TEXT + 2)
        );
        assert!(node_report(Report::default()).is_none());
    }
}
