//! A clock that only the test moves, random numbers from a seed, and faults that it plans: what the store is
//! given in the place of the system's own.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use rhyzome_api::kernel::env::{Clock, Random};
use rhyzome_api::kernel::{Env, Timestamp};
use tokio::time::Instant;

/// Numbers from a seed (splitmix64): the same seed, the same numbers.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// From this seed.
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..most`; 0 when `most` is 0.
    pub fn below(&mut self, most: u64) -> u64 {
        self.roll().checked_rem(most).unwrap_or(0)
    }

    /// True so often of a hundred times.
    pub fn percent(&mut self, times: u64) -> bool {
        self.below(100) < times
    }
}

/// Time as the test has it.
#[derive(Clone)]
pub struct Time {
    micros: Arc<AtomicI64>,
    /// Since when it goes on with the clock of tokio, if it does.
    runs: Arc<OnceLock<Instant>>,
}

/// Some moment of 2026.
const BEGIN: i64 = 1_790_000_000_000_000;

struct Given {
    time: Time,
    dice: Mutex<Dice>,
}

impl Clock for Given {
    fn now(&self) -> Timestamp {
        self.time.now()
    }

    fn uptime(&self) -> Duration {
        self.time.uptime()
    }
}

impl Random for Given {
    fn fill(&self, bytes: &mut [u8]) {
        let mut dice = self.dice.lock().unwrap();
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&dice.roll().to_le_bytes()[..chunk.len()]);
        }
    }
}

impl Time {
    /// Begins at some moment of 2026.
    pub fn begin() -> Time {
        Time { micros: Arc::new(AtomicI64::new(BEGIN)), runs: Arc::default() }
    }

    /// From now on it goes on with the clock of tokio, which a simulation has paused.
    pub fn run(&self) {
        self.runs.get_or_init(Instant::now);
    }

    /// Now.
    pub fn now(&self) -> Timestamp {
        let since = self.runs.get().map(Instant::elapsed).unwrap_or_default();
        Timestamp(self.micros.load(Ordering::SeqCst) + i64::try_from(since.as_micros()).unwrap())
    }

    /// Since the beginning, by a clock that nobody sets: where time goes on by itself, `pass` is somebody who sets it.
    pub fn uptime(&self) -> Duration {
        match self.runs.get() {
            Some(since) => since.elapsed(),
            None => Duration::from_micros(
                u64::try_from(self.micros.load(Ordering::SeqCst) - BEGIN).unwrap_or_default(),
            ),
        }
    }

    /// Now, in milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.now().0 / 1000).unwrap()
    }

    /// Goes on by so many milliseconds; back, if they are negative.
    pub fn pass_ms(&self, millis: i64) {
        self.micros.fetch_add(millis * 1000, Ordering::SeqCst);
    }

    /// Goes on by so many seconds.
    pub fn pass(&self, seconds: i64) {
        self.pass_ms(seconds * 1000);
    }

    /// This time, with random numbers from a seed.
    pub fn env(&self, seed: u64) -> Env {
        let given = Arc::new(Given { time: self.clone(), dice: Mutex::new(Dice::new(seed)) });
        Env::new(given.clone(), given)
    }
}
