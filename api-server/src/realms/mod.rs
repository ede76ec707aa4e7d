//! Realms at the identity provider: makes those that tenants want, and deletes those that are to go with theirs. What is
//! to be done is rows in the store, and so is what came of it; each call can be repeated, by any server.

mod keycloak;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

pub use keycloak::Keycloak;

use crate::kernel::Error;
use crate::store::{Bell, RealmTold, Store};

/// How long to sleep when no bell rings.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// What could not be done is tried again after so long, and after twice as long each time.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What was tried, by the job that wants it.
#[derive(Default)]
pub struct Tried(BTreeMap<String, (Duration, Duration)>);

/// Runs until it is told to stop.
pub async fn run(store: Store, keycloak: Keycloak, stop: CancellationToken) {
    let mut following = store.bells().follow(Bell::Realms, LOOK_AGAIN, stop.clone());
    let mut tried = Tried::default();
    while following.again().await {
        // A provider may take its time, and is not waited for at the end.
        let looked = stop.run_until_cancelled(look(&store, &keycloak, &mut tried)).await;
        if let Some(Err(error)) = looked {
            tracing::warn!(%error, "realms were not looked at; trying again");
        }
    }
}

/// Does what is to be done now, one after the other.
pub async fn look(store: &Store, keycloak: &Keycloak, tried: &mut Tried) -> Result<(), Error> {
    let wanted = store.realms_wanted().await?;
    tried.0.retain(|job, _| wanted.iter().any(|work| work.job == *job));
    for work in wanted {
        let now = store.env().uptime();
        if tried.0.get(&work.job).is_some_and(|(due, _)| *due > now) {
            continue;
        }
        let told = match work.gone {
            false => keycloak.make(&work).await,
            true => keycloak.delete(&work).await,
        };
        if let RealmTold::Waits(why) = &told {
            tracing::warn!(
                tenant = work.tenant_name,
                realm = work.realm,
                why,
                "a realm waits for its provider"
            );
            let wait = tried.0.get(&work.job).map_or(AGAIN.0, |(_, wait)| (*wait * 2).min(AGAIN.1));
            tried.0.insert(work.job.clone(), (store.env().uptime() + wait, wait));
        }
        store.realm_told(work, told).await?;
    }
    Ok(())
}
