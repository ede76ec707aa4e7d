//! Retention: takes entries out at the front of the log, up to a signed checkpoint, which is where its proof
//! begins from then on. The log itself tells of it.

use super::db::values;
use super::log::{self, LogLease};
use super::tx::Tx;
use super::{Context, Store, prove};
use crate::kernel::Error;

/// How much of the log is kept. `None`: all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// For so long.
    pub seconds: Option<i64>,
    /// At most so many entries, or few more: it ends at a checkpoint.
    pub entries: Option<i64>,
}

/// So many rows are deleted by one transaction.
const AT_ONCE: i64 = 2000;

impl Store {
    /// Takes out what need not be kept: the first entry that is kept from now on. `None`: the lease is
    /// another's by now.
    pub async fn prune_log(&self, lease: &LogLease, keep: Keep) -> Result<Option<i64>, Error> {
        let first = self
            .write(lease.clone(), move |tx, context, lease| {
                Box::pin(async move { move_front(tx, &context, &lease, keep).await })
            })
            .await?;
        let Some(first) = first else { return Ok(None) };
        // Nobody reads these any more; a crash in between leaves some for the next time.
        while self
            .write(first, |tx, _, first| Box::pin(async move { delete_before(tx, first).await }))
            .await?
            > 0
        {}
        Ok(Some(first))
    }
}

async fn move_front(
    tx: &mut Tx,
    context: &Context,
    lease: &LogLease,
    keep: Keep,
) -> Result<Option<i64>, Error> {
    let Some((head, _)) = log::locked_head(tx, lease).await? else { return Ok(None) };
    let mut bound = 0;
    if let Some(entries) = keep.entries {
        bound = head.seq - entries;
    }
    if let Some(seconds) = keep.seconds {
        bound = bound.max(log::before(tx, context.env.now().plus_seconds(-seconds)).await?);
    }
    let sql = "SELECT max(seq) AS seq FROM log_checkpoint WHERE seq >= $1 AND seq <= $2";
    let row = tx.row(sql, values![head.first, bound]).await?;
    let Some(last) = row.map(|row| row.maybe_int("seq")).transpose()?.flatten() else {
        return Ok(Some(head.first));
    };
    let sql = "UPDATE log_head SET first = $3 WHERE id = 1 AND holder = $1 AND epoch = $2";
    tx.run(sql, values![&lease.holder, lease.epoch, last + 1]).await?;
    tx.run("DELETE FROM log_checkpoint WHERE seq < $1", values![last]).await?;
    log::system(tx, context, "prune", &prove::prune_detail(last)).await?;
    Ok(Some(last + 1))
}

async fn delete_before(tx: &mut Tx, first: i64) -> Result<u64, Error> {
    let sql =
        "DELETE FROM event_log WHERE seq IN (SELECT seq FROM event_log WHERE seq < $1 ORDER BY seq LIMIT $2)";
    Ok(tx.run(sql, values![first, AT_ONCE]).await?)
}
