//! Jobs: to look at, to wait for, to cancel, to do again.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::http::HeaderValue;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::crud::tenant_is_there;
use super::extract::{Ask, LONGEST_WAIT, seconds};
use super::problem::Answer;
use super::wait::{Ear, for_job, is_final};
use super::{RestContext, page, write};
use crate::kernel::{Error, Right};
use crate::store::{Job, JobQuery, Write};

const LINES: &str = "application/x-ndjson";

/// `GET .../jobs`
pub async fn list(ask: Ask) -> Answer {
    let right = ask.right_everywhere("list", "job")?;
    let query = ask.query(&["resource", "state", "dead", "limit", "page"])?;
    let (resource, state) = (query.get("resource").cloned(), query.get("state").cloned());
    tenant_is_there(&ask).await?;
    let dead = match query.get("dead").map(String::as_str) {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(Error::Malformed("`dead` must be true or false".to_owned()).into()),
    };
    let query =
        JobQuery { resource, state, dead, before: page::after(&ask, "j")?, limit: page::limit(&ask)? };
    let found = ask.ctx.store.jobs(&right, &query).await?;
    let items = found.items.iter().map(|job| json!(job)).collect();
    Ok(Json(page::page(items, found.next, "j")).into_response())
}

/// `GET .../jobs/{id}`
pub async fn get(ask: Ask) -> Answer {
    let right = ask.right_everywhere("get", "job")?;
    ask.no_query()?;
    let job = ask.ctx.store.job(&right, ask.id()?).await?;
    Ok(Json(job).into_response())
}

/// `GET .../jobs/{id}/wait`
pub async fn wait(ask: Ask) -> Answer {
    let right = ask.right_everywhere("get", "job")?;
    ask.query(&["timeout"])?;
    let time = seconds(ask.parameter("timeout").unwrap_or("30"), "timeout")?;
    ask.takes_long()?;
    let job = for_job(&ask.ctx, &right, ask.id()?, time).await?;
    Ok(Json(job).into_response())
}

/// `POST .../jobs/{id}/cancel`
pub async fn cancel(mut ask: Ask) -> Answer {
    let right = ask.right_everywhere("cancel", "job")?;
    ask.no_query()?;
    ask.no_body().await?;
    let asked = Write::CancelJob { id: ask.id()?.to_owned() };
    write::job(&ask, &right, asked, false).await
}

/// `POST .../jobs/{id}/retry`
pub async fn retry(mut ask: Ask) -> Answer {
    let right = ask.right_everywhere("retry", "job")?;
    ask.no_query()?;
    ask.no_body().await?;
    let asked = Write::RetryJob { id: ask.id()?.to_owned() };
    write::job(&ask, &right, asked, true).await
}

/// `POST .../jobs/{id}/skip`
pub async fn skip(mut ask: Ask) -> Answer {
    let right = ask.right_everywhere("skip", "job")?;
    ask.no_query()?;
    ask.no_body().await?;
    let asked = Write::SkipJob { id: ask.id()?.to_owned() };
    write::job(&ask, &right, asked, false).await
}

/// `POST .../jobs/{id}/undo`
pub async fn undo(mut ask: Ask) -> Answer {
    let right = ask.right_everywhere("undo", "job")?;
    ask.no_query()?;
    ask.no_body().await?;
    let asked = Write::UndoJob { id: ask.id()?.to_owned() };
    write::job(&ask, &right, asked, true).await
}

/// `GET .../jobs/{id}/log`: each change of a step, until the job is final.
pub async fn log(ask: Ask) -> Answer {
    let right = ask.right_everywhere("get", "job")?;
    ask.no_query()?;
    let job = ask.ctx.store.job(&right, ask.id()?).await?;
    ask.takes_long()?;
    let accept = ask.parts.headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let machine = accept.contains("json");
    let watch = Watch {
        ear: Ear::on(&ask.ctx, &job.resource),
        ctx: ask.ctx.clone(),
        right,
        id: job.id,
        end: Instant::now() + Duration::from_secs(LONGEST_WAIT),
        told: Vec::new(),
        machine,
        over: false,
    };
    let body = Body::from_stream(stream::unfold(watch, Watch::next).take_until(ask.over()));
    let media = if machine { LINES } else { "text/plain; charset=utf-8" };
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    Ok(response)
}

/// Someone who reads along.
struct Watch {
    ctx: Arc<RestContext>,
    right: Right,
    id: String,
    ear: Ear,
    end: Instant,
    /// What was said of each step last.
    told: Vec<Value>,
    /// True: JSON lines.
    machine: bool,
    over: bool,
}

impl Watch {
    async fn next(mut self) -> Option<(Result<Bytes, std::convert::Infallible>, Watch)> {
        loop {
            if self.over {
                return None;
            }
            // An error here has no status to go into any more: the log just ends.
            let job = self.ctx.store.job(&self.right, &self.id).await.ok()?;
            let text = self.news(&job);
            self.over = is_final(&job) || Instant::now() >= self.end;
            if !text.is_empty() {
                return Some((Ok(text.into()), self));
            }
            if !self.over {
                self.ear.hear(self.end).await;
            }
        }
    }

    fn news(&mut self, job: &Job) -> String {
        let mut text = String::new();
        for (index, step) in job.steps.iter().map(|step| json!(step)).enumerate() {
            if self.told.get(index) != Some(&step) {
                text.push_str(&self.line(&step));
                if self.told.len() <= index {
                    self.told.resize(index + 1, Value::Null);
                }
                self.told[index] = step;
            }
        }
        if is_final(job) {
            let end = json!({ "job": job.id, "state": job.state, "problem": job.problem });
            text.push_str(&self.line(&end));
        }
        text
    }

    fn line(&self, entry: &Value) -> String {
        if self.machine {
            return format!("{entry}\n");
        }
        let word = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let what = entry.pointer("/what/do").and_then(Value::as_str).map_or("job", |what| what).to_owned();
        let time = [word("finished_at"), word("started_at")].into_iter().find(|time| !time.is_empty());
        let rest = [word("message"), word("problem")].concat();
        let line = format!("{} {what} {} {rest}", time.unwrap_or_default(), word("state"));
        format!("{}\n", line.trim())
    }
}
