//! A network: a range of addresses whose instances reach each other, and the world through NAT.
//!
//! Its life: it has its range at once; a node makes it when the first instance there needs it, and lets go
//! of it after the last one. Two tenants may use the same range: each network has a namespace of its own.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::kernel::{
    Change, Claim, ClaimKind, Claims, Facts, FieldError, Held, Meta, NameRule, Object, Order, Pick, Plan,
    Resource, Scope, Step, Who,
};

/// A network.
pub struct Network;

const APPLY_SECONDS: u32 = 60;

/// Ranges that no network may touch, and why.
const TAKEN: [(Ipv4Net, &str); 6] = [
    (net([0, 0, 0, 0], 8), "means `this network`"),
    (net([127, 0, 0, 0], 8), "is loopback"),
    (net([169, 254, 0, 0], 16), "is link-local, where instances look for their metadata"),
    (net([224, 0, 0, 0], 4), "is multicast"),
    (net([240, 0, 0, 0], 4), "is reserved"),
    (net([100, 64, 0, 0], 10), "is used by the nodes themselves"),
];

const fn net(octets: [u8; 4], length: u8) -> Ipv4Net {
    let [a, b, c, d] = octets;
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length)
}

// === spec ===

/// What a network is to be.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"cidr": "10.20.0.0/24", "dns": ["9.9.9.9"]}))]
pub struct NetworkSpec {
    /// Its range, `10.0.0.0/24`, prefix 8 to 29; overlaps no other of the tenant. Without it: a free one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cidr: Option<String>,
    /// The network's own end, inside `cidr`. Without it: the first address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// True: what leaves the network is masqueraded as the node. False: it leaves as it is.
    #[serde(default = "yes")]
    #[schema(default = true)]
    pub nat: bool,
    /// Resolvers that the network's own one asks, at most 8. Empty: those of the node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 8)]
    pub dns: Vec<String>,
    /// Instances find each other as NAME.DOMAIN. Without it: the network's name and `.internal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
}

fn yes() -> bool {
    true
}

// === status ===

/// What the network is.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct NetworkStatus {
    /// Its range.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cidr: Option<String>,
    /// The network's own end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// Instances find each other as NAME.DOMAIN.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
}

impl Resource for Network {
    const META: Meta = Meta {
        kind: "network",
        plural: "networks",
        prefix: "net",
        scope: Scope::Tenant,
        name: NameRule::Label,
        about: "A range of addresses whose instances reach each other, and the world through NAT",
        actions: &[],
        fields: &[("cidr", Change::Immutable), ("gateway", Change::Immutable), ("domain", Change::Immutable)],
        held: Held::WhileNeeded,
        private: &[],
    };
    type Spec = NetworkSpec;
    type Status = NetworkStatus;

    // === validate ===

    fn validate(object: &Object<Self>, _facts: &Facts, _creating: bool) -> Vec<FieldError> {
        let spec = &object.spec;
        let mut errors = Vec::new();
        let mut refuse = |field: &str, reason: String| errors.push(FieldError::new(field, reason));
        let cidr = spec.cidr.as_deref().map(parse_cidr);
        if let Some(Err(reason)) = &cidr {
            refuse("spec.cidr", reason.clone());
        }
        if let Some(gateway) = &spec.gateway {
            match (gateway.parse::<Ipv4Addr>(), &cidr) {
                (Err(_), _) => refuse("spec.gateway", "must be an IPv4 address, such as 10.0.0.1".into()),
                (Ok(_), None) => {
                    refuse("spec.gateway", "say `cidr` too: the gateway must be inside it".into())
                }
                (Ok(address), Some(Ok(cidr))) if !is_host(*cidr, address) => {
                    refuse("spec.gateway", format!("must be a host address of {cidr}"));
                }
                _ => {}
            }
        }
        if spec.dns.len() > 8 {
            refuse("spec.dns", "at most 8".into());
        }
        for (index, resolver) in spec.dns.iter().enumerate() {
            if resolver.parse::<IpAddr>().is_err() {
                refuse(&format!("spec.dns.{index}"), "must be an IP address, such as 9.9.9.9".into());
            }
        }
        if spec.domain.as_deref().is_some_and(|domain| !is_domain(domain)) {
            let reason = "must be labels of a-z, 0-9 and hyphens with dots between them, at most 190 letters";
            refuse("spec.domain", reason.into());
        }
        errors
    }

    // === create, update, remove ===

    fn create(object: &Object<Self>, _facts: &Facts) -> Plan {
        let mut plan = Plan { claims: claims(object), ..Plan::default() };
        // Kept, so that a later change of the name does not silently change the names of all guests.
        let domain = object.spec.domain.clone().unwrap_or_else(|| format!("{}.internal", object.core.name));
        plan.values.insert("domain".into(), domain.into());
        plan
    }

    fn update(old: &Object<Self>, new: &Object<Self>, _facts: &Facts) -> Plan {
        let mut plan = Plan { claims: claims(new), ..Plan::default() };
        if let Some(domain) = old.claims.text("domain") {
            plan.values.insert("domain".into(), domain.into());
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

    fn order(object: &Object<Self>, _facts: &Facts) -> Option<Order> {
        wire::order(object)
    }

    // === show ===

    fn show(object: &mut Object<Self>) {
        let range = effective(&object.claims);
        object.status = NetworkStatus {
            cidr: range.map(|cidr| cidr.to_string()),
            gateway: range.and_then(|cidr| gateway(&object.spec, cidr)).map(|address| address.to_string()),
            domain: object.claims.text("domain").map(str::to_owned),
        };
    }
}

fn claims(object: &Object<Network>) -> Vec<Claim> {
    let wanted = match object.spec.cidr.as_deref().map(parse_cidr) {
        Some(Err(_)) => return Vec::new(),
        Some(Ok(cidr)) => Some(cidr),
        // Once given, the range stays: an update without a wish is no wish for another one.
        None => effective(&object.claims),
    };
    let scope = object.core.tenant.clone();
    let what = ClaimKind::Prefix {
        scope,
        wanted: wanted.map(IpNet::V4),
        within: IpNet::V4(net([10, 0, 0, 0], 8)),
        length: 24,
        pick: Pick::Any,
    };
    vec![Claim::new("cidr", "spec.cidr", what)]
}

/// The range that the store gave.
fn effective(claims: &Claims) -> Option<Ipv4Net> {
    claims.text("cidr")?.parse().ok()
}

fn gateway(spec: &NetworkSpec, cidr: Ipv4Net) -> Option<Ipv4Addr> {
    match &spec.gateway {
        Some(gateway) => gateway.parse().ok(),
        None => cidr.hosts().next(),
    }
}

fn is_host(cidr: Ipv4Net, address: Ipv4Addr) -> bool {
    cidr.contains(&address) && address != cidr.network() && address != cidr.broadcast()
}

fn parse_cidr(text: &str) -> Result<Ipv4Net, String> {
    let cidr: Ipv4Net = text.parse().map_err(|_| "must be an IPv4 range, such as 10.0.0.0/24".to_owned())?;
    if cidr.addr() != cidr.network() {
        return Err(format!("has bits beyond its prefix: did you mean {}?", cidr.trunc()));
    }
    if !(8..=29).contains(&cidr.prefix_len()) {
        return Err(format!("its prefix must be 8 to 29, not {}", cidr.prefix_len()));
    }
    let touches = |taken: &Ipv4Net| taken.contains(&cidr) || cidr.contains(taken);
    match TAKEN.iter().find(|(taken, _)| touches(taken)) {
        Some((taken, why)) => Err(format!("overlaps {taken}, which {why}; 10.0.0.0/24 would do")),
        None => Ok(cidr),
    }
}

fn is_domain(domain: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    domain.len() <= 190 && domain.split('.').all(label)
}

// === wire ===

mod wire {
    use prost::Message as _;
    use rhyzome_proto::v1::{NetworkOrder, OrderBody, order_body::Body};

    use super::*;

    pub fn order(object: &Object<Network>) -> Option<Order> {
        let cidr = effective(&object.claims)?;
        let body = NetworkOrder {
            cidr: cidr.to_string(),
            gateway: gateway(&object.spec, cidr)?.to_string(),
            nat: object.spec.nat,
            dns: object.spec.dns.clone(),
            domain: object.claims.text("domain").unwrap_or("internal").to_owned(),
        };
        let body = OrderBody { body: Some(Body::Network(body)) }.encode_to_vec();
        Some(Order { body, needs: Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use rhyzome_proto::v1::{NetworkOrder, OrderBody, order_body::Body};
    use serde_json::json;

    use super::*;
    use crate::resources::testing::{complaints, fields, object, stored_as};

    fn why(cidr: &str) -> String {
        let said = complaints::<Network>(json!({"cidr": cidr}), &Facts::default());
        said.first().map(|error| error.reason.clone()).unwrap_or_default()
    }

    #[test]
    fn ranges_are_refused_with_the_way_out() {
        assert_eq!(why("10.0.0.0/24"), "");
        assert_eq!(why("203.0.113.0/29"), "");
        assert!(why("10.0.0.5/24").contains("did you mean 10.0.0.0/24?"));
        assert!(why("10.0.0.0/30").contains("8 to 29"));
        assert!(why("10.0.0.0").contains("such as"));
        for taken in ["127.0.0.0/24", "224.0.0.0/24", "169.254.0.0/24", "100.64.0.0/24", "100.0.0.0/8"] {
            assert!(why(taken).contains("overlaps"), "{taken}");
        }
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once() {
        let bad = json!({"cidr": "10.0.0.0/24", "gateway": "10.0.0.255", "dns": ["x"], "domain": "A b"});
        let said = complaints::<Network>(bad, &Facts::default());
        assert_eq!(fields(&said), ["spec.gateway", "spec.dns.0", "spec.domain"]);
        let alone = complaints::<Network>(json!({"gateway": "10.0.0.1"}), &Facts::default());
        assert_eq!(fields(&alone), ["spec.gateway"]);
    }

    #[test]
    fn claims_the_wanted_range_or_any() {
        let prefix = |spec| match Network::create(&object(spec), &Facts::default()).claims.remove(0).what {
            ClaimKind::Prefix { scope, wanted, length, .. } => (scope, wanted, length),
            other => panic!("{other:?}"),
        };
        assert_eq!(prefix(json!({})), ("acme".into(), None, 24));
        let wanted = "10.1.0.0/16".parse().ok();
        assert_eq!(prefix(json!({"cidr": "10.1.0.0/16"})), ("acme".into(), wanted, 24));
        let bad = Network::create(&object(json!({"cidr": "x"})), &Facts::default());
        assert_eq!(bad.claims, []);
    }

    #[test]
    fn an_update_keeps_the_given_range_and_refreshes() {
        let old = stored_as::<Network>(json!({}), json!({"cidr": "10.9.0.0/24", "domain": "d"}), json!(null));
        let plan = Network::update(&old, &old, &Facts::default());
        let what = &plan.claims[0].what;
        assert!(matches!(what, ClaimKind::Prefix { wanted: Some(w), .. } if w.to_string() == "10.9.0.0/24"));
        assert_eq!(plan.values["domain"], "d");
        assert_eq!(plan.steps[0], Step::Refresh { who: Who::This });
    }

    #[test]
    fn the_order_has_range_and_gateway() {
        let claims = json!({"cidr": "10.9.0.0/24", "domain": "lan.internal"});
        let mut lan = stored_as::<Network>(json!({"dns": ["9.9.9.9"]}), claims, json!(null));
        let order = Network::order(&lan, &Facts::default()).unwrap();
        let wanted = NetworkOrder {
            cidr: "10.9.0.0/24".into(),
            gateway: "10.9.0.1".into(),
            nat: true,
            dns: vec!["9.9.9.9".into()],
            domain: "lan.internal".into(),
        };
        let body = OrderBody::decode(&order.body[..]).unwrap().body.unwrap();
        assert_eq!(body, Body::Network(wanted));
        Network::show(&mut lan);
        assert_eq!(lan.status.gateway.as_deref(), Some("10.9.0.1"));
    }
}
