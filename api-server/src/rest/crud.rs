//! The calls that every kind has.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::http::header::ETAG;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::extract::Ask;
use super::problem::{Answer, Problem};
use super::shape::{answer, at, etag, location, shown};
use super::{envelope, page, wait};
use crate::kernel::{JobState, Kind, Right};
use crate::store::{Job, Written};

/// `GET .../{plural}`
pub async fn list(ask: Ask, kind: &'static dyn Kind) -> Answer {
    let right = ask.right("list", kind.meta().kind)?;
    tenant_is_there(&ask).await?;
    list_by(ask, kind, right).await
}

/// `GET /v1/{plural}`: over all tenants.
pub async fn list_everywhere(ask: Ask, kind: &'static dyn Kind) -> Answer {
    let right = ask.caller.may_everywhere("list", kind.meta().kind)?;
    if ask.parameter("order") == Some("name") {
        // Names are unique within a tenant only: no cursor could tell two of them apart.
        return Err(page::bad("order", "must be `id` over all tenants"));
    }
    list_by(ask, kind, right).await
}

async fn list_by(ask: Ask, kind: &'static dyn Kind, right: Right) -> Answer {
    let query = page::list_query(&ask)?;
    let order = if query.by_name { "n" } else { "i" };
    let found = ask.ctx.store.list(&right, kind, &query).await?;
    let items = found.items.iter().map(|object| shown(kind, object, &ask.caller)).collect();
    Ok(Json(page::page(items, found.next, order)).into_response())
}

/// A tenant that is not there, or not to be seen, has no lists either.
pub async fn tenant_is_there(ask: &Ask) -> Result<(), Problem> {
    if ask.tenant().is_empty() {
        return Ok(());
    }
    let kind = ask.ctx.store.registry().get("tenant")?;
    let right = ask.caller.may("get", "tenant", "")?;
    ask.ctx.store.get(&right, kind, ask.tenant()).await?;
    Ok(())
}

/// `POST .../{plural}`
pub async fn create(mut ask: Ask, kind: &'static dyn Kind) -> Answer {
    let right = ask.right("create", kind.meta().kind)?;
    ask.no_query()?;
    let time = ask.prefer_wait()?;
    let body = ask.json(false).await?;
    let body = envelope::new_object(ask.ctx.store.registry(), kind, body)?;
    let written = ask.ctx.store.create(&right, kind, body, ask.asked()).await?;
    let at_path = location(kind, &written.object);
    let response = wrote(&ask, kind, &right, written, time, StatusCode::CREATED).await;
    match response {
        Ok(response) => Ok(at(response, &at_path)),
        Err(problem) => Err(problem.header(axum::http::header::LOCATION, &at_path)),
    }
}

/// `GET .../{id}`
pub async fn get(ask: Ask, kind: &'static dyn Kind) -> Answer {
    let right = ask.right("get", kind.meta().kind)?;
    ask.no_query()?;
    let object = ask.ctx.store.get(&right, kind, ask.id()?).await?;
    let tag = etag(&object);
    if ask.knows(&tag) {
        let mut response = StatusCode::NOT_MODIFIED.into_response();
        if let Ok(tag) = HeaderValue::from_str(&tag) {
            response.headers_mut().insert(ETAG, tag);
        }
        return Ok(response);
    }
    Ok(answer(StatusCode::OK, kind, &object, &ask.caller))
}

/// `PATCH .../{id}`
pub async fn patch(mut ask: Ask, kind: &'static dyn Kind) -> Answer {
    let right = ask.right("update", kind.meta().kind)?;
    ask.no_query()?;
    let (time, if_match) = (ask.prefer_wait()?, ask.if_match()?);
    let body = ask.json(false).await?;
    let errors = envelope::patch_errors(&body);
    if !errors.is_empty() {
        // What is wrong with the spec is told in the same answer.
        let present = ask.ctx.store.get(&right, kind, ask.id()?).await?;
        right.may_change(&present.core)?;
        return Err(envelope::with_spec_errors(ask.ctx.store.registry(), kind, &present, &body, errors));
    }
    let written = ask.ctx.store.update(&right, kind, ask.id()?, body, if_match, ask.asked()).await?;
    wrote(&ask, kind, &right, written, time, StatusCode::OK).await
}

/// `DELETE .../{id}`
pub async fn delete(mut ask: Ask, kind: &'static dyn Kind) -> Answer {
    let right = ask.right("delete", kind.meta().kind)?;
    ask.no_query()?;
    ask.no_body().await?;
    let (time, if_match) = (ask.prefer_wait()?, ask.if_match()?);
    let written = ask.ctx.store.remove(&right, kind, ask.id()?, if_match, ask.asked()).await?;
    let Some(id) = written.job.clone() else { return Ok(StatusCode::NO_CONTENT.into_response()) };
    let accepted = answer(StatusCode::ACCEPTED, kind, &written.object, &ask.caller);
    let Some(time) = time else { return Ok(accepted) };
    let job = the_job(&ask, &right, &id, time).await?;
    match end_of(&job) {
        JobState::Done => Ok(applied(StatusCode::NO_CONTENT.into_response(), time)),
        JobState::Failed | JobState::Cancelled => Err(failed(&job)),
        _ => Ok(accepted),
    }
}

/// `GET .../{id}/revisions`
pub async fn revisions(ask: Ask, kind: &'static dyn Kind) -> Answer {
    let right = ask.right("get", kind.meta().kind)?;
    ask.query(&["limit", "page"])?;
    let limit = page::limit(&ask)?;
    let before = match page::after(&ask, "r")? {
        None => None,
        Some(place) => Some(place.parse().map_err(|_| page::bad("page", "is not one of this list"))?),
    };
    let found = ask.ctx.store.revisions(&right, kind, ask.id()?, limit, before).await?;
    let full = i64::try_from(found.len()).is_ok_and(|length| length == limit);
    let next = found.last().filter(|_| full).map(|last| last.version.to_string());
    let items = found.iter().map(|revision| json!(revision)).collect();
    Ok(Json(page::page(items, next, "r")).into_response())
}

/// `POST .../{id}/revisions/{n}/restore`
pub async fn restore(mut ask: Ask, kind: &'static dyn Kind) -> Answer {
    let right = ask.right("update", kind.meta().kind)?;
    ask.no_query()?;
    ask.no_body().await?;
    let time = ask.prefer_wait()?;
    let revision = ask.param("n")?.parse().map_err(|_| Problem::not_found())?;
    let written = ask.ctx.store.restore(&right, kind, ask.id()?, revision, ask.asked()).await?;
    wrote(&ask, kind, &right, written, time, StatusCode::OK).await
}

/// `GET .../{id}/rendered`
pub async fn rendered(ask: Ask, kind: &'static dyn Kind) -> Answer {
    let right = ask.right("get", kind.meta().kind)?;
    ask.no_query()?;
    let files: BTreeMap<_, _> = ask.ctx.store.rendered(&right, kind, ask.id()?).await?;
    Ok(Json(json!({ "nodes": files })).into_response())
}

/// `GET .../{id}/access`
pub async fn access(ask: Ask, kind: &'static dyn Kind) -> Answer {
    let right = ask.right("get", kind.meta().kind)?;
    ask.no_query()?;
    ask.ctx.store.get(&right, kind, ask.id()?).await?;
    let everything: Vec<String> = verbs(kind).map(|verb| format!("{}:{verb}", kind.meta().kind)).collect();
    let items = json!([{ "who": "operators", "may": everything, "why": "operators may do everything" }]);
    Ok(Json(json!({ "items": items })).into_response())
}

/// All that can be done with objects of a kind.
fn verbs(kind: &dyn Kind) -> impl Iterator<Item = &'static str> {
    ["get", "list", "create", "update", "delete"]
        .into_iter()
        .chain(kind.meta().actions.iter().map(|a| a.verb))
}

/// The answer to a write: at once, or when its job is done.
pub async fn wrote(
    ask: &Ask,
    kind: &'static dyn Kind,
    right: &Right,
    written: Written,
    time: Option<Duration>,
    done: StatusCode,
) -> Answer {
    let Some(id) = written.job else { return Ok(answer(done, kind, &written.object, &ask.caller)) };
    let accepted = |object| answer(StatusCode::ACCEPTED, kind, object, &ask.caller);
    let Some(time) = time else { return Ok(accepted(&written.object)) };
    let job = the_job(ask, right, &id, time).await?;
    let present = ask.ctx.store.get(right, kind, &written.object.core.id).await;
    match end_of(&job) {
        JobState::Done => Ok(applied(answer(done, kind, &present?, &ask.caller), time)),
        JobState::Failed | JobState::Cancelled => Err(failed(&job)),
        _ => Ok(accepted(&present.unwrap_or(written.object))),
    }
}

async fn the_job(ask: &Ask, right: &Right, id: &str, time: Duration) -> Result<Job, Problem> {
    let right = ask.caller.may("get", "job", right.tenant())?;
    Ok(wait::for_job(&ask.ctx, &right, id, time).await?)
}

fn end_of(job: &Job) -> JobState {
    JobState::parse(job.state.as_str())
}

/// Why a job did not succeed, for whoever waited for it.
fn failed(job: &Job) -> Problem {
    let usual = || format!("the job ended as {}", job.state.as_str());
    Problem::new("job-failed", job.problem.clone().unwrap_or_else(usual))
        .with("job", json!(job.id))
        .with("resource", json!(job.resource))
        .with("left_behind", json!(job.left_behind))
}

fn applied(mut response: Response, time: Duration) -> Response {
    let value = format!("wait={}", time.as_secs());
    if let Ok(value) = HeaderValue::from_str(&value) {
        response.headers_mut().insert("preference-applied", value);
    }
    response
}
