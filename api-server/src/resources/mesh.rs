//! A mesh: WireGuard among nodes, for those whose way to each other nobody should trust.
//!
//! Its life: there at once, with its range of addresses. Nodes come into it as mesh members; it cannot be deleted while
//! it has any.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::kernel::plan::ranges;
use crate::kernel::{
    Change, Claim, ClaimKind, Facts, FieldError, Held, Meta, NameRule, Object, Plan, Resource, Scope, Step,
    Who, wireguard,
};

/// A mesh.
pub struct Mesh;

/// Each node has all others as peers: the addresses say how many there can be, as a power of two.
const MOST_BITS: u8 = 8;
/// At least two nodes, and the ends that are nobody's.
const LEAST_BITS: u8 = 2;
/// A key that lives shorter would be changed before all have heard of it.
const SHORTEST_ROTATION: u32 = 60;
/// Ten years.
const LONGEST_ROTATION: u32 = 315_360_000;
/// What devices of all kinds carry, IPv6 too.
const MTUS: std::ops::RangeInclusive<u16> = 1280..=4032;

// === spec ===

/// What its members have in common.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"prefix": "10.98.0.0/24"}))]
pub struct MeshSpec {
    /// The range of which each member is given an address; overlaps no other mesh's. A /24 (of IPv6, a /120) is the
    /// largest: 254 nodes.
    #[schema(max_length = 64)]
    pub prefix: String,
    /// The UDP port that nodes listen on; the lowest from here on that is free on each.
    #[serde(default = "usual_port")]
    #[schema(minimum = 1, default = 51820)]
    pub port: u16,
    /// The largest packet in the tunnel, in bytes. Without it: 1420.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1280, maximum = 4032)]
    pub mtu: Option<u16>,
    /// Each member says something to each other that often, which keeps the way open through NAT. 0: never.
    #[serde(default = "usual_keepalive")]
    #[schema(maximum = 3600, default = 25)]
    pub keepalive_seconds: u16,
    /// After so long each node makes another key. 0: only when it is asked to.
    #[serde(default = "usual_rotation")]
    #[schema(maximum = 315360000, default = 86400)]
    pub rotation_seconds: u32,
}

fn usual_port() -> u16 {
    wireguard::PORT
}

fn usual_keepalive() -> u16 {
    25
}

fn usual_rotation() -> u32 {
    86_400
}

// === status ===

/// What the mesh is.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct MeshStatus {
    /// How many nodes can be in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<u64>,
}

impl Resource for Mesh {
    const META: Meta = Meta {
        kind: "mesh",
        plural: "meshes",
        prefix: "mesh",
        scope: Scope::Operator,
        name: NameRule::Label,
        about: "WireGuard among nodes, with keys that they make themselves and change regularly",
        actions: &[],
        fields: &[("prefix", Change::Immutable), ("port", Change::Immutable), ("mtu", Change::Immutable)],
        held: Held::Never,
        private: &[],
    };
    type Spec = MeshSpec;
    type Status = MeshStatus;

    // === validate ===

    fn validate(object: &Object<Self>, _facts: &Facts, _creating: bool) -> Vec<FieldError> {
        let spec = &object.spec;
        let mut errors = Vec::new();
        let mut refuse = |field: &str, reason: String| errors.push(FieldError::new(field, reason));
        match wireguard::parse_range(&spec.prefix) {
            Err(reason) => refuse("spec.prefix", reason),
            Ok(prefix) => {
                if let Some(reason) = refuse_size(prefix) {
                    refuse("spec.prefix", reason);
                }
            }
        }
        if spec.mtu.is_some_and(|mtu| !MTUS.contains(&mtu)) {
            refuse("spec.mtu", format!("must be {} to {}", MTUS.start(), MTUS.end()));
        }
        if spec.keepalive_seconds > 3600 {
            refuse("spec.keepalive_seconds", "must be at most 3600".to_owned());
        }
        let rotation = spec.rotation_seconds;
        if rotation > LONGEST_ROTATION || (1..SHORTEST_ROTATION).contains(&rotation) {
            let reason = format!("must be {SHORTEST_ROTATION} to {LONGEST_ROTATION}, or 0 for never");
            refuse("spec.rotation_seconds", reason);
        }
        errors
    }

    // === create, update, remove ===

    fn create(object: &Object<Self>, _facts: &Facts) -> Plan {
        let Some(prefix) = prefix(&object.spec) else { return Plan::default() };
        let claim = |key: &str, scope: &str, wanted: IpNet| {
            Claim::new(key, "spec.prefix", ClaimKind::this_range(scope, wanted))
        };
        // The ends of an IPv4 range are nobody's; of IPv6 the same, so that both count alike.
        let (first, last) = (wireguard::only(prefix.network()), wireguard::only(prefix.broadcast()));
        let id = &object.core.id;
        let claims =
            vec![claim("prefix", "meshes", prefix), claim("first", id, first), claim("last", id, last)];
        Plan { claims, ..Plan::default() }
    }

    fn update(_old: &Object<Self>, new: &Object<Self>, facts: &Facts) -> Plan {
        Plan { steps: vec![Step::Tell { who: Who::This }], ..Self::create(new, facts) }
    }

    fn remove(_object: &Object<Self>) -> Plan {
        Plan::release()
    }

    // === phase and show ===

    fn show(object: &mut Object<Self>) {
        let nodes = prefix(&object.spec).map(|prefix| ranges(prefix, prefix.max_prefix_len()));
        object.status.nodes = nodes.and_then(|all| u64::try_from(all.saturating_sub(2)).ok());
    }
}

fn prefix(spec: &MeshSpec) -> Option<IpNet> {
    wireguard::parse_range(&spec.prefix).ok().filter(|prefix| refuse_size(*prefix).is_none())
}

fn refuse_size(prefix: IpNet) -> Option<String> {
    let longest = prefix.max_prefix_len();
    let sizes = longest - MOST_BITS..=longest - LEAST_BITS;
    let most = (1_u32 << MOST_BITS) - 2;
    (!sizes.contains(&prefix.prefix_len())).then(|| {
        format!(
            "must be a /{} to /{}: a mesh has at most {most} nodes, because each has all others as peers; make \
             another mesh for more",
            sizes.start(),
            sizes.end()
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::resources::testing::{complaints, fields, keys, object};

    fn said(change: Value) -> Vec<FieldError> {
        let mut spec = json!({"prefix": "10.98.0.0/24"});
        json_patch::merge(&mut spec, &change);
        complaints::<Mesh>(spec, &Facts::default())
    }

    #[test]
    fn its_range_says_how_many_nodes_there_can_be() {
        for (good, nodes) in [("10.98.0.0/24", 254), ("10.98.0.0/30", 2), ("fd00:98::/120", 254)] {
            assert_eq!(said(json!({"prefix": good})), []);
            let mut mesh = object::<Mesh>(json!({"prefix": good}));
            Mesh::show(&mut mesh);
            assert_eq!(mesh.status.nodes, Some(nodes));
        }
        for bad in ["10.98.0.0/23", "10.98.0.0/31", "fd00:98::/64", "10.98.0.1/24", "x"] {
            assert_eq!(fields(&said(json!({"prefix": bad}))), ["spec.prefix"], "{bad}");
            let plan = Mesh::create(&object(json!({"prefix": bad})), &Facts::default());
            assert_eq!(keys(&plan.claims), Vec::<&str>::new());
        }
        let reason = &said(json!({"prefix": "10.98.0.0/16"}))[0].reason;
        assert!(reason.contains("at most 254 nodes"), "{reason}");
    }

    #[test]
    fn all_that_is_wrong_is_told() {
        let wrong = said(json!({"mtu": 9000, "keepalive_seconds": 4000, "rotation_seconds": 5}));
        assert_eq!(fields(&wrong), ["spec.mtu", "spec.keepalive_seconds", "spec.rotation_seconds"]);
        assert_eq!(said(json!({"rotation_seconds": 0})), []);
    }
}
