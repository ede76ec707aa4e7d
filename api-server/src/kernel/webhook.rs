//! Webhooks, the pure part: which entries of the log one wants, how a message is signed, when it is tried again.
//!
//! Messages are those of the Standard Webhooks specification: <https://www.standardwebhooks.com>.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The kind of this name has webhooks.
pub const KIND: &str = "webhook";
/// The prefix of its ids.
pub const PREFIX: &str = "wh";
/// How a secret begins.
pub const SECRET_PREFIX: &str = "whsec_";
/// How many bytes a secret may have.
pub const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// Which entries of the log are wanted: those that every filter lets pass; an empty one lets all pass.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WebhookEvents {
    /// On objects of these kinds.
    #[schema(max_items = 100)]
    pub kinds: Vec<String>,
    /// With these verbs: `create`, `stop`...
    #[schema(max_items = 100)]
    pub verbs: Vec<String>,
    /// Of these classes: `write`, `job`, `phase`, `denied`.
    #[schema(max_items = 100)]
    pub classes: Vec<String>,
    /// On objects that have all these tags when the entry is looked at.
    pub tags: BTreeMap<String, String>,
}

/// How patient deliveries are.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between the first try and the second.
    pub first_millis: i64,
    /// Between two tries at most.
    pub most_millis: i64,
    /// An entry is tried for so long.
    pub give_up_millis: i64,
    /// A webhook that fails for so long is disabled.
    pub disable_millis: i64,
}

impl Default for Pace {
    fn default() -> Pace {
        const HOUR: i64 = 3_600_000;
        Pace {
            first_millis: 5_000,
            most_millis: HOUR,
            give_up_millis: 24 * HOUR,
            disable_millis: 5 * 24 * HOUR,
        }
    }
}

impl Pace {
    /// How long to wait after so many failures, one after the other: twice as long each time, and between a half and
    /// all of it, so that many who failed together do not come back together.
    pub fn wait_millis(&self, failures: i64, random: u64) -> i64 {
        let doubled = 1_i64 << (failures.clamp(1, 41) - 1);
        let whole = self.first_millis.saturating_mul(doubled).min(self.most_millis);
        let half = whole / 2;
        half + i64::try_from(random % u64::try_from(half + 1).unwrap_or(1)).unwrap_or(0)
    }
}

impl WebhookEvents {
    /// Whether an entry is wanted, as far as it tells itself; the tags are those of the object.
    pub fn want(&self, class: &str, kind: &str, verb: &str) -> bool {
        let among = |list: &[String], word: &str| list.is_empty() || list.iter().any(|one| one == word);
        among(&self.classes, class) && among(&self.kinds, kind) && among(&self.verbs, verb)
    }

    /// Whether an object with these tags is meant.
    pub fn want_tags(&self, tags: &BTreeMap<String, String>) -> bool {
        self.tags.iter().all(|(key, value)| tags.get(key) == Some(value))
    }
}

/// The type of a message: `instance.create`, `instance.create.done`, `instance.phase.running`.
pub fn message_type(class: &str, kind: &str, verb: &str, outcome: &str, phase: &str) -> String {
    match class {
        "job" => format!("{kind}.{verb}.{outcome}"),
        "phase" => format!("{kind}.phase.{phase}"),
        "denied" => format!("{kind}.{verb}.denied"),
        _ => format!("{kind}.{verb}"),
    }
}

/// The id of the message with which a webhook is told of an entry: the same however often it is sent.
pub fn message_id(webhook: &str, seq: i64) -> String {
    let own = webhook.split_once('_').map_or(webhook, |(_, own)| own);
    format!("msg_{own}_{seq}")
}

/// The key in a secret; `None` if it is none.
pub fn key_of(secret: &str) -> Option<Vec<u8>> {
    let key = STANDARD.decode(secret.strip_prefix(SECRET_PREFIX)?).ok()?;
    SECRET_BYTES.contains(&key.len()).then_some(key)
}

/// A secret of these bytes.
pub fn secret_of(bytes: &[u8]) -> String {
    format!("{SECRET_PREFIX}{}", STANDARD.encode(bytes))
}

/// `webhook-signature`: of the id, the time and the body.
pub fn signature(key: &[u8], id: &str, seconds: i64, body: &[u8]) -> String {
    let mut signed = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    signed.update(format!("{id}.{seconds}.").as_bytes());
    signed.update(body);
    format!("v1,{}", STANDARD.encode(signed.sign()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example that implementations of Standard Webhooks are tested with.
    #[test]
    fn signs_as_the_specification_does() {
        let key = key_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signed = signature(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, br#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert_eq!(key_of("whsec_c2hvcnQ="), None);
        assert_eq!(key_of(&secret_of(&[7; 32])), Some(vec![7; 32]));
    }

    #[test]
    fn waits_twice_as_long_each_time_and_not_for_ever() {
        let pace = Pace::default();
        let longest =
            |failures: i64| (0..20_000).map(|dice| pace.wait_millis(failures, dice * 7919)).max().unwrap();
        let shortest =
            |failures: i64| (0..20_000).map(|dice| pace.wait_millis(failures, dice * 7919)).min().unwrap();
        assert!((2_500..2_600).contains(&shortest(1)) && (4_900..=5_000).contains(&longest(1)));
        assert!((9_900..=10_000).contains(&longest(2)) && longest(2) >= 2 * longest(1) - 200);
        for failures in [20, 41, 64, 1_000, i64::MAX] {
            assert!((1_800_000..=3_600_000).contains(&pace.wait_millis(failures, 12345)), "{failures}");
        }
    }

    #[test]
    fn every_filter_must_let_an_entry_pass() {
        let filter = |json: &str| serde_json::from_str::<WebhookEvents>(json).unwrap();
        assert!(filter("{}").want("job", "instance", "stop"));
        let some = filter(r#"{"kinds": ["instance", "disk"], "classes": ["job"], "tags": {"env": "prod"}}"#);
        assert!(some.want("job", "disk", "create") && !some.want("write", "disk", "create"));
        assert!(!some.want("job", "network", "create"));
        let tags = |env: &str| BTreeMap::from([("env".to_owned(), env.to_owned()), ("x".into(), "y".into())]);
        assert!(some.want_tags(&tags("prod")) && !some.want_tags(&tags("test")));
        assert!(!some.want_tags(&BTreeMap::new()));
    }
}
