//! An SSH key: a public key that instances let in.
//!
//! Its life: there at once, never changes, cannot be deleted while an instance names it. Instances take its
//! text at their first boot.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;

use crate::kernel::{Change, Facts, FieldError, Held, Meta, NameRule, Object, Plan, Resource, Scope};

/// An SSH key.
pub struct SshKey;

/// Types that sshd still believes; `ssh-dss` is gone for good.
const TYPES: [&str; 7] = [
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

// === spec ===

/// A public key.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "public_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me@laptop"
}))]
pub struct SshKeySpec {
    /// One line as in `id_ed25519.pub`: type, key, and a comment if you like.
    #[schema(max_length = 16384)]
    pub public_key: String,
}

// === status ===

/// What the key is.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct SshKeyStatus {
    /// `ssh-ed25519`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub key_type: Option<String>,
    /// As `ssh-keygen -l` prints it: `SHA256:...`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
}

impl Resource for SshKey {
    const META: Meta = Meta {
        kind: "ssh-key",
        plural: "ssh-keys",
        prefix: "key",
        scope: Scope::Tenant,
        name: NameRule::Label,
        about: "A public key that instances let in",
        actions: &[],
        fields: &[("public_key", Change::Immutable)],
        held: Held::Never,
        private: &[],
    };
    type Spec = SshKeySpec;
    type Status = SshKeyStatus;

    // === validate ===

    fn validate(object: &Object<Self>, _facts: &Facts, _creating: bool) -> Vec<FieldError> {
        match parse(&object.spec.public_key) {
            Ok(_) => Vec::new(),
            Err(reason) => vec![FieldError::new("spec.public_key", reason)],
        }
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

    // === show ===

    fn show(object: &mut Object<Self>) {
        if let Ok((key_type, blob)) = parse(&object.spec.public_key) {
            let digest = STANDARD_NO_PAD.encode(Sha256::digest(&blob));
            object.status =
                SshKeyStatus { key_type: Some(key_type), fingerprint: Some(format!("SHA256:{digest}")) };
        }
    }
}

/// Type and bytes of a key, or why it is none.
fn parse(line: &str) -> Result<(String, Vec<u8>), String> {
    let line = line.trim_end_matches(['\n', '\r']);
    if line.contains("PRIVATE KEY") {
        return Err("this is a private key: keep it to yourself and send the .pub file".into());
    }
    if line.chars().any(char::is_control) {
        return Err("must be one line without control characters".into());
    }
    let mut words = line.splitn(3, ' ');
    let key_type = words.next().unwrap_or_default();
    if !TYPES.contains(&key_type) {
        return Err(format!("must begin with the key's type, one of {}; no options", TYPES.join(", ")));
    }
    let blob = STANDARD.decode(words.next().unwrap_or_default()).map_err(|_| {
        "the word after the type is not base64: copy the whole line of the .pub file".to_owned()
    })?;
    let parts = strings(&blob).ok_or("the key is cut short: copy the whole line of the .pub file")?;
    if parts.first() != Some(&key_type.as_bytes()) {
        return Err(format!("says it is {key_type}, but the key within is of another type"));
    }
    let complete = match key_type {
        "ssh-ed25519" => parts.len() == 2 && parts[1].len() == 32,
        _ => parts.len() >= 3,
    };
    if !complete {
        return Err(format!("is no {key_type} key: copy the whole line of the .pub file"));
    }
    Ok((key_type.to_owned(), blob))
}

/// The strings of RFC 4251 that a blob is made of, if it is made of whole ones.
fn strings(mut blob: &[u8]) -> Option<Vec<&[u8]>> {
    let mut parts = Vec::new();
    while !blob.is_empty() {
        let (length, rest) = blob.split_first_chunk::<4>()?;
        let (part, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        parts.push(part);
        blob = rest;
    }
    Some(parts)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resources::testing::{complaints, object};

    const GOOD: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";

    fn why(key: &str) -> String {
        let said = complaints::<SshKey>(json!({"public_key": key}), &Facts::default());
        said.first().map(|error| error.reason.clone()).unwrap_or_default()
    }

    #[test]
    fn good_keys_are_taken() {
        assert_eq!(why(&format!("ssh-ed25519 {GOOD}")), "");
        assert_eq!(why(&format!("ssh-ed25519 {GOOD} a comment of words\n")), "");
    }

    #[test]
    fn bad_keys_are_refused_with_the_way_out() {
        assert!(why("").contains("must begin with"));
        assert!(why(&format!("command=\"ls\" ssh-ed25519 {GOOD}")).contains("no options"));
        assert!(why("ssh-ed25519 ???").contains("not base64"));
        assert!(why(&format!("ssh-ed25519 {}", &GOOD[..60])).contains("cut short"));
        assert!(why(&format!("ssh-rsa {GOOD}")).contains("another type"));
        assert!(why(&format!("ssh-ed25519 {GOOD}\nssh-ed25519 {GOOD}")).contains("one line"));
        assert!(why("-----BEGIN OPENSSH PRIVATE KEY-----").contains("private key"));
    }

    #[test]
    fn the_fingerprint_is_shown() {
        let mut key = object::<SshKey>(json!({"public_key": format!("ssh-ed25519 {GOOD} me")}));
        SshKey::show(&mut key);
        assert_eq!(key.status.key_type.as_deref(), Some("ssh-ed25519"));
        let fingerprint = key.status.fingerprint.unwrap();
        assert_eq!(fingerprint.len(), "SHA256:".len() + 43, "{fingerprint}");
    }
}
