//! A role: permissions under a name, for members and bindings to refer to.
//!
//! Its life: there at once; a change counts at once for all who have it; cannot be deleted while somebody does.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::kernel::role::{Permission, bundle};
use crate::kernel::{Facts, FieldError, Held, Meta, NameRule, Object, Plan, Resource, Scope};

/// A role.
pub struct Role;

/// More than these are no role but a list.
const MOST: usize = 200;

// === spec ===

/// What it gives.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"description": "Starts and stops", "scopes": ["instance:get", "instance:list", "instance:start", "instance:stop"]}))]
pub struct RoleSpec {
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 1000)]
    pub description: Option<String>,
    /// What may be done: `KIND:VERB`, `*` for all of either.
    #[schema(min_items = 1, max_items = 200)]
    pub scopes: Vec<String>,
    /// What not, although `scopes` say so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 200)]
    pub except: Vec<String>,
}

// === status ===

/// Nothing is reported of a role.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct RoleStatus {}

impl Resource for Role {
    const META: Meta = Meta {
        kind: "role",
        plural: "roles",
        prefix: "role",
        scope: Scope::Both,
        name: NameRule::Label,
        about: "Permissions under a name",
        actions: &[],
        fields: &[],
        held: Held::Never,
        private: &[],
    };
    type Spec = RoleSpec;
    type Status = RoleStatus;

    // === validate ===

    fn validate(object: &Object<Self>, _facts: &Facts, _creating: bool) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if bundle(&object.core.name).is_some() {
            errors.push(FieldError::new("name", "is that of a built-in role: take another"));
        }
        for (field, list) in [("spec.scopes", &object.spec.scopes), ("spec.except", &object.spec.except)] {
            for (at, scope) in list.iter().enumerate() {
                errors.extend(
                    Permission::parse(scope)
                        .err()
                        .map(|reason| FieldError::new(format!("{field}.{at}"), reason)),
                );
            }
            if list.len() > MOST {
                errors.push(FieldError::new(field, format!("at most {MOST}: `*` stands for all")));
            }
        }
        if object.spec.scopes.is_empty() {
            errors.push(FieldError::new("spec.scopes", "says nothing: give at least one permission"));
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
    fn permissions_are_looked_at_one_by_one() {
        let bad = json!({"scopes": ["disk:get", "disk"], "except": [":"]});
        assert_eq!(fields(&complaints::<Role>(bad, &Facts::default())), ["spec.scopes.1", "spec.except.0"]);
        assert_eq!(fields(&complaints::<Role>(json!({"scopes": []}), &Facts::default())), ["spec.scopes"]);
    }

    #[test]
    fn what_is_built_in_stays_what_it_is() {
        let mut role = object::<Role>(json!({"scopes": ["*:get"]}));
        role.core.name = "owner".into();
        assert_eq!(fields(&Role::validate(&role, &Facts::default(), true)), ["name"]);
    }
}
