//! Clock and random numbers of a real server.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};
use ring::rand::SecureRandom as _;

use crate::kernel::env::{Clock, Random};
use crate::kernel::{Env, Timestamp};

struct SystemClock;

struct SystemRandom(ring::rand::SystemRandom);

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp(jiff::Timestamp::now().as_microsecond())
    }

    fn uptime(&self) -> Duration {
        // Linux has this clock since long before anything else that a server needs.
        clock_gettime(ClockId::CLOCK_BOOTTIME).expect("the system has a clock").into()
    }
}

impl Random for SystemRandom {
    fn fill(&self, bytes: &mut [u8]) {
        // The kernel's random numbers fail only where nothing else works either.
        self.0.fill(bytes).expect("the system has random numbers");
    }
}

// As the store keeps a time, and as certificates are made.

impl From<SystemTime> for Timestamp {
    /// What was before 1970 was in 1970.
    fn from(time: SystemTime) -> Timestamp {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }
}

impl From<Timestamp> for SystemTime {
    fn from(Timestamp(micros): Timestamp) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    }
}

/// The environment of a real server.
pub fn system_env() -> Env {
    Env::new(Arc::new(SystemClock), Arc::new(SystemRandom(ring::rand::SystemRandom::new())))
}
