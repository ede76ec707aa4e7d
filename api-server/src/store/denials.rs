//! Denials: each one of somebody known is an entry, anonymous ones are counted per source. They are kept beside
//! the request and not within it, so that how long an answer takes does not tell why it is a refusal.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::history::{self, Entry};
use super::{Context, Store};
use crate::kernel::{Error, Timestamp};

/// Somebody known was refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Denial {
    /// Who.
    pub actor: String,
    /// With which credential.
    pub credential: String,
    /// From which address.
    pub source: String,
    /// Of the request.
    pub request_id: String,
    /// In which tenant; may be empty.
    pub tenant: String,
    /// With objects of which kind; may be empty.
    pub kind: String,
    /// What was to be done.
    pub verb: String,
    /// The call.
    pub detail: String,
}

/// What waits to be written. The memory that it takes has an end.
#[derive(Default)]
pub(super) struct Denials {
    waiting: Mutex<Waiting>,
    news: tokio::sync::Notify,
    writing: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Waiting {
    started: bool,
    known: Vec<Denial>,
    /// How many more there were than can be kept one by one.
    more: i64,
    anonymous: BTreeMap<String, Count>,
}

#[derive(Clone, Copy)]
struct Count {
    times: i64,
    first: Timestamp,
    last: Timestamp,
}

/// More than these are counted together.
const MOST_KNOWN: usize = 4096;
const MOST_SOURCES: usize = 1024;
const ELSEWHERE: &str = "elsewhere";
/// How often the counts of anonymous denials are written.
const COUNTS_EVERY: Duration = Duration::from_secs(60);

impl Store {
    /// Somebody known was refused: kept within moments.
    pub fn note_denial(&self, denial: Denial) {
        {
            let mut waiting = self.denials.waiting();
            match waiting.known.len() {
                MOST_KNOWN.. => waiting.more += 1,
                _ => waiting.known.push(denial),
            }
        }
        self.denials.news.notify_one();
        self.start_writing_denials();
    }

    /// Somebody unknown was refused: counted, and kept within a minute.
    pub fn note_stranger(&self, source: &str) {
        let now = self.env().now();
        {
            let mut waiting = self.denials.waiting();
            let room = waiting.anonymous.len() < MOST_SOURCES || waiting.anonymous.contains_key(source);
            let source = if room { source } else { ELSEWHERE };
            let count = waiting.anonymous.entry(source.to_owned()).or_insert(Count {
                times: 0,
                first: now,
                last: now,
            });
            (count.times, count.last) = (count.times + 1, now);
        }
        self.start_writing_denials();
    }

    /// Writes all that waits, the counts too.
    pub async fn flush_denials(&self) -> Result<(), Error> {
        write(self, true).await
    }

    fn start_writing_denials(&self) {
        if std::mem::replace(&mut self.denials.waiting().started, true) {
            return;
        }
        let store = self.clone();
        tokio::spawn(async move {
            let mut counts = tokio::time::Instant::now() + COUNTS_EVERY;
            loop {
                let with_counts = tokio::select! {
                    () = store.denials.news.notified() => false,
                    () = tokio::time::sleep_until(counts) => true,
                };
                if with_counts {
                    counts += COUNTS_EVERY;
                }
                if let Err(error) = write(&store, with_counts).await {
                    tracing::warn!(%error, "denials were not kept; trying again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    store.denials.news.notify_one();
                }
            }
        });
    }
}

async fn write(store: &Store, with_counts: bool) -> Result<(), Error> {
    let _one_at_a_time = store.denials.writing.lock().await;
    let taken = Arc::new(store.denials.take(with_counts));
    if taken.known.is_empty() && taken.anonymous.is_empty() {
        return Ok(());
    }
    let written = store
        .write(taken.clone(), |tx, context, all| Box::pin(async move { insert(tx, &context, &all).await }))
        .await;
    if written.is_err() {
        store.denials.put_back(&taken);
    }
    written
}

async fn insert(tx: &mut super::tx::Tx, context: &Context, all: &Waiting) -> Result<(), Error> {
    for denial in &all.known {
        let entry = Entry {
            class: "denied",
            tenant: &denial.tenant,
            kind: &denial.kind,
            verb: &denial.verb,
            outcome: "denied",
            actor: &denial.actor,
            credential: &denial.credential,
            source: &denial.source,
            request_id: &denial.request_id,
            detail: &denial.detail,
            ..Entry::default()
        };
        history::add(tx, context, entry);
    }
    if all.more > 0 {
        let detail = format!("{} more, too many at once to keep one by one", all.more);
        let entry = Entry { class: "denied", outcome: "denied", detail: &detail, ..Entry::default() };
        history::add(tx, context, entry);
    }
    for (source, count) in &all.anonymous {
        let detail = format!("{} times from {} to {}", count.times, count.first, count.last);
        let entry = Entry {
            class: "anonymous",
            verb: "authenticate",
            outcome: "denied",
            source,
            detail: &detail,
            ..Entry::default()
        };
        history::add(tx, context, entry);
    }
    Ok(())
}

impl Denials {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, with_counts: bool) -> Waiting {
        let mut waiting = self.waiting();
        Waiting {
            started: true,
            known: std::mem::take(&mut waiting.known),
            more: std::mem::take(&mut waiting.more),
            anonymous: if with_counts { std::mem::take(&mut waiting.anonymous) } else { BTreeMap::new() },
        }
    }

    fn put_back(&self, taken: &Waiting) {
        let mut waiting = self.waiting();
        waiting.more += taken.more;
        for denial in &taken.known {
            match waiting.known.len() {
                MOST_KNOWN.. => waiting.more += 1,
                _ => waiting.known.push(denial.clone()),
            }
        }
        for (source, count) in &taken.anonymous {
            let there = waiting.anonymous.entry(source.clone()).or_insert(Count { times: 0, ..*count });
            there.times += count.times;
            there.first = there.first.min(count.first);
        }
    }
}
