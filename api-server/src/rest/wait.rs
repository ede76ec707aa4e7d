//! Waiting for a job: by the store's bell, and by looking now and then in case it was not heard.

use std::time::Duration;

use tokio::sync::broadcast;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::RestContext;
use crate::kernel::{Error, JobState, Right};
use crate::store::{Bell, Job};

/// How often to look without having heard anything.
const NET: Duration = Duration::from_secs(1);

/// An ear on the store's bells that hears of one resource.
pub struct Ear {
    bells: broadcast::Receiver<Bell>,
    resource: String,
}

// === impl Ear ===

impl Ear {
    /// Listens from now on.
    pub fn on(ctx: &RestContext, resource: &str) -> Ear {
        Ear { bells: ctx.store.bells().subscribe(), resource: resource.to_owned() }
    }

    /// Until the bell rings for the resource, or it is time to look anyway, or `end`.
    pub async fn hear(&mut self, end: Instant) {
        let net = end.min(Instant::now() + NET);
        loop {
            match timeout_at(net, self.bells.recv()).await {
                Ok(Ok(Bell::Resource(id))) if id == self.resource => return,
                Ok(Ok(_)) => {}
                Ok(Err(broadcast::error::RecvError::Lagged(_))) | Err(_) => return,
                Ok(Err(broadcast::error::RecvError::Closed)) => return sleep_until(net).await,
            }
        }
    }
}

/// The job as soon as it is final, or as it is when time is over.
pub async fn for_job(ctx: &RestContext, right: &Right, id: &str, time: Duration) -> Result<Job, Error> {
    let end = Instant::now() + time;
    let mut job = ctx.store.job(right, id).await?;
    let mut ear = Ear::on(ctx, &job.resource);
    loop {
        // Looked at again after the ear is on: nothing can be missed in between.
        job = ctx.store.job(right, &job.id).await?;
        if is_final(&job) || Instant::now() >= end {
            return Ok(job);
        }
        ear.hear(end).await;
    }
}

/// True when nothing more will happen to it.
pub fn is_final(job: &Job) -> bool {
    JobState::parse(job.state.as_str()).is_final()
}
