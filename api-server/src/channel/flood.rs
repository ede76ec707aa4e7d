//! How much an agent may say: a bucket of messages that refills with time.
use std::time::Duration;

/// After a reconnect an agent reports everything it holds: a server of WireGuard has ten thousand peers.
const BURST: f64 = 40_000.0;
const PER_SECOND: f64 = 100.0;

/// Counts what one session says.
#[derive(Debug)]
pub(super) struct Allowance {
    left: f64,
    at: Duration,
}

impl Allowance {
    pub(super) fn new() -> Self {
        Self { left: BURST, at: Duration::ZERO }
    }

    /// One more message, `at` after the session began. False: it was one too many.
    pub(super) fn take(&mut self, at: Duration) -> bool {
        let passed = at.saturating_sub(self.at);
        self.at = at;
        self.left = (self.left + passed.as_secs_f64() * PER_SECOND).min(BURST) - 1.0;
        self.left >= 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_a_flood_does_not_and_time_heals() {
        let mut allowance = Allowance::new();
        assert!((0..40_000).all(|_| allowance.take(Duration::ZERO)));
        assert!(!allowance.take(Duration::ZERO));
        assert!((0..1000).all(|second| allowance.take(Duration::from_secs(60 + second))));
    }
}
