//! A webhook: where to tell of what happens, as it happens.
//!
//! Its life: there at once; tells of every entry of the log that comes from then on and that it wants, in their
//! order; is disabled when nobody has listened for days. What it does is in `webhooks/`.

use serde::{Deserialize, Serialize};
use url::Url;
use utoipa::ToSchema;

use crate::kernel::secret::{self, Made, Plain};
use crate::kernel::webhook::{KIND, PREFIX, SECRET_BYTES, WebhookEvents, key_of, secret_of};
use crate::kernel::{Facts, FieldError, Held, Meta, NameRule, Object, Plan, Resource, Scope, Timestamp};

/// A webhook.
pub struct Webhook;

// === spec ===

/// Where to tell of what.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "url": "https://hooks.example.com/rhyzome", "events": {"kinds": ["instance"], "classes": ["job"]},
    "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
}))]
pub struct WebhookSpec {
    /// Called by POST. `https`, unless operators allow `http`; without user and password.
    #[schema(max_length = 2048)]
    pub url: String,
    /// What it is told of; all that happens in its tenant if nothing is said.
    #[serde(default)]
    pub events: WebhookEvents,
    /// Signs each message: `whsec_` and 24 to 64 bytes in base64. Made, and shown once, if none is given; take it away
    /// (null) and another is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(write_only, max_length = 100)]
    pub secret: Option<String>,
    /// False: nothing is sent, and nothing is kept to be sent later.
    #[serde(default = "yes")]
    #[schema(default = true)]
    pub enabled: bool,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 1000)]
    pub description: Option<String>,
}

fn yes() -> bool {
    true
}

// === status ===

/// How it went.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct WebhookStatus {
    /// When the last message was taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub delivered_at: Option<Timestamp>,
    /// Since when no message was taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub failing_since: Option<Timestamp>,
    /// Tries that failed since then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failures: Option<u64>,
    /// Why the last try failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Why it was disabled by the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disabled: Option<String>,
    /// Entries before this one were not kept long enough to be delivered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missed_before: Option<i64>,
}

impl Resource for Webhook {
    const META: Meta = Meta {
        kind: KIND,
        plural: "webhooks",
        prefix: PREFIX,
        scope: Scope::Apart,
        name: NameRule::Label,
        about: "Where to tell of what happens, as it happens",
        actions: &[],
        fields: &[],
        held: Held::Never,
        private: &[],
    };
    type Spec = WebhookSpec;
    type Status = WebhookStatus;

    // === validate ===

    fn validate(object: &Object<Self>, _facts: &Facts, _creating: bool) -> Vec<FieldError> {
        let spec = &object.spec;
        let mut errors: Vec<FieldError> =
            refuse(&spec.url).map(|reason| FieldError::new("spec.url", reason)).into_iter().collect();
        if spec.secret.as_ref().is_some_and(|given| secret::id_of(given).is_none() && key_of(given).is_none())
        {
            let (least, most) = (SECRET_BYTES.start(), SECRET_BYTES.end());
            let reason = format!(
                "must be `whsec_` and {least} to {most} random bytes in base64; leave it out and one is made"
            );
            errors.push(FieldError::new("spec.secret", reason));
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

    fn make_secret(path: &str, random: [u8; 32]) -> Option<Made> {
        (path == "secret").then(|| Made::Shown(Plain::new(secret_of(&random))))
    }

    // === phase ===

    fn settled(object: &Object<Self>) -> &'static str {
        match (object.spec.enabled, object.status.failing_since) {
            (false, _) => "disabled",
            (true, Some(_)) => "failing",
            (true, None) => "ready",
        }
    }
}

/// Why this is no URL for a webhook; where it leads is judged by whoever calls it.
fn refuse(text: &str) -> Option<&'static str> {
    let Ok(url) = text.parse::<Url>() else {
        return Some("must be a URL such as https://hooks.example.com/rhyzome");
    };
    if !matches!(url.scheme(), "https" | "http") {
        return Some("must begin with https://");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Some(
            "must not hold a user or a password: messages are signed, and that proves where they come from",
        );
    }
    if url.fragment().is_some() {
        return Some("must not hold a fragment (`#`): it is never sent");
    }
    url.host_str().is_none_or(str::is_empty).then_some("must name a host")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resources::testing::{complaints, fields, stored_as};

    #[test]
    fn urls_are_judged() {
        for good in ["https://a.example/x?y=1", "http://a.example:8080", "https://[2606:4700::1]/"] {
            assert_eq!(refuse(good), None, "{good}");
        }
        for bad in [
            "",
            "a.example",
            "ftp://a.example",
            "https://u@a.example",
            "https://:p@a.example",
            "https://a.example#x",
            "https://",
        ] {
            assert!(refuse(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn a_secret_is_strong_or_none() {
        let said = |secret: &str| {
            complaints::<Webhook>(json!({"url": "https://a.example", "secret": secret}), &Facts::default())
        };
        assert_eq!(said("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"), []);
        assert_eq!(said(&secret::marker("sec_00000000000000000000000000")), []);
        for bad in ["", "password", "whsec_c2hvcnQ=", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"] {
            let told = said(bad);
            assert_eq!(fields(&told), ["spec.secret"], "{bad}");
            assert!(bad.is_empty() || !told[0].reason.contains(bad), "{bad}");
        }
        assert!(
            Webhook::make_secret("secret", [1; 32]).is_some()
                && Webhook::make_secret("url", [1; 32]).is_none()
        );
    }

    #[test]
    fn the_phase_tells_how_it_goes() {
        let hook = |enabled: bool, status| {
            let spec = json!({"url": "https://a.example", "enabled": enabled});
            Webhook::settled(&stored_as::<Webhook>(spec, json!({}), status))
        };
        assert_eq!(hook(true, json!(null)), "ready");
        assert_eq!(hook(true, json!({"failing_since": "2026-11-21T08:00:00Z"})), "failing");
        assert_eq!(hook(false, json!({"failing_since": "2026-11-21T08:00:00Z"})), "disabled");
    }
}
