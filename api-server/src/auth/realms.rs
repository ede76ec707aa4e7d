//! People of tenants' own realms at one Keycloak: for each realm that counts for a tenant an authenticator, which is
//! there as long as the tenant has the realm. Which that is follows the store; here nothing is configured for a tenant.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use serde::Deserialize;

use super::oidc::{self, Oidc, claimed_issuer};
use super::person::Terms;
use super::{Authenticator, Domains, REALM, RequestDetails, Sessions, Verdict, header};
use crate::kernel::Env;
use crate::outbound::Outbound;

/// So many realms are ready.
const MOST: usize = 1000;

/// `keycloak` of the configuration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RealmsFile {
    url: Option<String>,
    client_id: Option<String>,
    client_secret_file: Option<PathBuf>,
    audience: Option<String>,
    login_client: Option<String>,
    api_url: Option<String>,
    http: bool,
}

/// Where the realms of tenants are.
#[derive(Clone, Debug)]
pub struct RealmsConfig {
    /// As tokens name it, and where it is called: `https://id.example.com`. No slash at its end.
    pub url: String,
    /// As which client of the realm `master` realms are made; left out: none are.
    pub maker: Option<(String, PathBuf)>,
    /// Whom tokens must be for.
    pub audience: String,
    /// The client with which people log in.
    pub login_client: String,
    /// Where the provider reaches this API, to tell of logouts.
    pub api_url: Option<String>,
    /// It may be called without TLS.
    pub http: bool,
}

impl RealmsFile {
    /// What is meant; or the one thing that is wrong.
    pub fn resolve(self) -> Result<Option<RealmsConfig>, String> {
        let Some(url) = self.url else {
            return match self.client_id.is_some() || self.client_secret_file.is_some() {
                true => Err("`keycloak.url` is missing".into()),
                false => Ok(None),
            };
        };
        let good = url.starts_with("https://") || (self.http && url.starts_with("http://"));
        if !good {
            return Err("`keycloak.url` must begin with https://, unless `keycloak.http` is true".into());
        }
        let maker = match (self.client_id, self.client_secret_file) {
            (Some(id), Some(file)) => Some((id, file)),
            (None, None) => None,
            _ => return Err("`keycloak.client_id` and `keycloak.client_secret_file` belong together".into()),
        };
        Ok(Some(RealmsConfig {
            url: url.trim_end_matches('/').to_owned(),
            maker,
            audience: self.audience.unwrap_or_else(|| "rhyzome".into()),
            login_client: self.login_client.unwrap_or_else(|| "rhyzome-cli".into()),
            api_url: self.api_url.map(|url| url.trim_end_matches('/').to_owned()),
            http: self.http,
        }))
    }
}

/// Knows whoever shows a token of a tenant's realm.
pub struct Realms {
    config: RealmsConfig,
    domains: Arc<Domains>,
    sessions: Arc<Sessions>,
    outbound: Arc<Outbound>,
    env: Env,
    ready: Mutex<Ready>,
}

#[derive(Default)]
struct Ready {
    /// By realm, each with the tenant that it is for, and when it was used.
    all: HashMap<String, (Arc<str>, u64, Arc<Oidc>)>,
    used: u64,
}

// === impl Realms ===

impl Realms {
    /// Those that these domains know.
    pub fn new(
        config: RealmsConfig,
        domains: Arc<Domains>,
        sessions: Arc<Sessions>,
        outbound: Arc<Outbound>,
        env: &Env,
    ) -> Realms {
        Realms { config, domains, sessions, outbound, env: env.clone(), ready: Mutex::default() }
    }

    /// The one of this realm, if it counts for a tenant.
    fn of_realm(&self, realm: &str) -> Option<(Arc<str>, Arc<Oidc>)> {
        let tenant = self.domains.of_realm(realm)?;
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        ready.used += 1;
        let used = ready.used;
        if let Some((of, last, one)) = ready.all.get_mut(realm)
            && *of == tenant
        {
            *last = used;
            return Some((tenant, one.clone()));
        }
        let one = Arc::new(self.make(realm, &tenant)?);
        if ready.all.len() >= MOST {
            let oldest =
                ready.all.iter().min_by_key(|(_, (_, used, _))| *used).map(|(realm, _)| realm.clone());
            oldest.iter().for_each(|realm| drop(ready.all.remove(realm)));
        }
        ready.all.insert(realm.to_owned(), (tenant.clone(), used, one.clone()));
        Some((tenant, one))
    }

    fn make(&self, realm: &str, tenant: &str) -> Option<Oidc> {
        let terms = Terms {
            authenticator: format!("{REALM}{tenant}"),
            tenant: Some(tenant.to_owned()),
            groups: BTreeMap::new(),
            ..Terms::default()
        };
        let RealmsConfig { url, audience, login_client, http, .. } = &self.config;
        let settings =
            oidc::Settings::of_realm(format!("{url}/realms/{realm}"), audience, login_client, *http);
        let made = Oidc::new(terms, settings, self.outbound.clone(), self.sessions.clone(), &self.env);
        made.inspect_err(|error| tracing::warn!(realm, error, "the tokens of a realm cannot be looked at"))
            .ok()
    }

    async fn verdict(&self, header: Option<&str>, request: &RequestDetails) -> Verdict {
        let issuer = header::bearer(header).and_then(claimed_issuer);
        let realm = issuer
            .as_deref()
            .and_then(|issuer| issuer.strip_prefix(self.config.url.as_str())?.strip_prefix("/realms/"));
        match realm.and_then(|realm| self.of_realm(realm)) {
            Some((tenant, one)) if request.domain.as_ref().is_none_or(|domain| *domain == tenant) => {
                one.authenticate(header, request).await
            }
            _ => Verdict::NotMine,
        }
    }
}

impl Authenticator for Realms {
    fn authenticate<'a>(
        &'a self,
        header: Option<&'a str>,
        request: &'a RequestDetails,
    ) -> BoxFuture<'a, Verdict> {
        Box::pin(self.verdict(header, request))
    }

    fn of_tenant(&self, tenant: &str) -> Option<Arc<dyn Authenticator>> {
        let (_, one) = self.of_realm(&self.domains.realm_of(tenant)?)?;
        Some(one)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn what_is_wrong_is_said_with_its_key() {
        let read = |file: Value| serde_json::from_value::<RealmsFile>(file).unwrap().resolve();
        assert!(read(json!({})).unwrap().is_none());
        let good = read(json!({ "url": "https://id.example/" })).unwrap().unwrap();
        assert_eq!((good.url.as_str(), good.maker), ("https://id.example", None));
        for (file, wanted) in [
            (json!({ "client_id": "x" }), "`keycloak.url` is missing"),
            (json!({ "url": "http://id.example" }), "must begin with https://"),
            (json!({ "url": "https://id.example", "client_id": "x" }), "belong together"),
        ] {
            let error = read(file).unwrap_err();
            assert!(error.contains(wanted), "{error}");
        }
        assert!(read(json!({ "url": "http://127.0.0.1:8080", "http": true })).unwrap().is_some());
    }
}
