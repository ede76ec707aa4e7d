//! What is on the node beside what is reported on: guests of whoever, and where things are not as they were ordered.
//! Pure, from what was seen.

use crate::drivers::Deviation;
use crate::drivers::instance::{ObservedGuest, ObservedInstance};
use crate::names::short_digest;
use crate::reconcile::{Orders, View, World, pending, used_by};
use rhyzome_proto::v1::order_body::Body;
use rhyzome_proto::v1::{Difference, DiskOrder, Findings, Guest, InstanceOrder, Order, Orphan};
use std::collections::{BTreeMap, BTreeSet};

/// A QEMU that began just now may be ours before we have heard of it, or one that only asks what QEMU can do.
const YOUNG_MS: u64 = 5_000;
/// At most so many of what was put right are remembered.
const REPAIRED: usize = 100;

/// What was seen beside what decisions are made from.
#[derive(Debug, Clone, Default)]
pub struct Beside {
    /// Every QEMU that runs.
    pub guests: Vec<ObservedGuest>,
    /// All disks in the agent's own folder.
    pub disk_files: BTreeSet<String>,
    /// Files of instances that somebody has changed, by instance.
    pub edited: BTreeMap<String, Vec<Deviation>>,
}

/// All that findings are made from.
#[derive(Debug, Clone, Copy)]
pub struct Scene<'a> {
    /// What was ordered.
    pub orders: &'a Orders,
    /// What is there.
    pub world: &'a World,
    /// And beside it.
    pub beside: &'a Beside,
    /// Of the database that this node obeys: what an earlier one has ordered, and this one has not, is not known.
    pub db_epoch: u64,
    /// Milliseconds since 1970.
    pub now_ms: u64,
}

/// What stands, since when, and what was put right.
#[derive(Debug, Default)]
pub struct Diary {
    since: BTreeMap<String, u64>,
    repaired: Vec<Difference>,
}

impl Diary {
    /// Something was put right.
    pub fn repaired(&mut self, object: &str, deviation: &Deviation, now_ms: u64) {
        let mut difference = stand(object, deviation, &[]);
        (difference.since_ms, difference.repaired_at_ms) = (now_ms, now_ms);
        tracing::warn!(
            object,
            what = difference.what,
            expected = difference.expected,
            found = difference.found,
            "drift: somebody changed this, and it was put right"
        );
        self.repaired.retain(|other| other.id != difference.id);
        self.repaired.push(difference);
        let many = self.repaired.len().saturating_sub(REPAIRED);
        self.repaired.drain(..many);
    }

    /// All that is to be told now.
    pub fn findings(&mut self, scene: Scene<'_>) -> Findings {
        let guests = guests(scene);
        let mut differences = differences(scene, &guests);
        let standing: BTreeSet<String> = differences.iter().map(|difference| difference.id.clone()).collect();
        self.since.retain(|id, _| standing.contains(id));
        for difference in &mut differences {
            difference.since_ms = *self.since.entry(difference.id.clone()).or_insert_with(|| {
                let Difference { object_id, what, expected, found, .. } = &*difference;
                tracing::warn!(
                    object = object_id,
                    what,
                    expected,
                    found,
                    "drift: this waits for an operator"
                );
                scene.now_ms
            });
        }
        let past = self.repaired.iter().filter(|repaired| !standing.contains(&repaired.id));
        differences.extend(past.cloned());
        Findings { guests, differences }
    }
}

/// True if the database that this node obeys has ordered the object.
fn is_known(scene: Scene<'_>, id: &str) -> bool {
    scene.orders.get(id).is_some_and(|order| order.db_epoch >= scene.db_epoch)
}

fn guests(scene: Scene<'_>) -> Vec<Guest> {
    let mut all = Vec::new();
    let mut mine = BTreeSet::new();
    for seen in &scene.beside.guests {
        let owner = scene
            .world
            .instances
            .values()
            .find(|instance| instance.process.is_some_and(|process| process.pid == seen.pid));
        let Some(instance) = owner else {
            let age = scene.now_ms.saturating_sub(seen.started_at_ms);
            if age >= YOUNG_MS {
                all.push(guest(format!("guest-{}", seen.digest), seen, "foreign"));
            }
            continue;
        };
        mine.insert(instance.id.as_str());
        let state = if is_known(scene, &instance.id) { "known" } else { "orphan" };
        let told = guest(instance.id.clone(), seen, state);
        all.push(Guest { instance_id: instance.id.clone(), orphan: orphan(scene, instance), ..told });
    }
    let here = scene.world.instances.values();
    for instance in here.filter(|it| !mine.contains(it.id.as_str()) && !is_known(scene, &it.id)) {
        let orphan = orphan(scene, instance);
        let order = orphan.as_ref().and_then(|orphan| orphan.order.as_ref());
        all.push(Guest {
            id: instance.id.clone(),
            name: order.map(|order| order.hostname.clone()).unwrap_or_default(),
            pid: instance.process.map_or(0, |process| process.pid),
            vcpus: order.map_or(0, |order| order.vcpus),
            memory_bytes: order.map_or(0, |order| order.memory_bytes),
            instance_id: instance.id.clone(),
            state: "orphan".into(),
            orphan,
            ..Guest::default()
        });
    }
    // Two of one command line are told apart, in whatever order they were found.
    all.sort_by(|one, other| (&one.id, one.pid).cmp(&(&other.id, other.pid)));
    let mut before = String::new();
    for guest in &mut all {
        if guest.id == before {
            guest.id = format!("{}-{}", guest.id, guest.pid);
        } else {
            before.clone_from(&guest.id);
        }
    }
    all
}

fn guest(id: String, seen: &ObservedGuest, state: &str) -> Guest {
    Guest {
        id,
        name: seen.name.clone(),
        pid: seen.pid,
        vcpus: seen.vcpus,
        memory_bytes: seen.memory_bytes,
        disks: seen.disks.clone(),
        started_at_ms: seen.started_at_ms,
        instance_id: String::new(),
        state: state.into(),
        orphan: None,
    }
}

/// What a record can be made of; none for what is known, and for what has left nothing but a folder.
fn orphan(scene: Scene<'_>, instance: &ObservedInstance) -> Option<Orphan> {
    if is_known(scene, &instance.id) {
        return None;
    }
    let held = scene.orders.get(&instance.id);
    let booted = instance.boot.as_ref().map(|boot| InstanceOrder {
        // It is adopted as it is, running or not.
        power: held.and_then(instance_order).map_or(boot.order.power, |order| order.power),
        boot_epoch: boot.boot_epoch,
        ..boot.order.clone()
    });
    let order = booted.or_else(|| held.and_then(instance_order).cloned())?;
    let root = order.disks.iter().find(|disk| disk.boot);
    let ordered = root.and_then(|root| scene.orders.get(&root.disk_id));
    let disk = ordered.and_then(disk_order).cloned();
    let disk = disk.map(|disk| {
        let here = root.and_then(|root| scene.world.disks.get(&root.disk_id));
        DiskOrder { size_bytes: here.map_or(disk.size_bytes, |here| here.virtual_size_bytes), ..disk }
    });
    let boot = instance.boot.as_ref();
    Some(Orphan {
        tenant: held.map(|held| held.tenant.clone()).unwrap_or_default(),
        name: held.map(|held| held.name.clone()).unwrap_or_default(),
        placement_epoch: held.map_or(0, |held| held.placement_epoch),
        generation: held.map_or(0, |held| held.generation).max(boot.map_or(0, |boot| boot.generation)),
        order: Some(order),
        root: disk,
        root_placement_epoch: ordered.map_or(0, |order| order.placement_epoch),
        root_generation: ordered.map_or(0, |order| order.generation),
    })
}

fn instance_order(order: &Order) -> Option<&InstanceOrder> {
    match order.body.as_ref()?.body.as_ref()? {
        Body::Instance(instance) => Some(instance),
        _ => None,
    }
}

fn disk_order(order: &Order) -> Option<&DiskOrder> {
    match order.body.as_ref()?.body.as_ref()? {
        Body::Disk(disk) => Some(disk),
        _ => None,
    }
}

// === differences ===

fn stand(object: &str, deviation: &Deviation, actions: &[&str]) -> Difference {
    let Deviation { what, expected, found } = deviation;
    Difference {
        id: format!("diff-{}", short_digest(&format!("{what}/{object}/{expected}"))),
        object_id: object.to_owned(),
        what: (*what).to_owned(),
        expected: expected.clone(),
        found: found.clone(),
        since_ms: 0,
        repaired_at_ms: 0,
        actions: actions.iter().map(|action| (*action).to_owned()).collect(),
    }
}

fn differences(scene: Scene<'_>, guests: &[Guest]) -> Vec<Difference> {
    let mut all = Vec::new();
    for guest in guests {
        all.extend(of_guest(scene, guest));
    }
    for (id, order) in scene.orders.iter().filter(|(_, order)| !order.remove) {
        if let Some(disk) = disk_order(order) {
            all.extend(of_disk(scene, id, disk));
        }
        if let Some(instance) = instance_order(order) {
            all.extend(of_instance(scene, id, instance));
        }
    }
    for (id, edited) in &scene.beside.edited {
        all.extend(edited.iter().map(|deviation| stand(id, deviation, &["repair", "ignore"])));
    }
    let unknown = |what, id: &String| {
        let deviation = Deviation::new(what, "nothing: no order speaks of it", "it is here, and left alone");
        stand(id, &deviation, &["ignore"])
    };
    let of_orphans: BTreeSet<&str> = guests
        .iter()
        .filter_map(|guest| guest.orphan.as_ref()?.order.as_ref())
        .flat_map(|order| order.disks.iter().map(|disk| disk.disk_id.as_str()))
        .collect();
    let disks = scene.beside.disk_files.iter();
    let disks = disks.filter(|id| !is_known(scene, id) && !of_orphans.contains(id.as_str()));
    all.extend(disks.map(|id| unknown("disk.unknown", id)));
    let networks = scene.world.networks.iter().filter(|id| !is_known(scene, id));
    all.extend(networks.map(|id| unknown("network.unknown", id)));
    all.sort_by(|one, other| one.id.cmp(&other.id));
    all.dedup_by(|one, other| one.id == other.id);
    all
}

fn of_guest(scene: Scene<'_>, guest: &Guest) -> Option<Difference> {
    let runs = if guest.pid > 0 { format!("process {}", guest.pid) } else { "stopped".into() };
    let found = format!("a guest called {:?}, {runs}", guest.name);
    let (deviation, actions): (_, &[&str]) = match guest.state.as_str() {
        "orphan" => {
            let expected = "nothing: this database has not ordered it";
            let mut actions = vec!["ignore", "forget"];
            if guest.orphan.is_some() {
                actions.insert(0, "adopt");
            }
            return Some(stand(&guest.id, &Deviation::new("guest.orphan", expected, found), &actions));
        }
        "foreign" if scene.world.instances.contains_key(&guest.name) => {
            let expected = format!("{} as this agent starts it", guest.name);
            (Deviation::new("guest.stray", expected, found), &["ignore"])
        }
        "foreign" => {
            let expected = "nothing: no agent of this node has started it";
            (Deviation::new("guest.foreign", expected, found), &["adopt", "ignore"])
        }
        _ => return None,
    };
    Some(stand(&guest.id, &deviation, actions))
}

fn of_disk(scene: Scene<'_>, id: &str, disk: &DiskOrder) -> Option<Difference> {
    let view = View { orders: scene.orders, world: scene.world, now_ms: scene.now_ms };
    let expected = format!("a disk of {} bytes", disk.size_bytes);
    match scene.world.disks.get(id) {
        Some(here) if here.virtual_size_bytes > disk.size_bytes => {
            let found = format!("{} bytes: a disk never shrinks", here.virtual_size_bytes);
            Some(stand(id, &Deviation::new("disk.size", expected, found), &["ignore"]))
        }
        None => {
            let user = used_by(view, id)?;
            let found =
                format!("no file, though {user} has had it; repair makes it anew, without what was on it");
            Some(stand(id, &Deviation::new("disk.missing", expected, found), &["repair", "ignore"]))
        }
        Some(_) => None,
    }
}

fn of_instance(scene: Scene<'_>, id: &str, order: &InstanceOrder) -> Option<Difference> {
    let seen = scene.world.instances.get(id)?;
    let boot = seen.boot.as_ref().filter(|_| seen.process.is_some())?;
    let pending = pending(order, &boot.order);
    if pending.is_empty() {
        return None;
    }
    let found =
        format!("it was booted with another {}; a restart brings it to its order", pending.join(", "));
    Some(stand(id, &Deviation::new("guest.arguments", "a guest as ordered", found), &["ignore"]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drivers::disk::ObservedDisk;
    use crate::drivers::instance::{BootRecord, ObservedProcess};
    use rhyzome_proto::v1::{InstanceDisk, OrderBody};

    fn seen(pid: u32, name: &str) -> ObservedGuest {
        ObservedGuest {
            pid,
            digest: format!("d{pid}"),
            name: name.into(),
            vcpus: 1,
            memory_bytes: 1 << 28,
            disks: Vec::new(),
            started_at_ms: 1_000,
        }
    }

    fn order(body: Body, db_epoch: u64) -> Order {
        let body = Some(OrderBody { body: Some(body) });
        Order { body, db_epoch, tenant: "acme".into(), name: "web".into(), generation: 3, ..Order::default() }
    }

    fn instance() -> InstanceOrder {
        let root = InstanceDisk {
            name: "root".into(),
            disk_id: "disk_1".into(),
            boot: true,
            ..InstanceDisk::default()
        };
        InstanceOrder { hostname: "web".into(), vcpus: 1, disks: vec![root], ..InstanceOrder::default() }
    }

    /// An instance that runs with its disk, as a database of the epoch 1 has ordered it.
    fn node() -> (Orders, World, Beside) {
        let mut world = World::default();
        let boot = BootRecord::new(&instance(), 3, "tcg", "boot", 5);
        let process = Some(ObservedProcess { pid: 42, paused: false });
        let here = ObservedInstance { id: "inst_1".into(), boot: Some(boot), process };
        world.instances.insert("inst_1".into(), here);
        world.disks.insert("disk_1".into(), ObservedDisk { virtual_size_bytes: 8 << 20, allocated_bytes: 0 });
        let disk = DiskOrder { size_bytes: 8 << 20, image_id: "img_1".into(), ..DiskOrder::default() };
        let orders = Orders::from([
            ("inst_1".to_owned(), order(Body::Instance(instance()), 1)),
            ("disk_1".to_owned(), order(Body::Disk(disk), 1)),
        ]);
        let disk_files = BTreeSet::from(["disk_1".to_owned()]);
        (orders, world, Beside { guests: vec![seen(42, "inst_1")], disk_files, ..Beside::default() })
    }

    fn look(diary: &mut Diary, orders: &Orders, world: &World, beside: &Beside, db_epoch: u64) -> Findings {
        diary.findings(Scene { orders, world, beside, db_epoch, now_ms: 60_000 })
    }

    fn told(findings: &Findings) -> Vec<(&str, &str)> {
        findings.differences.iter().map(|it| (it.what.as_str(), it.object_id.as_str())).collect()
    }

    #[test]
    fn what_is_as_ordered_is_known_and_no_difference() {
        let (orders, world, beside) = node();
        let findings = look(&mut Diary::default(), &orders, &world, &beside, 1);
        let [guest] = &findings.guests[..] else { panic!("{findings:?}") };
        assert_eq!((guest.state.as_str(), guest.instance_id.as_str(), guest.pid), ("known", "inst_1", 42));
        assert_eq!((guest.orphan.is_none(), told(&findings)), (true, vec![]));
    }

    #[test]
    fn a_guest_that_nobody_here_started_is_foreign_once_it_is_not_young() {
        let (orders, world, mut beside) = node();
        beside.guests.push(seen(77, "mail"));
        let young = ObservedGuest { started_at_ms: 59_000, ..seen(78, "probe") };
        beside.guests.push(young);
        let findings = look(&mut Diary::default(), &orders, &world, &beside, 1);
        assert_eq!(told(&findings), [("guest.foreign", "guest-d77")]);
        assert_eq!(findings.differences[0].actions, ["adopt", "ignore"]);
        assert_eq!(findings.guests.len(), 2);
        // One that goes by the name of ours, and is another process.
        beside.guests[1].name = "inst_1".into();
        let findings = look(&mut Diary::default(), &orders, &world, &beside, 1);
        assert_eq!(told(&findings), [("guest.stray", "guest-d77")]);
    }

    #[test]
    fn what_an_older_database_has_ordered_is_an_orphan_with_all_that_a_record_needs() {
        let (orders, world, beside) = node();
        let findings = look(&mut Diary::default(), &orders, &world, &beside, 2);
        assert_eq!(told(&findings), [("guest.orphan", "inst_1")]);
        assert_eq!(findings.differences[0].actions, ["adopt", "ignore", "forget"]);
        let orphan = findings.guests[0].orphan.clone().unwrap();
        assert_eq!((orphan.tenant.as_str(), orphan.name.as_str(), orphan.generation), ("acme", "web", 3));
        assert_eq!(orphan.root.unwrap().image_id, "img_1");
        // Without any order left, what it was booted as is what there is.
        let findings = look(&mut Diary::default(), &Orders::new(), &world, &beside, 2);
        let orphan = findings.guests[0].orphan.clone().unwrap();
        assert_eq!((orphan.tenant.as_str(), orphan.order.unwrap().hostname.as_str()), ("", "web"));
    }

    #[test]
    fn disks_that_are_gone_or_too_large_wait_for_an_operator() {
        let (orders, mut world, beside) = node();
        world.disks.clear();
        let findings = look(&mut Diary::default(), &orders, &world, &beside, 1);
        assert_eq!(told(&findings), [("disk.missing", "disk_1")]);
        let large = ObservedDisk { virtual_size_bytes: 9 << 20, allocated_bytes: 0 };
        world.disks.insert("disk_1".into(), large);
        let findings = look(&mut Diary::default(), &orders, &world, &beside, 1);
        assert_eq!(told(&findings), [("disk.size", "disk_1")]);
    }

    #[test]
    fn differences_keep_their_id_and_since_and_what_was_put_right_is_told_with_its_time() {
        let (orders, world, mut beside) = node();
        let edited = Deviation::new("guest.file", "command as the agent wrote it", "it was changed by hand");
        beside.edited.insert("inst_1".into(), vec![edited]);
        let mut diary = Diary::default();
        let one = look(&mut diary, &orders, &world, &beside, 1);
        let later = Scene { orders: &orders, world: &world, beside: &beside, db_epoch: 1, now_ms: 90_000 };
        assert_eq!(diary.findings(later), one);
        assert_eq!(one.differences[0].since_ms, 60_000);
        beside.edited.clear();
        let links = Deviation::new("network.links", "the tap t1", "it is down");
        diary.repaired("net_1", &links, 70_000);
        diary.repaired("net_1", &links, 80_000);
        let two = look(&mut diary, &orders, &world, &beside, 1);
        let [repaired] = &two.differences[..] else { panic!("{two:?}") };
        assert_eq!((repaired.what.as_str(), repaired.repaired_at_ms), ("network.links", 80_000));
        assert!(repaired.actions.is_empty());
    }
}
