//! A job goes as far as it can, in one transaction: each call ends one step and begins the next.
//!
//! Nothing here reaches outside the database: an order is a row, and waiting is a row that a report wakes.
//! So a job needs no owner: any server may advance it, a row lock keeps two from doing it at once, and a
//! server that dies leaves nothing half done. What a step did is undone by its own kind of step, last first.

use super::awaits::{self, LOOK_AGAIN_SECONDS, Ordered, Outcome};
use super::db::{DbError, values};
use super::objects::{self, seen};
use super::run::{self, JobRow, Run};
use super::standing::Standing;
use super::tx::Tx;
use super::{Context, Store, among, assign, claims, empty, jobs, letters, phases, quota, realms, webhooks};
use crate::kernel::{Error, Held, JobState, Step, Stored, Timestamp, Verb, Who};

impl Store {
    /// Ids of jobs that are due since `from` or later, the longest waiting first, and since when each is. What ended
    /// before stays in the way of whoever looks there, for as long as any transaction may yet want to see it: so
    /// nobody should look from the beginning each time.
    pub(crate) async fn due_jobs(
        &self,
        from: Timestamp,
        limit: i64,
    ) -> Result<Vec<(String, Timestamp)>, Error> {
        let sql = "SELECT id, wake_at FROM job WHERE finished_at IS NULL AND wake_at >= $1 AND wake_at <= $2 \
                   ORDER BY wake_at LIMIT $3";
        let rows = self.read().await?.rows(sql, values![from, self.env().now(), limit]).await?;
        Ok(rows
            .iter()
            .map(|row| Ok((row.text("id")?, row.time("wake_at")?)))
            .collect::<Result<_, DbError>>()?)
    }

    /// Takes these jobs as far as they go, in one transaction; how many moved. Those that another server has in hand
    /// are its own.
    pub(crate) async fn advance_jobs(&self, ids: &[String]) -> Result<usize, Error> {
        let taken = ids.to_vec();
        self.write(taken, move |tx, context, ids| {
            Box::pin(async move {
                let runs = run::take(tx, &ids, false).await?;
                advance(tx, &context, runs).await
            })
        })
        .await
    }
}

/// Takes these jobs as far as they go, whoever has them in hand now; how many moved.
pub(super) async fn advance_all(tx: &mut Tx, context: &Context, ids: &[String]) -> Result<usize, Error> {
    let runs = run::take(tx, ids, true).await?;
    advance(tx, context, runs).await
}

/// A new job takes its first steps, unless it is to `wait` for so many seconds at most; how far it is then.
pub(super) async fn begin(
    tx: &mut Tx,
    context: &Context,
    mut run: Run,
    wait: Option<i64>,
) -> Result<JobState, Error> {
    if let Some(seconds) = wait {
        run.wait(context, None, context.env.now().plus_seconds(seconds));
    } else {
        start(context, &mut run);
        go(tx, context, &mut run).await?;
    }
    let state = run.job.state;
    put_down(tx, context, &mut [run]).await?;
    Ok(state)
}

async fn advance(tx: &mut Tx, context: &Context, mut runs: Vec<Run>) -> Result<usize, Error> {
    runs.retain(|run| !run.job.state.is_final());
    let standing = Standing::of(tx, &runs).await?;
    // Those behind another one that is in hand too are as due as before, and come after it.
    runs.retain(|run| !standing.behind_one_in_hand.contains(&run.job.id));
    // A creation takes its quota first and then its node: so must whoever orders of nodes and gives quota back.
    let giving_back = runs.iter().filter(|run| run.may_give_back()).map(|run| run.job.resource.clone());
    quota::take_in_hand(tx, &giving_back.collect::<Vec<_>>()).await?;
    for run in &mut runs {
        if run.job.state == JobState::Waiting {
            if let Some(problem) = standing.failed.get(&run.job.id) {
                fail(tx, context, run, problem).await?;
            } else if standing.blocked.contains(&run.job.id) {
                run.wait(context, None, context.env.now().plus_seconds(LOOK_AGAIN_SECONDS));
            } else {
                start(context, run);
            }
        }
        go(tx, context, run).await?;
    }
    put_down(tx, context, &mut runs).await?;
    Ok(runs.len())
}

/// Writes what the jobs in hand have done, and says which of them have ended.
async fn put_down(tx: &mut Tx, context: &Context, runs: &mut [Run]) -> Result<(), Error> {
    run::save(tx, runs).await?;
    let done = runs.iter().filter(|run| !run.put_down && run.job.state == JobState::Done);
    let ended: Vec<JobRow> = done.map(|run| run.job.clone()).collect();
    jobs::ended(tx, context, &ended).await?;
    let changed = ended.iter().filter(|job| matches!(job.verb, Verb::Update | Verb::Act(_)));
    claims::drop_stale(tx, &changed.map(|job| job.resource.clone()).collect::<Vec<_>>()).await?;
    let objects: Vec<String> = ended.into_iter().map(|job| job.resource).collect();
    phases::refresh(tx, context, &objects).await
}

// === waiting ===

fn start(context: &Context, run: &mut Run) {
    run.job.state = JobState::Running;
    run.job.started_at = Some(context.env.now());
}

async fn go(tx: &mut Tx, context: &Context, run: &mut Run) -> Result<(), Error> {
    loop {
        let again = match run.job.state {
            JobState::Running => forward(tx, context, run).await?,
            JobState::Undoing => backward(tx, context, run).await?,
            JobState::Waiting | JobState::Done | JobState::Failed | JobState::Cancelled => false,
        };
        if !again {
            return Ok(());
        }
    }
}

// === forward ===

async fn forward(tx: &mut Tx, context: &Context, run: &mut Run) -> Result<bool, Error> {
    if order_together(tx, context, run).await? > 0 {
        return Ok(true);
    }
    let now = context.env.now();
    let (job, index) = (run.job.clone(), run.job.step);
    let told = std::mem::take(&mut run.told);
    let Some(row) = run.at() else {
        run.end(context, JobState::Done);
        return Ok(false);
    };
    let started = *row.started_at.get_or_insert(now);
    let outcome = match context.env.fails(index) {
        Some(problem) => Outcome::Failed(problem),
        None if told.contains(awaited(&job, &row.step)) => not_heard_of(&job, &row.step, started),
        None => carry_out(tx, context, &job, &row.step, started).await?,
    };
    match outcome {
        Outcome::Done { made } => {
            run.done(context, made);
            Ok(true)
        }
        Outcome::Wait { awaits, until, message, progress } => {
            row.state = "running".to_owned();
            (row.message, row.progress) = (message, progress);
            run.wait(context, awaits, until);
            Ok(false)
        }
        Outcome::Failed(problem) => {
            row.state = "failed".to_owned();
            (row.message, row.finished_at) = (problem.clone(), Some(now));
            fail(tx, context, run, &problem).await
        }
    }
}

/// Orders what this step and those right behind it order, all at once; how many steps that was.
async fn order_together(tx: &mut Tx, context: &Context, run: &mut Run) -> Result<usize, Error> {
    let Some(node) = node_of(&run.job).map(str::to_owned) else { return Ok(0) };
    let mut objects: Vec<Stored> = Vec::new();
    for (row, index) in run.ahead() {
        let Step::Assign { who } = &row.step else { break };
        if context.env.fails(index).is_some() {
            break;
        }
        let Some(object) = subject(tx, &run.job, who).await? else { break };
        if objects.iter().any(|other| other.core.id == object.core.id) {
            break;
        }
        objects.push(object);
    }
    let all = assign::assign(tx, context, &objects, &node).await?;
    for (object, assigned) in objects.iter().zip(&all) {
        run.done(context, assigned.made);
        if assigned.told {
            run.told.insert(object.core.id.clone());
        }
    }
    Ok(all.len())
}

/// Whose report a step waits for; nobody's id if it waits for none.
fn awaited<'a>(job: &'a JobRow, step: &'a Step) -> &'a str {
    match step {
        Step::AwaitApplied { who, .. } => id_of(job, who),
        _ => "",
    }
}

/// What was ordered in this very transaction nobody can have reported.
fn not_heard_of(job: &JobRow, step: &Step, started: Timestamp) -> Outcome {
    let seconds = match step {
        Step::AwaitApplied { deadline_seconds, .. } => i64::from(*deadline_seconds),
        _ => LOOK_AGAIN_SECONDS,
    };
    awaits::report(awaited(job, step), started.plus_seconds(seconds))
}

async fn carry_out(
    tx: &mut Tx,
    context: &Context,
    job: &JobRow,
    step: &Step,
    started: Timestamp,
) -> Result<Outcome, Error> {
    match step {
        // `order_together` has done what can be done.
        Step::Assign { who } if node_of(job).is_some() => Ok(not_there(who)),
        Step::Assign { .. } => Ok(Outcome::Failed("it has no node".to_owned())),
        Step::Refresh { who } => {
            let Some(object) = subject(tx, job, who).await? else { return Ok(not_there(who)) };
            assign::refresh(tx, context, &object).await?;
            Ok(Outcome::Done { made: false })
        }
        Step::Tell { who } => {
            among::tell_users(tx, context, id_of(job, who)).await.map(|()| Outcome::Done { made: false })
        }
        Step::AwaitApplied { who, deadline_seconds } => {
            let deadline = started.plus_seconds(i64::from(*deadline_seconds));
            let own = (*who == Who::This).then_some(job.generation);
            let matters = among::who_matters(context, job, who)?;
            let ordered = Ordered { id: id_of(job, who), generation: own, node: matters };
            awaits::applied(tx, context, ordered, deadline).await
        }
        Step::AwaitStatus { pointer, deadline_seconds, missing } => {
            let object = objects::by_id(tx, &job.resource, false).await?;
            let there =
                object.is_some_and(|o| o.status.pointer(pointer).is_some_and(|value| !value.is_null()));
            let deadline = started.plus_seconds(i64::from(*deadline_seconds));
            Ok(match there {
                true => Outcome::Done { made: false },
                false if context.env.now() >= deadline => Outcome::Failed(missing.clone()),
                false => awaits::report(&job.resource, deadline),
            })
        }
        Step::Unassign { who } => {
            among::unassign(tx, context, id_of(job, who)).await?;
            Ok(Outcome::Done { made: false })
        }
        Step::AwaitGone { who } => awaits::gone(tx, context, job, id_of(job, who), "").await,
        Step::AwaitJobs { jobs } => jobs::all_ended(tx, context, jobs).await,
        Step::Realm { name, gone, deadline_seconds } => {
            let deadline = started.plus_seconds(i64::from(*deadline_seconds));
            realms::step(tx, context, job, (name, *gone), deadline).await
        }
        Step::Empty => empty::some(tx, context, job).await,
        Step::Release => {
            release(tx, context, &job.resource).await?;
            Ok(Outcome::Done { made: false })
        }
    }
}

fn not_there(who: &Who) -> Outcome {
    Outcome::Failed(format!("{who:?} is not there any more"))
}

/// Everything is given back; the object is gone, its history stays.
async fn release(tx: &mut Tx, context: &Context, id: &str) -> Result<(), Error> {
    claims::release(tx, context, id).await?;
    tx.run("DELETE FROM label WHERE resource = $1", values![id]).await?;
    tx.run("DELETE FROM reference WHERE source = $1", values![id]).await?;
    tx.run("DELETE FROM secret WHERE holder = $1", values![id]).await?;
    webhooks::forget(tx, id).await?;
    objects::set_gone(tx, context, id).await
}

// === backward ===

/// What cannot go on takes back what it did. Only a creation has anything to take back: a failed change
/// leaves the wanted spec, and shows that it is not applied.
async fn fail(tx: &mut Tx, context: &Context, run: &mut Run, problem: &str) -> Result<bool, Error> {
    if run.job.verb == Verb::Create {
        (run.job.state, run.job.awaits) = (JobState::Undoing, None);
        run.job.problem = Some(problem.to_owned());
        run::save(tx, std::slice::from_mut(run)).await?;
        cancel_those_behind(tx, context, &run.job).await?;
        return Ok(true);
    }
    end_failed(tx, context, run, Some(problem)).await
}

async fn end_failed(
    tx: &mut Tx,
    context: &Context,
    run: &mut Run,
    problem: Option<&str>,
) -> Result<bool, Error> {
    run::save(tx, std::slice::from_mut(run)).await?;
    letters::end_failed(tx, context, &run.job, problem).await?;
    (run.job.state, run.put_down) = (JobState::Failed, true);
    phases::refresh_one(tx, context, &run.job.resource).await?;
    Ok(false)
}

async fn cancel_those_behind(tx: &mut Tx, context: &Context, job: &JobRow) -> Result<(), Error> {
    let sql = format!("SELECT id FROM job WHERE {} = $1 AND id > $2 AND verb <> 'remove'", jobs::OPEN_OF);
    for row in tx.rows(&sql, values![&job.resource, &job.id]).await? {
        let reason = "the creation before it failed";
        jobs::end(tx, context, &row.text("id")?, JobState::Cancelled, Some(reason)).await?;
    }
    // What the object is now follows from its creation, not from what was cancelled behind it.
    objects::set_job(tx, &job.resource, &job.id).await?;
    phases::refresh_one(tx, context, &job.resource).await
}

async fn backward(tx: &mut Tx, context: &Context, run: &mut Run) -> Result<bool, Error> {
    let now = context.env.now();
    let job = run.job.clone();
    let Some(row) = run.at() else {
        return step_back(tx, context, run).await;
    };
    if let Step::Assign { who } = &row.step
        && row.made
    {
        let id = id_of(&job, who).to_owned();
        if undo_takes_away(tx, context, &job, who).await? {
            let node = node_of(&job).unwrap_or_default().to_owned();
            let sql = "SELECT remove FROM assignment WHERE node = $1 AND object = $2";
            match tx.row(sql, values![&node, &id]).await? {
                Some(held) if !held.truth("remove")? => assign::unassign_from(tx, &node, &id).await?,
                _ => {}
            }
            if let Outcome::Wait { awaits, until, message, progress } =
                awaits::gone(tx, context, &job, &id, &node).await?
            {
                row.state = "undoing".to_owned();
                (row.message, row.progress) = (message, progress);
                run.wait(context, awaits, until);
                return Ok(false);
            }
        }
        row.state = "undone".to_owned();
        row.finished_at = Some(now);
    } else if let Step::Realm { .. } = &row.step {
        // What was made stays: realms are deleted by nobody who was not asked to.
        realms::forget(tx, &job.id).await?;
    }
    step_back(tx, context, run).await
}

/// What the job made for its object alone goes; what others may share stays as long as they need it.
async fn undo_takes_away(tx: &mut Tx, context: &Context, job: &JobRow, who: &Who) -> Result<bool, Error> {
    let id = id_of(job, who);
    if id == job.resource || is_child(job, id) {
        return Ok(true);
    }
    let Some(object) = seen(tx, id).await? else { return Ok(false) };
    if context.registry.get(&object.core.kind)?.meta().held != Held::WhileNeeded {
        return Ok(false);
    }
    Ok(!assign::is_needed(tx, node_of(job).unwrap_or_default(), id).await?)
}

fn is_child(job: &JobRow, id: &str) -> bool {
    let claims = job.snapshot["claims"].as_object();
    claims.is_some_and(|claims| {
        claims.iter().any(|(key, value)| key != "node" && !key.contains('.') && value.as_str() == Some(id))
    })
}

async fn step_back(tx: &mut Tx, context: &Context, run: &mut Run) -> Result<bool, Error> {
    if run.job.step > 0 {
        (run.job.step, run.job.awaits) = (run.job.step - 1, None);
        return Ok(true);
    }
    // Those that came while it took back what it did, too.
    cancel_those_behind(tx, context, &run.job).await?;
    end_failed(tx, context, run, None).await
}

// === helpers ===

/// The object that a step speaks of. The job's own is as it was when the job was made.
async fn subject(tx: &mut Tx, job: &JobRow, who: &Who) -> Result<Option<Stored>, Error> {
    let Some(mut object) = seen(tx, id_of(job, who)).await? else { return Ok(None) };
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

/// Takes the jobs that wait for this object as far as they go, in the same transaction.
pub(super) async fn advance_waiting(tx: &mut Tx, context: &Context, object: &str) -> Result<(), Error> {
    let sql = "SELECT id FROM job WHERE awaits = $1 ORDER BY id";
    let rows = tx.rows(sql, values![object]).await?;
    let ids = rows.iter().map(|row| row.text("id")).collect::<Result<Vec<_>, _>>()?;
    advance_all(tx, context, &ids).await.map(drop)
}
