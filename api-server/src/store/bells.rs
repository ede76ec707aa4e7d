//! Bells: "look again", and nothing more. A lost one costs time, never truth: whoever listens also polls.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::broadcast::{self, error::RecvError};
use tokio_util::sync::CancellationToken;

/// What to look at again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Bell {
    /// The assignments of this node.
    Node(String),
    /// Jobs that are due.
    Jobs,
    /// This resource.
    Resource(String),
    /// What waits to be appended to the log.
    Events,
    /// The log, which has grown.
    Log,
    /// Logins that have ended.
    Sessions,
    /// What anybody may do.
    Rights,
    /// The domains of tenants, and their realms.
    Domains,
    /// What is to be done with realms.
    Realms,
}

/// Whoever looks again whenever one bell rings.
pub struct Following {
    ear: broadcast::Receiver<Bell>,
    of: Bell,
    every: Duration,
    /// Another ring may come right after one: both are one look.
    gather: Duration,
    stop: CancellationToken,
    has_begun: bool,
}

/// Where bells are rung and heard, within this process; `notify.rs` carries them between processes.
#[derive(Clone)]
pub struct Bells {
    local: broadcast::Sender<Bell>,
    /// To the notifier of other processes, when there are any.
    remote: Option<tokio::sync::mpsc::UnboundedSender<Bell>>,
    /// How often rights have changed: for whoever asks at each request and cannot listen.
    rights: Arc<AtomicU64>,
}

// === impl Bell ===

impl Bell {
    pub(super) fn encode(&self) -> String {
        match self {
            Bell::Node(id) => format!("n {id}"),
            Bell::Jobs => "j".to_owned(),
            Bell::Resource(id) => format!("r {id}"),
            Bell::Events => "e".to_owned(),
            Bell::Log => "l".to_owned(),
            Bell::Sessions => "s".to_owned(),
            Bell::Rights => "a".to_owned(),
            Bell::Domains => "d".to_owned(),
            Bell::Realms => "m".to_owned(),
        }
    }

    pub(super) fn decode(text: &str) -> Option<Bell> {
        match text.split_once(' ') {
            None if text == "j" => Some(Bell::Jobs),
            None if text == "e" => Some(Bell::Events),
            None if text == "l" => Some(Bell::Log),
            None if text == "s" => Some(Bell::Sessions),
            None if text == "a" => Some(Bell::Rights),
            None if text == "d" => Some(Bell::Domains),
            None if text == "m" => Some(Bell::Realms),
            Some(("n", id)) => Some(Bell::Node(id.to_owned())),
            Some(("r", id)) => Some(Bell::Resource(id.to_owned())),
            _ => None,
        }
    }
}

// === impl Bells ===

impl Bells {
    pub(super) fn new(remote: Option<tokio::sync::mpsc::UnboundedSender<Bell>>) -> Bells {
        Bells { local: broadcast::channel(4096).0, remote, rights: Arc::default() }
    }

    /// From now on. A listener that lags hears `Lagged`: it should look at everything.
    pub fn subscribe(&self) -> broadcast::Receiver<Bell> {
        self.local.subscribe()
    }

    /// Waits for a bell of this kind; also returns when bells were missed, as it may have been among them.
    pub async fn heard(ear: &mut broadcast::Receiver<Bell>, of: impl Fn(&Bell) -> bool) {
        loop {
            match ear.recv().await {
                Ok(bell) if of(&bell) => return,
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => return,
                // The store is being taken down: timers and stop tokens decide.
                Err(RecvError::Closed) => return std::future::pending().await,
            }
        }
    }

    /// To look at something now, then whenever this bell rings, and so often in any case, until `stop`.
    pub fn follow(&self, of: Bell, every: Duration, stop: CancellationToken) -> Following {
        Following { ear: self.subscribe(), of, every, gather: Duration::ZERO, stop, has_begun: false }
    }

    pub(super) fn ring(&self, bell: Bell) {
        if let Some(remote) = &self.remote {
            // The notifier ends only with the process.
            let _ = remote.send(bell.clone());
        }
        self.ring_here(bell);
    }

    /// How often it rang for rights.
    pub(super) fn rights_rung(&self) -> u64 {
        self.rights.load(Ordering::SeqCst)
    }

    pub(super) fn ring_here(&self, bell: Bell) {
        if bell == Bell::Rights {
            self.rights.fetch_add(1, Ordering::SeqCst);
        }
        // Nobody listening is nobody's loss: they look when they come.
        let _ = self.local.send(bell);
    }
}

// === impl Following ===

impl Following {
    /// The same; what rings so soon after a bell is seen by the same look.
    pub fn gathering(self, gather: Duration) -> Following {
        Following { gather, ..self }
    }

    /// Waits until it is time to look. False: it is time to stop.
    pub async fn again(&mut self) -> bool {
        if std::mem::replace(&mut self.has_begun, true) {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => {}
                () = Bells::heard(&mut self.ear, |bell| *bell == self.of) => tokio::time::sleep(self.gather).await,
                () = tokio::time::sleep(self.every) => {}
            }
            // However often it rang: the look that comes now sees all.
            self.ear = self.ear.resubscribe();
        }
        !self.stop.is_cancelled()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_follows_looks_at_once_at_each_ring_now_and_then_and_no_more_after_the_end() {
        let (bells, stop) = (Bells::new(None), CancellationToken::new());
        let mut following = bells.follow(Bell::Jobs, Duration::from_secs(10), stop.clone());
        let begun = tokio::time::Instant::now();
        assert!(following.again().await);
        bells.ring(Bell::Events);
        (0..3).for_each(|_| bells.ring(Bell::Jobs));
        assert!(following.again().await);
        assert_eq!(begun.elapsed(), Duration::ZERO);
        // Three rings were one look, and the bell of somebody else none.
        assert!(following.again().await);
        assert_eq!(begun.elapsed(), Duration::from_secs(10));
        // What was missed may have been this bell.
        (0..5000).for_each(|_| bells.ring(Bell::Events));
        assert!(following.again().await);
        assert_eq!(begun.elapsed(), Duration::from_secs(10));
        bells.ring(Bell::Jobs);
        stop.cancel();
        assert!(!following.again().await);
    }

    #[test]
    fn what_is_sent_between_processes_is_what_arrives() {
        let ids = [Bell::Node("node_1".into()), Bell::Resource("inst_1".into())];
        let others =
            [Bell::Jobs, Bell::Events, Bell::Log, Bell::Sessions, Bell::Rights, Bell::Domains, Bell::Realms];
        for bell in ids.into_iter().chain(others) {
            assert_eq!(Bell::decode(&bell.encode()), Some(bell));
        }
        assert_eq!(Bell::decode("x y"), None);
    }
}
