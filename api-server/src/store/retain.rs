//! Retention of history: ended jobs with their steps, old revisions, and what has gone are forgotten after a time, if
//! an operator has said so. Object by object along the primary key: it needs no index of its own, so that no write pays
//! for what is done once in some hours.
//!
//! Never taken: anything of an object that has an open job or a dead letter; of a living one its last job, the last one
//! that was done, its present revision, and that which an undo of a job to come would go back to.

use super::db::{Value, values};
use super::tx::{Tx, list};
use super::{Context, Store};
use crate::kernel::Error;

/// How long history is kept, in seconds. `None`: for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeepHistory {
    /// Ended jobs, with their steps.
    pub jobs: Option<i64>,
    /// What objects were.
    pub revisions: Option<i64>,
}

/// How many objects are looked at at once.
const OBJECTS: i64 = 200;
/// At most so many jobs, and so many revisions, go with one transaction.
const AT_ONCE: i64 = 1000;
/// So many are in one statement.
const IN_ONE: usize = 64;

// `r` is the object; `$1` to `$2` are ids of objects; jobs of before `$3` go, revisions of before `$4`, objects that
// were gone before `$5`.

/// Nothing is under way with it, and nothing waits for a decision.
const QUIET: &str = "NOT EXISTS (SELECT 1 FROM job u WHERE (CASE WHEN u.finished_at IS NULL THEN u.resource END) = r.id) \
     AND (r.gone_at IS NOT NULL OR NOT EXISTS (SELECT 1 FROM job d WHERE d.id = r.job AND d.state = 'failed'))";

const JOB: &str = "j.resource = r.id AND j.finished_at < $3 \
     AND (r.gone_at IS NOT NULL OR (j.id <> coalesce(r.job, '') AND (j.state <> 'done' \
       OR EXISTS (SELECT 1 FROM job k WHERE k.resource = r.id AND k.id > j.id AND k.state = 'done')))) \
     AND NOT EXISTS (SELECT 1 FROM job_after a JOIN job w ON w.id = a.job \
       WHERE a.after = j.id AND w.finished_at IS NULL)";

const REVISION: &str = "v.resource = r.id AND v.at < $4 AND (r.gone_at < $4 OR (r.gone_at IS NULL \
     AND v.version < r.version AND v.version <> coalesce((SELECT max(w.version) FROM revision w \
       WHERE w.resource = r.id AND w.generation = (SELECT j.generation FROM job j \
         WHERE j.resource = r.id AND j.state = 'done' ORDER BY j.id DESC LIMIT 1)), 0)))";

/// Rows that hold on to an object that has gone: nodes and tenants stay, and whose history is kept.
const HOLD: [&str; 27] = [
    "live t WHERE t.id",
    "label t WHERE t.resource",
    "job t WHERE t.resource",
    "revision t WHERE t.resource",
    "assignment t WHERE t.object",
    "assignment t WHERE t.node",
    "placement t WHERE t.holder",
    "placement t WHERE t.node",
    "reference t WHERE t.source",
    "lease t WHERE t.holder",
    "range_lease t WHERE t.holder",
    "secret t WHERE t.holder",
    "node_state t WHERE t.node",
    "node_finding t WHERE t.node",
    "node_decision t WHERE t.node",
    "node_machine t WHERE t.node",
    "certificate t WHERE t.node",
    "join_token t WHERE t.node",
    "quota t WHERE t.tenant",
    "quota_use t WHERE t.holder",
    "webhook_state t WHERE t.webhook",
    "webhook_delivery t WHERE t.webhook",
    "identity t WHERE t.holder",
    "grantee t WHERE t.holder",
    "api_token t WHERE t.holder",
    "second_factor t WHERE t.holder",
    "recovery_code t WHERE t.holder",
];

fn object_goes() -> String {
    let free = HOLD.map(|rows| format!(" AND NOT EXISTS (SELECT 1 FROM {rows} = r.id)")).concat();
    format!("r.gone_at < $5{free}")
}

impl Store {
    /// Forgets what need not be kept of the next objects after this one (its id). Where to go on; `None`: there are no
    /// more.
    pub async fn forget_history(&self, after: &str, keep: KeepHistory) -> Result<Option<String>, Error> {
        if keep == KeepHistory::default() {
            return Ok(None);
        }
        let sql = "SELECT id FROM resource WHERE id > $1 ORDER BY id LIMIT $2";
        let rows = self.read().await?.rows(sql, values![after, OBJECTS]).await?;
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return Ok(None) };
        let (first, last) = (first.text("id")?, last.text("id")?);
        // Most of the time there is nothing to do, and then nothing is locked or written.
        let sql = format!(
            "SELECT r.id FROM resource r WHERE r.id >= $1 AND r.id <= $2 AND {QUIET} \
             AND (EXISTS (SELECT 1 FROM job j WHERE {JOB}) OR EXISTS (SELECT 1 FROM revision v WHERE {REVISION}) \
             OR ({})) ORDER BY r.id",
            object_goes()
        );
        loop {
            let here = range(&self.context, keep, &first, &last);
            let rows = self.read().await?.rows(&sql, &here).await?;
            let ids = rows.iter().map(|row| row.text("id")).collect::<Result<Vec<_>, _>>()?;
            if ids.is_empty() {
                return Ok(Some(last));
            }
            let gone = self
                .write((ids, keep), |tx, context, (ids, keep)| {
                    Box::pin(async move { forget(tx, &context, &ids, keep).await })
                })
                .await?;
            if gone == 0 {
                // Somebody took one of them up meanwhile: the next time.
                return Ok(Some(last));
            }
        }
    }

    /// How long answers to requests under an `Idempotency-Key` are kept, unless it is a day. Once is enough: a later
    /// word is ignored.
    pub fn keep_answers(&self, seconds: i64) {
        let _ = self.context.answer_seconds.set(seconds);
    }
}

/// The first five values of each statement.
fn range(context: &Context, keep: KeepHistory, first: &str, last: &str) -> Vec<Value> {
    let now = context.env.now();
    // Nothing is older than 1970.
    let before = |seconds: Option<i64>| seconds.map_or(0, |seconds| now.plus_seconds(-seconds).0);
    let (jobs, revisions) = (before(keep.jobs), before(keep.revisions));
    values![first, last, jobs, revisions, jobs.min(revisions)].to_vec()
}

/// How many rows went.
async fn forget(tx: &mut Tx, context: &Context, ids: &[String], keep: KeepHistory) -> Result<i64, Error> {
    let (mut left, mut gone) = (AT_ONCE, 0);
    for id in ids {
        // Whoever restores a revision meanwhile waits, and finds it or not; and the reverse.
        let lock = format!("SELECT id FROM resource WHERE id = $1{}", tx.for_update());
        tx.row(&lock, values![id]).await?;
        let here = range(context, keep, id, id);
        let jobs = forget_jobs(tx, &here, left).await?;
        let revisions = forget_revisions(tx, id, &here, left).await?;
        left -= jobs.max(revisions);
        gone += jobs + revisions;
        if left <= 0 {
            return Ok(gone);
        }
        let sql = format!(
            "DELETE FROM resource WHERE id IN (SELECT r.id FROM resource r \
             WHERE r.id >= $1 AND r.id <= $2 AND {QUIET} AND {})",
            object_goes()
        );
        gone += counted(tx.run(&sql, &here).await?);
    }
    Ok(gone)
}

fn counted(rows: u64) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}

async fn forget_jobs(tx: &mut Tx, here: &[Value], most: i64) -> Result<i64, Error> {
    let sql = format!(
        "SELECT j.id FROM resource r JOIN job j ON {JOB} WHERE r.id >= $1 AND r.id <= $2 AND {QUIET} \
         ORDER BY j.id LIMIT $6"
    );
    let rows = tx.rows(&sql, &[here, &[most.into()]].concat()).await?;
    let ids = rows.iter().map(|row| row.text("id")).collect::<Result<Vec<_>, _>>()?;
    for some in ids.chunks(IN_ONE) {
        let (list, values) = list(some);
        for rows in ["job_step WHERE job", "job_after WHERE job", "job_after WHERE after", "job WHERE id"] {
            tx.run(&format!("DELETE FROM {rows} IN {list}"), &values).await?;
        }
    }
    Ok(counted(ids.len() as u64))
}

async fn forget_revisions(tx: &mut Tx, id: &str, here: &[Value], most: i64) -> Result<i64, Error> {
    let sql = format!(
        "DELETE FROM revision WHERE (resource, version) IN (SELECT v.resource, v.version \
         FROM resource r JOIN revision v ON {REVISION} WHERE r.id >= $1 AND r.id <= $2 AND {QUIET} \
         ORDER BY v.version LIMIT $6)"
    );
    let gone = tx.run(&sql, &[here, &[most.into()]].concat()).await?;
    if gone > 0 {
        // A secret of a spec that no revision names can never be asked for again.
        let sql = "DELETE FROM secret WHERE holder = $1 AND field LIKE 'spec.%' AND NOT EXISTS (SELECT 1 FROM revision v \
                   WHERE v.resource = $1 AND v.spec LIKE '%' || secret.id || '%')";
        tx.run(sql, values![id]).await?;
    }
    Ok(counted(gone))
}
