//! What the server is told, and when it has heard that something is gone.

use super::Owner;
use super::stale::Stale;
use crate::reconcile::{Action, Decision};
use crate::report::{self, Failure};
use rhyzome_proto::v1::{Report, ReportState};
use std::collections::BTreeMap;
use std::collections::hash_map::Entry;
use std::sync::PoisonError;
use std::time::Duration;
use tokio::time::Instant;

/// A session that lived on for this long after GONE was sent has heard it.
const HEARD_AFTER: Duration = Duration::from_secs(30);
/// A session this old has brought all orders that it was opened with.
const SETTLED_AFTER: Duration = Duration::from_secs(20);

/// Work that is done sooner is not worth a word: each one costs the server a commit, and the disk that both may
/// share a sync, while a user waits for the end of it.
const WORTH_TELLING: Duration = Duration::from_millis(300);

impl Owner {
    /// Sends what the server has not been told in this session of what was decided now, which is all or some. Answers how
    /// long nothing is to be told by itself.
    pub(super) fn report(&mut self, decided: &BTreeMap<String, Decision>, stale: &Stale) -> Duration {
        let mut news = Vec::new();
        let mut wake = Duration::MAX;
        for (id, decision) in decided {
            let Some(order) = self.orders.get(id) else { continue };
            let failure = self.trouble.get(id).map(|trouble| &trouble.failure);
            let progress = self.progress.get(id).copied();
            let report = report::of(order, decision, &self.known.world, failure, progress);
            let (coarse, version) = (report::coarse(&report), self.known.rendered_version(id));
            if report.state() != ReportState::Working {
                self.working.remove(id);
            }
            let is_told = |(told, at): &(Report, u64)| *at == version && told == &*coarse;
            if !self.told.get(id).is_some_and(is_told) {
                if report.state() == ReportState::Working {
                    let since = self.working.entry(id.clone()).or_insert_with(Instant::now);
                    let early = WORTH_TELLING.saturating_sub(since.elapsed());
                    if !early.is_zero() {
                        wake = wake.min(early);
                        continue;
                    }
                }
                self.told.insert(id.clone(), (coarse.into_owned(), version));
                news.push(Report { rendered: self.known.rendered(id), ..report });
            }
        }
        {
            let ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
            for (id, gone) in ledger.gone() {
                if !self.gone_told.contains_key(id) && !self.orders.contains_key(id) {
                    self.gone_told.insert(id.clone(), Instant::now());
                    news.push(report::of_gone(id, gone));
                }
            }
        }
        // Not at once: after a lost ledger the orders for what is here are still on their way.
        let is_settled = self.connected.is_some_and(|since| since.elapsed() >= SETTLED_AFTER);
        let unknown =
            if is_settled && *stale == Stale::All { self.known.unknown(&self.orders) } else { Vec::new() };
        for (id, what) in unknown {
            if let Entry::Vacant(place) = self.told.entry(id) {
                let report = report::of_unknown(place.key(), what);
                tracing::warn!("{}", report.message);
                place.insert((report.clone(), 0));
                news.push(report);
            }
        }
        for report in news {
            self.send(report);
        }
        wake
    }

    pub(super) fn send(&self, report: Report) {
        if self.connected.is_some() {
            (self.wires.teller)(report);
        }
    }

    /// What is gone need not be remembered once the server has surely heard so.
    pub(super) fn forget_heard(&mut self) {
        let heard: Vec<String> = self
            .gone_told
            .iter()
            .filter(|(_, told)| told.elapsed() >= HEARD_AFTER)
            .map(|(id, _)| id.clone())
            .collect();
        if heard.is_empty() {
            return;
        }
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        match ledger.heard(&heard) {
            Ok(()) => self.gone_told.retain(|id, _| !heard.contains(id)),
            Err(error) => tracing::error!(%error, "cannot forget what is gone"),
        }
    }

    /// Nothing is left of it: its order goes, and that it is gone is told.
    pub(super) async fn forget(&mut self, id: &str) {
        let ledger = self.ledger.clone();
        let object = id.to_owned();
        let forgotten = self
            .env
            .blocking(move || ledger.lock().unwrap_or_else(PoisonError::into_inner).finish_removal(&object));
        match forgotten.await {
            Ok(Ok(())) => {
                tracing::info!(object = id, "gone");
                self.unordered(id);
                self.told.remove(id);
                self.working.remove(id);
                self.known.forget(id);
            }
            Ok(Err(error)) => {
                let failure = Failure { message: error.to_string(), permanent: false };
                self.in_trouble(id.to_owned(), Action::Forget, failure);
            }
            Err(error) => tracing::error!(%error, "cannot forget {id}"),
        }
    }
}
