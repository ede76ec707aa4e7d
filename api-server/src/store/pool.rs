//! Connections to either database, lent one at a time: opened when they are first needed, and kept.
//!
//! A pool that asks a connection whether it is there before it is lent, and again when it comes home, makes three ways
//! to the database and back of one. Here one that was at work a moment ago is lent as it is: whoever finds at its first
//! statement that it has gone gets another ([`Lent::renew`]), and nothing was done yet. One that was left in the middle
//! of something never comes home.

use std::io::ErrorKind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::{ConnectOptions as _, Connection};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::db::outside;
use crate::kernel::env::Outside;

/// How long one waits for a connection before the database counts as away.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two tries to reach a database that is just starting, at first and at most.
const AGAIN: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// One that has done nothing for so long is asked whether it is still there.
const ASKED_AFTER: Duration = Duration::from_secs(1);
/// A connection is as old as this at most: the memory that a server process keeps for it only grows.
const OLDEST: Duration = Duration::from_secs(30 * 60);

/// Connections that are opened alike. Cheap to clone.
pub(super) struct Pool<C: Connection> {
    home: Arc<Home<C>>,
    /// What those who share this part of it may have together; none: all.
    part: Option<Arc<Semaphore>>,
}

struct Home<C: Connection> {
    options: C::Options,
    outside: Outside,
    most: u32,
    places: Arc<Semaphore>,
    /// The one that came home last is lent first: it is the least likely to have gone.
    idle: Mutex<Vec<Idle<C>>>,
    closed: CancellationToken,
}

struct Idle<C> {
    conn: C,
    born: Instant,
    since: Instant,
    wall: Arc<str>,
}

/// What a new connection is told: no wall, for the server's own work.
pub(super) const NO_WALL: &str = "*";

/// A connection that goes home when it is dropped.
pub struct Lent<C: Connection> {
    /// There until then, or until it is spoiled.
    conn: Option<C>,
    born: Instant,
    /// A statement was begun, and has not been answered.
    at_work: bool,
    /// The wall that it was told last, where there are such.
    wall: Arc<str>,
    home: Arc<Home<C>>,
    _place: OwnedSemaphorePermit,
    _part: Option<OwnedSemaphorePermit>,
}

// === impl Pool ===

impl<C: Connection> Clone for Pool<C> {
    fn clone(&self) -> Pool<C> {
        Pool { home: self.home.clone(), part: self.part.clone() }
    }
}

impl<C: Connection> Pool<C> {
    /// At most so many at once.
    pub(super) fn new(options: C::Options, most: u32, outside: Outside) -> Pool<C> {
        let places = Arc::new(Semaphore::new(most as usize));
        let closed = CancellationToken::new();
        let home = Home { options, outside, most, places, idle: Mutex::default(), closed };
        Pool { home: Arc::new(home), part: None }
    }

    /// The same, of which no more than half is lent through this one and its clones.
    pub(super) fn half(&self) -> Pool<C> {
        let part = Semaphore::new((self.home.most as usize / 2).max(1));
        Pool { home: self.home.clone(), part: Some(Arc::new(part)) }
    }

    /// Waits until one is there.
    pub(super) async fn acquire(&self) -> Result<Lent<C>, sqlx::Error> {
        self.acquire_behind(NO_WALL).await
    }

    /// The same, rather one that was told this wall already.
    pub(super) async fn acquire_behind(&self, wall: &str) -> Result<Lent<C>, sqlx::Error> {
        let home = self.home.clone();
        let places = async {
            // Whoever waits for a part of it stands in nobody's way meanwhile.
            let part = match self.part.clone() {
                Some(part) => Some(part.acquire_owned().await?),
                None => None,
            };
            Ok((home.places.clone().acquire_owned().await?, part))
        };
        let closed = |_: AcquireError| sqlx::Error::PoolClosed;
        let places = timeout(PATIENCE, places).await.map_err(|_| sqlx::Error::PoolTimedOut)?;
        let (_place, _part) = places.map_err(closed)?;
        let (born, told) = (Instant::now(), NO_WALL.into());
        let mut lent = Lent { conn: None, born, at_work: false, wall: told, home, _place, _part };
        lent.fill(ASKED_AFTER, wall).await?;
        Ok(lent)
    }

    /// How many are lent now, and how many may be.
    pub(super) fn lent(&self) -> (u32, u32) {
        let free = u32::try_from(self.home.places.available_permits()).unwrap_or(u32::MAX);
        (self.home.most.saturating_sub(free), self.home.most)
    }

    pub(super) fn outside(&self) -> Outside {
        self.home.outside
    }

    /// Comes true when it is closed.
    pub(super) fn closed(&self) -> CancellationToken {
        self.home.closed.clone()
    }

    /// Waits for what is lent, and closes all; from then on none is lent.
    pub(super) async fn close(&self) {
        self.home.closed.cancel();
        // Closed before: nothing is left to be done.
        let Ok(_all) = self.home.places.acquire_many(self.home.most).await else { return };
        self.home.places.close();
        let idle = std::mem::take(&mut *self.home.idle());
        for idle in idle {
            // One that has gone needs no farewell.
            let _ = outside(self.home.outside, idle.conn.close()).await;
        }
    }
}

// === impl Home ===

impl<C: Connection> Home<C> {
    fn idle(&self) -> MutexGuard<'_, Vec<Idle<C>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one that came home last of those that were told this wall, else of all.
    fn take(&self, wall: &str) -> Option<Idle<C>> {
        let mut idle = self.idle();
        let told = idle.iter().rposition(|one| &*one.wall == wall);
        told.map(|at| idle.remove(at)).or_else(|| idle.pop())
    }

    /// A new one. A database that is just starting is waited for.
    async fn connect(&self) -> Result<C, sqlx::Error> {
        let (since, mut wait) = (Instant::now(), AGAIN.0);
        loop {
            match outside(self.outside, self.options.connect()).await {
                Err(error) if is_starting(&error) && since.elapsed() + wait < PATIENCE => {
                    tracing::debug!(%error, "the database is not there yet");
                    sleep(wait).await;
                    wait = (wait * 2).min(AGAIN.1);
                }
                connected => return connected,
            }
        }
    }
}

fn is_starting(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(error) => error.kind() == ErrorKind::ConnectionRefused,
        sqlx::Error::Database(error) => error.is_transient_in_connect_phase(),
        _ => false,
    }
}

// === impl Lent ===

impl<C: Connection> Lent<C> {
    /// What was lent, for a statement; [`Lent::rest`] when it was answered.
    pub(super) fn work(&mut self) -> Result<&mut C, sqlx::Error> {
        self.at_work = true;
        self.conn.as_mut().ok_or(sqlx::Error::WorkerCrashed)
    }

    /// The wall that it was told last.
    pub(super) fn wall(&self) -> &Arc<str> {
        &self.wall
    }

    /// It was told another one.
    pub(super) fn was_told(&mut self, wall: Arc<str>) {
        self.wall = wall;
    }

    /// The statement was answered.
    pub(super) fn rest(&mut self) {
        self.at_work = false;
    }

    /// It is not to go home: a new one takes its place.
    pub(super) fn spoil(&mut self) {
        self.conn = None;
    }

    /// Another one in its place, that is surely there.
    pub(super) async fn renew(&mut self) -> Result<(), sqlx::Error> {
        self.spoil();
        let wall = self.wall.clone();
        self.fill(Duration::ZERO, &wall).await
    }

    /// One that was at work more recently than this, or answers, or is new.
    async fn fill(&mut self, asked_after: Duration, wall: &str) -> Result<(), sqlx::Error> {
        loop {
            let Some(mut idle) = self.home.take(wall) else { break };
            let sure = idle.since.elapsed() < asked_after;
            if sure || outside(self.home.outside, idle.conn.ping()).await.is_ok() {
                (self.conn, self.born, self.at_work) = (Some(idle.conn), idle.born, false);
                self.wall = idle.wall;
                return Ok(());
            }
        }
        (self.conn, self.born, self.at_work) = (Some(self.home.connect().await?), Instant::now(), false);
        self.wall = NO_WALL.into();
        Ok(())
    }
}

impl<C: Connection> Drop for Lent<C> {
    fn drop(&mut self) {
        let good = !self.at_work && self.born.elapsed() < OLDEST && !self.home.closed.is_cancelled();
        if let Some(conn) = self.conn.take().filter(|_| good) {
            let wall = self.wall.clone();
            self.home.idle().push(Idle { conn, born: self.born, since: Instant::now(), wall });
        }
    }
}
