//! Nothing is lost and nothing sticks when a process is ended by force.

mod points;

use serde_json::json;

use super::house::{House, SCRIPT, path_of, until};

/// The agent is killed: the guest goes on, leases renew, and the next agent knows it again.
#[test]
fn an_agent_is_killed_and_no_guest_notices() {
    let mut house = House::new();
    house.import_tiny();
    let web = house.make_instance("default", "web", json!({"user_data": SCRIPT}));
    let id = web["id"].as_str().unwrap().to_owned();
    let uptime = house.await_page(&web, |_| true).uptime();
    let qemu = house.qemu(&id);

    house.world.agents[0].kill9().unwrap();
    assert_eq!(house.qemu(&id), qemu);
    let lease = lease_end(&house);
    until("the lease to be renewed while no agent runs", 90, || (lease_end(&house) > lease).then_some(()));
    assert!(house.page(&web).unwrap().uptime() > uptime);

    house.world.restart_agent(0).unwrap();
    let path = path_of(&web);
    house.wait_for(&path, "running", 30, |object| object["phase"] == "running");
    assert_eq!(house.qemu(&id), qemu, "the new agent took another guest for this one");
    assert!(house.page(&web).unwrap().uptime() > uptime, "the guest was booted again");
    house.act(&path, "stop", json!({"mode": "hard"}));
    assert!(house.qemus(&id).is_empty());
}

/// The end of the newest DHCP lease of the world's networks, as dnsmasq wrote it.
pub fn lease_end(house: &House) -> u64 {
    let networks = std::fs::read_dir(house.state().join("networks")).unwrap();
    let ends = networks.flatten().filter_map(|network| {
        let text = std::fs::read_to_string(network.path().join("leases")).ok()?;
        text.lines().filter_map(|line| line.split(' ').next()?.parse::<u64>().ok()).max()
    });
    ends.max().unwrap_or(0)
}

/// QEMU is killed: that is seen, shown, and mended within five seconds.
#[test]
fn a_killed_qemu_is_seen_and_started_again() {
    let house = House::new();
    house.import_tiny();
    let web = house.make_instance("default", "web", json!({}));
    let id = web["id"].as_str().unwrap();
    let qemu = house.qemu(id);
    qemu.kill9();
    let path = path_of(&web);
    house.wait_for(&path, "a restart", 5, |object| object["status"]["restarts"].as_u64() >= Some(1));
    house.wait_for(&path, "running", 15, |object| object["phase"] == "running");
    assert_ne!(house.qemu(id), qemu);
}
