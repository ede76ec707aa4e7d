//! A binding: who may do what with which things, or may not.
//!
//! Its life: there at once, and the rights with it; they end with it at once. A tenant's own is about the tenant; one
//! of the operators is about everything.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::kernel::role::{OPERATOR, Permission, bundle};
use crate::kernel::{Facts, FieldError, Held, Meta, NameRule, Object, Plan, Ref, Resource, Scope};

/// A binding.
pub struct Binding;

/// More subjects than these belong in a group.
const MOST: usize = 100;

// === spec ===

/// Who, what, with which things.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "subjects": {"night": {"group": "night-shift", "authenticator": "corp"}}, "role": "viewer", "tags": {"env": "prod"}
}))]
pub struct BindingSpec {
    /// Whom it is about, each under a name of your choice.
    pub subjects: BTreeMap<String, BindingSubject>,
    /// `owner`, `editor`, `viewer`, `billing`, or a role of one's own. `operator` in a binding of operators only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 63)]
    pub role: Option<String>,
    /// Permissions besides: `KIND:VERB`, `*` for all of either.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 200)]
    pub scopes: Vec<String>,
    /// `deny` stands over everything that is allowed elsewhere.
    #[serde(default)]
    pub effect: BindingEffect,
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
}

/// Somebody. A user; or a group, role or claim as an authenticator says it; or all whom an authenticator knows.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BindingSubject {
    /// Id of a user, which `GET /v1/whoami` tells them; operators may say the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 63)]
    pub user: Option<String>,
    /// A group, role or claim in the authenticator's own words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 200)]
    pub group: Option<String>,
    /// The configured name of the authenticator that says so: others may have a group of the same name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 63)]
    pub authenticator: Option<String>,
}

/// What a binding does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BindingEffect {
    /// It gives.
    #[default]
    Allow,
    /// It takes.
    Deny,
}

// === status ===

/// Nothing is reported of a binding.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct BindingStatus {}

impl Resource for Binding {
    const META: Meta = Meta {
        kind: "binding",
        plural: "bindings",
        prefix: "bind",
        scope: Scope::Apart,
        name: NameRule::Label,
        about: "Who may do what with which things, or may not",
        actions: &[],
        fields: &[],
        held: Held::Never,
        private: &[],
    };
    type Spec = BindingSpec;
    type Status = BindingStatus;

    // === refs ===

    fn refs(spec: &BindingSpec) -> Vec<Ref> {
        let users = spec.subjects.iter().filter_map(|(key, subject)| {
            let user = subject.user.as_deref()?;
            Some(Ref::uses(format!("spec.subjects.{key}.user"), "user", user))
        });
        let role = spec.role.as_deref().filter(|role| bundle(role).is_none());
        users.chain(role.map(|role| Ref::uses("spec.role", "role", role))).collect()
    }

    // === validate ===

    fn validate(object: &Object<Self>, _facts: &Facts, _creating: bool) -> Vec<FieldError> {
        let spec = &object.spec;
        let mut errors = Vec::new();
        let mut wrong = |field: String, reason: &str| errors.push(FieldError::new(field, reason));
        if spec.subjects.is_empty() || spec.subjects.len() > MOST {
            wrong("spec.subjects".into(), "must have 1 to 100 entries; put more people into a group");
        }
        for (key, subject) in &spec.subjects {
            let field = format!("spec.subjects.{key}");
            if key.is_empty() || key.contains('.') {
                wrong(field.clone(), "is no good name for an entry: leave out dots");
            }
            match (&subject.user, &subject.group, &subject.authenticator) {
                (Some(_), None, None) | (None, _, Some(_)) => {}
                (None, Some(_), None) => {
                    wrong(
                        format!("{field}.authenticator"),
                        "say whose group it is: that of which authenticator",
                    );
                }
                _ => wrong(field, "must have `user`; or `authenticator`, with or without `group`"),
            }
        }
        if spec.role.is_none() && spec.scopes.is_empty() {
            wrong("spec.role".into(), "says nothing: give a role, or `scopes`");
        }
        if spec.role.as_deref() == Some(OPERATOR) && !object.core.tenant.is_empty() {
            wrong("spec.role".into(), "is not a tenant's to give: operators bind it at `/v1/bindings`");
        }
        for (at, scope) in spec.scopes.iter().enumerate() {
            if let Err(reason) = Permission::parse(scope) {
                wrong(format!("spec.scopes.{at}"), &reason);
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
    use serde_json::{Value, json};

    use super::*;
    use crate::resources::testing::{complaints, fields};

    fn wrong(spec: Value) -> Vec<String> {
        let said = complaints::<Binding>(spec, &Facts::default());
        fields(&said).into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn it_says_who_and_what() {
        let with = |subject: Value| json!({"subjects": {"a": subject}, "role": "viewer"});
        assert_eq!(wrong(with(json!({"user": "usr_1"}))), [""; 0]);
        assert_eq!(wrong(with(json!({"authenticator": "corp"}))), [""; 0]);
        assert_eq!(wrong(with(json!({"group": "g"}))), ["spec.subjects.a.authenticator"]);
        assert_eq!(wrong(with(json!({}))), ["spec.subjects.a"]);
        assert_eq!(wrong(with(json!({"user": "usr_1", "group": "g"}))), ["spec.subjects.a"]);
        assert_eq!(wrong(json!({"subjects": {}})), ["spec.subjects", "spec.role"]);
        let operator = json!({"subjects": {"a": {"user": "u"}}, "role": "operator", "scopes": ["x"]});
        assert_eq!(wrong(operator), ["spec.role", "spec.scopes.0"]);
    }
}
