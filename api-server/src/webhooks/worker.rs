//! The worker of one webhook: takes the log from where it was, sends what is wanted, one message after the other, and
//! stays with one that is not taken until it is, or until it has been tried for too long.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::send::{message_of, send};
use super::{Deliveries, Permits, shutting_down};
use crate::kernel::webhook::{KIND, WebhookEvents};
use crate::kernel::{Caller, Error, Timestamp};
use crate::store::{Asked, Delivery, Event, Hook, HookState, LogReader, ReadError};

/// The place is written down after so many entries that were not wanted.
const PASSED_OVER: i64 = 1000;
/// That a message was taken is shown in the status at most so often; that one was not, always.
const TELL_EVERY: i64 = 10;
/// Who answers this wants nothing any more.
const GONE: i64 = 410;

struct Worker {
    deliveries: Deliveries,
    permits: Arc<Permits>,
    hook: Hook,
    events: WebhookEvents,
    reader: LogReader,
    waiting: VecDeque<Arc<Event>>,
    stop: CancellationToken,
}

/// Works until it is told to stop, or until somebody else does.
pub async fn work(
    deliveries: Deliveries,
    permits: Arc<Permits>,
    hook: Hook,
    stop: CancellationToken,
) -> Result<(), Error> {
    let events = serde_json::from_value(hook.object.spec["events"].clone());
    let events = events.map_err(|error| Error::Internal(format!("{}: {error}", hook.object.core.id)))?;
    let reader = deliveries.store.read_log(Some(hook.at.seq)).await?;
    let mut worker =
        Worker { deliveries, permits, hook, events, reader, waiting: VecDeque::new(), stop: stop.clone() };
    while let Some(event) = worker.next().await? {
        if !worker.deliver(&event).await? {
            break;
        }
    }
    Ok(())
}

impl Worker {
    /// The next entry that is wanted; `None`: it is over.
    async fn next(&mut self) -> Result<Option<Arc<Event>>, Error> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Ok(Some(event));
            }
            let passed = self.reader.at() - self.hook.at.seq;
            if passed >= PASSED_OVER && !self.pass_over(self.reader.at(), None).await? {
                return Ok(None);
            }
            let more = tokio::select! {
                () = self.stop.cancelled() => {
                    if passed > 0 {
                        self.pass_over(self.reader.at(), None).await?;
                    }
                    return Ok(None);
                }
                more = self.reader.more() => more,
            };
            match more {
                Ok(entries) => self.waiting = self.wanted(entries).await?,
                Err(ReadError::Gone { first }) => {
                    tracing::warn!(
                        webhook = self.hook.object.core.id,
                        first,
                        "entries were not kept long enough"
                    );
                    if !self.pass_over(first - 1, Some(first)).await? {
                        return Ok(None);
                    }
                    self.reader = self.deliveries.store.read_log(Some(first - 1)).await?;
                }
                Err(ReadError::Store(error)) => return Err(error),
            }
        }
    }

    async fn wanted(&self, entries: Vec<Arc<Event>>) -> Result<VecDeque<Arc<Event>>, Error> {
        let tenant = &self.hook.object.core.tenant;
        // One without a tenant is the operators', and is told of everything.
        let mine = |event: &Event| tenant.is_empty() || event.tenant == *tenant;
        let said = |event: &Event| self.events.want(&event.class, &event.kind, &event.verb);
        let mut wanted: VecDeque<_> =
            entries.into_iter().filter(|event| mine(event) && said(event)).collect();
        if !self.events.tags.is_empty() {
            let ids: Vec<&str> = wanted.iter().map(|event| event.resource.as_str()).collect();
            let tags = self.deliveries.store.tags_of(&ids).await?;
            wanted.retain(|event| tags.get(&event.resource).is_some_and(|tags| self.events.want_tags(tags)));
        }
        Ok(wanted)
    }

    async fn pass_over(&mut self, seq: i64, missed_before: Option<i64>) -> Result<bool, Error> {
        self.hook.at.seq = seq;
        self.deliveries.store.passed_over(&self.hook, self.hook.at.clone(), missed_before).await
    }

    /// Sends an entry until it is taken or given up. `false`: it is over.
    async fn deliver(&mut self, event: &Event) -> Result<bool, Error> {
        let letter = message_of(&self.hook.object.core.id, event);
        loop {
            if !self.until_due().await {
                return Ok(false);
            }
            let tried = {
                let permits = self.permits.clone();
                let permit = tokio::select! {
                    () = self.stop.cancelled() => return Ok(false),
                    permit = permits.of(self.hook.at.failures > 0).acquire() => permit,
                };
                let _permit = permit.map_err(|_| shutting_down())?;
                // Not broken off: a message that is on its way is counted.
                send(&self.deliveries.store, &self.deliveries.courier, &self.hook.object, &letter).await?
            };
            let random = u64::from_le_bytes(self.deliveries.store.env().bytes());
            let (now, tried) = self.judge(event.seq, tried, random);
            let mut status = self.status(&now, &tried);
            let done = tried.outcome != "failed";
            let why_disable = self.why_disable(&now, &tried);
            if let (Some(why), Some(status)) = (&why_disable, &mut status) {
                status["disabled"] = json!(why);
            }
            if !self.deliveries.store.delivered(&self.hook, now.clone(), tried, status.clone()).await? {
                return Ok(false);
            }
            self.hook.at = now;
            if let Some(status) = status {
                self.hook.object.status = status;
            }
            if let Some(why) = why_disable {
                self.disable(why).await?;
                return Ok(false);
            }
            if done {
                return Ok(true);
            }
        }
    }

    /// Waits until the next try may be made. `false`: it is over.
    async fn until_due(&self) -> bool {
        let wait = self.hook.at.due_at.0 - self.deliveries.store.env().now().0;
        let wait = Duration::from_micros(u64::try_from(wait).unwrap_or(0));
        tokio::select! {
            biased;
            () = self.stop.cancelled() => false,
            () = tokio::time::sleep(wait) => true,
        }
    }

    /// Where the webhook is after a try.
    fn judge(&self, seq: i64, mut tried: Delivery, random: u64) -> (HookState, Delivery) {
        let (before, pace) = (&self.hook.at, &self.deliveries.pace);
        tried.attempt = before.attempts + 1;
        if tried.outcome == "delivered" {
            return (HookState { seq, ..HookState::default() }, tried);
        }
        let end = self.deliveries.store.env().now();
        let failures = before.failures + 1;
        let first_at = before.first_at.unwrap_or(tried.at);
        let mut now = HookState {
            seq: before.seq,
            attempts: tried.attempt,
            first_at: Some(first_at),
            due_at: end.plus_millis(pace.wait_millis(failures, random)),
            failures,
            failing_since: Some(before.failing_since.unwrap_or(tried.at)),
        };
        if millis_between(first_at, end) >= pace.give_up_millis {
            tried.outcome = "given-up".to_owned();
            (now.seq, now.attempts, now.first_at) = (seq, 0, None);
        }
        (now, tried)
    }

    /// What users see, if it is another than what they saw.
    fn status(&self, now: &HookState, tried: &Delivery) -> Option<Value> {
        let old = &self.hook.object.status;
        let mut status = if old.is_object() { old.clone() } else { json!({}) };
        let map = status.as_object_mut()?;
        if tried.outcome == "delivered" {
            let told = serde_json::from_value::<Timestamp>(old["delivered_at"].clone());
            let lately = told.is_ok_and(|told| tried.at < told.plus_seconds(TELL_EVERY));
            if lately && old["failing_since"].is_null() {
                return None;
            }
            map.insert("delivered_at".into(), json!(tried.at));
            for gone in ["failing_since", "failures", "last_error"] {
                map.remove(gone);
            }
        } else {
            map.insert("failing_since".into(), json!(now.failing_since));
            map.insert("failures".into(), json!(now.failures));
            map.insert("last_error".into(), json!(tried.detail));
        }
        Some(status)
    }

    fn why_disable(&self, now: &HookState, tried: &Delivery) -> Option<String> {
        if tried.status == GONE {
            return Some("its receiver answered 410: it wants nothing any more".to_owned());
        }
        let since = now.failing_since?;
        let long =
            millis_between(since, self.deliveries.store.env().now()) >= self.deliveries.pace.disable_millis;
        long.then(|| format!("its receiver has taken nothing since {since}: {}", tried.detail))
    }

    /// As an operator would do it: a write with its revision and its event.
    async fn disable(&self, why: String) -> Result<(), Error> {
        let store = &self.deliveries.store;
        let core = &self.hook.object.core;
        let right = Caller::system().may("update", KIND, &core.tenant)?;
        let asked = Asked { reason: Some(why), request_id: "webhooks".into(), ..Asked::default() };
        let patch = json!({ "spec": { "enabled": false } });
        let kind = store.registry().get(KIND)?;
        match store.update(&right, kind, &core.id, patch, Some(core.version), &asked).await {
            // Somebody was quicker: whoever looks next sees what is wanted now.
            Ok(_) | Err(Error::Stale { .. } | Error::NotFound) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn millis_between(from: Timestamp, to: Timestamp) -> i64 {
    (to.0 - from.0) / 1000
}
