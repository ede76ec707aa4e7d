//! Clock, random numbers and ids: they come in by the App, never from the system in passing, so that
//! simulation and tests can bring their own.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Crockford's base 32.
const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// Microseconds since 1970-01-01T00:00:00Z. RFC 3339 in JSON; an integer in both databases, so that
/// order and precision are the same on both.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Timestamp(pub i64);

/// Where time comes from.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> Timestamp;

    /// Since some moment before this process: nobody sets it, and it goes on while the machine sleeps. For how long
    /// something lasts; says nothing to other machines.
    fn uptime(&self) -> Duration {
        Duration::from_micros(u64::try_from(self.now().0).unwrap_or(0))
    }
}

/// Where unpredictable bytes come from.
pub trait Random: Send + Sync {
    /// Fills all of `bytes`.
    fn fill(&self, bytes: &mut [u8]);
}

/// When, around a commit, a process may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// Nothing was begun.
    Before,
    /// All was done, and is rolled back.
    Inside,
    /// It is kept, and whoever asked is not told.
    After,
}

/// What goes wrong on purpose, in simulation: nothing, where a real server runs.
pub trait Faults: Send + Sync {
    /// True: this process ends here, as far as anybody can tell from outside.
    fn ends(&self, moment: Moment) -> bool;

    /// Why this step of a job cannot be done, if it cannot.
    fn fails(&self, step: i64) -> Option<String>;

    /// True: the database cannot be reached now, and this process goes on. Asked once, before a read or a write begins.
    fn away(&self) -> bool {
        false
    }
}

/// How to wait for the database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outside {
    /// As for anything else.
    #[default]
    Await,
    /// Where one stands: nothing else of this process goes on in the meantime, so that in simulation nothing depends on
    /// how fast a database is. For one that is inside the process.
    InPlace,
    /// While the paused clock of tokio stands still, for simulation on any database.
    TimeStandsStill,
}

/// Clock and random numbers, handed to whoever needs them.
#[derive(Clone)]
pub struct Env {
    outside: Outside,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    faults: Option<Arc<dyn Faults>>,
    /// The moment of the last id, in 1/4096 of a millisecond: ids of one process strictly rise.
    last: Arc<AtomicU64>,
}

// === impl Timestamp ===

impl Timestamp {
    /// This moment plus so many seconds.
    pub fn plus_seconds(self, seconds: i64) -> Timestamp {
        Timestamp(self.0 + seconds * 1_000_000)
    }

    /// This moment plus so many milliseconds.
    pub fn plus_millis(self, millis: i64) -> Timestamp {
        Timestamp(self.0 + millis * 1_000)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(time) => write!(f, "{time:.6}"),
            Err(_) => write!(f, "{}us", self.0),
        }
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time: jiff::Timestamp = text.parse().map_err(serde::de::Error::custom)?;
        Ok(Timestamp(time.as_microsecond()))
    }
}

// === impl Env ===

impl Env {
    /// An environment made of these two.
    pub fn new(clock: Arc<dyn Clock>, random: Arc<dyn Random>) -> Env {
        Env { outside: Outside::default(), clock, random, faults: None, last: Arc::default() }
    }

    /// The same, with faults.
    pub fn with_faults(self, faults: Arc<dyn Faults>) -> Env {
        Env { faults: Some(faults), ..self }
    }

    /// The same, waiting like this for the database.
    pub fn waiting(self, outside: Outside) -> Env {
        Env { outside, ..self }
    }

    /// How to wait for the database.
    pub fn outside(&self) -> Outside {
        self.outside
    }

    /// True: the process ends here. Never, where a real server runs.
    pub fn ends(&self, moment: Moment) -> bool {
        self.faults.as_ref().is_some_and(|faults| faults.ends(moment))
    }

    /// Why this step of a job fails, whatever it would do. Never, where a real server runs.
    pub fn fails(&self, step: i64) -> Option<String> {
        self.faults.as_ref()?.fails(step)
    }

    /// True: the database cannot be reached now. Never said here, where a real server runs.
    pub fn away(&self) -> bool {
        self.faults.as_ref().is_some_and(|faults| faults.away())
    }

    /// Now.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// For how long something lasts: a clock that nobody sets, and that goes on while the machine sleeps.
    pub fn uptime(&self) -> Duration {
        self.clock.uptime()
    }

    /// So many unpredictable bytes.
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.random.fill(&mut bytes);
        bytes
    }

    /// A number in `0..below`; 0 when `below` is 0.
    pub fn below(&self, below: u64) -> u64 {
        // The bias of a remainder over 64 bits is far below anything that a choice of address could show.
        u64::from_le_bytes(self.bytes()).checked_rem(below).unwrap_or(0)
    }

    /// From now on ids come after this one, whatever the clock says: another server's may be ahead.
    pub fn after(&self, id: &str) {
        let Some((_, digits)) = id.rsplit_once('_') else { return };
        let mut value: u128 = 0;
        for digit in digits.bytes() {
            let Some(five) = DIGITS.iter().position(|known| *known == digit) else { return };
            value = (value << 5) | five as u128;
        }
        let moment = ((value >> 80) as u64) << 12 | ((value >> 64) as u64 & 0xfff);
        self.last.fetch_max(moment, Ordering::Relaxed);
    }

    /// A new id: the kind's prefix and a UUIDv7 in 26 letters that sort as the UUID does (Crockford's
    /// base 32, lower case). An underscore cannot stand in a name, so no id is ever taken for one.
    pub fn id(&self, prefix: &str) -> String {
        let micros = u64::try_from(self.now().0).unwrap_or(0);
        let moment = ((micros / 1000) << 12) | ((micros % 1000) * 4096 / 1000);
        let next = |last: u64| Some(moment.max(last + 1));
        let last = self.last.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).unwrap_or(0);
        let moment = moment.max(last + 1);
        let mut bytes: [u8; 16] = self.bytes();
        bytes[..6].copy_from_slice(&(moment >> 12).to_be_bytes()[2..]);
        bytes[6] = ((moment >> 8) & 15) as u8;
        bytes[7] = (moment & 255) as u8;
        let uuid = uuid::Builder::from_bytes(bytes)
            .with_variant(uuid::Variant::RFC4122)
            .with_version(uuid::Version::SortRand)
            .into_uuid();
        let mut text = String::with_capacity(prefix.len() + 27);
        text.push_str(prefix);
        text.push('_');
        let value = uuid.as_u128();
        for shift in (0..26).rev() {
            let digit = (value >> (shift * 5)) & 31;
            text.push(char::from(DIGITS[digit as usize]));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(i64, u8);

    impl Clock for Fixed {
        fn now(&self) -> Timestamp {
            Timestamp(self.0)
        }
    }

    impl Random for Fixed {
        fn fill(&self, bytes: &mut [u8]) {
            bytes.fill(self.1);
        }
    }

    fn env(at: i64, with: u8) -> Env {
        Env::new(Arc::new(Fixed(at, with)), Arc::new(Fixed(at, with)))
    }

    #[test]
    fn ids_sort_by_time_of_creation() {
        let same = env(1_700_000_000_000_000, 255);
        assert!(same.id("inst") < same.id("inst"));
        let earlier = env(1_700_000_000_000_000, 255).id("inst");
        let later = env(1_700_000_000_001_000, 0).id("inst");
        assert!(earlier < later, "{earlier} {later}");
        assert_eq!(earlier.len(), "inst_".len() + 26);
    }

    #[test]
    fn ids_come_after_those_of_a_server_that_is_ahead() {
        let ahead = env(1_700_000_060_000_000, 255).id("job");
        let behind = env(1_700_000_000_000_000, 0);
        assert!(behind.id("job") < ahead);
        behind.after(&ahead);
        assert!(behind.id("job") > ahead);
        behind.after("no id");
    }

    #[test]
    fn times_are_rfc_3339_both_ways() {
        let time = Timestamp(1_700_000_000_500_000);
        let text = serde_json::to_string(&time).unwrap();
        assert_eq!(text, "\"2023-11-14T22:13:20.500000Z\"");
        assert_eq!(serde_json::from_str::<Timestamp>(&text).unwrap(), time);
    }
}
