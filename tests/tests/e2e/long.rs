//! Stories that mostly wait: they share the machine with each other.

use std::time::{Duration, Instant};

use serde_json::json;

use super::crash::lease_end;
use super::house::{House, SCRIPT, path_of, shared};

/// What the driver tells dnsmasq.
const LEASE_SECONDS: u64 = 60;

/// Server and agent both away for three lease times: no request to the guest fails, and its lease is renewed.
#[test]
fn traffic_flows_while_server_and_agent_are_down() {
    let mut house = House::with(shared(), |_| {});
    house.import_tiny();
    let guest = house.make_instance("default", "web", json!({"user_data": SCRIPT}));
    house.await_page(&guest, |_| true);
    let id = guest["id"].as_str().unwrap();
    let qemu = house.qemu(id);

    house.world.server.kill9().unwrap();
    house.world.agents[0].kill9().unwrap();
    let begun = Instant::now();
    let (mut ends, mut failed, mut tried) = (Vec::new(), Vec::new(), 0);
    while begun.elapsed() < Duration::from_secs(3 * LEASE_SECONDS) {
        tried += 1;
        failed.extend(house.page(&guest).err().map(|error| (begun.elapsed(), error)));
        ends.push(lease_end(&house));
        ends.dedup();
        std::thread::sleep(Duration::from_secs(1));
    }
    assert_eq!(failed, [], "of {tried} requests");
    assert!(tried > 60, "only {tried} requests in three lease times");
    // Renewed after half its time each: once would not have been enough.
    assert!(ends.len() >= 3, "the lease was renewed too seldom: its ends were {ends:?}");
    assert_eq!(house.qemu(id), qemu);

    house.world.restart_server().unwrap();
    house.world.restart_agent(0).unwrap();
    house.wait_for(&path_of(&guest), "running", 20, |it| it["phase"] == "running");
    assert_eq!(house.qemu(id), qemu);
}

/// An ordinary Debian with cloud-init comes to its end of the first boot.
#[test]
fn debian_finishes_cloud_init() {
    let house = House::with(shared(), |_| {});
    let file = xtask::image::debian(None, true).unwrap();
    house.import("debian", &file);
    let user_data = "#cloud-config\nruncmd: [\"echo promised-by-the-script >/dev/console\"]\n";
    let spec = json!({"image": "debian", "memory_bytes": 768 << 20, "user_data": user_data});
    let guest = house.make("/v1/tenants/default/instances", json!({"name": "deb", "spec": spec}));
    let id = guest["id"].as_str().unwrap();
    let console = house.console_says(id, " finished at ", 1, 500);
    assert!(console.contains("Cloud-init v. ") && console.contains("promised-by-the-script"), "{console}");
    house.act(&path_of(&guest), "stop", json!({"mode": "hard"}));
    house.delete(&path_of(&guest));
}
