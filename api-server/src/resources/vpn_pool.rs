//! A VPN pool: a range of addresses of which each VPN network is handed a part, and the WireGuard server in front of it.
//!
//! Its life: its range and its port are its own at once; its node opens the device and keeps it, also after a reboot.
//! What is in the files of its clients never changes: make another pool, and let the clients move.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::kernel::place::Needs;
use crate::kernel::plan::ranges;
use crate::kernel::secret::Made;
use crate::kernel::{
    Change, Claim, ClaimKind, Facts, FieldError, Held, Meta, NameRule, Object, Order, Plan, Ref, Resource,
    Scope, Step, Who, wireguard,
};

/// A VPN pool.
pub struct VpnPool;

/// How long its node may take.
const APPLY_SECONDS: u32 = 60;
/// How many networks a pool may hand out: as a power of two.
const MOST_BITS: u8 = 24;
const MOST_ALLOWED: usize = 64;

// === spec ===

/// What a pool hands out, and where its clients dial in.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "prefix": "2001:db8::/40", "network_size": 48, "hostname": "vpn.example.com", "node": "rack1"
}))]
pub struct VpnPoolSpec {
    /// The range of which networks are handed out; overlaps no other pool's. It has to be routed to the node.
    #[schema(max_length = 64)]
    pub prefix: String,
    /// The length of the prefix of each network: 48 hands out /48s. The first one is the pool's own.
    #[schema(minimum = 1, maximum = 128)]
    pub network_size: u8,
    /// The name or address that clients dial.
    #[schema(max_length = 253)]
    pub hostname: String,
    /// The UDP port that they dial. Without it: the lowest from 51820 on that is free on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub port: Option<u16>,
    /// Name or id of the node that serves it. It needs WireGuard, and no QEMU.
    pub node: String,
    /// The server's key, as `wg genkey` prints it. Made if none is given; shown to nobody, its public half is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(write_only, max_length = 100)]
    pub private_key: Option<String>,
    /// What clients reach through it. Empty: the networks of the pool. `::/0` is everything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 64)]
    pub allowed_ips: Vec<String>,
    /// The largest packet in the tunnel, in bytes. Without it: 1420.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1280, maximum = 65000)]
    pub mtu: Option<u16>,
    /// False: the device is not there, and nobody gets in.
    #[serde(default = "yes")]
    #[schema(default = true)]
    pub enabled: bool,
}

fn yes() -> bool {
    true
}

// === status ===

/// What the pool is.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct VpnPoolStatus {
    /// The server's public key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// What clients dial: host and port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The server's address within the pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// How many networks it can hand out in all, its own included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub networks: Option<u64>,
    /// `kernel` or `userspace`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The name of the device on its node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// What its node says of it, when something is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl Resource for VpnPool {
    const META: Meta = Meta {
        kind: "vpn-pool",
        plural: "vpn-pools",
        prefix: "vpnp",
        scope: Scope::Operator,
        name: NameRule::Label,
        about: "A range of addresses that VPN networks are handed, and the WireGuard server in front of it",
        actions: &[],
        fields: &[
            ("prefix", Change::Immutable),
            ("network_size", Change::Immutable),
            ("hostname", Change::Immutable),
            ("port", Change::Immutable),
            ("node", Change::Immutable),
            ("private_key", Change::Immutable),
            ("allowed_ips", Change::Immutable),
        ],
        held: Held::Alone,
        private: &[],
    };
    type Spec = VpnPoolSpec;
    type Status = VpnPoolStatus;

    fn refs(spec: &VpnPoolSpec) -> Vec<Ref> {
        vec![Ref::uses("spec.node", "node", &spec.node)]
    }

    // === validate ===

    fn validate(object: &Object<Self>, _facts: &Facts, _creating: bool) -> Vec<FieldError> {
        let spec = &object.spec;
        let mut errors = Vec::new();
        let mut refuse = |field: &str, reason: String| errors.push(FieldError::new(field, reason));
        match wireguard::parse_range(&spec.prefix) {
            Err(reason) => refuse("spec.prefix", reason),
            Ok(prefix) => {
                if let Some(reason) = refuse_size(prefix, spec.network_size) {
                    refuse("spec.network_size", reason);
                }
            }
        }
        if let Some(reason) = wireguard::refuse_host(&spec.hostname) {
            refuse("spec.hostname", reason.into());
        }
        if let Some(reason) = spec.private_key.as_deref().and_then(wireguard::refuse_key) {
            refuse("spec.private_key", reason.into());
        }
        if spec.allowed_ips.len() > MOST_ALLOWED {
            refuse("spec.allowed_ips", format!("at most {MOST_ALLOWED}"));
        }
        for (index, range) in spec.allowed_ips.iter().enumerate() {
            if let Err(reason) = wireguard::parse_range(range) {
                refuse(&format!("spec.allowed_ips.{index}"), reason);
            }
        }
        errors
    }

    // === create, update, remove ===

    fn create(object: &Object<Self>, facts: &Facts) -> Plan {
        Plan { claims: claims(object, facts), ..Plan::steps(Step::apply(APPLY_SECONDS)) }
    }

    fn update(_old: &Object<Self>, new: &Object<Self>, facts: &Facts) -> Plan {
        Self::create(new, facts)
    }

    fn remove(_object: &Object<Self>) -> Plan {
        Plan::steps([Step::Unassign { who: Who::This }, Step::AwaitGone { who: Who::This }, Step::Release])
    }

    fn make_secret(path: &str, random: [u8; 32]) -> Option<Made> {
        (path == "private_key").then(|| Made::Kept(wireguard::private_key(random)))
    }

    fn known_of(path: &str, secret: &str) -> Option<String> {
        if path == "private_key" { wireguard::public_key(secret) } else { None }
    }

    // === order and observe ===

    fn order(object: &Object<Self>, _facts: &Facts) -> Option<Order> {
        wire::order(object)
    }

    fn observe(object: &mut Object<Self>, report: &[u8]) {
        wire::observe(object, report);
    }

    // === phase and show ===

    fn settled(object: &Object<Self>) -> &'static str {
        if object.spec.enabled { "ready" } else { "disabled" }
    }

    fn show(object: &mut Object<Self>) {
        let spec = &object.spec;
        let range = prefix(spec);
        object.status.public_key = public_key(object).map(str::to_owned);
        object.status.endpoint =
            object.claims.text("wireguard.port").map(|port| wireguard::endpoint(&spec.hostname, port));
        object.status.address = range.map(|prefix| wireguard::second(prefix).to_string());
        object.status.networks =
            range.and_then(|prefix| u64::try_from(ranges(prefix, spec.network_size)).ok());
    }
}

fn prefix(spec: &VpnPoolSpec) -> Option<IpNet> {
    wireguard::parse_range(&spec.prefix).ok()
}

fn public_key(object: &Object<VpnPool>) -> Option<&str> {
    object.claims.known(object.spec.private_key.as_deref()?)
}

fn refuse_size(prefix: IpNet, size: u8) -> Option<String> {
    let (least, longest) = (prefix.prefix_len(), prefix.max_prefix_len());
    let most = longest.min(least.saturating_add(MOST_BITS));
    (size <= least || size > most || longest - least < 2).then(|| {
        format!(
            "must be {} to {most}: a part of {prefix}, which is not handed out in more than 2^{MOST_BITS}",
            least + 1
        )
    })
}

fn claims(object: &Object<VpnPool>, facts: &Facts) -> Vec<Claim> {
    let spec = &object.spec;
    let node = facts.get("spec.node").map(|node| node.id.clone());
    let needs = Needs { node, wireguard: true, ..Needs::default() };
    let port = ClaimKind::Port { wanted: spec.port, from: wireguard::PORT };
    let mut claims = vec![
        Claim::new("node", "spec.node", ClaimKind::Placement(needs)),
        Claim::new("wireguard.port", "spec.port", port),
    ];
    let Some(prefix) = prefix(spec).filter(|prefix| refuse_size(*prefix, spec.network_size).is_none()) else {
        return claims;
    };
    let range = |key: &str, scope: &str, wanted: IpNet| {
        Claim::new(key, "spec.prefix", ClaimKind::this_range(scope, wanted))
    };
    claims.push(range("prefix", "vpn-pools", prefix));
    // Its own part, that no client is given.
    let (first, last) = wireguard::ends(prefix);
    let own = IpNet::new(prefix.network(), spec.network_size.min(first.prefix_len())).unwrap_or(first);
    claims.push(range("first", &object.core.id, own));
    if let Some(last) = last.filter(|last| last.prefix_len() == spec.network_size) {
        claims.push(range("last", &object.core.id, last));
    }
    claims
}

// === wire ===

mod wire {
    use prost::Message as _;
    use rhyzome_proto::v1::{
        self, OrderBody, WireguardServerOrder, WireguardServerReport, order_body::Body, report,
    };

    use super::*;

    pub fn order(object: &Object<VpnPool>) -> Option<Order> {
        let spec = &object.spec;
        let prefix = prefix(spec)?;
        let address: IpAddr = wireguard::second(prefix);
        let body = WireguardServerOrder {
            private_key: spec.private_key.clone()?,
            public_key: public_key(object)?.to_owned(),
            listen_port: object.claims.text("wireguard.port")?.parse().ok()?,
            addresses: vec![format!("{address}/{}", prefix.prefix_len())],
            mtu: spec.mtu.map_or(0, u32::from),
            network_id: String::new(),
            enabled: spec.enabled,
        };
        let body = OrderBody { body: Some(Body::Plain(body.encode_to_vec())) };
        Some(Order { body: body.encode_to_vec(), needs: Vec::new() })
    }

    pub fn observe(object: &mut Object<VpnPool>, report: &[u8]) {
        let Ok(said) = v1::Report::decode(report) else { return };
        let status = &mut object.status;
        status.message = (said.state() == v1::ReportState::Failed).then(|| said.message.clone());
        let Some(report::Body::Plain(body)) = said.body else { return };
        let Ok(told) = WireguardServerReport::decode(body.as_slice()) else { return };
        status.device = Some(told.device).filter(|text| !text.is_empty());
        status.interface = Some(told.interface).filter(|text| !text.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::resources::testing::{complaints, fields};

    fn said(change: Value) -> Vec<FieldError> {
        let mut spec = json!({"prefix": "2001:db8::/40", "network_size": 48, "hostname": "vpn.example.com", "node": "a"});
        json_patch::merge(&mut spec, &change);
        complaints::<VpnPool>(spec, &Facts::default())
    }

    #[test]
    fn all_that_is_wrong_is_told() {
        assert_eq!(said(json!({})), []);
        let wrong = said(json!({
            "prefix": "2001:db8::1/40", "hostname": "a b", "private_key": "hush", "allowed_ips": ["::/0", "10.0.0.1/8"]
        }));
        assert_eq!(
            fields(&wrong),
            ["spec.prefix", "spec.hostname", "spec.private_key", "spec.allowed_ips.1"]
        );
        assert!(wrong[0].reason.contains("did you mean 2001:db8::/40?"));
        assert!(!wrong[2].reason.contains("hush"));
    }

    #[test]
    fn networks_are_parts_of_the_prefix() {
        for bad in [40, 39, 65] {
            assert_eq!(fields(&said(json!({"network_size": bad}))), ["spec.network_size"], "{bad}");
        }
        assert_eq!(said(json!({"network_size": 64})), []);
        assert_eq!(said(json!({"prefix": "10.9.0.0/16", "network_size": 32})), []);
        assert_eq!(
            fields(&said(json!({"prefix": "10.9.0.0/31", "network_size": 32}))),
            ["spec.network_size"]
        );
    }
}
