//! What one create costs PostgreSQL: rows, buffers and bytes of its log of changes, in a small table and in a large one.
//!
//! An index of a million rows is a level or two higher than one of a thousand, and each entry that is looked for or
//! added passes each level once: nothing that has an index is without that. These, and nothing else, are taken off.

use std::collections::BTreeMap;

use anyhow::Result;
use rhyzome_tests::world::World;
use xtask::bench::figure::{Figure, number};

use super::{Ground, Made};
use crate::clients::Clients;
use crate::counts::{Counter, Counts};

/// How many creates touch what every create touches.
const WARM: usize = 5000;

/// Counts.
pub struct Meter {
    counter: Counter,
}

/// What a create costs.
pub struct Cost {
    counts: Counts,
    creates: f64,
    /// For each index: how often it was descended or added to in all, and how many levels are above its leaves.
    indexes: BTreeMap<String, (f64, f64)>,
}

impl Meter {
    /// Of this world.
    pub async fn start(world: &World) -> Result<Meter> {
        world.sql("CREATE EXTENSION IF NOT EXISTS pageinspect").await;
        Ok(Meter { counter: Counter::start(world).await? })
    }

    /// Of so many creates, one after the other.
    #[allow(clippy::cast_precision_loss, reason = "so many are never made")]
    pub async fn cost(
        &mut self,
        ground: &Ground,
        made: &mut Made,
        clients: &Clients,
        many: usize,
    ) -> Result<Cost> {
        let one = Clients { at_once: 1, ..clients.clone() };
        // Statements are planned a few times for their values, then for all; and the first to touch a page since a
        // checkpoint writes all of it to the WAL: those that every create touches are touched before.
        made.some(ground, clients, WARM, ground.tenants.len()).await?;
        let before = indexes(&ground.world).await;
        self.counter.again().await?;
        made.some(ground, &one, many, ground.tenants.len()).await?;
        let counts = self.counter.read().await?;
        let mut passed = BTreeMap::new();
        for (name, (after, level)) in indexes(&ground.world).await {
            passed.insert(name.clone(), (after - before.get(&name).map_or(0.0, |known| known.0), level));
        }
        Ok(Cost { counts, creates: many as f64, indexes: passed })
    }
}

/// For each index: how often it was descended or added to until now, and how many levels are above its leaves.
async fn indexes(world: &World) -> BTreeMap<String, (f64, f64)> {
    let sql = "SELECT i.indexrelname::text, (i.idx_scan + t.n_tup_ins + t.n_tup_upd - t.n_tup_hot_upd)::text, \
               (bt_metap(i.indexrelname::text)).fastlevel::text FROM pg_stat_user_indexes i \
               JOIN pg_stat_user_tables t ON t.relid = i.relid WHERE i.schemaname = 'public'";
    // The backends tell what they have done within a second of being idle.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let rows = world.ask(sql).await;
    let number = |text: &String| text.parse::<f64>().unwrap_or_default();
    rows.into_iter().map(|row| (row[0].clone(), (number(&row[1]), number(&row[2])))).collect()
}

impl Cost {
    /// Buffers that are passed only because indexes are higher than in `small`.
    fn extra_levels(&self, small: &Cost) -> f64 {
        let extra = |(name, (passed, level)): (&String, &(f64, f64))| {
            small.indexes.get(name).map_or(0.0, |(_, before)| passed * (level - before).max(0.0))
        };
        self.indexes.iter().map(extra).sum::<f64>() / self.creates
    }
}

/// One figure for each, beside what it was in the small table.
pub fn figures(small: &Cost, large: &Cost, few: u64, many: u64, most: f64) -> Vec<Figure> {
    let levels = large.extra_levels(small);
    let one = |name: &str, of: fn(&Counts) -> f64, off: f64| {
        let (before, after) = (of(&small.counts) / small.creates, of(&large.counts) / large.creates);
        let less = if off > 0.0 {
            format!(" less {} for higher indexes", number(off.round(), ""))
        } else {
            String::new()
        };
        Figure::new(&format!("{name} of a create: {many} / {few} rows"), (after - off) / before, "")
            .beside(format!("{}{less} beside {}", number(after.round(), ""), number(before.round(), "")))
            .at_most(most)
    };
    vec![
        one("statements", |counts| counts.calls, 0.0),
        one("rows", |counts| counts.rows, 0.0),
        one("buffers", |counts| counts.buffers, levels),
        one("WAL bytes", |counts| counts.wal_bytes, 0.0),
        Figure::new(
            "bytes of whole pages beside them",
            (large.counts.page_bytes / large.creates).round(),
            "",
        )
        .beside(format!(
            "{} at {few} rows; until the next checkpoint",
            (small.counts.page_bytes / small.creates).round()
        )),
    ]
}
