//! A machine of its own for each test, and guests that speak raw frames on a tap.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test program uses its part, and a failure here fails the test"
)]

pub mod frames;
pub mod guest;
pub mod tunnel;

use rhyzome_agent::drivers::network::{DesiredNetwork, NetworkDriver, Port};
use rhyzome_agent::host::netns;
use rhyzome_agent::names;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// How long anything may take before a test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Runs `test` on a thread whose network namespace stands for the node's own one.
pub fn on_a_node(test: impl AsyncFnOnce(&Node) + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let node = Node::new();
                test(&node).await;
            });
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// The node: a folder and a driver. Takes all of its networks away at its end, also when a test fails.
pub struct Node {
    pub state: tempfile::TempDir,
    pub driver: NetworkDriver,
}

impl Node {
    pub fn new() -> Self {
        run(&["ip", "link", "set", "lo", "up"]);
        let state = tempfile::tempdir().unwrap();
        let driver = NetworkDriver::new(state.path());
        Self { state, driver }
    }

    /// Everything on this node that a network could leave behind.
    pub fn traces(&self) -> String {
        let state = self.state.path().display().to_string();
        let mut traces = interfaces(&run(&["ip", "-j", "link"]));
        traces += &run(&["nft", "-j", "list", "ruleset"]);
        for namespace in netns::list(names::NAMESPACE_PREFIX).unwrap() {
            // Other tests have namespaces too.
            if ours(self.state.path(), &namespace) {
                let inside = interfaces(&run(&["ip", "-n", &namespace, "-j", "link"]));
                traces += &format!("\n{namespace}: {inside}");
            }
        }
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let words = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            if words.contains(&state) {
                traces += &format!("\nprocess {}", words.replace('\0', " "));
            }
        }
        traces += &run(&["find", &state, "-mindepth", "2"]);
        traces
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The runtime may be the one that is unwinding: a new one, on a thread of its own in the same namespace.
        let driver = self.driver.clone();
        let done = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                for network in driver.observe().await.unwrap() {
                    driver.remove(&network.id).await.unwrap();
                }
            });
        });
        if done.join().is_err() && !std::thread::panicking() {
            panic!("the test's networks could not be taken away");
        }
    }
}

/// Which interfaces there are. Whether a cable is in may change while one looks.
fn interfaces(json: &str) -> String {
    let links: Vec<serde_json::Value> = serde_json::from_str(json).unwrap();
    links.iter().map(|link| format!("{} {} {};", link["ifname"], link["address"], link["master"])).collect()
}

fn ours(state: &Path, namespace: &str) -> bool {
    let folders = std::fs::read_dir(state.join("networks")).into_iter().flatten().flatten();
    folders.into_iter().any(|folder| names::namespace(&folder.file_name().to_string_lossy()) == namespace)
}

/// A network with a fresh id, of `10.0.0.0/24`, and `guests` ports.
pub fn network(guests: u8) -> DesiredNetwork {
    let mut random = [0u8; 16];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom").unwrap(), &mut random).unwrap();
    let id: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let id = format!("net_{id}");
    let mut network = DesiredNetwork {
        id: id.clone(),
        cidr: "10.0.0.0/24".parse().unwrap(),
        gateway: Ipv4Addr::new(10, 0, 0, 1),
        nat: true,
        dns: vec!["192.0.2.1".parse().unwrap()],
        domain: "lan.example".into(),
        ports: Vec::new(),
    };
    for number in 1..=guests {
        network.ports.push(port(&id, number));
    }
    network
}

/// The port of guest `number`: `10.0.0.(10 + number)`.
pub fn port(network_id: &str, number: u8) -> Port {
    let instance_id = format!("inst_{number}_{network_id}");
    Port {
        tap: names::tap(&instance_id, "lan"),
        instance_id,
        nic: "lan".into(),
        mac: format!("52:54:00:00:00:{number:02x}"),
        address: Ipv4Addr::new(10, 0, 0, 10 + number),
        hostname: format!("web-{number}"),
    }
}

/// Runs a program in this thread's namespace and answers what it printed.
#[track_caller]
pub fn run(words: &[&str]) -> String {
    let output = Command::new(words[0])
        .args(&words[1..])
        .output()
        .unwrap_or_else(|error| panic!("{} cannot be started ({error}): these tests need it", words[0]));
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until `condition` holds.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The process number of the dnsmasq that serves the network.
pub fn dnsmasq_pid(state: &Path, network_id: &str) -> i32 {
    let file = names::network_folder(state, network_id).join("dnsmasq.pid");
    std::fs::read_to_string(file).unwrap().trim().parse().unwrap()
}
