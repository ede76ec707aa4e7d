//! How long to wait before dialing again: never giving up, and never all nodes at once.
use std::time::Duration;

const SHORTEST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(15);
/// A session that lasted this long was a good one: the next wait is short again.
const GOOD_SESSION: Duration = Duration::from_secs(10);
/// A server may ask for a longer wait, up to this.
const LONGEST_ASKED: Duration = Duration::from_secs(300);

/// Counts failures.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait after an attempt that ended. `asked` is what the server wished for; `chance` is in 0..=1.
    pub(crate) fn next(&mut self, lasted: Duration, asked: Option<Duration>, chance: f64) -> Duration {
        if lasted >= GOOD_SESSION {
            self.failures = 0;
        }
        let ceiling = SHORTEST.saturating_mul(1 << self.failures.min(10)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        match asked {
            Some(wish) => wish.min(LONGEST_ASKED),
            None => SHORTEST.max(ceiling.mul_f64(chance.clamp(0.0, 1.0))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_fifteen_seconds_and_shrink_after_a_good_session() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..9).map(|_| backoff.next(Duration::ZERO, None, 1.0).as_millis()).collect();
        assert_eq!(waits, [200, 400, 800, 1600, 3200, 6400, 12_800, 15_000, 15_000]);
        assert_eq!(backoff.next(GOOD_SESSION, None, 1.0), SHORTEST);
    }

    #[test]
    fn jitter_never_goes_below_the_shortest_and_the_servers_wish_counts() {
        let mut backoff = Backoff::default();
        for _ in 0..20 {
            assert_eq!(backoff.next(Duration::ZERO, None, 0.0), SHORTEST);
        }
        assert_eq!(backoff.next(Duration::ZERO, Some(Duration::from_secs(40)), 0.0).as_secs(), 40);
        assert_eq!(backoff.next(Duration::ZERO, Some(Duration::from_secs(4000)), 0.0), LONGEST_ASKED);
    }
}
