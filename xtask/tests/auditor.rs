//! The auditor is audited: one leftover of each kind is planted, and seen. Needs root.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use xtask::leftovers::{Snapshot, compare};
use xtask::run;

/// Takes the namespace away, however the test ends.
struct Namespace(String);

impl Namespace {
    fn make(mark: &str) -> Namespace {
        let name = format!("audit-{mark}-{}", std::process::id());
        run::output(&mut run::words(&format!("ip netns add {name}"))).unwrap();
        Namespace(name)
    }

    fn run(&self, line: &str) {
        run::output(&mut run::words(&format!("ip netns exec {} {line}", self.0))).unwrap();
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = run::output(&mut run::words(&format!("ip netns delete {}", self.0)));
    }
}

/// A process, ended however the test ends.
struct Sleeper(Child);

impl Sleeper {
    fn start(command: &mut Command) -> Sleeper {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        // For an instant a new program has no command line yet.
        while xtask::procfs::look(child.id().cast_signed()).is_none() {
            std::thread::yield_now();
        }
        Sleeper(child)
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn found(before: &Snapshot, folder: &Path, what: &str) {
    let left = compare(before, &Snapshot::take(folder).unwrap());
    assert!(left.iter().any(|line| line.contains(what)), "{what} was not found: {left:#?}");
}

#[test]
fn every_kind_of_leftover_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let take = || Snapshot::take(folder).unwrap();

    let before = take();
    let named = Sleeper::start(Command::new("cat").arg("-").arg(folder.join("guest.qcow2")));
    found(&before, folder, &format!("process {}: cat -", named.0.id()));
    drop(named);
    let inside = Sleeper::start(Command::new("cat").current_dir(folder));
    found(&before, folder, &format!("process {}: cat", inside.0.id()));
    drop(inside);

    let space = Namespace::make("own");
    found(&before, folder, &format!("namespace {}", space.0));
    found(&before, folder, &format!("interface lo (plain) in {}", space.0));

    let before = take();
    space.run("ip link add left0 type bridge");
    found(&before, folder, &format!("interface left0 (bridge) in {}", space.0));
    space.run("nft add table inet left");
    found(&before, folder, &format!("\"name\":\"left\"}}}} in {}", space.0));

    let before = take();
    fs::create_dir(folder.join("networks")).unwrap();
    fs::write(folder.join("networks/dnsmasq.leases"), "1732 52:54:00:00:00:01 10.0.0.5 web *\n").unwrap();
    found(&before, folder, "file networks/dnsmasq.leases");
    found(&before, folder, "lease 52:54:00:00:00:01 10.0.0.5 web *");
}

#[test]
fn what_anothers_process_uses_is_anothers() {
    let folder = tempfile::tempdir().unwrap();
    let before = Snapshot::take(folder.path()).unwrap();
    let space = Namespace::make("other");
    let mut other = Command::new("ip");
    let other = Sleeper::start(other.args(["netns", "exec", &space.0, "cat"]));
    let entered = || {
        let inside = fs::read_link(format!("/proc/{}/ns/net", other.0.id())).ok();
        inside.is_some() && inside != fs::read_link("/proc/self/ns/net").ok()
    };
    while !entered() {
        std::thread::yield_now();
    }
    let left = compare(&before, &Snapshot::take(folder.path()).unwrap());
    assert!(!left.iter().any(|line| line.contains(&space.0)), "{left:#?}");
}
