//! A storage pool: where disks are kept on the nodes.
//!
//! Its life: there at once, never changes, cannot be deleted while a disk is in it. A pool that is not
//! shared exists on every node of its own, and a disk in it stays on the node where it was first used.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::kernel::{Change, Facts, FieldError, Held, Meta, NameRule, Object, Plan, Resource, Scope};

/// A storage pool.
pub struct StoragePool;

// === spec ===

/// How a pool keeps its disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StoragePoolDriver {
    /// qcow2 files in a folder.
    #[default]
    Dir,
}

/// Where and how disks are kept.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"driver": "dir", "path": "/srv/rhyzome/disks"}))]
pub struct StoragePoolSpec {
    /// How disks are kept.
    #[serde(default)]
    pub driver: StoragePoolDriver,
    /// An absolute folder on the nodes. Empty: the agent's own folder.
    #[serde(default)]
    #[schema(max_length = 1000, default = "")]
    pub path: String,
    /// True: the same folder is mounted on all nodes (NFS, CephFS), so that any node can use its disks.
    #[serde(default)]
    #[schema(default = false)]
    pub shared: bool,
}

// === status ===

/// Nothing is reported of a pool.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct StoragePoolStatus {}

impl Resource for StoragePool {
    const META: Meta = Meta {
        kind: "storage-pool",
        plural: "storage-pools",
        prefix: "pool",
        scope: Scope::Operator,
        name: NameRule::Label,
        about: "Where disks are kept on the nodes",
        actions: &[],
        fields: &[("driver", Change::Immutable), ("path", Change::Immutable), ("shared", Change::Immutable)],
        held: Held::Never,
        private: &[],
    };
    type Spec = StoragePoolSpec;
    type Status = StoragePoolStatus;

    // === validate ===

    fn validate(object: &Object<Self>, _facts: &Facts, _creating: bool) -> Vec<FieldError> {
        let spec = &object.spec;
        let mut errors = Vec::new();
        if let Some(reason) = refuse_path(&spec.path) {
            errors.push(FieldError::new("spec.path", reason));
        }
        if spec.shared && spec.path.is_empty() {
            let reason = "a shared pool needs a path: the folder that is mounted on all nodes";
            errors.push(FieldError::new("spec.path", reason));
        }
        errors
    }

    // === create, update, remove ===

    fn create(_object: &Object<Self>, _facts: &Facts) -> Plan {
        Plan::default()
    }

    fn update(_old: &Object<Self>, _new: &Object<Self>, _facts: &Facts) -> Plan {
        Plan::default()
    }

    fn remove(_object: &Object<Self>) -> Plan {
        Plan::release()
    }
}

fn refuse_path(path: &str) -> Option<&'static str> {
    if path.is_empty() {
        return None;
    }
    if !path.starts_with('/') || path == "/" {
        return Some("must be an absolute folder, such as /srv/rhyzome/disks, or empty");
    }
    if path.len() > 1000 || path.chars().any(char::is_control) {
        return Some("must be at most 1000 bytes without control characters");
    }
    let plain = path[1..].trim_end_matches('/').split('/').all(|part| !matches!(part, "" | "." | ".."));
    (!plain).then_some("must be a plain path: no `.`, `..` or empty part")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resources::testing::{complaints, fields, object};

    #[test]
    fn paths_are_absolute_and_plain() {
        for bad in ["disks", "/", "/a/../b", "/a//b", "/a/./b", "/a\nb"] {
            let said = complaints::<StoragePool>(json!({"path": bad}), &Facts::default());
            assert_eq!(fields(&said), ["spec.path"], "{bad}");
        }
        for good in ["", "/srv/disks", "/srv/a,b/", "/srv/..hidden"] {
            assert_eq!(complaints::<StoragePool>(json!({"path": good}), &Facts::default()), [], "{good}");
        }
    }

    #[test]
    fn a_shared_pool_needs_a_path() {
        let said = complaints::<StoragePool>(json!({"shared": true}), &Facts::default());
        assert_eq!(fields(&said), ["spec.path"]);
    }

    #[test]
    fn there_is_one_driver() {
        assert_eq!(object::<StoragePool>(json!({})).spec.driver, StoragePoolDriver::Dir);
        assert!(serde_json::from_value::<StoragePoolSpec>(json!({"driver": "zfs"})).is_err());
    }
}
