//! By which domains which tenant is served, and whose realms count for it. Held in memory, so that a request costs no look into the database: what is
//! asked for by strangers is only looked up here, and what they invent is kept nowhere.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use crate::kernel::Error;
use crate::store::{ApiDomain, Bell, Store};

/// How often the store is looked at, should a bell be lost.
const EVERY: Duration = Duration::from_secs(1);

/// Which there are.
#[derive(Default)]
pub struct Domains {
    /// By which the server itself is served, whatever tenants have.
    own: BTreeSet<String>,
    known: ArcSwap<Known>,
}

#[derive(Default)]
struct Known {
    epoch: Option<String>,
    domains: HashMap<String, Arc<ApiDomain>>,
    /// Tenants by their realms at the identity provider, and the other way round.
    realms: HashMap<String, Arc<str>>,
    of_tenants: HashMap<Arc<str>, String>,
}

impl Domains {
    /// None yet; these names are the server's own.
    pub fn beside(own: impl IntoIterator<Item = String>) -> Domains {
        let own = own.into_iter().map(|name| name.to_ascii_lowercase()).collect();
        Domains { own, known: ArcSwap::default() }
    }

    /// The tenant that is served by this name, which is in small letters.
    pub fn of(&self, name: &str) -> Option<Arc<ApiDomain>> {
        if self.own.contains(name) {
            return None;
        }
        self.known.load().domains.get(name).cloned()
    }

    /// The tenant whose realm this is.
    pub fn of_realm(&self, realm: &str) -> Option<Arc<str>> {
        self.known.load().realms.get(realm).cloned()
    }

    /// The realm of a tenant.
    pub fn realm_of(&self, tenant: &str) -> Option<String> {
        self.known.load().of_tenants.get(tenant).cloned()
    }

    /// Reads them, if they are others than they were.
    pub async fn read(&self, store: &Store) -> Result<(), Error> {
        // Before they are read: what happens meanwhile is read the next time.
        let epoch = Some(store.domains_epoch().await?);
        if self.known.load().epoch == epoch {
            return Ok(());
        }
        let all = store.api_domains().await?;
        let domains = all.into_iter().map(|one| (one.domain.clone(), Arc::new(one))).collect();
        let realms: HashMap<String, Arc<str>> =
            store.tenant_realms().await?.into_iter().map(|(realm, tenant)| (realm, tenant.into())).collect();
        let of_tenants = realms.iter().map(|(realm, tenant)| (tenant.clone(), realm.clone())).collect();
        self.known.store(Arc::new(Known { epoch, domains, realms, of_tenants }));
        Ok(())
    }

    /// Follows the store until `stop`.
    pub async fn follow(self: Arc<Domains>, store: Store, stop: CancellationToken) {
        let mut following = store.bells().follow(Bell::Domains, EVERY, stop);
        while following.again().await {
            if let Err(error) = self.read(&store).await {
                tracing::warn!(%error, "the domains of tenants cannot be read; going on with those that are known");
            }
        }
    }
}
