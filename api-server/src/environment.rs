//! Clock and random numbers of a real server.

use std::sync::Arc;
use std::time::Duration;

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

/// The environment of a real server.
pub fn system_env() -> Env {
    Env::new(Arc::new(SystemClock), Arc::new(SystemRandom(ring::rand::SystemRandom::new())))
}
