//! The runner: looks for jobs that are due, on a bell and on a timer, and takes each as far as it goes.
//!
//! An activation says only "look again". What a job does is in `store/advance.rs`, one transaction each; so
//! restart, a lost bell and the happy path are the same path, and any number of servers may run this side
//! by side.

mod sweep;

use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use crate::kernel::Error;
use crate::store::{Bell, Store};

pub use sweep::sweep;

/// How long the runner sleeps when no bell rings.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How many jobs are taken from the list of due ones at once.
const AT_ONCE: i64 = 64;

/// Runs until it is told to stop.
pub async fn run(store: Store, stop: CancellationToken) {
    let mut bells = store.bells().subscribe();
    loop {
        if let Err(error) = look(&store).await {
            tracing::warn!(%error, "jobs were not looked at; trying again");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = next_bell(&mut bells) => {}
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
    }
}

async fn next_bell(bells: &mut tokio::sync::broadcast::Receiver<Bell>) {
    loop {
        match bells.recv().await {
            Ok(Bell::Jobs) | Err(RecvError::Lagged(_)) => return,
            Ok(_) => {}
            // The store is being taken down: the timer and the stop token decide.
            Err(RecvError::Closed) => return std::future::pending().await,
        }
    }
}

/// Takes every job that is due as far as it goes.
pub async fn look(store: &Store) -> Result<(), Error> {
    loop {
        let due = store.due_jobs(AT_ONCE).await?;
        let full = due.len() == usize::try_from(AT_ONCE).unwrap_or(usize::MAX);
        // None moved: another server has all of them in hand.
        if advance(store, &due).await == 0 || !full {
            return Ok(());
        }
    }
}

/// The same, one after the other: in simulation the same seed does the same.
pub async fn look_in_turn(store: &Store) -> Result<(), Error> {
    for id in store.due_jobs(AT_ONCE).await? {
        store.advance_jobs(&[id]).await?;
    }
    Ok(())
}

/// All in one transaction; if that comes to nothing, each in its own, so that one does not hold up the others.
async fn advance(store: &Store, due: &[String]) -> usize {
    if let Ok(moved) = store.advance_jobs(due).await {
        return moved;
    }
    let mut moved = 0;
    for id in due {
        match store.advance_jobs(std::slice::from_ref(id)).await {
            Ok(one) => moved += one,
            // Nothing was written: the job stays due, and is looked at again in a second.
            Err(error) => tracing::error!(%error, job = id, "a job could not be taken further"),
        }
    }
    moved
}
