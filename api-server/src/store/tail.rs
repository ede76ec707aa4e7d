//! The end of the log, read once for everybody: one task per process follows it and keeps the last entries; any
//! number of readers take theirs from there, each at its own pace. A reader that is further behind reads pages
//! by number, so a slow one neither loses anything nor holds anybody up.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::broadcast::Receiver;
use tokio::sync::{OnceCell, watch};

use super::bells::{Bell, Bells};
use super::log::{self, Event};
use super::open::Readers;
use super::{LogHead, Store};
use crate::kernel::Error;

/// So many of the last entries are kept in memory.
pub const TAIL_ENTRIES: usize = 4096;
/// So many entries are read at once, and handed out at once.
const PAGE: i64 = 512;
/// How long the tail sleeps when no bell rings.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The tail of a store, which is there once somebody reads.
pub(super) type TailCell = Arc<OnceCell<Arc<Tail>>>;

/// The last entries.
pub(super) struct Tail {
    ring: Mutex<Ring>,
    head: watch::Sender<i64>,
    follows: AtomicU64,
    catch_ups: AtomicU64,
}

struct Ring {
    /// Number of the first entry in it, or of the next one that will come.
    start: i64,
    entries: VecDeque<Arc<Event>>,
}

/// How often the database was read for the log's readers, from the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TailReads {
    /// By the one task that follows the end: once for all readers.
    pub follows: u64,
    /// By readers that were too far behind.
    pub catch_ups: u64,
}

/// Somebody who reads the log from a number on.
pub struct LogReader {
    store: Store,
    tail: Arc<Tail>,
    heads: watch::Receiver<i64>,
    next: i64,
}

/// Why a reader cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// What it wants next is not kept any more.
    #[error("entries before {first} are not kept any more")]
    Gone {
        /// The first one that is.
        first: i64,
    },
    /// The store does not answer.
    #[error(transparent)]
    Store(#[from] Error),
}

enum Found {
    Entries(Vec<Arc<Event>>),
    End,
    TooOld,
}

impl Store {
    /// A reader of everything behind this number; of what comes from now on if there is none.
    pub async fn read_log(&self, after: Option<i64>) -> Result<LogReader, Error> {
        let tail = self.tail.get_or_try_init(|| self.start_tail()).await?.clone();
        let heads = tail.head.subscribe();
        let next = after.unwrap_or(*heads.borrow()) + 1;
        Ok(LogReader { store: self.clone(), tail, heads, next })
    }

    /// How often the database was read for readers of the log.
    pub fn log_reads(&self) -> TailReads {
        self.tail.get().map(|tail| tail.reads()).unwrap_or_default()
    }

    async fn start_tail(&self) -> Result<Arc<Tail>, Error> {
        // The ear is on before the end is looked at: nothing can be missed in between.
        let ear = self.bells.subscribe();
        let LogHead { seq, .. } = self.log_head().await?;
        let tail = Arc::new(Tail {
            ring: Mutex::new(Ring { start: seq + 1, entries: VecDeque::new() }),
            head: watch::Sender::new(seq),
            follows: AtomicU64::new(0),
            catch_ups: AtomicU64::new(0),
        });
        tokio::spawn(follow(Arc::downgrade(&tail), self.readers.clone(), ear));
        Ok(tail)
    }
}

/// Follows the end for as long as there is a store to read for.
async fn follow(tail: Weak<Tail>, readers: Readers, mut ear: Receiver<Bell>) {
    while let Some(tail) = tail.upgrade() {
        match tail.grow(&readers).await {
            Ok(true) => continue,
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "the event log was not read; trying again"),
        }
        drop(tail);
        // Time over: then it looks anyway.
        let _ = tokio::time::timeout(LOOK_AGAIN, Bells::heard(&mut ear, |bell| *bell == Bell::Log)).await;
    }
}

impl Tail {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reads(&self) -> TailReads {
        TailReads {
            follows: self.follows.load(Ordering::Relaxed),
            catch_ups: self.catch_ups.load(Ordering::Relaxed),
        }
    }

    /// Reads what has come; true if there may be more.
    async fn grow(&self, readers: &Readers) -> Result<bool, Error> {
        let at = *self.head.borrow();
        self.follows.fetch_add(1, Ordering::Relaxed);
        let events = log::after(&mut readers.acquire().await?, at, PAGE).await?;
        let Some(last) = events.last().map(|event| event.seq) else { return Ok(false) };
        let full = i64::try_from(events.len()).is_ok_and(|length| length == PAGE);
        self.ring().push(events);
        self.head.send_replace(last);
        Ok(full)
    }
}

impl Ring {
    fn push(&mut self, events: Vec<Event>) {
        self.entries.extend(events.into_iter().map(Arc::new));
        let over = self.entries.len().saturating_sub(TAIL_ENTRIES);
        self.entries.drain(..over);
        if let Some(first) = self.entries.front() {
            self.start = first.seq;
        }
    }

    fn from(&self, next: i64) -> Found {
        let Ok(at) = usize::try_from(next - self.start) else { return Found::TooOld };
        if at >= self.entries.len() {
            return Found::End;
        }
        Found::Entries(self.entries.range(at..).take(PAGE as usize).cloned().collect())
    }
}

impl LogReader {
    /// The next entries, at least one, in their order. Waits if there is none yet.
    pub async fn more(&mut self) -> Result<Vec<Arc<Event>>, ReadError> {
        loop {
            if let Some(entries) = self.now().await? {
                return Ok(entries);
            }
            self.heads.mark_unchanged();
            if self.next <= *self.heads.borrow() {
                continue;
            }
            if self.heads.changed().await.is_err() {
                return Err(Error::Unavailable("the server is shutting down".to_owned()).into());
            }
        }
    }

    /// The next entries, if there are any already.
    pub async fn now(&mut self) -> Result<Option<Vec<Arc<Event>>>, ReadError> {
        let found = self.tail.ring().from(self.next);
        let entries = match found {
            Found::Entries(entries) => entries,
            Found::End => return Ok(None),
            Found::TooOld => self.page().await?,
        };
        if let Some(last) = entries.last() {
            self.next = last.seq + 1;
        }
        Ok(Some(entries))
    }

    /// The number behind which it reads on.
    pub fn at(&self) -> i64 {
        self.next - 1
    }

    async fn page(&self) -> Result<Vec<Arc<Event>>, ReadError> {
        self.tail.catch_ups.fetch_add(1, Ordering::Relaxed);
        let events = self.store.log_after(self.next - 1, PAGE).await?;
        match events.first() {
            Some(event) if event.seq == self.next => Ok(events.into_iter().map(Arc::new).collect()),
            _ => Err(ReadError::Gone { first: self.store.log_head().await?.first }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(numbers: std::ops::RangeInclusive<i64>) -> Vec<Event> {
        numbers.map(|seq| Event { seq, ..Event::default() }).collect()
    }

    #[test]
    fn the_ring_keeps_the_last_and_knows_what_it_has_not() {
        let mut ring = Ring { start: 5, entries: VecDeque::new() };
        assert!(matches!(ring.from(5), Found::End));
        assert!(matches!(ring.from(4), Found::TooOld));
        let most = TAIL_ENTRIES as i64;
        ring.push(events(5..=most + 9));
        assert_eq!((ring.start, ring.entries.len()), (10, TAIL_ENTRIES));
        assert!(matches!(ring.from(9), Found::TooOld));
        assert!(matches!(ring.from(most + 10), Found::End));
        let Found::Entries(page) = ring.from(10) else { panic!() };
        assert_eq!((page[0].seq, page.len() as i64), (10, PAGE));
        let Found::Entries(page) = ring.from(most + 9) else { panic!() };
        assert_eq!((page[0].seq, page.len()), (most + 9, 1));
    }
}
