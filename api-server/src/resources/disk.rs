//! A disk: a block device that an instance uses.
//!
//! Its life: a promise at first; the first instance that uses it brings it to a node, where it stays (in a
//! pool that is not shared) until it is deleted. It may grow, never shrink. One instance at a time has it.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::kernel::{
    Change, Facts, FieldError, Held, Meta, NameRule, Object, Order, Plan, Ref, Resource, Scope, Step, Who,
};

/// A disk.
pub struct Disk;

const APPLY_SECONDS: u32 = 120;
const SECTOR: u64 = 512;
const LEAST: u64 = 1 << 20;
const MOST: u64 = 16 << 40;

// === spec ===

/// What a disk is to be.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"size_bytes": 1073741824}))]
pub struct DiskSpec {
    /// Its size, a multiple of 512; may grow, never shrink. Without it: the size of the image.
    // Its limits are told by `validate`: the schema's would hide the field, and the disk seem without a size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Name or id of the image that it starts as. Without it: empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Name or id of the storage pool that keeps it. Without it: the oldest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
}

// === status ===

/// What the disk is.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct DiskStatus {
    /// The size that it is to have: its own, or that of its image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// The size that its node reports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_size_bytes: Option<u64>,
    /// Bytes that it takes on its node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allocated_bytes: Option<u64>,
    /// What its node last said of it, if something is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl Resource for Disk {
    const META: Meta = Meta {
        kind: "disk",
        plural: "disks",
        prefix: "disk",
        scope: Scope::Tenant,
        name: NameRule::Label,
        about: "A block device that an instance uses",
        actions: &[],
        fields: &[("image", Change::Immutable), ("pool", Change::Immutable)],
        held: Held::Alone,
        private: &[],
    };
    type Spec = DiskSpec;
    type Status = DiskStatus;

    fn refs(spec: &DiskSpec) -> Vec<Ref> {
        let image = spec.image.as_deref().map(|image| Ref::uses("spec.image", "image", image));
        let pool = Ref::uses_or_default("spec.pool", "storage-pool", spec.pool.as_deref(), None);
        image.into_iter().chain([pool]).collect()
    }

    // === validate ===

    fn validate(object: &Object<Self>, facts: &Facts, _creating: bool) -> Vec<FieldError> {
        let spec = &object.spec;
        let mut errors = Vec::new();
        let mut refuse = |field: &str, reason: String| errors.push(FieldError::new(field, reason));
        let image = facts.get("spec.image");
        let image_size = image.and_then(|image| image.status::<u64>("/virtual_size_bytes"));
        if image.is_some() && image_size.is_none() {
            let reason = "this image has no content yet: upload it, or wait for its job, and try again";
            refuse("spec.image", reason.into());
        }
        match (spec.size_bytes, image_size) {
            (None, _) if spec.image.is_none() => {
                refuse("spec.size_bytes", "say how large it is to be, or which `image` it starts as".into());
            }
            (Some(size), _) if !(LEAST..=MOST).contains(&size) => {
                let reason = "must be 1 MiB (1048576) to 16 TiB (17592186044416)";
                refuse("spec.size_bytes", reason.into());
            }
            (Some(size), _) if !size.is_multiple_of(SECTOR) => {
                let next = size.next_multiple_of(SECTOR);
                refuse("spec.size_bytes", format!("must be a multiple of 512: {next} would do"));
            }
            (Some(size), Some(least)) if size < least => {
                refuse("spec.size_bytes", format!("the image needs at least {least} bytes"));
            }
            _ => {}
        }
        errors
    }

    // === create, update, remove ===

    fn create(object: &Object<Self>, facts: &Facts) -> Plan {
        let mut plan = Plan::default();
        if let Some(size) = size(object, facts) {
            plan.values.insert("size_bytes".into(), size.into());
            plan.disk_bytes = size;
        }
        if let Some(pool) = pool(facts) {
            plan.values.insert("pool".into(), pool);
        }
        plan
    }

    fn update(old: &Object<Self>, new: &Object<Self>, facts: &Facts) -> Plan {
        let mut plan = Self::create(new, facts);
        let (before, after) = (old.claims.number("size_bytes"), size(new, facts).unwrap_or(0));
        if after < before {
            let reason = format!("a disk cannot shrink, and this one has {before} bytes");
            plan.errors.push(FieldError::new("spec.size_bytes", reason));
        }
        plan.steps = vec![
            Step::Refresh { who: Who::This },
            Step::AwaitApplied { who: Who::This, deadline_seconds: APPLY_SECONDS },
        ];
        plan
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

    // === show ===

    fn show(object: &mut Object<Self>) {
        object.status.size_bytes = Some(object.claims.number("size_bytes")).filter(|size| *size > 0);
    }
}

/// The size that is asked for: the disk's own, or that of its image.
fn size(object: &Object<Disk>, facts: &Facts) -> Option<u64> {
    object.spec.size_bytes.or_else(|| facts.get("spec.image")?.status("/virtual_size_bytes"))
}

/// The pool as it was when the disk was made. Pools never change, and who attaches the disk reads it here.
fn pool(facts: &Facts) -> Option<Value> {
    let fact = facts.get("spec.pool")?;
    Some(json!({
        "id": fact.id,
        "driver": fact.spec::<String>("/driver").unwrap_or_else(|| "dir".into()),
        "path": fact.spec::<String>("/path").unwrap_or_default(),
        "shared": fact.spec::<bool>("/shared").unwrap_or(false),
    }))
}

// === wire ===

mod wire {
    use prost::Message as _;
    use rhyzome_proto::v1::{self, DiskOrder, OrderBody, StoragePool, order_body::Body, report};

    use super::*;

    pub fn order(object: &Object<Disk>, facts: &Facts) -> Option<Order> {
        let kept = |key: &str| object.claims.0.get("pool").and_then(|pool| pool.get(key));
        let text = |key: &str| kept(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let pool = StoragePool {
            id: text("id"),
            driver: text("driver"),
            path: text("path"),
            shared: kept("shared").and_then(Value::as_bool).unwrap_or(false),
        };
        let image = facts.get("spec.image");
        let format = |image: &crate::kernel::Fact| image.status("/format").unwrap_or_else(|| "qcow2".into());
        let body = DiskOrder {
            pool: Some(pool),
            size_bytes: size(object, facts).unwrap_or_else(|| object.claims.number("size_bytes")),
            image_id: image.map(|image| image.id.clone()).unwrap_or_default(),
            image_format: image.map(format).unwrap_or_default(),
        };
        let body = OrderBody { body: Some(Body::Disk(body)) }.encode_to_vec();
        Some(Order { body, needs: image.map(|image| image.id.clone()).into_iter().collect() })
    }

    pub fn observe(object: &mut Object<Disk>, report: &[u8]) {
        let Ok(said) = v1::Report::decode(report) else { return };
        let failed = said.state() == v1::ReportState::Failed;
        object.status.message = failed.then(|| said.message.clone());
        if let Some(report::Body::Disk(disk)) = said.body {
            object.status.virtual_size_bytes = Some(disk.virtual_size_bytes);
            object.status.allocated_bytes = Some(disk.allocated_bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use rhyzome_proto::v1::{self, DiskOrder, OrderBody, StoragePool, order_body::Body, report};

    use super::*;
    use crate::resources::testing::{complaints, fact, facts, fields, object, stored_as};

    fn around(image_status: Value) -> Facts {
        let pool =
            fact("pool_1", json!({"driver": "dir", "path": "/srv", "shared": true}), json!({}), json!({}));
        facts([("spec.pool", pool), ("spec.image", fact("img_1", json!({}), json!({}), image_status))])
    }

    fn why(spec: Value, facts: &Facts) -> String {
        let said = complaints::<Disk>(spec, facts);
        assert!(said.len() <= 1, "{said:?}");
        said.first().map(|error| format!("{} {}", error.field, error.reason)).unwrap_or_default()
    }

    #[test]
    fn sizes_have_limits() {
        let none = Facts::default();
        assert_eq!(why(json!({"size_bytes": 1 << 30}), &none), "");
        assert!(why(json!({}), &none).contains("say how large"));
        assert!(why(json!({"size_bytes": 0}), &none).contains("1 MiB"));
        assert!(why(json!({"size_bytes": 1_u64 << 60}), &none).contains("16 TiB (17592186044416)"));
        assert!(why(json!({"size_bytes": (1 << 30) + 1}), &none).contains("1073742336 would do"));
    }

    #[test]
    fn an_image_sets_the_least_size() {
        let ready = around(json!({"virtual_size_bytes": 1 << 30}));
        assert_eq!(why(json!({"image": "img_1"}), &ready), "");
        assert!(
            why(json!({"image": "img_1", "size_bytes": 1 << 29}), &ready).contains("at least 1073741824")
        );
        assert!(why(json!({"image": "img_1"}), &around(json!({}))).starts_with("spec.image"));
    }

    #[test]
    fn names_its_image_and_its_pool() {
        let refs = Disk::refs(&object::<Disk>(json!({"image": "tiny"})).spec);
        assert_eq!(refs.iter().map(|r| r.field.as_str()).collect::<Vec<_>>(), ["spec.image", "spec.pool"]);
    }

    #[test]
    fn may_grow_and_not_shrink() {
        let disk = |size: u64| {
            stored_as::<Disk>(json!({"size_bytes": size}), json!({"size_bytes": 4096}), json!(null))
        };
        let grown = Disk::update(&disk(4096), &disk(8192), &Facts::default());
        assert_eq!((grown.errors.len(), &grown.values["size_bytes"]), (0, &json!(8192)));
        assert_eq!(grown.steps[0], Step::Refresh { who: Who::This });
        let shrunk = Disk::update(&disk(4096), &disk(2048), &Facts::default());
        assert_eq!(fields(&shrunk.errors), ["spec.size_bytes"]);
    }

    #[test]
    fn the_order_tells_pool_size_and_image() {
        let around = around(json!({"virtual_size_bytes": 1 << 30, "format": "qcow2"}));
        let disk = object::<Disk>(json!({"image": "img_1", "pool": "pool_1"}));
        let claims = Value::Object(Disk::create(&disk, &around).values);
        let order = Disk::order(&stored_as(json!({"image": "img_1"}), claims, json!(null)), &around).unwrap();
        let pool =
            StoragePool { id: "pool_1".into(), driver: "dir".into(), path: "/srv".into(), shared: true };
        let wanted = DiskOrder {
            pool: Some(pool),
            size_bytes: 1 << 30,
            image_id: "img_1".into(),
            image_format: "qcow2".into(),
        };
        assert_eq!(OrderBody::decode(&order.body[..]).unwrap().body.unwrap(), Body::Disk(wanted));
        assert_eq!(order.needs, ["img_1"]);
    }

    #[test]
    fn reports_are_kept() {
        let mut disk = object::<Disk>(json!({"size_bytes": 1 << 30}));
        let body = report::Body::Disk(v1::DiskReport { virtual_size_bytes: 7, allocated_bytes: 3 });
        let report = v1::Report { body: Some(body), ..v1::Report::default() };
        Disk::observe(&mut disk, &report.encode_to_vec());
        assert_eq!((disk.status.virtual_size_bytes, disk.status.allocated_bytes), (Some(7), Some(3)));
    }
}
