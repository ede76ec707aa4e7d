//! Clock, chance, and how to wait for what blocks: they come in by whoever starts the agent, never from the system in
//! passing, so that simulation can bring its own.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::task::JoinError;

/// Where time comes from.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;
/// Where jitter comes from: numbers in `0..1`.
pub type Chance = Arc<dyn Fn() -> f64 + Send + Sync>;

/// Handed to whoever needs it. Cheap to clone.
#[derive(Clone)]
pub struct Env {
    clock: Clock,
    chance: Chance,
    in_place: bool,
}

impl Env {
    /// The system's own.
    pub fn system() -> Env {
        Env { clock: Arc::new(SystemTime::now), chance: Arc::new(chance), in_place: false }
    }

    /// Of a simulation: what blocks is done where one stands, so that nothing depends on how fast a disk is.
    pub fn simulated(clock: Clock, chance: Chance) -> Env {
        Env { clock, chance, in_place: true }
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

fn chance() -> f64 {
    let word = rhyzome_pki::random_hex().ok().and_then(|hex| u32::from_str_radix(&hex[..8], 16).ok());
    word.map_or(0.5, |word| f64::from(word) / f64::from(u32::MAX))
}
