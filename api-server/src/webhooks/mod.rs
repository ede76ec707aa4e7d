//! Webhooks: tells others of what happens. Reads only the log; each webhook has its place in it, and one worker on one
//! server, so that messages come in the order of the log and one after the other, and none is left out.
//!
//! The place is moved after a message was taken: a server that dies in between sends it again, under the same id.

mod send;
mod worker;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use send::{again, message_of, ping, send};

use crate::kernel::Error;
use crate::kernel::webhook::{PREFIX, Pace};
use crate::outbound::Courier;
use crate::store::{Bell, Bells, Hook, Store};

/// How long to sleep when no bell rings.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// So many messages are on their way at once, and so many to those who did not take the last one: who is slow or away
/// never stands in the way of the others.
const AT_ONCE: usize = 48;
const AT_ONCE_FAILING: usize = 16;

/// What is needed to deliver.
#[derive(Clone)]
pub struct Deliveries {
    /// Where the log is.
    pub store: Store,
    /// Who brings messages.
    pub courier: Arc<Courier>,
    /// This server.
    pub server: String,
    /// How patient to be.
    pub pace: Pace,
}

impl Deliveries {
    /// At the usual pace.
    pub fn new(store: Store, courier: Arc<Courier>, server: &str) -> Deliveries {
        Deliveries { store, courier, server: server.to_owned(), pace: Pace::default() }
    }
}

struct Permits {
    good: Semaphore,
    failing: Semaphore,
}

/// A worker, and what it works from: another version or epoch needs another worker.
struct Running {
    version: i64,
    epoch: i64,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Runs until it is told to stop.
pub async fn run(deliveries: Deliveries, stop: CancellationToken) {
    let mut bells = deliveries.store.bells().subscribe();
    let permits =
        Arc::new(Permits { good: Semaphore::new(AT_ONCE), failing: Semaphore::new(AT_ONCE_FAILING) });
    let ended = Arc::new(Notify::new());
    let mut running: BTreeMap<String, Running> = BTreeMap::new();
    let of_webhook = |bell: &Bell| matches!(bell, Bell::Resource(id) if id.starts_with(PREFIX));
    loop {
        match deliveries.store.my_webhooks(&deliveries.server).await {
            Ok(hooks) => look(&deliveries, &permits, &ended, &stop, &mut running, hooks),
            Err(error) => tracing::warn!(%error, "webhooks were not looked at; trying again"),
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = Bells::heard(&mut bells, of_webhook) => {}
            () = ended.notified() => {}
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
    }
    for (_, worker) in running {
        // It has been told; what is on its way is brought to its end.
        let _ = worker.task.await;
    }
    if let Err(error) = deliveries.store.leave_webhooks(&deliveries.server).await {
        tracing::warn!(%error, "webhooks were not given back; another server takes them over later");
    }
}

/// One worker for each that is enabled; none for the others. A worker that goes by what was is told to end, and its
/// successor begins when it has.
fn look(
    deliveries: &Deliveries,
    permits: &Arc<Permits>,
    ended: &Arc<Notify>,
    stop: &CancellationToken,
    running: &mut BTreeMap<String, Running>,
    hooks: Vec<Hook>,
) {
    running.retain(|_, worker| !worker.task.is_finished());
    let wanted: BTreeMap<String, Hook> = hooks
        .into_iter()
        .filter(|hook| hook.object.spec["enabled"] == true)
        .map(|hook| (hook.object.core.id.clone(), hook))
        .collect();
    for (id, worker) in &*running {
        let same = |hook: &Hook| (hook.object.core.version, hook.epoch) == (worker.version, worker.epoch);
        if !wanted.get(id).is_some_and(same) {
            worker.stop.cancel();
        }
    }
    for (id, hook) in wanted {
        if running.contains_key(&id) {
            continue;
        }
        let (version, epoch, stop) = (hook.object.core.version, hook.epoch, stop.child_token());
        let (deliveries, permits, ended, told) =
            (deliveries.clone(), permits.clone(), ended.clone(), stop.clone());
        let task = tokio::spawn(async move {
            let id = hook.object.core.id.clone();
            if let Err(error) = worker::work(deliveries, permits, hook, told).await {
                tracing::warn!(%error, webhook = id, "a webhook was not delivered for; trying again");
                // Not at once: what is wrong is wrong still.
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            ended.notify_one();
        });
        running.insert(id, Running { version, epoch, stop, task });
    }
}

impl Permits {
    fn of(&self, failing: bool) -> &Semaphore {
        if failing { &self.failing } else { &self.good }
    }
}

/// What a worker cannot go on with.
fn shutting_down() -> Error {
    Error::Unavailable("the server is shutting down".to_owned())
}
