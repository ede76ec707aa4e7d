//! Connections to SQLite, lent one at a time: opened when they are first needed, and kept. A connection within the
//! process cannot break off, so none is tried before it is lent, as a pool would: that is a way to its thread and back. One
//! whose thread has gone is found out by its first use, and dropped.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::ConnectOptions as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::db::outside;
use crate::kernel::env::Outside;

/// How long one waits for a connection before the database counts as away.
const PATIENCE: Duration = Duration::from_secs(30);

/// Connections that are opened alike.
#[derive(Clone)]
pub(super) struct Lite(Arc<Home>);

struct Home {
    options: SqliteConnectOptions,
    outside: Outside,
    places: Arc<Semaphore>,
    /// The one that came home first is lent first: the last may still be busy with what its caller gave up.
    idle: Mutex<VecDeque<SqliteConnection>>,
}

/// A connection that goes home when it is dropped.
pub struct Lent {
    /// There until then, or until it is spoiled.
    conn: Option<SqliteConnection>,
    home: Arc<Home>,
    _place: OwnedSemaphorePermit,
}

// === impl Lite ===

impl Lite {
    /// At most so many at once.
    pub(super) fn new(options: SqliteConnectOptions, most: usize, outside: Outside) -> Lite {
        let places = Arc::new(Semaphore::new(most));
        Lite(Arc::new(Home { options, outside, places, idle: Mutex::default() }))
    }

    /// Waits until one is there.
    pub(super) async fn acquire(&self) -> Result<Lent, sqlx::Error> {
        let home = self.0.clone();
        let closed = |_| sqlx::Error::PoolClosed;
        let place = timeout(PATIENCE, home.places.clone().acquire_owned()).await;
        let place = place.map_err(|_| sqlx::Error::PoolTimedOut)?.map_err(closed)?;
        let idle = home.idle.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let conn = match idle {
            Some(conn) => conn,
            None => outside(home.outside, home.options.connect()).await?,
        };
        Ok(Lent { conn: Some(conn), home, _place: place })
    }

    pub(super) fn outside(&self) -> Outside {
        self.0.outside
    }
}

// === impl Lent ===

impl Lent {
    /// What was lent.
    pub(super) fn conn(&mut self) -> Result<&mut SqliteConnection, sqlx::Error> {
        self.conn.as_mut().ok_or(sqlx::Error::WorkerCrashed)
    }

    /// It is not to go home: a new one takes its place.
    pub(super) fn spoil(&mut self) {
        self.conn = None;
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.home.idle.lock().unwrap_or_else(PoisonError::into_inner).extend(self.conn.take());
    }
}
