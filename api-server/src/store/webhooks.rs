//! Webhooks: how far each is in the log, which server delivers for it, and what came of its last tries.
//!
//! A server delivers for a webhook as long as its heartbeat is there; whoever takes one over raises its epoch, and
//! every write names it: who wakes up late writes nothing.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use super::db::{Row, values};
use super::objects::{self, COLUMNS};
use super::tx::Tx;
use super::{Context, Event, Store, log, phases};
use crate::kernel::webhook::{KIND, PREFIX};
use crate::kernel::{Error, FieldError, Kind, Right, Stored, Timestamp, Verb};

/// So many tries of each are kept.
pub const KEPT_DELIVERIES: i64 = 100;

/// A webhook that a server delivers for.
#[derive(Clone, Debug)]
pub struct Hook {
    /// The object.
    pub object: Stored,
    /// Where it is.
    pub at: HookState,
    /// Raised by whoever takes it over.
    pub epoch: i64,
}

/// Where a webhook is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HookState {
    /// The last entry of the log that is done with.
    pub seq: i64,
    /// How often the next one was tried.
    pub attempts: i64,
    /// Since when.
    pub first_at: Option<Timestamp>,
    /// Nothing is tried before.
    pub due_at: Timestamp,
    /// Tries that failed since the last that did not.
    pub failures: i64,
    /// Since when.
    pub failing_since: Option<Timestamp>,
}

/// One try.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Delivery {
    /// Rises by one from try to try of a webhook.
    pub number: i64,
    /// The entry of the log; 0 for a test.
    pub seq: i64,
    /// `webhook-id`.
    pub message: String,
    /// `instance.create`.
    #[serde(rename = "type")]
    pub message_type: String,
    /// How often the entry was tried by then.
    pub attempt: i64,
    /// When.
    pub at: Timestamp,
    /// How long it took.
    pub took_ms: i64,
    /// `delivered`, `failed`, `given-up`.
    pub outcome: String,
    /// What was answered; 0 if nothing was.
    pub status: i64,
    /// Why it failed.
    pub detail: String,
}

/// Judges URLs that users want to be called: why not.
pub type UrlJudge = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

impl Store {
    /// URLs that users give are refused when this says so.
    pub fn judge_urls(&self, judge: UrlJudge) {
        let _ = self.context.url_judge.set(judge);
    }

    /// Takes over the webhooks for which nobody delivers, and tells all that this server delivers for.
    pub async fn my_webhooks(&self, server: &str) -> Result<Vec<Hook>, Error> {
        const FREE: &str = "holder <> $1 AND holder NOT IN (SELECT id FROM server)";
        let sql = format!("SELECT 1 AS one FROM webhook_state WHERE {FREE} LIMIT 1");
        let free = self.read().await?.row(&sql, values![server]).await?.is_some();
        if free {
            self.write(server.to_owned(), |tx, _, server| {
                Box::pin(async move {
                    let sql = format!("UPDATE webhook_state SET holder = $1, epoch = epoch + 1 WHERE {FREE}");
                    tx.run(&sql, values![server]).await?;
                    Ok(())
                })
            })
            .await?;
        }
        let sql = format!(
            "SELECT {COLUMNS}, w.seq, w.attempts, w.first_at, w.due_at, w.failures, w.failing_since, w.epoch \
             FROM webhook_state w JOIN live l ON l.id = w.webhook JOIN resource r ON r.id = w.webhook WHERE w.holder = $1"
        );
        self.read().await?.rows(&sql, values![server]).await?.iter().map(hook).collect()
    }

    /// Gives back those that this server delivers for, so that another one need not wait for its end.
    pub async fn leave_webhooks(&self, server: &str) -> Result<(), Error> {
        self.write(server.to_owned(), |tx, _, server| {
            Box::pin(async move {
                tx.run("UPDATE webhook_state SET holder = '' WHERE holder = $1", values![server]).await?;
                Ok(())
            })
        })
        .await
    }

    /// What came of a try, and where the webhook is now. `status`: what users see of it, if that is another.
    /// `false`: somebody else delivers for it by now, or it is gone, and nothing was written.
    pub async fn delivered(
        &self,
        hook: &Hook,
        now: HookState,
        tried: Delivery,
        status: Option<Value>,
    ) -> Result<bool, Error> {
        let taken = (hook.object.core.id.clone(), hook.epoch, now, tried, status);
        self.write(taken, |tx, context, (id, epoch, now, tried, status)| {
            Box::pin(async move {
                // The object's row first: whoever changes it holds that, and writes the state then.
                let object = objects::by_id(tx, &id, true).await?;
                if !move_on(tx, &id, epoch, &now).await? {
                    return Ok(false);
                }
                note(tx, &id, tried).await?;
                if let (Some(mut object), Some(status)) = (object, status) {
                    object.status = status;
                    objects::update_status(tx, &mut object).await?;
                    phases::refresh_one(tx, &context, &id).await?;
                }
                Ok(true)
            })
        })
        .await
    }

    /// Moves a webhook on over entries that it does not want. `false`: as `delivered`.
    pub async fn passed_over(
        &self,
        hook: &Hook,
        now: HookState,
        missed_before: Option<i64>,
    ) -> Result<bool, Error> {
        let taken = (hook.object.core.id.clone(), hook.epoch, now, missed_before);
        self.write(taken, |tx, _, (id, epoch, now, missed_before)| {
            Box::pin(async move {
                let object = objects::by_id(tx, &id, true).await?;
                let good = move_on(tx, &id, epoch, &now).await?;
                if let (Some(mut object), Some(first), true) = (object, missed_before, good) {
                    if !object.status.is_object() {
                        object.status = objects::empty();
                    }
                    object.status["missed_before"] = json!(first);
                    objects::update_status(tx, &mut object).await?;
                }
                Ok(good)
            })
        })
        .await
    }

    /// A try that somebody asked for: kept in the list, and the webhook is where it was.
    pub async fn note_delivery(&self, webhook: &str, tried: Delivery) -> Result<Delivery, Error> {
        self.write((webhook.to_owned(), tried), |tx, _, (id, tried)| {
            Box::pin(async move { note(tx, &id, tried).await })
        })
        .await
    }

    /// The last tries of a webhook, the newest first.
    pub async fn deliveries(
        &self,
        right: &Right,
        kind: &'static dyn Kind,
        id: &str,
        limit: i64,
        before: Option<i64>,
    ) -> Result<Vec<Delivery>, Error> {
        let mut conn = self.read_for(right).await?;
        let object = objects::find_own(&mut conn, right, kind, id).await?;
        let sql = "SELECT number, seq, message, type, attempt, at, took_ms, outcome, status, detail FROM webhook_delivery \
                   WHERE webhook = $1 AND number < $2 ORDER BY number DESC LIMIT $3";
        let rows = conn.rows(sql, values![&object.core.id, before.unwrap_or(i64::MAX), limit]).await?;
        rows.iter().map(delivery).collect()
    }

    /// One entry of the log, if it is kept and this right lets one see it.
    pub async fn entry(&self, right: &Right, seq: i64) -> Result<Option<Event>, Error> {
        let mut found = self.log_after(seq - 1, 1).await?;
        let wall = right.wall();
        let mine = |event: &Event| match right.tenant() {
            _ if !wall.lets(&event.tenant) => false,
            "" => right.caller().operator,
            tenant => event.tenant == tenant,
        };
        Ok(found.pop().filter(|event| event.seq == seq && mine(event)))
    }

    /// Tags of these objects, also of those that have gone.
    pub async fn tags_of(&self, ids: &[&str]) -> Result<BTreeMap<String, BTreeMap<String, String>>, Error> {
        let mut conn = self.read().await?;
        let mut all = BTreeMap::new();
        for id in ids.iter().filter(|id| !id.is_empty()) {
            let row = conn.row("SELECT tags FROM resource WHERE id = $1", values![*id]).await?;
            if let Some(row) = row {
                all.insert((*id).to_owned(), row.json("tags")?);
            }
        }
        Ok(all)
    }
}

/// Why a webhook's URL is not called, as far as that can be told now.
pub(super) fn judged(context: &Context, object: &Stored) -> Option<FieldError> {
    if object.core.kind != KIND {
        return None;
    }
    let judge = context.url_judge.get()?;
    let refused = judge(object.spec["url"].as_str()?).err()?;
    Some(FieldError::new("spec.url", refused))
}

/// What a user's write means for the deliveries: a new one, or one that is enabled again, begins with what comes from
/// now on; one that was changed is tried at once.
pub(super) async fn wrote(
    tx: &mut Tx,
    context: &Context,
    object: &mut Stored,
    verb: &Verb,
) -> Result<(), Error> {
    let id = object.core.id.clone();
    let head = log::head(tx).await?.seq;
    match verb {
        Verb::Create => {
            let sql = "INSERT INTO webhook_state (webhook, seq, attempts, due_at, failures, number, holder, epoch) \
                       VALUES ($1, $2, 0, 0, 0, 0, '', 0)";
            tx.run(sql, values![id, head]).await?;
        }
        // The phase is still that of before.
        Verb::Update if object.core.phase == "disabled" && object.spec["enabled"] == true => {
            let sql = "UPDATE webhook_state SET seq = $2, attempts = 0, first_at = NULL, due_at = 0, failures = 0, \
                       failing_since = NULL WHERE webhook = $1";
            tx.run(sql, values![id, head]).await?;
            if let Some(status) = object.status.as_object_mut() {
                for gone in ["failing_since", "failures", "last_error", "disabled"] {
                    status.remove(gone);
                }
            }
            objects::update_status(tx, object).await?;
        }
        Verb::Update => {
            let sql = "UPDATE webhook_state SET due_at = $2 WHERE webhook = $1 AND due_at > $2";
            tx.run(sql, values![id, context.env.now()]).await?;
        }
        _ => {}
    }
    Ok(())
}

/// It is gone.
pub(super) async fn forget(tx: &mut Tx, id: &str) -> Result<(), Error> {
    if id.strip_prefix(PREFIX).is_some_and(|rest| rest.starts_with('_')) {
        tx.run("DELETE FROM webhook_delivery WHERE webhook = $1", values![id]).await?;
        tx.run("DELETE FROM webhook_state WHERE webhook = $1", values![id]).await?;
    }
    Ok(())
}

async fn move_on(tx: &mut Tx, id: &str, epoch: i64, now: &HookState) -> Result<bool, Error> {
    let sql = "UPDATE webhook_state SET seq = $3, attempts = $4, first_at = $5, due_at = $6, failures = $7, \
               failing_since = $8 WHERE webhook = $1 AND epoch = $2 AND seq <= $3";
    let here =
        values![id, epoch, now.seq, now.attempts, now.first_at, now.due_at, now.failures, now.failing_since];
    Ok(tx.run(sql, here).await? == 1)
}

async fn note(tx: &mut Tx, id: &str, mut tried: Delivery) -> Result<Delivery, Error> {
    let sql = "UPDATE webhook_state SET number = number + 1 WHERE webhook = $1 RETURNING number";
    let row = tx.row(sql, values![id]).await?.ok_or(Error::NotFound)?;
    tried.number = row.int("number")?;
    let sql = "INSERT INTO webhook_delivery (webhook, number, seq, message, type, attempt, at, took_ms, outcome, status, \
               detail) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";
    let row = values![
        id,
        tried.number,
        tried.seq,
        &tried.message,
        &tried.message_type,
        tried.attempt,
        tried.at,
        tried.took_ms,
        &tried.outcome,
        tried.status,
        &tried.detail,
    ];
    tx.run(sql, row).await?;
    let sql = "DELETE FROM webhook_delivery WHERE webhook = $1 AND number <= $2";
    tx.run(sql, values![id, tried.number - KEPT_DELIVERIES]).await?;
    Ok(tried)
}

fn hook(row: &Row) -> Result<Hook, Error> {
    let at = HookState {
        seq: row.int("seq")?,
        attempts: row.int("attempts")?,
        first_at: row.maybe_time("first_at")?,
        due_at: row.time("due_at")?,
        failures: row.int("failures")?,
        failing_since: row.maybe_time("failing_since")?,
    };
    Ok(Hook { object: objects::stored(row)?, at, epoch: row.int("epoch")? })
}

fn delivery(row: &Row) -> Result<Delivery, Error> {
    Ok(Delivery {
        number: row.int("number")?,
        seq: row.int("seq")?,
        message: row.text("message")?,
        message_type: row.text("type")?,
        attempt: row.int("attempt")?,
        at: row.time("at")?,
        took_ms: row.int("took_ms")?,
        outcome: row.text("outcome")?,
        status: row.int("status")?,
        detail: row.text("detail")?,
    })
}
