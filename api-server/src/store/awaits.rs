//! What a job waits for: that nodes report on what they were ordered. However many hold an object, what is asked of them
//! is as short as a question about one.

use super::db::{Value, values};
use super::run::JobRow;
use super::tx::Tx;
use super::{Context, among, drain};
use crate::kernel::{Error, Timestamp, Who};

/// How long a job that waits for a bell sleeps before it looks by itself.
pub(super) const LOOK_AGAIN_SECONDS: i64 = 15;

/// How a step stands.
pub(super) enum Outcome {
    /// Go on to the next. `made`: the step made what it ordered.
    Done { made: bool },
    /// Nothing to do before this object is reported, or this moment.
    Wait { awaits: Option<String>, until: Timestamp, message: String, progress: i64 },
    /// The job cannot go on.
    Failed(String),
}

/// Whose orders must be carried out.
pub(super) struct Ordered<'a> {
    /// The object.
    pub(super) id: &'a str,
    /// In this generation; `None`: in the one that was ordered last.
    pub(super) generation: Option<i64>,
    /// On this node; empty: on all that hold it.
    pub(super) node: &'a str,
}

/// A report on this object is waited for, until then at most.
pub(super) fn report(id: &str, until: Timestamp) -> Outcome {
    waiting(id, until, String::new(), 0)
}

fn waiting(id: &str, until: Timestamp, message: String, progress: i64) -> Outcome {
    Outcome::Wait { awaits: Some(id.to_owned()), until, message, progress }
}

/// One that has not done what was ordered, of those that these words leave.
fn behind(never: i64, words: &str) -> String {
    format!(
        "SELECT * FROM (SELECT a.message, a.progress, r.name, CAST({never} AS BIGINT) AS never FROM assignment a \
         JOIN resource r ON r.id = a.node WHERE a.object = $1 AND a.remove = 0 AND {words} \
         AND a.applied_generation < coalesce($2, a.generation) AND ($3 = '' OR a.node = $3) \
         ORDER BY a.node LIMIT 1) AS one_{never}"
    )
}

/// All holders that matter report the generation that was ordered, or one says that it never will.
pub(super) async fn applied(
    tx: &mut Tx,
    context: &Context,
    ordered: Ordered<'_>,
    deadline: Timestamp,
) -> Result<Outcome, Error> {
    // Thousands may hold it, and each few of them that report wake whoever asks this: so those that are behind have an
    // index of their own, and so have those that gave up.
    let sql = format!(
        "{} UNION ALL {}",
        behind(
            1,
            "a.permanent = 1 AND a.state = 'failed' AND a.reported_generation >= coalesce($2, a.generation)"
        ),
        behind(0, "a.applied_generation < a.generation")
    );
    let generation = Value::Int(ordered.generation);
    let rows = tx.rows(&sql, values![ordered.id, generation, ordered.node]).await?;
    let mut never = None;
    for row in &rows {
        never = never.or(row.truth("never")?.then_some(row));
    }
    if let Some(row) = never {
        return Ok(Outcome::Failed(row.text("message")?));
    }
    let Some(row) = rows.first() else { return Ok(Outcome::Done { made: false }) };
    let message = row.text("message")?;
    if context.env.now() >= deadline {
        let last = if message.is_empty() { "it said nothing".to_owned() } else { message };
        return Ok(Outcome::Failed(format!("node `{}` was not done in time: {last}", row.text("name")?)));
    }
    Ok(waiting(ordered.id, deadline, message, row.int("progress")?))
}

/// Removal is never given up: a node that is away finishes it when it returns. `node`: only that one matters; empty: all.
/// What only moves does not wait for a lost node, which runs nothing of it.
pub(super) async fn gone(
    tx: &mut Tx,
    context: &Context,
    job: &JobRow,
    id: &str,
    node: &str,
) -> Result<Outcome, Error> {
    let fenced = i64::from(job.verb.as_str() == drain::MOVE);
    // Who only knows of it, and was revoked, answers no more, and needs not.
    let own = if id == job.resource { among::who_matters(context, job, &Who::This)? } else { "" };
    let sql = "SELECT a.message, r.name, s.connected FROM assignment a JOIN resource r ON r.id = a.node \
               JOIN node_state s ON s.node = a.node WHERE a.object = $1 AND ($2 = '' OR a.node = $2) AND ($3 = 0 OR a.fenced = 0) \
               AND ($4 = '' OR a.node = $4 OR EXISTS (SELECT 1 FROM certificate c WHERE c.node = a.node AND c.revoked_at IS NULL)) LIMIT 1";
    let Some(row) = tx.row(sql, values![id, node, fenced, own]).await? else {
        return Ok(Outcome::Done { made: false });
    };
    let message = match row.truth("connected")? {
        true => row.text("message")?,
        false => format!("node `{}` is away; it will be finished when it returns", row.text("name")?),
    };
    Ok(waiting(id, context.env.now().plus_seconds(LOOK_AGAIN_SECONDS), message, 0))
}
