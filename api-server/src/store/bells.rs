//! Bells: "look again", and nothing more. A lost one costs time, never truth: whoever listens also polls.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::broadcast::{self, error::RecvError};

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

#[cfg(test)]
mod tests {
    use super::*;

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
