//! What is shown to whoever connects: the server's own certificate, and on the domain of a tenant that tenant's.
//!
//! That one is the one that was given with the domain, or one that our own authority makes. It is made when it is first
//! asked for, kept for a bounded number of domains, and made anew when the tenant, or the authority, is another.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use rhyzome_pki::{Authority, Identity, ServerCertificate, rest_server_config, rest_server_config_asking};
use rustls::ServerConfig;
use tokio::time::Instant;

use crate::auth::Authenticators;
use crate::store::{ApiDomain, Store};

/// So many domains have theirs ready.
const MOST: usize = 1000;
/// Those that we make live for 30 days; one that is older than this is made anew when it is asked for.
const FRESH: Duration = Duration::from_secs(24 * 3600);

/// What is shown, by the name that is asked for.
pub struct Certificates {
    own: Arc<ServerConfig>,
    tenants: Option<Tenants>,
}

/// What is needed for that of tenants.
pub struct Tenants {
    store: Store,
    authority: Arc<Authority>,
    known: Authenticators,
    ready: Mutex<HashMap<String, Ready>>,
    /// Held by who makes one.
    making: tokio::sync::Mutex<()>,
}

struct Ready {
    of: Arc<ApiDomain>,
    /// Whose key signed it, and when, if that was ours.
    ours: Option<(String, Duration)>,
    used: Instant,
    config: Arc<ServerConfig>,
}

// === impl Certificates ===

impl Certificates {
    /// The same for all.
    pub fn of_server(own: Arc<ServerConfig>) -> Certificates {
        Certificates { own, tenants: None }
    }

    /// That of each tenant on its domain.
    pub fn with_tenants(self, tenants: Tenants) -> Certificates {
        Certificates { tenants: Some(tenants), ..self }
    }

    /// What whoever asks for this name is shown.
    pub async fn shown_to(&self, name: Option<&str>) -> anyhow::Result<Arc<ServerConfig>> {
        match (name, &self.tenants) {
            (Some(name), Some(tenants)) => match tenants.known.domains().of(name) {
                Some(of) => tenants.shown_on(&of).await,
                None => Ok(self.own.clone()),
            },
            _ => Ok(self.own.clone()),
        }
    }
}

// === impl Tenants ===

impl Tenants {
    /// Those of this store, whose domains `known` knows.
    pub fn new(store: Store, authority: Arc<Authority>, known: Authenticators) -> Tenants {
        Tenants { store, authority, known, ready: Mutex::default(), making: tokio::sync::Mutex::default() }
    }

    async fn shown_on(&self, of: &Arc<ApiDomain>) -> anyhow::Result<Arc<ServerConfig>> {
        if let Some(config) = self.ready(of) {
            return Ok(config);
        }
        let _one = self.making.lock().await;
        if let Some(config) = self.ready(of) {
            return Ok(config);
        }
        let issuer = self.authority.issuer_key();
        let (identity, ours) = match self.store.api_certificate(&of.id).await? {
            Some((certificate, key)) => (Identity::from_pem(&certificate, key.reveal())?, None),
            None => {
                let now = self.store.env().now().into();
                let made = self.authority.issue_server(std::slice::from_ref(&of.domain), now)?;
                (made, Some((issuer, self.store.env().uptime())))
            }
        };
        let shown = ServerCertificate::new(&identity)?;
        let config = match self.known.wants_certificates(Some(&of.tenant)) {
            None => rest_server_config(shown),
            Some(authorities) => rest_server_config_asking(shown, authorities),
        }
        .with_context(|| format!("what is shown on {}", of.domain))?;
        let mut ready = self.lock();
        if ready.len() >= MOST && !ready.contains_key(&of.domain) {
            let oldest = ready.iter().min_by_key(|(_, one)| one.used).map(|(domain, _)| domain.clone());
            oldest.iter().for_each(|domain| drop(ready.remove(domain)));
        }
        let one = Ready { of: of.clone(), ours, used: Instant::now(), config: config.clone() };
        ready.insert(of.domain.clone(), one);
        Ok(config)
    }

    /// What was made before, if it still is what is to be shown.
    fn ready(&self, of: &Arc<ApiDomain>) -> Option<Arc<ServerConfig>> {
        let mut ready = self.lock();
        let one = ready.get_mut(&of.domain).filter(|one| one.of == *of)?;
        if let Some((issuer, made)) = &one.ours
            && (self.store.env().uptime() >= *made + FRESH || *issuer != self.authority.issuer_key())
        {
            return None;
        }
        one.used = Instant::now();
        Some(one.config.clone())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Ready>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
