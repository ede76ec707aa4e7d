//! A user: somebody whom an authenticator knows.
//!
//! Its life: there at the first login, or made before by an operator, and then it waits for the first login under its
//! name. Cannot be deleted while a member or a binding names it. A user who is disabled is let in nowhere.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::kernel::{Change, Facts, FieldError, Held, Meta, NameRule, Object, Plan, Resource, Scope};

/// A user.
pub struct User;

// === spec ===

/// Who somebody is.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"username": "anna", "authenticator": "corp"}))]
pub struct UserSpec {
    /// What they are called where they log in.
    #[schema(min_length = 1, max_length = 200)]
    pub username: String,
    /// The configured name of the authenticator that knows them.
    #[schema(min_length = 1, max_length = 63)]
    pub authenticator: String,
    /// Who they are to it, whatever they are called. Left out: known at the first login under the username.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 200)]
    pub subject: Option<String>,
    /// They have rights in this tenant only, as users of a realm of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 63)]
    pub only_in: Option<String>,
    /// Lets them in nowhere, whatever they show.
    #[serde(default)]
    pub disabled: bool,
}

// === status ===

/// Nothing is reported of a user.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct UserStatus {}

impl Resource for User {
    const META: Meta = Meta {
        kind: "user",
        plural: "users",
        prefix: "usr",
        scope: Scope::Operator,
        name: NameRule::Label,
        about: "Somebody whom an authenticator knows",
        actions: &[],
        fields: &[
            ("username", Change::Immutable),
            ("authenticator", Change::Immutable),
            ("subject", Change::Immutable),
            ("only_in", Change::Immutable),
        ],
        held: Held::Never,
        private: &[],
    };
    type Spec = UserSpec;
    type Status = UserStatus;

    // === validate ===

    fn validate(object: &Object<Self>, _facts: &Facts, _creating: bool) -> Vec<FieldError> {
        let spec = &object.spec;
        let texts = [
            ("spec.username", Some(&spec.username), 200),
            ("spec.authenticator", Some(&spec.authenticator), 63),
            ("spec.subject", spec.subject.as_ref(), 200),
        ];
        let mut errors = Vec::new();
        for (field, text, most) in texts {
            let Some(text) = text else { continue };
            if text.is_empty() || text.len() > most || text.chars().any(char::is_control) {
                let reason = format!("must have 1 to {most} bytes, none of them control characters");
                errors.push(FieldError::new(field, reason));
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

    // === settled ===

    fn settled(object: &Object<Self>) -> &'static str {
        match &object.spec {
            spec if spec.disabled => "disabled",
            spec if spec.subject.is_none() => "awaited",
            _ => "ready",
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resources::testing::{complaints, fields, object};

    #[test]
    fn who_they_are_is_a_line_of_text() {
        let bad = json!({"username": "", "authenticator": "x".repeat(64), "subject": "a\u{7}b"});
        let said = complaints::<User>(bad, &Facts::default());
        assert_eq!(fields(&said), ["spec.username", "spec.authenticator", "spec.subject"]);
    }

    #[test]
    fn one_sees_who_has_never_been_there() {
        let user = |more: serde_json::Value| {
            let mut spec = json!({"username": "a", "authenticator": "corp"});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            User::settled(&object::<User>(spec))
        };
        assert_eq!(user(json!({})), "awaited");
        assert_eq!(user(json!({"subject": "1"})), "ready");
        assert_eq!(user(json!({"subject": "1", "disabled": true})), "disabled");
    }
}
