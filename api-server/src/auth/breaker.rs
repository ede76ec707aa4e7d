//! Leaves in peace whoever does not answer: after some failures in a row nobody is asked for a while, then one
//! question tells whether it has come back.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::kernel::Env;

/// Failures in a row until nobody is asked.
const FAILURES: u32 = 5;
/// For how long.
const PAUSE: Duration = Duration::from_secs(10);

/// Whether somebody may be asked.
pub struct Breaker {
    env: Env,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    failures: u32,
    /// Nobody is asked until then.
    until: Duration,
}

impl Breaker {
    /// For one who has not failed yet.
    pub fn new(env: &Env) -> Breaker {
        Breaker { env: env.clone(), state: Mutex::default() }
    }

    /// True: ask. When a pause is over, one asks and the others go on waiting for what comes of it.
    pub fn may_ask(&self) -> bool {
        let now = self.env.uptime();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.failures < FAILURES {
            return true;
        }
        if state.until > now {
            return false;
        }
        state.until = now + PAUSE;
        true
    }

    /// What came of it.
    pub fn was(&self, good: bool) {
        let now = self.env.uptime();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if good {
            *state = State::default();
            return;
        }
        state.failures = state.failures.saturating_add(1);
        if state.failures >= FAILURES {
            state.until = now + PAUSE;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Watch, env};
    use super::*;

    #[test]
    fn it_opens_and_tries_again_with_one() {
        let watch = Watch::default();
        let breaker = Breaker::new(&env(&watch));
        for _ in 0..FAILURES {
            assert!(breaker.may_ask());
            breaker.was(false);
        }
        assert!(!breaker.may_ask());
        watch.pass(10);
        assert!(breaker.may_ask() && !breaker.may_ask());
        breaker.was(false);
        watch.pass(9);
        assert!(!breaker.may_ask());
        watch.pass(1);
        assert!(breaker.may_ask());
        breaker.was(true);
        assert!(breaker.may_ask() && breaker.may_ask());
    }
}
