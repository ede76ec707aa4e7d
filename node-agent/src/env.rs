//! Clock, chance, and how to wait for what blocks: they come in by whoever starts the agent, never from the system in
//! passing, so that simulation can bring its own.

use nix::time::{ClockId, clock_gettime};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::task::JoinError;

/// Where time comes from.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;
/// A clock that nobody sets: time since the machine came up, sleep included.
pub type Uptime = Arc<dyn Fn() -> Duration + Send + Sync>;
/// Where jitter comes from: numbers in `0..1`.
pub type Chance = Arc<dyn Fn() -> f64 + Send + Sync>;

/// Handed to whoever needs it. Cheap to clone.
#[derive(Clone)]
pub struct Env {
    clock: Clock,
    uptime: Uptime,
    chance: Chance,
    in_place: bool,
}

impl Env {
    /// The system's own.
    pub fn system() -> Env {
        Env {
            clock: Arc::new(SystemTime::now),
            uptime: Arc::new(uptime),
            chance: Arc::new(chance),
            in_place: false,
        }
    }

    /// Of a simulation: what blocks is done where one stands, so that nothing depends on how fast a disk is.
    pub fn simulated(clock: Clock, chance: Chance) -> Env {
        let of_clock = clock.clone();
        let uptime = Arc::new(move || of_clock().duration_since(UNIX_EPOCH).unwrap_or_default());
        Env { clock, uptime, chance, in_place: true }
    }

    /// The same, with a clock of its own for how long things last.
    pub fn counting(self, uptime: Uptime) -> Env {
        Env { uptime, ..self }
    }

    /// For how long things last: time since the machine came up, sleep included. Nobody sets it.
    pub fn uptime(&self) -> Duration {
        (self.uptime)()
    }

    /// Now.
    pub fn now(&self) -> SystemTime {
        (self.clock)()
    }

    /// Now, in milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        let since = self.now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// A number in `0..1`, for jitter.
    pub fn chance(&self) -> f64 {
        (self.chance)()
    }

    /// Does what blocks, beside everything else. The error: it panicked.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        if self.in_place { Ok(work()) } else { tokio::task::spawn_blocking(work).await }
    }
}

/// Time since the machine came up, sleep included.
pub fn uptime() -> Duration {
    // No Linux that could run this is without this clock; if one were, every lease would be over.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::MAX, Into::into)
}

fn chance() -> f64 {
    let word = rhyzome_pki::random_hex().ok().and_then(|hex| u32::from_str_radix(&hex[..8], 16).ok());
    word.map_or(0.5, |word| f64::from(word) / f64::from(u32::MAX))
}
