//! A WireGuard server of a tenant: where roaming users get into one of its networks, or where another site is joined.
//!
//! Its life: it has its range and its port at once; it is placed on a node that can serve WireGuard, and stays there.
//! What is in the files of its peers never changes: make another server, and let the peers move.

use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::kernel::place::{Group, Needs, Policy, Rule};
use crate::kernel::secret::Made;
use crate::kernel::{
    Change, Claim, ClaimKind, Fact, Facts, FieldError, Held, Meta, NameRule, Object, Order, Plan, Ref,
    Resource, Scope, Step, Who, wireguard,
};

/// A WireGuard server.
pub struct WireguardServer;

/// How long its node may take.
const APPLY_SECONDS: u32 = 120;
const NETWORK: &str = "spec.network";
const NODE: &str = "spec.node";

// === spec ===

/// Where peers get in, and what they reach.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"network": "lan", "cidr": "10.99.0.0/24", "hostname": "vpn.example.com"}))]
pub struct WireguardServerSpec {
    /// Name or id of the network whose instances the peers reach, by address and by name: those that are on the
    /// server's node. Without it: each other, and what is behind them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// The range of the tunnel: the second address is the server's, peers have the others. Overlaps no network and no
    /// other server of the tenant.
    #[serde(default = "cidr")]
    #[schema(max_length = 64, default = "10.99.0.0/24")]
    pub cidr: String,
    /// The name or address under which peers reach its node. Without it peers cannot dial in; it dials them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 253)]
    pub hostname: Option<String>,
    /// The UDP port that it listens on. Without it: the lowest from 51820 on that is free on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1024)]
    pub port: Option<u16>,
    /// Name or id of the node that it must be on. Without it: one that can serve WireGuard, rather one where instances
    /// of its network are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Its key, as `wg genkey` prints it. Made if none is given; shown to nobody, its public half is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(write_only, max_length = 100)]
    pub private_key: Option<String>,
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

fn cidr() -> String {
    "10.99.0.0/24".to_owned()
}

// === status ===

/// What the server is.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct WireguardServerStatus {
    /// Id of the node that it is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Its public key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// Its address in the tunnel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The UDP port that it listens on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// What peers dial: host and port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
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

impl Resource for WireguardServer {
    const META: Meta = Meta {
        kind: "wireguard-server",
        plural: "wireguard-servers",
        prefix: "wgs",
        scope: Scope::Tenant,
        name: NameRule::Label,
        about: "Where roaming users get into a network, or another site is joined",
        actions: &[],
        fields: &[
            ("network", Change::Immutable),
            ("cidr", Change::Immutable),
            ("hostname", Change::Immutable),
            ("port", Change::Immutable),
            ("node", Change::Immutable),
            ("private_key", Change::Immutable),
        ],
        held: Held::Alone,
        private: &[],
    };
    type Spec = WireguardServerSpec;
    type Status = WireguardServerStatus;

    fn refs(spec: &WireguardServerSpec) -> Vec<Ref> {
        let network = spec.network.as_ref().map(|name| Ref::uses(NETWORK, "network", name));
        let node = spec.node.as_ref().map(|name| Ref::uses(NODE, "node", name));
        network.into_iter().chain(node).collect()
    }

    // === validate ===

    fn validate(object: &Object<Self>, _facts: &Facts, _creating: bool) -> Vec<FieldError> {
        let spec = &object.spec;
        let mut errors = Vec::new();
        let mut refuse = |field: &str, reason: String| errors.push(FieldError::new(field, reason));
        match wireguard::parse_range(&spec.cidr) {
            Err(reason) => refuse("spec.cidr", reason),
            Ok(range) => {
                let (least, most) = if matches!(range, IpNet::V4(_)) { (8, 29) } else { (16, 120) };
                if !(least..=most).contains(&range.prefix_len()) {
                    refuse(
                        "spec.cidr",
                        format!("its prefix must be {least} to {most}, not {}", range.prefix_len()),
                    );
                }
            }
        }
        if let Some(reason) = spec.hostname.as_deref().and_then(wireguard::refuse_host) {
            refuse("spec.hostname", reason.into());
        }
        if let Some(reason) = spec.private_key.as_deref().and_then(wireguard::refuse_key) {
            refuse("spec.private_key", reason.into());
        }
        errors
    }

    // === create, update, remove ===

    fn create(object: &Object<Self>, facts: &Facts) -> Plan {
        let mut plan = Plan { claims: claims(object, facts), ..Plan::default() };
        if let Some((gateway, domain)) = facts.get(NETWORK).and_then(resolver) {
            plan.values.insert("dns".into(), gateway.into());
            plan.values.insert("domain".into(), domain.into());
        }
        if facts.get(NETWORK).is_some() {
            plan.steps.push(Step::Assign { who: Who::Ref(NETWORK.into()) });
        }
        plan.steps.extend(Step::apply(APPLY_SECONDS));
        plan
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

    fn order(object: &Object<Self>, facts: &Facts) -> Option<Order> {
        wire::order(object, facts)
    }

    fn observe(object: &mut Object<Self>, report: &[u8]) {
        wire::observe(object, report);
    }

    // === phase and show ===

    fn settled(object: &Object<Self>) -> &'static str {
        if object.spec.enabled { "ready" } else { "disabled" }
    }

    fn show(object: &mut Object<Self>) {
        let port = object.claims.text("wireguard.port");
        let endpoint = object.spec.hostname.as_deref().zip(port);
        object.status.node = object.claims.text("node").map(str::to_owned);
        object.status.public_key = public_key(object).map(str::to_owned);
        object.status.address = range(object).map(|range| wireguard::second(range).to_string());
        object.status.port = port.and_then(|port| port.parse().ok());
        object.status.endpoint = endpoint.map(|(host, port)| wireguard::endpoint(host, port));
    }
}

fn range(object: &Object<WireguardServer>) -> Option<IpNet> {
    wireguard::parse_range(&object.spec.cidr).ok()
}

fn public_key(object: &Object<WireguardServer>) -> Option<&str> {
    object.claims.known(object.spec.private_key.as_deref()?)
}

/// The range of a network, as the store gave it.
fn network_range(network: &Fact) -> Option<Ipv4Net> {
    network.claims.get("cidr")?.as_str()?.parse().ok()
}

/// Where names of a network are asked for, and under which domain they are.
fn resolver(network: &Fact) -> Option<(String, String)> {
    let gateway = network.spec::<Ipv4Addr>("/gateway").or_else(|| network_range(network)?.hosts().next())?;
    Some((gateway.to_string(), network.claims.get("domain")?.as_str()?.to_owned()))
}

fn needs(object: &Object<WireguardServer>, facts: &Facts) -> Needs {
    // Once placed it stays.
    let placed = object.claims.text("node").map(str::to_owned);
    let near = facts.get(NETWORK).filter(|_| placed.is_none()).map(|network| Group {
        id: network.id.clone(),
        name: network.name.clone(),
        rule: Rule::Affinity,
        policy: Policy::Allow,
    });
    let pinned = facts.get(NODE).map(|node| node.id.clone());
    Needs { node: pinned.or(placed), wireguard: true, groups: near.into_iter().collect(), ..Needs::default() }
}

fn claims(object: &Object<WireguardServer>, facts: &Facts) -> Vec<Claim> {
    let port = ClaimKind::Port { wanted: object.spec.port, from: wireguard::PORT };
    let mut claims = vec![
        Claim::new("node", NODE, ClaimKind::Placement(needs(object, facts))),
        Claim::new("wireguard.port", "spec.port", port),
    ];
    let taken = |key: &str, field: &str, scope: &str, wanted: IpNet| {
        Claim::new(key, field, ClaimKind::this_range(scope, wanted))
    };
    let Some(range) = range(object) else { return claims };
    claims.push(taken("cidr", "spec.cidr", &object.core.tenant, range));
    // What no peer is given.
    let (first, last) = wireguard::ends(range);
    let id = &object.core.id;
    claims.push(taken("first", "spec.cidr", id, first));
    claims.extend(last.map(|last| taken("last", "spec.cidr", id, last)));
    // One that overlaps the tunnel is refused where ranges of the tenant are compared.
    let reached = facts.get(NETWORK).and_then(network_range).map(IpNet::V4);
    let reached = reached.filter(|reached| !wireguard::overlap(reached, &range));
    claims.extend(reached.map(|reached| taken("reached", NETWORK, id, reached)));
    claims
}

// === wire ===

mod wire {
    use prost::Message as _;
    use rhyzome_proto::v1::{
        self, OrderBody, WireguardServerOrder, WireguardServerReport, order_body::Body, report,
    };

    use super::*;

    pub fn order(object: &Object<WireguardServer>, facts: &Facts) -> Option<Order> {
        let spec = &object.spec;
        let range = range(object)?;
        let network = facts.get(NETWORK).map(|network| network.id.clone());
        let body = WireguardServerOrder {
            private_key: spec.private_key.clone()?,
            public_key: public_key(object)?.to_owned(),
            listen_port: object.claims.text("wireguard.port")?.parse().ok()?,
            addresses: vec![format!("{}/{}", wireguard::second(range), range.prefix_len())],
            mtu: spec.mtu.map_or(0, u32::from),
            network_id: network.clone().unwrap_or_default(),
            enabled: spec.enabled,
        };
        let body = OrderBody { body: Some(Body::Plain(body.encode_to_vec())) };
        Some(Order { body: body.encode_to_vec(), needs: network.into_iter().collect() })
    }

    pub fn observe(object: &mut Object<WireguardServer>, report: &[u8]) {
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
    use serde_json::json;

    use super::*;
    use crate::resources::testing::{complaints, fields};

    #[test]
    fn all_that_is_wrong_is_told() {
        let said = |spec| complaints::<WireguardServer>(spec, &Facts::default());
        assert_eq!(said(json!({})), []);
        let wrong = said(json!({"cidr": "10.99.0.1/24", "hostname": "a b", "private_key": "hush"}));
        assert_eq!(fields(&wrong), ["spec.cidr", "spec.hostname", "spec.private_key"]);
        assert!(wrong[0].reason.contains("did you mean 10.99.0.0/24?"));
        assert!(!wrong[2].reason.contains("hush"));
        assert!(said(json!({"cidr": "10.99.0.0/30"}))[0].reason.contains("8 to 29"));
        assert!(said(json!({"cidr": "fd00::/121"}))[0].reason.contains("16 to 120"));
    }

    #[test]
    fn it_goes_where_instances_of_its_network_are() {
        let claims = json!({"cidr": "10.20.0.0/24", "domain": "lan.internal"});
        let claims = claims.as_object().unwrap().clone();
        let network = Fact { id: "net_1".into(), name: "lan".into(), claims, ..Fact::default() };
        let facts = Facts([(NETWORK.to_owned(), network)].into());
        let one = crate::resources::testing::object::<WireguardServer>(json!({"network": "lan"}));
        let needs = needs(&one, &facts);
        assert!(needs.wireguard && !needs.guests && needs.groups[0].id == "net_1");
        let plan = WireguardServer::create(&one, &facts);
        assert_eq!(
            (plan.values["dns"].as_str(), plan.values["domain"].as_str()),
            (Some("10.20.0.1"), Some("lan.internal"))
        );
        assert_eq!(plan.steps[0], Step::Assign { who: Who::Ref(NETWORK.into()) });
        let keys: Vec<_> = plan.claims.iter().map(|claim| claim.key.as_str()).collect();
        assert_eq!(keys, ["node", "wireguard.port", "cidr", "first", "last", "reached"]);
    }
}
