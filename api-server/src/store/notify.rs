//! Carries bells between servers on one PostgreSQL: one coalescing notifier per server, after commit, every
//! few milliseconds. NOTIFY inside the transactions would serialise all writes.

use std::collections::HashSet;
use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::PgListener;
use tokio::sync::mpsc;

use super::bells::{Bell, Bells};

const CHANNEL: &str = "rhyzome";
/// How long bells are gathered before one NOTIFY carries them.
const GATHER: Duration = Duration::from_millis(2);
/// PostgreSQL takes at most 8,000 bytes in one notification.
const MOST_BYTES: usize = 7_500;

/// Sends what is rung here to the other servers.
pub(super) async fn send(pool: PgPool, mut bells: mpsc::UnboundedReceiver<Bell>) {
    while let Some(first) = bells.recv().await {
        let mut gathered = HashSet::from([first]);
        tokio::time::sleep(GATHER).await;
        while let Ok(bell) = bells.try_recv() {
            gathered.insert(bell);
        }
        let mut payload = String::new();
        for bell in gathered {
            let line = bell.encode();
            if payload.len() + line.len() + 1 > MOST_BYTES {
                notify(&pool, &payload).await;
                payload.clear();
            }
            payload.push_str(&line);
            payload.push('\n');
        }
        notify(&pool, &payload).await;
    }
}

async fn notify(pool: &PgPool, payload: &str) {
    let sent = sqlx::query("SELECT pg_notify($1, $2)").bind(CHANNEL).bind(payload).execute(pool).await;
    if let Err(error) = sent {
        tracing::warn!(%error, "bells were not carried to the other servers; they will poll");
    }
}

/// Rings here what was rung at the other servers, for ever.
pub(super) async fn receive(pool: PgPool, bells: Bells) {
    loop {
        if let Err(error) = listen(&pool, &bells).await {
            tracing::warn!(%error, "not listening to the other servers; trying again");
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn listen(pool: &PgPool, bells: &Bells) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(CHANNEL).await?;
    loop {
        let notification = listener.recv().await?;
        for bell in notification.payload().lines().filter_map(Bell::decode) {
            bells.ring_here(bell);
        }
    }
}
