//! The store's door: `write(closure)`.
//!
//! On PostgreSQL a transaction, tried again when the database says so. On SQLite one writer, in a thread of its own, that
//! puts all waiting closures into one commit, a savepoint each, and answers after the fsync: acknowledged means durable,
//! and 64 clients share one fsync.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::FutureExt as _;
use sqlx::PgConnection;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tracing::{Instrument as _, Span};

use super::bells::Bells;
use super::db::{Conn, DbError, RETRY_MARK, outside};
use super::lite::Lite;
use super::pool::Pool;
use super::tx::Tx;
use crate::kernel::Error;
use crate::kernel::env::Outside;

/// The future of a closure that runs in a transaction.
pub type TxFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// How often a PostgreSQL transaction is tried before its error is believed.
const TRIES: u32 = 8;
/// How many closures share one commit at most.
const MOST_IN_ONE_COMMIT: usize = 64;

/// For what a write keeps while it runs, in bytes: a removal that takes others along is deep, above all in a debug build.
/// Memory is taken only for what is touched.
const STACK: usize = 32 << 20;

/// Told once, after the commit: `Err` when the commit itself failed.
type Finish = Box<dyn FnOnce(Result<(), Error>) + Send>;
type Ran<'a> = Pin<Box<dyn Future<Output = (bool, Finish)> + Send + 'a>>;
type Task = Box<dyn for<'a> FnOnce(&'a mut Tx) -> Ran<'a> + Send>;

/// The door.
#[derive(Clone)]
pub(super) enum Writer {
    Lite(mpsc::Sender<Task>, Outside),
    Pg(Pool<PgConnection>),
}

impl Writer {
    pub(super) fn sqlite(lite: Lite, bells: Bells, how: Outside) -> std::io::Result<Writer> {
        let (sender, receiver) = mpsc::channel(1024);
        let work = run(lite, receiver, bells);
        if how == Outside::InPlace {
            tokio::spawn(work);
        } else {
            // It waits for the disk, which would keep a thread of the runtime from all else.
            let runtime = Handle::current();
            let thread = std::thread::Builder::new().name("sqlite-writer".to_owned()).stack_size(STACK);
            thread.spawn(move || {
                let _inside = runtime.enter();
                futures_executor::block_on(work);
            })?;
        }
        Ok(Writer::Lite(sender, how))
    }

    pub(super) async fn write<T, F>(&self, bells: &Bells, wall: Arc<str>, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: for<'a> Fn(&'a mut Tx) -> TxFuture<'a, T> + Send + Sync + 'static,
    {
        match self {
            Writer::Lite(sender, how) => {
                let (reply, answer) = oneshot::channel();
                let work = Arc::new(work);
                // What is logged on the way belongs to the request, though another thread says it.
                let span = Span::current();
                let task: Task = Box::new(move |tx| Box::pin(one(tx, work, reply).instrument(span)));
                let closed = |_| Error::Unavailable("the server is shutting down".to_owned());
                sender.send(task).await.map_err(closed)?;
                // No transaction could be begun: another process has held the file for longer than one waits.
                let dropped =
                    |_| Error::Unavailable("the database is busy or away; nothing was changed".to_owned());
                match how {
                    Outside::TimeStandsStill => outside(*how, answer).await,
                    Outside::Await | Outside::InPlace => answer.await,
                }
                .map_err(dropped)?
            }
            Writer::Pg(pool) => {
                let (pool, bells) = (pool.clone(), bells.clone());
                // In a task of its own: a caller who breaks off must not leave a connection in the middle of a
                // transaction, which whoever gets it next would commit.
                let task = tokio::spawn(async move { postgres(&pool, &bells, &wall, work).await });
                task.await.map_err(|e| Error::Internal(format!("a write came to no end: {e}")))?
            }
        }
    }
}

/// What a write says. One that panics has failed, and is rolled back like any other: it must neither end the one writer
/// of SQLite, nor give a connection back in the middle of a transaction, which whoever gets it next would commit.
async fn caught<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let panicked = |panic: Box<dyn Any + Send>| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a word");
        Err(Error::Internal(format!("a write panicked: {text}")))
    };
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(panicked)
}

// === PostgreSQL ===

async fn postgres<T, F>(
    pool: &Pool<PgConnection>,
    bells: &Bells,
    wall: &Arc<str>,
    work: F,
) -> Result<T, Error>
where
    F: for<'a> Fn(&'a mut Tx) -> TxFuture<'a, T>,
{
    let mut tries = 0;
    loop {
        tries += 1;
        let lent = pool.acquire_behind(wall).await.map_err(|e| DbError::new("acquire", e))?;
        let mut tx = Tx::new(Conn::pg(lent, pool.outside()).behind(wall.clone()));
        tx.run("BEGIN", &[]).await?;
        let mut outcome = caught(async { work(&mut tx).await }).await;
        if outcome.is_ok()
            && let Err(error) = tx.run("COMMIT", &[]).await
        {
            outcome = Err(error.into());
        }
        match outcome {
            Ok(value) => {
                tx.take_bells().into_iter().for_each(|bell| bells.ring(bell));
                return Ok(value);
            }
            Err(error) => {
                // A connection that cannot even roll back does not go home; nothing to add.
                let _ = tx.roll_back("ROLLBACK").await;
                if tries < TRIES && is_retry(&error) {
                    continue;
                }
                return Err(given_up(error));
            }
        }
    }
}

/// What a caller is told of others who were in the way each time: the database's own words are for the log.
fn given_up(error: Error) -> Error {
    match error {
        Error::Unavailable(text) if text.starts_with(RETRY_MARK) => {
            tracing::warn!(tries = TRIES, "a write was given up: {text}");
            Error::Unavailable(
                "others were in the way each time; nothing was changed; try again in a moment".to_owned(),
            )
        }
        error => error,
    }
}

fn is_retry(error: &Error) -> bool {
    matches!(error, Error::Internal(text) | Error::Unavailable(text) if text.starts_with(RETRY_MARK))
}

// === SQLite ===

/// Runs one closure in a savepoint, and keeps what to answer for after the commit.
async fn one<T, F>(tx: &mut Tx, work: Arc<F>, reply: oneshot::Sender<Result<T, Error>>) -> (bool, Finish)
where
    T: Send + 'static,
    F: for<'a> Fn(&'a mut Tx) -> TxFuture<'a, T> + Send + Sync + 'static,
{
    let outcome = caught(async { work(tx).await }).await;
    let good = outcome.is_ok();
    let finish: Finish = Box::new(move |committed| {
        // Whoever asked may have gone; the write stands all the same.
        let _ = reply.send(committed.and(outcome));
    });
    (good, finish)
}

async fn run(lite: Lite, mut tasks: mpsc::Receiver<Task>, bells: Bells) {
    let mut tx = Tx::new(Conn::own(lite));
    while let Some(first) = tasks.recv().await {
        let mut batch = vec![first];
        while batch.len() < MOST_IN_ONE_COMMIT {
            match tasks.try_recv() {
                Ok(task) => batch.push(task),
                Err(_) => break,
            }
        }
        commit_together(&mut tx, batch, &bells).await;
        tx.is_over();
    }
}

async fn commit_together(tx: &mut Tx, batch: Vec<Task>, bells: &Bells) {
    let begun = match tx.run("BEGIN IMMEDIATE", &[]).await {
        Ok(_) => tx.run("SAVEPOINT one", &[]).await,
        failed => failed,
    };
    if let Err(error) = begun {
        // Whatever was begun must not stay open; where nothing was, the next one gets a new connection.
        let _ = tx.roll_back("ROLLBACK").await;
        // Dropping the tasks drops their reply channels: each caller hears that the store is not there.
        return tracing::error!(?error, "no transaction could be begun");
    }
    let mut finishes = Vec::with_capacity(batch.len());
    let mut outcome = Ok(());
    for task in batch {
        let (finish, went) = in_savepoint(tx, task).await;
        finishes.push(finish);
        if went.is_err() {
            // Outside a transaction each statement would be its own: the rest is dropped, and its callers hear of it.
            outcome = went;
            break;
        }
    }
    if outcome.is_ok() {
        // The savepoint that is open ends with it.
        outcome = tx.run("COMMIT", &[]).await.map(drop);
    }
    if let Err(error) = &outcome {
        tracing::error!(?error, "a commit failed");
        let _ = tx.roll_back("ROLLBACK").await;
    }
    let good = outcome.is_ok();
    // First the bells: whoever is answered that a right has ended must not find it there.
    if good {
        tx.take_bells().into_iter().for_each(|bell| bells.ring(bell));
    }
    for finish in finishes {
        let outcome = if good {
            Ok(())
        } else {
            Err(Error::Unavailable("the database could not keep the change; nothing was changed".to_owned()))
        };
        finish(outcome);
    }
}

/// Runs one closure in the savepoint that is open, and leaves one open for the next. An error means that nothing is
/// known of the transaction any more.
async fn in_savepoint(tx: &mut Tx, task: Task) -> (Finish, Result<(), DbError>) {
    let bells = tx.bells_rung();
    let (good, finish) = task(tx).await;
    if good {
        let released = tx.run("RELEASE one", &[]).await;
        let again = if released.is_ok() { tx.run("SAVEPOINT one", &[]).await } else { released };
        return (finish, again.map(drop));
    }
    tx.forget_after(bells);
    // It stays open.
    (finish, tx.roll_back("ROLLBACK TO one").await)
}
