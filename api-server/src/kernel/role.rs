//! Permissions (`instance:create`), and the roles that everybody finds there already. Pure.

use std::fmt;

/// All kinds, or all verbs.
pub const ANY: &str = "*";

/// What is no kind of object, but can be looked at or asked for: jobs, events, the audit, quotas, who signs for SSH.
pub const VIEWS: [&str; 5] = ["job", "event", "audit", "quota", "ssh-ca"];

/// Kinds that say who may do what.
pub const RIGHTS: [&str; 3] = ["member", "role", "binding"];

/// Kinds of which everybody manages what they have made.
pub const OWNED: [&str; 2] = ["ssh-key", "token"];

/// Operators' kinds whose objects nobody else may name in a spec: whether there is one is theirs to know.
pub const STAFF: [&str; 2] = ["node", "tenant"];

/// What may be done with objects of a kind: `kind:verb`, either of them `*`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Permission {
    /// `instance`, or `*`.
    pub kind: String,
    /// `create`, or `*`.
    pub verb: String,
}

/// A role that is always there.
#[derive(Clone, Copy, Debug)]
pub struct Bundle {
    /// `editor`.
    pub name: &'static str,
    /// One line.
    pub about: &'static str,
    /// What it gives.
    pub scopes: &'static [&'static str],
    /// What it does not give all the same.
    pub except: &'static [&'static str],
}

/// What a member has of whom nothing else is said.
pub const DEFAULT: &str = "editor";
/// The role without which a tenant is nobody's.
pub const OWNER: &str = "owner";
/// The role that operators give each other; in a tenant it cannot be given.
pub const OPERATOR: &str = "operator";

/// All of them.
pub const BUNDLES: [Bundle; 5] = [
    Bundle {
        name: OWNER,
        about: "Everything in the tenant, and who else may do what there",
        scopes: &["*:*"],
        except: &[],
    },
    Bundle {
        name: DEFAULT,
        about: "Everything with the tenant's objects, but not who may do what",
        scopes: &["*:*"],
        except: &[
            "member:create",
            "member:update",
            "member:delete",
            "role:create",
            "role:update",
            "role:delete",
            "binding:create",
            "binding:update",
            "binding:delete",
        ],
    },
    Bundle {
        name: "viewer",
        about: "Look at everything in the tenant, change nothing",
        scopes: &["*:get", "*:list", "event:watch"],
        except: &[],
    },
    Bundle {
        name: "billing",
        about: "See what the tenant uses and may use, and nothing else",
        scopes: &["quota:get"],
        except: &[],
    },
    Bundle { name: OPERATOR, about: "Everything everywhere", scopes: &["*:*"], except: &[] },
];

/// The built-in role of this name.
pub fn bundle(name: &str) -> Option<&'static Bundle> {
    BUNDLES.iter().find(|bundle| bundle.name == name)
}

// === impl Permission ===

impl Permission {
    /// From `kind:verb`, or what is wrong with it.
    pub fn parse(text: &str) -> Result<Permission, String> {
        let word = |word: &str| {
            word == ANY
                || (!word.is_empty()
                    && word.len() <= 63
                    && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'))
        };
        match text.split_once(':') {
            Some((kind, verb)) if word(kind) && word(verb) => {
                Ok(Permission { kind: kind.to_owned(), verb: verb.to_owned() })
            }
            _ => Err(format!(
                "`{}` is no permission: write KIND:VERB such as `instance:create`, `*` for all of either",
                text.chars().take(80).collect::<String>()
            )),
        }
    }

    /// Of texts that were looked at before; others mean nothing.
    pub fn all<'a>(texts: impl IntoIterator<Item = &'a str>) -> Vec<Permission> {
        texts.into_iter().filter_map(|text| Permission::parse(text).ok()).collect()
    }

    /// Whether this is one of those that it stands for.
    pub fn matches(&self, kind: &str, verb: &str) -> bool {
        (self.kind == ANY || self.kind == kind) && (self.verb == ANY || self.verb == verb)
    }

    /// Whether it stands for all that the other stands for.
    pub fn covers(&self, other: &Permission) -> bool {
        self.matches(&other.kind, &other.verb)
    }

    /// Whether there is something that both stand for.
    pub fn meets(&self, other: &Permission) -> bool {
        let same = |a: &str, b: &str| a == ANY || b == ANY || a == b;
        same(&self.kind, &other.kind) && same(&self.verb, &other.verb)
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.verb)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Permission {
        Permission::parse(text).unwrap()
    }

    #[test]
    fn a_permission_is_a_kind_and_a_verb() {
        assert!(one("*:get").matches("disk", "get") && !one("*:get").matches("disk", "list"));
        assert!(one("disk:*").covers(&one("disk:get")) && !one("disk:get").covers(&one("disk:*")));
        assert!(one("disk:*").meets(&one("*:get")) && !one("disk:get").meets(&one("*:list")));
        for bad in ["", "disk", "disk:", ":get", "disk:get:x", "Disk:get", "disk: get", "**:get"] {
            assert!(Permission::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_built_in_can_be_read() {
        for bundle in BUNDLES {
            for scope in bundle.scopes.iter().chain(bundle.except) {
                assert_eq!(one(scope).to_string(), *scope);
            }
        }
        for kind in RIGHTS {
            for verb in ["create", "update", "delete"] {
                let editor = bundle(DEFAULT).unwrap();
                assert!(editor.except.contains(&format!("{kind}:{verb}").as_str()), "{kind}:{verb}");
            }
        }
    }
}
