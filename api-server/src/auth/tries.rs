//! How often a source may guess. A try is taken before it is known to be wrong, and given back if it was right, so that
//! many guesses at once are no more than many in turn.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::kernel::Env;

/// Sources that are remembered at most.
const MOST_SOURCES: usize = 10_000;

/// Wrong tries of each source: so many at once, then one each so often.
pub struct Tries {
    env: Env,
    at_once: u32,
    each: Duration,
    /// When the last of its tries will have come back.
    sources: Mutex<BTreeMap<String, Duration>>,
}

impl Tries {
    /// So many at once, and one more each `each`.
    pub fn new(env: &Env, at_once: u32, each: Duration) -> Tries {
        Tries { env: env.clone(), at_once, each, sources: Mutex::default() }
    }

    /// Takes a try; if there is none left: how long until there is one.
    pub fn take(&self, source: &str) -> Result<(), Duration> {
        let now = self.env.uptime();
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if sources.len() >= MOST_SOURCES {
            sources.retain(|_, until| *until > now);
        }
        if sources.len() >= MOST_SOURCES {
            sources.pop_first();
        }
        let until = sources.entry(network(source)).or_insert(now);
        let next = (*until).max(now) + self.each;
        let horizon = now + self.each * self.at_once;
        if next > horizon {
            return Err(next - horizon);
        }
        *until = next;
        Ok(())
    }

    /// It was right.
    pub fn give_back(&self, source: &str) {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(until) = sources.get_mut(&network(source)) {
            *until = until.saturating_sub(self.each);
        }
    }
}

/// An IPv6 host has 2^64 addresses to guess from: its network counts.
fn network(source: &str) -> String {
    match source.parse() {
        Ok(IpAddr::V6(v6)) if v6.to_ipv4_mapped().is_none() => {
            let [a, b, c, d, ..] = v6.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
        _ => source.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Watch, env};
    use super::*;

    #[test]
    fn wrong_tries_run_out_and_come_back() {
        let watch = Watch::default();
        let tries = Tries::new(&env(&watch), 3, Duration::from_secs(6));
        for _ in 0..10 {
            assert_eq!(tries.take("192.0.2.1"), Ok(()));
            tries.give_back("192.0.2.1");
        }
        for _ in 0..3 {
            assert_eq!(tries.take("192.0.2.1"), Ok(()));
        }
        assert_eq!(tries.take("192.0.2.1"), Err(Duration::from_secs(6)));
        assert_eq!(tries.take("192.0.2.2"), Ok(()));
        watch.pass(6);
        assert_eq!(tries.take("192.0.2.1"), Ok(()));
        assert!(tries.take("192.0.2.1").is_err());
    }

    #[test]
    fn a_network_is_one_source() {
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), network("2001:db8:1:2::1"));
        assert_ne!(network("2001:db8:1:2::1"), network("2001:db8:1:3::1"));
        assert_ne!(network("::ffff:192.0.2.1"), network("::ffff:192.0.2.2"));
    }
}
