//! How often a source may guess. A try is taken before it is known to be wrong, and given back if it was right, so that
//! many guesses at once are no more than many in turn.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::kernel::Env;
use crate::limits::{Rate, Rates, network};

/// Wrong tries of each source: so many at once, then one each so often.
pub struct Tries {
    env: Env,
    sources: Mutex<Rates>,
}

impl Tries {
    /// So many at once, and one more each `each`.
    pub fn new(env: &Env, at_once: u32, each: Duration) -> Tries {
        let rate = Rate { burst: at_once, each };
        Tries { env: env.clone(), sources: Mutex::new(Rates::new(rate)) }
    }

    /// Takes a try; if there is none left: how long until there is one.
    pub fn take(&self, source: &str) -> Result<(), Duration> {
        let now = self.env.uptime();
        self.sources().take(&network(source), now, Duration::ZERO).map(drop)
    }

    /// It was right.
    pub fn give_back(&self, source: &str) {
        self.sources().give_back(&network(source));
    }

    fn sources(&self) -> MutexGuard<'_, Rates> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
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
}
