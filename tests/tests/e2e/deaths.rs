//! Processes that die without a word: the agent, the server at any moment of a create, QEMU.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use xtask::procfs;

use super::house::{BOOT, House, Process, SCRIPT, nic, path_of, until};

/// Without its agent a guest goes on, and its lease is renewed; a new agent takes it over as it is.
#[test]
fn guests_outlive_their_agent() {
    let mut house = House::new();
    house.import_tiny();
    let guest = house.make_instance("default", "web", json!({"user_data": SCRIPT}));
    let (id, path) = (guest["id"].as_str().unwrap(), path_of(&guest));
    let uptime = house.await_page(&guest, |_| true).uptime();
    let qemu = house.qemu(id);
    let lease = lease_end(&house, &guest).expect("the guest has a lease");

    house.world.agents[0].kill9().unwrap();
    assert_eq!(house.qemu(id), qemu);
    until("the guest's lease is renewed while there is no agent", 60, || {
        lease_end(&house, &guest).filter(|end| *end > lease)
    });
    let alone = house.page(&guest).unwrap().uptime();
    assert!(alone > uptime, "the guest was booted again");

    house.world.restart_agent(0).unwrap();
    let status = house.wait_for(&path, "running", 10, |it| it["phase"] == "running");
    assert_eq!(status["status"]["restarts"], 0, "{status:#}");
    assert_eq!(house.qemu(id), qemu);
    assert!(house.page(&guest).unwrap().uptime() > alone);

    house.act(&path, "stop", json!({}));
    assert_eq!(house.get(&path)["phase"], "stopped");
    assert!(house.qemus(id).is_empty());
}

/// QEMU's end is seen, shown, and undone.
#[test]
fn a_guest_that_dies_is_brought_back() {
    let house = House::new();
    house.import_tiny();
    let guest = house.make_instance("default", "web", json!({}));
    let (id, path) = (guest["id"].as_str().unwrap(), path_of(&guest));
    let qemu = house.qemu(id);
    qemu.kill9();
    let back = |it: &Value| it["phase"] == "running" && it["status"]["restarts"] == 1;
    house.wait_for(&path, "one restart, shown", 5, back);
    assert_ne!(house.qemu(id), qemu);

    house.act(&path, "stop", json!({"mode": "hard"}));
    assert!(house.qemus(id).is_empty());
    assert_eq!(house.get(&path)["phase"], "stopped");
}

/// Where the server dies, in microseconds after the request began: seeded, so that a failure can be had again.
fn moment(seed: u64) -> Duration {
    let mut x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    // The earlier seeds fall more often into the time before the answer.
    let within = if seed < 8 { 40_000 } else { 400_000 };
    Duration::from_micros((x ^ (x >> 31)) % within)
}

/// The server killed at 20 moments of a create: what was acknowledged is there and ends well; what was not is there
/// whole or not at all; and nothing is done twice.
#[test]
fn a_create_outlives_its_server() {
    let mut house = House::new();
    let before = house.snapshot();
    house.import_tiny();
    let mut acknowledged = 0;
    for seed in 0..20 {
        let name = format!("seed-{seed}");
        let body = json!({"name": name, "spec": {"image": "tiny", "memory_bytes": 64 << 20}});
        let was = killed_while(&mut house, moment(seed), &body);
        acknowledged += i32::from(was.is_some());
        house.world.restart_server().unwrap();

        let page = house.get(&format!("/v1/tenants/default/instances?name={name}"));
        let there = page["items"].as_array().unwrap();
        assert!(there.len() <= 1, "seed {seed}: {page:#}");
        match (&was, there.first()) {
            (Some(made), Some(there)) => assert_eq!(made["id"], there["id"], "seed {seed}"),
            (Some(made), None) => panic!("seed {seed}: acknowledged and gone: {made:#}"),
            (None, Some(_)) => {}
            (None, None) => {
                // It was never begun: the user asks again, when there is a node again.
                house.world.await_node(0).unwrap();
                house.call("POST", "/v1/tenants/default/instances", body).is(202);
            }
        }
        let path = format!("/v1/tenants/default/instances/{name}");
        let one = house.wait_for(&path, &format!("running (seed {seed})"), BOOT, |it| {
            assert_ne!(it["phase"], "failed", "seed {seed}: {it:#}");
            it["phase"] == "running"
        });
        let id = one["id"].as_str().unwrap();
        assert_eq!(house.qemus(id).len(), 1, "seed {seed}");
        assert_eq!(house.qemus("").len(), 1, "seed {seed}: a stranger runs");
        house.delete(&path);
    }
    println!("{acknowledged} of 20 were acknowledged before the server died");
    assert!((1..20).contains(&acknowledged), "the moments are not spread: {acknowledged} of 20");
    house.nothing_left(&before);
}

/// Sends a create and kills the server so long after. What was answered, if it was an acknowledgement.
fn killed_while(house: &mut House, after: Duration, body: &Value) -> Option<Value> {
    let (server, token) = (house.world.http, house.world.token().unwrap());
    let text = body.to_string();
    let headers = [format!("Authorization: Bearer {token}"), "Content-Type: application/json".to_owned()];
    let begun = Instant::now();
    let asking = std::thread::spawn(move || {
        let path = "/v1/tenants/default/instances";
        xtask::http::request(server, "POST", path, &headers, &text, Duration::from_secs(30))
    });
    // Not a wait for a condition: the moment itself is what is tried.
    std::thread::sleep(after.saturating_sub(begun.elapsed()));
    house.world.server.kill9().unwrap();
    let reply = asking.join().unwrap().ok()?;
    // An answer that broke off is none.
    let json: Value = serde_json::from_str(&reply.body).ok()?;
    assert_eq!(reply.status, 202, "{json:#}");
    Some(json)
}

/// When the guest's lease ends, as dnsmasq keeps it.
pub fn lease_end(house: &House, guest: &Value) -> Option<u64> {
    let nic = nic(guest);
    let network = nic["network"].as_str().unwrap();
    let file = house.state().join("networks").join(network).join("leases");
    let address = nic["address"].as_str().unwrap().split('/').next().unwrap();
    let leases = std::fs::read_to_string(file).ok()?;
    let line = leases.lines().find(|line| line.split(' ').nth(2) == Some(address))?;
    line.split(' ').next()?.parse().ok()
}

/// dnsmasq of a guest's network.
pub fn dnsmasq(house: &House, guest: &Value) -> Process {
    let network = nic(guest)["network"].as_str().unwrap();
    let mut seen = procfs::of(&house.state().join("networks").join(network));
    seen.retain(|it| it.argv[0].ends_with("dnsmasq"));
    assert_eq!(seen.len(), 1, "{seen:#?}");
    Process::of(seen[0].pid)
}
