//! A mesh of two nodes: a real server, two real agents on machines of their own, and packets between them. Keys change
//! under a ping, a reboot needs no server, and who is taken out is cut off.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use xtask::procfs;

use super::house::{House, alone, until};
use super::lease::machines::Machines;

const MEMBERS: &str = "/v1/mesh-members";
/// The rest of a rotation, after what others are given to hear of it.
const ROTATED: u64 = 60;

struct Story {
    house: House,
    /// What brings a command onto each machine.
    onto: Vec<Vec<String>>,
}

/// A packet every 20 ms until it is stopped.
struct Stream(Child);

impl Stream {
    /// How many were sent and how many came back.
    fn stop(self) -> (u32, u32) {
        procfs::signal(self.0.id().cast_signed(), Signal::SIGINT);
        let said = String::from_utf8(self.0.wait_with_output().unwrap().stdout).unwrap();
        let line = said.lines().find(|line| line.contains("packets transmitted")).unwrap();
        let mut words = line.split(", ").map(|part| part.split(' ').next().unwrap().parse().unwrap());
        (words.next().unwrap(), words.next().unwrap())
    }
}

impl Story {
    fn on(&self, index: usize, words: &[&str]) -> Command {
        let mut command = Command::new(&self.onto[index][0]);
        command.args(&self.onto[index][1..]).args(words).stdin(Stdio::null());
        command
    }

    fn pings(&self, index: usize, address: &str) -> bool {
        let mut ping = self.on(index, &["ping", "-c1", "-W1", address]);
        ping.stdout(Stdio::null()).status().unwrap().success()
    }

    fn stream(&self, index: usize, address: &str) -> Stream {
        let mut ping = self.on(index, &["ping", "-i", "0.02", "-q", address]);
        Stream(ping.stdout(Stdio::piped()).spawn().unwrap())
    }

    fn key(&self, name: &str) -> String {
        let member = self.house.get(&format!("{MEMBERS}/{name}"));
        member["status"]["public_key"].as_str().unwrap().to_owned()
    }

    fn devices(&self, node: &str) -> Vec<i32> {
        let seen = procfs::of(&self.house.world.state_of(node)).into_iter();
        let devices = seen.filter(|it| it.argv.get(1).is_some_and(|word| word == "wireguard-device"));
        devices.map(|it| it.pid).collect()
    }
}

fn run(words: &str) {
    let words: Vec<&str> = words.split(' ').collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Two machines with a cable between them that nobody should trust.
fn story(machines: &Machines, turn: super::house::Turn) -> Story {
    let around = machines.around();
    let pids: Vec<String> = around.iter().map(|(_, words)| words[2].clone()).collect();
    run(&format!("ip link add wild0 netns {} type veth peer name wild0 netns {}", pids[0], pids[1]));
    for (number, pid) in (1..).zip(&pids) {
        run(&format!("nsenter -t {pid} -n ip address add 192.0.2.{number}/24 dev wild0"));
        run(&format!("nsenter -t {pid} -n ip link set wild0 up"));
    }
    let onto =
        pids.iter().map(|pid| ["nsenter", "-t", pid, "-n", "--"].map(str::to_owned).to_vec()).collect();
    let mut house = House::with(turn, |options| {
        options.nodes = Vec::new();
        options.grpc = Some(machines.server());
        options.config = json!({"grpc": {"names": machines.names()}});
        options.around = around;
    });
    for node in ["node1", "node2"] {
        house.world.add_node(node).unwrap();
        house.wait_for(&format!("/v1/nodes/{node}"), "WireGuard", 60, |node| {
            let all = node["status"]["capabilities"].as_array().into_iter().flatten();
            all.into_iter().any(|one| one["name"] == "wireguard" && one["available"] == true)
        });
    }
    Story { house, onto }
}

#[test]
fn two_nodes_speak_through_a_mesh_that_keeps_its_own_keys() {
    let turn = alone();
    let machines = Machines::new(["node1", "node2"]);
    let mut story = story(&machines, turn);
    story.house.make("/v1/meshes", json!({"name": "backbone", "spec": {"prefix": "10.98.0.0/24"}}));
    for number in 1..=2 {
        let spec = json!({"mesh": "backbone", "node": format!("node{number}"), "endpoint": format!("192.0.2.{number}")});
        story.house.make(MEMBERS, json!({"name": format!("m{number}"), "spec": spec}));
    }
    until("a ping through the mesh", 60, || story.pings(0, "10.98.0.2").then_some(()));
    assert!(story.pings(1, "10.98.0.1"));
    let path = format!("{MEMBERS}/m1");
    let seen = story.house.wait_for(&path, "a peer", 90, |member| {
        member["status"]["peers"]["node2"]["last_handshake_at"].is_string()
    });
    assert_eq!(seen["status"]["peers"]["node2"]["endpoint"], "192.0.2.2:51820", "{seen:#}");
    let rendered = story.house.get(&format!("{path}/rendered")).to_string();
    assert!(rendered.contains(&story.key("m2")) && rendered.contains("never leaves the node"), "{rendered}");

    // Another key, under a ping in each direction.
    let (before, there, back) = (story.key("m1"), story.stream(0, "10.98.0.2"), story.stream(1, "10.98.0.1"));
    story.house.act(&path, "rotate", Value::Null);
    story.house.wait_for(&path, "another key", ROTATED, |member| {
        let status = &member["status"];
        status["public_key"] != before && status["next_public_key"].is_null()
    });
    until("a ping by the other key", 30, || story.pings(0, "10.98.0.2").then_some(()));
    for (what, stream) in [("from it", there), ("to it", back)] {
        let (sent, back) = stream.stop();
        println!("{what}: {} of {sent} lost, one each 20 ms", sent - back);
        assert!(sent > 100 && sent - back <= 100, "{what}: {back} of {sent}");
    }

    // The machine of the second one comes up again while there is no server.
    let key = story.key("m2");
    story.house.world.agents[1].kill9().unwrap();
    story.house.world.server.terminate(Duration::from_secs(30)).unwrap();
    let devices = story.devices("node2");
    assert_eq!(devices.len(), 1, "one device, in a process of its own");
    procfs::signal(devices[0], Signal::SIGKILL);
    until("the end of the device", 20, || story.devices("node2").is_empty().then_some(()));
    assert!(!story.pings(0, "10.98.0.2"));
    story.house.world.agents[1].start().unwrap();
    until("a ping without a server", 60, || story.pings(0, "10.98.0.2").then_some(()));
    assert!(story.pings(1, "10.98.0.1"));
    story.house.world.restart_server().unwrap();
    story.house.wait_for("/v1/nodes/node2", "ready", 60, |node| node["phase"] == "ready");
    assert_eq!(story.key("m2"), key, "it has kept its key");

    // Revoked: cut off at once, though it hears of nothing.
    story.house.call("POST", "/v1/nodes/node2/actions/revoke", Value::Null).one_of(&[200, 202, 204]);
    until("the other to let go", 30, || (!story.pings(0, "10.98.0.2")).then_some(()));
    assert!(!story.pings(1, "10.98.0.1"));
    assert_eq!(story.devices("node2").len(), 1);
    story.house.delete(&path);
    until("nothing to be left", 30, || story.devices("node1").is_empty().then_some(()));
    let rules = story.on(0, &["nft", "list", "ruleset"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&rules.stdout).contains("rhyzome-mesh"));
    // Of the one that cannot be told any more nobody else ends it.
    story.house.world.agents[1].kill9().unwrap();
    for pid in story.devices("node2") {
        procfs::signal(pid, Signal::SIGKILL);
    }
}
