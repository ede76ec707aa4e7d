//! Connections to SQLite, lent one at a time: opened when they are first needed, and kept. A connection within the
//! process cannot break off, so none is tried before it is lent, as a pool would: that is a way to its thread and back.

use std::sync::{Arc, Mutex, PoisonError};

use sqlx::ConnectOptions as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::db::outside;
use crate::kernel::env::Outside;

/// Connections that are opened alike.
#[derive(Clone)]
pub(super) struct Lite(Arc<Home>);

struct Home {
    options: SqliteConnectOptions,
    outside: Outside,
    places: Arc<Semaphore>,
    idle: Mutex<Vec<SqliteConnection>>,
}

/// A connection that goes home when it is dropped.
pub struct Lent {
    /// There until then.
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
        let place = home.places.clone().acquire_owned().await.map_err(closed)?;
        let idle = home.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
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
        self.conn.as_mut().ok_or(sqlx::Error::PoolClosed)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.home.idle.lock().unwrap_or_else(PoisonError::into_inner).extend(self.conn.take());
    }
}
