//! What one page costs: pages of 8 KiB that were looked at, and how often which index was descended.

use std::sync::Arc;

use anyhow::{Result, ensure};
use rhyzome_tests::world::World;

use crate::clients::{Clients, Question};
use crate::counts::Counter;
use crate::indexes::Indexes;
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
    indexes: Indexes,
}

impl Cost {
    /// How many of the buffers are there only because indexes are higher than they were in `small`.
    pub fn extra_levels(&self, small: &Cost) -> f64 {
        self.indexes.extra_levels(&small.indexes)
    }
}

impl Meter {
    /// Of this API over this world.
    pub async fn start(world: &World, served: &Served) -> Result<Meter> {
        let client = Clients { at_once: 1, ..served.clients(TIMES as usize) };
        Ok(Meter { counter: Counter::start(world).await?, client })
    }

    /// What this page costs.
    pub async fn cost(&mut self, world: &World, path: &str) -> Result<Cost> {
        let before = Indexes::now(world).await;
        self.counter.again().await?;
        let asked = path.to_owned();
        self.client.ask(Arc::new(move |_| Question::get(asked.clone()))).await?;
        let counts = self.counter.read().await?;
        let indexes = Indexes::now(world).await.since(&before, f64::from(TIMES));
        ensure!(indexes.times() > 0.9, "{path}: no index was descended, or PostgreSQL has not counted yet");
        Ok(Cost { buffers: counts.buffers / f64::from(TIMES), indexes })
    }
}
