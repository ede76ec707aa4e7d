//! A placement group: instances that are to be on one node, or each on a node of its own.
//!
//! Its life: there at once, never changes, cannot be deleted while an instance names it. Instances join it by
//! `spec.placement.groups` when they are made; the rule is asked when one is placed, and moves nobody later.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::kernel::place::{Policy, Rule};
use crate::kernel::{Change, Facts, FieldError, Held, Meta, NameRule, Object, Plan, Resource, Scope};

/// A placement group.
pub struct PlacementGroup;

// === spec ===

/// What the group is for.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"rule": "anti-affinity", "policy": "fail"}))]
pub struct PlacementGroupSpec {
    /// `anti-affinity`: each member on a node of its own; `affinity`: all members on one node.
    #[serde(default)]
    pub rule: Rule,
    /// When no node keeps the rule: `fail` refuses the new member, `allow` takes the next best node.
    #[serde(default)]
    pub policy: Policy,
}

// === status ===

/// Nothing is reported of a group.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct PlacementGroupStatus {}

impl Resource for PlacementGroup {
    const META: Meta = Meta {
        kind: "placement-group",
        plural: "placement-groups",
        prefix: "pgrp",
        scope: Scope::Tenant,
        name: NameRule::Label,
        about: "Instances that are to be on one node, or on different ones",
        actions: &[],
        fields: &[("rule", Change::Immutable), ("policy", Change::Immutable)],
        held: Held::Never,
        private: &[],
    };
    type Spec = PlacementGroupSpec;
    type Status = PlacementGroupStatus;

    // === validate ===

    fn validate(_object: &Object<Self>, _facts: &Facts, _creating: bool) -> Vec<FieldError> {
        Vec::new()
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
