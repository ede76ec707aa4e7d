//! What one create costs PostgreSQL: rows, buffers and bytes of its log of changes, in a small table and in a large one.

use anyhow::Result;
use rhyzome_tests::world::World;
use xtask::bench::figure::{Figure, number};

use super::{Ground, Made};
use crate::clients::Clients;
use crate::counts::{Counter, Counts};
use crate::indexes::Indexes;

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
    indexes: Indexes,
}

impl Meter {
    /// Of this world.
    pub async fn start(world: &World) -> Result<Meter> {
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
        let before = Indexes::now(&ground.world).await;
        // Statements are planned a few times for their values, then for all; and the first to touch a page since a
        // checkpoint writes all of it to the WAL: those that every create touches are touched before.
        made.some(ground, clients, WARM, ground.tenants.len()).await?;
        self.counter.again().await?;
        made.some(ground, &one, many, ground.tenants.len()).await?;
        let counts = self.counter.read().await?;
        let indexes = Indexes::now(&ground.world).await.since(&before, (WARM + many) as f64);
        Ok(Cost { counts, creates: many as f64, indexes })
    }
}

/// One figure for each, beside what it was in the small table.
pub fn figures(small: &Cost, large: &Cost, few: u64, many: u64, most: f64) -> Vec<Figure> {
    let levels = large.indexes.extra_levels(&small.indexes);
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
