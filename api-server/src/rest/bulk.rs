//! `POST .../{kinds}/actions/{verb}`, `PATCH` and `DELETE` on a collection: the same on all that a filter matches.
//!
//! Each object is a write of its own, with its own outcome: what one of them is refused does not keep the
//! others from being done. Under an `Idempotency-Key` the list of objects is fixed before the first is
//! touched, and each outcome is kept in its object's own transaction: a retry goes on where the first stopped.

use std::sync::Arc;
use std::time::Duration;

use axum::http::header::IF_MATCH;
use futures_util::{FutureExt, StreamExt, stream};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::action::read;
use super::crud::tenant_is_there;
use super::extract::Ask;
use super::problem::{Answer, Problem};
use super::schemas::{made_secrets, reference};
use super::shape::respond;
use super::write::{How, Manner, end_of, failed, the_job};
use super::{envelope, page, plan};
use crate::kernel::resource::Action;
use crate::kernel::{Error, FieldError, JobState, Kind, Right};
use crate::store::{Did, Kept, KeptAnswer, Key, ListQuery, Once, Outcome, Terms, Write};

/// How many objects one call takes at most.
pub const MOST: i64 = 1000;
/// How many of them are written at once.
const AT_ONCE: usize = 16;
/// The filters, one of which must be there.
const FILTERS: [&str; 5] = ["name", "name_prefix", "phase", "tag.", "metadata."];

/// `POST .../{kinds}/actions/{verb}`
pub async fn act(mut ask: Ask, kind: &'static dyn Kind, action: &'static Action) -> Answer {
    let right = ask.right(action.verb, kind.meta().kind)?;
    let query = filter(&ask)?;
    let body = ask.json(true).await?;
    let (call, supersede) = read(kind, action.verb, &body)?;
    let write = move |id| Write::Act { kind, id, call: call.clone(), supersede, if_match: None };
    all(&ask, &right, &query, Manner::of(&ask, kind, How::Change), write).await
}

/// `PATCH .../{kinds}`
pub async fn patch(mut ask: Ask, kind: &'static dyn Kind) -> Answer {
    let right = ask.right("update", kind.meta().kind)?;
    let query = filter(&ask)?;
    let patch = ask.json(false).await?;
    let mut errors = envelope::patch_errors(&patch);
    if patch.get("name").is_some() {
        errors.push(FieldError::new("name", "is each object's own: PATCH one of them to rename it"));
    }
    if !errors.is_empty() {
        errors.sort();
        return Err(Error::Invalid(errors).into());
    }
    let write = move |id| Write::Update { kind, id, patch: patch.clone(), if_match: None };
    all(&ask, &right, &query, Manner::of(&ask, kind, How::Change), write).await
}

/// `DELETE .../{kinds}`
pub async fn delete(mut ask: Ask, kind: &'static dyn Kind) -> Answer {
    let right = ask.right("delete", kind.meta().kind)?;
    let query = filter(&ask)?;
    ask.no_body().await?;
    let write = move |id| Write::Remove { kind, id, if_match: None, realm: false };
    all(&ask, &right, &query, Manner::of(&ask, kind, How::TakeAway), write).await
}

/// What the query matches. Without a filter it would be everything, and nobody means that by saying nothing.
fn filter(ask: &Ask) -> Result<ListQuery, Problem> {
    let known: Vec<&str> = FILTERS.into_iter().chain(["plan", "page"]).collect();
    ask.query(&known)?;
    if ask.parts.headers.contains_key(IF_MATCH) {
        return Err(Problem::new("malformed", "`If-Match` is about one object; this call is about many"));
    }
    let query = page::filters(ask);
    // An empty prefix is what a script's empty variable leaves behind: it says nothing either.
    let says =
        [&query.name, &query.name_prefix, &query.phase].into_iter().flatten().any(|text| !text.is_empty());
    if !says && query.labels.is_empty() {
        let detail =
            "say which ones: `?tag.KEY=VALUE`, `metadata.PATH=VALUE`, `phase=`, `name=` or `name_prefix=`";
        return Err(Problem::new("filter-required", detail));
    }
    let after = page::after(ask, page::order(&query))?;
    Ok(ListQuery { limit: MOST, after, alive: true, ..query })
}

/// Which objects a call is about, and where the next call goes on.
struct Found {
    objects: Vec<(String, String)>,
    next: Option<String>,
}

async fn all(
    ask: &Ask,
    right: &Right,
    query: &ListQuery,
    manner: Manner,
    write: impl Fn(String) -> Write,
) -> Answer {
    tenant_is_there(ask).await?;
    let (time, planned) = (ask.prefer_wait()?, ask.plan()?);
    let key = ask.key()?.filter(|_| !planned);
    let mut found = find(ask, query, &manner).await?;
    let mut before = false;
    if let Some(key) = &key {
        match ask.ctx.store.begin(right, key, found.bytes()).await? {
            Some(kept) if kept.settled => return Ok(respond(kept.answer, true)),
            Some(kept) => {
                found = Found::read(&kept)?;
                before = true;
            }
            None => {}
        }
    }
    let mut each = Vec::with_capacity(found.objects.len());
    for (id, name) in &found.objects {
        let part = key.clone().map(|key| Key { part: id.clone(), ..key });
        each.push(one(ask, right, &manner, (id, name), write(id.clone()), part).boxed());
    }
    let mut items: Vec<Value> = stream::iter(each).buffered(AT_ONCE).collect().await;
    if let Some(time) = time.filter(|_| !planned) {
        wait_for_all(ask, right, &manner, &mut items, time).await?;
    }
    let whole = items.iter().all(|item| item["status"].as_u64().is_none_or(|status| status < 500));
    let next = found.next.as_ref().map(|next| page::cursor(next, page::order(query)));
    let body = |items: &[Value]| json!({ "items": items, "next": next }).to_string().into_bytes();
    let shown = body(&items);
    // What is kept for a retry has no secrets.
    for item in items.iter_mut().filter_map(Value::as_object_mut) {
        item.remove("secrets");
    }
    let ours = KeptAnswer {
        status: 200,
        headers: vec![("content-type".into(), "application/json".into())],
        body: body(&items),
    };
    let mut answer = ours.clone();
    // A retry may still finish what failed by our own fault.
    if let Some(key) = key.filter(|_| whole) {
        answer = ask.ctx.store.settle(right, &key, answer).await?;
    }
    if answer == ours {
        answer.body = shown;
    }
    Ok(respond(answer, before))
}

async fn find(ask: &Ask, query: &ListQuery, manner: &Manner) -> Result<Found, Problem> {
    let right = ask.right("list", manner.kind.meta().kind)?;
    let page = ask.ctx.store.list(&right, manner.kind, query).await?;
    // What operators made for all is shown in the list of a tenant, but is not its own.
    let own = page.items.into_iter().filter(|object| object.core.tenant == right.tenant());
    let objects = own.map(|object| (object.core.id, object.core.name)).collect();
    Ok(Found { objects, next: page.next })
}

/// One object's outcome.
async fn one(
    ask: &Ask,
    right: &Right,
    manner: &Manner,
    (id, name): (&str, &str),
    write: Write,
    key: Option<Key>,
) -> Value {
    let item =
        |status: u16| json!({ "id": id, "name": name, "status": status, "job": null, "problem": null });
    let done = {
        let (manner, template) = (manner.clone(), item(0));
        move |did: &Did| {
            let mut item = template.clone();
            if let Did::Object(written) = did {
                item["status"] = json!(manner.status(written).as_u16());
                item["job"] = json!(written.job);
            }
            KeptAnswer { status: 200, headers: Vec::new(), body: item.to_string().into_bytes() }
        }
    };
    let plan = ask.plan().unwrap_or(false);
    let once = key.map(|key| Once { key, waits: false, answer: Arc::new(done.clone()) });
    let outcome = ask.ctx.store.perform(right, write, ask.asked(), &Terms { plan, once }).await;
    let read = |answer: KeptAnswer| serde_json::from_slice(&answer.body).unwrap_or_else(|_| item(500));
    match outcome {
        Ok(Outcome::Done(did)) => {
            let (mut item, made) = (read(done(&did)), did.made());
            if !made.is_empty() {
                item["secrets"] = Value::Object(made);
            }
            item
        }
        Ok(Outcome::Before(kept)) => read(kept.answer),
        Ok(Outcome::Planned(planned)) => {
            let plan = plan::body(ask, manner, *planned);
            let mut item = item(0);
            item["status"] = plan["status"].clone();
            item["plan"] = plan;
            item
        }
        Err(error) => {
            let problem = Problem::from(error).seen_by(ask.caller().operator);
            if let Some(text) = problem.log() {
                tracing::error!(request_id = ask.asked().request_id, object = id, "{text}");
            }
            let mut item = item(problem.status().as_u16());
            item["problem"] = problem.body(&ask.asked().request_id);
            item
        }
    }
}

/// Their jobs go on side by side: waiting for one after the other takes as long as the longest.
async fn wait_for_all(
    ask: &Ask,
    right: &Right,
    manner: &Manner,
    items: &mut [Value],
    time: Duration,
) -> Result<(), Problem> {
    let end = Instant::now() + time;
    for item in items {
        let Some(job) = item["job"].as_str() else { continue };
        let job = the_job(ask, right, job, end.saturating_duration_since(Instant::now())).await?;
        match end_of(&job) {
            JobState::Done => item["status"] = json!(manner.done().as_u16()),
            JobState::Failed | JobState::Cancelled => {
                let problem = failed(&job).seen_by(ask.caller().operator);
                item["status"] = json!(problem.status().as_u16());
                item["problem"] = problem.body(&ask.asked().request_id);
            }
            JobState::Waiting | JobState::Running | JobState::Undoing => {}
        }
    }
    Ok(())
}

// === impl Found ===

impl Found {
    fn bytes(&self) -> Vec<u8> {
        json!([self.objects, self.next]).to_string().into_bytes()
    }

    fn read(kept: &Kept) -> Result<Found, Problem> {
        let (objects, next) = serde_json::from_slice(&kept.answer.body).map_err(Problem::internal)?;
        Ok(Found { objects, next })
    }
}

/// Schemas of the answer.
pub fn schemas() -> [(&'static str, Value); 2] {
    let text = |about: &str| json!({ "type": "string", "description": about });
    let outcome = json!({
        "type": "object", "required": ["id", "name", "status", "job", "problem"],
        "properties": {
            "id": text("Id of the object."), "name": text("Its name."),
            "status": { "type": ["integer", "null"], "format": "int32", "description": "What the call on this object alone would be answered with." },
            "job": { "type": ["string", "null"], "description": "The job at work on it." },
            "problem": { "oneOf": [{ "type": "null" }, reference("Problem")], "description": "Why it was not done." },
            "plan": reference("Plan"),
            "secrets": made_secrets(),
        },
    });
    let about = "Send it as `page` with the same filter to go on; null when there are no more.";
    let all = json!({
        "type": "object", "required": ["items", "next"],
        "properties": {
            "items": { "type": "array", "items": reference("BulkOutcome"), "description": "The oldest object first." },
            "next": { "type": ["string", "null"], "description": about },
        },
    });
    [("BulkOutcome", outcome), ("Bulk", all)]
}
