//! A mesh of three nodes on a real kernel, each in a namespace of its own. Needs root; a missing tool is an error.
#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

mod support;

use prost::Message as _;
use rhyzome_agent::drivers::DriverError;
use rhyzome_agent::env::Env;
use rhyzome_agent::host::netns;
use rhyzome_agent::host::process::ProcessId;
use rhyzome_agent::names;
use rhyzome_agent::plain::{ObservedPlain, Ordered, OrderedAll, Plain};
use rhyzome_agent::wireguard::process::Userspace;
use rhyzome_agent::wireguard::{self, mesh, room::Room};
use rhyzome_proto::v1::{MeshMemberOrder, MeshMemberReport};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};
use support::tunnel::{self, Stream};
use support::{Node, on_a_node, run};

/// A node: a namespace on the wire, its agent as far as the mesh goes, and what was ordered.
struct Machine {
    number: u8,
    namespace: String,
    state: tempfile::TempDir,
    room: Arc<Room>,
    driver: Arc<dyn Plain>,
    orders: OrderedAll,
}

/// Three of them, and what the control plane knows.
struct House {
    machines: Vec<Machine>,
    members: BTreeMap<String, MeshMemberOrder>,
    /// Milliseconds that the clock of all agents is ahead.
    ahead: Arc<AtomicU64>,
}

fn member(number: u8) -> String {
    format!("mshm_{number}")
}

fn address(number: u8) -> String {
    format!("10.98.0.{number}")
}

fn agent(state: &Path, ahead: &Arc<AtomicU64>) -> (Arc<Room>, Arc<dyn Plain>) {
    let ahead = ahead.clone();
    let clock = move || SystemTime::now() + Duration::from_millis(ahead.load(Ordering::Relaxed));
    let env = Env::simulated(Arc::new(clock), Arc::new(|| 0.5));
    let device = Userspace::by(state, env!("CARGO_BIN_EXE_rhyzome-agent").into());
    let room = Arc::new(Room::with_engine(state, env, Box::new(device)));
    let driver = wireguard::of_room(&room).into_iter().find(|driver| driver.kind() == mesh::KIND).unwrap();
    (room, driver)
}

impl Machine {
    fn new(node: &Node, number: u8, ahead: &Arc<AtomicU64>) -> Self {
        let tag = &names::short_digest(&format!("{}{number}", node.state.path().display()))[..8];
        let namespace = format!("wgm{tag}");
        netns::create(&namespace).unwrap();
        let outer = format!("m{tag}");
        run(&["ip", "link", "add", &outer, "type", "veth", "peer", "name", "wire", "netns", &namespace]);
        run(&["ip", "link", "set", &outer, "master", "wires", "up"]);
        let state = tempfile::tempdir().unwrap();
        fs::create_dir(state.path().join("identity")).unwrap();
        let record = format!(
            r#"{{"node_id":"node_{number}","node_name":"n{number}","cluster_id":"c","root_sha256":"","server":""}}"#
        );
        fs::write(state.path().join("identity/node.json"), record).unwrap();
        let (room, driver) = agent(state.path(), ahead);
        let machine = Machine { number, namespace, state, room, driver, orders: OrderedAll::new() };
        machine.run(&["ip", "addr", "add", &format!("10.250.0.{number}/24"), "dev", "wire"]);
        machine.run(&["ip", "link", "set", "lo", "up"]);
        machine.run(&["ip", "link", "set", "wire", "up"]);
        machine
    }

    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        netns::run_in(&self.namespace, || Ok(work())).unwrap()
    }

    fn run(&self, words: &[&str]) -> String {
        self.inside(|| run(words))
    }

    fn pings(&self, address: &str, seconds: u32) -> bool {
        let wait = seconds.to_string();
        let words = ["-c1", "-w", &wait, address];
        self.inside(|| Command::new("ping").args(words).stdout(Stdio::null()).status().unwrap().success())
    }

    fn look(&self) -> BTreeMap<String, ObservedPlain> {
        self.inside(|| self.driver.look_at_all(&self.orders)).unwrap()
    }

    /// What the agent's loop does once: everything that is not as ordered, or whose time is over.
    fn turn(&self, now_ms: u64) -> Result<Vec<String>, DriverError> {
        let mut repaired = Vec::new();
        let seen = self.look();
        // Its own first: the others wait for its device, and are tried again.
        let mut ids: Vec<&String> = self.orders.keys().collect();
        ids.sort_by_key(|id| **id != member(self.number));
        for id in ids {
            let (ordered, seen) = (&self.orders[id], seen.get(id));
            let is_over = seen.and_then(|seen| seen.until_ms).is_some_and(|until| until <= now_ms);
            let is_held = seen.and_then(|seen| seen.in_force.as_ref()) == Some(&ordered.body);
            if ordered.remove {
                if seen.is_some() {
                    self.inside(|| self.driver.take_away(id))?;
                }
            } else if !is_held || is_over {
                let made = self.inside(|| self.driver.make(id, ordered))?;
                repaired.extend(made.into_iter().map(|it| format!("{it:?}")));
            }
        }
        Ok(repaired)
    }

    fn report(&self) -> MeshMemberReport {
        let seen = &self.look()[&member(self.number)];
        assert!(seen.rendered["mesh.conf"].contains("(never leaves the node)"), "{:?}", seen.rendered);
        MeshMemberReport::decode(seen.report.as_slice()).unwrap()
    }

    /// The process that is the device.
    fn device(&self) -> ProcessId {
        tunnel::device(&names::wireguard_socket(self.state.path(), &member(self.number)))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        tunnel::end_devices(self.state.path());
        netns::delete(&self.namespace).unwrap();
    }
}

impl House {
    fn new(node: &Node) -> Self {
        run(&["ip", "link", "add", "wires", "type", "bridge"]);
        run(&["ip", "link", "set", "wires", "up"]);
        let ahead = Arc::new(AtomicU64::new(0));
        let machines: Vec<_> = (1..=3).map(|number| Machine::new(node, number, &ahead)).collect();
        let member = |number: u8| MeshMemberOrder {
            mesh_id: "mesh_1".into(),
            node_id: format!("node_{number}"),
            node_name: format!("n{number}"),
            prefix: "10.98.0.0/24".into(),
            address: address(number),
            // The third can only dial.
            endpoint: if number == 3 { String::new() } else { format!("10.250.0.{number}:51820") },
            listen_port: 51820,
            keepalive_seconds: 1,
            ..MeshMemberOrder::default()
        };
        let members = (1..=3).map(|number| (self::member(number), member(number))).collect();
        House { machines, members, ahead }
    }

    fn at(&self, number: u8) -> &Machine {
        &self.machines[usize::from(number) - 1]
    }

    fn now_ms(&self) -> u64 {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        u64::try_from(now.as_millis()).unwrap() + self.ahead.load(Ordering::Relaxed)
    }

    /// What the control plane does: hears what each node tells of its own member, and orders that from all.
    fn tell(&mut self) {
        for machine in &self.machines {
            let Some(seen) = machine.look().get(&member(machine.number)).cloned() else { continue };
            let report = MeshMemberReport::decode(seen.report.as_slice()).unwrap();
            if let Some(member) = self.members.get_mut(&member(machine.number)) {
                (member.public_key, member.next_public_key) = (report.public_key, report.next_public_key);
            }
        }
        let ordered: OrderedAll =
            self.members.iter().map(|(id, order)| (id.clone(), order.encode_to_vec().into())).collect();
        for machine in &mut self.machines {
            let own = member(machine.number);
            if ordered.contains_key(&own) {
                machine.orders.extend(ordered.clone());
            }
        }
    }

    fn turn(&mut self) -> Vec<String> {
        self.tell();
        let now_ms = self.now_ms();
        let turns = self.machines.iter().map(|machine| machine.turn(now_ms));
        turns.map(|it| it.unwrap()).collect::<Vec<_>>().concat()
    }

    /// Goes on until something is so, as often as agents look.
    #[track_caller]
    fn until(&mut self, what: &str, is_so: impl Fn(&House) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !is_so(self) {
            assert!(Instant::now() < deadline, "not within a minute: {what}");
            self.turn();
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// All orders are carried out.
    fn settle(&mut self) {
        self.until("all is as ordered", |house| {
            house.machines.iter().all(|machine| {
                let seen = machine.look();
                let is_held = |(id, ordered): (&String, &Ordered)| match seen.get(id) {
                    Some(seen) => seen.in_force.as_ref() == Some(&ordered.body),
                    None => ordered.remove,
                };
                machine.orders.len() == 3
                    && machine.orders.iter().all(is_held)
                    && !house.members.values().any(|member| member.public_key.is_empty())
            })
        });
    }
}

fn all_reach_each_other(house: &House) {
    for (from, to) in [(3, 1), (3, 2), (1, 2), (2, 1), (1, 3), (2, 3)] {
        assert!(house.at(from).pings(&address(to), 20), "from {from} to {to}");
    }
}

#[test]
fn three_nodes_reach_each_other_and_nobody_else_reaches_them() {
    on_a_node(async |node| {
        let mut house = House::new(node);
        house.settle();
        all_reach_each_other(&house);
        let one = house.at(1);
        let report = one.report();
        assert_eq!(
            (report.device.as_str(), report.interface.as_str()),
            ("userspace", &*names::mesh(&member(1)))
        );
        // The one that only dials is known by where it called from.
        let third = report.peers.iter().find(|peer| peer.node_name == "n3").unwrap();
        assert!(third.endpoint.starts_with("10.250.0.3:") && third.last_handshake_ms > 0, "{third:?}");
        let file = names::mesh_folder(one.state.path(), &member(1)).join("keys.json");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

        // Nodes are asked whether they are there, and nothing else.
        let listen = || TcpListener::bind((address(1), 7070)).unwrap();
        let listener = one.inside(listen);
        let to = |address: String| SocketAddr::from((address.parse::<std::net::Ipv4Addr>().unwrap(), 7070));
        let knock = |to: SocketAddr| TcpStream::connect_timeout(&to, Duration::from_secs(1)).is_ok();
        assert!(one.inside(|| knock(to(address(1)))), "itself");
        assert!(!house.at(2).inside(|| knock(to(address(1)))), "another member");
        drop(listener);

        // A guest behind a node that passes packets on reaches the node, and nothing of the mesh, even with one of its
        // addresses.
        one.run(&["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"]);
        let guest = format!("{}g", one.namespace);
        netns::create(&guest).unwrap();
        one.run(&["ip", "link", "add", "guest", "type", "veth", "peer", "name", "eth0", "netns", &guest]);
        one.run(&["ip", "addr", "add", "10.20.0.1/24", "dev", "guest"]);
        one.run(&["ip", "link", "set", "guest", "up"]);
        let words = |words: &str| run(&words.replace("GUEST", &guest).split(' ').collect::<Vec<_>>());
        words("ip -n GUEST addr add 10.20.0.2/24 dev eth0");
        words("ip -n GUEST link set eth0 up");
        words("ip -n GUEST addr add 10.98.0.2/32 dev eth0");
        words("ip -n GUEST route add default via 10.20.0.1");
        let asks = |more: &[&str]| {
            let ping = ["netns", "exec", &guest, "ping", "-c2", "-i", "0.2", "-W1"];
            let all = [&ping[..], more].concat();
            Command::new("ip").args(all).stdout(Stdio::null()).status().unwrap().success()
        };
        assert!(asks(&["10.20.0.1"]));
        assert!(!asks(&[&address(1)]) && !asks(&[&address(3)]), "a guest is in the mesh");
        assert!(!asks(&["-I", "10.98.0.2", "10.20.0.1"]), "a guest speaks as a member");
        netns::delete(&guest).unwrap();

        // What somebody changes by hand is put right.
        one.run(&["nft", "flush", "chain", "inet", "rhyzome-mesh", "forward"]);
        one.run(&["ip", "link", "set", &names::mesh(&member(1)), "down"]);
        let repaired = house.turn().join("\n");
        assert!(repaired.contains("the rules of the mesh") && repaired.contains("it is down"), "{repaired}");
        house.settle();
        assert!(house.at(1).pings(&address(2), 20));
        end(&house);
    });
}

#[test]
fn a_key_changes_under_a_ping() {
    on_a_node(async |node| {
        let mut house = House::new(node);
        house.settle();
        all_reach_each_other(&house);
        let (before, processes) = (house.at(1).report().public_key, [1, 2, 3].map(|n| house.at(n).device()));
        let streams = [(1, 2), (2, 1), (3, 1), (2, 3)]
            .map(|(from, to)| (from, to, Stream::start(&house.at(from).namespace, &address(to))));

        // Asked for, told to all, and not used before all had their time.
        house.members.get_mut(&member(1)).unwrap().rotations = 1;
        house.until("the next key is told", |house| !house.members[&member(1)].next_public_key.is_empty());
        house.settle();
        let next = house.members[&member(1)].next_public_key.clone();
        assert_eq!(house.at(1).report().public_key, before);
        house.ahead.fetch_add(mesh::SETTLE_MS, Ordering::Relaxed);
        house.until("the next key is in use", |house| house.members[&member(1)].public_key == next);
        house.settle();
        all_reach_each_other(&house);
        assert_eq!(house.at(1).report().next_public_key, "");
        let so_far: Vec<u32> = streams.iter().map(|(_, _, stream)| stream.back()).collect();
        house.until("all streams go on with the new key", |_| {
            streams.iter().zip(&so_far).all(|((_, _, stream), so_far)| stream.back() >= so_far + 20)
        });
        for (from, to, stream) in streams {
            let (sent, back) = stream.stop();
            println!("from {from} to {to}: {} of {sent} lost, one each 10 ms", sent - back);
            assert!(
                sent > 20 && sent.saturating_sub(back) * 2 < sent,
                "from {from} to {to}: {back} of {sent}"
            );
            // Who has nothing to do with that key loses nothing.
            assert!([from, to].contains(&1) || sent - back <= 1, "from {from} to {to}: {back} of {sent}");
        }
        assert_eq!([1, 2, 3].map(|n| house.at(n).device()), processes, "no device ended");
        // Each has one key of the node, the new one.
        for number in [2, 3] {
            let rendered = house.at(number).look()[&member(number)].rendered["mesh.conf"].clone();
            assert!(rendered.contains(&next) && !rendered.contains(&before), "{rendered}");
        }
        end(&house);
    });
}

#[test]
fn who_is_taken_out_is_cut_off_and_a_reboot_needs_no_server() {
    on_a_node(async |node| {
        let mut house = House::new(node);
        house.settle();
        all_reach_each_other(&house);

        // The machine goes down: process, interface, routes and rules are gone; orders and keys are not.
        let key = house.at(2).report().public_key;
        house.at(2).device().end(Duration::from_secs(5)).unwrap();
        house.at(2).run(&["nft", "flush", "ruleset"]);
        let ahead = house.ahead.clone();
        let second = &mut house.machines[1];
        (second.room, second.driver) = agent(second.state.path(), &ahead);
        let now_ms = house.now_ms();
        house.at(2).turn(now_ms).unwrap();
        assert_eq!(house.at(2).report().public_key, key);
        assert_eq!(house.at(2).room.messages(), 1, "all that it holds comes in one message");
        assert!(house.at(2).pings(&address(1), 60) && house.at(1).pings(&address(2), 20));
        // An agent alone that ends and begins again touches nothing.
        let second = &mut house.machines[1];
        (second.room, second.driver) = agent(second.state.path(), &ahead);
        house.settle();
        assert_eq!(house.at(2).room.messages(), 0, "what is as it should be is not touched");

        // The third is taken out, and does not hear of it. The others go on as if nothing were.
        let stream = Stream::start(&house.at(1).namespace, &address(2));
        let messages = house.at(1).room.messages();
        house.members.remove(&member(3));
        for machine in &mut house.machines[..2] {
            machine.orders.get_mut(&member(3)).unwrap().remove = true;
        }
        house.settle_without_third();
        assert_eq!(house.at(1).room.messages() - messages, 1);
        let (sent, back) = stream.stop();
        assert!(sent > 0 && sent - back <= 1, "{back} of {sent}");
        assert!(!house.at(3).pings(&address(1), 3) && !house.at(1).pings(&address(3), 2));
        for machine in &mut house.machines[..2] {
            machine.orders.remove(&member(3));
        }
        end(&house);
    });
}

impl House {
    fn settle_without_third(&mut self) {
        self.until("the third is gone", |house| {
            house.machines[..2].iter().all(|machine| !machine.look().contains_key(&member(3)))
        });
    }
}

/// Nothing is left.
fn end(house: &House) {
    for machine in &house.machines {
        for id in machine.orders.keys() {
            machine.inside(|| machine.driver.take_away(id)).unwrap();
        }
        let rules = machine.run(&["nft", "list", "ruleset"]);
        assert!(!rules.contains("rhyzome"), "{rules}");
        let links = machine.run(&["ip", "link"]);
        assert!(!links.contains(names::MESH_PREFIX), "{links}");
        let state = machine.state.path();
        assert!(!names::mesh_folder(state, &member(machine.number)).exists());
        assert!(!names::wireguard_socket(state, &member(machine.number)).exists());
    }
    std::io::stdout().flush().unwrap();
}
