//! A tenant: a customer, who owns instances, networks and disks, and sees nobody else's.
//!
//! Its life: there at once; cannot be deleted while it owns anything; its id is its name and never changes.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::kernel::{Facts, FieldError, Held, Meta, NameRule, Object, Plan, Resource, Scope};

/// A tenant.
pub struct Tenant;

/// The greatest limit: what the databases can count.
const MOST: u64 = i64::MAX as u64;

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
    /// What it may use at most. What is not said has the default. Less than is used already refuses only what
    /// is new.
    #[serde(default)]
    pub quota: TenantQuota,
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

/// Nothing is reported of a tenant.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct TenantStatus {}

impl Resource for Tenant {
    const META: Meta = Meta {
        kind: "tenant",
        plural: "tenants",
        prefix: "ten",
        scope: Scope::Operator,
        name: NameRule::Alphanumeric,
        about: "A customer, who owns instances, networks and disks",
        actions: &[],
        fields: &[],
        held: Held::Never,
        private: &[],
    };
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
        errors
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
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resources::testing::{complaints, fields, object};

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
    fn is_there_and_gone_without_a_node() {
        let tenant = object::<Tenant>(json!({}));
        assert_eq!(Tenant::create(&tenant, &Facts::default()), Plan::default());
        assert_eq!(Tenant::remove(&tenant), Plan::release());
    }
}
