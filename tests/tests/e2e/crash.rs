//! Nothing is lost and nothing sticks when a process is ended by force.

use std::time::Duration;

use serde_json::{Value, json};
use xtask::procfs;

use super::house::{House, SCRIPT, path_of, until};

const INSTANCES: &str = "/v1/tenants/default/instances";

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

/// The server is killed at twenty moments of a create: the same create ends well, once.
#[test]
fn a_server_killed_at_any_moment_of_a_create() {
    let mut house = House::new();
    let before = house.snapshot();
    house.import_tiny();
    // What every moment needs is there; only the create itself is interrupted.
    house.make("/v1/tenants/default/networks", json!({"name": "default", "spec": {}}));
    for seed in 0..20_u64 {
        killed_at(&mut house, seed);
    }
    house.nothing_left(&before);
}

fn killed_at(house: &mut House, seed: u64) {
    let name = format!("web-{seed}");
    let asked = json!({"name": name, "spec": {"image": "tiny"}});
    let (address, token) = (house.world.http, house.world.token().unwrap());
    let body = asked.to_string();
    let request = std::thread::spawn(move || {
        let headers = [format!("Authorization: Bearer {token}"), "Content-Type: application/json".to_owned()];
        xtask::http::request(address, "POST", INSTANCES, &headers, &body, Duration::from_secs(10))
    });
    // Spread over the request and what follows it; not a wait for anything.
    std::thread::sleep(Duration::from_micros(seed * seed * 900 + seed * 311 % 997));
    house.world.server.kill9().unwrap();
    let acknowledged = request.join().unwrap().is_ok_and(|reply| reply.status == 202);
    house.world.restart_server().unwrap();
    house.world.await_node(0).unwrap();

    let path = format!("{INSTANCES}/{name}");
    let found = house.call("GET", &path, Value::Null);
    if found.status == 404 {
        assert!(!acknowledged, "seed {seed}: an acknowledged create was lost");
        house.call("POST", INSTANCES, asked).is(202);
    } else {
        // It is there whole: the same create again is refused.
        house.call("POST", INSTANCES, asked).problem(409, "name-taken");
    }
    let web = house.wait_for(&path, "running", 60, |object| object["phase"] == "running");
    let id = web["id"].as_str().unwrap();
    assert_eq!(house.qemus(id).len(), 1, "seed {seed}");
    let all = house.get(&format!("{INSTANCES}?name={name}"));
    assert_eq!(all["items"].as_array().unwrap().len(), 1, "seed {seed}: {all:#}");
    house.delete(&path_of(&web));
    assert!(
        procfs::of(&house.world.folder).iter().all(|seen| !seen.argv[0].contains("qemu-system")),
        "seed {seed}"
    );
}
