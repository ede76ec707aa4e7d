//! What is begun: beside the loop, one task for each object at most, or one for many that go together.

use super::{Back, Busy, LOOK_EVERY, MAX_RETRY_MS, Owner, REFRESH_EVERY};
use crate::plain::Ordered;
use crate::reconcile::Action;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::task::AbortHandle;

/// So many go together at most: what one of them waits for is bounded.
const TOGETHER: usize = 512;

/// What was begun and goes together, by kind; it starts when all of it is known.
pub(super) type Gathered = BTreeMap<&'static str, Vec<(String, u64, Ordered)>>;

impl Owner {
    /// Begins an action, unless the object is busy or this was tried and must wait. Answers how long.
    pub(super) fn begin(&mut self, id: &str, action: Action, now: u64) -> Duration {
        if self.busy.contains_key(id) {
            return LOOK_EVERY;
        }
        if let Some(wait) = self.held_up(id, &action, now) {
            return wait;
        }
        self.spawn(id, action, now);
        LOOK_EVERY
    }

    /// How long this must wait because it was tried and failed, if it must.
    pub(super) fn held_up(&mut self, id: &str, action: &Action, now: u64) -> Option<Duration> {
        let trouble = self.trouble.get(id)?;
        if !is_same(&trouble.action, action) {
            self.trouble.remove(id);
            return None;
        }
        if trouble.failure.permanent {
            return Some(LOOK_EVERY);
        }
        // None waits longer than that: the clock was put back meanwhile.
        let wait = trouble.retry_at_ms.saturating_sub(now);
        (1..=MAX_RETRY_MS).contains(&wait).then(|| Duration::from_millis(wait))
    }

    fn spawn(&mut self, id: &str, action: Action, now: u64) {
        self.attempts += 1;
        self.known.touch(id);
        let attempt = self.attempts;
        tracing::debug!(object = id, action = %name(&action), "begins");
        let abort = match &action {
            Action::ApplyPlain(kind, ordered) if self.hands.together().contains(kind) => {
                let one = (id.to_owned(), attempt, ordered.clone());
                self.gathered.entry(kind).or_default().push(one);
                None
            }
            _ => Some(self.start(id, attempt, action.clone(), now)),
        };
        let copies = matches!(action, Action::TakeSnapshot { .. });
        self.busy.insert(id.to_owned(), Busy { attempt, action, abort });
        if copies {
            self.note_copies();
        }
    }

    /// Which disks are being copied now.
    pub(super) fn note_copies(&mut self) {
        let copied = self.busy.values().filter_map(|busy| match &busy.action {
            Action::TakeSnapshot { order, open_by: None } => Some(order.disk_id.clone()),
            _ => None,
        });
        self.known.world.copied = copied.collect();
    }

    fn start(&self, id: &str, attempt: u64, action: Action, now: u64) -> AbortHandle {
        let (hands, back, object) = (self.hands.clone(), self.back.0.clone(), id.to_owned());
        let task = tokio::spawn(async move {
            let (teller, told) = (back.clone(), object.clone());
            let progress = Box::new(move |bytes| {
                let _ = teller.send(Back::Progress { id: told.clone(), bytes });
            });
            let done = hands.act(&object, action, now, progress).await;
            let _ = back.send(Back::Done { id: object, attempt, done });
        });
        task.abort_handle()
    }

    /// Starts what was gathered.
    pub(super) fn launch(&mut self) {
        for (kind, mut all) in std::mem::take(&mut self.gathered) {
            while !all.is_empty() {
                let some = all.split_off(all.len().saturating_sub(TOGETHER));
                let (hands, back) = (self.hands.clone(), self.back.0.clone());
                tokio::spawn(async move {
                    let (attempts, orders): (Vec<u64>, Vec<_>) =
                        some.into_iter().map(|(id, attempt, ordered)| (attempt, (id, ordered))).unzip();
                    let done = hands.make_together(kind, orders).await;
                    for (attempt, (id, done)) in attempts.into_iter().zip(done) {
                        let _ = back.send(Back::Done { id, attempt, done });
                    }
                });
            }
        }
    }

    /// A network that is held is compared with the node again now and then: somebody may have changed it by hand.
    pub(super) fn refresh(&mut self, id: &str, now: u64) {
        if let Some(network) = self.known.due(id, REFRESH_EVERY).filter(|_| !self.busy.contains_key(id)) {
            self.spawn(id, Action::ApplyNetwork(network), now);
        }
    }
}

/// True if trying `now` is trying `before` again.
fn is_same(before: &Action, now: &Action) -> bool {
    match (before, now) {
        (Action::Start { boot: before, .. }, Action::Start { boot: now, .. }) => {
            before.order == now.order && before.accelerator == now.accelerator
        }
        _ => before == now,
    }
}

fn name(action: &Action) -> String {
    let text = format!("{action:?}");
    text.split(['(', ' ', '{']).next().unwrap_or_default().to_owned()
}
