//! What was changed behind the agent's back, and what nobody ordered: seen, shown, put right where that is safe, and no
//! guest touched. And a node that comes back alone.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use xtask::procfs;
use xtask::world::namespace_of;

use super::house::{BOOT, House, Process, SCRIPT, alone, nic, path_of, until};

const DRIFT: &str = "/v1/nodes/node1/drift";
const GUESTS: &str = "/v1/nodes/node1/guests";
/// Networks are compared every 30 seconds, everything else more often; the machine may be busy.
const SEEN: u64 = 90;

/// A guest of somebody else.
struct Foreign(Child);

impl Foreign {
    /// Its processors stand still: it is only there.
    fn start() -> Foreign {
        let words = ["-name", "mail-of-somebody", "-nodefaults", "-display", "none", "-m", "16", "-S"];
        let mut command = Command::new("qemu-system-x86_64");
        Foreign(command.args(words).stdin(Stdio::null()).spawn().unwrap())
    }

    fn end(&mut self) {
        // Gone already is as good.
        let _ = self.0.kill();
        self.0.wait().unwrap();
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        self.end();
    }
}

fn items(house: &House, path: &str) -> Vec<Value> {
    house.get(path)["items"].as_array().unwrap().clone()
}

/// Waits for a difference of this kind that says this; the difference.
fn difference(house: &House, what: &str, says: &str) -> Value {
    until(&format!("{what} with {says:?}, not {:#?}", items(house, DRIFT)), SEEN, || {
        let mut all = items(house, DRIFT).into_iter();
        all.find(|one| one["what"] == what && one.to_string().contains(says))
    })
}

fn inside(namespace: &str, words: &[&str]) {
    let status = Command::new("ip").args(["netns", "exec", namespace]).args(words).status().unwrap();
    assert!(status.success(), "{words:?}");
}

#[test]
fn what_was_changed_by_hand_is_shown_and_no_guest_is_touched() {
    let house = House::new();
    let before = house.snapshot();
    house.import_tiny();
    let web = house.make_instance("default", "web", json!({"user_data": SCRIPT}));
    let id = web["id"].as_str().unwrap();
    let uptime = house.await_page(&web, |_| true).uptime();
    let qemu = house.qemu(id);
    let network = nic(&web)["network"].as_str().unwrap().to_owned();
    let guests = until("the guest to be known", SEEN, || {
        Some(items(&house, GUESTS)).filter(|all| all.iter().any(|guest| guest["instance"] == id))
    });
    let known = guests.iter().find(|guest| guest["instance"] == id).unwrap();
    assert_eq!((&known["state"], &known["pid"]), (&json!("known"), &json!(qemu.pid)), "{known:#}");
    let mine = |one: &Value| one["object"] == id || one["object"] == network.as_str();
    assert_eq!(items(&house, DRIFT).into_iter().filter(mine).collect::<Vec<_>>(), Vec::<Value>::new());

    // The operator's own folders are the operator's. All else is somebody's hand.
    let (instance, networks) = (house.state().join("instances").join(id), house.state().join("networks"));
    fs::write(instance.join("drop-in/own.args"), "# mine\n").unwrap();
    fs::write(networks.join(&network).join("drop-in/own.conf"), "# mine\n").unwrap();
    let namespace = namespace_of(&network);
    inside(&namespace, &["nft", "add", "rule", "inet", "rhyzome", "input", "tcp", "dport", "2222", "accept"]);
    inside(&namespace, &["ip", "link", "set", "br0", "down"]);
    let hosts = networks.join(&network).join("hosts");
    fs::write(&hosts, "10.9.9.9 evil\n").unwrap();
    let command = fs::read_to_string(instance.join("command")).unwrap();
    fs::write(instance.join("command"), format!("{command} -snapshot\n")).unwrap();
    let mut foreign = Foreign::start();

    // What can be put right safely was put right, and is told.
    for (what, says) in [("network.links", "br0"), ("network.rules", "2222"), ("network.file", "hosts")] {
        let repaired = difference(&house, what, says);
        assert!(repaired["repaired_at"].is_string(), "{repaired:#}");
    }
    assert!(!fs::read_to_string(&hosts).unwrap().contains("evil"));
    assert!(house.page(&web).unwrap().uptime() > uptime);

    // What waits for an operator waits.
    let edited = difference(&house, "guest.file", "command");
    assert_eq!((&edited["repaired_at"], &edited["object"]), (&Value::Null, &json!(id)), "{edited:#}");
    let stranger = difference(&house, "guest.foreign", "mail-of-somebody");
    let words = |name: &str, verb: &str, of: &Value| {
        let id = of["id"].as_str().unwrap().to_owned();
        house.world.said(&["node", name, verb, "node1", &id]).unwrap()
    };
    words("drift", "repair", &edited);
    until("the file to be as it was", SEEN, || {
        (fs::read_to_string(instance.join("command")).unwrap() == command).then_some(())
    });
    until("the difference to be gone", SEEN, || {
        items(&house, DRIFT).iter().all(|one| one["what"] != "guest.file").then_some(())
    });
    let said = words("drift", "adopt", &stranger);
    assert!(said.contains("guest.foreign"), "{said}");
    let table = house.world.said(&["node", "guests", "node1"]).unwrap();
    assert!(
        table.contains("mail-of-somebody") && table.contains("foreign") && table.contains("known"),
        "{table}"
    );
    let table = house.world.said(&["node", "drift", "node1"]).unwrap();
    assert!(table.contains("network.rules") && table.contains("adopt by"), "{table}");

    // Nobody was touched: not the foreign guest, not ours.
    assert!(foreign.0.try_wait().unwrap().is_none(), "the foreign guest was ended");
    assert_eq!(house.qemu(id), qemu, "the guest was started again");
    foreign.end();
    until("the record to say that it is gone", SEEN, || {
        items(&house, GUESTS).iter().any(|guest| guest["state"] == "gone").then_some(())
    });
    words("drift", "forget", &stranger);
    assert!(items(&house, GUESTS).iter().all(|guest| guest["state"] != "gone"));
    for own in [instance.join("drop-in/own.args"), networks.join(&network).join("drop-in/own.conf")] {
        assert_eq!(fs::read_to_string(own).unwrap(), "# mine\n");
    }
    let drop_in = items(&house, DRIFT).into_iter().filter(|one| one.to_string().contains("own."));
    assert_eq!(drop_in.count(), 0, "the operator's own folder is no drift");
    house.delete(&path_of(&web));
    house.nothing_left(&before);
}

/// What a machine loses when it goes down: processes, links, namespaces, sockets. Its disk stays.
fn goes_down(house: &mut House, boot: &str) {
    house.world.agents[0].kill9().unwrap();
    let mut seen = procfs::of(&house.world.folder);
    seen.retain(|it| it.argv[0].contains("qemu-system") || it.argv[0].contains("dnsmasq"));
    for it in &seen {
        procfs::signal(it.pid, nix::sys::signal::Signal::SIGKILL);
    }
    until("all of its processes to be gone", 30, || {
        let here = procfs::of(&house.world.folder);
        seen.iter().all(|gone| here.iter().all(|it| it.pid != gone.pid)).then_some(())
    });
    for network in fs::read_dir(house.state().join("networks")).unwrap().flatten() {
        let namespace = namespace_of(network.file_name().to_str().unwrap());
        if PathBuf::from("/run/netns").join(&namespace).exists() {
            let status = Command::new("ip").args(["netns", "delete", &namespace]).status().unwrap();
            assert!(status.success());
        }
    }
    for sockets in fs::read_dir(house.state().join("run")).unwrap().flatten() {
        fs::remove_dir_all(sockets.path()).unwrap();
    }
    fs::write(house.world.folder.join("agent.json"), json!({"pretend": boot}).to_string()).unwrap();
}

#[test]
fn a_node_comes_back_alone_with_what_should_run_and_nothing_that_was_stopped() {
    let mut house = House::with(alone(), |options| {
        let file = options.folder.join("agent.json");
        fs::write(&file, json!({"pretend": "the-first-boot"}).to_string()).unwrap();
        options.agent_arguments = vec!["--config".into(), file.display().to_string()];
    });
    let before = house.snapshot();
    house.import_tiny();
    let runs = house.make_instance("default", "runs", json!({"user_data": SCRIPT}));
    let rests = house.make_instance("default", "rests", json!({}));
    house.await_page(&runs, |_| true);
    house.act(&path_of(&rests), "stop", json!({"mode": "hard"}));
    let (id, resting) = (runs["id"].as_str().unwrap().to_owned(), rests["id"].as_str().unwrap().to_owned());
    let qemu = house.qemu(&id);

    house.world.server.kill9().unwrap();
    goes_down(&mut house, "the-second-boot");
    assert!(house.qemus("").is_empty());
    house.world.agents[0].start().unwrap();
    let page = house.await_page(&runs, |page| page.word("boots") == "2");
    assert_eq!((page.word("host"), page.word("runs")), ("runs", "1"));
    assert!(!house.world.is_healthy(), "the server was not there");
    let again: Process = house.qemu(&id);
    assert_ne!(again, qemu);
    assert!(house.qemus(&resting).is_empty(), "what was stopped was started");

    // The server finds all of it as it left it; a reboot is no crash of the guest.
    house.world.restart_server().unwrap();
    house.world.await_node(0).unwrap();
    let found = house.wait_for(&path_of(&runs), "running", BOOT, |object| object["phase"] == "running");
    assert_eq!(found["status"]["restarts"], 0, "{found:#}");
    house.wait_for(&path_of(&rests), "stopped", BOOT, |object| object["phase"] == "stopped");
    assert_eq!(house.qemu(&id), again);
    house.delete(&path_of(&runs));
    house.delete(&path_of(&rests));
    house.nothing_left(&before);
}

/// As after `hostnamectl hostname NAME`, and a restart of the agent.
fn comes_back_as(house: &mut House, name: &str) {
    house.world.agents[0].kill9().unwrap();
    // A name of its own for this thread, and for what it starts.
    std::thread::scope(|scope| {
        let renamed = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUTS).unwrap();
            assert!(Command::new("hostname").arg(name).status().unwrap().success());
            house.world.agents[0].start().unwrap();
        });
        renamed.join().unwrap();
    });
}

/// The folder of a node on another machine: nothing is done there, and both ends say why. Another name is no other
/// machine.
#[test]
fn a_copy_of_a_nodes_folder_does_nothing() {
    let mut house = House::with(alone(), |options| {
        let file = options.folder.join("agent.json");
        fs::write(&file, json!({"pretend": "/the-machine"}).to_string()).unwrap();
        options.agent_arguments = vec!["--config".into(), file.display().to_string()];
    });
    let before = house.snapshot();
    house.import_tiny();
    let web = house.make_instance("default", "web", json!({}));
    let id = web["id"].as_str().unwrap().to_owned();
    let qemu = house.qemu(&id);
    let file = house.world.folder.join("agent.json");

    comes_back_as(&mut house, "renamed");
    until("the machine's new name", 60, || {
        let node = house.get("/v1/nodes/node1");
        (node["status"]["hostname"] == "renamed" && node["status"]["connected"] == true).then_some(())
    });
    assert_eq!(house.qemu(&id), qemu, "the guest of a renamed machine was touched");
    assert!(house.get("/v1/nodes/node1")["status"]["refused"].is_null());

    // The same folder wakes up as another machine, where the guest does not run.
    house.world.agents[0].kill9().unwrap();
    qemu.kill9();
    fs::write(&file, json!({"pretend": "/the-clone"}).to_string()).unwrap();
    house.world.agents[0].start().unwrap();
    let refused = until("the clone to be refused", 60, || {
        let node = house.get("/v1/nodes/node1");
        Some(node["status"]["refused"].clone()).filter(|refused| refused["reason"] == "cloned-state")
    });
    assert_eq!(refused["machine"], "the-clone", "{refused:#}");
    assert!(house.qemus(&id).is_empty(), "the clone started a guest");
    let agent = xtask::world::binaries().unwrap().join("rhyzome-agent");
    let status = Command::new(agent).arg("status").arg("--state-dir").arg(house.state()).output().unwrap();
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("cloned-state") && status.contains("rhyzome node repair"), "{status}");

    // An operator says that it is the node from now on: then it does what a node does.
    house.world.said(&["node", "repair", "node1", "--machine", "the-clone"]).unwrap();
    house.wait_for(&path_of(&web), "running again", BOOT, |object| {
        object["phase"] == "running" && !house.qemus(&id).is_empty()
    });
    assert_eq!(house.get("/v1/nodes/node1")["status"]["machine"], "the-clone");
    house.delete(&path_of(&web));
    house.nothing_left(&before);
}
