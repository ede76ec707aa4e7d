//! A tenant: a customer, who owns instances, networks and disks, and sees nobody else's.
//!
//! Its life: there at once; suspended and resumed as often as an operator likes; cannot be deleted while it owns
//! anything; its id is its name and never changes. What a suspension does to others the store does (`suspend.rs`).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::kernel::certificate::{Given, Stage};
use crate::kernel::realm;
use crate::kernel::resource::{Call, Choice};
use crate::kernel::{
    Action, Claim, ClaimKind, Clash, Error, Facts, FieldError, Held, Meta, NameRule, Object, Plan, Resource,
    Scope, Step, Timestamp,
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
    /// Make that realm: named as `realm` says, or as the tenant. What was made stays until it is deleted with the tenant
    /// (`realm=delete`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub make_realm: bool,
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
    /// How many snapshots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<u64>,
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
    /// Of its realm, if it is made by the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub realm: Option<TenantRealm>,
    /// Of the certificate that was given for the domain of its API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<TenantCertificate>,
}

/// How the certificate stands that was given for the domain of a tenant's API. Whoever brought it brings the next one.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct TenantCertificate {
    /// When it ends.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
    /// True: less than 14 days are left.
    pub expires_soon: bool,
    /// True: it has ended, and clients refuse it.
    pub expired: bool,
}

/// How the realm of a tenant stands that is made by the server.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct TenantRealm {
    /// What it is called at the identity provider.
    pub name: String,
    /// It is there, and the server has made it.
    pub made: bool,
    /// Why it cannot be made, or deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Why it is tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
    /// The job that has come to an end with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub done: Option<String>,
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
        planned(object)
    }

    fn update(old: &Object<Self>, new: &Object<Self>, _facts: &Facts) -> Plan {
        let mut plan = planned(new);
        plan.errors.extend(unpaired(old, new));
        plan.errors.extend(unmade(old, new));
        plan
    }

    fn remove(object: &Object<Self>) -> Plan {
        Plan::steps(realm::goes(&object.claims.0).into_iter().chain([Step::Release]))
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
        object.status.certificate = Given::kept(&object.claims.0).map(|given| TenantCertificate {
            expires_at: given.until,
            expires_soon: given.told > Stage::Good,
            expired: given.told == Stage::Over,
        });
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

/// The realm that counts for it.
fn realm_of(object: &Object<Tenant>) -> Option<&str> {
    let own = object.spec.make_realm.then_some(object.core.name.as_str());
    object.spec.realm.as_deref().or(own)
}

fn planned(object: &Object<Tenant>) -> Plan {
    let realm = realm_of(object);
    let wanted = realm.filter(|name| object.spec.make_realm && !realm::is_made(&object.claims, name));
    let mut plan = Plan { claims: claims(&object.spec, realm), ..Plan::default() };
    plan.values.insert(realm::MAKING.to_owned(), json!(object.spec.make_realm));
    plan.steps.extend(wanted.map(realm::make));
    plan
}

/// What is made, or may have been, is not forgotten by a change of words. What was refused was not made.
fn unmade(old: &Object<Tenant>, new: &Object<Tenant>) -> Option<FieldError> {
    let refused = old.status.realm.as_ref().is_some_and(|realm| realm.problem.is_some() && !realm.made);
    let same = new.spec.make_realm && realm_of(old) == realm_of(new);
    if !old.spec.make_realm || refused || same {
        return None;
    }
    let field = if new.spec.make_realm { "spec.realm" } else { "spec.make_realm" };
    Some(FieldError::new(field, "is of a realm that was made for this tenant, or is being made: it stays"))
}

/// What only one tenant can have.
fn claims(spec: &TenantSpec, realm: Option<&str>) -> Vec<Claim> {
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
    all.extend(realm.map(|realm| own("realm", realm, "spec.realm".to_owned())));
    all
}

#[cfg(test)]
mod tests;
