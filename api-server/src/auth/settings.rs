//! `auth` of the configuration, and the authenticators that are made of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::person::{Operators, Terms};
use super::{Authenticator, Sessions, certificate, external, htpasswd, ldap, oidc, tokens};
use crate::kernel::caller::SecondFactor;
use crate::kernel::{Env, NameRule, name};
use crate::outbound::Outbound;

/// As the file has it: each entry is read by itself, so that an error can name it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuthFile {
    /// Ranges that authenticators may call besides those of `outbound.allow`.
    pub allow: Vec<IpNet>,
    /// PEM of authorities that authenticators believe besides those of the machine.
    pub ca: Option<PathBuf>,
    authenticators: Vec<Map<String, Value>>,
}

/// What is configured.
#[derive(Clone, Debug, Default)]
pub struct AuthConfig {
    /// Ranges that authenticators may call besides those of `outbound.allow`.
    pub allow: Vec<IpNet>,
    /// PEM of authorities that authenticators believe besides those of the machine.
    pub ca: Option<PathBuf>,
    /// In the order in which they are asked.
    pub authenticators: Vec<Configured>,
}

/// One of them.
#[derive(Clone, Debug)]
pub struct Configured {
    /// The settings that all have.
    terms: Terms,
    what: What,
}

/// The settings of its own.
#[derive(Clone, Debug)]
enum What {
    Tokens(tokens::Settings),
    Htpasswd(htpasswd::Settings),
    Ldap(Box<ldap::Settings>),
    Certificate(certificate::Settings),
    External(external::Settings),
    Oidc(oidc::Settings),
}

/// Every `type` that there is.
const TYPES: &str = "tokens, htpasswd, ldap, certificate, external, oidc";

impl AuthFile {
    /// Reads each entry. An error names the key.
    pub fn resolve(self) -> Result<AuthConfig, String> {
        let mut authenticators: Vec<Configured> = Vec::new();
        for (index, entry) in self.authenticators.into_iter().enumerate() {
            let one = entry_of(entry).map_err(|why| format!("`auth.authenticators[{index}]`: {why}"))?;
            if authenticators.iter().any(|other| other.terms.authenticator == one.terms.authenticator) {
                let name = one.terms.authenticator;
                return Err(format!("`auth.authenticators[{index}]`: there are two of the name `{name}`"));
            }
            authenticators.push(one);
        }
        Ok(AuthConfig { allow: self.allow, ca: self.ca, authenticators })
    }
}

fn entry_of(mut entry: Map<String, Value>) -> Result<Configured, String> {
    let kind: String =
        taken(&mut entry, "type")?.ok_or_else(|| format!("`type` is missing; there are {TYPES}"))?;
    let authenticator: String = taken(&mut entry, "name")?.unwrap_or_else(|| kind.clone());
    if let Some(why) = name::refuse(&authenticator, NameRule::Label) {
        return Err(format!("`name`: {why}"));
    }
    let tenant: Option<String> = taken(&mut entry, "tenant")?;
    if let Some(why) = tenant.as_ref().and_then(|tenant| name::refuse(tenant, NameRule::Alphanumeric)) {
        return Err(format!("`tenant`: {why}"));
    }
    let terms = Terms {
        authenticator,
        tenant,
        operators: taken::<Operators>(&mut entry, "operators")?.unwrap_or_default(),
        groups: taken::<BTreeMap<String, String>>(&mut entry, "groups")?.unwrap_or_default(),
        second_factor: second_factor(&mut entry, &kind)?,
    };
    if terms.tenant.is_some() && terms.operators != Operators::default() {
        return Err(
            "`tenant` and `operators` exclude each other: who is known in one tenant only is no operator"
                .into(),
        );
    }
    if kind == "tokens" && (terms.tenant.is_some() || terms.operators != Operators::default()) {
        return Err(
            "`tenant` and `operators` mean nothing here: whoever has one of these tokens is an operator"
                .into(),
        );
    }
    let what = match kind.as_str() {
        "tokens" => What::Tokens(rest(entry)?),
        "htpasswd" => What::Htpasswd(rest(entry)?),
        "ldap" => What::Ldap(Box::new(rest(entry)?)),
        "certificate" => What::Certificate(rest(entry)?),
        "external" => What::External(rest(entry)?),
        "oidc" => What::Oidc(rest(entry)?),
        other => return Err(format!("`type`: there is no `{other}`; there are {TYPES}")),
    };
    Ok(Configured { terms, what })
}

/// Whether passwords alone are enough, where there are any.
fn second_factor(entry: &mut Map<String, Value>, kind: &str) -> Result<SecondFactor, String> {
    let said: Option<String> = taken(entry, "second_factor")?;
    match said.as_deref() {
        None => Ok(SecondFactor::default()),
        Some(_) if !matches!(kind, "htpasswd" | "ldap") => {
            Err("`second_factor` means nothing here: there are no passwords".into())
        }
        Some("if-enrolled") => Ok(SecondFactor::IfEnrolled),
        Some("required") => Ok(SecondFactor::Required),
        Some(_) => Err("`second_factor` must be `if-enrolled` or `required`".into()),
    }
}

fn taken<T: DeserializeOwned>(entry: &mut Map<String, Value>, key: &str) -> Result<Option<T>, String> {
    let Some(value) = entry.remove(key) else { return Ok(None) };
    serde_json::from_value(value).map(Some).map_err(|error| format!("`{key}`: {error}"))
}

fn rest<T: DeserializeOwned>(entry: Map<String, Value>) -> Result<T, String> {
    serde_json::from_value(Value::Object(entry)).map_err(|error| error.to_string())
}

impl AuthConfig {
    /// Makes them. An error names the one that it is about.
    pub fn make(
        &self,
        env: &Env,
        outbound: &Arc<Outbound>,
        sessions: &Arc<Sessions>,
    ) -> Result<Vec<Arc<dyn Authenticator>>, String> {
        self.authenticators.iter().map(|one| one.make(env, outbound, sessions, self.ca.as_deref())).collect()
    }

    /// Whether one is called so.
    pub fn has(&self, begins: &str) -> bool {
        self.authenticators.iter().any(|one| one.terms.authenticator.starts_with(begins))
    }
}

impl Configured {
    fn make(
        &self,
        env: &Env,
        outbound: &Arc<Outbound>,
        sessions: &Arc<Sessions>,
        believed: Option<&Path>,
    ) -> Result<Arc<dyn Authenticator>, String> {
        let terms = self.terms.clone();
        let named = |why: String| format!("the authenticator `{}`: {why}", self.terms.authenticator);
        Ok(match self.what.clone() {
            What::Tokens(settings) => {
                Arc::new(tokens::Tokens::new(&terms.authenticator, settings, env).map_err(named)?)
            }
            What::Htpasswd(settings) => {
                Arc::new(htpasswd::Htpasswd::new(terms, settings, env).map_err(named)?)
            }
            What::Ldap(settings) => {
                let made = ldap::Directories::new(terms, *settings, outbound.clone(), believed, env);
                Arc::new(made.map_err(named)?)
            }
            What::Certificate(settings) => {
                Arc::new(certificate::Certificates::new(terms, settings, env).map_err(named)?)
            }
            What::External(settings) => {
                Arc::new(external::External::new(terms, settings, outbound.clone(), env).map_err(named)?)
            }
            What::Oidc(settings) => {
                let (outbound, sessions) = (outbound.clone(), sessions.clone());
                Arc::new(oidc::Oidc::new(terms, settings, outbound, sessions, env).map_err(named)?)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn resolved(list: Value) -> Result<AuthConfig, String> {
        serde_json::from_value::<AuthFile>(json!({ "authenticators": list })).unwrap().resolve()
    }

    #[test]
    fn an_error_names_the_entry_and_the_key() {
        let twice = json!({ "type": "htpasswd", "file": "x" });
        for (list, wanted) in [
            (json!([{}]), "`auth.authenticators[0]`: `type` is missing; there are tokens"),
            (json!([twice, { "type": "ldapp" }]), "`auth.authenticators[1]`: `type`: there is no `ldapp`"),
            (json!([twice, twice]), "there are two of the name `htpasswd`"),
            (json!([{ "type": "htpasswd" }]), "missing field `file`"),
            (json!([{ "type": "htpasswd", "file": "x", "fiel": 1 }]), "unknown field `fiel`"),
            (json!([{ "type": "htpasswd", "file": "x", "name": "No name" }]), "`name`: "),
            (json!([{ "type": "htpasswd", "file": "x", "operators": ["anna"] }]), "`operators`: "),
            (
                json!([{ "type": "htpasswd", "file": "x", "tenant": "acme", "operators": { "names": ["anna"] } }]),
                "exclude each other",
            ),
            (json!([{ "type": "tokens", "tokens": [], "tenant": "acme" }]), "mean nothing here"),
            (json!([{ "type": "htpasswd", "file": "x", "second_factor": true }]), "`second_factor`: "),
            (json!([{ "type": "htpasswd", "file": "x", "second_factor": "maybe" }]), "or `required`"),
            (
                json!([{ "type": "external", "url": "https://x", "second_factor": "required" }]),
                "means nothing here",
            ),
        ] {
            let error = resolved(list).unwrap_err();
            assert!(error.contains(wanted), "{error}");
        }
        assert_eq!(
            resolved(json!([twice, { "type": "external", "url": "https://x" }]))
                .unwrap()
                .authenticators
                .len(),
            2
        );
    }
}
