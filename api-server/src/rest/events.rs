//! The event log: as a stream that misses nothing, and as pages for the audit.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::response::IntoResponse;
use axum::response::sse::{self, KeepAlive, Sse};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};

use super::crud::tenant_is_there;
use super::extract::Ask;
use super::page;
use super::problem::{Answer, Problem};
use crate::kernel::caller::Wall;
use crate::kernel::{Right, Timestamp};
use crate::store::{AuditQuery, Event, LogReader, ReadError};

/// What the document says of the stream.
pub const ABOUT: &str = "Server-sent events. `id` is the number of the entry, `event` its class, `data` an `Event` in \
JSON. A client that comes back with `Last-Event-ID` (browsers do by themselves) goes on where it was: nothing is \
missed, nothing comes twice. Slow readers may take their time. 410 if what is asked for is not kept any more.";

/// A comment so often keeps proxies from closing the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// After so many entries that are none of the reader's, it is told how far they went.
const TELL_AFTER: i64 = 1000;

/// `GET .../events`
pub async fn stream(ask: Ask) -> Answer {
    let right = ask.right_everywhere("watch", "event")?;
    let query = ask.query(&["since", "kind", "resource", "class", "follow"])?;
    let wanted = |key: &str| query.get(key).cloned();
    let wall = right.wall();
    let filter =
        Filter { wall, right, kind: wanted("kind"), resource: wanted("resource"), class: wanted("class") };
    let follow = match ask.parameter("follow") {
        None | Some("true") => true,
        Some("false") => false,
        Some(_) => return Err(page::bad("follow", "must be `true` or `false`")),
    };
    tenant_is_there(&ask).await?;
    ask.takes_long()?;
    let store = &ask.ctx.store;
    let since = since(&ask).await?;
    let end = if follow { None } else { Some(store.log_head().await?.seq) };
    let reader = store.read_log(since).await?;
    let at = reader.at();
    let first = store.log_head().await?.first;
    if at + 1 < first {
        return Err(gone(first));
    }
    let watch = Watch { reader, filter, waiting: VecDeque::new(), told: at, end, over: false };
    let events = stream::unfold(watch, Watch::next).take_until(ask.over());
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

fn gone(first: i64) -> Problem {
    let detail = format!("entries before {first} are not kept any more: go on with `since={}`", first - 1);
    Problem::new("gone", detail).with("first", json!(first))
}

/// The number behind which the reader goes on.
async fn since(ask: &Ask) -> Result<Option<i64>, Problem> {
    let store = &ask.ctx.store;
    let header = ask.parts.headers.get("last-event-id").and_then(|value| value.to_str().ok());
    let (text, what) = match (header, ask.parameter("since")) {
        (Some(id), _) => (id, "Last-Event-ID"),
        (None, Some(since)) => (since, "since"),
        (None, None) => return Ok(None),
    };
    match text.parse::<i64>() {
        Ok(back) if back < 0 => {
            let head = store.log_head().await?;
            Ok(Some(head.seq.saturating_add(back).max(head.first - 1)))
        }
        // What is beyond the end cannot have been seen.
        Ok(seq) => Ok(Some(seq.min(store.log_head().await?.seq))),
        Err(_) => match time(text) {
            Some(moment) => Ok(Some(store.log_before(moment).await?.max(store.log_head().await?.first - 1))),
            None => {
                Err(page::bad(what, "must be the number of an entry, or a time such as 2026-11-21T08:00:00Z"))
            }
        },
    }
}

fn time(text: &str) -> Option<Timestamp> {
    serde_json::from_value(json!(text)).ok()
}

struct Filter {
    /// What all read of the log is in memory, and behind no wall of the database's.
    wall: Wall,
    right: Right,
    kind: Option<String>,
    resource: Option<String>,
    class: Option<String>,
}

impl Filter {
    fn lets_pass(&self, event: &Event) -> bool {
        let wanted =
            |filter: &Option<String>, value: &str| filter.as_deref().is_none_or(|filter| filter == value);
        self.wall.lets(&event.tenant)
            && event.is_shown_by(&self.right)
            && wanted(&self.kind, &event.kind)
            && wanted(&self.resource, &event.resource)
            && wanted(&self.class, &event.class)
    }
}

/// Somebody who reads along.
struct Watch {
    reader: LogReader,
    filter: Filter,
    waiting: VecDeque<Arc<Event>>,
    /// The last number that the client was told.
    told: i64,
    /// The stream ends behind this entry.
    end: Option<i64>,
    over: bool,
}

impl Watch {
    async fn next(mut self) -> Option<(Result<sse::Event, Infallible>, Watch)> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                self.told = event.seq;
                let told = shown(&event, false).to_string();
                let one = sse::Event::default().id(event.seq.to_string()).event(&event.class).data(told);
                return Some((Ok(one), self));
            }
            let at = self.reader.at();
            if at - self.told >= TELL_AFTER {
                self.told = at;
                // An id alone is no event: it only moves what `Last-Event-ID` will say.
                return Some((Ok(sse::Event::default().id(at.to_string())), self));
            }
            if self.over || self.end.is_some_and(|end| at >= end) {
                return None;
            }
            match self.reader.more().await {
                Ok(events) => {
                    let end = self.end.unwrap_or(i64::MAX);
                    let filter = &self.filter;
                    self.waiting.extend(events.into_iter().filter(|e| e.seq <= end && filter.lets_pass(e)));
                }
                Err(ReadError::Gone { first }) => {
                    self.over = true;
                    let said = json!({ "type": "/problems/gone", "first": first }).to_string();
                    return Some((Ok(sse::Event::default().event("gone").data(said)), self));
                }
                // The client comes back with its last number, and misses nothing.
                Err(ReadError::Store(_)) => return None,
            }
        }
    }
}

/// An entry as users see it. `audit`: with what only the audit tells.
fn shown(event: &Event, audit: bool) -> Value {
    let mut shown = event.told();
    if audit {
        shown["credential"] = json!(event.credential);
        shown["source"] = json!(event.source);
        shown["request_id"] = json!(event.request_id);
        shown["erased"] = json!(event.erased);
    }
    shown
}

/// `GET .../audit`
pub async fn audit(ask: Ask) -> Answer {
    let right = ask.right_everywhere("list", "audit")?;
    let known = ["actor", "resource", "kind", "verb", "outcome", "since", "until", "limit", "page"];
    let query = ask.query(&known)?;
    let wanted = |key: &str| query.get(key).cloned();
    let moment = |key: &str| match query.get(key) {
        None => Ok(None),
        Some(text) => {
            time(text).map(Some).ok_or_else(|| page::bad(key, "must be a time such as 2026-11-21T08:00:00Z"))
        }
    };
    let before = match page::after(&ask, "a")? {
        None => None,
        Some(place) => Some(place.parse().map_err(|_| page::bad("page", "is not one of this list"))?),
    };
    let query = AuditQuery {
        actor: wanted("actor"),
        resource: wanted("resource"),
        kind: wanted("kind"),
        verb: wanted("verb"),
        outcome: wanted("outcome"),
        since: moment("since")?,
        until: moment("until")?,
        before,
        limit: page::limit(&ask)?,
    };
    tenant_is_there(&ask).await?;
    let found = ask.ctx.store.audit(&right, &query).await?;
    let items = found.items.iter().map(|event| shown(event, true)).collect();
    Ok(Json(page::page(items, found.next, "a")).into_response())
}
