//! A connection, as its requests and its transport both know it: what is asked on it, and when it is to be cut off.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::limits::ConnectionLimits;

/// Requests that were not waited for, of which no more is thought: so many at once, then one each so often. A browser
/// that leaves a page takes back what it asked; nobody takes back hundreds.
const TAKEN_BACK: (u32, Duration) = (200, Duration::from_millis(100));

/// One connection. Cheap to clone.
#[derive(Clone)]
pub struct Line(Arc<Inner>);

struct Inner {
    limits: ConnectionLimits,
    state: Mutex<State>,
    cut: Notify,
}

struct State {
    /// Requests that are not answered to their end.
    open: usize,
    /// When one began or ended last; at first, when the connection did.
    at: Instant,
    asked: bool,
    /// It speaks a version in which a request is all that anybody sends.
    plain: bool,
    /// Since when a request has begun that is not whole, where that can be told.
    begun: Option<Instant>,
    /// Since when nothing can be sent.
    blocked: Option<Instant>,
    /// Answers of which a piece was handed over and the next not asked for, each since when.
    offered: BTreeMap<u64, Instant>,
    next: u64,
    /// When all that was taken back will be forgiven.
    forgiven: Instant,
    cut: Option<&'static str>,
}

/// A request on a connection, until it is answered to its end.
pub struct OnLine {
    line: Line,
    number: u64,
    answered: bool,
}

// === impl Line ===

impl Line {
    /// One that was opened now.
    pub fn new(limits: ConnectionLimits) -> Line {
        let now = Instant::now();
        let state = State {
            open: 0,
            at: now,
            asked: false,
            plain: false,
            begun: None,
            blocked: None,
            offered: BTreeMap::new(),
            next: 0,
            forgiven: now,
            cut: None,
        };
        Line(Arc::new(Inner { limits, state: Mutex::new(state), cut: Notify::new() }))
    }

    /// A request begins. `plain`: nothing else is sent on this connection but requests, one after the other.
    pub fn begin(&self, plain: bool) -> OnLine {
        let mut state = self.state();
        (state.asked, state.plain, state.begun) = (true, plain, None);
        state.open += 1;
        state.next += 1;
        OnLine { line: self.clone(), number: state.next, answered: false }
    }

    /// Something was received.
    pub fn received(&self) {
        let mut state = self.state();
        // A body belongs to a request that has begun.
        if state.plain && state.open == 0 && state.begun.is_none() {
            state.begun = Some(Instant::now());
        }
    }

    /// Something could be sent, or could not.
    pub fn sent(&self, could: bool) {
        let mut state = self.state();
        if could {
            state.blocked = None;
        } else if state.blocked.is_none() {
            state.blocked = Some(Instant::now());
        }
    }

    /// A request was taken back, or was one of far too many.
    pub fn bothers(&self) {
        let mut state = self.state();
        let now = Instant::now();
        state.forgiven = state.forgiven.max(now) + TAKEN_BACK.1;
        if state.forgiven > now + TAKEN_BACK.1 * TAKEN_BACK.0 {
            state.cut = Some("connection-resets");
            drop(state);
            self.0.cut.notify_one();
        }
    }

    /// Waits until it is to be cut off; why.
    pub async fn over(&self) -> &'static str {
        loop {
            match self.judge(Instant::now()) {
                Err(why) => return why,
                Ok(again) => tokio::select! {
                    () = sleep_until(again) => {}
                    () = self.0.cut.notified() => {}
                },
            }
        }
    }

    /// When to look again, or why it is over.
    fn judge(&self, now: Instant) -> Result<Instant, &'static str> {
        let (state, limits) = (self.state(), &self.0.limits);
        if let Some(why) = state.cut {
            return Err(why);
        }
        // Something that is due sooner may begin at any time: that is seen in time without anybody being woken for it.
        let mut again = now + limits.header.min(limits.stall).min(limits.idle);
        let mut due = |since: Instant, most: Duration, why: &'static str| {
            again = again.min(since + most);
            if since + most <= now { Err(why) } else { Ok(()) }
        };
        for since in state.offered.values().chain(&state.blocked) {
            due(*since, limits.stall, "connection-stall")?;
        }
        match (state.open, state.asked, state.begun) {
            (0, false, _) => due(state.at, limits.header, "header-seconds")?,
            (0, true, Some(begun)) => due(begun, limits.header, "header-seconds")?,
            (0, true, None) => due(state.at, limits.idle, "connection-idle")?,
            _ => {}
        }
        Ok(again)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl OnLine ===

impl OnLine {
    /// All of its answer was handed over: it was not taken back.
    pub fn answered(&mut self) {
        self.answered = true;
    }

    /// A piece of the answer was handed over: the next is not asked for until this one is on its way.
    pub fn offered(&self) {
        self.line.state().offered.insert(self.number, Instant::now());
    }

    /// The next piece is asked for.
    pub fn taken(&self) {
        self.line.state().offered.remove(&self.number);
    }
}

impl Drop for OnLine {
    fn drop(&mut self) {
        let mut state = self.line.state();
        state.offered.remove(&self.number);
        state.open -= 1;
        state.at = Instant::now();
        drop(state);
        if !self.answered {
            self.line.bothers();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn line() -> (Line, Instant) {
        let limits = ConnectionLimits {
            header: SECOND * 10,
            idle: SECOND * 75,
            stall: SECOND * 60,
            ..ConnectionLimits::default()
        };
        (Line::new(limits), Instant::now())
    }

    #[tokio::test]
    async fn the_first_request_comes_soon_and_then_there_is_time() {
        let (line, now) = line();
        assert!(line.judge(now + SECOND * 9).is_ok());
        assert_eq!(line.judge(now + SECOND * 11), Err("header-seconds"));
        let mut request = line.begin(true);
        assert!(line.judge(now + SECOND * 3600).is_ok(), "a request may take long");
        request.answered();
        drop(request);
        assert!(line.judge(now + SECOND * 70).is_ok());
        assert_eq!(line.judge(now + SECOND * 80), Err("connection-idle"));
        // The next one has begun, and does not end.
        line.received();
        assert_eq!(line.judge(now + SECOND * 11), Err("header-seconds"));
        // Where other things are sent as well, something that is received is no request.
        drop(line.begin(false));
        line.received();
        assert!(line.judge(now + SECOND * 70).is_ok());
    }

    #[tokio::test]
    async fn who_takes_no_answer_is_cut_off() {
        let (line, now) = line();
        let mut request = line.begin(false);
        request.answered();
        request.offered();
        assert!(line.judge(now + SECOND * 59).is_ok());
        assert_eq!(line.judge(now + SECOND * 61), Err("connection-stall"));
        request.taken();
        assert!(line.judge(now + SECOND * 61).is_ok());
        line.sent(false);
        assert_eq!(line.judge(now + SECOND * 61), Err("connection-stall"));
        line.sent(true);
        assert!(line.judge(now + SECOND * 61).is_ok());
    }

    #[tokio::test]
    async fn who_takes_back_hundreds_of_requests_is_cut_off() {
        let (line, _) = line();
        for _ in 0..1000 {
            let mut answered = line.begin(false);
            answered.answered();
        }
        for _ in 0..TAKEN_BACK.0 {
            drop(line.begin(false));
        }
        assert!(line.judge(Instant::now()).is_ok());
        (0..10).for_each(|_| drop(line.begin(false)));
        assert_eq!(line.over().await, "connection-resets");
    }
}
