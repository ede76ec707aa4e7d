//! What expires: each such object holds the moment as a lease, so that the next ones to expire are found by an index.
//! When it has passed, the status says so, and with it the phase. Nodes know the moment from their orders, and wait for
//! nobody.

use serde_json::{Value, json};

use super::db::values;
use super::objects::by_id;
use super::report::set_status;
use super::tx::Tx;
use super::{Context, Store};
use crate::kernel::plan::{EXPIRED, EXPIRY};
use crate::kernel::{Error, plan};

/// How many are told by one transaction.
const AT_ONCE: i64 = 100;

impl Store {
    /// Tells of a few objects that they have expired; how many. 0: none is left to tell of.
    pub async fn expire(&self) -> Result<usize, Error> {
        let due = due(self, EXPIRY).await?;
        if due.is_empty() {
            return Ok(0);
        }
        self.write(due, |tx, context, due| Box::pin(async move { expire(tx, &context, due).await })).await
    }
}

/// Leases of this scope whose moment has come, and their holders: a few, in the order in which two servers lock them.
pub(super) async fn due(store: &Store, scope: &str) -> Result<Vec<(String, String)>, Error> {
    let sql = "SELECT value, holder FROM lease WHERE scope = $1 AND value < $2 ORDER BY value LIMIT $3";
    // Sorts after all of this moment.
    let until = format!("{:020};", store.env().now().0);
    let rows = store.read().await?.rows(sql, values![scope, until, AT_ONCE]).await?;
    let due = rows.iter().map(|row| Ok((row.text("value")?, row.text("holder")?)));
    let mut due = due.collect::<Result<Vec<_>, super::db::DbError>>()?;
    due.sort_by(|a, b| a.1.cmp(&b.1));
    Ok(due)
}

async fn expire(tx: &mut Tx, context: &Context, due: Vec<(String, String)>) -> Result<usize, Error> {
    for (value, holder) in &due {
        let Some(mut object) = by_id(tx, holder, true).await? else { continue };
        let sql = "DELETE FROM lease WHERE scope = $1 AND value = $2 RETURNING key";
        // It may have been given more time, or been told of, since it was looked for.
        let Some(row) = tx.row(sql, values![EXPIRY, value]).await? else { continue };
        let sql =
            "INSERT INTO lease (scope, value, holder, key) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
        tx.run(sql, values![EXPIRED, value, holder, row.text("key")?]).await?;
        if object.claims.get("expires.at").and_then(Value::as_str) != Some(value) {
            continue;
        }
        let Some(at) = plan::moment_of(value) else { continue };
        let mut status = if object.status.is_object() { object.status.clone() } else { json!({}) };
        status["expired_at"] = json!(at);
        set_status(tx, context, &mut object, status).await?;
    }
    Ok(due.len())
}
