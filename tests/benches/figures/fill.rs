//! How rows get into a world, where there is no time to make them one by one.

use anyhow::Result;
use rhyzome_tests::world::World;
use xtask::crowd;
use xtask::progress::Progress;

/// How many are added by one transaction.
const AT_ONCE: u64 = 25_000;

/// The id of the `number`-th instance of a crowd.
pub fn id(number: u64) -> String {
    format!("inst_0000000000000000{number:010}")
}

/// Adds instances until there are `rows`, `present` of which are there already; then both databases know their sizes,
/// and nothing is left to be tidied up while something is counted.
pub async fn crowd(world: &World, present: u64, rows: u64, progress: &Progress) -> Result<()> {
    let mut first = present + 1;
    while first <= rows {
        let last = (first + AT_ONCE - 1).min(rows);
        let mut statements = crowd::statements(first, last);
        // Once is enough, at the end.
        statements.retain(|statement| statement != "ANALYZE");
        world.sql(&format!("BEGIN; {}; COMMIT", statements.join("; "))).await;
        if last == rows || last.is_multiple_of(100_000) {
            progress.at(100 * (last - present) / (rows - present), &format!("{last} instances are there"));
        }
        first = last + 1;
    }
    settle(world).await;
    Ok(())
}

/// Lets a database do at once what it would do in the background.
pub async fn settle(world: &World) {
    match world.db.starts_with("sqlite:") {
        true => world.sql("ANALYZE; PRAGMA wal_checkpoint(TRUNCATE)").await,
        false => {
            world.sql("VACUUM (FREEZE, ANALYZE)").await;
            world.sql("CHECKPOINT").await;
        }
    }
}
