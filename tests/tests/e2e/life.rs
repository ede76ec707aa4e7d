//! One instance from its creation to its end, and two tenants side by side.

use serde_json::{Value, json};

use super::house::{BOOT, House, SCRIPT, nic, path_of};

/// What an instance was promised is what its guest gets; its script runs once; stop and start keep its disk; and
/// deleted it leaves nothing.
#[test]
fn an_instance_lives_as_promised_and_leaves_nothing() {
    let house = House::new();
    let before = house.snapshot();
    house.import_tiny();

    let spec = json!({"image": "tiny", "user_data": SCRIPT});
    let asked = json!({"name": "web", "spec": spec});
    let made = house.call("POST", "/v1/tenants/default/instances", asked).is(202).json;
    let promised = nic(&made)["address"].as_str().unwrap().to_owned();
    let path = path_of(&made);
    house.done(&made);
    let web = house.get(&path);
    assert_eq!(web["phase"], "running", "{web:#}");

    let page = house.await_page(&web, |_| true);
    assert_eq!(page.word("address").split('/').next(), promised.split('/').next());
    assert_eq!((page.word("host"), page.word("boots"), page.word("runs")), ("web", "1", "1"));
    let id = web["id"].as_str().unwrap();
    let console = house.console_says(id, "web is up, addresses", 1, BOOT);
    assert!(console.contains(promised.split('/').next().unwrap()), "{console}");

    house.act(&path, "stop", json!({}));
    assert_eq!(house.get(&path)["phase"], "stopped");
    assert!(house.qemus(id).is_empty());
    house.act(&path, "start", json!({}));
    let page = house.await_page(&web, |page| page.word("boots") == "2");
    assert_eq!(page.word("runs"), "1", "the script ran again");
    assert_eq!(nic(&house.get(&path))["address"], promised.as_str(), "the address changed");

    house.delete(&path);
    house.call("GET", &path, Value::Null).problem(404, "not-found");
    house.call("GET", "/v1/tenants/default/instances", Value::Null);
    house.nothing_left(&before);
}

/// The same subnet twice on one node: each guest is reached in its own network, and the end of one is not felt by
/// the other.
#[test]
fn two_tenants_use_the_same_subnet() {
    let house = House::new();
    let before = house.snapshot();
    house.import_tiny();
    let guests: Vec<Value> = ["alice", "bob"]
        .into_iter()
        .map(|tenant| {
            house.make("/v1/tenants", json!({"name": tenant, "spec": {}}));
            let network = json!({"name": "lan", "spec": {"cidr": "10.66.0.0/24"}});
            house.make(&format!("/v1/tenants/{tenant}/networks"), network);
            let nics = json!({"lan": {"network": "lan", "address": "10.66.0.7"}});
            house.make_instance(tenant, &format!("of-{tenant}"), json!({"user_data": SCRIPT, "nics": nics}))
        })
        .collect();
    for (guest, name) in guests.iter().zip(["of-alice", "of-bob"]) {
        let page = house.await_page(guest, |_| true);
        assert_eq!((page.word("host"), page.word("address")), (name, "10.66.0.7/24"));
    }
    let [alice, bob] = &guests[..] else { unreachable!("there are two") };
    let of_bob = house.qemu(bob["id"].as_str().unwrap());
    let uptime = house.page(bob).unwrap().uptime();

    house.delete(&path_of(alice));
    house.delete("/v1/tenants/alice/networks/lan");
    house.delete("/v1/tenants/alice");
    let page = house.await_page(bob, |_| true);
    assert_eq!(page.word("host"), "of-bob");
    assert!(page.uptime() > uptime, "bob's guest was booted again");
    assert_eq!(house.qemu(bob["id"].as_str().unwrap()), of_bob);
    assert!(house.page(alice).is_err(), "alice's guest still answers");

    house.delete(&path_of(bob));
    house.delete("/v1/tenants/bob/networks/lan");
    house.nothing_left(&before);
}
