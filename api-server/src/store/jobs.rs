//! Jobs as rows: how an intent becomes one, and what it does to those before it.

use serde_json::json;

use super::awaits::{LOOK_AGAIN_SECONDS, Outcome};
use super::create::Maker;
use super::db::{Value, values};
use super::run::{self, Fresh, JobRow, Run};
use super::tx::{Tx, list, padded, places};
use super::{Bell, Context, advance, drain, history, steps};
use crate::kernel::job::{Preempts, preempts};
use crate::kernel::{Error, Facts, JobState, Step, Stored, Verb};

/// So many objects are woken by one statement.
const MANY: usize = 256;

/// What a request wants done.
pub(super) struct Intent {
    pub(super) verb: Verb,
    pub(super) steps: Vec<Step>,
    /// `mode: hard`.
    pub(super) hard: bool,
    /// Cancel the waiting ones.
    pub(super) supersede: bool,
    /// It begins in a transaction of its own, as soon as this one is over.
    pub(super) later: bool,
}

// === impl Intent ===

impl Intent {
    pub(super) fn new(verb: Verb, steps: Vec<Step>) -> Intent {
        Intent { verb, steps, hard: false, supersede: false, later: false }
    }
}

/// Makes the job and takes its first steps, in the transaction of the request: its id, and how far it is then.
pub(super) async fn submit(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    object: &Stored,
    intent: Intent,
    facts: &Facts,
) -> Result<(String, JobState), Error> {
    let core = &object.core;
    let behind_others = preempt(tx, context, object, &intent).await?;
    let after = unmade(tx, &intent.verb, facts).await?;
    let now = context.env.now();
    let job = JobRow {
        id: context.env.id("job"),
        tenant: core.tenant.clone(),
        kind: core.kind.clone(),
        resource: core.id.clone(),
        resource_name: core.name.clone(),
        verb: intent.verb,
        state: JobState::Waiting,
        generation: core.generation,
        snapshot: json!({"spec": object.spec, "claims": object.claims}),
        step: 0,
        awaits: None,
        problem: None,
        actor: maker.caller.name.clone(),
        credential: maker.caller.credential.clone(),
        source: maker.asked.source.clone(),
        request_id: maker.asked.request_id.clone(),
        created_at: now,
        started_at: None,
        finished_at: None,
        wake_at: now,
    };
    let id = job.id.clone();
    let blocked = behind_others || !after.is_empty();
    let fresh = Fresh { hard: intent.hard, reason: maker.asked.reason.clone(), after };
    let run = Run::new(job, steps::concrete(object, facts, intent.steps), fresh);
    if let Some(notes) = &mut tx.notes {
        notes.jobs.push(id.clone());
    }
    tx.see(object);
    let wait = match (blocked, intent.later) {
        (true, _) => Some(LOOK_AGAIN_SECONDS),
        (false, true) => {
            tx.ring(Bell::Jobs);
            Some(0)
        }
        (false, false) => None,
    };
    let state = advance::begin(tx, context, run, wait).await?;
    Ok((id, state))
}

/// Ends the unfinished jobs of a resource that this intent does not wait for; true if others are left.
async fn preempt(tx: &mut Tx, context: &Context, object: &Stored, intent: &Intent) -> Result<bool, Error> {
    if object.is_new() {
        return Ok(false);
    }
    let mut left = false;
    let sql = format!("SELECT id, verb, state FROM job WHERE {OPEN_OF} = $1 ORDER BY id");
    for row in tx.rows(&sql, values![&object.core.id]).await? {
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
        } else {
            left = true;
        }
    }
    Ok(left)
}

/// A job waits for the unfinished creations of what it refers to.
async fn unmade(tx: &mut Tx, verb: &Verb, facts: &Facts) -> Result<Vec<String>, Error> {
    let mut all = Vec::new();
    if *verb == Verb::Remove {
        return Ok(all);
    }
    for fact in facts.0.values().filter(|fact| fact.phase == "creating") {
        let sql = format!("SELECT id FROM job WHERE {OPEN_OF} = $1 AND verb = 'create'");
        for row in tx.rows(&sql, values![&fact.id]).await? {
            all.push(row.text("id")?);
        }
    }
    all.sort();
    all.dedup();
    Ok(all)
}

/// Ends a job that nobody has in hand, and wakes whoever waits for it.
pub(super) async fn end(
    tx: &mut Tx,
    context: &Context,
    id: &str,
    state: JobState,
    problem: Option<&str>,
) -> Result<(), Error> {
    let Some(mut job) = run::lock(tx, id).await?.filter(|job| job.finished_at.is_none()) else {
        return Ok(());
    };
    let sql = "UPDATE job SET state = $2, problem = coalesce($3, problem), finished_at = $4, awaits = NULL, \
               epoch = epoch + 1 WHERE id = $1";
    tx.run(sql, values![id, state.as_str(), problem.map(str::to_owned), context.env.now()]).await?;
    job.state = state;
    if let Some(problem) = problem {
        job.problem = Some(problem.to_owned());
    }
    ended(tx, context, &[job]).await
}

/// `resource` of a job that has not ended: what the index `job_open` holds. Said so, no planner can think that another
/// index of open jobs would do as well, as it does when it last counted while none was open.
pub(super) const OPEN_OF: &str = "(CASE WHEN finished_at IS NULL THEN resource END)";

/// These jobs have ended: says so, and wakes whoever waits for them.
pub(super) async fn ended(tx: &mut Tx, context: &Context, jobs: &[JobRow]) -> Result<(), Error> {
    if jobs.is_empty() {
        return Ok(());
    }
    jobs.iter().for_each(|job| history::ended(tx, context, job));
    let ids: Vec<String> = jobs.iter().map(|job| job.id.clone()).collect();
    let resources: Vec<String> = jobs.iter().map(|job| job.resource.clone()).collect();
    let (ids, resources) = (padded(&ids), padded(&resources));
    let (count, first) = (ids.len(), 2);
    let sql = format!(
        "UPDATE job SET wake_at = $1 WHERE id IN (SELECT id FROM job WHERE {OPEN_OF} IN {1} \
         UNION SELECT id FROM job WHERE awaits IN {0} \
         UNION SELECT w.id FROM job_after a JOIN job w ON w.id = a.job WHERE a.after IN {0} \
         AND coalesce(w.finished_at, 0) = 0)",
        places(1, count, first),
        places(1, count, first + count)
    );
    let mut all = vec![Value::from(context.env.now())];
    all.extend(ids.iter().chain(&resources).map(Value::from));
    if tx.run(&sql, &all).await? > 0 {
        tx.ring(Bell::Jobs);
    }
    jobs.iter().for_each(|job| tx.ring(Bell::Resource(job.resource.clone())));
    Ok(())
}

/// The jobs that wait for a report on these objects are due.
pub(super) async fn wake(tx: &mut Tx, context: &Context, objects: &[String]) -> Result<(), Error> {
    for some in objects.chunks(MANY) {
        let (list, mut values) = list(some);
        values.push(context.env.now().into());
        let sql = format!("UPDATE job SET wake_at = ${} WHERE awaits IN {list}", values.len());
        if tx.run(&sql, &values).await? > 0 {
            tx.ring(Bell::Jobs);
        }
    }
    Ok(())
}

/// Each of these jobs is told of when it is its turn to be waited for.
pub(super) async fn all_ended(tx: &mut Tx, context: &Context, all: &[String]) -> Result<Outcome, Error> {
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
    let until = context.env.now().plus_seconds(LOOK_AGAIN_SECONDS);
    Ok(Outcome::Wait { awaits: Some((*next).clone()), until, message, progress })
}
