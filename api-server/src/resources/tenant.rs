//! A tenant: a customer, who owns instances, networks and disks, and sees nobody else's.
//!
//! Its life: there at once; suspended and resumed as often as an operator likes; cannot be deleted while it owns
//! anything; its id is its name and never changes. What a suspension does to others the store does (`suspend.rs`).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::kernel::resource::{Call, Choice};
use crate::kernel::{
    Action, Claim, ClaimKind, Clash, Error, Facts, FieldError, Held, Meta, NameRule, Object, Plan, Resource,
    Scope, Timestamp,
};

/// A tenant.
pub struct Tenant;

/// The greatest limit: what the databases can count.
const MOST: u64 = i64::MAX as u64;
/// More domains than these nobody has.
const MOST_DOMAINS: usize = 100;

// === spec ===

/// What is known of a tenant.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"description": "Acme Inc.", "billing_reference": "customer-4711", "quota": {"vcpus": 64}}))]
pub struct TenantSpec {
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 1000)]
    pub description: Option<String>,
    /// Under which the operator's books know this tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 200)]
    pub billing_reference: Option<String>,
    /// Name of its realm at the identity provider. One tenant's only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 63, pattern = "^[A-Za-z0-9_-]{1,63}$")]
    pub realm: Option<String>,
    /// Names in the DNS that are its own: each is one tenant's only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 100)]
    pub domains: Vec<String>,
    /// A domain of the API that serves this tenant only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api: Option<TenantApi>,
    /// What it may use at most. What is not said has the default. Less than is used already refuses only what
    /// is new.
    #[serde(default)]
    pub quota: TenantQuota,
}

/// A domain of the API that serves one tenant only, and what is shown there.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TenantApi {
    /// `api.acme.example`. One tenant's only.
    #[schema(max_length = 253)]
    pub domain: String,
    /// The certificate of this domain in PEM, and what leads from it to its authority. Without one the server's own
    /// authority vouches for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 65536)]
    pub certificate: Option<String>,
    /// The certificate's key in PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(write_only, max_length = 16384)]
    pub key: Option<String>,
}

/// The most that a tenant may use of each quantity.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TenantQuota {
    /// Virtual processors of all its instances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u64>,
    /// Memory of all its instances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Size of all its disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// Addresses of all its instances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addresses: Option<u64>,
    /// How many instances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instances: Option<u64>,
    /// How many disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disks: Option<u64>,
    /// How many networks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub networks: Option<u64>,
    /// How many images of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<u64>,
    /// How many SSH keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_keys: Option<u64>,
    /// How many placement groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement_groups: Option<u64>,
    /// How many webhooks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhooks: Option<u64>,
    /// How many VPN networks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vpn_networks: Option<u64>,
    /// How many WireGuard servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wireguard_servers: Option<u64>,
    /// How many WireGuard peers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wireguard_peers: Option<u64>,
    /// How many members.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub members: Option<u64>,
    /// How many roles of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roles: Option<u64>,
    /// How many bindings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bindings: Option<u64>,
}

// === status ===

/// How a tenant stands.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct TenantStatus {
    /// There while it is suspended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspended: Option<TenantSuspension>,
}

/// That a tenant is suspended.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct TenantSuspension {
    /// Since when.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// `stop`: its instances were stopped, and those that ran start again when it is resumed. `keep`: they go on.
    pub instances: String,
}

/// Where the store keeps that a tenant is suspended, and since when.
const SUSPENDED: &str = "suspended";

impl Resource for Tenant {
    const META: Meta = Meta {
        kind: "tenant",
        plural: "tenants",
        prefix: "ten",
        scope: Scope::Operator,
        name: NameRule::Alphanumeric,
        about: "A customer, who owns instances, networks and disks",
        actions: &[
            Action {
                verb: "suspend",
                doing: "suspending",
                about: "Its people may only look, and its instances stop; nothing is lost",
            },
            Action {
                verb: "resume",
                doing: "resuming",
                about: "Its people may do again what they could, and the instances that ran start",
            },
        ],
        fields: &[],
        held: Held::Never,
        private: &[],
    };
    const CHOICES: &'static [Choice] = &[Choice {
        verb: "suspend",
        field: "instances",
        about: "Whether its instances stop, or go on as they are.",
        words: &["stop", "keep"],
    }];
    type Spec = TenantSpec;
    type Status = TenantStatus;

    // === validate ===

    fn validate(object: &Object<Self>, _facts: &Facts, _creating: bool) -> Vec<FieldError> {
        let limits = [
            ("spec.description", &object.spec.description, 1000),
            ("spec.billing_reference", &object.spec.billing_reference, 200),
        ];
        let mut errors = Vec::new();
        for (quantity, limit) in
            serde_json::to_value(&object.spec.quota).iter().flat_map(Value::as_object).flatten()
        {
            if limit.as_u64().is_none_or(|limit| limit > MOST) {
                errors.push(FieldError::new(
                    format!("spec.quota.{quantity}"),
                    format!("must be at most {MOST}"),
                ));
            }
        }
        for (field, text, most) in limits {
            let length = text.as_ref().map_or(0, |text| text.chars().count());
            if length > most {
                errors.push(FieldError::new(field, format!("is {length} letters long; at most {most}")));
            }
        }
        if object.spec.realm.as_deref().is_some_and(|realm| !is_realm(realm)) {
            errors.push(FieldError::new("spec.realm", "must be 1 to 63 of letters, digits, `-` and `_`"));
        }
        errors.extend(domain_errors(&object.spec.domains));
        errors.extend(object.spec.api.as_ref().and_then(api_error));
        errors
    }

    // === create, update, remove ===

    fn create(object: &Object<Self>, _facts: &Facts) -> Plan {
        Plan { claims: claims(&object.spec), ..Plan::default() }
    }

    fn update(old: &Object<Self>, new: &Object<Self>, _facts: &Facts) -> Plan {
        Plan { claims: claims(&new.spec), errors: unpaired(old, new), ..Plan::default() }
    }

    fn remove(_object: &Object<Self>) -> Plan {
        Plan::release()
    }

    fn act(object: &Object<Self>, call: &Call) -> Result<Plan, Error> {
        let mut plan = Plan::default();
        match (call.verb.as_str(), suspension(object)) {
            ("suspend", before) => {
                let instances = call.choices.get("instances").map_or("stop", String::as_str);
                // The store says since when, and what follows for all that the tenant has.
                let since = before.map(|before| before.since);
                plan.values.insert(SUSPENDED.into(), json!({ "since": since, "instances": instances }));
            }
            ("resume", None) => return Err(Clash::WrongState("it is not suspended".to_owned()).into()),
            ("resume", Some(_)) => drop(plan.values.insert(SUSPENDED.into(), Value::Null)),
            (verb, _) => return Err(Error::field("action", format!("a tenant has no action `{verb}`"))),
        }
        Ok(plan)
    }

    // === settled and show ===

    fn settled(object: &Object<Self>) -> &'static str {
        if suspension(object).is_some() { "suspended" } else { "ready" }
    }

    fn show(object: &mut Object<Self>) {
        object.status.suspended = suspension(object);
    }
}

fn suspension(object: &Object<Tenant>) -> Option<TenantSuspension> {
    let kept = object.claims.0.get(SUSPENDED).filter(|kept| !kept.is_null())?;
    TenantSuspension::deserialize(kept).ok()
}

fn is_realm(realm: &str) -> bool {
    (1..=63).contains(&realm.len())
        && realm.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

/// A name in the DNS as it is written there, in small letters, with a dot in it.
fn is_domain(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let letters = |last: &str| last.bytes().any(|byte| byte.is_ascii_lowercase());
    name.len() <= 253
        && name.split('.').all(label)
        && name.rsplit_once('.').is_some_and(|(_, last)| letters(last))
}

fn domain_errors(domains: &[String]) -> Vec<FieldError> {
    let (mut errors, mut seen) = (Vec::new(), BTreeSet::new());
    if domains.len() > MOST_DOMAINS {
        errors
            .push(FieldError::new("spec.domains", format!("are {}; at most {MOST_DOMAINS}", domains.len())));
    }
    for (at, domain) in domains.iter().enumerate() {
        let reason = match (is_domain(domain), seen.insert(domain)) {
            (false, _) => "must be a name such as `acme.example`, in small letters (xn-- for others)",
            (true, false) => "stands here twice",
            (true, true) => continue,
        };
        errors.push(FieldError::new(format!("spec.domains.{at}"), reason));
    }
    errors
}

fn api_error(api: &TenantApi) -> Option<FieldError> {
    let (field, reason) = match (is_domain(&api.domain), &api.certificate, &api.key) {
        (false, ..) => {
            ("domain", "must be a name such as `api.acme.example`, in small letters (xn-- for others)")
        }
        (true, Some(_), None) => ("key", "is missing: it comes with the certificate"),
        (true, None, Some(_)) => ("certificate", "is missing: it comes with the key"),
        _ => return None,
    };
    Some(FieldError::new(format!("spec.api.{field}"), reason))
}

/// A key that is not seen any more cannot be compared with another certificate.
fn unpaired(old: &Object<Tenant>, new: &Object<Tenant>) -> Vec<FieldError> {
    let (Some(old), Some(new)) = (&old.spec.api, &new.spec.api) else { return Vec::new() };
    let same_key = new.key.is_some() && old.key == new.key;
    if !same_key || (&old.certificate, &old.domain) == (&new.certificate, &new.domain) {
        return Vec::new();
    }
    vec![FieldError::new("spec.api.key", "must be sent with another certificate, and for another domain")]
}

/// What only one tenant can have.
fn claims(spec: &TenantSpec) -> Vec<Claim> {
    let own = |scope: &str, value: &str, field: String| {
        let taken = "belongs to another tenant".to_owned();
        let what = ClaimKind::Exclusive { scope: format!("tenant-{scope}"), value: value.to_owned(), taken };
        Claim::new(format!("{scope}.{value}"), field, what)
    };
    let mut seen = BTreeSet::new();
    let listed = spec.domains.iter().enumerate().map(|(at, domain)| (domain, format!("spec.domains.{at}")));
    let api = spec.api.iter().map(|api| (&api.domain, "spec.api.domain".to_owned()));
    let domains = listed.chain(api).filter(|(domain, _)| seen.insert(domain.as_str()));
    let mut all: Vec<Claim> = domains.map(|(domain, field)| own("domain", domain, field)).collect();
    all.extend(spec.api.iter().map(|api| own("api", &api.domain, "spec.api.domain".to_owned())));
    all.extend(spec.realm.as_deref().map(|realm| own("realm", realm, "spec.realm".to_owned())));
    all
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resources::testing::{complaints, fields, keys, object, stored_as};

    #[test]
    fn texts_have_an_end() {
        let long = json!({"description": "x".repeat(1001), "billing_reference": "x".repeat(201)});
        let said = complaints::<Tenant>(long, &Facts::default());
        assert_eq!(fields(&said), ["spec.description", "spec.billing_reference"]);
        assert_eq!(complaints::<Tenant>(json!({}), &Facts::default()), []);
    }

    #[test]
    fn limits_have_an_end_too() {
        let most = json!({"quota": {"vcpus": MOST, "instances": 0}});
        assert_eq!(complaints::<Tenant>(most, &Facts::default()), []);
        let beyond = json!({"quota": {"vcpus": MOST + 1}});
        assert_eq!(fields(&complaints::<Tenant>(beyond, &Facts::default())), ["spec.quota.vcpus"]);
    }

    #[test]
    fn domains_and_realms_are_names() {
        let good = json!({"domains": ["acme.example", "a.b-1.acme.example"], "realm": "Acme_1"});
        assert_eq!(complaints::<Tenant>(good, &Facts::default()), []);
        let bad =
            ["acme", "Acme.example", "-a.example", "a..example", "a.example.", "10.0.0.1", "*.a.example"];
        for bad in bad {
            let said = complaints::<Tenant>(json!({"domains": [bad]}), &Facts::default());
            assert_eq!(fields(&said), ["spec.domains.0"], "{bad}");
        }
        let twice = json!({"domains": ["a.example", "a.example"], "realm": "a/b"});
        assert_eq!(fields(&complaints::<Tenant>(twice, &Facts::default())), ["spec.realm", "spec.domains.1"]);
    }

    #[test]
    fn what_one_tenant_has_no_other_has() {
        let tenant = object::<Tenant>(json!({"domains": ["a.example"], "realm": "a"}));
        let plan = Tenant::create(&tenant, &Facts::default());
        assert_eq!(keys(&plan.claims), ["domain.a.example", "realm.a"]);
        assert_eq!(Tenant::update(&tenant, &tenant, &Facts::default()).claims, plan.claims);
    }

    #[test]
    fn a_domain_of_the_api_has_both_or_neither() {
        for (api, wanted) in [
            (json!({"domain": "api.a.example"}), None),
            (json!({"domain": "api.a.example", "certificate": "c", "key": "k"}), None),
            (json!({"domain": "api.a.example", "certificate": "c"}), Some("spec.api.key")),
            (json!({"domain": "api.a.example", "key": "k"}), Some("spec.api.certificate")),
            (json!({"domain": "Api"}), Some("spec.api.domain")),
        ] {
            let said = complaints::<Tenant>(json!({ "api": api }), &Facts::default());
            assert_eq!(fields(&said), wanted.into_iter().collect::<Vec<_>>());
        }
        let api = json!({"domains": ["a.example"], "api": {"domain": "a.example"}});
        let plan = Tenant::create(&object::<Tenant>(api), &Facts::default());
        assert_eq!(keys(&plan.claims), ["domain.a.example", "api.a.example"]);
        let with = |certificate: &str, key: &str| {
            let api = json!({"domain": "a.example", "certificate": certificate, "key": key});
            object::<Tenant>(json!({ "api": api }))
        };
        let changed = |new: &Object<Tenant>| Tenant::update(&with("c", "k"), new, &Facts::default()).errors;
        assert_eq!(fields(&changed(&with("d", "k"))), ["spec.api.key"]);
        assert!(changed(&with("c", "k")).is_empty() && changed(&with("d", "l")).is_empty());
    }

    #[test]
    fn suspended_and_resumed() {
        let call = |verb: &str| Call { verb: verb.into(), ..Call::default() };
        let tenant = object::<Tenant>(json!({}));
        assert!(Tenant::act(&tenant, &call("resume")).is_err());
        let plan = Tenant::act(&tenant, &call("suspend")).unwrap();
        assert_eq!(plan.values["suspended"]["instances"], "stop");
        let kept = json!({"suspended": {"since": "2026-11-22T10:00:00Z", "instances": "keep"}});
        let mut tenant = stored_as::<Tenant>(json!({}), kept, json!(null));
        assert_eq!(Tenant::settled(&tenant), "suspended");
        Tenant::show(&mut tenant);
        assert_eq!(tenant.status.suspended.as_ref().unwrap().instances, "keep");
        assert_eq!(Tenant::act(&tenant, &call("resume")).unwrap().values["suspended"], json!(null));
    }

    #[test]
    fn is_there_and_gone_without_a_node() {
        let tenant = object::<Tenant>(json!({}));
        assert_eq!(Tenant::create(&tenant, &Facts::default()), Plan::default());
        assert_eq!(Tenant::remove(&tenant), Plan::release());
    }
}
