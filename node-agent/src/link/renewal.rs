//! When to ask for the next certificate.
use rhyzome_pki::CertificateTimes;
use std::time::{Duration, SystemTime};

/// Decides at each heartbeat whether to ask, so that no timer of its own can be wrong after a suspend.
#[derive(Debug)]
pub(crate) struct Renewal {
    due: SystemTime,
    again: Duration,
    asked: u32,
}

impl Renewal {
    /// Due at two thirds of the life, up to a twentieth of it earlier by chance (0..=1), so that nodes that
    /// joined together do not renew together.
    pub(crate) fn of(times: CertificateTimes, chance: f64) -> Self {
        let life = times.not_after.duration_since(times.not_before).unwrap_or_default();
        let due = times.not_before + life.mul_f64(2.0 / 3.0 - chance.clamp(0.0, 1.0) / 20.0);
        Self { due, again: (life / 60).clamp(Duration::from_secs(1), Duration::from_secs(300)), asked: 0 }
    }

    /// The server wants one to be asked for within so long; by chance (0..=1), so that not all do so at once.
    pub(crate) fn hurry(&mut self, now: SystemTime, within: Duration, chance: f64) {
        self.due = self.due.min(now + within.mul_f64(chance.clamp(0.0, 1.0)));
    }

    /// How often one was asked for in vain.
    pub(crate) fn in_vain(&self) -> u32 {
        self.asked.saturating_sub(1)
    }

    /// True when it is time to ask; then not again for a while, as an answer may be on its way.
    pub(crate) fn is_due(&mut self, now: SystemTime) -> bool {
        let due = now >= self.due;
        if due {
            self.due = now + self.again;
            self.asked = self.asked.saturating_add(1);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn due_at_two_thirds_and_asked_again_until_answered() {
        let start = SystemTime::UNIX_EPOCH;
        let at = |seconds| start + Duration::from_secs(seconds);
        let times = CertificateTimes { not_before: start, not_after: at(3000) };
        let mut renewal = Renewal::of(times, 0.0);
        assert!(!renewal.is_due(at(1999)));
        assert!(renewal.is_due(at(2000)));
        assert!(!renewal.is_due(at(2049)));
        assert!(renewal.is_due(at(2050)));
        assert!(Renewal::of(times, 1.0).is_due(at(1850)));
        assert_eq!(renewal.in_vain(), 1);
    }

    #[test]
    fn in_a_hurry_it_is_due_within_what_the_server_says_and_never_later_than_before() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let times = CertificateTimes { not_before: at(0), not_after: at(3000) };
        let mut renewal = Renewal::of(times, 0.0);
        renewal.hurry(at(100), Duration::from_secs(60), 0.5);
        assert!(!renewal.is_due(at(129)) && renewal.is_due(at(130)));
        let mut late = Renewal::of(times, 0.0);
        late.hurry(at(1990), Duration::from_secs(600), 1.0);
        assert!(late.is_due(at(2000)));
    }
}
