//! Jobs that went wrong, and what can be done about them: cancel, retry, skip, undo. A job that failed says what
//! it leaves behind; it stays on the list of dead letters until a later job has taken its place.

use super::change::{self, Asked};
use super::create::Maker;
use super::db::values;
use super::jobs;
use super::objects::{self, text};
use super::request::Write;
use super::run::{self, JobRow};
use super::tx::{Tx, apart};
use super::views::{Job, LAST_WORD, one_job};
use super::{Bell, Context, Store, advance, drain, history, phases, remove};
use crate::kernel::{Clash, Error, JobState, Right, Step, Verb};

impl Store {
    /// Ends a job that has not ended. A creation takes back what it did.
    pub async fn cancel_job(&self, right: &Right, id: &str) -> Result<Job, Error> {
        self.done(right, Write::CancelJob { id: id.to_owned() }, &Asked::default()).await
    }

    /// Asks again for what a failed or cancelled job was to do: a new job with the same steps.
    pub async fn retry_job(&self, right: &Right, id: &str, asked: &Asked) -> Result<Job, Error> {
        self.done(right, Write::RetryJob { id: id.to_owned() }, asked).await
    }

    /// Leaves what a failed job left as it is, or no longer waits for a node that does not come back.
    pub async fn skip_job(&self, right: &Right, id: &str, asked: &Asked) -> Result<Job, Error> {
        self.done(right, Write::SkipJob { id: id.to_owned() }, asked).await
    }

    /// Takes back what a failed job wanted: a new job.
    pub async fn undo_job(&self, right: &Right, id: &str, asked: &Asked) -> Result<Job, Error> {
        self.done(right, Write::UndoJob { id: id.to_owned() }, asked).await
    }
}

pub(super) async fn cancel_job(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    right: &Right,
    id: &str,
) -> Result<Job, Error> {
    let old = one_job(tx, right, id).await?;
    history::job_noted(tx, context, maker, &old, "cancel", id);
    cancel(tx, context, maker, id).await?;
    one_job(tx, right, id).await
}

pub(super) async fn retry_job(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    right: &Right,
    id: &str,
) -> Result<Job, Error> {
    let old = one_job(tx, right, id).await?;
    let new = retry(tx, context, maker, &old).await?;
    history::job_noted(tx, context, maker, &old, "retry", &new);
    one_job(tx, right, &new).await
}

async fn cancel(tx: &mut Tx, context: &Context, maker: &Maker<'_>, id: &str) -> Result<(), Error> {
    let Some(job) = run::lock(tx, id).await? else { return Err(Error::NotFound) };
    match (&job.verb, job.state) {
        (_, state) if state.is_final() => {
            Err(Clash::WrongState(format!("the job is {} already", state.as_str())).into())
        }
        (Verb::Remove, _) => {
            Err(Clash::WrongState("a removal cannot be cancelled: the name is free already".to_owned())
                .into())
        }
        (Verb::Act(verb), _) if verb == drain::MOVE => {
            Err(wrong("its place on the other node is taken already: wait until it is there"))
        }
        (Verb::Create, JobState::Waiting | JobState::Running) => {
            let sql = "UPDATE job SET state = 'undoing', problem = 'cancelled', awaits = NULL, epoch = epoch + 1, \
                       wake_at = $2 WHERE id = $1";
            tx.run(sql, values![id, context.env.now()]).await?;
            tx.ring(Bell::Jobs);
            advance::advance_all(tx, context, &[id.to_owned()]).await.map(drop)
        }
        (_, JobState::Undoing) => {
            Err(Clash::WrongState("the job is taking back what it did already".to_owned()).into())
        }
        _ => {
            jobs::end(tx, context, id, JobState::Cancelled, Some("cancelled")).await?;
            if job.verb == Verb::Act(drain::VERB.to_owned()) {
                drain::cancelled(tx, context, maker, &job.resource).await?;
            }
            phases::refresh_one(tx, context, &job.resource).await
        }
    }
}

async fn retry(tx: &mut Tx, context: &Context, maker: &Maker<'_>, old: &Job) -> Result<String, Error> {
    if !matches!(JobState::parse(&old.state), JobState::Failed | JobState::Cancelled) {
        return Err(Clash::WrongState(format!(
            "the job is {}; only what failed can be tried again",
            old.state
        ))
        .into());
    }
    let object = objects::by_id(tx, &old.resource, true).await?.ok_or(Error::NotFound)?;
    let kind = context.registry.get(&object.core.kind)?;
    let facts = super::facts::known(tx, context, kind, &object.spec).await?;
    let verb = Verb::parse(&old.verb);
    let taken = |why: &str| Error::from(Clash::WrongState(why.to_owned()));
    let steps: Vec<Step> = if verb == Verb::Create {
        if object.core.job.as_ref() != Some(&old.id) {
            return Err(taken("the object is no longer what this job left: a later job has taken its place"));
        }
        // What was asked for behind it is wanted too, and has not been done.
        kind.create(&object, &facts)?.steps
    } else if object.core.generation != old.generation {
        return Err(taken("the object has changed since: a later job has taken its place"));
    } else {
        old.steps.iter().filter_map(|step| serde_json::from_value(step.what.clone()).ok()).collect()
    };
    let row = tx.row("SELECT hard FROM job WHERE id = $1", values![&old.id]).await?;
    let mut intent = jobs::Intent::new(verb, steps);
    intent.hard = row.map(|row| row.truth("hard")).transpose()?.unwrap_or(false);
    let (id, _) = jobs::submit(tx, context, maker, &object, intent, &facts).await?;
    objects::set_job(tx, &object.core.id, &id).await?;
    phases::refresh_one(tx, context, &object.core.id).await?;
    Ok(id)
}

// === what is left behind ===

/// Ends a job as failed, with a statement of what it leaves behind.
pub(super) async fn end_failed(
    tx: &mut Tx,
    context: &Context,
    job: &JobRow,
    problem: Option<&str>,
) -> Result<(), Error> {
    let left = left_behind(tx, job).await?;
    tx.run("UPDATE job SET left_behind = $2 WHERE id = $1", values![&job.id, text(&left)]).await?;
    jobs::end(tx, context, &job.id, JobState::Failed, problem).await
}

async fn left_behind(tx: &mut Tx, job: &JobRow) -> Result<Vec<String>, Error> {
    let mut left = Vec::new();
    let sql = "SELECT a.remove, a.generation, a.applied_generation, n.name FROM assignment a \
               JOIN resource n ON n.id = a.node WHERE a.object = $1 ORDER BY n.name";
    for row in tx.rows(sql, values![&job.resource]).await? {
        let (node, applied) = (row.text("name")?, row.int("applied_generation")?);
        left.push(if row.truth("remove")? {
            format!("node `{node}` has not let go of it")
        } else if applied >= row.int("generation")? {
            format!("node `{node}` has it as it is wanted")
        } else if applied > 0 {
            format!("node `{node}` has it as it was in generation {applied}")
        } else {
            format!("node `{node}` was told to make it, and has not said that it did")
        });
    }
    if job.verb != Verb::Create {
        return Ok(left);
    }
    let sql = "SELECT scope, value FROM lease WHERE holder = $1 ORDER BY scope, value";
    for row in tx.rows(sql, values![&job.resource]).await? {
        let scope = row.text("scope")?;
        let what = scope.split(':').next().unwrap_or_default().replace('-', " ");
        left.push(format!("its {what} {} is kept", row.text("value")?));
    }
    let sql = "SELECT n.name FROM placement p JOIN resource n ON n.id = p.node WHERE p.holder = $1";
    if let Some(row) = tx.row(sql, values![&job.resource]).await? {
        left.push(format!("its room on node `{}` is kept", row.text("name")?));
    }
    Ok(left)
}

// === skip ===

pub(super) async fn skip_job(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    right: &Right,
    id: &str,
) -> Result<Job, Error> {
    let old = one_job(tx, right, id).await?;
    history::job_noted(tx, context, maker, &old, "skip", id);
    let job = run::lock(tx, id).await?.ok_or(Error::NotFound)?;
    match (&job.verb, job.state) {
        (_, JobState::Failed) => {
            last_word(tx, id).await?;
            let sql = "UPDATE job SET state = 'cancelled', problem = 'skipped: ' || coalesce(problem, '') WHERE id = $1";
            tx.run(sql, values![id]).await?;
            phases::refresh_one(tx, context, &job.resource).await?;
        }
        (Verb::Remove, JobState::Running) | (_, JobState::Undoing) => {
            give_up_waiting(tx, context, &job).await?
        }
        (_, JobState::Done | JobState::Cancelled) => {
            let text = format!("the job is {}: there is nothing to skip", job.state.as_str());
            return Err(Clash::WrongState(text).into());
        }
        _ => return Err(wrong("the job has not come to its end: cancel it, or wait for it")),
    }
    one_job(tx, right, id).await
}

/// Goes on without having heard that nodes let go. They are told as soon as they come back.
async fn give_up_waiting(tx: &mut Tx, context: &Context, job: &JobRow) -> Result<(), Error> {
    let left = left_behind(tx, job).await?;
    let sql = "UPDATE job_step SET state = 'skipped', made = 0, finished_at = $3 WHERE job = $1 AND idx = $2 \
               AND state IN ('running', 'undoing') AND step NOT LIKE '%\"do\":\"empty\"%'";
    if tx.run(sql, values![&job.id, job.step, context.env.now()]).await? == 0 {
        return Err(wrong("the job does not wait for a node: there is nothing to skip"));
    }
    let step = if job.state == JobState::Running { job.step + 1 } else { job.step };
    let sql = "UPDATE job SET step = $2, left_behind = $3, awaits = NULL WHERE id = $1";
    tx.run(sql, values![&job.id, step, text(&left)]).await?;
    tx.ring(Bell::Jobs);
    advance::advance_all(tx, context, std::slice::from_ref(&job.id)).await.map(drop)
}

// === undo ===

pub(super) async fn undo_job(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    right: &Right,
    id: &str,
) -> Result<Job, Error> {
    let old = one_job(tx, right, id).await?;
    if JobState::parse(&old.state) != JobState::Failed {
        return Err(wrong("only what failed can be undone; cancel what has not ended"));
    }
    last_word(tx, id).await?;
    let object = objects::by_id(tx, &old.resource, true).await?.ok_or(Error::NotFound)?;
    let kind = context.registry.get(&object.core.kind)?;
    let written = if Verb::parse(&old.verb) == Verb::Create {
        remove::refuse_protected(&object)?;
        apart(tx, |tx| remove::remove(tx, context, maker, kind, object)).await?
    } else {
        let parts = [("spec", applied_before(tx, &old).await?)];
        apart(tx, |tx| change::replace(tx, context, maker, kind, object, parts)).await?
    };
    let nothing = "it changed nothing in the spec that could be taken back: retry it, or skip it";
    let new = written.job.ok_or_else(|| wrong(nothing))?;
    history::job_noted(tx, context, maker, &old, "undo", &new);
    one_job(tx, right, &new).await
}

/// The spec that was last brought about before this job.
async fn applied_before(tx: &mut Tx, job: &Job) -> Result<serde_json::Value, Error> {
    let sql = "SELECT v.spec FROM revision v WHERE v.resource = $1 AND v.generation = (SELECT max(j.generation) FROM job j \
               WHERE j.resource = $1 AND j.state = 'done' AND j.generation < $2) ORDER BY v.version DESC LIMIT 1";
    let row = tx.row(sql, values![&job.resource, job.generation]).await?;
    Ok(row.ok_or_else(|| wrong("nothing was done before it that could be gone back to"))?.json("spec")?)
}

async fn last_word(tx: &mut Tx, id: &str) -> Result<(), Error> {
    let sql = format!("SELECT 1 AS one FROM job WHERE id = $1 AND {LAST_WORD}");
    match tx.row(&sql, values![id]).await? {
        Some(_) => Ok(()),
        None => Err(wrong("a later job has taken its place")),
    }
}

fn wrong(why: &str) -> Error {
    Clash::WrongState(why.to_owned()).into()
}
