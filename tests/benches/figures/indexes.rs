//! How high the indexes of PostgreSQL are, and how often each was passed from its top to a leaf.
//!
//! An index of a million rows is a level or two higher than one of a thousand, and each entry that is looked for or
//! added passes each level once: nothing that has an index is without that. These pages, and nothing else, are taken
//! off what a figure compares.

use std::collections::BTreeMap;

use rhyzome_tests::wait::until;
use rhyzome_tests::world::World;

use crate::counts::COUNTER;

/// All indexes of a world.
pub struct Indexes(BTreeMap<String, Passed>);

struct Passed {
    times: f64,
    /// Above its leaves.
    levels: f64,
}

impl Indexes {
    /// What has been counted until now. Ends the server's connections: each tells its counts when it ends, or seconds
    /// after its last statement. Its pool makes new ones.
    pub async fn now(world: &World) -> Indexes {
        world.sql("CREATE EXTENSION IF NOT EXISTS pageinspect").await;
        forget_connections(world).await;
        let sql = "SELECT i.indexrelname::text, (i.idx_scan + t.n_tup_ins + t.n_tup_upd - t.n_tup_hot_upd)::text, \
                   (bt_metap(i.indexrelname::text)).fastlevel::text FROM pg_stat_user_indexes i \
                   JOIN pg_stat_user_tables t ON t.relid = i.relid WHERE i.schemaname = 'public'";
        let number = |text: &String| text.parse::<f64>().unwrap_or_default();
        let rows = world.ask(sql).await.into_iter();
        Indexes(
            rows.map(|row| (row[0].clone(), Passed { times: number(&row[1]), levels: number(&row[2]) }))
                .collect(),
        )
    }

    /// What was counted since, for each of so many requests.
    pub fn since(mut self, before: &Indexes, requests: f64) -> Indexes {
        for (name, passed) in &mut self.0 {
            passed.times -= before.0.get(name).map_or(0.0, |before| before.times);
            passed.times /= requests;
        }
        self
    }

    /// How often any of them was passed.
    pub fn times(&self) -> f64 {
        self.0.values().map(|passed| passed.times).sum()
    }

    /// Pages that are looked at only because indexes are higher than they were in `small`.
    pub fn extra_levels(&self, small: &Indexes) -> f64 {
        let extra = |(name, now): (&String, &Passed)| {
            small.0.get(name).map_or(0.0, |before| now.times * (now.levels - before.levels).max(0.0))
        };
        self.0.iter().map(extra).sum()
    }
}

async fn forget_connections(world: &World) {
    let ended = world
        .ask(&format!(
            "SELECT pid::text, pg_terminate_backend(pid)::text FROM pg_stat_activity \
             WHERE datname = current_database() AND backend_type = 'client backend' \
             AND application_name <> '{COUNTER}' AND query NOT LIKE '%pg_stat%' AND query NOT LIKE '%pg_backend_pid%' \
             AND pid <> pg_backend_pid()"
        ))
        .await;
    // Others have come in their place: what runs on its own goes on.
    let pids: Vec<&str> = ended.iter().map(|row| row[0].as_str()).collect();
    let there =
        format!("SELECT pid FROM pg_stat_activity WHERE pid::text = ANY('{{{}}}'::text[])", pids.join(","));
    until("the connections have ended", 10, async || world.ask(&there).await.is_empty().then_some(())).await;
}
