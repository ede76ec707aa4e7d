//! The agent's heart: takes orders into the ledger, looks at the node, decides, lets the drivers act, reports.
//!
//! One loop owns what is known; everything slow runs beside it, one task for each object at most, so that no slow
//! object holds others up. What wakes the loop (an order, a process that ended, an action that is done, the
//! timer) only says "look again": the same code runs after a restart and in the middle of everything.

mod act;
mod begin;
mod drift;
mod hands;
mod intake;
mod known;
mod leased;
mod look;
mod stale;
mod tell;

use crate::drivers::DriverError;
use crate::drivers::disk::DiskDriver;
use crate::drivers::image::ImageDriver;
use crate::drivers::instance::InstanceDriver;
use crate::drivers::network::NetworkDriver;
use crate::drivers::snapshot::{ObservedSnapshot, SnapshotDriver};
use crate::env::Env;
use crate::lease::Lease;
use crate::ledger::Ledger;
use crate::link::LinkEvent;
use crate::plain::Plains;
use crate::reconcile::{Action, Decision, Kind, Orders};
use crate::report::Failure;
pub use act::{Done, Rendered, Seen};
pub use hands::Hands;
pub use intake::Intake;
use known::Known;
pub use leased::Wanter;
pub use look::Sight;
use rhyzome_proto::v1::{Findings, Report};
use stale::{Needs, Stale};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// Between two looks at everything.
const LOOK_EVERY: Duration = Duration::from_secs(4);
/// Between two repairs of a network that nobody complained about.
const REFRESH_EVERY: Duration = Duration::from_secs(30);
const FIRST_RETRY_MS: u64 = 250;
/// Between two looks whether what was given up has ended.
const ENDING: Duration = Duration::from_millis(5);
const MAX_RETRY_MS: u64 = 30_000;

/// All drivers. They do not know each other.
#[derive(Clone)]
pub struct Drivers {
    /// Images.
    pub images: Arc<ImageDriver>,
    /// Disks.
    pub disks: Arc<DiskDriver>,
    /// Snapshots.
    pub snapshots: Arc<SnapshotDriver>,
    /// Networks.
    pub networks: NetworkDriver,
    /// Guests.
    pub instances: Arc<InstanceDriver>,
    /// All others.
    pub plain: Plains,
}

/// What the owner is told from outside.
#[derive(Debug)]
pub enum Event {
    /// What guests are started with: "kvm" or "tcg".
    Accelerator(String),
    /// What this node cannot hold, and the line that says which tool is missing.
    Missing(BTreeMap<Kind, String>),
}

/// Takes a report to the link. Never blocks.
pub type Teller = Arc<dyn Fn(Report) + Send + Sync>;

/// Takes what is there unasked to the link. Never blocks.
pub type Finder = Arc<dyn Fn(Findings) + Send + Sync>;

/// Where the owner's words come from and go to.
pub struct Wires {
    /// Sessions and orders, from the link.
    pub link: mpsc::Receiver<LinkEvent>,
    /// Reports, to the link.
    pub teller: Teller,
    /// What is there unasked, to the link.
    pub findings: Finder,
    /// Told whenever a session began: the node's own status is to be sent again.
    pub session: Arc<Notify>,
    /// News from the rest of the agent.
    pub events: mpsc::UnboundedReceiver<Event>,
    /// Instances to look at again: the instance driver's bell.
    pub bell: mpsc::UnboundedReceiver<String>,
}

/// What comes back from tasks.
#[derive(Debug)]
enum Back {
    Done { id: String, attempt: u64, done: Done },
    Progress { id: String, bytes: u64 },
    Sight { versions: HashMap<String, u64>, sight: Sight },
}

struct Busy {
    attempt: u64,
    action: Action,
    /// None of what goes together with others.
    abort: Option<AbortHandle>,
}

struct Trouble {
    action: Action,
    failure: Failure,
    attempts: u32,
    retry_at_ms: u64,
}

/// The loop and all that it owns.
pub struct Owner {
    ledger: Arc<Mutex<Ledger>>,
    intake: Arc<Mutex<Intake>>,
    orders: Orders,
    hands: Arc<dyn Hands>,
    env: Env,
    known: Known,
    wires: Wires,
    back: (mpsc::UnboundedSender<Back>, mpsc::UnboundedReceiver<Back>),
    busy: HashMap<String, Busy>,
    gathered: begin::Gathered,
    trouble: HashMap<String, Trouble>,
    progress: HashMap<String, u32>,
    /// What may have changed since everything was decided.
    stale: Stale,
    needs: Needs,
    /// When everything is decided anew at the latest.
    due: Instant,
    /// All that was decided; where debug assertions are on.
    decisions: BTreeMap<String, Decision>,
    told: HashMap<String, (Report, u64)>,
    /// Since when objects are worked on, of which something is to be told.
    working: HashMap<String, Instant>,
    gone_told: BTreeMap<String, Instant>,
    connected: Option<Instant>,
    drift: drift::Drift,
    looking: bool,
    attempts: u64,
    /// Without one no guest runs that is marked for being restarted elsewhere.
    lease: Option<(Lease, Wanter)>,
    lease_wanted: bool,
}

impl Owner {
    /// `ledger` is shared with the link, which reads its cursor.
    pub fn new(
        ledger: Arc<Mutex<Ledger>>,
        hands: Arc<dyn Hands>,
        wires: Wires,
        host_boot_id: String,
        env: Env,
    ) -> Self {
        let orders = ledger.lock().unwrap_or_else(PoisonError::into_inner).orders().clone();
        Self {
            needs: Needs::of(&orders),
            stale: Stale::All,
            due: Instant::now(),
            ledger,
            intake: Arc::default(),
            orders,
            known: Known::new(host_boot_id, hands.plain_kinds()),
            hands,
            env,
            wires,
            back: mpsc::unbounded_channel(),
            busy: HashMap::new(),
            gathered: begin::Gathered::new(),
            trouble: HashMap::new(),
            progress: HashMap::new(),
            decisions: BTreeMap::new(),
            told: HashMap::new(),
            working: HashMap::new(),
            gone_told: BTreeMap::new(),
            connected: None,
            drift: drift::Drift::default(),
            looking: false,
            attempts: 0,
            lease: None,
            lease_wanted: false,
        }
    }

    /// Runs until the link's end of the orders is dropped.
    pub async fn run(mut self) {
        // Nothing is done before the node was looked at once: guests that run are adopted, not started again.
        let sight = self.hands.look(&self.orders).await;
        self.known.take(sight, |_| true);
        let mut timer = tokio::time::interval(LOOK_EVERY);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        timer.reset();
        let mut batch = Vec::new();
        loop {
            let wake = self.advance().await;
            tokio::select! {
                // What is rare comes first, so that nothing waits behind a flood of orders, and no order behind guests.
                biased;
                _ = timer.tick() => {
                    self.stale = Stale::All;
                    self.tick();
                    self.take(Vec::new()).await;
                    self.settle().await;
                }
                Some(event) = self.wires.events.recv() => self.hear(event),
                Some(back) = self.back.1.recv() => self.came_back(back),
                count = self.wires.link.recv_many(&mut batch, 256) => {
                    if count == 0 {
                        return;
                    }
                    self.hear_link(std::mem::take(&mut batch)).await;
                }
                // Guests ring it as often as they like.
                Some(id) = self.wires.bell.recv() => self.look_at_instance(&id).await,
                () = tokio::time::sleep(wake) => {}
            }
            // Whatever else is there already is taken before deciding again.
            while let Ok(back) = self.back.1.try_recv() {
                self.came_back(back);
            }
        }
    }

    /// What the link said, in order; orders that follow one another are taken together.
    async fn hear_link(&mut self, batch: Vec<LinkEvent>) {
        let mut orders = Vec::new();
        for event in batch {
            if let LinkEvent::Order(order) = event {
                orders.push(*order);
                continue;
            }
            self.take(std::mem::take(&mut orders)).await;
            match event {
                LinkEvent::Connected { db_epoch, .. } => self.connected(db_epoch),
                LinkEvent::Disconnected { .. } => {
                    self.connected = None;
                    self.drift.begin_anew();
                    self.gone_told.clear();
                    self.intake().forget();
                }
                LinkEvent::Lease { until } => self.leased(until),
                LinkEvent::CaughtUp(_) => (self.drift.caught_up, self.drift.is_due) = (true, true),
                LinkEvent::Decisions(decisions) => {
                    (self.drift.decisions, self.drift.is_due) = (decisions, true)
                }
                LinkEvent::Order(_) => {}
            }
        }
        self.take(orders).await;
    }

    /// Everything is to be reported again.
    fn connected(&mut self, db_epoch: u64) {
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = ledger.raise_epoch(db_epoch) {
            tracing::error!(%error, "cannot remember the database's epoch");
        }
        drop(ledger);
        self.connected = Some(Instant::now());
        self.stale = Stale::All;
        self.drift.begin_anew();
        self.told.clear();
        self.gone_told.clear();
        self.wires.session.notify_one();
    }

    /// A fetch or a copy may take hours; a removal does not wait for it.
    fn give_up_copying(&mut self, id: &str) {
        match self.busy.get(id).map(|busy| &busy.action) {
            Some(Action::FetchImage(_)) => self.give_up_fetching(id),
            Some(Action::TakeSnapshot { .. }) => self.give_up_taking(id),
            _ => {}
        }
    }

    fn give_up_fetching(&mut self, id: &str) {
        let Some(busy) = self.busy.remove(id) else { return };
        busy.abort.inspect(AbortHandle::abort);
        if let Action::FetchImage(order) = busy.action {
            self.known.apply(self.hands.look_at_image(&order.sha256));
        }
        self.known.touch(id);
        self.touched(id);
    }

    /// Is done when it has really ended: until then it may still make what is to be taken away.
    fn give_up_taking(&self, id: &str) {
        let Some(Busy { attempt, abort: Some(abort), .. }) = self.busy.get(id) else { return };
        abort.abort();
        let (id, attempt, abort, back) = (id.to_owned(), *attempt, abort.clone(), self.back.0.clone());
        tokio::spawn(async move {
            while !abort.is_finished() {
                tokio::time::sleep(ENDING).await;
            }
            // Whatever there is of it: it is taken away.
            let seen = vec![Seen::Snapshot(id.clone(), Some(ObservedSnapshot::Begun))];
            let done = Done { result: Err(DriverError::Retry("given up".to_owned())), seen };
            let _ = back.send(Back::Done { id, attempt, done });
        });
    }

    fn came_back(&mut self, back: Back) {
        match back {
            Back::Done { id, attempt, done } => self.finished(id, attempt, done),
            Back::Progress { id, bytes } => {
                let all = match self.busy.get(&id).map(|busy| &busy.action) {
                    Some(Action::FetchImage(order)) => Some(order.size_bytes),
                    Some(Action::TakeSnapshot { order, .. }) => {
                        let disk = self.known.world.disks.get(&order.disk_id);
                        disk.map(|disk| disk.virtual_size_bytes)
                    }
                    _ => None,
                };
                if let Some(all) = all {
                    let percent = bytes.saturating_mul(100) / all.max(1);
                    self.touched(&id);
                    self.progress.insert(id, u32::try_from(percent.min(100)).unwrap_or(100));
                }
            }
            Back::Sight { versions, sight } => {
                self.looking = false;
                self.stale = Stale::All;
                self.drift.is_due = true;
                let busy = &self.busy;
                let still = self.known.versions().clone();
                self.known.take(sight, |id| !busy.contains_key(id) && versions.get(id) == still.get(id));
                self.known.prune(&self.orders);
            }
        }
    }

    fn finished(&mut self, id: String, attempt: u64, done: Done) {
        if self.busy.get(&id).is_none_or(|busy| busy.attempt != attempt) {
            return; // Given up in the meantime.
        }
        let Some(busy) = self.busy.remove(&id) else { return };
        if matches!(busy.action, Action::TakeSnapshot { .. }) {
            self.note_copies();
        }
        self.progress.remove(&id);
        self.known.touch(&id);
        self.touched(&id);
        for seen in done.seen {
            if let Seen::Repaired(object, deviations) = &seen {
                for deviation in deviations {
                    self.known.diary.repaired(object, deviation, self.env.now_ms());
                }
                self.drift.is_due = true;
            }
            self.known.apply(seen);
        }
        match done.result {
            Ok(()) => {
                if busy.action == Action::PressPower {
                    self.known.world.pressed_ms.insert(id.clone(), self.env.now_ms());
                }
                self.trouble.remove(&id);
            }
            Err(error) => {
                let failure = Failure { permanent: error.is_permanent(), message: error.to_string() };
                self.in_trouble(id, busy.action, failure);
            }
        }
    }

    /// It is told, and tried again after a while.
    fn in_trouble(&mut self, id: String, action: Action, failure: Failure) {
        let attempts = self.trouble.get(&id).map_or(0, |trouble| trouble.attempts) + 1;
        let wait_ms = FIRST_RETRY_MS.saturating_mul(1 << attempts.min(10)).min(MAX_RETRY_MS) / 2;
        tracing::warn!(object = id, error = failure.message, attempts, retry_in_ms = wait_ms, "failed");
        let retry_at_ms = self.env.now_ms() + wait_ms;
        self.trouble.insert(id, Trouble { action, failure, attempts, retry_at_ms });
    }

    async fn look_at_instance(&mut self, id: &str) {
        if !self.busy.contains_key(id) {
            let seen = self.hands.look_at_instance(id).await;
            self.known.apply(seen);
            self.touched(id);
        }
    }

    fn hear(&mut self, event: Event) {
        self.stale = Stale::All;
        match event {
            Event::Accelerator(name) => self.known.world.accelerator = name,
            Event::Missing(missing) => self.known.world.missing = missing,
        }
    }

    /// Looks at everything, beside the loop.
    fn tick(&mut self) {
        self.forget_heard();
        if std::mem::replace(&mut self.looking, true) {
            return;
        }
        let (hands, orders) = (self.hands.clone(), self.orders.clone());
        let (back, versions) = (self.back.0.clone(), self.known.versions().clone());
        tokio::spawn(async move {
            let sight = hands.look(&orders).await;
            let _ = back.send(Back::Sight { versions, sight });
        });
    }

    /// Decides, begins what is to be done, reports what is new. Answers how long nothing is due by itself.
    async fn advance(&mut self) -> Duration {
        let now = self.env.now_ms();
        let until_lease_changes = self.weigh_lease();
        if self.due <= Instant::now() {
            self.stale = Stale::All;
        }
        let stale = std::mem::take(&mut self.stale);
        // What was not decided anew is due when it was.
        let due = match &stale {
            Stale::All => LOOK_EVERY,
            Stale::Only(_) => self.due.saturating_duration_since(Instant::now()),
        };
        let decided = self.decide(&stale, now);
        let mut wake = due.min(until_lease_changes);
        let mut finished = Vec::new();
        for (id, decision) in &decided {
            match decision {
                Decision::Do(Action::Forget) if !self.busy.contains_key(id) => {
                    match self.held_up(id, &Action::Forget, now) {
                        Some(wait) => wake = wake.min(wait),
                        None => finished.push(id.clone()),
                    }
                }
                Decision::Do(action) => wake = wake.min(self.begin(id, action.clone(), now)),
                Decision::Wait { until_ms: Some(until_ms), .. } => {
                    wake = wake.min(Duration::from_millis(until_ms.saturating_sub(now)));
                }
                Decision::Held => {
                    wake = wake.min(self.known.until_over(self.orders.get(id), now));
                    self.refresh(id, now);
                }
                _ => {}
            }
        }
        self.launch();
        for id in &finished {
            self.forget(id).await;
        }
        if self.connected.is_some() {
            wake = wake.min(self.report(&decided, &stale));
            self.survey().await;
        }
        let wake = wake.max(Duration::from_millis(1));
        self.due = Instant::now() + wake;
        if finished.is_empty() { wake } else { Duration::ZERO }
    }
}
