//! What was told to happen to all that is done on simulated nodes: to wait, to take long, to fail.

use super::fake;
use crate::drivers::DriverError;
use crate::reconcile::Action;
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// Shared by all nodes of a simulation.
#[derive(Debug, Default)]
pub struct Rules(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    is_held: bool,
    slow: Duration,
    failing: BTreeSet<String>,
    /// In the order in which they came.
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    what: String,
    go: oneshot::Sender<()>,
}

impl Rules {
    fn lock(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until this may be done; the error is how it is to fail.
    pub(super) async fn turn(&self, node: &str, id: &str, action: &Action) -> Result<(), DriverError> {
        let kind = fake::kind_of(action);
        if let Some(turn) = self.queue(format!("{node} {} {id}", fake::name_of(action))) {
            // Whoever holds the other end lets it go when it is dropped, too.
            let _ = turn.await;
        }
        let slow = self.lock().slow;
        if !slow.is_zero() {
            tokio::time::sleep(slow).await;
        }
        match self.lock().failing.contains(kind) {
            true => Err(DriverError::Retry(format!("simulated: whatever is done to a {kind} fails"))),
            false => Ok(()),
        }
    }

    fn queue(&self, what: String) -> Option<oneshot::Receiver<()>> {
        let mut told = self.lock();
        if !told.is_held {
            return None;
        }
        let (go, turn) = oneshot::channel();
        told.waiting.push_back(Waiting { what, go });
        Some(turn)
    }

    /// From now on everything waits until it is let go.
    pub fn hold(&self) {
        self.lock().is_held = true;
    }

    /// Nothing waits any more.
    pub fn go(&self) {
        let mut told = self.lock();
        told.is_held = false;
        told.waiting.clear();
    }

    /// Lets the first of what waits go; what it is. What waited for an agent that has ended is passed over.
    pub fn step(&self) -> Option<String> {
        let mut told = self.lock();
        while let Some(Waiting { what, go }) = told.waiting.pop_front() {
            if go.send(()).is_ok() {
                return Some(what);
            }
        }
        None
    }

    /// Everything takes so long, beside its waiting.
    pub fn slow(&self, slow: Duration) {
        self.lock().slow = slow;
    }

    /// Whatever is done to this kind fails.
    pub fn fail(&self, kind: &str) {
        self.lock().failing.insert(kind.to_owned());
    }

    /// Nothing fails any more.
    pub fn mend(&self) {
        self.lock().failing.clear();
    }

    /// What waits, first to last.
    pub fn waiting(&self) -> Vec<String> {
        let told = self.lock();
        told.waiting.iter().filter(|one| !one.go.is_closed()).map(|one| one.what.clone()).collect()
    }

    /// In words; nothing if nothing was told.
    pub fn words(&self) -> String {
        let told = self.lock();
        let mut words = Vec::new();
        if told.is_held {
            words.push("hold".to_owned());
        }
        if !told.slow.is_zero() {
            words.push(format!("slow {:?}", told.slow));
        }
        words.extend(told.failing.iter().map(|kind| format!("fail {kind}")));
        words.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test]
    async fn what_is_held_goes_one_by_one_and_what_is_to_fail_fails() {
        let rules = Arc::new(Rules::default());
        rules.turn("n", "a", &Action::Kill).await.unwrap();
        rules.hold();
        let mut turns = Vec::new();
        for id in ["a", "b", "c"] {
            let rules = rules.clone();
            turns.push(tokio::spawn(async move { rules.turn("n", id, &Action::Kill).await }));
            tokio::task::yield_now().await;
        }
        assert_eq!(rules.waiting(), ["n Kill a", "n Kill b", "n Kill c"]);
        // Of an agent that has ended nothing goes.
        turns.remove(1).abort();
        tokio::task::yield_now().await;
        assert_eq!(rules.step().as_deref(), Some("n Kill a"));
        turns.remove(0).await.unwrap().unwrap();
        rules.fail("instance");
        assert_eq!(rules.words(), "hold, fail instance");
        assert_eq!(rules.step().as_deref(), Some("n Kill c"));
        let failed = turns.remove(0).await.unwrap().unwrap_err();
        assert!(failed.to_string().starts_with("simulated: "), "{failed}");
        assert_eq!(rules.step(), None);
        rules.mend();
        rules.go();
        rules.turn("n", "a", &Action::Kill).await.unwrap();
        assert_eq!(rules.words(), "");
    }
}
