//! A node: a machine whose agent holds what it is ordered to.
//!
//! Its life: made by an operator (`invited`), joined by its agent with a token, then `ready` while the agent
//! is connected and `offline` while it is not. `cordoned` keeps new instances away. What the agent says of
//! its machine is no report on an object: the channel writes it into the status.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::kernel::resource::Call;
use crate::kernel::{
    Action, Error, Facts, FieldError, Held, Meta, NameRule, Object, Plan, Resource, Scope, Timestamp,
};

/// A node.
pub struct Node;

// === spec ===

/// How a node is used.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"cordoned": false, "vcpu_overcommit": 4.0}))]
pub struct NodeSpec {
    /// True: nothing new is placed here; what is here stays.
    #[serde(default)]
    #[schema(default = false)]
    pub cordoned: bool,
    /// How many virtual processors may be given for each real one.
    #[serde(default = "vcpu_overcommit")]
    #[schema(minimum = 0.1, maximum = 100, default = 8.0)]
    pub vcpu_overcommit: f64,
    /// How many bytes of memory may be given for each real one.
    #[serde(default = "memory_overcommit")]
    #[schema(minimum = 0.1, maximum = 10, default = 1.0)]
    pub memory_overcommit: f64,
    /// How many bytes of disk may be promised for each real one: disks grow as they are written.
    #[serde(default = "disk_overcommit")]
    #[schema(minimum = 0.1, maximum = 100, default = 2.0)]
    pub disk_overcommit: f64,
}

fn vcpu_overcommit() -> f64 {
    8.0
}

fn memory_overcommit() -> f64 {
    1.0
}

fn disk_overcommit() -> f64 {
    2.0
}

// === status ===

/// What the agent says of its machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct NodeStatus {
    /// True once an agent has joined as this node.
    pub joined: bool,
    /// True while its agent is connected.
    pub connected: bool,
    /// When the agent was last heard of.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_seen_at: Option<Timestamp>,
    /// When its certificates were revoked; gone once it has joined again.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub revoked_at: Option<Timestamp>,
    /// What the agent shows when it dials in, once it has said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<NodeCertificate>,
    /// What the machine calls itself.
    pub hostname: String,
    /// Version of the agent.
    pub agent_version: String,
    /// How far the agent's version is from the server's: `none`, `older` or `newer` (by one minor version: it works),
    /// `unsupported` (further: nothing new is placed here).
    pub version_skew: String,
    /// What to do about that; empty: nothing.
    pub version_advice: String,
    /// `x86_64`.
    pub architecture: String,
    /// Processors of the machine.
    pub vcpus: u32,
    /// Memory of the machine.
    pub memory_bytes: u64,
    /// Size of the file system of the agent's folder.
    pub disk_bytes: u64,
    /// Free there.
    pub disk_available_bytes: u64,
    /// `kvm`, `tcg`, or `none` when no QEMU is there; `simulated` where no guest is real.
    pub accelerator: String,
    /// Why this one.
    pub accelerator_reason: String,
    /// Tools and rights that the agent looked for at start.
    pub capabilities: Vec<NodeCapability>,
    /// Version of the kernel.
    pub kernel: String,
    /// Changes with each boot of the machine.
    pub boot_id: String,
    /// The machine that is this node: a digest of its own name for itself.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub machine: String,
    /// The last agent that was not let in as this node, until somebody has decided on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<NodeRefusal>,
    /// True: the agent only notes what it would do, and nothing runs on this node.
    pub simulated: bool,
}

/// An agent that was not let in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct NodeRefusal {
    /// `cloned-state`, `older-database`.
    pub reason: String,
    /// Why, and what can be done.
    pub detail: String,
    /// The machine that it is on.
    pub machine: String,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
}

/// An agent's certificate.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct NodeCertificate {
    /// When it ends. It is renewed after two thirds of its life, while the agent is connected.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
    /// True: less than a sixth of its life is left, and it was not renewed though the agent was connected.
    pub expires_soon: bool,
    /// Why there is no newer one, if one was asked for and did not come.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renewal_problem: Option<String>,
}

/// One tool or right.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct NodeCapability {
    /// `qemu`.
    pub name: String,
    /// True: it is there and works.
    pub available: bool,
    /// Its version, or what is missing and which package has it.
    pub detail: String,
}

impl Resource for Node {
    const META: Meta = Meta {
        kind: "node",
        plural: "nodes",
        prefix: "node",
        scope: Scope::Operator,
        name: NameRule::Label,
        about: "A machine whose agent runs instances",
        actions: &[Action {
            verb: "drain",
            doing: "draining",
            about: "Move what is on it to other nodes; hard: stop what cannot be moved",
        }],
        fields: &[],
        held: Held::Never,
        private: &[],
    };
    type Spec = NodeSpec;
    type Status = NodeStatus;

    // === validate ===

    fn validate(object: &Object<Self>, _facts: &Facts, _creating: bool) -> Vec<FieldError> {
        let spec = &object.spec;
        let limits = [
            ("spec.vcpu_overcommit", spec.vcpu_overcommit, 100.0),
            ("spec.memory_overcommit", spec.memory_overcommit, 10.0),
            ("spec.disk_overcommit", spec.disk_overcommit, 100.0),
        ];
        limits
            .into_iter()
            .filter(|(_, factor, most)| !(0.1..=*most).contains(factor))
            .map(|(field, _, most)| FieldError::new(field, format!("must be 0.1 to {most}")))
            .collect()
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

    fn act(object: &Object<Self>, call: &Call) -> Result<Plan, Error> {
        if call.verb != "drain" {
            return Err(Error::field("action", format!("a node has no action `{}`", call.verb)));
        }
        let before = object.spec.cordoned;
        let spec = NodeSpec { cordoned: true, ..object.spec.clone() };
        let spec = serde_json::to_value(spec).map_err(|e| Error::Internal(e.to_string()))?;
        let mut plan = Plan { spec: Some(spec), ..Plan::default() };
        // What has to be moved or stopped is not for a kind to know: the store adds those steps.
        plan.values.insert("cordoned_before".into(), before.into());
        Ok(plan)
    }

    // === settled ===

    fn settled(object: &Object<Self>) -> &'static str {
        match (object.status.joined, object.status.connected) {
            (false, _) => "invited",
            // It has not said yet what it can do: trying its accelerator takes a few seconds.
            (true, true) if object.status.accelerator.is_empty() => "starting",
            (true, true) => "ready",
            (true, false) => "offline",
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resources::testing::{complaints, fields, stored_as};

    #[test]
    fn factors_have_limits() {
        let bad = json!({"vcpu_overcommit": 0, "memory_overcommit": -1.0, "disk_overcommit": 1000.0});
        let said = complaints::<Node>(bad, &Facts::default());
        assert_eq!(fields(&said), ["spec.vcpu_overcommit", "spec.memory_overcommit", "spec.disk_overcommit"]);
        assert_eq!(complaints::<Node>(json!({}), &Facts::default()), []);
    }

    #[test]
    fn invited_then_ready_then_offline() {
        let with = |status| Node::settled(&stored_as::<Node>(json!({}), json!({}), status));
        assert_eq!(with(json!(null)), "invited");
        assert_eq!(with(json!({"joined": true, "connected": true})), "starting");
        let said = json!({"joined": true, "connected": true, "accelerator": "none"});
        assert_eq!(with(said), "ready");
        assert_eq!(with(json!({"joined": true})), "offline");
    }
}
