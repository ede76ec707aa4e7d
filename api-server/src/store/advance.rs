//! A job goes as far as it can, in one transaction: each call ends one step and begins the next.
//!
//! Nothing here reaches outside the database: an order is a row, and waiting is a row that a report wakes.
//! So a job needs no owner: any server may advance it, a row lock keeps two from doing it at once, and a
//! server that dies leaves nothing half done. What a step did is undone by its own kind of step, last first.

use super::db::{Row, Tx, values};
use super::jobs::{self, JobRow};
use super::objects::{self, by_id};
use super::{Context, Store, assign, claims, letters, webhooks};
use crate::kernel::{Error, Held, JobState, Step, Stored, Timestamp, Verb, Who};

/// How long a job that waits for a bell sleeps before it looks by itself.
const LOOK_AGAIN_SECONDS: i64 = 15;

impl Store {
    /// Ids of jobs that are due, the longest waiting first.
    pub(crate) async fn due_jobs(&self, limit: i64) -> Result<Vec<String>, Error> {
        let sql = "SELECT id FROM job WHERE finished_at IS NULL AND wake_at <= $1 ORDER BY wake_at LIMIT $2";
        let rows = self.read().await?.rows(sql, values![self.env().now(), limit]).await?;
        Ok(rows.iter().map(|row| row.text("id")).collect::<Result<_, _>>()?)
    }

    /// Takes a job as far as it goes.
    pub(crate) async fn advance_job(&self, id: &str) -> Result<(), Error> {
        let taken = id.to_owned();
        self.write(taken, move |tx, context, id| Box::pin(async move { advance(tx, &context, &id).await }))
            .await
    }
}

/// How a step stands.
enum Outcome {
    /// Go on to the next. `made`: the step made what it ordered.
    Done { made: bool },
    /// Nothing to do before this object is reported, or this moment.
    Wait { awaits: Option<String>, until: Timestamp, message: String, progress: i64 },
    /// The job cannot go on.
    Failed(String),
}

/// A step as its row has it.
struct StepRow {
    step: Step,
    made: bool,
    started_at: Option<Timestamp>,
}

pub(super) async fn advance(tx: &mut Tx, context: &Context, id: &str) -> Result<(), Error> {
    loop {
        let Some(job) = jobs::load(tx, id).await? else { return Ok(()) };
        let again = match job.state {
            JobState::Waiting => begin(tx, context, &job).await?,
            JobState::Running => forward(tx, context, &job).await?,
            JobState::Undoing => backward(tx, context, &job).await?,
            JobState::Done | JobState::Failed | JobState::Cancelled => false,
        };
        if !again {
            return Ok(());
        }
    }
}

// === waiting ===

async fn begin(tx: &mut Tx, context: &Context, job: &JobRow) -> Result<bool, Error> {
    let sql = "SELECT id FROM job WHERE resource = $1 AND finished_at IS NULL AND id < $2 LIMIT 1";
    let before = tx.row(sql, values![&job.resource, &job.id]).await?;
    let sql = "SELECT j.state, j.finished_at, j.resource_name, j.kind FROM job_after a JOIN job j ON j.id = a.after \
               WHERE a.job = $1";
    let mut blocked = before.is_some();
    for row in tx.rows(sql, values![&job.id]).await? {
        let state = JobState::parse(&row.text("state")?);
        if row.maybe_int("finished_at")?.is_none() {
            blocked = true;
        } else if state != JobState::Done {
            let who = format!("{} `{}`", row.text("kind")?, row.text("resource_name")?);
            let problem = format!("the {who}, which it needs, could not be made");
            return fail(tx, context, job, &problem).await;
        }
    }
    if blocked {
        wait(tx, context, job, None, context.env.now().plus_seconds(LOOK_AGAIN_SECONDS)).await?;
        return Ok(false);
    }
    let sql = "UPDATE job SET state = 'running', started_at = $2, epoch = epoch + 1 WHERE id = $1";
    tx.run(sql, values![&job.id, context.env.now()]).await?;
    Ok(true)
}

// === forward ===

async fn forward(tx: &mut Tx, context: &Context, job: &JobRow) -> Result<bool, Error> {
    let Some(row) = step(tx, job, job.step).await? else {
        finish(tx, context, job).await?;
        return Ok(false);
    };
    let now = context.env.now();
    let started = row.started_at.unwrap_or(now);
    let outcome = match context.env.fails(job.step) {
        Some(problem) => Outcome::Failed(problem),
        None => carry_out(tx, context, job, &row.step, started).await?,
    };
    match outcome {
        Outcome::Done { made } => {
            let sql = "UPDATE job_step SET state = 'done', made = $3, message = '', progress = 100, \
                       started_at = coalesce(started_at, $4), finished_at = $4 WHERE job = $1 AND idx = $2";
            tx.run(sql, values![&job.id, job.step, made, now]).await?;
            tx.run("UPDATE job SET step = step + 1, awaits = NULL WHERE id = $1", values![&job.id]).await?;
            Ok(true)
        }
        Outcome::Wait { awaits, until, message, progress } => {
            let sql = "UPDATE job_step SET state = 'running', message = $3, progress = $4, \
                       started_at = coalesce(started_at, $5) WHERE job = $1 AND idx = $2";
            tx.run(sql, values![&job.id, job.step, message, progress, now]).await?;
            wait(tx, context, job, awaits, until).await?;
            Ok(false)
        }
        Outcome::Failed(problem) => {
            let sql = "UPDATE job_step SET state = 'failed', message = $3, finished_at = $4 WHERE job = $1 AND idx = $2";
            tx.run(sql, values![&job.id, job.step, &problem, now]).await?;
            fail(tx, context, job, &problem).await
        }
    }
}

async fn carry_out(
    tx: &mut Tx,
    context: &Context,
    job: &JobRow,
    step: &Step,
    started: Timestamp,
) -> Result<Outcome, Error> {
    match step {
        Step::Assign { who } => {
            let Some(object) = subject(tx, job, who).await? else { return Ok(not_there(who)) };
            let Some(node) = node_of(job) else {
                return Ok(Outcome::Failed("it has no node".to_owned()));
            };
            let made = assign::assign(tx, context, &object, node).await?;
            Ok(Outcome::Done { made })
        }
        Step::Refresh { who } => {
            let Some(object) = subject(tx, job, who).await? else { return Ok(not_there(who)) };
            for node in assign::holders(tx, &object.core.id).await? {
                assign::assign(tx, context, &object, &node).await?;
            }
            Ok(Outcome::Done { made: false })
        }
        Step::AwaitApplied { who, deadline_seconds } => {
            let deadline = started.plus_seconds(i64::from(*deadline_seconds));
            applied(tx, context, job, who, deadline).await
        }
        Step::AwaitStatus { pointer, deadline_seconds, missing } => {
            let object = by_id(tx, &job.resource, false).await?;
            let there =
                object.is_some_and(|o| o.status.pointer(pointer).is_some_and(|value| !value.is_null()));
            let deadline = started.plus_seconds(i64::from(*deadline_seconds));
            Ok(match there {
                true => Outcome::Done { made: false },
                false if context.env.now() >= deadline => Outcome::Failed(missing.clone()),
                false => waiting(&job.resource, deadline, String::new(), 0),
            })
        }
        Step::Unassign { who } => {
            assign::unassign(tx, id_of(job, who)).await?;
            Ok(Outcome::Done { made: false })
        }
        Step::AwaitGone { who } => gone(tx, context, id_of(job, who), "").await,
        Step::AwaitJobs { jobs } => ended(tx, context, jobs).await,
        Step::Release => {
            release(tx, context, &job.resource).await?;
            Ok(Outcome::Done { made: false })
        }
    }
}

fn not_there(who: &Who) -> Outcome {
    Outcome::Failed(format!("{who:?} is not there any more"))
}

fn waiting(awaits: &str, until: Timestamp, message: String, progress: i64) -> Outcome {
    Outcome::Wait { awaits: Some(awaits.to_owned()), until, message, progress }
}

/// All holders that matter report the generation of the job, or one says that it never will.
async fn applied(
    tx: &mut Tx,
    context: &Context,
    job: &JobRow,
    who: &Who,
    deadline: Timestamp,
) -> Result<Outcome, Error> {
    let id = id_of(job, who);
    let sql = "SELECT a.node, a.generation, a.reported_generation, a.applied_generation, a.permanent, a.state, \
               a.message, a.progress, r.name FROM assignment a JOIN resource r ON r.id = a.node \
               WHERE a.object = $1 AND a.remove = 0 ORDER BY a.node";
    let mut behind: Option<Row> = None;
    for row in tx.rows(sql, values![id]).await? {
        let wanted = if *who == Who::This { job.generation } else { row.int("generation")? };
        if row.int("applied_generation")? >= wanted {
            continue;
        }
        let speaks_of_this = row.int("reported_generation")? >= wanted;
        if speaks_of_this && row.text("state")? == "failed" && row.truth("permanent")? {
            return Ok(Outcome::Failed(row.text("message")?));
        }
        behind = Some(row);
    }
    let Some(row) = behind else { return Ok(Outcome::Done { made: false }) };
    let message = row.text("message")?;
    if context.env.now() >= deadline {
        let last = if message.is_empty() { "it said nothing".to_owned() } else { message };
        return Ok(Outcome::Failed(format!("node `{}` was not done in time: {last}", row.text("name")?)));
    }
    Ok(waiting(id, deadline, message, row.int("progress")?))
}

/// Each of these jobs is told of when it is its turn to be waited for.
async fn ended(tx: &mut Tx, context: &Context, all: &[String]) -> Result<Outcome, Error> {
    let (mut open, mut failed) = (Vec::new(), Vec::new());
    for id in all {
        let sql = "SELECT state, finished_at, resource_name FROM job WHERE id = $1";
        let Some(row) = tx.row(sql, values![id]).await? else { continue };
        if row.maybe_int("finished_at")?.is_none() {
            open.push((id, row.text("resource_name")?));
        } else if row.text("state")? == "failed" {
            failed.push(format!("`{}`", row.text("resource_name")?));
        }
    }
    let Some((next, name)) = open.first() else {
        return Ok(match failed.is_empty() {
            true => Outcome::Done { made: false },
            false => Outcome::Failed(format!("{} failed: see what its job says", failed.join(", "))),
        });
    };
    let done = all.len() - open.len();
    let message = format!("{done} of {} are done; waits for `{name}`", all.len());
    let progress = i64::try_from(done * 100 / all.len()).unwrap_or(0);
    Ok(waiting(next, context.env.now().plus_seconds(LOOK_AGAIN_SECONDS), message, progress))
}

/// Removal is never given up: a node that is away finishes it when it returns. `node`: only that one matters; empty: all.
async fn gone(tx: &mut Tx, context: &Context, id: &str, node: &str) -> Result<Outcome, Error> {
    let sql = "SELECT a.message, r.name, s.connected FROM assignment a JOIN resource r ON r.id = a.node \
               JOIN node_state s ON s.node = a.node WHERE a.object = $1 AND ($2 = '' OR a.node = $2) LIMIT 1";
    let Some(row) = tx.row(sql, values![id, node]).await? else { return Ok(Outcome::Done { made: false }) };
    let message = match row.truth("connected")? {
        true => row.text("message")?,
        false => format!("node `{}` is away; it will be finished when it returns", row.text("name")?),
    };
    Ok(waiting(id, context.env.now().plus_seconds(LOOK_AGAIN_SECONDS), message, 0))
}

/// Everything is given back; the object is gone, its history stays.
async fn release(tx: &mut Tx, context: &Context, id: &str) -> Result<(), Error> {
    claims::release(tx, id).await?;
    tx.run("DELETE FROM label WHERE resource = $1", values![id]).await?;
    tx.run("DELETE FROM reference WHERE source = $1", values![id]).await?;
    tx.run("DELETE FROM secret WHERE holder = $1", values![id]).await?;
    webhooks::forget(tx, id).await?;
    tx.run("UPDATE resource SET gone_at = $2 WHERE id = $1", values![id, context.env.now()]).await?;
    tx.ring(super::Bell::Resource(id.to_owned()));
    Ok(())
}

async fn finish(tx: &mut Tx, context: &Context, job: &JobRow) -> Result<(), Error> {
    jobs::end(tx, context, &job.id, JobState::Done, None).await?;
    if matches!(job.verb, Verb::Update | Verb::Act(_))
        && let Some(object) = by_id(tx, &job.resource, false).await?
    {
        claims::drop_stale(tx, &job.resource, &object.claims).await?;
    }
    objects::refresh_phase(tx, context, &job.resource).await
}

// === backward ===

/// What cannot go on takes back what it did. Only a creation has anything to take back: a failed change
/// leaves the wanted spec, and shows that it is not applied.
async fn fail(tx: &mut Tx, context: &Context, job: &JobRow, problem: &str) -> Result<bool, Error> {
    if job.verb == Verb::Create {
        let sql =
            "UPDATE job SET state = 'undoing', problem = $2, awaits = NULL, epoch = epoch + 1 WHERE id = $1";
        tx.run(sql, values![&job.id, problem]).await?;
        cancel_those_behind(tx, context, job).await?;
        return Ok(true);
    }
    letters::end_failed(tx, context, job, Some(problem)).await?;
    objects::refresh_phase(tx, context, &job.resource).await?;
    Ok(false)
}

async fn cancel_those_behind(tx: &mut Tx, context: &Context, job: &JobRow) -> Result<(), Error> {
    let sql =
        "SELECT id FROM job WHERE resource = $1 AND finished_at IS NULL AND id > $2 AND verb <> 'remove'";
    for row in tx.rows(sql, values![&job.resource, &job.id]).await? {
        let reason = "the creation before it failed";
        jobs::end(tx, context, &row.text("id")?, JobState::Cancelled, Some(reason)).await?;
    }
    // What the object is now follows from its creation, not from what was cancelled behind it.
    let sql = "UPDATE resource SET job = $2 WHERE id = $1 AND deleted_at IS NULL";
    tx.run(sql, values![&job.resource, &job.id]).await?;
    objects::refresh_phase(tx, context, &job.resource).await
}

async fn backward(tx: &mut Tx, context: &Context, job: &JobRow) -> Result<bool, Error> {
    let now = context.env.now();
    let Some(row) = step(tx, job, job.step).await? else {
        return step_back(tx, context, job).await;
    };
    if let Step::Assign { who } = &row.step
        && row.made
    {
        let id = id_of(job, who).to_owned();
        if undo_takes_away(tx, context, job, who).await? {
            let node = node_of(job).unwrap_or_default().to_owned();
            let sql = "SELECT remove FROM assignment WHERE node = $1 AND object = $2";
            match tx.row(sql, values![&node, &id]).await? {
                Some(held) if !held.truth("remove")? => assign::unassign_from(tx, &node, &id).await?,
                _ => {}
            }
            if let Outcome::Wait { awaits, until, message, progress } = gone(tx, context, &id, &node).await? {
                let sql = "UPDATE job_step SET state = 'undoing', message = $3, progress = $4 WHERE job = $1 AND idx = $2";
                tx.run(sql, values![&job.id, job.step, message, progress]).await?;
                wait(tx, context, job, awaits, until).await?;
                return Ok(false);
            }
        }
        let sql = "UPDATE job_step SET state = 'undone', finished_at = $3 WHERE job = $1 AND idx = $2";
        tx.run(sql, values![&job.id, job.step, now]).await?;
    }
    step_back(tx, context, job).await
}

/// What the job made for its object alone goes; what others may share stays as long as they need it.
async fn undo_takes_away(tx: &mut Tx, context: &Context, job: &JobRow, who: &Who) -> Result<bool, Error> {
    let id = id_of(job, who);
    if id == job.resource || is_child(job, id) {
        return Ok(true);
    }
    let Some(object) = by_id(tx, id, false).await? else { return Ok(false) };
    if context.registry.get(&object.core.kind)?.meta().held != Held::WhileNeeded {
        return Ok(false);
    }
    let node = node_of(job).unwrap_or_default();
    let sql = "SELECT 1 AS one FROM assignment_need WHERE node = $1 AND need = $2 LIMIT 1";
    Ok(tx.row(sql, values![node, id]).await?.is_none())
}

fn is_child(job: &JobRow, id: &str) -> bool {
    let claims = job.snapshot["claims"].as_object();
    claims.is_some_and(|claims| {
        claims.iter().any(|(key, value)| key != "node" && !key.contains('.') && value.as_str() == Some(id))
    })
}

async fn step_back(tx: &mut Tx, context: &Context, job: &JobRow) -> Result<bool, Error> {
    if job.step > 0 {
        tx.run("UPDATE job SET step = step - 1, awaits = NULL WHERE id = $1", values![&job.id]).await?;
        return Ok(true);
    }
    // Those that came while it took back what it did, too.
    cancel_those_behind(tx, context, job).await?;
    letters::end_failed(tx, context, job, None).await?;
    objects::refresh_phase(tx, context, &job.resource).await?;
    Ok(false)
}

// === helpers ===

async fn step(tx: &mut Tx, job: &JobRow, index: i64) -> Result<Option<StepRow>, Error> {
    let sql = "SELECT step, made, started_at FROM job_step WHERE job = $1 AND idx = $2";
    let Some(row) = tx.row(sql, values![&job.id, index]).await? else { return Ok(None) };
    Ok(Some(StepRow {
        step: row.json("step")?,
        made: row.truth("made")?,
        started_at: row.maybe_time("started_at")?,
    }))
}

async fn wait(
    tx: &mut Tx,
    context: &Context,
    job: &JobRow,
    awaits: Option<String>,
    until: Timestamp,
) -> Result<(), Error> {
    // Never in the past: a job that is due for ever would spin.
    let until = until.max(context.env.now().plus_millis(100));
    tx.run("UPDATE job SET awaits = $2, wake_at = $3 WHERE id = $1", values![&job.id, awaits, until]).await?;
    Ok(())
}

/// The object that a step speaks of. The job's own is as it was when the job was made.
async fn subject(tx: &mut Tx, job: &JobRow, who: &Who) -> Result<Option<Stored>, Error> {
    let Some(mut object) = by_id(tx, id_of(job, who), false).await? else { return Ok(None) };
    if *who == Who::This {
        object.spec = job.snapshot["spec"].clone();
        object.claims = job.snapshot["claims"].as_object().cloned().unwrap_or_default();
        object.core.generation = job.generation;
    }
    Ok(Some(object))
}

fn id_of<'a>(job: &'a JobRow, who: &'a Who) -> &'a str {
    match who {
        Who::Id(id) => id,
        Who::This | Who::Ref(_) | Who::Child(_) => &job.resource,
    }
}

fn node_of(job: &JobRow) -> Option<&str> {
    job.snapshot["claims"]["node"].as_str()
}

/// The jobs that wait for a report on this object are due.
pub(super) async fn wake(tx: &mut Tx, context: &Context, object: &str) -> Result<(), Error> {
    let sql = "UPDATE job SET wake_at = $2 WHERE awaits = $1 AND finished_at IS NULL";
    if tx.run(sql, values![object, context.env.now()]).await? > 0 {
        tx.ring(super::Bell::Jobs);
    }
    Ok(())
}

/// Takes the jobs that wait for this object as far as they go, in the same transaction.
pub(super) async fn advance_waiting(tx: &mut Tx, context: &Context, object: &str) -> Result<(), Error> {
    let sql = "SELECT id FROM job WHERE awaits = $1 AND finished_at IS NULL ORDER BY id";
    for row in tx.rows(sql, values![object]).await? {
        advance(tx, context, &row.text("id")?).await?;
    }
    Ok(())
}
