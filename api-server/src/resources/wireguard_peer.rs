//! A peer of a WireGuard server: a roaming user, or another site with networks behind it.
//!
//! Its life: its address and the networks behind it are its own at once; the server's node lets it in from then on, until
//! it expires, is disabled or is deleted.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::kernel::place::Needs;
use crate::kernel::{
    Change, Claim, ClaimKind, Claims, Fact, Facts, FieldError, Held, Meta, NameRule, Object, Order, Pick,
    Plan, Ref, Resource, Scope, Step, Timestamp, Who, wireguard,
};

/// A peer.
pub struct WireguardPeer;

/// How long its node may take.
const APPLY_SECONDS: u32 = 60;
const MOST_NETWORKS: usize = 64;
const SERVER: &str = "spec.server";

// === spec ===

/// Whom a server lets in.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "server": "office", "public_key": "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=", "keepalive_seconds": 25
}))]
pub struct WireguardPeerSpec {
    /// Name or id of the server.
    pub server: String,
    /// The peer's public key, as `wg pubkey` prints it. Its private half never leaves the peer.
    #[schema(max_length = 64)]
    pub public_key: String,
    /// Its address in the tunnel. Without it: the next free one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 64)]
    pub address: Option<String>,
    /// Networks behind it, that the server reaches through it. Empty: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 64)]
    pub networks: Vec<String>,
    /// Where the server dials it: host and port. Without it: it dials the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 300)]
    pub endpoint: Option<String>,
    /// A key that both sides share besides, as `wg genpsk` prints it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(write_only, max_length = 100)]
    pub preshared_key: Option<String>,
    /// How often both sides say that they are there, so that what is between keeps the way open. 0: never.
    #[serde(default)]
    #[schema(default = 0)]
    pub keepalive_seconds: u16,
    /// False: it does not get in.
    #[serde(default = "yes")]
    #[schema(default = true)]
    pub enabled: bool,
    /// From then on it does not get in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
}

fn yes() -> bool {
    true
}

// === status ===

/// What the peer is.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct WireguardPeerStatus {
    /// What the peer is configured with, besides its own private key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<WireguardPeerConfig>,
    /// Where it called from last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// When both sides last agreed on keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_handshake_at: Option<Timestamp>,
    /// Bytes that came from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub received_bytes: Option<u64>,
    /// Bytes that went to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent_bytes: Option<u64>,
    /// When it expired.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expired_at: Option<Timestamp>,
    /// What its node says of it, when something is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What a peer is configured with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct WireguardPeerConfig {
    /// Its address in the tunnel.
    pub address: String,
    /// The server's public key.
    pub server_public_key: String,
    /// What it dials: host and port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// What it reaches through the tunnel.
    pub allowed_ips: Vec<String>,
    /// Who knows the names of the instances that it reaches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<String>,
    /// They are called NAME.DOMAIN.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// The largest packet in the tunnel, if it is not the usual one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
}

impl Resource for WireguardPeer {
    const META: Meta = Meta {
        kind: "wireguard-peer",
        plural: "wireguard-peers",
        prefix: "wgp",
        scope: Scope::Tenant,
        name: NameRule::Label,
        about: "Whom a WireGuard server lets in: a roaming user, or another site",
        actions: &[],
        fields: &[("server", Change::Immutable), ("address", Change::Immutable)],
        held: Held::Alone,
        private: &[],
    };
    type Spec = WireguardPeerSpec;
    type Status = WireguardPeerStatus;

    fn refs(spec: &WireguardPeerSpec) -> Vec<Ref> {
        vec![Ref::uses(SERVER, "wireguard-server", &spec.server)]
    }

    // === validate ===

    fn validate(object: &Object<Self>, facts: &Facts, _creating: bool) -> Vec<FieldError> {
        let spec = &object.spec;
        let mut errors = Vec::new();
        let mut refuse = |field: &str, reason: String| errors.push(FieldError::new(field, reason));
        let server = facts.get(SERVER);
        if wireguard::parse_key(&spec.public_key).is_none() {
            refuse("spec.public_key", wireguard::KEY_REASON.into());
        } else if server.and_then(wireguard::server_key) == Some(&spec.public_key) {
            refuse("spec.public_key", "is the server's own key: each side has its own".into());
        }
        if let Some(reason) = spec.preshared_key.as_deref().and_then(wireguard::refuse_key) {
            refuse("spec.preshared_key", reason.into());
        }
        if let Some(reason) = spec.endpoint.as_deref().and_then(wireguard::refuse_endpoint) {
            refuse("spec.endpoint", reason.into());
        }
        if spec.networks.len() > MOST_NETWORKS {
            refuse("spec.networks", format!("at most {MOST_NETWORKS}"));
        }
        let tunnel = server.and_then(range);
        if let Some(reason) = spec.address.as_deref().and_then(|text| refuse_address(text, tunnel)) {
            refuse("spec.address", reason);
        }
        let mut before: Vec<IpNet> = Vec::new();
        for (index, text) in spec.networks.iter().enumerate() {
            let field = format!("spec.networks.{index}");
            match wireguard::parse_range(text) {
                Err(reason) => refuse(&field, reason),
                Ok(one) => {
                    if let Some(tunnel) = tunnel.filter(|tunnel| wireguard::overlap(tunnel, &one)) {
                        refuse(&field, format!("overlaps {tunnel}, the range of the tunnel itself"));
                    } else if let Some(other) = before.iter().find(|other| wireguard::overlap(other, &one)) {
                        refuse(&field, format!("overlaps {other}, which is said too"));
                    }
                    before.push(one);
                }
            }
        }
        errors
    }

    // === create, update, remove ===

    fn create(object: &Object<Self>, facts: &Facts) -> Plan {
        let mut plan = Plan { claims: claims(object, facts), ..Plan::steps(Step::apply(APPLY_SECONDS)) };
        if let Some(server) = facts.get(SERVER) {
            plan.values.insert("server".into(), server_side(server));
        }
        plan
    }

    fn update(_old: &Object<Self>, new: &Object<Self>, facts: &Facts) -> Plan {
        Self::create(new, facts)
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

    // === phase and show ===

    fn settled(object: &Object<Self>) -> &'static str {
        let expired = object.spec.expires_at.is_some() && object.spec.expires_at == object.status.expired_at;
        match (expired, object.spec.enabled) {
            (true, _) => "expired",
            (false, false) => "disabled",
            (false, true) => "ready",
        }
    }

    fn show(object: &mut Object<Self>) {
        object.status.config = address(&object.claims).and_then(|address| {
            let server = object.claims.0.get("server")?;
            let mut config: WireguardPeerConfig = serde_json::from_value(server.clone()).ok()?;
            config.address = address.to_string();
            Some(config)
        });
        if object.status.expired_at != object.spec.expires_at {
            object.status.expired_at = None;
        }
    }
}

fn address(claims: &Claims) -> Option<IpNet> {
    claims.text("address")?.parse().ok()
}

fn range(server: &Fact) -> Option<IpNet> {
    server.spec::<String>("/cidr")?.parse().ok()
}

fn refuse_address(text: &str, tunnel: Option<IpNet>) -> Option<String> {
    let Ok(address) = text.parse::<IpAddr>() else {
        return Some("must be an address without a prefix, such as 10.99.0.7".into());
    };
    let tunnel = tunnel?;
    if !tunnel.contains(&address) {
        return Some(format!("is outside {tunnel}, the range of its server"));
    }
    let (first, last) = wireguard::ends(tunnel);
    let kept = first.contains(&address) || last.is_some_and(|last| last.contains(&address));
    kept.then(|| {
        format!("is the server's own, or no host's: the first two and the last of {tunnel} are not given")
    })
}

/// What a peer has to know of its server. It never changes.
fn server_side(server: &Fact) -> Value {
    let text = |key: &str| server.claims.get(key).and_then(Value::as_str);
    let host: Option<String> = server.spec("/hostname");
    let endpoint = host.zip(text("wireguard.port")).map(|(host, port)| wireguard::endpoint(&host, port));
    let reached = [server.spec::<String>("/cidr"), text("reached").map(str::to_owned)];
    json!({
        "server_public_key": wireguard::server_key(server).unwrap_or_default(),
        "endpoint": endpoint,
        "allowed_ips": reached.into_iter().flatten().collect::<Vec<_>>(),
        "dns": text("dns"),
        "domain": text("domain"),
        "mtu": server.spec::<u16>("/mtu"),
    })
}

fn claims(object: &Object<WireguardPeer>, facts: &Facts) -> Vec<Claim> {
    let spec = &object.spec;
    let Some(server) = facts.get(SERVER) else { return Vec::new() };
    let node = server.claims.get("node").and_then(Value::as_str).map(str::to_owned);
    // It is where its server is, also while that is away.
    let needs = Needs { node, stays: true, ..Needs::default() };
    let key = ClaimKind::Exclusive {
        scope: format!("wireguard-key:{}", server.id),
        value: spec.public_key.clone(),
        taken: "another peer of this server has this key: each has its own".into(),
    };
    let mut claims = vec![
        Claim::new("node", SERVER, ClaimKind::Placement(needs)),
        Claim::new("wireguard.key", "spec.public_key", key),
    ];
    let taken = |key: String, field: String, wanted: Option<IpNet>, within: IpNet, length: u8| {
        let scope = server.id.clone();
        Claim::new(key, field, ClaimKind::Prefix { scope, wanted, within, length, pick: Pick::Next })
    };
    if let Some(tunnel) = range(server) {
        let wanted = spec.address.as_deref().map(|text| text.parse::<IpAddr>().ok().map(wireguard::only));
        let good = spec.address.as_deref().is_none_or(|text| refuse_address(text, Some(tunnel)).is_none());
        if good {
            let length = tunnel.max_prefix_len();
            claims.push(taken("address".into(), "spec.address".into(), wanted.flatten(), tunnel, length));
        }
        for (index, text) in spec.networks.iter().enumerate() {
            let one = wireguard::parse_range(text).ok().filter(|one| !wireguard::overlap(&tunnel, one));
            let Some(one) = one else { continue };
            // Named by what it is, so that what is not said any more is given back.
            let field = format!("spec.networks.{index}");
            claims.push(taken(format!("networks.{one}"), field, Some(one), one, one.prefix_len()));
        }
    }
    claims.extend(spec.expires_at.map(|at| Claim::expiry("spec.expires_at", &object.core.id, at)));
    claims
}

// === wire ===

mod wire {
    use prost::Message as _;
    use rhyzome_proto::v1::{
        self, OrderBody, WireguardPeerOrder, WireguardPeerReport, order_body::Body, report,
    };

    use super::*;

    pub fn order(object: &Object<WireguardPeer>, facts: &Facts) -> Option<Order> {
        let spec = &object.spec;
        let server = facts.get(SERVER)?.id.clone();
        let own = address(&object.claims)?.to_string();
        let body = WireguardPeerOrder {
            server_id: server.clone(),
            public_key: spec.public_key.clone(),
            preshared_key: spec.preshared_key.clone().unwrap_or_default(),
            allowed_ips: std::iter::once(own).chain(spec.networks.iter().cloned()).collect(),
            endpoint: spec.endpoint.clone().unwrap_or_default(),
            keepalive_seconds: u32::from(spec.keepalive_seconds),
            enabled: spec.enabled,
            expires_at_ms: spec.expires_at.map_or(0, |at| (at.0 / 1000).max(1)),
        };
        let body = OrderBody { body: Some(Body::Plain(body.encode_to_vec())) };
        Some(Order { body: body.encode_to_vec(), needs: vec![server] })
    }

    pub fn observe(object: &mut Object<WireguardPeer>, report: &[u8]) {
        let Ok(said) = v1::Report::decode(report) else { return };
        let status = &mut object.status;
        status.message = (said.state() == v1::ReportState::Failed).then(|| said.message.clone());
        let Some(report::Body::Plain(body)) = said.body else { return };
        let Ok(told) = WireguardPeerReport::decode(body.as_slice()) else { return };
        status.endpoint = Some(told.endpoint).filter(|text| !text.is_empty());
        let at = told.last_handshake_ms;
        status.last_handshake_at = (at > 0).then(|| Timestamp(at.saturating_mul(1000)));
        (status.received_bytes, status.sent_bytes) = (Some(told.received_bytes), Some(told.sent_bytes));
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use rhyzome_proto::v1::{self, WireguardPeerReport, report};

    use super::*;
    use crate::resources::testing::{complaints, fields, stored_as};

    const KEY: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";

    fn facts() -> Facts {
        let spec = json!({"cidr": "10.99.0.0/24", "hostname": "2001:db8::7",
            "private_key": "sealed:sec_00000000000000000000000000"});
        let claims = json!({"known:sec_00000000000000000000000000": "server", "wireguard.port": "51821",
            "reached": "10.20.0.0/24", "dns": "10.20.0.1", "domain": "lan.internal"});
        let claims = claims.as_object().unwrap().clone();
        let server = Fact { id: "wgs_1".into(), name: "office".into(), spec, claims, ..Fact::default() };
        Facts([(SERVER.to_owned(), server)].into())
    }

    fn said(change: Value) -> Vec<FieldError> {
        let mut spec = json!({"server": "office", "public_key": KEY});
        json_patch::merge(&mut spec, &change);
        complaints::<WireguardPeer>(spec, &facts())
    }

    #[test]
    fn all_that_is_wrong_is_told() {
        assert_eq!(said(json!({"address": "10.99.0.7", "networks": ["10.30.0.0/16", "fd00:1::/48"]})), []);
        let wrong = said(
            json!({"public_key": "no", "preshared_key": "hush", "endpoint": "x", "address": "10.98.0.7",
            "networks": ["10.30.0.1/16", "10.99.0.128/25", "10.40.0.0/16", "10.40.1.0/24"]}),
        );
        let told = fields(&wrong);
        assert_eq!(
            told,
            [
                "spec.public_key",
                "spec.preshared_key",
                "spec.endpoint",
                "spec.address",
                "spec.networks.0",
                "spec.networks.1",
                "spec.networks.3"
            ]
        );
        assert!(wrong[3].reason.contains("outside 10.99.0.0/24"));
        assert!(wrong[4].reason.contains("did you mean 10.30.0.0/16?"));
        for kept in ["10.99.0.0", "10.99.0.1", "10.99.0.255"] {
            assert_eq!(fields(&said(json!({"address": kept}))), ["spec.address"], "{kept}");
        }
    }

    #[test]
    fn the_answer_has_what_the_peer_needs() {
        let server = server_side(facts().get(SERVER).unwrap());
        let claims = json!({"address": "10.99.0.2/32", "server": server});
        let mut one =
            stored_as::<WireguardPeer>(json!({"server": "office", "public_key": KEY}), claims, json!(null));
        let told = WireguardPeerReport {
            endpoint: "203.0.113.7:999".into(),
            last_handshake_ms: 1_000,
            received_bytes: 7,
            sent_bytes: 8,
        };
        let body = Some(report::Body::Plain(told.encode_to_vec()));
        WireguardPeer::observe(&mut one, &v1::Report { body, ..v1::Report::default() }.encode_to_vec());
        WireguardPeer::show(&mut one);
        let status = serde_json::to_value(&one.status).unwrap();
        let wanted = json!({
            "config": {
                "address": "10.99.0.2/32", "server_public_key": "server", "endpoint": "[2001:db8::7]:51821",
                "allowed_ips": ["10.99.0.0/24", "10.20.0.0/24"], "dns": "10.20.0.1", "domain": "lan.internal",
            },
            "endpoint": "203.0.113.7:999", "last_handshake_at": "1970-01-01T00:00:01.000000Z",
            "received_bytes": 7, "sent_bytes": 8,
        });
        assert_eq!(status, wanted);
    }
}
