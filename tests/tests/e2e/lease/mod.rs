//! Two agents on machines of their own (namespaces, as far as networks go) that share a folder: a guest that is restarted
//! elsewhere goes on there with what it has on its disk, and never runs on both, whatever becomes of a line or an agent.
//! Who writes to the disk is seen by a poller that asks nobody but the kernel.

pub mod machines;
mod poller;

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use xtask::procfs;

use super::house::{House, Process, alone, path_of, until};
use machines::Machines;
use poller::Poller;

/// A first script that counts on the disk, now and after every boot: what was shown is on the disk.
pub const COUNTS: &str = r##"#!/bin/sh
cat >/var/lib/cloud/scripts/per-boot/count <<'END'
#!/bin/sh
(
    while :; do
        count=$(($(cat /root/count 2>/dev/null || echo 0) + 1))
        echo $count >/root/count.new && sync && mv /root/count.new /root/count && sync
        echo "count $count"
        usleep 200000
    done
) >/dev/console 2>&1 &
END
chmod +x /var/lib/cloud/scripts/per-boot/count
/var/lib/cloud/scripts/per-boot/count
"##;

/// A lease, its watch, and the boot of a guest on a busy machine.
const MOVED: u64 = 300;
/// A lease, and what a look takes.
const STOPPED: u64 = 90;

struct Story {
    house: House,
    web: Value,
    disk: PathBuf,
}

impl Story {
    fn id(&self) -> &str {
        self.web["id"].as_str().unwrap()
    }

    fn state(&self, node: &str) -> PathBuf {
        self.house.world.state_of(node)
    }

    /// Processes of the guest that the agent of this node has started.
    fn guests(&self, node: &str, id: &str) -> Vec<Process> {
        let seen = procfs::of(&self.state(node)).into_iter();
        let guests = seen.filter(|it| it.argv[0].contains("qemu-system") && it.line().contains(id));
        guests.map(|it| Process::of(it.pid)).collect()
    }

    fn guards(&self, node: &str) -> usize {
        let seen = procfs::of(&self.state(node)).into_iter();
        seen.filter(|it| it.argv.get(1).is_some_and(|word| word == "guard")).count()
    }

    /// What it has counted, as its console on this node says.
    fn counts(&self, node: &str) -> Vec<u64> {
        let file = self.state(node).join("instances").join(self.id()).join("console.log");
        let console = std::fs::read(file).unwrap_or_default();
        let console = String::from_utf8_lossy(&console).into_owned();
        let lines = console.lines().filter_map(|line| line.trim().strip_prefix("count ")?.parse().ok());
        lines.collect()
    }

    fn await_counts(&self, node: &str, seconds: u64) -> Vec<u64> {
        until(&format!("a guest that counts on {node}"), seconds, || {
            Some(self.counts(node)).filter(|counts| counts.len() >= 3)
        })
    }

    fn node(&self) -> String {
        let node = self.house.get(&path_of(&self.web))["status"]["node"].as_str().unwrap().to_owned();
        self.house.get(&format!("/v1/nodes/{node}"))["name"].as_str().unwrap().to_owned()
    }

    fn await_phase(&self, path: &str, phase: &str, seconds: u64) {
        self.house.wait_for(path, phase, seconds, |it| it["phase"] == phase);
    }

    /// It goes on on this node where it was stopped on the other.
    fn goes_on(&self, from: &[u64], node: &str) {
        let counts = self.await_counts(node, MOVED);
        let (last, first) = (*from.last().unwrap(), counts[0]);
        // One more may have been counted than could be shown.
        assert!((last + 1..=last + 2).contains(&first), "it counted to {last}, then from {first}");
        assert_eq!(self.node(), node);
        self.await_phase(&path_of(&self.web), "running", 60);
    }
}

fn other(node: &str) -> &'static str {
    if node == "node1" { "node2" } else { "node1" }
}

/// Another QEMU that opens the disk; what it says when it ends.
fn second_qemu(disk: &Path) -> String {
    let block = format!("driver=qcow2,node-name=d,file.driver=file,file.filename={}", disk.display());
    let words = ["-machine", "q35,accel=tcg", "-nodefaults", "-display", "none", "-S", "-blockdev", &block];
    let output = Command::new("timeout")
        .args(["30", "qemu-system-x86_64"])
        .args(words)
        .args(["-device", "virtio-blk-pci,drive=d"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "it was not refused: {output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn what_is_restarted_elsewhere_never_runs_on_both() {
    let turn = alone();
    let mut machines = Machines::new(["node1", "node2"]);
    let mut house = House::with(turn, |options| {
        options.nodes = Vec::new();
        options.grpc = Some(machines.server());
        options.config = json!({"grpc": {"names": machines.names()}});
        options.around = machines.around();
        options.agent_arguments = vec!["--accelerator".into(), "tcg".into()];
    });
    house.world.add_node("node1").unwrap();
    house.world.add_node("node2").unwrap();
    house.import_tiny();
    let shared = machines::shared_folder(&house.world.folder);
    let pool = json!({"driver": "dir", "path": shared.display().to_string(), "shared": true});
    house.make("/v1/storage-pools", json!({"name": "everywhere", "spec": pool}));
    let refused = json!({"name": "no", "spec": {"image": "tiny", "ha": "restart"}});
    let refused = house.call("POST", "/v1/tenants/default/instances", refused).problem(422, "invalid");
    assert_eq!(refused.fields(), ["spec.ha"]);

    let spec = json!({"user_data": COUNTS, "ha": "restart", "root": {"pool": "everywhere"}});
    let web = house.make_instance("default", "web", spec);
    let disk = shared.join(format!("{}.qcow2", web["status"]["root_disk"].as_str().unwrap()));
    let mut story = Story { house, web, disk };
    let (first, second) = (story.node(), other(&story.node()));
    let plain = json!({"root": {"pool": "everywhere"}, "placement": {}, "node": first});
    let plain = story.house.make_instance("default", "plain", plain);
    let plain_id = plain["id"].as_str().unwrap().to_owned();
    story.await_counts(&first, MOVED);
    assert_eq!((story.guards(&first), story.guards(second)), (1, 0));
    let poller = Poller::of(&story.disk);
    until("its first writer", 10, || (poller.now().len() == 1).then_some(()));
    assert!(second_qemu(&story.disk).contains("lock"), "refused for another reason");

    // The line of its node is cut.
    let plain_before = story.guests(&first, &plain_id);
    assert_eq!(plain_before.len(), 1);
    machines.cut(&first);
    until("the end of the guest", STOPPED, || story.guests(&first, story.id()).is_empty().then_some(()));
    let counted = story.counts(&first);
    story.goes_on(&counted, second);
    story.await_phase(&path_of(&plain), "unknown", 60);
    assert_eq!(story.guests(&first, &plain_id), plain_before, "what is not marked goes on");
    // And is there again.
    machines.mend(&first);
    story.await_phase(&path_of(&plain), "running", 120);
    let folder = story.state(&first).join("instances").join(story.id());
    until("the old node to let go", 120, || (!folder.exists()).then_some(()));
    assert_eq!(story.guests(&first, &plain_id), plain_before);
    assert_eq!(story.guests(&first, story.id()), []);
    until("the end of the first guard", 30, || (story.guards(&first) == 0).then_some(()));

    // The agent of its new node stands still: the guard ends the guest.
    let index = usize::from(second == "node2");
    let agent = story.house.world.agents[index].pid().unwrap();
    procfs::signal(agent, Signal::SIGSTOP);
    until("the end of the guest", STOPPED, || story.guests(second, story.id()).is_empty().then_some(()));
    let counted = story.counts(second);
    // It ends the guest before it says so.
    let log = story.state(second).join("lease/guard.log");
    until("the guard's word", 10, || {
        let log = std::fs::read_to_string(&log).unwrap();
        log.contains("the node's lease is over: ended process").then_some(())
    });
    story.goes_on(&counted, &first);
    procfs::signal(agent, Signal::SIGCONT);
    let folder = story.state(second).join("instances").join(story.id());
    until("the other node to let go", 120, || (!folder.exists()).then_some(()));
    assert_eq!(story.guests(second, story.id()), []);
    let holder = std::fs::read_to_string(story.disk.with_extension("holder")).unwrap();
    assert_eq!(holder.trim(), format!("{} 1 3", story.id()), "by its third placement");

    // The agent is killed, and comes back before the lease ends: its guest does not notice.
    let index = usize::from(first == "node2");
    let before = story.guests(&first, story.id());
    story.house.world.agents[index].kill9().unwrap();
    story.house.world.restart_agent(index).unwrap();
    let counts = story.counts(&first).len();
    until("it to count on", 60, || (story.counts(&first).len() > counts + 3).then_some(()));
    assert_eq!(story.guests(&first, story.id()), before);
    // It is killed, and does not come back: the guard ends the guest.
    story.house.world.agents[index].kill9().unwrap();
    until("the end of the guest", STOPPED, || story.guests(&first, story.id()).is_empty().then_some(()));
    assert_eq!(story.guests(&first, &plain_id), plain_before);

    let seen = poller.end();
    assert_eq!(seen.most, 1, "more than one had it open at once: {:?}", seen.changes);
    assert_eq!(seen.writers.len(), 3, "{:?}", seen.changes);
    assert!(seen.looks > 1000, "{}", seen.looks);
    story.house.world.restart_agent(index).unwrap();
    for path in [path_of(&story.web), path_of(&plain)] {
        story.house.delete(&path);
    }
    until("the end of all guards", 60, || (story.guards("node1") + story.guards("node2") == 0).then_some(()));
    assert_eq!(std::fs::read_dir(&shared).unwrap().count(), 0, "something is left in the pool");
}
