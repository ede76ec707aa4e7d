//! Operators' tokens from the configuration, each with a name. The configuration holds their hashes only, so whoever
//! reads it cannot use it. They are long and drawn by lot: a plain SHA-256 is enough.

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{Authenticator, RequestDetails, Verdict, header};
use crate::kernel::{Caller, Env, Timestamp};

/// As the configuration has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    tokens: Vec<Entry>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// For history.
    name: String,
    /// Of the token, in hex.
    sha256: String,
    /// Not good any more from then on.
    expires_at: Option<Timestamp>,
}

/// Knows operators by configured tokens.
pub struct Tokens {
    authenticator: String,
    env: Env,
    by_digest: BTreeMap<[u8; 32], (String, Option<Timestamp>)>,
}

impl Tokens {
    /// Those of the configuration; or the one thing that is wrong with them.
    pub fn new(authenticator: &str, settings: Settings, env: &Env) -> Result<Tokens, String> {
        let mut by_digest = BTreeMap::new();
        if settings.tokens.is_empty() {
            return Err("`tokens` is empty: give at least one `{\"name\", \"sha256\"}`".into());
        }
        for Entry { name, sha256, expires_at } in settings.tokens {
            if name.is_empty() || name.len() > 63 || name.chars().any(char::is_control) {
                return Err("`tokens[].name` must be 1 to 63 printable characters".into());
            }
            let digest = digest(&sha256).ok_or_else(|| {
                format!("`sha256` of the token `{name}` must be 64 hex digits: `printf %s TOKEN | sha256sum`")
            })?;
            if digest == <[u8; 32]>::from(Sha256::digest("")) {
                return Err(format!("`sha256` of the token `{name}` is that of nothing at all"));
            }
            if let Some((other, _)) = by_digest.insert(digest, (name.clone(), expires_at)) {
                return Err(format!("the tokens `{other}` and `{name}` are the same"));
            }
        }
        Ok(Tokens { authenticator: authenticator.to_owned(), env: env.clone(), by_digest })
    }

    fn verdict(&self, header: Option<&str>) -> Verdict {
        let Some(token) = header::bearer(header) else { return Verdict::NotMine };
        // Looked up by its hash: how long that takes says nothing of any token.
        let digest: [u8; 32] = Sha256::digest(token).into();
        let Some((name, expires_at)) = self.by_digest.get(&digest) else { return Verdict::NotMine };
        let mut caller = Caller::operator(name, format!("{}/{name}", self.authenticator));
        caller.authenticator.clone_from(&self.authenticator);
        caller.subject.clone_from(name);
        if expires_at.is_some_and(|end| end <= self.env.now()) {
            let why = format!("the operator token `{name}` has expired: ask for a new one");
            return Verdict::RefusedKnown(caller, why);
        }
        Verdict::Caller(caller)
    }
}

impl Authenticator for Tokens {
    /// Operators come by the server's own domain.
    fn serves(&self, domain: Option<&str>) -> bool {
        domain.is_none()
    }

    fn authenticate<'a>(&'a self, header: Option<&'a str>, _: &'a RequestDetails) -> BoxFuture<'a, Verdict> {
        Box::pin(std::future::ready(self.verdict(header)))
    }
}

fn digest(hex: &str) -> Option<[u8; 32]> {
    if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(0..32) {
        *byte = u8::from_str_radix(&hex[2 * pair..2 * pair + 2], 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::{Watch, env};
    use super::*;

    fn hex(token: &str) -> String {
        Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn made(tokens: serde_json::Value, watch: &Watch) -> Result<Tokens, String> {
        Tokens::new("ops", serde_json::from_value(json!({ "tokens": tokens })).unwrap(), &env(watch))
    }

    #[test]
    fn each_has_its_name_and_its_end() {
        let watch = Watch::default();
        let end = env(&watch).now().plus_seconds(60);
        let list = json!([{ "name": "ci", "sha256": hex("one") }, { "name": "eve", "sha256": hex("two"), "expires_at": end }]);
        let tokens = made(list, &watch).unwrap();
        assert!(
            matches!(tokens.verdict(Some("Bearer one")), Verdict::Caller(c) if c.operator && c.name == "ci" && c.credential == "ops/ci")
        );
        assert!(matches!(tokens.verdict(Some("Bearer two")), Verdict::Caller(_)));
        watch.pass(60);
        assert!(matches!(tokens.verdict(Some("Bearer two")), Verdict::RefusedKnown(c, _) if c.name == "eve"));
        for other in [None, Some("Bearer three"), Some("Basic b25lOm9uZQ=="), Some("Bearer ")] {
            assert_eq!(tokens.verdict(other), Verdict::NotMine);
        }
    }

    #[test]
    fn what_is_no_hash_is_said() {
        let watch = Watch::default();
        for (list, wanted) in [
            (json!([]), "`tokens` is empty"),
            (json!([{ "name": "", "sha256": hex("a") }]), "`tokens[].name`"),
            (json!([{ "name": "a", "sha256": "plain" }]), "must be 64 hex digits"),
            (json!([{ "name": "a", "sha256": hex("") }]), "nothing at all"),
            (
                json!([{ "name": "a", "sha256": hex("x") }, { "name": "b", "sha256": hex("x") }]),
                "are the same",
            ),
        ] {
            let error = made(list, &watch).err().unwrap();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
