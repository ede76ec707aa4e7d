//! Sealing at rest: the keys, which are never in the database, and how they change while servers run.
//!
//! Whoever adds a key tells nobody: each server looks at the file again every few seconds, and at once when it meets a
//! secret that is sealed with a key it does not know. The newest key seals; all others only open.

mod keyring;

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use tokio_util::sync::CancellationToken;

pub use keyring::{Keyring, Source, hold};

use crate::admin;
use crate::config::{Config, Sealing};
use crate::environment::system_env;
use crate::kernel::{Env, Error};
use crate::store::{Store, Vault as _};

/// The keys, in the folder of data.
pub(crate) const FILE: &str = "sealing.keys";
/// How often a server looks whether there is a newer key.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The keys of this configuration; made if there are none, and they are ours to make.
pub fn keyring(config: &Config, env: &Env) -> anyhow::Result<Keyring> {
    let source = match &config.sealing {
        Sealing::Given(keys) => Source::Given(keys.clone()),
        Sealing::File(path) => Source::File(path.clone()),
        Sealing::Own => {
            let path = config.data.join(FILE);
            Keyring::make(&path, env)?;
            Source::File(path)
        }
    };
    Keyring::open(source)
}

/// Gives a store the keys. Refuses a database that holds what none of them opens: served without, it would fail
/// wherever a secret is needed, much later.
pub async fn furnish(store: &Store, keyring: Arc<Keyring>) -> anyhow::Result<()> {
    let unknown: Vec<String> =
        store.sealed_by().await?.into_keys().filter(|key| !keyring.knows(key)).collect();
    if !unknown.is_empty() {
        bail!(
            "the database holds secrets that were sealed by key {}, and {} does not hold it: bring it back from the \
             backup",
            unknown.join(", "),
            keyring.place()
        );
    }
    store.seal_with(keyring);
    Ok(())
}

/// Follows the keys, and seals anew what an older one sealed, until it is told to stop.
pub async fn keep_fresh(store: Store, keyring: Arc<Keyring>, stop: CancellationToken) {
    loop {
        if let Err(error) = keyring.reload() {
            tracing::warn!(
                error = format!("{error:#}"),
                "the sealing keys were not read; the known ones stay"
            );
        }
        match seal_all_anew(&store).await {
            Ok(0) => {}
            Ok(count) => {
                tracing::info!(count, key = keyring.newest(), "secrets were sealed with a newer key")
            }
            Err(error) => tracing::warn!(%error, "secrets were not sealed anew; trying again"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
    }
}

/// Until none is left that an older key sealed; how many there were. Small steps: others write in between.
pub async fn seal_all_anew(store: &Store) -> Result<usize, Error> {
    let mut all = 0;
    loop {
        match store.seal_anew().await? {
            0 => return Ok(all),
            count => all += count,
        }
    }
}

// === `rhyzome-api secret` ===

/// Adds a key, and seals everything with it. Also while servers run: they find it by themselves.
pub async fn rotate(config: &Config) -> anyhow::Result<String> {
    let (keyring, store) = desk(config).await?;
    let key = keyring.add(&system_env())?;
    let count = seal_all_anew(&store).await?;
    Ok(format!("key {key} seals from now on; {count} secrets were sealed with it"))
}

/// Takes the keys away that seal nothing any more.
pub async fn forget(config: &Config) -> anyhow::Result<String> {
    let (keyring, store) = desk(config).await?;
    seal_all_anew(&store).await?;
    let used = store.sealed_by().await?;
    let gone = keyring.forget(|key| used.contains_key(key), LOOK_AGAIN * 6)?;
    Ok(match gone.len() {
        0 => "every key is in use".to_owned(),
        _ => format!("forgotten: {}", gone.join(", ")),
    })
}

/// Which keys there are, and how much each seals.
pub async fn status(config: &Config) -> anyhow::Result<String> {
    let (keyring, store) = desk(config).await?;
    let used = store.sealed_by().await?;
    let newest = keyring.newest();
    let line = |key: &String| {
        let now = if *key == newest { " (seals now)" } else { "" };
        format!("{key}: {} secrets{now}", used.get(key).unwrap_or(&0))
    };
    Ok(keyring.names().iter().map(line).collect::<Vec<_>>().join("\n"))
}

/// The store first: where no server was ever started no key is made.
async fn desk(config: &Config) -> anyhow::Result<(Arc<Keyring>, Store)> {
    let store = admin::beside(config).await?;
    let keyring = Arc::new(keyring(config, &system_env())?);
    furnish(&store, keyring.clone()).await?;
    Ok((keyring, store))
}
