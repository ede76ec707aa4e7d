//! A mesh member: a node's part in a mesh.
//!
//! Its life: its address and port are its own at once; its node makes a key, of which it tells the public half, and the
//! device. Then the nodes of all other members have it as a peer, and it has them. Its node makes another key from time
//! to time, and tells it before it uses it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::kernel::place::Needs;
use crate::kernel::resource::{Action, Call};
use crate::kernel::{
    Change, Claim, ClaimKind, Error, Fact, Facts, FieldError, Held, Meta, NameRule, Object, Order, Pick,
    Plan, Ref, Resource, Scope, Step, Timestamp, Who, wireguard,
};

/// A mesh member.
pub struct MeshMember;

/// How long its node may take.
const APPLY_SECONDS: u32 = 60;
const MESH: &str = "spec.mesh";
const NODE: &str = "spec.node";
/// How often it was asked for another key.
const ROTATIONS: &str = "rotations";

// === spec ===

/// Which node, and where others reach it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"mesh": "backbone", "node": "rack1", "endpoint": "203.0.113.7"}))]
pub struct MeshMemberSpec {
    /// Name or id of the mesh.
    pub mesh: String,
    /// Name or id of the node. It needs WireGuard, and no QEMU.
    pub node: String,
    /// The address where the other members dial it, or ADDRESS:PORT where something in front of it passes another port
    /// on. Without it, it only dials: of two members one needs an endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 64)]
    pub endpoint: Option<String>,
    /// The UDP port that it listens on. Without it: the lowest from the mesh's on that is free on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub port: Option<u16>,
}

// === status ===

/// What the member is.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct MeshMemberStatus {
    /// Its address in the mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Where the others dial it: address and port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Its node's public key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// The one that comes after it: the others are being told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_public_key: Option<String>,
    /// Since when the present key is in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub key_since: Option<Timestamp>,
    /// `kernel` or `userspace`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The name of the device on its node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// The other members, as its node sees them, by the names of their nodes. Told once a minute, and at once when one
    /// is heard for the first time.
    pub peers: BTreeMap<String, MeshMemberPeer>,
    /// What its node says of it, when something is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Another member, as a node sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct MeshMemberPeer {
    /// Its address in the mesh.
    pub address: String,
    /// Where it was heard last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// When both sides last agreed on keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_handshake_at: Option<Timestamp>,
    /// Bytes that came from it.
    pub received_bytes: u64,
    /// Bytes that went to it.
    pub sent_bytes: u64,
}

impl Resource for MeshMember {
    const META: Meta = Meta {
        kind: "mesh-member",
        plural: "mesh-members",
        prefix: "mshm",
        scope: Scope::Operator,
        name: NameRule::Label,
        about: "A node's part in a mesh: its address, its key and where others reach it",
        actions: &[Action {
            verb: "rotate",
            doing: "rotating",
            about: "Have the node make another key now, and tell the others before it is used",
        }],
        fields: &[("mesh", Change::Immutable), ("node", Change::Immutable), ("port", Change::Immutable)],
        held: Held::Among { by: "mesh" },
        private: &[],
    };
    type Spec = MeshMemberSpec;
    type Status = MeshMemberStatus;

    fn refs(spec: &MeshMemberSpec) -> Vec<Ref> {
        vec![Ref::uses(MESH, "mesh", &spec.mesh), Ref::uses(NODE, "node", &spec.node)]
    }

    // === validate ===

    fn validate(object: &Object<Self>, _facts: &Facts, _creating: bool) -> Vec<FieldError> {
        let Some(endpoint) = &object.spec.endpoint else { return Vec::new() };
        match parse_endpoint(endpoint, 1) {
            Some(address) if !nowhere(address.ip()) => Vec::new(),
            _ => {
                let reason = "must be the node's address, such as 203.0.113.7 or 2001:db8::7, or ADDRESS:PORT: a \
                              name could lead somewhere else tomorrow";
                vec![FieldError::new("spec.endpoint", reason)]
            }
        }
    }

    // === create, update, remove ===

    fn create(object: &Object<Self>, facts: &Facts) -> Plan {
        Plan { claims: claims(&object.spec, facts), values: values(object, 0), ..Plan::steps(apply()) }
    }

    fn update(_old: &Object<Self>, new: &Object<Self>, facts: &Facts) -> Plan {
        // One that is away hears of it when it returns: nobody waits for it.
        let steps = [Step::Refresh { who: Who::This }];
        Plan { claims: claims(&new.spec, facts), values: values(new, 0), ..Plan::steps(steps) }
    }

    fn remove(_object: &Object<Self>) -> Plan {
        Plan::steps([Step::Unassign { who: Who::This }, Step::AwaitGone { who: Who::This }, Step::Release])
    }

    fn act(object: &Object<Self>, call: &Call) -> Result<Plan, Error> {
        match call.verb.as_str() {
            "rotate" => {
                let steps = [Step::Refresh { who: Who::This }];
                Ok(Plan { values: values(object, 1), ..Plan::steps(steps) })
            }
            verb => Err(Error::field("action", format!("a mesh member has no action `{verb}`"))),
        }
    }

    // === order and observe ===

    fn order(object: &Object<Self>, facts: &Facts) -> Option<Order> {
        wire::order(object, facts)
    }

    fn observe(object: &mut Object<Self>, report: &[u8]) {
        wire::observe(object, report);
    }

    fn told(object: &Object<Self>) -> Option<String> {
        let status = &object.status;
        let next = status.next_public_key.as_deref().unwrap_or_default();
        status.public_key.as_ref().map(|key| format!("{key} {next}"))
    }

    // === show ===

    fn show(object: &mut Object<Self>) {
        object.status.address = address(object).map(|address| address.to_string());
        object.status.endpoint = endpoint(object).map(|endpoint| endpoint.to_string());
    }
}

/// An address, with this port if it says none.
fn parse_endpoint(text: &str, port: u16) -> Option<SocketAddr> {
    let with_port = text.parse::<SocketAddr>().ok().filter(|it| it.port() > 0);
    with_port.or_else(|| text.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, port)))
}

/// Nobody can be reached there from another machine.
fn nowhere(address: IpAddr) -> bool {
    address.is_unspecified() || address.is_loopback() || address.is_multicast()
}

fn address(object: &Object<MeshMember>) -> Option<IpAddr> {
    Some(object.claims.text("address")?.parse::<IpNet>().ok()?.addr())
}

fn port(object: &Object<MeshMember>) -> Option<u16> {
    object.claims.text("wireguard.port")?.parse().ok()
}

fn endpoint(object: &Object<MeshMember>) -> Option<SocketAddr> {
    parse_endpoint(object.spec.endpoint.as_deref()?, port(object)?)
}

fn values(object: &Object<MeshMember>, more: u64) -> serde_json::Map<String, Value> {
    let rotations = object.claims.number(ROTATIONS) + more;
    [(ROTATIONS.to_owned(), Value::from(rotations))].into_iter().collect()
}

fn apply() -> [Step; 2] {
    let deadline_seconds = APPLY_SECONDS;
    [Step::Assign { who: Who::This }, Step::AwaitApplied { who: Who::This, deadline_seconds }]
}

fn claims(spec: &MeshMemberSpec, facts: &Facts) -> Vec<Claim> {
    let node = facts.get(NODE).map(|node| node.id.clone());
    let needs = Needs { node: node.clone(), wireguard: true, ..Needs::default() };
    let mesh = facts.get(MESH);
    let from = mesh.and_then(|mesh| mesh.spec("/port")).unwrap_or(wireguard::PORT);
    let mut claims = vec![
        Claim::new("node", NODE, ClaimKind::Placement(needs)),
        Claim::new("wireguard.port", "spec.port", ClaimKind::Port { wanted: spec.port, from }),
    ];
    let Some(mesh) = mesh else { return claims };
    if let Some(node) = node {
        let scope = format!("mesh:{}", mesh.id);
        let taken = "is in the mesh already".to_owned();
        claims.push(Claim::new("mesh.node", NODE, ClaimKind::Exclusive { scope, value: node, taken }));
    }
    if let Some(prefix) = prefix(mesh) {
        let what = ClaimKind::Prefix {
            scope: mesh.id.clone(),
            wanted: None,
            within: prefix,
            length: prefix.max_prefix_len(),
            pick: Pick::Next,
        };
        claims.push(Claim::new("address", MESH, what));
    }
    claims
}

fn prefix(mesh: &Fact) -> Option<IpNet> {
    wireguard::parse_range(&mesh.spec::<String>("/prefix")?).ok()
}

// === wire ===

mod wire {
    use prost::Message as _;
    use rhyzome_proto::v1::{self, MeshMemberOrder, MeshMemberReport, OrderBody, order_body::Body, report};

    use super::*;

    pub fn order(object: &Object<MeshMember>, facts: &Facts) -> Option<Order> {
        let (mesh, node) = (facts.get(MESH)?, facts.get(NODE)?);
        let status = &object.status;
        let body = MeshMemberOrder {
            mesh_id: mesh.id.clone(),
            node_id: node.id.clone(),
            node_name: node.name.clone(),
            prefix: prefix(mesh)?.to_string(),
            address: address(object)?.to_string(),
            endpoint: endpoint(object).map(|it| it.to_string()).unwrap_or_default(),
            listen_port: u32::from(port(object)?),
            mtu: mesh.spec("/mtu").unwrap_or(0),
            keepalive_seconds: mesh.spec("/keepalive_seconds").unwrap_or(0),
            rotation_seconds: mesh.spec("/rotation_seconds").unwrap_or(0),
            rotations: object.claims.number(ROTATIONS),
            public_key: status.public_key.clone().unwrap_or_default(),
            next_public_key: status.next_public_key.clone().unwrap_or_default(),
        };
        let body = OrderBody { body: Some(Body::Plain(body.encode_to_vec())) };
        Some(Order { body: body.encode_to_vec(), needs: Vec::new() })
    }

    pub fn observe(object: &mut Object<MeshMember>, report: &[u8]) {
        let Ok(said) = v1::Report::decode(report) else { return };
        let status = &mut object.status;
        status.message = (said.state() == v1::ReportState::Failed).then(|| said.message.clone());
        let Some(report::Body::Plain(body)) = said.body else { return };
        let Ok(told) = MeshMemberReport::decode(body.as_slice()) else { return };
        let given = |text: String| Some(text).filter(|text| !text.is_empty());
        // What is no key would be refused by all others: it is not passed on.
        if wireguard::parse_key(&told.public_key).is_none() {
            return;
        }
        status.public_key = Some(told.public_key);
        status.next_public_key =
            given(told.next_public_key).filter(|key| wireguard::parse_key(key).is_some());
        status.key_since = time(told.key_since_ms);
        status.device = given(told.device);
        status.interface = given(told.interface);
        status.peers = told.peers.into_iter().map(peer).collect();
    }

    fn peer(told: v1::MeshPeer) -> (String, MeshMemberPeer) {
        let peer = MeshMemberPeer {
            address: told.address,
            endpoint: Some(told.endpoint).filter(|text| !text.is_empty()),
            last_handshake_at: time(told.last_handshake_ms),
            received_bytes: told.received_bytes,
            sent_bytes: told.sent_bytes,
        };
        (told.node_name, peer)
    }

    fn time(ms: i64) -> Option<Timestamp> {
        (ms > 0).then(|| Timestamp(ms.saturating_mul(1000)))
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use rhyzome_proto::v1::{self, MeshMemberOrder, MeshMemberReport, MeshPeer, report};
    use serde_json::json;

    use super::*;
    use crate::resources::testing::{complaints, fact, facts, fields, stored_as};

    const KEY: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";

    fn member(endpoint: &str) -> Object<MeshMember> {
        let spec = json!({"mesh": "mesh_1", "node": "node_1", "endpoint": endpoint});
        let claims = json!({"address": "10.98.0.1/32", "wireguard.port": "51821", "rotations": 2});
        stored_as(spec, claims, json!(null))
    }

    fn known() -> Facts {
        let mesh = json!({"prefix": "10.98.0.0/24", "keepalive_seconds": 25, "rotation_seconds": 600});
        facts([
            (MESH, fact("mesh_1", mesh, json!({}), json!({}))),
            (NODE, fact("node_1", json!({}), json!({}), json!({}))),
        ])
    }

    fn ordered(object: &Object<MeshMember>) -> MeshMemberOrder {
        let order = MeshMember::order(object, &known()).unwrap();
        match v1::OrderBody::decode(order.body.as_slice()).unwrap().body {
            Some(v1::order_body::Body::Plain(body)) => MeshMemberOrder::decode(body.as_slice()).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn report(body: MeshMemberReport) -> Vec<u8> {
        let body = Some(report::Body::Plain(body.encode_to_vec()));
        v1::Report { state: v1::ReportState::Applied.into(), body, ..v1::Report::default() }.encode_to_vec()
    }

    #[test]
    fn endpoints_are_addresses() {
        let said = |text: &str| {
            let spec = json!({"mesh": "m", "node": "n", "endpoint": text});
            complaints::<MeshMember>(spec, &Facts::default())
        };
        for (good, dialed) in [
            ("203.0.113.7", "203.0.113.7:51821"),
            ("203.0.113.7:9", "203.0.113.7:9"),
            ("2001:db8::7", "[2001:db8::7]:51821"),
            ("[2001:db8::7]:9", "[2001:db8::7]:9"),
        ] {
            assert_eq!(said(good), []);
            assert_eq!(ordered(&member(good)).endpoint, dialed);
        }
        for bad in ["", "node1", "node1:51820", "203.0.113.7:0", "0.0.0.0", "127.0.0.1", "ff02::1", "[::1]:5"]
        {
            assert_eq!(fields(&said(bad)), ["spec.endpoint"], "{bad}");
        }
    }

    #[test]
    fn what_its_node_tells_is_what_others_are_told() {
        let mut one = member("203.0.113.7");
        assert_eq!((MeshMember::told(&one), ordered(&one).public_key.as_str()), (None, ""));
        let peers = vec![MeshPeer { node_name: "rack2".into(), ..MeshPeer::default() }];
        let first = MeshMemberReport { public_key: KEY.into(), peers, ..MeshMemberReport::default() };
        MeshMember::observe(&mut one, &report(first.clone()));
        let told = MeshMember::told(&one).unwrap();
        assert_eq!((ordered(&one).public_key.as_str(), one.status.peers.len()), (KEY, 1));
        // What passed between them is nothing that others have to know.
        MeshMember::observe(&mut one, &report(MeshMemberReport { peers: Vec::new(), ..first.clone() }));
        assert_eq!(MeshMember::told(&one).unwrap(), told);
        let next = "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=";
        let second = MeshMemberReport { next_public_key: next.into(), ..first };
        MeshMember::observe(&mut one, &report(second));
        assert_ne!(MeshMember::told(&one).unwrap(), told);
        assert_eq!((ordered(&one).next_public_key.as_str(), ordered(&one).rotations), (next, 2));
        // An answer without a key says nothing of it.
        MeshMember::observe(&mut one, &report(MeshMemberReport::default()));
        assert_eq!(ordered(&one).next_public_key, next);
    }
}
