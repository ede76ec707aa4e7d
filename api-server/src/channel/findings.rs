//! What a node finds on itself, in the store's words; and what was decided on it, in the wire's.
use super::ChannelContext;
use super::report::{clean, insist};
use crate::kernel::Timestamp;
use crate::store::Findings;
use prost::Message as _;
use rhyzome_proto::v1::{self, Decision, Decisions, Difference, Guest};
use serde_json::{Value, json};

/// A node says no more of each.
const MOST: usize = 2_000;

/// Keeps it.
pub(super) async fn keep(context: &ChannelContext, node: &str, said: v1::Findings) {
    let guests = said.guests.iter().take(MOST).map(guest).collect();
    let differences = said.differences.iter().take(MOST).map(difference).collect();
    let said = Findings { guests, differences };
    insist("findings", || context.store.record_findings(node, said.clone())).await;
}

fn guest(guest: &Guest) -> Value {
    let instance = (!guest.instance_id.is_empty()).then(|| clean(&guest.instance_id));
    let mut said = json!({
        "id": clean(&guest.id), "name": clean(&guest.name), "pid": guest.pid, "vcpus": guest.vcpus,
        "memory_bytes": guest.memory_bytes,
        "disks": guest.disks.iter().take(100).map(|disk| clean(disk)).collect::<Vec<_>>(),
        "since": time(guest.started_at_ms), "instance": instance, "state": clean(&guest.state),
    });
    if let Some(orphan) = &guest.orphan {
        let hex: String = orphan.encode_to_vec().iter().map(|byte| format!("{byte:02x}")).collect();
        said["record"] = json!(hex);
    }
    said
}

fn difference(one: &Difference) -> Value {
    json!({
        "id": clean(&one.id), "object": clean(&one.object_id), "what": clean(&one.what),
        "expected": clean(&one.expected), "found": clean(&one.found), "since": time(one.since_ms),
        "repaired_at": time(one.repaired_at_ms),
        "actions": one.actions.iter().take(10).map(|action| clean(action)).collect::<Vec<_>>(),
    })
}

/// Null where nothing is said.
fn time(ms: u64) -> Value {
    match i64::try_from(ms).ok().and_then(|ms| ms.checked_mul(1000)) {
        None | Some(0) => Value::Null,
        Some(micros) => json!(Timestamp(micros)),
    }
}

/// For the node.
pub(super) fn decisions(all: Vec<(String, String)>) -> Decisions {
    Decisions { decisions: all.into_iter().map(|(id, verb)| Decision { id, verb }).collect() }
}
