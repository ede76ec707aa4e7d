//! All sessions that this server holds, by node; and the bells that make them look again.
use super::ChannelContext;
use crate::kernel::Env;
use crate::store::Bell;
use rhyzome_proto::v1::{Goodbye, OpenStream};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, mpsc, watch};

/// Requests for streams that may wait for one session.
const OPENINGS: usize = 16;
/// A machine that was cloned has two agents that would chase each other out: not faster than this.
const AFTER_NEWER_MS: u32 = 5_000;
/// When a server ends, so many nodes a second are sent away: about what another one takes, or this one when it is back.
const AWAY_PER_SECOND: u64 = 1_000;
/// Few nodes are spread over so long.
const SPREAD_MS: u64 = 500;

/// The sessions of this server, in order: whatever goes through all of them does so the same way each time.
#[derive(Clone, Default)]
pub(super) struct Sessions(Arc<Mutex<BTreeMap<String, Handle>>>);

/// How others reach one session.
#[derive(Clone)]
struct Handle {
    session: i64,
    shared: Arc<Shared>,
    /// Boxed: a queue keeps room for many from its first day.
    openings: mpsc::Sender<Box<OpenStream>>,
}

struct Shared {
    look: Notify,
    sent: AtomicI64,
    /// In milliseconds of the server's uptime: when the question began to which the database last answered that this
    /// is the node's session.
    confirmed: AtomicU64,
    end: watch::Sender<Option<Goodbye>>,
    /// When the node's certificate ends, in seconds since 1970.
    certificate_ends: AtomicU64,
}

/// A session's own end: takes itself out of the registry when dropped.
pub(super) struct Place {
    sessions: Sessions,
    node: String,
    session: i64,
    shared: Arc<Shared>,
    openings: Option<mpsc::Receiver<Box<OpenStream>>>,
}

/// Told to the older of two sessions.
pub(super) fn superseded() -> Goodbye {
    Goodbye { reason: "a newer session of this node began".to_owned(), reconnect_after_ms: AFTER_NEWER_MS }
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Handle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a session, which began to be opened at that uptime; an older one of the node is ended. `None`: this one is
    /// the older.
    pub(super) fn enter(&self, node: &str, session: i64, opened: Duration) -> Option<Place> {
        let (openings, received) = mpsc::channel(OPENINGS);
        let shared = Arc::new(Shared {
            look: Notify::new(),
            sent: AtomicI64::new(0),
            confirmed: AtomicU64::new(millis(opened)),
            end: watch::Sender::new(None),
            certificate_ends: AtomicU64::new(u64::MAX),
        });
        let mut all = self.lock();
        if let Some(other) = all.get(node) {
            if other.session > session {
                return None;
            }
            other.shared.end.send_replace(Some(superseded()));
        }
        all.insert(node.to_owned(), Handle { session, shared: shared.clone(), openings });
        Some(Place {
            sessions: self.clone(),
            node: node.to_owned(),
            session,
            shared,
            openings: Some(received),
        })
    }

    /// Asks a node to lend a stream. False: it has no session here, or too many are waiting.
    pub(super) fn open(&self, node: &str, wanted: OpenStream) -> bool {
        let openings = self.lock().get(node).map(|handle| handle.openings.clone());
        openings.is_some_and(|openings| openings.try_send(Box::new(wanted)).is_ok())
    }

    /// Ends all sessions. Each node is told when to come back: one after the other, so that those who come never are more
    /// than are taken, and each at a moment of its own between its neighbours.
    pub(super) fn say_goodbye(&self, env: &Env) {
        let all = self.lock();
        let count = all.len() as u64;
        let spread = (count * 1000 / AWAY_PER_SECOND).max(SPREAD_MS);
        for (at, handle) in (0..).zip(all.values()) {
            let (from, to) = (spread * at / count, spread * (at + 1) / count);
            let reconnect_after_ms = u32::try_from(from + env.below(to - from)).unwrap_or(u32::MAX);
            let reason = "the server is restarting".to_owned();
            handle.shared.end.send_replace(Some(Goodbye { reason, reconnect_after_ms }));
        }
    }

    fn ring(&self, node: &str) {
        if let Some(handle) = self.lock().get(node) {
            handle.shared.look.notify_one();
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.lock().len()
    }

    /// When, of the certificates of all nodes that are here, the first one ends.
    pub(super) fn certificates_end(&self) -> Option<SystemTime> {
        let all = self.lock();
        let ends = all.values().map(|handle| handle.shared.certificate_ends.load(Ordering::Relaxed)).min()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(ends))
    }

    /// All look again.
    pub(super) fn ring_all(&self) {
        self.lock().values().for_each(|handle| handle.shared.look.notify_one());
    }
}

impl Place {
    /// Waits until there may be something new.
    pub(super) async fn look(&self) {
        self.shared.look.notified().await;
    }

    /// Remembers how far the orders were sent.
    pub(super) fn sent(&self, sequence: i64) {
        self.shared.sent.store(sequence, Ordering::Relaxed);
    }

    /// The node's certificate ends then.
    pub(super) fn certificate_ends(&self, when: SystemTime) {
        let since = when.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.shared.certificate_ends.store(since.as_secs(), Ordering::Relaxed);
    }

    /// The uptime at which the database was last asked whether this is the node's session, and said so.
    pub(super) fn confirmed(&self) -> Duration {
        Duration::from_millis(self.shared.confirmed.load(Ordering::Relaxed))
    }

    /// The streams that are asked for; once.
    pub(super) fn openings(&mut self) -> Option<mpsc::Receiver<Box<OpenStream>>> {
        self.openings.take()
    }

    /// Waits until somebody ends this session.
    pub(super) async fn ended(&self) -> Goodbye {
        let mut end = self.shared.end.subscribe();
        match end.wait_for(Option::is_some).await {
            Ok(goodbye) => goodbye.clone().unwrap_or_default(),
            // The sender is ours as well, so it is there.
            Err(_) => Goodbye::default(),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.sessions.lock();
        if all.get(&self.node).is_some_and(|handle| handle.session == self.session) {
            all.remove(&self.node);
        }
    }
}

/// Hears the store's bells for all sessions, and compares all nodes' numbers in one query every few seconds, in case
/// one was lost.
pub(super) async fn hear(context: Arc<ChannelContext>) {
    let sessions = context.streams.sessions().clone();
    let mut bells = context.store.bells().subscribe();
    let mut net = tokio::time::interval(context.net);
    net.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            _ = net.tick() => compare(&context, &sessions).await,
            bell = bells.recv() => match bell {
                Ok(Bell::Node(node)) => sessions.ring(&node),
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => sessions.ring_all(),
                Err(RecvError::Closed) => return,
            },
        }
    }
}

async fn compare(context: &ChannelContext, sessions: &Sessions) {
    let handles: Vec<_> =
        sessions.lock().iter().map(|(node, handle)| (node.clone(), handle.clone())).collect();
    if handles.is_empty() {
        return;
    }
    let asked = context.store.env().uptime();
    let heads = match context.store.node_heads(&context.server_id).await {
        Ok(heads) => heads,
        Err(error) => return tracing::warn!(%error, "the nodes' numbers cannot be compared now"),
    };
    let heads: HashMap<_, _> =
        heads.into_iter().map(|head| (head.node, (head.session, head.sequence))).collect();
    for (node, handle) in handles {
        let sent = handle.shared.sent.load(Ordering::Relaxed);
        if heads.get(&node).is_some_and(|(session, _)| *session == handle.session) {
            handle.shared.confirmed.store(millis(asked), Ordering::Relaxed);
        }
        if heads.get(&node).is_none_or(|head| *head != (handle.session, sent)) {
            handle.shared.look.notify_one();
        }
    }
}

fn millis(uptime: Duration) -> u64 {
    u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_newest_session_wins_in_whatever_order_they_enter() {
        let sessions = Sessions::default();
        let first = sessions.enter("node_1", 1, Duration::ZERO).unwrap();
        let third = sessions.enter("node_1", 3, Duration::ZERO).unwrap();
        assert_eq!(first.ended().await, superseded());
        assert!(sessions.enter("node_1", 2, Duration::ZERO).is_none());
        drop(first);
        assert!(sessions.open("node_1", OpenStream::default()), "the older one took the newer one along");
        drop(third);
        assert!(!sessions.open("node_1", OpenStream::default()));
    }

    #[tokio::test]
    async fn nodes_are_sent_away_one_after_the_other() {
        for (nodes, spread_ms) in [(3_000, 3_000), (3, 500)] {
            let sessions = Sessions::default();
            let places: Vec<_> = (0..nodes)
                .map(|node| sessions.enter(&format!("node_{node}"), 1, Duration::ZERO).unwrap())
                .collect();
            sessions.say_goodbye(&crate::environment::system_env());
            let mut waits = Vec::new();
            for place in &places {
                waits.push(u64::from(place.ended().await.reconnect_after_ms));
            }
            waits.sort_unstable();
            assert!(*waits.last().unwrap() < spread_ms);
            // In no tenth of a second do more come than their share, but for those at its ends.
            for from in (0..spread_ms).step_by(100) {
                let there = waits.iter().filter(|wait| (from..from + 100).contains(*wait)).count();
                let share = usize::try_from(nodes * 100 / spread_ms).unwrap();
                assert!(there <= share + 2, "{there} from {from} ms on, of {nodes}");
            }
        }
    }
}
