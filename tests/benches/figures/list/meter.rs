//! What one page costs: pages of 8 KiB that were looked at, and how often which index was descended.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Result, ensure};
use rhyzome_tests::wait::until;
use rhyzome_tests::world::World;

use crate::clients::{Clients, Question};
use crate::counts::Counter;
use crate::served::Served;

/// How often a page is asked for: a server's statements are planned a few times for their values, then for all.
const TIMES: u32 = 60;

/// Asks for pages, one after the other.
pub struct Meter {
    counter: Counter,
    client: Clients,
}

/// What a page costs.
pub struct Cost {
    /// Looked at, in memory or not.
    pub buffers: f64,
    /// For each index: how often it was descended, and how many levels are above its leaves.
    indexes: BTreeMap<String, (f64, f64)>,
}

impl Cost {
    /// How many of the buffers are there only because indexes are higher than they were in `small`.
    pub fn extra_levels(&self, small: &Cost) -> f64 {
        let extra = |(name, (descents, level)): (&String, &(f64, f64))| {
            small.indexes.get(name).map_or(0.0, |(_, before)| descents * (level - before).max(0.0))
        };
        self.indexes.iter().map(extra).sum()
    }
}

impl Meter {
    /// Of this API over this world.
    pub async fn start(world: &World, served: &Served) -> Result<Meter> {
        world.sql("CREATE EXTENSION IF NOT EXISTS pageinspect").await;
        let client = Clients { at_once: 1, ..served.clients(TIMES as usize) };
        Ok(Meter { counter: Counter::start(world).await?, client })
    }

    /// What this page costs.
    pub async fn cost(&mut self, world: &World, path: &str) -> Result<Cost> {
        forget_connections(world).await;
        let before = descents(world).await;
        self.counter.again().await?;
        let asked = path.to_owned();
        self.client.ask(Arc::new(move |_| Question::get(asked.clone()))).await?;
        let counts = self.counter.read().await?;
        forget_connections(world).await;
        let mut indexes = BTreeMap::new();
        for (name, (after, level)) in descents(world).await {
            let times = after - before.get(&name).map_or(0.0, |(before, _)| *before);
            indexes.insert(name, (times / f64::from(TIMES), level));
        }
        let descended: f64 = indexes.values().map(|(times, _)| times).sum();
        ensure!(descended > 0.9, "{path}: no index was descended, or PostgreSQL has not counted yet");
        Ok(Cost { buffers: counts.buffers / f64::from(TIMES), indexes })
    }
}

/// Ends the server's connections: each tells its counts of indexes only when it ends, or after seconds. The pool
/// makes new ones.
async fn forget_connections(world: &World) {
    let others = "FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend' \
                  AND query NOT LIKE '%pg_stat%' AND query NOT LIKE '%pg_backend_pid%' AND pid <> pg_backend_pid()";
    world.sql(&format!("SELECT pg_terminate_backend(pid) {others}")).await;
    until("the connections have ended", 10, async || {
        world.ask(&format!("SELECT pid {others}")).await.is_empty().then_some(())
    })
    .await;
}

/// For each index: how often it was descended until now, and how many levels are above its leaves.
async fn descents(world: &World) -> BTreeMap<String, (f64, f64)> {
    let sql = "SELECT indexrelname::text, idx_scan::text, (bt_metap(indexrelname::text)).fastlevel::text \
               FROM pg_stat_user_indexes WHERE schemaname = 'public'";
    let rows = world.ask(sql).await;
    rows.into_iter()
        .map(|row| {
            let number = |nth: usize| row[nth].parse::<f64>().unwrap_or_default();
            (row[0].clone(), (number(1), number(2)))
        })
        .collect()
}
