//! What users see beside objects: jobs, revisions, rendered files, the content of images.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::change::Asked;
use super::create::Maker;
use super::db::{Conn, Row, values};
use super::objects;
use super::tx::Tx;
use super::{Context, Page, Store, advance, history, phases, reads};
use crate::kernel::policy::Thing;
use crate::kernel::{Clash, Error, Kind, Right, Stored, Timestamp};

/// A job as users see it.
#[derive(Clone, Debug, Serialize)]
pub struct Job {
    /// `job_...`.
    pub id: String,
    /// Whose; empty for operators' objects.
    pub tenant: String,
    /// Kind of its object.
    pub kind: String,
    /// Id of its object.
    pub resource: String,
    /// Name of its object when it was made.
    pub resource_name: String,
    /// `create`, `update`, `remove`, or an action.
    pub verb: String,
    /// `waiting`, `running`, `undoing`, `done`, `failed`, `cancelled`.
    pub state: String,
    /// The generation that it makes so.
    pub generation: i64,
    /// Index of the present step.
    pub step: i64,
    /// All steps.
    pub steps: Vec<JobStep>,
    /// Who asked.
    pub actor: String,
    /// With which credential.
    pub credential: String,
    /// Why, in the caller's words.
    pub reason: Option<String>,
    /// Of the request.
    pub request_id: String,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When its first step began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// How often it could not be taken further and was put off; its step says why.
    pub attempts: i64,
    /// When it is looked at again at the latest; null once it has ended.
    pub due_at: Option<Timestamp>,
    /// Why it failed or was cancelled.
    pub problem: Option<String>,
    /// What it could not take back.
    pub left_behind: Vec<String>,
}

/// A step of a job.
#[derive(Clone, Debug, Serialize)]
pub struct JobStep {
    /// From 0.
    pub index: i64,
    /// What it does.
    pub what: Value,
    /// `waiting`, `running`, `done`, `failed`, `undoing`, `undone`, `skipped`.
    pub state: String,
    /// How far, or why not.
    pub message: String,
    /// 0 to 100.
    pub progress: i64,
    /// When it began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
}

/// Which jobs are asked for.
#[derive(Clone, Debug, Default)]
pub struct JobQuery {
    /// Of this object (its id).
    pub resource: Option<String>,
    /// In this state.
    pub state: Option<String>,
    /// Only those that failed for good: nothing was done about their object since.
    pub dead: bool,
    /// Go on before this one: the newest come first.
    pub before: Option<String>,
    /// At most so many.
    pub limit: i64,
}

/// What an object was.
#[derive(Clone, Debug, Serialize)]
pub struct Revision {
    /// Of the object, then.
    pub version: i64,
    /// Of its spec, then.
    pub generation: i64,
    /// Its name, then.
    pub name: String,
    /// Its tags, then.
    pub tags: Value,
    /// Its metadata, then.
    pub metadata: Value,
    /// Its spec, then.
    pub spec: Value,
    /// Who wrote it.
    pub actor: String,
    /// When.
    pub at: Timestamp,
}

/// The bytes of an image, checked and stored.
#[derive(Clone, Debug)]
pub struct ImageContent {
    /// Hex SHA-256 of the file.
    pub sha256: String,
    /// Of the file.
    pub size_bytes: u64,
    /// What a guest would see.
    pub virtual_size_bytes: u64,
    /// `qcow2`.
    pub format: String,
}

const JOB_COLUMNS: &str = "id, tenant, kind, resource, resource_name, verb, state, generation, step, actor, \
     credential, reason, request_id, created_at, started_at, finished_at, attempts, wake_at, problem, left_behind";

/// No later job has taken this one's place.
pub(super) const LAST_WORD: &str =
    "EXISTS (SELECT 1 FROM resource r WHERE r.id = job.resource AND r.job = job.id AND r.gone_at IS NULL)";

impl Store {
    /// One job.
    pub async fn job(&self, right: &Right, id: &str) -> Result<Job, Error> {
        one_job(&mut self.read_for(right).await?, right, id).await
    }

    /// A page of jobs, the newest first, without their steps. For those who are not shown all of them it may be short.
    pub async fn jobs(&self, right: &Right, query: &JobQuery) -> Result<Page<Job>, Error> {
        let mut page = self.page_of_jobs(right, query).await?;
        if right.sees_all() {
            return Ok(page);
        }
        let (mut items, mut rounds) = (Vec::new(), 0);
        loop {
            for job in std::mem::take(&mut page.items) {
                let about = About::of(&mut self.read_for(right).await?, &job.resource).await?;
                if right.shows(&about.thing(&job)) {
                    items.push(job);
                }
            }
            rounds += 1;
            let full = i64::try_from(items.len()).unwrap_or(i64::MAX) >= query.limit;
            match page.next.take() {
                Some(before) if !full && rounds < MOST_ROUNDS => {
                    let limit = query.limit - i64::try_from(items.len()).unwrap_or_default();
                    let on = JobQuery { before: Some(before), limit, ..query.clone() };
                    page = self.page_of_jobs(right, &on).await?;
                }
                next => return Ok(Page { items, next }),
            }
        }
    }

    async fn page_of_jobs(&self, right: &Right, query: &JobQuery) -> Result<Page<Job>, Error> {
        let mut conditions = Vec::new();
        let mut values = Vec::new();
        let tenant = (!right.all_tenants()).then(|| right.tenant().to_owned());
        let state = query.state.as_deref();
        // As text, not as a value: few have failed, and most are done.
        let seen = state.and_then(reads::word_in_text);
        conditions.extend(seen.as_ref().map(|word| format!("state = {word}")));
        let wanted = [
            ("tenant =", tenant.as_deref()),
            ("resource =", query.resource.as_deref()),
            ("state =", state.filter(|_| seen.is_none())),
            ("id <", query.before.as_deref()),
        ];
        for (column, value) in wanted {
            if let Some(value) = value {
                values.push(value.into());
                conditions.push(format!("{column} ${}", values.len()));
            }
        }
        if query.dead {
            conditions.push(format!("state = 'failed' AND {LAST_WORD}"));
        }
        values.push(query.limit.into());
        let filter =
            if conditions.is_empty() { String::new() } else { format!("WHERE {}", conditions.join(" AND ")) };
        let sql = format!("SELECT {JOB_COLUMNS} FROM job {filter} ORDER BY id DESC LIMIT ${}", values.len());
        let rows = self.read_for(right).await?.rows(&sql, &values).await?;
        let items = rows.iter().map(job).collect::<Result<Vec<_>, _>>()?;
        let full = i64::try_from(items.len()).unwrap_or(i64::MAX) >= query.limit;
        let next = items.last().filter(|_| full).map(|last| last.id.clone());
        Ok(Page { items, next })
    }

    /// What an object was, the newest first.
    pub async fn revisions(
        &self,
        right: &Right,
        kind: &'static dyn Kind,
        id: &str,
        limit: i64,
        before: Option<i64>,
    ) -> Result<Vec<Revision>, Error> {
        let mut conn = self.read_for(right).await?;
        let object = objects::find_own(&mut conn, right, kind, id).await?;
        let sql = "SELECT version, generation, name, tags, metadata, spec, actor, at FROM revision \
                   WHERE resource = $1 AND version < $2 ORDER BY version DESC LIMIT $3";
        let rows = conn.rows(sql, values![&object.core.id, before.unwrap_or(i64::MAX), limit]).await?;
        let mut all = Vec::new();
        for row in rows {
            all.push(Revision {
                version: row.int("version")?,
                generation: row.int("generation")?,
                name: row.text("name")?,
                tags: row.json("tags")?,
                metadata: row.json("metadata")?,
                spec: row.json("spec")?,
                actor: row.text("actor")?,
                at: row.time("at")?,
            });
        }
        Ok(all)
    }

    /// What the nodes wrote for an object: by the node's name, by file name.
    pub async fn rendered(
        &self,
        right: &Right,
        kind: &'static dyn Kind,
        id: &str,
    ) -> Result<BTreeMap<String, BTreeMap<String, String>>, Error> {
        let mut conn = self.read_for(right).await?;
        let object = objects::find_own(&mut conn, right, kind, id).await?;
        let sql = "SELECT r.name, a.rendered FROM assignment a JOIN resource r ON r.id = a.node WHERE a.object = $1";
        let mut all = BTreeMap::new();
        for row in conn.rows(sql, values![&object.core.id]).await? {
            all.insert(row.text("name")?, row.json("rendered")?);
        }
        Ok(all)
    }

    /// The bytes of an image have arrived. The same again is nothing; others are refused.
    pub async fn set_image_content(
        &self,
        right: &Right,
        id: &str,
        content: ImageContent,
        asked: &Asked,
    ) -> Result<Stored, Error> {
        let taken = (right.clone(), id.to_owned(), content, asked.clone());
        self.write_behind(right.wall(), taken, move |tx, context, (right, id, content, asked)| {
            Box::pin(async move { set_content(tx, &context, &right, &id, content, &asked).await })
        })
        .await
    }

    /// The SHA-256 of all images that have not gone.
    pub async fn image_contents(&self) -> Result<BTreeSet<String>, Error> {
        let sql = "SELECT status FROM resource r WHERE r.kind = 'image' AND r.gone_at IS NULL";
        let mut all = BTreeSet::new();
        for row in self.read().await?.rows(sql, &[]).await? {
            let status: Value = row.json("status")?;
            all.extend(status["sha256"].as_str().map(str::to_owned));
        }
        Ok(all)
    }
}

fn job(row: &Row) -> Result<Job, Error> {
    let ended = row.maybe_time("finished_at")?.is_some();
    Ok(Job {
        id: row.text("id")?,
        tenant: row.text("tenant")?,
        kind: row.text("kind")?,
        resource: row.text("resource")?,
        resource_name: row.text("resource_name")?,
        verb: row.text("verb")?,
        state: row.text("state")?,
        generation: row.int("generation")?,
        step: row.int("step")?,
        steps: Vec::new(),
        actor: row.text("actor")?,
        credential: row.text("credential")?,
        reason: row.maybe_text("reason")?,
        request_id: row.text("request_id")?,
        created_at: row.time("created_at")?,
        started_at: row.maybe_time("started_at")?,
        finished_at: row.maybe_time("finished_at")?,
        attempts: row.int("attempts")?,
        due_at: if ended { None } else { Some(row.time("wake_at")?) },
        problem: row.maybe_text("problem")?,
        left_behind: row.json("left_behind")?,
    })
}

/// So often a page is filled up.
const MOST_ROUNDS: usize = 20;

/// What a right goes by of an object, also of one that has gone.
struct About {
    tags: Option<BTreeMap<String, String>>,
    owner: Option<String>,
}

impl About {
    async fn of(conn: &mut Conn, id: &str) -> Result<About, Error> {
        let row = conn.row("SELECT tags, owner FROM resource WHERE id = $1", values![id]).await?;
        let Some(row) = row else { return Ok(About { tags: None, owner: None }) };
        Ok(About { tags: Some(row.json("tags")?), owner: Some(row.text("owner")?) })
    }

    fn thing<'a>(&'a self, job: &'a Job) -> Thing<'a> {
        let (kind, tenant, id) = (&job.kind, &job.tenant, &job.resource);
        Thing { kind, tenant, id, tags: self.tags.as_ref(), owner: self.owner.as_deref() }
    }
}

pub(super) async fn one_job(conn: &mut Conn, right: &Right, id: &str) -> Result<Job, Error> {
    let sql = format!("SELECT {JOB_COLUMNS} FROM job WHERE id = $1");
    let found = conn.row(&sql, values![id]).await?.as_ref().map(job).transpose()?;
    let mut job =
        found.filter(|job| right.all_tenants() || job.tenant == right.tenant()).ok_or(Error::NotFound)?;
    if right.asks_of_each() {
        let does = if job.verb == "remove" { "delete" } else { &job.verb };
        right.judge_job(&About::of(conn, &job.resource).await?.thing(&job), does)?;
    }
    let sql = "SELECT idx, step, state, message, progress, started_at, finished_at FROM job_step \
               WHERE job = $1 ORDER BY idx";
    for row in conn.rows(sql, values![id]).await? {
        job.steps.push(JobStep {
            index: row.int("idx")?,
            what: row.json("step")?,
            state: row.text("state")?,
            message: row.text("message")?,
            progress: row.int("progress")?,
            started_at: row.maybe_time("started_at")?,
            finished_at: row.maybe_time("finished_at")?,
        });
    }
    Ok(job)
}

async fn set_content(
    tx: &mut Tx,
    context: &Context,
    right: &Right,
    id: &str,
    content: ImageContent,
    asked: &Asked,
) -> Result<Stored, Error> {
    let kind = context.registry.get("image")?;
    let mut object = objects::find_for_write(tx, right, kind, id).await?;
    match object.status["sha256"].as_str() {
        Some(sha256) if sha256 == content.sha256 => return Ok(object),
        Some(_) => {
            return Err(
                Clash::WrongState("the image has its content already; make a new image".into()).into()
            );
        }
        None => {}
    }
    if object.spec["sha256"].as_str().is_some_and(|wanted| wanted != content.sha256) {
        let reason = format!("the content has {}, not what was said when the image was made", content.sha256);
        return Err(Error::field("spec.sha256", reason));
    }
    let mut status = object.status.as_object().cloned().unwrap_or_else(Map::new);
    let said = json!({
        "sha256": content.sha256, "size_bytes": content.size_bytes,
        "virtual_size_bytes": content.virtual_size_bytes, "format": content.format,
    });
    status.extend(said.as_object().cloned().unwrap_or_default());
    object.status = Value::Object(status);
    objects::update_status(tx, &mut object).await?;
    let maker = Maker { caller: right.caller(), tenant: right.tenant(), asked };
    history::noted(tx, context, &maker, &object, "upload");
    // Its job ends here and now, so that an instance made in the next moment need not wait for it.
    advance::advance_waiting(tx, context, &object.core.id).await?;
    phases::refresh_one(tx, context, &object.core.id).await?;
    objects::by_id(tx, &object.core.id, false).await?.ok_or(Error::NotFound)
}
