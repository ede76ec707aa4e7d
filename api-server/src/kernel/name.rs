//! Names of resources, keys of tags and map entries.

use super::{Env, NameRule};

/// Words of the API, which nothing may be called.
pub const RESERVED: &[&str] =
    &["actions", "wait", "events", "revisions", "rendered", "access", "console", "content"];

/// What names look like, as a regular expression; words of the API are none either.
pub fn pattern(rule: NameRule) -> &'static str {
    match rule {
        NameRule::Alphanumeric => "^[a-z0-9]{1,63}$",
        NameRule::Label => "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
    }
}

/// Why a name is not one, or `None`.
pub fn refuse(name: &str, rule: NameRule) -> Option<String> {
    let within = !name.is_empty() && name.len() <= 63;
    match rule {
        NameRule::Alphanumeric => {
            let good = within && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
            (!good).then(|| "must be 1 to 63 of the letters a-z and digits".to_owned())
        }
        NameRule::Label => {
            let good = within
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && !name.starts_with('-')
                && !name.ends_with('-');
            if !good {
                return Some(
                    "must be 1 to 63 of the letters a-z, digits and hyphens, no hyphen at the ends"
                        .to_owned(),
                );
            }
            RESERVED.contains(&name).then(|| format!("`{name}` is a word of the API; choose another"))
        }
    }
}

/// A name for an object whose maker gave none: the kind and six letters, `instance-k3x9qa`.
pub fn generate(env: &Env, kind: &str, rule: NameRule) -> String {
    let mut name = match rule {
        NameRule::Label => format!("{kind}-"),
        NameRule::Alphanumeric => "t".to_owned(),
    };
    for _ in 0..6 {
        let digit = env.below(32) as usize;
        name.push(char::from(b"0123456789abcdefghjkmnpqrstvwxyz"[digit]));
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_tenants() {
        for good in ["a", "web-1", "0"] {
            assert_eq!(refuse(good, NameRule::Label), None, "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a b", "a_b", "wait", &"a".repeat(64)] {
            assert!(refuse(bad, NameRule::Label).is_some(), "{bad}");
        }
        assert_eq!(refuse("acme2", NameRule::Alphanumeric), None);
        assert!(refuse("acme-2", NameRule::Alphanumeric).is_some());
    }
}
