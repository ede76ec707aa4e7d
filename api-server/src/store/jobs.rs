//! Jobs as rows: how an intent becomes one, and what it does to those before it.

use serde_json::{Value, json};

use super::create::Maker;
use super::db::{Tx, values};
use super::objects::text;
use super::{Bell, Context, advance, drain, history, steps};
use crate::kernel::job::{Preempts, preempts};
use crate::kernel::{Error, Facts, JobState, Step, Stored, Verb};

/// What a request wants done.
pub(super) struct Intent {
    pub(super) verb: Verb,
    pub(super) steps: Vec<Step>,
    /// `mode: hard`.
    pub(super) hard: bool,
    /// Cancel the waiting ones.
    pub(super) supersede: bool,
}

/// A job as `advance` sees it.
pub(super) struct JobRow {
    pub(super) id: String,
    pub(super) resource: String,
    pub(super) verb: Verb,
    pub(super) state: JobState,
    pub(super) generation: i64,
    pub(super) snapshot: Value,
    pub(super) step: i64,
}

// === impl Intent ===

impl Intent {
    pub(super) fn new(verb: Verb, steps: Vec<Step>) -> Intent {
        Intent { verb, steps, hard: false, supersede: false }
    }
}

/// Writes the job and takes its first steps, in the transaction of the request.
pub(super) async fn submit(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    object: &Stored,
    intent: Intent,
    facts: &Facts,
) -> Result<String, Error> {
    let core = &object.core;
    preempt(tx, context, &core.id, &intent).await?;
    let id = context.env.id("job");
    let now = context.env.now();
    let snapshot = json!({"spec": object.spec, "claims": object.claims});
    tx.run(
        "INSERT INTO job (id, tenant, kind, resource, resource_name, verb, hard, state, generation, snapshot, step, \
         awaits, epoch, attempts, actor, credential, source, reason, request_id, problem, left_behind, created_at, \
         started_at, finished_at, wake_at) VALUES ($1, $2, $3, $4, $5, $6, $7, 'waiting', $8, $9, 0, NULL, 0, 0, \
         $10, $11, $12, $13, $14, NULL, '[]', $15, NULL, NULL, $15)",
        values![
            &id,
            &core.tenant,
            &core.kind,
            &core.id,
            &core.name,
            intent.verb.as_str(),
            intent.hard,
            core.generation,
            text(&snapshot),
            &maker.caller.name,
            &maker.caller.credential,
            &maker.asked.source,
            maker.asked.reason.clone(),
            &maker.asked.request_id,
            now,
        ],
    )
    .await?;
    for (index, step) in steps::concrete(object, facts, intent.steps).into_iter().enumerate() {
        insert_step(tx, &id, index, &step).await?;
    }
    wait_for_others(tx, &id, &intent.verb, facts).await?;
    if let Some(notes) = &mut tx.notes {
        notes.jobs.push(id.clone());
    }
    tx.ring(Bell::Jobs);
    advance::advance(tx, context, &id).await?;
    Ok(id)
}

pub(super) async fn insert_step(tx: &mut Tx, job: &str, index: usize, step: &Step) -> Result<(), Error> {
    let sql = "INSERT INTO job_step (job, idx, step, state, message, progress, made) \
               VALUES ($1, $2, $3, 'waiting', '', 0, 0)";
    let index = i64::try_from(index).unwrap_or(i64::MAX);
    tx.run(sql, values![job, index, text(step)]).await?;
    Ok(())
}

/// Ends the unfinished jobs of a resource that this intent does not wait for.
async fn preempt(tx: &mut Tx, context: &Context, resource: &str, intent: &Intent) -> Result<(), Error> {
    let sql = "SELECT id, verb, state FROM job WHERE resource = $1 AND finished_at IS NULL ORDER BY id";
    for row in tx.rows(sql, values![resource]).await? {
        // Jobs of one object are done in the order of their ids, whichever server made them.
        context.env.after(&row.text("id")?);
        let older = Verb::parse(&row.text("verb")?);
        let waiting = JobState::parse(&row.text("state")?) == JobState::Waiting;
        let cut_short = preempts(&intent.verb, intent.hard, &older) == Preempts::Yes;
        // What was promised a place on another node has to go there.
        let stays = older == Verb::Create || older == Verb::Act(drain::MOVE.to_owned());
        if cut_short || (intent.supersede && waiting && !stays) {
            let reason = format!("preempted by a later {}", intent.verb.as_str());
            end(tx, context, &row.text("id")?, JobState::Cancelled, Some(&reason)).await?;
        }
    }
    Ok(())
}

/// A job waits for the unfinished creations of what it refers to.
async fn wait_for_others(tx: &mut Tx, id: &str, verb: &Verb, facts: &Facts) -> Result<(), Error> {
    if *verb == Verb::Remove {
        return Ok(());
    }
    for fact in facts.0.values().filter(|fact| fact.phase == "creating") {
        let sql = "INSERT INTO job_after (job, after) SELECT $1, j.id FROM job j WHERE j.resource = $2 \
                   AND j.finished_at IS NULL AND j.verb = 'create' ON CONFLICT DO NOTHING";
        tx.run(sql, values![id, &fact.id]).await?;
    }
    Ok(())
}

/// The job of this id, locked.
pub(super) async fn load(tx: &mut Tx, id: &str) -> Result<Option<JobRow>, Error> {
    let sql = format!(
        "SELECT id, resource, verb, state, generation, snapshot, step FROM job WHERE id = $1{}",
        tx.for_update()
    );
    let Some(row) = tx.row(&sql, values![id]).await? else { return Ok(None) };
    Ok(Some(JobRow {
        id: row.text("id")?,
        resource: row.text("resource")?,
        verb: Verb::parse(&row.text("verb")?),
        state: JobState::parse(&row.text("state")?),
        generation: row.int("generation")?,
        snapshot: row.json("snapshot")?,
        step: row.int("step")?,
    }))
}

/// Ends a job, and wakes whoever waits for it.
pub(super) async fn end(
    tx: &mut Tx,
    context: &Context,
    id: &str,
    state: JobState,
    problem: Option<&str>,
) -> Result<(), Error> {
    let now = context.env.now();
    let sql = "UPDATE job SET state = $2, problem = coalesce($3, problem), finished_at = $4, awaits = NULL, \
               epoch = epoch + 1 WHERE id = $1 AND finished_at IS NULL RETURNING tenant, kind, resource, resource_name, \
               verb, state, actor, credential, source, request_id, problem";
    let Some(row) = tx.row(sql, values![id, state.as_str(), problem.map(str::to_owned), now]).await? else {
        return Ok(());
    };
    history::ended(tx, context, id, &row).await?;
    let resource = row.text("resource")?;
    let sql = "UPDATE job SET wake_at = $3 WHERE finished_at IS NULL AND \
               (resource = $2 OR awaits = $1 OR id IN (SELECT job FROM job_after WHERE after = $1))";
    if tx.run(sql, values![id, &resource, now]).await? > 0 {
        tx.ring(Bell::Jobs);
    }
    tx.ring(Bell::Resource(resource));
    Ok(())
}
