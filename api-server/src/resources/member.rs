//! A member: a user's place in a tenant.
//!
//! Its life: there at once, and its rights with it; they end with it at once. The last owner of a tenant stays.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::kernel::role::{DEFAULT, OPERATOR, bundle};
use crate::kernel::{Change, Facts, FieldError, Held, Meta, NameRule, Object, Plan, Ref, Resource, Scope};

/// A member.
pub struct Member;

// === spec ===

/// Who, and as what.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"user": "theuser", "role": "editor"}))]
pub struct MemberSpec {
    /// Id of the user, which `GET /v1/whoami` tells them; operators may say the name.
    #[schema(min_length = 1, max_length = 63)]
    pub user: String,
    /// `owner`, `editor`, `viewer`, `billing`, or a role of the tenant's own.
    #[serde(default = "usual")]
    #[schema(max_length = 63)]
    pub role: String,
}

fn usual() -> String {
    DEFAULT.to_owned()
}

// === status ===

/// Nothing is reported of a member.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct MemberStatus {}

impl Resource for Member {
    const META: Meta = Meta {
        kind: "member",
        plural: "members",
        prefix: "mem",
        scope: Scope::Tenant,
        name: NameRule::Label,
        about: "A user's place in a tenant",
        actions: &[],
        fields: &[("user", Change::Immutable)],
        held: Held::Never,
        private: &[],
    };
    type Spec = MemberSpec;
    type Status = MemberStatus;

    // === refs ===

    fn refs(spec: &MemberSpec) -> Vec<Ref> {
        let mut refs = vec![Ref::uses("spec.user", "user", &spec.user)];
        if bundle(&spec.role).is_none() {
            refs.push(Ref::uses("spec.role", "role", &spec.role));
        }
        refs
    }

    // === validate ===

    fn validate(object: &Object<Self>, _facts: &Facts, _creating: bool) -> Vec<FieldError> {
        if object.spec.role == OPERATOR {
            let reason = "is not a tenant's to give: operators bind it at `/v1/bindings`";
            return vec![FieldError::new("spec.role", reason)];
        }
        Vec::new()
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
    fn a_member_names_a_user_and_perhaps_a_role_of_ones_own() {
        let refs = |spec| {
            Member::refs(&object::<Member>(spec).spec).into_iter().map(|one| one.field).collect::<Vec<_>>()
        };
        assert_eq!(refs(json!({"user": "usr_1"})), ["spec.user"]);
        assert_eq!(refs(json!({"user": "usr_1", "role": "own"})), ["spec.user", "spec.role"]);
    }

    #[test]
    fn no_tenant_makes_operators() {
        let said = complaints::<Member>(json!({"user": "u", "role": "operator"}), &Facts::default());
        assert_eq!(fields(&said), ["spec.role"]);
    }
}
