//! What the owner knows of the node, and how fresh it is.

use super::act::{Rendered, Seen};
use super::look::Sight;
use crate::drivers::network::DesiredNetwork;
use crate::findings::{Beside, Diary};
use crate::reconcile::{Orders, World};
use rhyzome_proto::v1::Order;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;
use tokio::time::Instant;

/// The world, and what is remembered about looking at it.
pub(super) struct Known {
    pub world: World,
    /// Raised whenever an object is acted upon: an older look at it is not believed.
    versions: HashMap<String, u64>,
    rendered: HashMap<String, (Rendered, u64)>,
    applied: HashMap<String, Instant>,
    /// What was seen beside the world.
    pub beside: Beside,
    pub diary: Diary,
}

impl Known {
    pub fn new(host_boot_id: String, plain: Vec<&'static str>) -> Self {
        let plain = plain.into_iter().map(|kind| (kind, BTreeMap::new())).collect();
        Self {
            world: World { host_boot_id, plain, ..World::default() },
            versions: HashMap::new(),
            rendered: HashMap::new(),
            applied: HashMap::new(),
            beside: Beside::default(),
            diary: Diary::default(),
        }
    }

    pub fn versions(&self) -> &HashMap<String, u64> {
        &self.versions
    }

    /// No look is under way: what is not ordered any more need not be told from what it was.
    pub fn prune(&mut self, orders: &Orders) {
        self.versions.retain(|id, _| orders.contains_key(id));
    }

    pub fn touch(&mut self, id: &str) {
        *self.versions.entry(id.to_owned()).or_default() += 1;
    }

    pub fn forget(&mut self, id: &str) {
        // A look that is under way has seen it: it is not believed.
        self.touch(id);
        self.rendered.remove(id);
        self.applied.remove(id);
        self.world.pressed_ms.remove(id);
    }

    /// Believes a look at everything, for the objects that `is_fresh` agrees to.
    pub fn take(&mut self, sight: Sight, is_fresh: impl Fn(&str) -> bool) {
        let disk_files = sight.disk_files.unwrap_or_else(|| std::mem::take(&mut self.beside.disk_files));
        self.beside = Beside { guests: sight.guests, disk_files, edited: sight.edited };
        let fresh = sight.seen.into_iter().filter(|seen| match seen {
            // An image file only ever appears whole and vanishes by order: a late look does no harm.
            Seen::Image(..) => true,
            // By an act, never by a look.
            Seen::Repaired(..) => false,
            Seen::Disk(id, _)
            | Seen::Snapshot(id, _)
            | Seen::Instance(id, ..)
            | Seen::Network(id, _)
            | Seen::NetworkGone(id)
            | Seen::Plain(_, id, _) => is_fresh(id),
        });
        for seen in fresh.collect::<Vec<_>>() {
            self.apply(seen);
        }
        if let Some(there) = sight.networks {
            keep(&mut self.world.networks, &there, &is_fresh);
            let in_force = &mut self.world.in_force;
            in_force.retain(|id, _| there.contains(id) || !is_fresh(id));
        }
        if let Some(there) = sight.instances {
            self.world.instances.retain(|id, _| there.contains(id) || !is_fresh(id));
        }
        for (kind, there) in sight.plain {
            let here = self.world.plain.entry(kind).or_default();
            here.retain(|id, _| there.contains(id) || !is_fresh(id));
        }
    }

    pub fn apply(&mut self, seen: Seen) {
        let world = &mut self.world;
        match seen {
            Seen::Image(sha256, image) => set(&mut world.images, sha256, image),
            Seen::Disk(id, disk) => set(&mut world.disks, id, disk),
            Seen::Snapshot(id, snapshot) => set(&mut world.snapshots, id, snapshot),
            Seen::Network(id, Some((network, rendered))) => {
                world.networks.insert(id.clone());
                world.in_force.insert(id.clone(), network);
                self.applied.insert(id.clone(), Instant::now());
                self.render(id, rendered);
            }
            Seen::Network(id, None) => {
                // Half of it may be there: it is to be removed as if all were.
                world.in_force.remove(&id);
                world.networks.insert(id);
            }
            // Told where it is known when.
            Seen::Repaired(..) => {}
            Seen::NetworkGone(id) => {
                world.in_force.remove(&id);
                world.networks.remove(&id);
            }
            Seen::Instance(id, instance, rendered) => {
                set(&mut world.instances, id.clone(), instance);
                self.render(id, rendered);
            }
            Seen::Plain(kind, id, seen) => {
                let rendered = seen.as_ref().map(|seen| seen.rendered.clone()).unwrap_or_default();
                set(world.plain.entry(kind).or_default(), id.clone(), seen);
                self.render(id, rendered);
            }
        }
    }

    fn render(&mut self, id: String, rendered: Rendered) {
        let slot = self.rendered.entry(id).or_default();
        if slot.0 != rendered {
            *slot = (rendered, slot.1 + 1);
        }
    }

    pub fn rendered(&self, id: &str) -> HashMap<String, String> {
        let rendered = self.rendered.get(id).map(|(rendered, _)| rendered.clone());
        rendered.unwrap_or_default().into_iter().collect()
    }

    pub fn rendered_version(&self, id: &str) -> u64 {
        self.rendered.get(id).map_or(0, |(_, version)| *version)
    }

    /// The network in force, if it was brought there longer ago than `age`.
    pub fn due(&self, id: &str, age: Duration) -> Option<DesiredNetwork> {
        let network = self.world.in_force.get(id)?;
        let is_due = self.applied.get(id).is_none_or(|applied| applied.elapsed() >= age);
        is_due.then(|| network.clone())
    }

    /// How long what is held stays as it is to be: an expiry is met on time, whether the server is heard or not.
    pub fn until_over(&self, order: Option<&Order>, now_ms: u64) -> Duration {
        let here = order.and_then(|order| self.world.plain.get(order.kind.as_str())?.get(&order.object_id));
        let until = here.and_then(|seen| seen.until_ms);
        until.map_or(Duration::MAX, |until| Duration::from_millis(until.saturating_sub(now_ms)))
    }

    /// What is there and was never ordered.
    pub fn unknown(&self, orders: &Orders) -> Vec<(String, &'static str)> {
        let networks = self.world.networks.iter().map(|id| (id, "network"));
        let instances = self.world.instances.keys().map(|id| (id, "instance"));
        let plain = self.world.plain.iter().flat_map(|(kind, here)| here.keys().map(|id| (id, *kind)));
        networks
            .chain(instances)
            .chain(plain)
            .filter(|(id, _)| !orders.contains_key(*id))
            .map(|(id, what)| (id.clone(), what))
            .collect()
    }
}

fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}

fn keep(have: &mut BTreeSet<String>, there: &BTreeSet<String>, is_fresh: impl Fn(&str) -> bool) {
    have.retain(|id| there.contains(id) || !is_fresh(id));
    have.extend(there.iter().filter(|id| is_fresh(id)).cloned());
}
