//! How often, by key: so many at once, and then one each so often. A bucket is one moment, at which all of it will have
//! come back; one that is full again need not be kept.

use std::collections::BTreeMap;
use std::time::Duration;

/// Keys that are remembered at most. One that is forgotten has a full bucket.
const MOST: usize = 10_000;
/// How often, when there are so many, all are looked at for those that are full again.
const SWEEP: Duration = Duration::from_secs(1);

/// So many at once, then one each so often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// At once.
    pub burst: u32,
    /// Then one each.
    pub each: Duration,
}

/// The buckets of many keys, all of the same size.
#[derive(Debug)]
pub struct Rates {
    rate: Rate,
    /// When the last that was taken will have come back.
    until: BTreeMap<String, Duration>,
    swept: Duration,
}

impl Rate {
    /// So many a second, and so many at once.
    pub fn per_second(rate: u32, burst: u32) -> Rate {
        Rate { burst: burst.max(1), each: Duration::from_secs(1) / rate.max(1) }
    }

    /// How many a second.
    pub fn a_second(&self) -> u64 {
        u64::try_from(Duration::from_secs(1).as_nanos() / self.each.as_nanos().max(1)).unwrap_or(u64::MAX)
    }

    /// How many seconds' worth there is at once.
    pub fn seconds_at_once(&self) -> u32 {
        let seconds = (self.each * self.burst).as_secs_f64().round();
        // A burst of at most 2^32 at a rate of at least one a second.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let seconds = seconds as u32;
        seconds.max(1)
    }
}

impl Rates {
    /// All full.
    pub fn new(rate: Rate) -> Rates {
        Rates { rate, until: BTreeMap::new(), swept: Duration::ZERO }
    }

    /// How long `take` would have to wait.
    pub fn wait(&self, key: &str, now: Duration) -> Duration {
        let until = self.until.get(key).copied().unwrap_or(now).max(now);
        (until + self.rate.each).saturating_sub(now + self.rate.each * self.rate.burst)
    }

    /// Takes one, if it is there before `patience` is over: how long to wait until then. Else how long it would be.
    pub fn take(&mut self, key: &str, now: Duration, patience: Duration) -> Result<Duration, Duration> {
        let wait = self.wait(key, now);
        if wait > patience {
            return Err(wait);
        }
        self.make_room(key, now);
        let until = self.until.entry(key.to_owned()).or_insert(now);
        *until = (*until).max(now) + self.rate.each;
        Ok(wait)
    }

    /// It was not needed.
    pub fn give_back(&mut self, key: &str) {
        if let Some(until) = self.until.get_mut(key) {
            *until = until.saturating_sub(self.rate.each);
        }
    }

    fn make_room(&mut self, key: &str, now: Duration) {
        if self.until.len() < MOST || self.until.contains_key(key) {
            return;
        }
        // Not each time: looking at all of them is what somebody with many keys would make us do.
        if now.saturating_sub(self.swept) >= SWEEP {
            self.swept = now;
            self.until.retain(|_, until| *until > now);
        }
        if self.until.len() >= MOST {
            self.until.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const NONE: Duration = Duration::ZERO;

    #[test]
    fn a_burst_then_one_each() {
        let mut rates = Rates::new(Rate::per_second(10, 3));
        let now = SECOND * 100;
        for _ in 0..3 {
            assert_eq!(rates.take("a", now, NONE), Ok(NONE));
        }
        assert_eq!(rates.take("a", now, NONE), Err(SECOND / 10));
        assert_eq!(rates.take("b", now, NONE), Ok(NONE));
        assert_eq!(rates.take("a", now + SECOND / 10, NONE), Ok(NONE));
        assert!(rates.take("a", now + SECOND / 10, NONE).is_err());
        // However long it was left alone, it is not more than full.
        let later = now + SECOND * 1000;
        assert_eq!((0..10).filter(|_| rates.take("a", later, NONE).is_ok()).count(), 3);
    }

    #[test]
    fn who_can_wait_a_little_is_told_how_long_and_stands_in_line() {
        let mut rates = Rates::new(Rate::per_second(10, 1));
        assert_eq!(rates.take("a", SECOND, SECOND / 4), Ok(NONE));
        assert_eq!(rates.take("a", SECOND, SECOND / 4), Ok(SECOND / 10));
        assert_eq!(rates.take("a", SECOND, SECOND / 4), Ok(SECOND / 5));
        // Whoever is refused takes nothing: it does not grow by asking.
        for _ in 0..5 {
            assert_eq!(rates.take("a", SECOND, SECOND / 4), Err(SECOND * 3 / 10));
        }
        rates.give_back("a");
        assert_eq!(rates.wait("a", SECOND), SECOND / 5);
    }

    #[test]
    fn many_keys_need_no_more_room() {
        let mut rates = Rates::new(Rate::per_second(1, 1));
        for number in 0..(MOST + 100) {
            assert!(rates.take(&number.to_string(), SECOND, NONE).is_ok());
        }
        assert_eq!(rates.until.len(), MOST);
        assert!(rates.take("late", SECOND * 10, NONE).is_ok());
        assert_eq!(rates.until.len(), 1);
    }
}
