use super::*;
use crate::drivers::instance::{BootRecord, ObservedProcess};
use crate::drivers::snapshot::{Content, ObservedSnapshot};
use rhyzome_proto::v1::StoragePool;
use rhyzome_proto::v1::{InstanceDisk, InstanceNic, InstanceOrder, NetworkOrder, OrderBody, Power, StopMode};

const NOW: u64 = 1_000_000_000;

/// A node that was told to hold one instance and all that it needs, and holds nothing yet.
struct Node {
    orders: Orders,
    world: World,
    now_ms: u64,
}

impl Node {
    fn new() -> Self {
        let mut node = Node {
            orders: Orders::new(),
            world: World { host_boot_id: "boot".into(), accelerator: "tcg".into(), ..World::default() },
            now_ms: NOW,
        };
        node.order("img", Body::Image(ImageOrder { sha256: "ab".into(), ..ImageOrder::default() }));
        node.order(
            "disk",
            Body::Disk(DiskOrder { size_bytes: 1024, image_id: "img".into(), ..DiskOrder::default() }),
        );
        node.order(
            "net",
            Body::Network(NetworkOrder {
                cidr: "10.0.0.0/24".into(),
                gateway: "10.0.0.1".into(),
                ..NetworkOrder::default()
            }),
        );
        node.order(
            "inst",
            Body::Instance(InstanceOrder {
                hostname: "web".into(),
                vcpus: 1,
                power: Power::On.into(),
                boot_epoch: 1,
                stop_deadline_seconds: 30,
                disks: vec![InstanceDisk { disk_id: "disk".into(), ..InstanceDisk::default() }],
                nics: vec![InstanceNic {
                    name: "lan".into(),
                    network_id: "net".into(),
                    mac: "52:54:00:00:00:01".into(),
                    address: "10.0.0.5/24".into(),
                }],
                ..InstanceOrder::default()
            }),
        );
        node
    }

    /// The same, with all of it held and the guest running.
    fn running() -> Self {
        let mut node = Node::new();
        node.settle();
        node
    }

    fn order(&mut self, id: &str, body: Body) {
        let order = Order {
            object_id: id.into(),
            generation: 1,
            body: Some(OrderBody { body: Some(body) }),
            ..Order::default()
        };
        self.orders.insert(id.into(), order);
    }

    fn remove(&mut self, id: &str) {
        self.orders.get_mut(id).unwrap().remove = true;
    }

    fn instance(&mut self) -> &mut InstanceOrder {
        match self.orders.get_mut("inst").unwrap().body.as_mut().unwrap().body.as_mut().unwrap() {
            Body::Instance(instance) => instance,
            _ => panic!("not an instance"),
        }
    }

    fn boot(&mut self) -> &mut BootRecord {
        self.world.instances.get_mut("inst").unwrap().boot.as_mut().unwrap()
    }

    fn end_process(&mut self) {
        self.world.instances.get_mut("inst").unwrap().process = None;
    }

    fn decisions(&self) -> BTreeMap<String, Decision> {
        plan(View { orders: &self.orders, world: &self.world, now_ms: self.now_ms })
    }

    fn decision(&self, id: &str) -> Decision {
        self.decisions().remove(id).unwrap()
    }

    /// What is to be done now, by object.
    fn todo(&self) -> Vec<(String, Action)> {
        let decisions = self.decisions().into_iter();
        decisions
            .filter_map(|(id, decision)| match decision {
                Decision::Do(action) => Some((id, action)),
                _ => None,
            })
            .collect()
    }

    /// Lets every action succeed, once.
    fn step(&mut self) -> Vec<String> {
        let todo = self.todo();
        let mut names = Vec::new();
        for (id, action) in todo {
            names.push(format!("{id}:{}", format!("{action:?}").split(['(', ' ']).next().unwrap()));
            self.perform(&id, action);
        }
        names
    }

    fn perform(&mut self, id: &str, action: Action) {
        let world = &mut self.world;
        match action {
            Action::FetchImage(image) => {
                let seen = ObservedImage { bytes_on_disk: 1, is_whole: true };
                world.images.insert(image.sha256, seen);
            }
            Action::RemoveImage(sha256) => drop(world.images.remove(&sha256)),
            Action::ApplyDisk(disk, _) => {
                let seen = ObservedDisk { virtual_size_bytes: disk.size_bytes, allocated_bytes: 0 };
                world.disks.insert(id.into(), seen);
            }
            Action::GrowOpenDisk { order, .. } => {
                world.disks.get_mut(id).unwrap().virtual_size_bytes = order.size_bytes;
            }
            Action::RemoveDisk(_) => drop(world.disks.remove(id)),
            Action::TakeSnapshot { .. } => {
                let content = Content {
                    sha256: "cd".into(),
                    size_bytes: 1,
                    virtual_size_bytes: 1024,
                    taken_at_ms: self.now_ms,
                };
                world.snapshots.insert(id.into(), ObservedSnapshot::Whole(content));
            }
            Action::RemoveSnapshot { .. } => drop(world.snapshots.remove(id)),
            Action::ApplyNetwork(network) => {
                world.networks.insert(id.into());
                world.in_force.insert(id.into(), network);
            }
            Action::RemoveNetwork => {
                world.networks.remove(id);
                world.in_force.remove(id);
            }
            Action::Start { boot, paused } => {
                let process = Some(ObservedProcess { pid: 1, paused });
                let seen = ObservedInstance { id: id.into(), boot: Some(*boot), process };
                world.instances.insert(id.into(), seen);
            }
            Action::Guard(guarded) => {
                world.instances.get_mut(id).unwrap().boot.as_mut().unwrap().order.ha_restart = guarded;
            }
            Action::PressPower => {
                world.pressed_ms.insert(id.into(), self.now_ms);
                world.instances.get_mut(id).unwrap().boot.as_mut().unwrap().stop_asked_at_ms = self.now_ms;
            }
            Action::Kill => {
                let seen = world.instances.get_mut(id).unwrap();
                seen.process = None;
                seen.boot.as_mut().unwrap().stop_asked_at_ms = self.now_ms;
            }
            Action::Pause | Action::Resume => {
                let paused = action == Action::Pause;
                world.instances.get_mut(id).unwrap().process.as_mut().unwrap().paused = paused;
            }
            Action::RemoveInstance => drop(world.instances.remove(id)),
            Action::ApplyPlain(kind, ordered) => {
                let seen = ObservedPlain { in_force: Some(ordered.body), ..ObservedPlain::default() };
                world.plain.get_mut(kind).unwrap().insert(id.into(), seen);
            }
            Action::RemovePlain(kind) => drop(world.plain.get_mut(kind).unwrap().remove(id)),
            Action::Rewrite => {}
            Action::Forget => drop(self.orders.remove(id)),
        }
    }

    fn settle(&mut self) -> Vec<String> {
        let mut all = Vec::new();
        loop {
            let done = self.step();
            if done.is_empty() {
                return all;
            }
            assert!(all.len() < 50, "does not settle: {all:?}");
            all.push(done.join(" "));
        }
    }
}

#[test]
fn what_is_needed_comes_first_and_the_rest_side_by_side() {
    let mut node = Node::new();
    assert_eq!(
        node.settle(),
        ["img:FetchImage net:ApplyNetwork", "disk:ApplyDisk", "inst:Start"],
        "disk and network do not wait for one another"
    );
    assert!(node.decisions().values().all(|decision| *decision == Decision::Held));
}

#[test]
fn the_lease_is_there_before_the_guest() {
    let node = Node::new();
    let Decision::Do(Action::ApplyNetwork(network)) = node.decision("net") else { panic!() };
    assert_eq!(network.ports.len(), 1);
    assert_eq!(network.ports[0].address.to_string(), "10.0.0.5");
    assert_eq!(network.ports[0].tap, crate::names::tap("inst", "lan"));
}

#[test]
fn a_snapshot_is_taken_by_who_has_the_disk_open_and_once() {
    let mut node = Node::running();
    let wanted =
        SnapshotOrder { disk_id: "disk".into(), begin_before_ms: NOW + 1, ..SnapshotOrder::default() };
    node.order("snap", Body::Snapshot(wanted.clone()));
    let taken = |open_by: Option<&str>| {
        Decision::Do(Action::TakeSnapshot { order: wanted.clone(), open_by: open_by.map(str::to_owned) })
    };
    assert_eq!(node.decision("snap"), taken(Some("inst")));
    // One that is to run again comes first; one that is off waits for nobody.
    node.end_process();
    assert_eq!(node.decision("snap"), Decision::wait("waits for inst, which is to run with its disk"));
    node.instance().power = Power::Off.into();
    assert_eq!(node.decision("snap"), taken(None));
    // Too late for one that was not begun.
    node.now_ms = NOW + 1;
    assert!(matches!(node.decision("snap"), Decision::Refuse { permanent: true, .. }));
    node.world.snapshots.insert("snap".into(), ObservedSnapshot::Begun);
    assert_eq!(node.decision("snap"), taken(None));
    // In a shared pool another node may use it by now.
    let shared = StoragePool { shared: true, ..StoragePool::default() };
    let in_shared = SnapshotOrder { pool: Some(shared), ..wanted.clone() };
    node.order("snap", Body::Snapshot(in_shared));
    assert!(matches!(node.decision("snap"), Decision::Refuse { permanent: true, .. }));
    node.order("snap", Body::Snapshot(wanted.clone()));
    node.world.snapshots.insert("snap".into(), ObservedSnapshot::Unclear("odd".into()));
    assert_eq!(node.decision("snap"), Decision::Refuse { reason: "odd".into(), permanent: false });
    node.world.snapshots.insert("snap".into(), ObservedSnapshot::Lost("/pool/snap".into()));
    match node.decision("snap") {
        Decision::Refuse { reason, permanent: false } => assert!(reason.contains("/pool/snap"), "{reason}"),
        other => panic!("{other:?}"),
    }
    node.perform("snap", Action::TakeSnapshot { order: wanted, open_by: None });
    assert_eq!(node.decision("snap"), Decision::Held);
    // The disk may go; the snapshot stands on nothing.
    node.remove("disk");
    assert_eq!(node.decision("snap"), Decision::Held);
    node.remove("snap");
    assert_eq!(node.decision("snap"), Decision::Do(Action::RemoveSnapshot { open_by: None }));
}

#[test]
fn a_guest_waits_until_its_disk_was_copied() {
    let mut node = Node::running();
    node.end_process();
    node.world.copied.insert("disk".into());
    let reason = "waits for the snapshot of disk, which is being taken";
    assert_eq!(node.decision("inst"), Decision::wait(reason));
    node.orders.get_mut("disk").unwrap().body = Some(OrderBody {
        body: Some(Body::Disk(DiskOrder {
            size_bytes: 2048,
            image_id: "img".into(),
            ..DiskOrder::default()
        })),
    });
    assert_eq!(node.decision("disk"), Decision::wait("waits for its snapshot, which is being taken"));
    node.world.copied.clear();
    assert!(matches!(node.decision("disk"), Decision::Do(Action::ApplyDisk(..))));
    assert!(matches!(node.decision("inst"), Decision::Do(Action::Start { .. })));
}

#[test]
fn a_snapshot_waits_for_its_disk() {
    let mut node = Node::new();
    let wanted = SnapshotOrder { disk_id: "disk".into(), ..SnapshotOrder::default() };
    node.order("snap", Body::Snapshot(wanted));
    assert_eq!(node.decision("snap"), Decision::wait("waits for disk"));
    assert_eq!(
        node.settle(),
        ["img:FetchImage net:ApplyNetwork", "disk:ApplyDisk", "inst:Start", "snap:TakeSnapshot"]
    );
}

#[test]
fn removal_goes_the_other_way_round() {
    let mut node = Node::running();
    for id in ["img", "disk", "net", "inst"] {
        node.remove(id);
    }
    let steps = node.settle();
    assert_eq!(
        steps,
        [
            "inst:RemoveInstance",
            "disk:RemoveDisk inst:Forget net:RemoveNetwork",
            "disk:Forget net:Forget",
            "img:RemoveImage",
            "img:Forget"
        ]
    );
}

#[test]
fn an_instance_is_gone_when_its_network_has_let_go_of_it() {
    let mut node = Node::running();
    node.remove("inst");
    assert_eq!(node.settle(), ["inst:RemoveInstance", "net:ApplyNetwork", "inst:Forget"]);
    assert!(node.world.in_force["net"].ports.is_empty());
    // Also for an agent that was restarted in between and does not know what is in force.
    let mut node = Node::running();
    node.remove("inst");
    node.step();
    node.world.in_force.clear();
    assert_eq!(node.settle(), ["net:ApplyNetwork", "inst:Forget"]);
}

#[test]
fn a_guest_that_died_is_brought_back_and_counted() {
    let mut node = Node::running();
    node.now_ms += 10_000;
    node.end_process();
    assert_eq!(node.settle(), ["inst:Start"]);
    assert_eq!((node.boot().restarts, node.boot().streak), (1, 1));
    node.end_process();
    let Decision::Wait { until_ms, .. } = node.decision("inst") else { panic!("no backoff") };
    assert_eq!(until_ms, Some(node.now_ms + 1_000));
    node.now_ms += 1_000;
    assert_eq!(node.settle(), ["inst:Start"]);
    assert_eq!((node.boot().restarts, node.boot().streak), (2, 2));
    node.now_ms += 400_000;
    node.end_process();
    node.settle();
    assert_eq!((node.boot().restarts, node.boot().streak), (3, 1));
    // The node itself went down: nobody's crash.
    node.end_process();
    node.world.host_boot_id = "next boot".into();
    node.settle();
    assert_eq!(node.boot().restarts, 0);
}

#[test]
fn a_graceful_stop_asks_again_and_then_no_longer() {
    let mut node = Node::running();
    node.instance().power = Power::Off.into();
    assert_eq!(node.settle(), ["inst:PressPower"]);
    node.now_ms += 2_999;
    assert!(node.settle().is_empty());
    node.now_ms += 1;
    assert_eq!(node.settle(), ["inst:PressPower"]);
    // The first press counts for the deadline in the world; this world's actions move it on.
    node.boot().stop_asked_at_ms = NOW;
    node.now_ms = NOW + 30_000;
    assert_eq!(node.settle(), ["inst:Kill"]);
    assert_eq!(node.decision("inst"), Decision::Held);
}

#[test]
fn a_hard_stop_overtakes_a_graceful_one() {
    let mut node = Node::running();
    node.instance().power = Power::Off.into();
    node.settle();
    node.instance().stop_mode = StopMode::Hard.into();
    assert_eq!(node.settle(), ["inst:Kill"]);
}

#[test]
fn stop_followed_by_start_brings_it_down_then_up() {
    let mut node = Node::running();
    node.instance().power = Power::Off.into();
    node.settle();
    node.instance().power = Power::On.into();
    assert!(node.settle().is_empty(), "still on its way down");
    node.end_process();
    assert_eq!(node.settle(), ["inst:Start"]);
    assert_eq!(node.boot().restarts, 0);
}

#[test]
fn a_higher_boot_epoch_restarts_the_guest() {
    let mut node = Node::running();
    node.instance().boot_epoch = 2;
    assert_eq!(node.settle(), ["inst:PressPower"]);
    node.end_process();
    assert_eq!(node.settle(), ["inst:Start"]);
    assert_eq!((node.boot().boot_epoch, node.boot().restarts), (2, 0));
}

#[test]
fn paused_is_a_state_like_others() {
    let mut node = Node::running();
    node.instance().power = Power::Paused.into();
    assert_eq!(node.settle(), ["inst:Pause"]);
    node.instance().power = Power::Off.into();
    assert_eq!(node.settle(), ["inst:Resume", "inst:PressPower"], "a paused guest cannot hear the button");
    let mut node = Node::new();
    node.instance().power = Power::Paused.into();
    node.settle();
    assert!(node.world.instances["inst"].process.unwrap().paused);
}

#[test]
fn what_needs_a_stop_waits_for_it() {
    let mut node = Node::running();
    node.instance().vcpus = 4;
    node.instance().nics[0].address = "10.0.0.6/24".into();
    node.instance().nics.push(InstanceNic {
        name: "second".into(),
        network_id: "net".into(),
        mac: "52:54:00:00:00:02".into(),
        address: "10.0.0.7/24".into(),
    });
    assert_eq!(node.settle(), ["net:ApplyNetwork"]);
    let addresses: BTreeSet<String> =
        node.world.in_force["net"].ports.iter().map(|port| port.address.to_string()).collect();
    let expected = ["10.0.0.5", "10.0.0.7"].map(String::from);
    assert_eq!(addresses, BTreeSet::from(expected), "the running guest keeps its address");
    let booted = node.boot().order.clone();
    assert_eq!(pending(node.instance(), &booted), ["vcpus", "nics"]);
    node.instance().boot_epoch = 2;
    node.settle();
    node.end_process();
    node.settle();
    let booted = node.boot().order.clone();
    assert!(pending(node.instance(), &booted).is_empty());
    assert!(node.world.in_force["net"].ports.iter().any(|port| port.address.to_string() == "10.0.0.6"));
}

#[test]
fn a_disk_grows_through_whoever_has_it_open() {
    let mut node = Node::running();
    let Some(Body::Disk(disk)) = node.orders.get_mut("disk").unwrap().body.as_mut().unwrap().body.as_mut()
    else {
        panic!()
    };
    disk.size_bytes = 4096;
    assert_eq!(node.settle(), ["disk:GrowOpenDisk"]);
    node.remove("disk");
    assert!(matches!(node.decision("disk"), Decision::Wait { reason, .. } if reason.contains("inst")));
}

#[test]
fn two_images_with_the_same_bytes_are_one_file() {
    let mut node = Node::running();
    node.order("twin", Body::Image(ImageOrder { sha256: "ab".into(), ..ImageOrder::default() }));
    assert!(node.settle().is_empty());
    node.remove("twin");
    assert_eq!(node.settle(), ["twin:Forget"]);
    assert!(node.world.images.contains_key("ab"));
}

#[test]
fn what_is_not_known_is_refused_and_never_destroyed() {
    let mut node = Node::running();
    let strange = Order { object_id: "x".into(), kind: "bucket".into(), ..Order::default() };
    node.orders.insert("x".into(), strange);
    let Decision::Refuse { reason, permanent } = node.decision("x") else { panic!() };
    assert!(permanent && reason.starts_with("unsupported"), "{reason}");
    // All orders lost: nothing of what is there is touched.
    node.orders.clear();
    assert!(node.todo().is_empty());
}

#[test]
fn a_missing_tool_is_named_and_removal_still_works() {
    let mut node = Node::running();
    node.world.missing.insert(Kind::Instance, "QEMU is missing: install qemu-system-x86".into());
    assert!(matches!(node.decision("inst"), Decision::Refuse { permanent: false, .. }));
    node.remove("inst");
    assert!(matches!(node.decision("inst"), Decision::Do(Action::RemoveInstance)));
}

#[test]
fn one_of_a_plain_kind_waits_for_what_it_needs() {
    let mut node = Node::new();
    node.world.plain.insert("note", BTreeMap::new());
    node.order("note", Body::Plain(vec![1]));
    let note = node.orders.get_mut("note").unwrap();
    (note.kind, note.needs) = ("note".into(), vec!["net".into()]);
    let decide = |node: &Node| {
        let view = View { orders: &node.orders, world: &node.world, now_ms: node.now_ms };
        plan(view)["note"].clone()
    };
    assert!(matches!(decide(&node), Decision::Wait { reason, .. } if reason == "waits for net"));
    node.settle();
    assert_eq!(decide(&node), Decision::Held);
    // Another message is another order.
    node.order("note", Body::Plain(vec![2]));
    node.orders.get_mut("note").unwrap().kind = "note".into();
    assert_eq!(decide(&node), Decision::Do(Action::ApplyPlain("note", vec![2].into())));
    node.orders.get_mut("note").unwrap().remove = true;
    assert_eq!(decide(&node), Decision::Do(Action::RemovePlain("note")));
    node.settle();
    assert!(node.world.plain["note"].is_empty() && !node.orders.contains_key("note"));
}

#[test]
fn a_marked_guest_runs_only_while_the_node_holds_a_lease() {
    let mut node = Node::new();
    node.instance().ha_restart = true;
    node.settle();
    let Decision::Wait { reason, until_ms: None } = node.decision("inst") else { panic!("it was started") };
    assert!(reason.starts_with("lease-lost: "), "{reason}");
    node.world.lease = Standing::Ending;
    assert_eq!(node.step(), Vec::<String>::new());
    node.world.lease = Standing::Held;
    node.settle();
    assert_eq!(node.decision("inst"), Decision::Held);
    node.world.lease = Standing::Ending;
    assert_eq!(node.decision("inst"), Decision::Held);
    node.world.lease = Standing::Over;
    assert_eq!(node.step(), ["inst:Kill"]);
    assert_eq!(node.step(), Vec::<String>::new());
    // A graceful stop does not hold it up either.
    node.world.lease = Standing::Held;
    node.settle();
    node.instance().power = Power::Off.into();
    node.step();
    node.world.lease = Standing::Over;
    assert_eq!(node.step(), ["inst:Kill"]);
}

#[test]
fn a_guest_that_runs_is_marked_when_there_is_a_lease_and_not_before() {
    let mut node = Node::running();
    node.world.lease = Standing::Over;
    assert_eq!(node.decision("inst"), Decision::Held, "it is not marked, and needs no lease");
    node.instance().ha_restart = true;
    assert!(matches!(node.decision("inst"), Decision::Wait { .. }));
    node.world.lease = Standing::Held;
    assert_eq!(node.step(), ["inst:Guard"]);
    assert_eq!(node.decision("inst"), Decision::Held);
    node.instance().ha_restart = false;
    node.world.lease = Standing::Over;
    assert_eq!(node.decision("inst"), Decision::Do(Action::Guard(false)), "it goes on without one");
}

#[test]
fn a_disk_that_a_guest_has_had_is_not_made_anew_unless_somebody_says_so() {
    let mut node = Node::running();
    node.end_process();
    node.world.disks.clear();
    let Decision::Refuse { reason, permanent: false } = node.decision("disk") else { panic!("made anew") };
    assert!(reason.starts_with("disk-gone: disk, which inst has had"), "{reason}");
    assert!(matches!(node.decision("inst"), Decision::Wait { .. }), "no guest starts without its disk");
    assert_eq!(node.todo(), []);
    node.world.approved.insert("disk".into());
    assert_eq!(node.settle(), ["disk:ApplyDisk", "inst:Start"]);
}

#[test]
fn a_guest_that_nobody_ordered_keeps_its_port_and_its_network() {
    let mut node = Node::running();
    node.orders.remove("inst");
    let Decision::Held = node.decision("net") else { panic!("its network is changed") };
    node.remove("net");
    let Decision::Wait { reason, .. } = node.decision("net") else { panic!("its network is taken away") };
    assert!(reason.contains("inst"), "{reason}");
    node.end_process();
    assert_eq!(node.decision("net"), Decision::Do(Action::RemoveNetwork));
}
