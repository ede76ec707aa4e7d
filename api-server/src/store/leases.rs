//! Leases of nodes: a node that holds one may run guests that are marked for being restarted elsewhere.
//!
//! A server grants them with heartbeats and writes nothing for it. It may, for as long as two answers of the database
//! are fresh, each counted from when its question *began*, by a clock that nobody sets: that this server's own heartbeat
//! was written, and that the node's session is its own. Whoever wants to take guests from a node first sees, in the
//! database, that the node has no session, and from then on waits for longer than a lease by such a clock of its own
//! (`jobs/rescue.rs`). No two machines' clocks are ever compared.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::Store;

/// A lease ends so long after the older of the two answers at the latest.
pub const NODE_LEASE: Duration = Duration::from_secs(30);
/// Kept back of each lease, for clocks that do not go alike: one in thirty.
const MARGIN: Duration = Duration::from_secs(1);

/// When each server began to write the last heartbeat that was written.
#[derive(Default)]
pub(crate) struct Beats(Mutex<BTreeMap<String, Duration>>);

impl Store {
    /// The server's heartbeat was written; that began at this uptime.
    pub(super) fn beat(&self, server: &str, began: Duration) {
        let mut beats = self.context.beats.0.lock().unwrap_or_else(PoisonError::into_inner);
        beats.insert(server.to_owned(), began);
    }

    /// For how long from now a server may grant a lease to a node whose session it holds: `confirmed` is the uptime at
    /// which it asked the database whether it does.
    pub fn node_lease(&self, server: &str, confirmed: Duration) -> Duration {
        let beats = self.context.beats.0.lock().unwrap_or_else(PoisonError::into_inner);
        beats.get(server).map_or(Duration::ZERO, |beat| left(self.env().uptime(), confirmed.min(*beat)))
    }
}

fn left(now: Duration, from: Duration) -> Duration {
    (from + NODE_LEASE).saturating_sub(now + MARGIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_what_is_left_and_never_more() {
        let at = Duration::from_secs;
        assert_eq!(left(at(100), at(100)), at(29));
        assert_eq!(left(at(110), at(100)), at(19));
        assert_eq!(left(at(129), at(100)), at(0));
        assert_eq!(left(at(1000), at(100)), at(0));
    }
}
