//! The runner: looks for jobs that are due, on a bell and on a timer, and takes each as far as it goes.
//!
//! An activation says only "look again". What a job does is in `store/advance.rs`, in one transaction; so restart, a lost bell and the happy path are the same path, and any number of servers may run this side
//! by side.

mod rescue;
mod sweep;

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::kernel::{Error, Timestamp};
use crate::store::{Bell, Store};

pub use rescue::{Watch, rescue};
pub use sweep::{SweepDuty, heartbeat, sweep};

/// How long the runner sleeps when no bell rings.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How many jobs are taken from the list of due ones at once, in one transaction.
const AT_ONCE: i64 = 64;
/// How far behind the present a job may become due: another server's clock, a transaction that took its time.
const LATE_SECONDS: i64 = 5;
/// How often jobs are looked for that became due even later.
const ALL_SECONDS: i64 = 30;

/// Looks for due jobs from where it has seen all of them.
struct Runner {
    store: Store,
    /// Nothing before is due, but for what is found when all is looked at.
    from: Timestamp,
    /// When that is to be.
    all_at: Timestamp,
}

/// Runs until it is told to stop.
pub async fn run(store: Store, stop: CancellationToken) {
    let mut following = store.bells().follow(Bell::Jobs, LOOK_AGAIN, stop);
    let mut runner = Runner::new(&store);
    while following.again().await {
        if let Err(error) = runner.look().await {
            tracing::warn!(%error, "jobs were not looked at; trying again");
        }
    }
}

/// Takes every job that is due as far as it goes.
pub async fn look(store: &Store) -> Result<(), Error> {
    Runner::new(store).look().await
}

/// The same, one after the other: in simulation the same seed does the same.
pub async fn look_in_turn(store: &Store) -> Result<(), Error> {
    for (id, _) in store.due_jobs(Timestamp(0), AT_ONCE).await? {
        store.advance_jobs(&[id]).await?;
    }
    Ok(())
}

// === impl Runner ===

impl Runner {
    fn new(store: &Store) -> Runner {
        Runner { store: store.clone(), from: Timestamp(0), all_at: Timestamp(0) }
    }

    async fn look(&mut self) -> Result<(), Error> {
        let now = self.store.env().now();
        if now >= self.all_at {
            (self.from, self.all_at) = (Timestamp(0), now.plus_seconds(ALL_SECONDS));
        }
        let (mut from, mut left) = (self.from, None);
        loop {
            let due = self.store.due_jobs(from, AT_ONCE).await?;
            let full = due.len() == usize::try_from(AT_ONCE).unwrap_or(usize::MAX);
            let ids: Vec<String> = due.iter().map(|(id, _)| id.clone()).collect();
            let moved = if ids.is_empty() { 0 } else { self.advance(&ids).await? };
            if moved < due.len() {
                // Another server has them in hand, or they could not be taken further.
                left = left.or(due.first().map(|(_, since)| *since));
            }
            match due.last() {
                Some((_, since)) if full && moved > 0 => from = *since,
                _ => break,
            }
        }
        self.from = left.unwrap_or(now.plus_seconds(-LATE_SECONDS));
        Ok(())
    }

    /// All in one transaction; if that comes to nothing, each in its own, so that one does not hold up the others.
    /// How many moved.
    async fn advance(&self, due: &[String]) -> Result<usize, Error> {
        match self.store.advance_jobs(due).await {
            Err(error @ Error::Unavailable(_)) => return Err(error),
            Err(_) => {}
            Ok(moved) => return Ok(moved),
        }
        let mut moved = 0;
        for id in due {
            match self.store.advance_jobs(std::slice::from_ref(id)).await {
                Ok(one) => moved += one,
                // All of them are as due as before.
                Err(error @ Error::Unavailable(_)) => return Err(error),
                // Nothing was written: it is tried again, each time later.
                Err(error) => {
                    tracing::error!(%error, job = id, "a job could not be taken further");
                    if let Err(error) = self.store.put_off_job(id, &error).await {
                        tracing::error!(%error, job = id, "a job could not be put off; it stays due");
                    }
                }
            }
        }
        Ok(moved)
    }
}
