//! What all parts of a simulation share.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rhyzome_agent::env::Env;
use rhyzome_api::channel::SessionDoor;
use rhyzome_api::kernel::env::Outside;
use tokio::sync::Notify;

use super::hands::Hands;
use crate::audit::{Finding, Wrong};
use crate::given::{Dice, Time};

/// How many of the last things are kept.
const KEPT: usize = 120;

/// Shared by all.
pub(super) struct House {
    /// How whoever asks the database waits for it.
    pub(super) how: Outside,
    /// The clock.
    pub(super) time: Time,
    /// The doors of servers that are there, and whether each stands still.
    pub(super) doors: Mutex<Vec<Option<(SessionDoor, Switch)>>>,
    /// All nodes.
    pub(super) nodes: Mutex<Vec<Weak<Hands>>>,
    /// What must never be, and was.
    pub(super) found: Mutex<Vec<Finding>>,
    dice: Mutex<Dice>,
    notes: Mutex<Notes>,
    healed: AtomicBool,
}

/// What happened.
#[derive(Clone, Default)]
pub(super) struct Notes {
    pub(super) hasher: DefaultHasher,
    pub(super) faults: BTreeMap<&'static str, u64>,
    pub(super) last: VecDeque<String>,
}

/// A moment of this clock, as the system's type has it.
pub(super) fn system_time(time: &Time) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(u64::try_from(time.now().0).unwrap())
}

impl House {
    pub(super) fn new(seed: u64, how: Outside, time: &Time, servers: usize) -> House {
        House {
            how,
            time: time.clone(),
            doors: Mutex::new(vec![None; servers]),
            nodes: Mutex::default(),
            found: Mutex::default(),
            dice: Mutex::new(Dice::new(seed)),
            notes: Mutex::default(),
            healed: AtomicBool::new(false),
        }
    }

    /// A number in `0..most`; 0 when `most` is 0.
    pub(super) fn below(&self, most: u64) -> u64 {
        self.dice.lock().unwrap().below(most)
    }

    /// One of so many.
    pub(super) fn pick(&self, most: usize) -> usize {
        usize::try_from(self.below(most as u64)).unwrap()
    }

    /// True so often of a hundred times.
    pub(super) fn percent(&self, times: u64) -> bool {
        self.below(100) < times
    }

    /// True so often of a hundred times, as long as things go wrong.
    pub(super) fn fails(&self, times: u64) -> bool {
        !self.is_healed() && self.percent(times)
    }

    /// From now on nothing goes wrong by itself.
    pub(super) fn heal(&self) {
        self.healed.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_healed(&self) -> bool {
        self.healed.load(Ordering::SeqCst)
    }

    /// Takes a while: mostly so many milliseconds at most, seldom much longer.
    pub(super) async fn takes(&self, usual_ms: u64) {
        let most = match self.below(100) {
            0..95 => usual_ms,
            _ if self.is_healed() => usual_ms,
            _ => usual_ms * 30,
        };
        tokio::time::sleep(Duration::from_millis(1 + self.below(most))).await;
    }

    /// The clock and the chance of an agent.
    pub(super) fn env(self: &Arc<House>) -> Env {
        let (clock, chance, time) = (self.clone(), self.clone(), self.time.clone());
        Env::simulated(
            Arc::new(move || system_time(&clock.time)),
            Arc::new(move || chance.below(1 << 20) as f64 / f64::from(1 << 20)),
        )
        .counting(Arc::new(move || time.uptime()))
    }

    fn lock(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap()
    }

    /// Something happened.
    pub(super) fn note(&self, what: impl Into<String>) {
        let what = format!("{} {}", self.time.now(), what.into());
        let mut notes = self.lock();
        what.hash(&mut notes.hasher);
        tracing::info!("{what}");
        notes.last.push_back(what);
        if notes.last.len() > KEPT {
            notes.last.pop_front();
        }
    }

    /// Something went wrong on purpose.
    pub(super) fn fault(&self, what: &'static str, with: impl std::fmt::Display) {
        *self.lock().faults.entry(what).or_default() += 1;
        self.note(format!("{what}: {with}"));
    }

    /// A guest begins on a node; nowhere else may it run at this moment.
    pub(super) fn begins(&self, id: &str, on: &str) {
        for other in self.nodes.lock().unwrap().iter().filter_map(Weak::upgrade) {
            if other.name != on && other.runs(id) {
                let what = format!("{} {id} begins on {on}, and runs on {}", self.time.now(), other.name);
                self.note(&what);
                self.found.lock().unwrap().push(Finding { wrong: Wrong::Duplicate, what });
            }
        }
    }

    pub(super) fn notes(&self) -> Notes {
        self.lock().clone()
    }
}

impl Notes {
    pub(super) fn trace(&self) -> u64 {
        self.hasher.finish()
    }
}

/// Something that is so or not, for whoever waits for it. Unlike a watch of tokio it wakes them in the order in which
/// they came.
#[derive(Clone, Default)]
pub(super) struct Switch(Arc<(AtomicBool, Notify)>);

impl Switch {
    pub(super) fn is_on(&self) -> bool {
        self.0.0.load(Ordering::SeqCst)
    }

    pub(super) fn set(&self, on: bool) {
        self.0.0.store(on, Ordering::SeqCst);
        self.0.1.notify_waiters();
    }

    pub(super) fn flip(&self) {
        self.set(!self.is_on());
    }

    /// Waits until it is so.
    pub(super) async fn is(&self, on: bool) {
        loop {
            let changed = self.0.1.notified();
            if self.is_on() == on {
                return;
            }
            changed.await;
        }
    }
}

/// Does this, but not while it is told to stand still.
pub(super) async fn unless(still: Switch, work: impl Future<Output = ()>) {
    let mut work = std::pin::pin!(work);
    loop {
        still.is(false).await;
        tokio::select! {
            biased;
            () = still.is(true) => {}
            () = &mut work => return,
        }
    }
}
