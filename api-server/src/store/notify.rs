//! Carries bells between servers on one PostgreSQL: one coalescing notifier per server, after commit, every
//! few milliseconds. NOTIFY inside the transactions would serialise all writes.
//!
//! PostgreSQL tells everybody who listens, the sender too. What was rung here has been heard here already: each
//! message says whose it is, and a server passes over its own.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use sqlx::postgres::PgListener;
use sqlx::{PgConnection, PgPool};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::bells::{Bell, Bells};
use super::db::outside;
use super::pool::{Lent, Pool};
use crate::kernel::env::Outside;

const CHANNEL: &str = "rhyzome";
/// How long bells are gathered before one NOTIFY carries them.
const GATHER: Duration = Duration::from_millis(2);
/// PostgreSQL takes at most 8,000 bytes in one notification.
const MOST_BYTES: usize = 7_500;

/// What a server's messages begin with: the number of the database's process that it listens by.
const FROM: &str = "from ";

/// By which one a server knows its own messages; 0 before it listens.
pub(super) type Own = Arc<AtomicI32>;

/// Sends what is rung here to the other servers.
pub(super) async fn send(pool: Pool<PgConnection>, mut bells: mpsc::UnboundedReceiver<Bell>, own: Own) {
    while let Some(first) = bells.recv().await {
        let mut gathered = HashSet::from([first]);
        tokio::time::sleep(GATHER).await;
        while let Ok(bell) = bells.try_recv() {
            gathered.insert(bell);
        }
        let head = format!("{FROM}{}\n", own.load(Ordering::Relaxed));
        let mut payload = head.clone();
        for bell in gathered {
            let line = bell.encode();
            if payload.len() + line.len() + 1 > MOST_BYTES {
                notify(&pool, &payload).await;
                payload.clone_from(&head);
            }
            payload.push_str(&line);
            payload.push('\n');
        }
        notify(&pool, &payload).await;
    }
}

async fn notify(pool: &Pool<PgConnection>, payload: &str) {
    if let Err(error) = tell(pool, payload).await {
        tracing::warn!(%error, "bells were not carried to the other servers; they will poll");
    }
}

async fn tell(pool: &Pool<PgConnection>, payload: &str) -> Result<(), sqlx::Error> {
    let mut lent = pool.acquire().await?;
    let said = say(&mut lent, pool.outside(), payload).await;
    if said.is_ok() {
        return said;
    }
    // The connection had gone, most likely; a bell that is rung twice does no harm.
    lent.renew().await?;
    say(&mut lent, pool.outside(), payload).await
}

async fn say(lent: &mut Lent<PgConnection>, how: Outside, payload: &str) -> Result<(), sqlx::Error> {
    let bells = sqlx::query("SELECT pg_notify($1, $2)").bind(CHANNEL).bind(payload);
    outside(how, bells.execute(lent.work()?)).await?;
    lent.rest();
    Ok(())
}

/// Rings here what was rung at the other servers, until the store is closed.
pub(super) async fn receive(ear: PgPool, closed: CancellationToken, bells: Bells, own: Own) {
    loop {
        match closed.run_until_cancelled(listen(&ear, &bells, &own)).await {
            None => return ear.close().await,
            Some(Err(error)) => tracing::warn!(%error, "not listening to the other servers; trying again"),
            Some(Ok(())) => {}
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn listen(pool: &PgPool, bells: &Bells, own: &Own) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(CHANNEL).await?;
    loop {
        let process = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut listener).await?;
        own.store(process, Ordering::Relaxed);
        // Nothing: the connection was lost, and there is a new one, with a process of its own.
        while let Some(notification) = listener.try_recv().await? {
            for bell in foreign(notification.payload(), process) {
                bells.ring_here(bell);
            }
        }
    }
}

/// The bells of a message, unless it is our own.
fn foreign(payload: &str, own: i32) -> impl Iterator<Item = Bell> {
    let ours = payload.strip_prefix(FROM).and_then(|rest| rest.lines().next()?.parse().ok()) == Some(own);
    payload.lines().filter(move |_| !ours).filter_map(Bell::decode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ones_own_bells_are_not_heard_again() {
        let heard = |payload| foreign(payload, 7).collect::<Vec<_>>();
        assert_eq!(heard("from 7\nj\n"), []);
        assert_eq!(heard("from 77\nj\ne\n"), [Bell::Jobs, Bell::Events]);
        assert_eq!(heard("j\n"), [Bell::Jobs]);
    }
}
