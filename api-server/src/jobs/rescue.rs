//! Watches nodes that have no session, and says when one is lost: when no lease that it was ever granted can still run.
//!
//! Leases are granted in sessions only, and each ends within `NODE_LEASE` of a moment at which the database still said that
//! the session is the node's (`store/leases.rs`). So whoever has seen in the database that a node has no session, and sees
//! the same, with no session in between, when more than that has passed by his own clock, knows that all have ended.
//! What was seen is in memory only: a server that begins anew watches anew, which costs time, and no guest.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::kernel::Error;
use crate::store::{Away, NODE_LEASE, Rescued, Store};

/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Longer than a lease, for clocks that do not go alike and for a guest that takes its time to be killed.
const GRACE: Duration = Duration::from_secs(5);
/// The longest pause before what could not be taken from a lost node is tried again.
const LONGEST: Duration = Duration::from_secs(60);

/// What is known of nodes that are away.
#[derive(Default)]
pub struct Watch(BTreeMap<String, Seen>);

struct Seen {
    session: i64,
    /// By the clock that nobody sets.
    since: Duration,
    /// When to try again what could not be done, and the pause after that.
    again: (Duration, Duration),
}

/// Runs until it is told to stop.
pub async fn rescue(store: Store, stop: CancellationToken) {
    let mut watch = Watch::default();
    loop {
        if let Err(error) = watch.look(&store).await {
            tracing::warn!(%error, "lost nodes were not looked at; trying again");
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

// === impl Watch ===

impl Watch {
    /// Looks once: what is on nodes that are lost is told, and taken from them as far as it may be.
    pub async fn look(&mut self, store: &Store) -> Result<(), Error> {
        let away = store.nodes_away().await?;
        // After the answer: it was so at this moment at the latest.
        let now = store.env().uptime();
        for node in self.lost(&away, now) {
            if !node.lost {
                tracing::warn!(
                    node = node.node,
                    name = node.name,
                    "the node is lost: nobody knows how things on it are"
                );
                store.node_lost(&node).await?;
            }
            let mut stay = 0;
            for id in store.to_rescue(&node.node).await? {
                match store.rescue(&node, &id).await? {
                    Rescued::By(job) => {
                        tracing::warn!(object = id, node = node.name, job, "taken from a lost node")
                    }
                    Rescued::Stays(why) => {
                        tracing::warn!(
                            object = id,
                            node = node.name,
                            why,
                            "cannot be taken from a lost node"
                        );
                        stay += 1;
                    }
                    Rescued::Not => {}
                }
            }
            self.tried(&node.node, now, stay > 0);
        }
        Ok(())
    }

    /// Which of these are lost by now, and are to be seen to.
    fn lost(&mut self, away: &[Away], now: Duration) -> Vec<Away> {
        self.0.retain(|id, seen| away.iter().any(|node| node.node == *id && node.session == seen.session));
        let mut lost = Vec::new();
        for node in away {
            let first = || Seen { session: node.session, since: now, again: (Duration::ZERO, LOOK_EVERY) };
            let seen = self.0.entry(node.node.clone()).or_insert_with(first);
            if now >= seen.since + NODE_LEASE + GRACE && now >= seen.again.0 {
                lost.push(node.clone());
            }
        }
        lost
    }

    fn tried(&mut self, node: &str, now: Duration, in_vain: bool) {
        let Some(seen) = self.0.get_mut(node) else { return };
        let pause = if in_vain { seen.again.1 } else { LONGEST };
        seen.again = (now + pause, (pause * 2).min(LONGEST));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn away(node: &str, session: i64) -> Away {
        Away { node: node.into(), name: node.into(), session, lost: false }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_node_is_lost_when_it_was_away_for_longer_than_a_lease() {
        let mut watch = Watch::default();
        assert_eq!(watch.lost(&[away("a", 1)], at(100)), []);
        assert_eq!(watch.lost(&[away("a", 1), away("b", 4)], at(134)), []);
        assert_eq!(watch.lost(&[away("a", 1), away("b", 4)], at(135)), [away("a", 1)]);
    }

    #[test]
    fn one_that_was_back_in_between_is_watched_anew() {
        let mut watch = Watch::default();
        watch.lost(&[away("a", 1)], at(100));
        // It was back and is away again between two looks: another session.
        assert_eq!(watch.lost(&[away("a", 2)], at(136)), []);
        assert_eq!(watch.lost(&[], at(140)), []);
        assert_eq!(watch.lost(&[away("a", 2)], at(172)), []);
        assert_eq!(watch.lost(&[away("a", 2)], at(207)), [away("a", 2)]);
    }

    #[test]
    fn what_is_in_vain_is_tried_again_after_longer_and_longer() {
        let mut watch = Watch::default();
        let node = [away("a", 1)];
        watch.lost(&node, at(0));
        let mut tries = Vec::new();
        for second in 35..300 {
            if !watch.lost(&node, at(second)).is_empty() {
                tries.push(second);
                watch.tried("a", at(second), true);
            }
        }
        assert_eq!(tries, [35, 40, 50, 70, 110, 170, 230, 290]);
    }
}
