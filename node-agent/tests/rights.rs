//! The network driver works with the few rights that the agent keeps, as a user who is not root. A program of its own
//! without a test harness: rights are dropped before the first thread.
#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

mod support;

use rhyzome_agent::drivers::network::NetworkDriver;
use rhyzome_agent::host::netns;
use rhyzome_agent::privileges::{Standing, become_user};
use rhyzome_agent::wireguard::engine::Wanted;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// Debian and Alpine both have it, and it owns nothing.
const USER: &str = "nobody";

fn main() {
    let words: Vec<String> = std::env::args().collect();
    match words.iter().position(|word| word == "--as-user") {
        Some(at) => as_user(Path::new(&words[at + 1])),
        None if words.iter().any(|word| word == "--list") => println!("networks_without_root: test"),
        None => as_root(),
    }
}

/// Prepares a folder, and puts what is lent to the user back as it was: a test leaves nothing.
fn as_root() {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root");
    netns::prepare_folder().unwrap();
    let lent = [netns::FOLDER, "/dev/net/tun", "/dev/kvm"];
    let before = lent.map(|path| std::fs::metadata(path).ok());
    let outer = tempfile::tempdir().unwrap();
    std::fs::set_permissions(outer.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let state = outer.path().join("state");
    let own = std::env::current_exe().unwrap();
    let status = std::process::Command::new(own).arg("--as-user").arg(&state).status();
    for (path, before) in lent.iter().zip(before) {
        let Some(before) = before else { continue };
        std::os::unix::fs::chown(path, Some(before.uid()), Some(before.gid())).unwrap();
        std::fs::set_permissions(path, before.permissions()).unwrap();
    }
    // Only a failed run left something to take away.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let driver = NetworkDriver::new(&state);
        for network in driver.observe().await.unwrap() {
            driver.remove(&network.id).await.unwrap();
        }
    });
    assert!(status.unwrap().success(), "see above");
    println!("test networks_without_root ... ok");
}

fn as_user(state: &Path) {
    // Stands for the node's own namespace.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    assert_eq!(become_user(USER, &[state]).unwrap(), Standing::User(USER.into()));
    assert!(!nix::unistd::geteuid().is_root());
    assert!(std::fs::read("/etc/shadow").is_err(), "rights over files are gone");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let driver = NetworkDriver::new(state);
        let network = support::network(2);
        driver.apply(&network).await.unwrap();
        let mut guest = support::guest::Guest::new(&network, &network.ports[0]);
        assert_eq!(guest.lease().address, network.ports[0].address);
        let pid = support::dnsmasq_pid(state, &network.id);
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        // NET_ADMIN and NET_BIND_SERVICE, without SYS_ADMIN.
        assert!(status.contains("CapPrm:\t0000000000001400"), "{status}");
        assert!(!status.contains("Uid:\t0"), "{status}");
        driver.apply(&network).await.unwrap();
        assert_eq!(support::dnsmasq_pid(state, &network.id), pid, "known to be the right one");
        drop(guest);
        for tool in rhyzome_agent::host::tools::probe(Wanted::Auto) {
            assert!(tool.available || tool.name == "kvm", "{}: {}", tool.name, tool.detail);
        }
        driver.remove(&network.id).await.unwrap();
        assert!(!netns::exists(&rhyzome_agent::names::namespace(&network.id)).unwrap());
        assert_eq!(std::fs::read_dir(state.join("networks")).unwrap().count(), 0);
    });
}
