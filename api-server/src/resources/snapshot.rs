//! A snapshot: a disk as it was at one moment.
//!
//! Its life: the node that has the disk copies it, under a running guest too; from then on the copy stands on nothing
//! else, and never changes. It stays on that node until it is deleted; its bytes can be had over the API.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::kernel::place::{Beside, Needs};
use crate::kernel::{
    Change, Claim, ClaimKind, Fact, Facts, FieldError, Held, Meta, NameRule, Object, Order, Plan, Ref,
    Resource, Scope, Step, Timestamp, Who,
};

/// A snapshot.
pub struct Snapshot;

/// How long the copy may take: as long as an agent lets its tools copy.
const APPLY_SECONDS: u32 = 6 * 3600;
/// For how long it may be begun: later it would be of another moment.
const BEGIN_SECONDS: i64 = 3600;
const DISK: &str = "spec.disk";

// === spec ===

/// Of what it is.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"disk": "data"}))]
pub struct SnapshotSpec {
    /// Name or id of the disk. It cannot be deleted while it has snapshots.
    pub disk: String,
}

// === status ===

/// What it is, once it was taken.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct SnapshotStatus {
    /// The moment of which it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub taken_at: Option<Timestamp>,
    /// The SHA-256 of its bytes, in hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Bytes of the file: a qcow2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Bytes of the disk that a guest sees.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_size_bytes: Option<u64>,
    /// What its node last said of it, if something is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl Resource for Snapshot {
    const META: Meta = Meta {
        kind: "snapshot",
        plural: "snapshots",
        prefix: "snap",
        scope: Scope::Tenant,
        name: NameRule::Label,
        about: "A disk as it was at one moment",
        actions: &[],
        fields: &[("disk", Change::Immutable)],
        held: Held::Alone,
        private: &[],
    };
    type Spec = SnapshotSpec;
    type Status = SnapshotStatus;

    fn refs(spec: &SnapshotSpec) -> Vec<Ref> {
        vec![Ref::uses(DISK, "disk", &spec.disk)]
    }

    // === validate ===

    fn validate(_object: &Object<Self>, _facts: &Facts, _creating: bool) -> Vec<FieldError> {
        Vec::new()
    }

    // === create, update, remove ===

    fn create(object: &Object<Self>, facts: &Facts) -> Plan {
        let Some(disk) = facts.get(DISK) else { return Plan::default() };
        let mut steps = Vec::new();
        if disk.held_on.is_empty() {
            // No instance has used it yet: it comes to a node now, as it would with one, and stays there.
            steps.extend(disk.spec::<String>("/image").map(|image| Step::Assign { who: Who::Id(image) }));
            steps.push(Step::Assign { who: Who::Ref(DISK.into()) });
        }
        steps.extend(Step::apply(APPLY_SECONDS));
        let mut plan = Plan { claims: vec![place(object, disk)], ..Plan::steps(steps) };
        plan.disk_bytes = size(disk);
        if let Some(pool) = disk.claims.get("pool") {
            plan.values.insert("pool".into(), pool.clone());
        }
        plan
    }

    fn update(_old: &Object<Self>, new: &Object<Self>, facts: &Facts) -> Plan {
        Plan { steps: Vec::new(), ..Self::create(new, facts) }
    }

    fn remove(_object: &Object<Self>) -> Plan {
        Plan::steps([Step::Unassign { who: Who::This }, Step::AwaitGone { who: Who::This }, Step::Release])
    }

    // === order and observe ===

    fn order(object: &Object<Self>, facts: &Facts) -> Option<Order> {
        wire::order(object, facts)
    }

    fn observe(object: &mut Object<Self>, report: &[u8]) {
        wire::observe(object, report);
    }
}

/// Where the instance is that uses its disk; else where the disk is; where there is room, if that is nowhere yet. A disk of a
/// shared pool may be held by nodes on which it was used before: nobody there knows who writes to it now.
fn place(object: &Object<Snapshot>, disk: &Fact) -> Claim {
    let placed = object.claims.text("node").map(str::to_owned);
    let home = placed.or_else(|| disk.held_on.first().cloned());
    let shared = disk.claims.get("pool").and_then(|pool| pool.get("shared")?.as_bool()).unwrap_or(false);
    let needs = Needs {
        disk_bytes: if shared { 0 } else { size(disk) },
        stays: home.is_some(),
        node: home,
        beside: Some(Beside { of: disk.id.clone(), by: "instance" }),
        guests: true,
        ..Needs::default()
    };
    Claim::new("node", DISK, ClaimKind::Placement(needs))
}

/// It may become as large as its disk.
fn size(disk: &Fact) -> u64 {
    disk.claims.get("size_bytes").and_then(Value::as_u64).unwrap_or(0)
}

// === wire ===

mod wire {
    use prost::Message as _;
    use rhyzome_proto::v1::{self, OrderBody, SnapshotOrder, StoragePool, order_body::Body, report};

    use super::*;

    pub fn order(object: &Object<Snapshot>, facts: &Facts) -> Option<Order> {
        let disk = facts.get(DISK)?;
        let kept = |key: &str| object.claims.0.get("pool").and_then(|pool| pool.get(key));
        let text = |key: &str| kept(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let pool = StoragePool {
            id: text("id"),
            driver: text("driver"),
            path: text("path"),
            shared: kept("shared").and_then(Value::as_bool).unwrap_or(false),
        };
        let until = object.core.created_at.plus_seconds(BEGIN_SECONDS);
        let body = SnapshotOrder {
            disk_id: disk.id.clone(),
            pool: Some(pool),
            begin_before_ms: u64::try_from(until.0 / 1000).unwrap_or(0),
        };
        let body = OrderBody { body: Some(Body::Snapshot(body)) }.encode_to_vec();
        // Without needs: once it was taken it stands on nothing.
        Some(Order { body, needs: Vec::new() })
    }

    pub fn observe(object: &mut Object<Snapshot>, report: &[u8]) {
        let Ok(said) = v1::Report::decode(report) else { return };
        let failed = said.state() == v1::ReportState::Failed;
        object.status.message = failed.then(|| said.message.clone());
        if let Some(report::Body::Snapshot(taken)) = said.body {
            // It becomes an ETag, and part of file names.
            let hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            if taken.sha256.len() != 64 || !taken.sha256.bytes().all(hex) {
                object.status.message = Some("what its node tells of it is no SHA-256".into());
                return;
            }
            let taken_at = i64::try_from(taken.taken_at_ms).unwrap_or(0);
            object.status.taken_at = Some(Timestamp(taken_at.saturating_mul(1000)));
            object.status.sha256 = Some(taken.sha256);
            object.status.size_bytes = Some(taken.size_bytes);
            object.status.virtual_size_bytes = Some(taken.virtual_size_bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use rhyzome_proto::v1::{self, OrderBody, SnapshotOrder, StoragePool, order_body::Body, report};
    use serde_json::json;

    use super::*;
    use crate::resources::testing::{fact, facts, object, stored_as};

    fn around(held_on: &[&str]) -> Facts {
        let pool = json!({"id": "pool_1", "driver": "dir", "path": "/srv", "shared": false});
        let claims = json!({"size_bytes": 4096, "pool": pool});
        let mut disk = fact("disk_1", json!({"image": "img_1"}), claims, json!({}));
        disk.held_on = held_on.iter().map(|node| (*node).to_owned()).collect();
        facts([(DISK, disk)])
    }

    fn needs(plan: &Plan) -> &Needs {
        match &plan.claims[..] {
            [Claim { what: ClaimKind::Placement(needs), .. }] => needs,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn it_is_taken_where_its_disk_is() {
        let snapshot = object::<Snapshot>(json!({"disk": "data"}));
        let plan = Snapshot::create(&snapshot, &around(&["node_2"]));
        let Needs { node, stays, disk_bytes, .. } = needs(&plan);
        assert_eq!((node.as_deref(), stays, disk_bytes), (Some("node_2"), &true, &4096));
        assert_eq!(plan.disk_bytes, 4096);
        assert_eq!(plan.steps, Step::apply(APPLY_SECONDS));
    }

    #[test]
    fn a_disk_that_was_never_used_comes_to_a_node_with_its_image() {
        let plan = Snapshot::create(&object::<Snapshot>(json!({"disk": "data"})), &around(&[]));
        assert_eq!((needs(&plan).node.as_deref(), needs(&plan).stays), (None, false));
        let assigned = [Who::Id("img_1".into()), Who::Ref(DISK.into())].map(|who| Step::Assign { who });
        assert_eq!(plan.steps[..2], assigned);
    }

    #[test]
    fn the_order_says_of_what_and_until_when() {
        let claims = Value::Object(
            Snapshot::create(&object::<Snapshot>(json!({"disk": "disk_1"})), &around(&["n"])).values,
        );
        let mut snapshot = stored_as::<Snapshot>(json!({"disk": "disk_1"}), claims, json!(null));
        snapshot.core.created_at = Timestamp(5_000_000);
        let order = Snapshot::order(&snapshot, &around(&["n"])).unwrap();
        let pool =
            StoragePool { id: "pool_1".into(), driver: "dir".into(), path: "/srv".into(), shared: false };
        let wanted = SnapshotOrder { disk_id: "disk_1".into(), pool: Some(pool), begin_before_ms: 3_605_000 };
        assert_eq!(OrderBody::decode(&order.body[..]).unwrap().body.unwrap(), Body::Snapshot(wanted));
        assert_eq!(order.needs, Vec::<String>::new());
    }

    #[test]
    fn what_was_taken_is_kept() {
        let mut snapshot = object::<Snapshot>(json!({"disk": "data"}));
        let sha256 = "ab".repeat(32);
        let told = |sha256: &str| {
            let sha256 = sha256.to_owned();
            let taken = v1::SnapshotReport { sha256, size_bytes: 7, virtual_size_bytes: 9, taken_at_ms: 5 };
            v1::Report { body: Some(report::Body::Snapshot(taken)), ..v1::Report::default() }.encode_to_vec()
        };
        Snapshot::observe(&mut snapshot, &told("../../etc"));
        assert_eq!((&snapshot.status.sha256, snapshot.status.message.is_some()), (&None, true));
        Snapshot::observe(&mut snapshot, &told(&sha256));
        assert_eq!(snapshot.status.message, None);
        let failed = v1::Report {
            state: v1::ReportState::Failed.into(),
            message: "gone".into(),
            ..v1::Report::default()
        };
        Snapshot::observe(&mut snapshot, &failed.encode_to_vec());
        let status = &snapshot.status;
        assert_eq!((status.sha256.as_deref(), status.size_bytes), (Some(&*sha256), Some(7)));
        assert_eq!((status.taken_at, status.message.as_deref()), (Some(Timestamp(5000)), Some("gone")));
    }
}
