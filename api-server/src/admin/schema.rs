//! `migrate` and `db reset`.

use std::fs::File;

use anyhow::bail;
use nix::fcntl::Flock;
use rhyzome_sql::{Link, version};

use super::Desk;
use crate::app;
use crate::config::Config;
use crate::environment::system_env;
use crate::kernel::Env;
use crate::store::{DbUrl, SERVER_LEASE_SECONDS};

pub(super) async fn migrate(config: &Config) -> anyhow::Result<String> {
    let url: DbUrl = config.db.parse()?;
    app::private_folder(&config.data)?;
    let mut link = url.link(true).await?;
    if link.known_version().await? == version() {
        return Ok(format!("the schema has version {} already: nothing to do", version()));
    }
    let _alone = alone(&url, config)?;
    let migrated = link.migrate().await?;
    Ok(match migrated.from {
        0 => format!("the schema was made: version {}", migrated.to),
        from => format!("the schema was brought from version {from} to {}", migrated.to),
    })
}

pub(super) async fn reset(config: &Config, sure: bool) -> anyhow::Result<String> {
    let url: DbUrl = config.db.parse()?;
    app::private_folder(&config.data)?;
    let _alone = alone(&url, config)?;
    let mut link = url.link(true).await?;
    link.known_version().await?;
    // Until the connection ends: a server that starts now waits, and finds what we leave.
    link.begin().await?;
    let shape = link.shape().await?;
    let counts = link.counts(&shape).await?;
    if !link.is_empty().await? {
        refuse_running(&mut link).await?;
    }
    let rows: i64 = counts.iter().map(|(_, count)| count).sum();
    if !sure {
        let mut most = counts;
        most.sort_by_key(|(_, count)| -count);
        let most: Vec<String> =
            most.iter().take(4).map(|(table, count)| format!("{count} of {table}")).collect();
        let most = if most.is_empty() { String::new() } else { format!(" ({}, ...)", most.join(", ")) };
        bail!(
            "nothing was done: this would destroy {} tables with {rows} rows{most} in {}; say \
             --yes-destroy-everything if that is what you want, after `rhyzome-api backup FILE`",
            shape.tables.len(),
            url.shown()
        );
    }
    link.drop_all().await?;
    let migrated = link.apply(version()).await?;
    link.commit().await?;
    link.forget().await?;
    Ok(format!(
        "{} is empty, with schema version {}; {rows} rows were destroyed. Keys, token and bytes of images in {} were left",
        url.shown(),
        migrated.to,
        config.data.display()
    ))
}

pub(super) async fn say_that_it_counts(config: &Config, user: &str) -> anyhow::Result<String> {
    let url: DbUrl = config.db.parse()?;
    app::private_folder(&config.data)?;
    let _alone = alone(&url, config)?;
    let mut link = url.link(false).await?;
    link.known_version().await?;
    refuse_running(&mut link).await?;
    let epoch = raise_epoch(&url, &system_env()).await?;
    let desk = Desk::open(config, user).await?;
    desk.store.note(&desk.caller, "database", "raise-epoch", &desk.asked).await?;
    Ok(format!(
        "the database's epoch is {epoch}: agents obey it from now on; what they hold and it does not know is shown by \
         `rhyzome node drift NODE`, and left alone"
    ))
}

/// Raises the epoch of a database; what it is then.
pub async fn raise_epoch(url: &DbUrl, env: &Env) -> anyhow::Result<i64> {
    let mut link = url.link(false).await?;
    link.begin().await?;
    // In seconds since 1970: higher than that of any copy that was raised before.
    let epoch = link.raise_epoch(env.now().0 / 1_000_000).await?;
    link.commit().await?;
    Ok(epoch)
}

/// On SQLite, the folder's lock: nobody else works on it while this is held.
pub(super) fn alone(url: &DbUrl, config: &Config) -> anyhow::Result<Option<Flock<File>>> {
    match url {
        DbUrl::Sqlite(_) => app::only_one(&config.data).map(Some),
        DbUrl::Postgres(_) => Ok(None),
    }
}

/// On PostgreSQL servers say that they live in the database itself. On SQLite the lock has told already.
pub(super) async fn refuse_running(link: &mut Link) -> anyhow::Result<()> {
    if matches!(link, Link::Lite(_)) {
        return Ok(());
    }
    let since = system_env().now().plus_seconds(-SERVER_LEASE_SECONDS);
    if link.last_heartbeat().await?.is_some_and(|last| last > since.0) {
        bail!(
            "a rhyzome-api works on this database: end all of them first (one that was killed is believed dead after \
             {SERVER_LEASE_SECONDS} seconds)"
        );
    }
    Ok(())
}
