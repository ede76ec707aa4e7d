//! Every write of one object: done, waited for, planned, or answered as it was before.

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use axum::http::header::LOCATION;
use serde_json::{Map, Value, json};

use super::extract::{Ask, path_of};
use super::problem::{Answer, Problem};
use super::shape::{rendered, respond};
use super::{plan, wait};
use crate::kernel::{Caller, Error, JobState, Kind, Right};
use crate::store::{Did, Job, KeptAnswer, Once, Outcome, Terms, Write, Written};

/// What becomes of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It is new.
    Make,
    /// It is another than before.
    Change,
    /// It goes.
    TakeAway,
}

/// How a write is answered.
#[derive(Clone)]
pub struct Manner {
    /// Of which kind the object is.
    pub kind: &'static dyn Kind,
    /// Who sees the answer.
    pub caller: Caller,
    /// What becomes of it.
    pub how: How,
}

/// Writes, and answers.
pub async fn write(ask: &Ask, right: &Right, write: Write, manner: Manner) -> Answer {
    let (time, key) = (ask.prefer_wait()?, ask.key()?);
    let shape = manner.clone();
    let once = key.clone().map(|key| Once {
        key,
        waits: time.is_some(),
        answer: Arc::new(move |did| shape.at_once(did)),
    });
    let mut made = Map::new();
    let terms = Terms { plan: ask.plan()?, once };
    let (answer, names, before) = match ask.ctx.store.perform(right, write, ask.asked(), &terms).await? {
        Outcome::Planned(planned) => return Ok(plan::answer(ask, &manner, *planned)),
        Outcome::Before(kept) if kept.settled => return Ok(respond(kept.answer, true)),
        Outcome::Before(kept) => (kept.answer, (kept.job, kept.resource), true),
        Outcome::Done(did) => {
            made = did.made();
            (manner.at_once(&did), did.names(), false)
        }
    };
    let waited = match (names, time) {
        ((Some(job), Some(resource)), Some(time)) => {
            let last = manner.at_last(ask, right, &job, &resource, time).await?;
            Some(last.unwrap_or_else(|| answer.clone()))
        }
        _ => None,
    };
    let mut last = waited.clone().unwrap_or(answer);
    // What is sent is kept before: whoever asks again is answered the same.
    if let Some(key) = key.filter(|_| before || waited.is_some()) {
        last = ask.ctx.store.settle(right, &key, last).await?;
    }
    // What is kept for a retry has them not.
    if !made.is_empty()
        && let Ok(Value::Object(mut object)) = serde_json::from_slice(&last.body)
    {
        object.insert("secrets".into(), Value::Object(made));
        last.body = Value::Object(object).to_string().into_bytes();
    }
    Ok(respond(last, before))
}

// === impl Manner ===

impl Manner {
    /// Of a kind, for whoever asks.
    pub fn of(ask: &Ask, kind: &'static dyn Kind, how: How) -> Manner {
        Manner { kind, caller: ask.caller().clone(), how }
    }

    /// The status when nothing is left to do.
    pub fn done(&self) -> StatusCode {
        match self.how {
            How::Make => StatusCode::CREATED,
            How::Change => StatusCode::OK,
            How::TakeAway => StatusCode::NO_CONTENT,
        }
    }

    /// The status as soon as it is written.
    pub fn status(&self, written: &Written) -> StatusCode {
        if written.job.is_some() { StatusCode::ACCEPTED } else { self.done() }
    }

    /// What is answered as soon as it is written.
    pub fn at_once(&self, did: &Did) -> KeptAnswer {
        match did {
            Did::Object(written) => self.object(self.status(written), &written.object),
            Did::Job(job) => KeptAnswer {
                status: StatusCode::ACCEPTED.as_u16(),
                headers: vec![("content-type".into(), "application/json".into())],
                body: json!(job).to_string().into_bytes(),
            },
        }
    }

    fn object(&self, status: StatusCode, object: &crate::kernel::Stored) -> KeptAnswer {
        if status == StatusCode::NO_CONTENT {
            return KeptAnswer { status: status.as_u16(), ..KeptAnswer::default() };
        }
        let mut answer = rendered(status, self.kind, object, &self.caller);
        if self.how == How::Make {
            answer.headers.push(("location".into(), self.path(&object.core.tenant, &object.core.id)));
        }
        answer
    }

    fn path(&self, tenant: &str, id: &str) -> String {
        format!("{}/{id}", path_of(self.kind.meta(), tenant))
    }

    /// What is answered when the job has come to its end; `None` if it has gone from sight without one.
    async fn at_last(
        &self,
        ask: &Ask,
        right: &Right,
        job: &str,
        resource: &str,
        time: Duration,
    ) -> Result<Option<KeptAnswer>, Problem> {
        let job = the_job(ask, right, job, time).await?;
        let present = ask.ctx.store.get(right, self.kind, resource).await;
        let mut answer = match (end_of(&job), present) {
            (JobState::Done, _) if self.how == How::TakeAway => {
                KeptAnswer { status: self.done().as_u16(), ..KeptAnswer::default() }
            }
            (JobState::Done, present) => self.object(self.done(), &present?),
            (JobState::Failed | JobState::Cancelled, _) => {
                let mut problem = failed(&job).seen_by(ask.caller().operator);
                if self.how == How::Make {
                    problem = problem.header(LOCATION, &self.path(right.tenant(), resource));
                }
                return Ok(Some(problem.kept(&ask.asked().request_id)));
            }
            (_, Ok(present)) => return Ok(Some(self.object(StatusCode::ACCEPTED, &present))),
            (_, Err(Error::NotFound)) => return Ok(None),
            (_, Err(error)) => return Err(error.into()),
        };
        answer.headers.push(("preference-applied".into(), format!("wait={}", time.as_secs())));
        Ok(Some(answer))
    }
}

/// Ends or repeats a job, and answers it.
pub async fn job(ask: &Ask, right: &Right, write: Write, location: bool) -> Answer {
    let answer = move |did: &Did| {
        let Did::Job(job) = did else { return KeptAnswer::default() };
        let mut headers = vec![("content-type".to_owned(), "application/json".to_owned())];
        if location {
            let path = match job.tenant.as_str() {
                "" => format!("/v1/jobs/{}", job.id),
                tenant => format!("/v1/tenants/{tenant}/jobs/{}", job.id),
            };
            headers.push(("location".into(), path));
        }
        KeptAnswer { status: 202, headers, body: json!(job).to_string().into_bytes() }
    };
    let once = ask.key()?.map(|key| Once { key, waits: false, answer: Arc::new(answer) });
    match ask.ctx.store.perform(right, write, ask.asked(), &Terms { plan: false, once }).await? {
        Outcome::Before(kept) => Ok(respond(kept.answer, true)),
        Outcome::Done(did) => Ok(respond(answer(&did), false)),
        Outcome::Planned(_) => Err(Problem::internal("a job was planned")),
    }
}

/// The job, when it is final or time is over.
pub async fn the_job(ask: &Ask, right: &Right, id: &str, time: Duration) -> Result<Job, Problem> {
    let right = ask.caller().may("get", "job", right.tenant())?;
    // It is written already: who has no place left to wait in hears what is known now.
    let time = if ask.takes_long().is_ok() { time } else { Duration::ZERO };
    Ok(wait::for_job(&ask.ctx, &right, id, time).await?)
}

/// Where it is.
pub fn end_of(job: &Job) -> JobState {
    JobState::parse(job.state.as_str())
}

/// Why a job did not succeed, for whoever waited for it.
pub fn failed(job: &Job) -> Problem {
    let usual = || format!("the job ended as {}", job.state.as_str());
    Problem::new("job-failed", job.problem.clone().unwrap_or_else(usual))
        .with("job", json!(job.id))
        .with("resource", json!(job.resource))
        .with("left_behind", json!(job.left_behind))
}
