//! A VPN network: the part of a VPN pool that one client has, and its key at the pool's server.
//!
//! Its life: the next free range of the pool is its own at once, and the answer has all that the client needs; the
//! pool's node lets the client in from then on, until it expires, is disabled or is deleted.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use crate::kernel::place::Needs;
use crate::kernel::{
    Change, Claim, ClaimKind, Claims, Fact, Facts, FieldError, Held, Meta, NameRule, Object, Order, Pick,
    Plan, Ref, Relation, Resource, Scope, Step, Target, Timestamp, Who, wireguard,
};

/// A VPN network.
pub struct VpnNetwork;

/// How long its node may take.
const APPLY_SECONDS: u32 = 60;
const POOL: &str = "spec.pool";

// === spec ===

/// Whom a range is handed to.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "pool": "wide", "public_key": "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=", "keepalive_seconds": 25
}))]
pub struct VpnNetworkSpec {
    /// The client's public key, as `wg pubkey` prints it. Its private half never leaves the client.
    #[schema(max_length = 64)]
    pub public_key: String,
    /// The length of its prefix: 48 for a /48. Without it: what the pool hands out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 128)]
    pub size: Option<u8>,
    /// Name or id of the pool. Without it: the oldest one of that size with room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// The range, if it is to be a certain one. Without it: the next that is free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 64)]
    pub prefix: Option<String>,
    /// A key that client and server share besides, as `wg genpsk` prints it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(write_only, max_length = 100)]
    pub preshared_key: Option<String>,
    /// How often the client says that it is there, so that what is between keeps the way open. 0: never.
    #[serde(default)]
    #[schema(default = 0)]
    pub keepalive_seconds: u16,
    /// False: the client does not get in.
    #[serde(default = "yes")]
    #[schema(default = true)]
    pub enabled: bool,
    /// From then on the client does not get in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
}

fn yes() -> bool {
    true
}

// === status ===

/// What the network is.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct VpnNetworkStatus {
    /// Its range.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// What the client is configured with, besides its own private key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<VpnNetworkConfig>,
    /// Where the client called from last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// When client and server last agreed on keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_handshake_at: Option<Timestamp>,
    /// Bytes that came from the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub received_bytes: Option<u64>,
    /// Bytes that went to the client.
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

/// What a client is configured with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct VpnNetworkConfig {
    /// Its address.
    pub address: String,
    /// The server's public key.
    pub server_public_key: String,
    /// What it dials: host and port.
    pub endpoint: String,
    /// What it reaches through the tunnel.
    pub allowed_ips: Vec<String>,
    /// The largest packet in the tunnel, if it is not the usual one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
}

impl Resource for VpnNetwork {
    const META: Meta = Meta {
        kind: "vpn-network",
        plural: "vpn-networks",
        prefix: "vpnn",
        scope: Scope::Tenant,
        name: NameRule::Label,
        about: "A range of addresses of one's own, through a WireGuard tunnel",
        actions: &[],
        fields: &[("pool", Change::Immutable), ("size", Change::Immutable), ("prefix", Change::Immutable)],
        held: Held::Alone,
        private: &[],
    };
    type Spec = VpnNetworkSpec;
    type Status = VpnNetworkStatus;

    fn refs(spec: &VpnNetworkSpec) -> Vec<Ref> {
        let target = spec.pool.clone().map_or(Target::WithRange(spec.size), Target::Named);
        vec![Ref { field: POOL.into(), kind: "vpn-pool", target, relation: Relation::Uses, or_make: None }]
    }

    // === validate ===

    fn validate(object: &Object<Self>, facts: &Facts, _creating: bool) -> Vec<FieldError> {
        let spec = &object.spec;
        let mut errors = Vec::new();
        let mut refuse = |field: &str, reason: String| errors.push(FieldError::new(field, reason));
        let pool = facts.get(POOL);
        if wireguard::parse_key(&spec.public_key).is_none() {
            refuse("spec.public_key", wireguard::KEY_REASON.into());
        } else if pool.and_then(wireguard::server_key) == Some(&spec.public_key) {
            refuse("spec.public_key", "is the server's own key: each side has its own".into());
        }
        if let Some(reason) = spec.preshared_key.as_deref().and_then(wireguard::refuse_key) {
            refuse("spec.preshared_key", reason.into());
        }
        let Some((pool, whole, size)) = pool.and_then(|pool| Some((pool, range(pool)?, size(pool)?))) else {
            return errors;
        };
        if spec.size.is_some_and(|wanted| wanted != size) {
            refuse(
                "spec.size",
                format!("`{}` hands out /{size}: leave it out, or say another pool", pool.name),
            );
        }
        match spec.prefix.as_deref().map(wireguard::parse_range) {
            Some(Err(reason)) => refuse("spec.prefix", reason),
            Some(Ok(prefix)) if !whole.contains(&prefix) => {
                refuse("spec.prefix", format!("is outside {whole}, the range of `{}`", pool.name));
            }
            Some(Ok(prefix)) if prefix.prefix_len() != size => {
                refuse("spec.prefix", format!("must be a /{size}, as `{}` hands out", pool.name));
            }
            _ => {}
        }
        errors
    }

    // === create, update, remove ===

    fn create(object: &Object<Self>, facts: &Facts) -> Plan {
        let mut plan = Plan { claims: claims(object, facts), ..Plan::steps(Step::apply(APPLY_SECONDS)) };
        if let Some(pool) = facts.get(POOL) {
            plan.values.insert("server".into(), server(pool));
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
        let network = network(&object.claims);
        object.status.network = network.map(|network| network.to_string());
        object.status.config = network.and_then(|network| {
            let server = object.claims.0.get("server")?;
            let mut config: VpnNetworkConfig = serde_json::from_value(server.clone()).ok()?;
            config.address = wireguard::only(wireguard::second(network)).to_string();
            Some(config)
        });
        if object.status.expired_at != object.spec.expires_at {
            object.status.expired_at = None;
        }
    }
}

fn network(claims: &Claims) -> Option<IpNet> {
    claims.text("network")?.parse().ok()
}

fn range(pool: &Fact) -> Option<IpNet> {
    pool.spec::<String>("/prefix")?.parse().ok()
}

fn size(pool: &Fact) -> Option<u8> {
    pool.spec("/network_size")
}

/// What a client has to know of the server. It never changes.
fn server(pool: &Fact) -> serde_json::Value {
    let port = pool.claims.get("wireguard.port").and_then(|port| port.as_str()).unwrap_or_default();
    let allowed: Vec<String> = pool.spec("/allowed_ips").unwrap_or_default();
    let whole = || pool.spec("/prefix").into_iter().collect();
    json!({
        "server_public_key": wireguard::server_key(pool).unwrap_or_default(),
        "endpoint": wireguard::endpoint(&pool.spec::<String>("/hostname").unwrap_or_default(), port),
        "allowed_ips": if allowed.is_empty() { whole() } else { allowed },
        "mtu": pool.spec::<u16>("/mtu"),
    })
}

fn claims(object: &Object<VpnNetwork>, facts: &Facts) -> Vec<Claim> {
    let spec = &object.spec;
    let Some(pool) = facts.get(POOL) else { return Vec::new() };
    let node = pool.claims.get("node").and_then(|node| node.as_str()).map(str::to_owned);
    // It is where its pool is, also while that is away.
    let needs = Needs { node, stays: true, ..Needs::default() };
    let key = ClaimKind::Exclusive {
        scope: format!("wireguard-key:{}", pool.id),
        value: spec.public_key.clone(),
        taken: "another network of this pool has this key: each client has its own".into(),
    };
    let mut claims = vec![
        Claim::new("node", POOL, ClaimKind::Placement(needs)),
        Claim::new("wireguard.key", "spec.public_key", key),
    ];
    if let (Some(within), Some(length)) = (range(pool), size(pool)) {
        let wanted = spec.prefix.as_deref().and_then(|prefix| wireguard::parse_range(prefix).ok());
        let fits = wanted.is_none_or(|wanted| within.contains(&wanted) && wanted.prefix_len() == length);
        if fits && (wanted.is_some() || spec.prefix.is_none()) {
            let scope = pool.id.clone();
            let what = ClaimKind::Prefix { scope, wanted, within, length, pick: Pick::Next };
            claims.push(Claim::new("network", "spec.prefix", what));
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

    pub fn order(object: &Object<VpnNetwork>, facts: &Facts) -> Option<Order> {
        let spec = &object.spec;
        let server = facts.get(POOL)?.id.clone();
        let body = WireguardPeerOrder {
            server_id: server.clone(),
            public_key: spec.public_key.clone(),
            preshared_key: spec.preshared_key.clone().unwrap_or_default(),
            allowed_ips: vec![network(&object.claims)?.to_string()],
            endpoint: String::new(),
            // Clients keep the way open: the server does not know where they are.
            keepalive_seconds: 0,
            enabled: spec.enabled,
            expires_at_ms: spec.expires_at.map_or(0, |at| (at.0 / 1000).max(1)),
        };
        let body = OrderBody { body: Some(Body::Plain(body.encode_to_vec())) };
        Some(Order { body: body.encode_to_vec(), needs: vec![server] })
    }

    pub fn observe(object: &mut Object<VpnNetwork>, report: &[u8]) {
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
    use serde_json::Value;

    use super::*;
    use crate::resources::testing::{complaints, fields, stored_as};

    const KEY: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";

    fn facts() -> Facts {
        let spec = json!({"prefix": "2001:db8::/40", "network_size": 48, "hostname": "vpn.example.com",
            "private_key": "sealed:sec_00000000000000000000000000"});
        let claims = json!({"known:sec_00000000000000000000000000": "server", "wireguard.port": "51820"});
        let claims = claims.as_object().unwrap().clone();
        let pool = Fact { id: "vpnp_1".into(), name: "wide".into(), spec, claims, ..Fact::default() };
        Facts([(POOL.to_owned(), pool)].into())
    }

    fn said(change: Value) -> Vec<FieldError> {
        let mut spec = json!({"public_key": KEY});
        json_patch::merge(&mut spec, &change);
        complaints::<VpnNetwork>(spec, &facts())
    }

    #[test]
    fn all_that_is_wrong_is_told() {
        assert_eq!(said(json!({"size": 48, "prefix": "2001:db8:7::/48"})), []);
        let wrong = said(
            json!({"public_key": "no", "preshared_key": "hush", "size": 56, "prefix": "2001:db8:7::1/48"}),
        );
        assert_eq!(fields(&wrong), ["spec.public_key", "spec.preshared_key", "spec.size", "spec.prefix"]);
        assert!(wrong[3].reason.contains("did you mean 2001:db8:7::/48?"));
        for (prefix, why) in
            [("2001:db9::/48", "outside"), ("2001:db8:7::/56", "must be a /48"), ("10.0.0.0/8", "outside")]
        {
            let wrong = said(json!({"prefix": prefix}));
            assert_eq!(fields(&wrong), ["spec.prefix"]);
            assert!(wrong[0].reason.contains(why), "{wrong:?}");
        }
    }

    #[test]
    fn the_answer_has_what_the_client_needs() {
        let server = server(facts().get(POOL).unwrap());
        let claims = json!({"network": "2001:db8:1::/48", "server": server});
        let mut one = stored_as::<VpnNetwork>(json!({"public_key": KEY}), claims, json!(null));
        VpnNetwork::show(&mut one);
        let config = one.status.config.unwrap();
        assert_eq!(config.address, "2001:db8:1::1/128");
        assert_eq!(
            (config.server_public_key.as_str(), config.endpoint.as_str()),
            ("server", "vpn.example.com:51820")
        );
        assert_eq!(config.allowed_ips, ["2001:db8::/40"]);
    }

    #[test]
    fn what_has_expired_or_is_disabled_says_so() {
        let phase = |spec: Value, status: Value| {
            let mut whole = json!({"public_key": KEY});
            json_patch::merge(&mut whole, &spec);
            VpnNetwork::settled(&stored_as::<VpnNetwork>(whole, json!({}), status))
        };
        let at = "2026-11-22T08:00:00Z";
        assert_eq!(phase(json!({"expires_at": at}), json!(null)), "ready");
        assert_eq!(phase(json!({"expires_at": at}), json!({"expired_at": at})), "expired");
        assert_eq!(phase(json!({"expires_at": "2027-11-22T08:00:00Z"}), json!({"expired_at": at})), "ready");
        assert_eq!(phase(json!({"enabled": false}), json!(null)), "disabled");
    }
}
