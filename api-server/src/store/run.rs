//! Jobs in hand: their rows as they are, changed in memory, and written when they are put down. However many steps
//! a job takes at once, and however many jobs are in hand, that is few statements.

use std::collections::BTreeSet;

use super::db::{DbError, Row, Value, row, values};
use super::tx::{Table, Tx, list, padded, places};
use super::{Context, objects};
use crate::kernel::{Error, JobState, Step, Timestamp, Verb};

/// A job and its steps.
pub(super) struct Run {
    pub(super) job: JobRow,
    pub(super) steps: Vec<StepRow>,
    /// What a row has besides, as long as there is none.
    fresh: Option<Fresh>,
    /// True: nothing more is to be written.
    pub(super) put_down: bool,
    /// Objects that a node was told of since it was taken in hand.
    pub(super) told: BTreeSet<String>,
}

/// What is written once, with the job.
pub(super) struct Fresh {
    /// `mode: hard`.
    pub(super) hard: bool,
    /// Why it was asked for, in the caller's words.
    pub(super) reason: Option<String>,
    /// Ids of the jobs that it waits for.
    pub(super) after: Vec<String>,
}

/// A job as its row has it.
#[derive(Clone)]
pub(super) struct JobRow {
    pub(super) id: String,
    pub(super) tenant: String,
    pub(super) kind: String,
    pub(super) resource: String,
    pub(super) resource_name: String,
    pub(super) verb: Verb,
    pub(super) state: JobState,
    pub(super) generation: i64,
    pub(super) snapshot: serde_json::Value,
    pub(super) step: i64,
    pub(super) awaits: Option<String>,
    pub(super) problem: Option<String>,
    pub(super) actor: String,
    pub(super) credential: String,
    pub(super) source: String,
    pub(super) request_id: String,
    pub(super) created_at: Timestamp,
    pub(super) started_at: Option<Timestamp>,
    pub(super) finished_at: Option<Timestamp>,
    pub(super) wake_at: Timestamp,
}

/// A step as its row has it.
pub(super) struct StepRow {
    pub(super) step: Step,
    /// The step as it is kept.
    text: String,
    pub(super) state: String,
    pub(super) message: String,
    pub(super) progress: i64,
    pub(super) made: bool,
    pub(super) started_at: Option<Timestamp>,
    pub(super) finished_at: Option<Timestamp>,
    pub(super) changed: bool,
}

const COLUMNS: &str = "id, tenant, kind, resource, resource_name, verb, state, generation, snapshot, step, awaits, \
     problem, actor, credential, source, request_id, created_at, started_at, finished_at, wake_at";

const AFTER: Table = Table::new("job_after", "job, after");

/// Takes these jobs in hand, in the order of their ids. `wait`: for whoever has one of them in hand now; otherwise that
/// one is left out.
pub(super) async fn take(tx: &mut Tx, ids: &[String], wait: bool) -> Result<Vec<Run>, Error> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let (list, values) = list(ids);
    let columns: Vec<String> = COLUMNS.split(", ").map(|column| format!("j.{column}")).collect();
    let sql = format!(
        "SELECT {} FROM job j JOIN resource r ON r.id = j.resource WHERE j.id IN {list} ORDER BY r.id, j.id{}",
        columns.join(", "),
        match (tx.is_postgres(), wait) {
            (false, _) => "",
            // A write has its object in hand before it looks at the object's jobs: so must whoever has a job in hand.
            (true, true) => " FOR NO KEY UPDATE OF r FOR NO KEY UPDATE OF j",
            (true, false) => " FOR NO KEY UPDATE OF r FOR NO KEY UPDATE OF j SKIP LOCKED",
        }
    );
    let mut runs = Vec::new();
    for row in tx.rows(&sql, &values).await? {
        runs.push(Run::of(job(&row)?, Vec::new(), None));
    }
    runs.sort_by(|one, other| one.job.id.cmp(&other.job.id));
    let sql = format!(
        "SELECT job, step, state, message, progress, made, started_at, finished_at FROM job_step \
         WHERE job IN {list} ORDER BY job, idx"
    );
    for row in tx.rows(&sql, &values).await? {
        let id = row.text("job")?;
        if let Some(run) = runs.iter_mut().find(|run| run.job.id == id) {
            run.steps.push(step(&row)?);
        }
    }
    Ok(runs)
}

/// The row of one job, locked.
pub(super) async fn lock(tx: &mut Tx, id: &str) -> Result<Option<JobRow>, Error> {
    let sql = format!("SELECT {COLUMNS} FROM job WHERE id = $1{}", tx.for_update());
    Ok(tx.row(&sql, values![id]).await?.as_ref().map(job).transpose()?)
}

fn job(row: &Row) -> Result<JobRow, DbError> {
    Ok(JobRow {
        id: row.text("id")?,
        tenant: row.text("tenant")?,
        kind: row.text("kind")?,
        resource: row.text("resource")?,
        resource_name: row.text("resource_name")?,
        verb: Verb::parse(&row.text("verb")?),
        state: JobState::parse(&row.text("state")?),
        generation: row.int("generation")?,
        snapshot: row.json("snapshot")?,
        step: row.int("step")?,
        awaits: row.maybe_text("awaits")?,
        problem: row.maybe_text("problem")?,
        actor: row.text("actor")?,
        credential: row.text("credential")?,
        source: row.text("source")?,
        request_id: row.text("request_id")?,
        created_at: row.time("created_at")?,
        started_at: row.maybe_time("started_at")?,
        finished_at: row.maybe_time("finished_at")?,
        wake_at: row.time("wake_at")?,
    })
}

fn step(row: &Row) -> Result<StepRow, DbError> {
    Ok(StepRow {
        step: row.json("step")?,
        text: row.text("step")?,
        state: row.text("state")?,
        message: row.text("message")?,
        progress: row.int("progress")?,
        made: row.truth("made")?,
        started_at: row.maybe_time("started_at")?,
        finished_at: row.maybe_time("finished_at")?,
        changed: false,
    })
}

// === impl Run ===

impl Run {
    /// One that has no rows yet.
    pub(super) fn new(job: JobRow, steps: Vec<Step>, fresh: Fresh) -> Run {
        let step = |step: Step| StepRow {
            text: objects::text(&step),
            step,
            state: "waiting".to_owned(),
            message: String::new(),
            progress: 0,
            made: false,
            started_at: None,
            finished_at: None,
            changed: true,
        };
        Run::of(job, steps.into_iter().map(step).collect(), Some(fresh))
    }

    fn of(job: JobRow, steps: Vec<StepRow>, fresh: Option<Fresh>) -> Run {
        Run { job, steps, fresh, put_down: false, told: BTreeSet::new() }
    }

    /// The step that it is at and those behind it, with their numbers.
    pub(super) fn ahead(&self) -> impl Iterator<Item = (&StepRow, i64)> {
        let first = usize::try_from(self.job.step).unwrap_or(usize::MAX);
        self.steps.iter().skip(first).zip(self.job.step..)
    }

    /// Whether it may get to where all that the object holds is given back.
    pub(super) fn may_give_back(&self) -> bool {
        let at = self.ahead().next().map(|(row, _)| &row.step);
        self.job.state == JobState::Undoing
            || self.job.verb == Verb::Remove && matches!(at, Some(Step::AwaitGone { .. } | Step::Release))
    }

    /// The step that it is at is done. `made`: it made what it ordered.
    pub(super) fn done(&mut self, context: &Context, made: bool) {
        let now = context.env.now();
        if let Some(row) = self.at() {
            row.state = "done".to_owned();
            (row.made, row.progress, row.finished_at) = (made, 100, Some(now));
            row.started_at.get_or_insert(now);
            row.message.clear();
        }
        (self.job.step, self.job.awaits) = (self.job.step + 1, None);
    }

    /// The step that it is at, to be changed.
    pub(super) fn at(&mut self) -> Option<&mut StepRow> {
        let step = self.steps.get_mut(usize::try_from(self.job.step).ok()?)?;
        step.changed = true;
        Some(step)
    }

    /// Nothing is to be done before this object is reported, or this moment.
    pub(super) fn wait(&mut self, context: &Context, awaits: Option<String>, until: Timestamp) {
        // Never in the past: a job that is due for ever would spin.
        (self.job.awaits, self.job.wake_at) = (awaits, until.max(context.env.now().plus_millis(100)));
    }

    /// It has come to its end.
    pub(super) fn end(&mut self, context: &Context, state: JobState) {
        (self.job.state, self.job.awaits) = (state, None);
        self.job.finished_at = Some(context.env.now());
    }
}

/// Writes what was changed. The jobs stay in hand.
pub(super) async fn save(tx: &mut Tx, runs: &mut [Run]) -> Result<(), Error> {
    let (mut jobs, mut steps) = (Vec::new(), Vec::new());
    for run in runs.iter_mut().filter(|run| !run.put_down) {
        match run.fresh.take() {
            Some(fresh) => insert(tx, &run.job, fresh).await?,
            None => jobs.push(run.job.row()),
        }
        for (index, step) in run.steps.iter_mut().enumerate().filter(|(_, step)| step.changed) {
            step.changed = false;
            steps.push(step.row(&run.job.id, index));
        }
    }
    update(tx, &jobs).await?;
    let head = "INSERT INTO job_step (job, idx, step, state, message, progress, made, started_at, finished_at) VALUES";
    let tail = " ON CONFLICT (job, idx) DO UPDATE SET state = excluded.state, message = excluded.message, \
                progress = excluded.progress, made = excluded.made, started_at = excluded.started_at, \
                finished_at = excluded.finished_at";
    tx.put(head, tail, steps).await?;
    Ok(())
}

async fn insert(tx: &mut Tx, job: &JobRow, fresh: Fresh) -> Result<(), Error> {
    tx.run(
        "INSERT INTO job (id, tenant, kind, resource, resource_name, verb, hard, state, generation, snapshot, step, \
         awaits, epoch, attempts, actor, credential, source, reason, request_id, problem, left_behind, created_at, \
         started_at, finished_at, wake_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, 1, 0, $13, $14, \
         $15, $16, $17, $18, '[]', $19, $20, $21, $22)",
        values![
            &job.id,
            &job.tenant,
            &job.kind,
            &job.resource,
            &job.resource_name,
            job.verb.as_str(),
            fresh.hard,
            job.state.as_str(),
            job.generation,
            &job.snapshot,
            job.step,
            job.awaits.clone(),
            &job.actor,
            &job.credential,
            &job.source,
            fresh.reason,
            &job.request_id,
            job.problem.clone(),
            job.created_at,
            job.started_at,
            job.finished_at,
            job.wake_at,
        ],
    )
    .await?;
    for after in fresh.after {
        tx.later(&AFTER, row![&job.id, after]);
    }
    Ok(())
}

/// One statement for all of them: `VALUES` names its columns itself, alike on both databases.
async fn update(tx: &mut Tx, rows: &[Vec<Value>]) -> Result<(), Error> {
    let Some(first) = rows.first() else { return Ok(()) };
    let rows = padded(rows);
    let sql = format!(
        "UPDATE job SET state = v.column2, step = v.column3, awaits = v.column4, problem = v.column5, \
         started_at = v.column6, finished_at = v.column7, wake_at = v.column8, epoch = epoch + 1 \
         FROM (VALUES {}) AS v WHERE job.id = v.column1",
        places(rows.len(), first.len(), 1)
    );
    tx.run(&sql, &rows.concat()).await?;
    Ok(())
}

impl JobRow {
    /// What changes of it.
    fn row(&self) -> Vec<Value> {
        row![
            &self.id,
            self.state.as_str(),
            self.step,
            self.awaits.clone(),
            self.problem.clone(),
            self.started_at,
            self.finished_at,
            self.wake_at,
        ]
    }
}

impl StepRow {
    fn row(&self, job: &str, index: usize) -> Vec<Value> {
        let index = i64::try_from(index).unwrap_or(i64::MAX);
        row![
            job,
            index,
            &self.text,
            &self.state,
            &self.message,
            self.progress,
            self.made,
            self.started_at,
            self.finished_at,
        ]
    }
}
