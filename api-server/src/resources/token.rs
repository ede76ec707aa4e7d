//! An API token: lets a program in as the user who made it, with no more than is said here.
//!
//! Its life: there at once; its secret is shown once, and kept as a hash only. What its maker loses it loses too. It
//! ends when it expires or is deleted, at once on all servers.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::kernel::role::Permission;
use crate::kernel::{Facts, FieldError, Held, Meta, NameRule, Object, Plan, Resource, Scope, Timestamp};

/// A token.
pub struct Token;

// === spec ===

/// What it is limited to. Without limits it may do what its maker may, but for making tokens.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "description": "The nightly build", "scopes": ["instance:*", "image:get"], "tenant": "default",
    "tags": {"env": "ci"}, "networks": ["192.0.2.0/24"], "expires_at": "2100-01-01T00:00:00Z"
}))]
pub struct TokenSpec {
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 1000)]
    pub description: Option<String>,
    /// Only this: `KIND:VERB`, `*` for all of either.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 200)]
    pub scopes: Vec<String>,
    /// Only in the tenant of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 63)]
    pub tenant: Option<String>,
    /// Only with things of these kinds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 100)]
    pub kinds: Vec<String>,
    /// Only with things that have all of these tags.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// Only with the one of this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 63)]
    pub object: Option<String>,
    /// Only from these networks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>, max_items = 100)]
    pub networks: Vec<IpNet>,
    /// Worth nothing from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
}

// === status ===

/// When it was last used, to the minute.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct TokenStatus {
    /// When.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_used_at: Option<Timestamp>,
    /// From which address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_used_from: Option<String>,
}

impl Resource for Token {
    const META: Meta = Meta {
        kind: "token",
        plural: "tokens",
        prefix: "tok",
        scope: Scope::Operator,
        name: NameRule::Label,
        about: "Lets a program in as its maker, within limits",
        actions: &[],
        fields: &[],
        held: Held::Never,
        private: &[],
    };
    type Spec = TokenSpec;
    type Status = TokenStatus;

    // === validate ===

    fn validate(object: &Object<Self>, _facts: &Facts, _creating: bool) -> Vec<FieldError> {
        let bad = |(at, scope): (usize, &String)| {
            let reason = Permission::parse(scope).err()?;
            Some(FieldError::new(format!("spec.scopes.{at}"), reason))
        };
        object.spec.scopes.iter().enumerate().filter_map(bad).collect()
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
    use crate::resources::testing::{complaints, fields};

    #[test]
    fn without_limits_it_is_what_its_maker_is() {
        assert_eq!(complaints::<Token>(json!({}), &Facts::default()), []);
        let bad = json!({"scopes": ["instance:get", "instance get"]});
        assert_eq!(fields(&complaints::<Token>(bad, &Facts::default())), ["spec.scopes.1"]);
    }
}
