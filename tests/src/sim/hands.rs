//! An agent's node in memory: what a driver would make is noted in a world; each act takes a while, and some fail.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::BoxFuture;
use rhyzome_agent::drivers::{self, DriverError};
use rhyzome_agent::owner::{self, Done, Seen, Sight};
use rhyzome_agent::plain::{ObservedPlain, Ordered, OrderedAll, Plain, Plains};
use rhyzome_agent::reconcile::{Action, Orders, World};
use rhyzome_agent::simulate::fake;
use rhyzome_agent::{guard, lease};

use super::house::{House, Switch};

/// An act takes so many milliseconds at most, but for a few.
const ACT_MS: u64 = 2_000;

pub(super) struct Hands {
    pub(super) name: String,
    house: Arc<House>,
    folder: PathBuf,
    plain: Plains,
    still: Switch,
    node: Mutex<Node>,
    /// Which process of the agent it is: what an earlier one has begun comes to nothing.
    life: AtomicU64,
}

#[derive(Default)]
struct Node {
    world: World,
    full: bool,
    pids: u32,
    boots: u32,
}

impl Hands {
    pub(super) fn new(name: &str, house: &Arc<House>, folder: &Path, still: Switch) -> Hands {
        Hands {
            name: name.to_owned(),
            house: house.clone(),
            folder: folder.to_owned(),
            plain: fake::plain(folder),
            still,
            node: Mutex::default(),
            life: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Node> {
        self.node.lock().unwrap()
    }

    /// What is there now.
    pub(super) fn world(&self) -> World {
        let mut world = self.lock().world.clone();
        world.plain = self.look_at_plain(&Orders::new());
        world
    }

    /// Which boot it is.
    pub(super) fn boot_id(&self) -> String {
        format!("boot-{}", self.lock().boots)
    }

    /// Whether a guest runs here.
    pub(super) fn runs(&self, id: &str) -> bool {
        self.lock().world.instances.get(id).is_some_and(|instance| instance.process.is_some())
    }

    /// For how long marked guests may go on here, by the lease that stands in the file.
    fn time_left(&self) -> Option<Duration> {
        let until = lease::kept(&self.folder, &self.boot_id());
        guard::time_left(self.house.time.uptime(), until)
    }

    /// What the guard does, a process of its own: it looks at files, and ends guests, whatever the agent does.
    pub(super) fn guard(&self) {
        if self.time_left().is_some() {
            return;
        }
        let mut ended = Vec::new();
        for (id, instance) in &mut self.lock().world.instances {
            if instance.process.is_some() && instance.boot.as_ref().is_some_and(|boot| boot.order.ha_restart)
            {
                instance.process = None;
                ended.push(id.clone());
            }
        }
        for id in ended {
            self.house.fault("a guard ends a guest", format!("{}: {id}", self.name));
        }
    }

    /// Which process of the agent it is.
    pub(super) fn life(&self) -> u64 {
        self.life.load(Ordering::SeqCst)
    }

    /// The agent's process has ended.
    pub(super) fn end_life(&self) {
        self.life.fetch_add(1, Ordering::SeqCst);
    }

    /// The machine goes down and comes back: files stay.
    pub(super) fn reboot(&self) {
        let mut node = self.lock();
        node.boots += 1;
        node.world.networks.clear();
        node.world.in_force.clear();
        node.world.instances.values_mut().for_each(|instance| instance.process = None);
    }

    /// Nothing can be written: the ledger really cannot, and drivers say so.
    pub(super) fn fill_or_relieve(&self) {
        let mut node = self.lock();
        node.full = !node.full;
        self.move_ledger(node.full);
    }

    /// Its disk has room.
    pub(super) fn relieve(&self) {
        let mut node = self.lock();
        if std::mem::take(&mut node.full) {
            self.move_ledger(false);
        }
    }

    fn move_ledger(&self, away: bool) {
        let (here, there) = (self.folder.join("ledger"), self.folder.join("away"));
        let (from, to) = if away { (here, there) } else { (there, here) };
        std::fs::rename(from, to).unwrap();
    }

    /// Does this as if there were room for a moment.
    pub(super) fn while_it_has_room<T>(&self, work: impl FnOnce() -> T) -> T {
        let full = self.lock().full;
        if full {
            self.move_ledger(false);
        }
        let done = work();
        if full {
            self.move_ledger(true);
        }
        done
    }

    async fn carry_out(&self, id: &str, action: Action) -> Done {
        let life = self.life.load(Ordering::SeqCst);
        self.house.takes(ACT_MS).await;
        self.still.is(false).await;
        if self.life.load(Ordering::SeqCst) != life {
            return std::future::pending().await;
        }
        let what = fake::name_of(&action);
        self.house.note(format!("{} {what} {id}", self.name));
        let fails = self.house.fails(3);
        // It may have done its work before it failed.
        let result = if fails && self.house.percent(50) {
            Err(DriverError::Retry("it failed before it began".to_owned()))
        } else {
            self.make(id, &action)
        };
        let result = if fails { Err(DriverError::Retry("it failed".to_owned())) } else { result };
        if fails {
            self.house.fault("a driver fails", &self.name);
        }
        Done { result, seen: self.seen(id, &action) }
    }

    fn make(&self, id: &str, action: &Action) -> Result<(), DriverError> {
        if let Action::Start { boot, .. } = action {
            // As between fork and exec.
            if boot.order.ha_restart && self.time_left().is_none() {
                return Err(DriverError::Retry("lease-lost".to_owned()));
            }
            if !self.lock().full {
                self.house.begins(id, &self.name);
            }
        }
        let mut node = self.lock();
        if node.full && fake::writes(action) {
            return Err(DriverError::Retry("no space left on device".to_owned()));
        }
        match action {
            Action::ApplyPlain(kind, ordered) => self.driver(kind).make(id, ordered).map(drop),
            Action::RemovePlain(kind) => self.driver(kind).take_away(id),
            action => {
                let Node { world, pids, .. } = &mut *node;
                fake::act(world, id, action.clone(), self.house.time.now_ms(), false, pids);
                Ok(())
            }
        }
    }

    fn seen(&self, id: &str, action: &Action) -> Vec<Seen> {
        let own = id.to_owned();
        vec![match action {
            Action::ApplyPlain(kind, ordered) => {
                Seen::Plain(kind, own, self.driver(kind).look(id, Some(ordered)).unwrap())
            }
            Action::RemovePlain(kind) => Seen::Plain(kind, own, self.driver(kind).look(id, None).unwrap()),
            action => fake::seen(&self.lock().world, id, action),
        }]
    }

    fn driver(&self, kind: &str) -> &dyn Plain {
        &**self.plain.iter().find(|driver| driver.kind() == kind).unwrap()
    }

    fn look_at_plain(&self, orders: &Orders) -> BTreeMap<&'static str, BTreeMap<String, ObservedPlain>> {
        let ordered = orders.iter().filter_map(|(id, order)| Some((id.clone(), Ordered::of(order)?)));
        let ordered: OrderedAll = ordered.collect();
        let look = |driver: &Arc<dyn Plain>| (driver.kind(), driver.look_at_all(&ordered).unwrap());
        self.plain.iter().map(look).collect()
    }

    fn sight(&self, orders: &Orders) -> Sight {
        let mut world = self.lock().world.clone();
        world.plain = self.look_at_plain(orders);
        fake::sight(&world, orders)
    }
}

impl owner::Hands for Hands {
    fn act<'a>(
        &'a self,
        id: &'a str,
        action: Action,
        _now_ms: u64,
        _progress: drivers::Progress,
    ) -> BoxFuture<'a, Done> {
        Box::pin(self.carry_out(id, action))
    }

    fn look<'a>(&'a self, orders: &'a Orders) -> BoxFuture<'a, Sight> {
        Box::pin(async { self.sight(orders) })
    }

    fn look_at_instance<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Seen> {
        Box::pin(async { fake::instance(&self.lock().world, id) })
    }

    fn look_at_image(&self, sha256: &str) -> Seen {
        fake::image(&self.lock().world, sha256)
    }

    fn plain_kinds(&self) -> Vec<&'static str> {
        self.plain.iter().map(|driver| driver.kind()).collect()
    }
}
