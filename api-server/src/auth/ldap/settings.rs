//! How a directory is asked, as the configuration has it and as it was checked at start.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ldap3::{dn_escape, ldap_escape, parse_filter};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::Verifier;
use serde::Deserialize;
use url::{Host, Url};
use zeroize::Zeroizing;

/// As the configuration has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `ldaps://HOST`, or `ldap://HOST` with `start_tls`.
    url: String,
    /// The connection becomes an encrypted one before anything is said.
    #[serde(default)]
    start_tls: bool,
    /// Passwords may go over the wire as they are: for tests.
    #[serde(default)]
    plain: bool,
    /// PEM of the only authorities that are believed.
    ca: Option<PathBuf>,
    /// As whom people and groups are looked for; without it, as nobody.
    bind_dn: Option<String>,
    bind_password_file: Option<PathBuf>,
    /// Below this people are searched by `filter`.
    base: Option<String>,
    #[serde(default = "filter")]
    filter: String,
    /// Or: what their names are over there.
    user_dn: Option<String>,
    #[serde(default = "uid")]
    name_attribute: String,
    #[serde(default = "uuid")]
    subject_attribute: String,
    /// An attribute of people that names groups.
    member_of: Option<String>,
    /// Below this groups are searched by `group_filter`.
    group_base: Option<String>,
    #[serde(default = "group_filter")]
    group_filter: String,
    #[serde(default = "cn")]
    group_attribute: String,
    #[serde(default = "five")]
    timeout_seconds: u64,
    #[serde(default = "eight")]
    connections: usize,
    #[serde(default = "sixty")]
    cache_seconds: u64,
}

fn filter() -> String {
    "(uid={name})".into()
}

fn uid() -> String {
    "uid".into()
}

fn uuid() -> String {
    "entryUUID".into()
}

fn group_filter() -> String {
    "(member={dn})".into()
}

fn cn() -> String {
    "cn".into()
}

fn five() -> u64 {
    5
}

fn eight() -> usize {
    8
}

fn sixty() -> u64 {
    60
}

/// The same, checked.
pub struct Plan {
    /// Where it is.
    pub url: Url,
    /// Its name or address, without brackets.
    pub host: String,
    pub port: u16,
    pub start_tls: bool,
    /// `None`: nothing is encrypted.
    pub tls: Option<Arc<ClientConfig>>,
    /// As whom things are looked for.
    pub service: Option<(String, Zeroizing<String>)>,
    pub people: People,
    pub name_attribute: String,
    /// Empty: the name is all there is.
    pub subject_attribute: String,
    pub member_of: Option<String>,
    pub groups: Option<Groups>,
    pub time: Duration,
    pub connections: usize,
    /// For how long a password that was right is not asked for again.
    pub remembered: Duration,
}

/// How somebody's entry is found.
pub enum People {
    /// Looked for below this, by this filter.
    Searched { base: String, filter: String },
    /// Their name is a part of its name.
    Named(String),
}

/// How somebody's groups are found.
pub struct Groups {
    pub base: String,
    pub filter: String,
    /// That is what a group is called.
    pub attribute: String,
}

impl Settings {
    /// What is to be done; or the one thing that is wrong. `believed` are authorities besides those of the machine.
    pub fn check(self, believed: Option<&Path>) -> Result<Plan, String> {
        let (url, host) = self.place()?;
        let encrypted = url.scheme() == "ldaps" || self.start_tls;
        let tls = if encrypted { Some(tls(self.ca.as_deref(), believed)?) } else { None };
        let within = |key: &str, value: u64, most: u64| match (1..=most).contains(&value) {
            true => Ok(value),
            false => Err(format!("`{key}` must be 1 to {most}")),
        };
        let time = Duration::from_secs(within("timeout_seconds", self.timeout_seconds, 30)?);
        within("connections", self.connections as u64, 64)?;
        if self.cache_seconds > 300 {
            return Err(
                "`cache_seconds` must be at most 300: what is changed there must count here soon".into()
            );
        }
        if self.name_attribute.is_empty() || self.group_attribute.is_empty() {
            return Err("`name_attribute` and `group_attribute` must name an attribute".into());
        }
        let groups = match &self.group_base {
            None => None,
            Some(base) => {
                if !self.group_filter.contains("{dn}") && !self.group_filter.contains("{name}") {
                    return Err("`group_filter` must say whose groups: `{dn}` or `{name}` is missing".into());
                }
                good_filter("group_filter", &self.group_filter)?;
                let (filter, attribute) = (self.group_filter.clone(), self.group_attribute.clone());
                Some(Groups { base: base.clone(), filter, attribute })
            }
        };
        Ok(Plan {
            port: url.port().unwrap_or(if url.scheme() == "ldaps" { 636 } else { 389 }),
            url,
            host,
            start_tls: self.start_tls,
            tls,
            service: self.service()?,
            people: self.people()?,
            name_attribute: self.name_attribute,
            subject_attribute: self.subject_attribute,
            member_of: self.member_of,
            groups,
            time,
            connections: self.connections,
            remembered: Duration::from_secs(self.cache_seconds),
        })
    }

    fn place(&self) -> Result<(Url, String), String> {
        let bad = || {
            "`url` must be `ldaps://HOST[:PORT]` or `ldap://HOST[:PORT]`, without anything else".to_owned()
        };
        let url: Url = self.url.parse().map_err(|_| bad())?;
        let bare = url.username().is_empty() && url.password().is_none() && url.query().is_none();
        if !bare || !matches!(url.scheme(), "ldap" | "ldaps") || !matches!(url.path(), "" | "/") {
            return Err(bad());
        }
        let host = match url.host() {
            Some(Host::Ipv6(_)) => return Err("`url`: give a name or an IPv4 address".into()),
            Some(host) if !host.to_string().is_empty() => host.to_string(),
            _ => return Err(bad()),
        };
        match (url.scheme(), self.start_tls, self.plain) {
            ("ldaps", true, _) => Err("`start_tls` is for `ldap://`: `ldaps://` is encrypted anyhow".into()),
            ("ldap", false, false) => {
                Err("`url`: passwords would go unencrypted: say `ldaps://`, or `start_tls`".into())
            }
            _ => Ok((url, host)),
        }
    }

    fn service(&self) -> Result<Option<(String, Zeroizing<String>)>, String> {
        match (&self.bind_dn, &self.bind_password_file) {
            (None, None) => Ok(None),
            (Some(dn), Some(_)) if dn.is_empty() => {
                Err("`bind_dn` is empty: leave it out to look for people as nobody".into())
            }
            (Some(dn), Some(file)) => {
                Ok(Some((dn.clone(), super::super::secret_in("bind_password_file", file)?)))
            }
            _ => Err("`bind_dn` and `bind_password_file` belong together".into()),
        }
    }

    fn people(&self) -> Result<People, String> {
        match (&self.base, &self.user_dn) {
            (Some(base), None) => {
                if !self.filter.contains("{name}") {
                    return Err("`filter` must say who is looked for: `{name}` is missing".into());
                }
                good_filter("filter", &self.filter)?;
                Ok(People::Searched { base: base.clone(), filter: self.filter.clone() })
            }
            (None, Some(dn)) if dn.contains("{name}") => Ok(People::Named(dn.clone())),
            (None, Some(_)) => Err("`user_dn` must say whose it is: `{name}` is missing".into()),
            _ => Err("give `base`, below which people are searched, or `user_dn`, and not both".into()),
        }
    }
}

fn good_filter(key: &str, filter: &str) -> Result<(), String> {
    parse_filter(filled(filter, "x", "cn=x"))
        .map(drop)
        .map_err(|_| format!("`{key}` is no filter of LDAP (RFC 4515): `(uid={{name}})` is one"))
}

/// A filter with somebody's name and entry in it. Whatever they are, they stay values.
pub fn filled(filter: &str, name: &str, dn: &str) -> String {
    // In one pass: a name that looks like a placeholder is none.
    let mut all = String::with_capacity(filter.len() + name.len() + dn.len());
    let mut rest = filter;
    while let Some(at) = rest.find('{') {
        all.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("{name}") {
            all.push_str(&ldap_escape(name));
            rest = after;
        } else if let Some(after) = rest.strip_prefix("{dn}") {
            all.push_str(&ldap_escape(dn));
            rest = after;
        } else {
            all.push('{');
            rest = &rest[1..];
        }
    }
    all + rest
}

/// The name of an entry with somebody's name in it.
pub fn dn_of(template: &str, name: &str) -> String {
    template.replace("{name}", &dn_escape(name))
}

/// Believes the authorities in `ca` and nobody else; without it those of the machine, and `believed`.
fn tls(ca: Option<&Path>, believed: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match ca {
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for one in certificates("ca", path)? {
                roots.add(one).map_err(|error| format!("`ca`: {}: {error}", path.display()))?;
            }
            let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone());
            verifier.build().map_err(|error| format!("`ca`: {}: {error}", path.display()))?
        }
        None => {
            let more = believed.map(|path| certificates("auth.ca", path)).transpose()?.unwrap_or_default();
            let verifier = Verifier::new_with_extra_roots(more, provider.clone());
            Arc::new(verifier.map_err(|error| {
                format!("this machine believes no authority ({error}): name those of the directory in `ca`")
            })?)
        }
    };
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| error.to_string())?;
    Ok(Arc::new(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()))
}

fn certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let failed = |error: &dyn std::fmt::Display| format!("`{key}`: {}: {error}", path.display());
    let all: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).map_err(|error| failed(&error))?.collect();
    match all.map_err(|error| failed(&error))? {
        none if none.is_empty() => Err(failed(&"there is no certificate in it")),
        all => Ok(all),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn checked(more: Value) -> Result<Plan, String> {
        let mut all = json!({ "url": "ldap://127.0.0.1", "plain": true });
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value::<Settings>(all).unwrap().check(None)
    }

    #[test]
    fn what_is_wrong_is_said_with_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty.pem");
        std::fs::write(&empty, "").unwrap();
        for (more, wanted) in [
            (json!({}), "give `base`"),
            (json!({ "base": "o=x", "user_dn": "uid={name},o=x" }), "and not both"),
            (json!({ "user_dn": "uid=anna,o=x" }), "`user_dn` must say whose"),
            (json!({ "base": "o=x", "filter": "(uid=anna)" }), "`{name}` is missing"),
            (json!({ "base": "o=x", "filter": "(uid={name}" }), "`filter` is no filter"),
            (json!({ "base": "o=x", "group_base": "o=x", "group_filter": "(cn=*)" }), "`{dn}` or `{name}`"),
            (json!({ "base": "o=x", "plain": false }), "would go unencrypted"),
            (json!({ "base": "o=x", "url": "ldaps://x", "start_tls": true }), "is encrypted anyhow"),
            (json!({ "base": "o=x", "url": "http://x" }), "`url` must be"),
            (json!({ "base": "o=x", "url": "ldap://cn=a@x" }), "`url` must be"),
            (json!({ "base": "o=x", "url": "ldap://x/o=y" }), "`url` must be"),
            (json!({ "base": "o=x", "url": "ldap://[::1]" }), "give a name or an IPv4"),
            (json!({ "base": "o=x", "bind_dn": "cn=a" }), "belong together"),
            (json!({ "base": "o=x", "timeout_seconds": 0 }), "`timeout_seconds` must be 1 to 30"),
            (json!({ "base": "o=x", "connections": 0 }), "`connections` must be"),
            (json!({ "base": "o=x", "cache_seconds": 301 }), "`cache_seconds` must be"),
            (json!({ "base": "o=x", "start_tls": true, "ca": empty }), "there is no certificate in it"),
        ] {
            let error = checked(more).err().unwrap();
            assert!(error.contains(wanted), "{error}");
        }
        let plan = checked(json!({ "base": "o=x", "url": "ldap://ldap.example.com:1389" })).unwrap();
        assert_eq!((plan.host.as_str(), plan.port, plan.tls.is_none()), ("ldap.example.com", 1389, true));
    }

    #[test]
    fn a_name_stays_a_name() {
        let one = |name: &str| filled("(&(a=b)(uid={name}))", name, "");
        assert_eq!(one("anna"), "(&(a=b)(uid=anna))");
        assert_eq!(one("*"), "(&(a=b)(uid=\\2a))");
        assert_eq!(one("x)(|(uid=*"), "(&(a=b)(uid=x\\29\\28|\\28uid=\\2a))");
        assert_eq!(one("{dn}"), "(&(a=b)(uid={dn}))");
        assert_eq!(filled("(&(m={dn})(n={name}){x})", "{dn}", "o=(x)"), "(&(m=o=\\28x\\29)(n={dn}){x})");
        assert_eq!(dn_of("uid={name},o=x", "a,ou=admins"), "uid=a\\2cou\\3dadmins,o=x");
        assert_eq!(dn_of("uid={name},o=x", "a+cn=b"), "uid=a\\2bcn\\3db,o=x");
    }
}
