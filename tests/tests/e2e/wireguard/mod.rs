//! VPNs as their users have them: the real server, the real agent on a machine of its own, the real command line; at the
//! other end Debian's `wg-quick`, which is given what `rhyzome` printed and nothing else.

mod laptops;

use rhyzome_api::environment;
use serde_json::{Value, json};
use tempfile::TempDir;
use xtask::procfs::{self, Seen};

use super::house::{BOOT, House, SCRIPT, alone, folder, nic, path_of, until};
use laptops::{HOSTNAME, Laptop, Machine};

/// A handshake by a client that has to find out that its last one is no good any more, on a busy machine.
const COMES_BACK: u32 = 90;
/// What an agent that was started finds and what it tells, on a busy machine.
const TOLD: u64 = 90;

// Dropped in this order: tunnels end by their files, and the machine goes last.
struct Story {
    laptops: Vec<Laptop>,
    house: House,
    // What users keep: not in the folder that is looked at for what is left.
    own: TempDir,
    _machine: Machine,
}

impl Story {
    fn new(laptops: u32) -> Story {
        let turn = alone();
        let machine = Machine::new();
        let house = House::with(turn, |options| machine.furnish(options));
        let own = folder();
        let laptops = (0..laptops).map(|_| Laptop::new(&machine, own.path())).collect();
        Story { laptops, house, own, _machine: machine }
    }

    /// Says this to the command line; what it printed.
    fn say(&self, line: &str) -> String {
        self.house.world.said(&line.split(' ').collect::<Vec<_>>()).unwrap()
    }

    /// The file of a key.
    fn file(&self, name: &str) -> String {
        self.own.path().join(name).display().to_string()
    }

    /// Processes that are devices.
    fn devices(&self) -> Vec<Seen> {
        let mut seen = procfs::of(&self.house.world.folder);
        seen.retain(|it| it.argv.get(1).is_some_and(|word| word == "wireguard-device"));
        seen
    }

    /// Waits until the server says that the first laptop has come.
    fn is_seen(&self, path: &str) -> Value {
        let came = |it: &Value| {
            it["status"]["last_handshake_at"].is_string() && it["status"]["received_bytes"].as_u64() > Some(0)
        };
        let seen = self.house.wait_for(path, "a handshake", TOLD, came);
        let endpoint = seen["status"]["endpoint"].as_str().unwrap_or_default();
        assert!(endpoint.starts_with(&format!("{}:", self.laptops[0].address)), "{seen:#}");
        seen
    }

    /// A list shows where the laptop is, when it came and what went through.
    fn is_listed(&self, kind: &str, name: &str) {
        let list = self.say(&format!("{kind} list"));
        let line = list.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{list}"));
        for (column, value) in [("ENDPOINT", self.laptops[0].address.as_str()), ("HANDSHAKE", "s ")] {
            assert!(list.contains(column) && line.contains(value), "{list}");
        }
        assert!(list.contains("RECEIVED") && list.contains("SENT"), "{list}");
    }

    /// Changes an object and waits until its node has done so.
    fn change(&self, path: &str, spec: Value) {
        let answer = self.house.call("PATCH", path, json!({"spec": spec})).one_of(&[200, 202]);
        self.house.done(&answer.json);
    }

    /// The laptop begins anew, and gets through.
    fn comes_back(&mut self, printed: &str, to: &str) {
        self.laptops[0].down();
        self.laptops[0].up(printed);
        assert!(self.laptops[0].pings(to, COMES_BACK), "it does not come back");
    }
}

#[test]
fn a_pool_serves_whoever_is_let_in_whatever_ends_meanwhile() {
    let mut story = Story::new(1);
    let before = story.house.snapshot();
    story.house.import_tiny();
    let pool = json!({"prefix": "2001:db8::/40", "network_size": 48, "hostname": HOSTNAME, "node": "node1"});
    let pool = story.house.make("/v1/vpn-pools", json!({"name": "wide", "spec": pool}));
    let server = pool["status"]["address"].as_str().unwrap().split('/').next().unwrap().to_owned();
    let key = story.file("laptop.key");
    story.say(&format!("vpn-network create laptop --make-key {key} --keepalive-seconds 25 --wait"));
    let printed = story.say(&format!("vpn-network config laptop --key {key}"));
    story.laptops[0].up(&printed);
    assert!(story.laptops[0].pings(&server, COMES_BACK), "{printed}");
    let laptop = "/v1/tenants/default/vpn-networks/laptop";
    story.is_seen(laptop);
    story.is_listed("vpn-network", "laptop");

    survives_its_agent(&mut story, &server);
    comes_up_alone(&mut story, &server);
    story.house.wait_for(laptop, "ready", TOLD, |it| it["phase"] == "ready");
    is_cut_off_and_let_in_again(&mut story, laptop, &printed, &server);

    // In use: nothing happens, and the answer says by whom.
    let refused = story.house.call("DELETE", "/v1/vpn-pools/wide", Value::Null).problem(409, "in-use");
    assert!(refused.json.to_string().contains("laptop"), "{:#}", refused.json);
    let refused = story.house.world.said(&["vpn-pool", "delete", "wide"]).unwrap_err().to_string();
    assert!(refused.contains("laptop"), "{refused}");
    assert!(story.laptops[0].pings(&server, 10));
    story.house.delete(laptop);
    assert!(!story.laptops[0].pings(&server, 3), "it was deleted");
    story.house.delete("/v1/vpn-pools/wide");
    until("the device to be gone", 30, || story.devices().is_empty().then_some(()));
    story.laptops[0].down();
    story.house.nothing_left(&before);
}

/// Under a stream of questions the agent is killed and comes back.
fn survives_its_agent(story: &mut Story, server: &str) {
    let device = story.devices();
    let asking = story.laptops[0].keep_asking(server);
    for _ in 0..2 {
        asking.goes_on(10);
        story.house.world.agents[0].kill9().unwrap();
        // Nobody is there but the device.
        asking.goes_on(10);
        story.house.world.restart_agent(0).unwrap();
    }
    asking.goes_on(10);
    let (asked, answered) = asking.stop();
    assert!(asked - answered <= 2, "{answered} of {asked}");
    let pids = |seen: &[Seen]| seen.iter().map(|it| it.pid).collect::<Vec<_>>();
    assert_eq!(pids(&story.devices()), pids(&device), "the device is another process");
}

/// The machine goes down and comes up while the server is away: the device is there before the server.
fn comes_up_alone(story: &mut Story, server: &str) {
    story.house.world.server.kill9().unwrap();
    story.house.world.agents[0].kill9().unwrap();
    for device in story.devices() {
        procfs::signal(device.pid, nix::sys::signal::Signal::SIGKILL);
    }
    until("the device to be gone", 30, || story.devices().is_empty().then_some(()));
    assert!(!story.laptops[0].pings(server, 1));
    story.house.world.agents[0].start().unwrap();
    assert!(story.laptops[0].pings(server, COMES_BACK), "the laptop does not come back by itself");
    assert!(!story.house.world.is_healthy(), "the server was not there");
    story.house.world.restart_server().unwrap();
    story.house.world.await_node(0).unwrap();
}

/// By the switch; by a moment that comes while the server is away.
fn is_cut_off_and_let_in_again(story: &mut Story, laptop: &str, printed: &str, server: &str) {
    story.say("vpn-network edit laptop --enabled=false --wait");
    assert!(!story.laptops[0].pings(server, 3), "it is disabled");
    assert_eq!(story.house.get(laptop)["phase"], "disabled");
    story.say("vpn-network edit laptop --enabled=true --wait");
    story.comes_back(printed, server);

    let soon = environment::system_env().now().plus_seconds(15);
    story.change(laptop, json!({"expires_at": soon}));
    assert!(story.laptops[0].pings(server, 10), "it has not expired yet");
    story.house.world.server.kill9().unwrap();
    until("its node to shut it out by itself", 60, || (!story.laptops[0].pings(server, 1)).then_some(()));
    assert!(environment::system_env().now() >= soon, "it was shut out too soon");
    story.house.world.restart_server().unwrap();
    story.house.world.await_node(0).unwrap();
    story.house.wait_for(laptop, "expired", TOLD, |it| it["phase"] == "expired");
    story.change(laptop, json!({"expires_at": null}));
    story.comes_back(printed, server);
}

#[test]
fn a_roaming_user_reaches_an_instance_by_address_and_by_name() {
    let mut story = Story::new(2);
    let before = story.house.snapshot();
    story.house.import_tiny();
    let web = story.house.make_instance("default", "web", json!({"user_data": SCRIPT}));
    let address = nic(&web)["address"].as_str().unwrap().split('/').next().unwrap().to_owned();
    story.say(&format!("wireguard-server create office --network default --hostname {HOSTNAME} --wait"));
    let (key, shared) = (story.file("laptop.key"), story.file("laptop.psk"));
    story.say(&format!(
        "wireguard-peer create laptop --server office --make-key {key} --make-preshared-key {shared} --wait"
    ));
    let printed = story.say(&format!("wireguard-peer config laptop --key {key} --preshared-key {shared}"));
    story.laptops[0].up(&printed);
    let page = until("the instance's page, by address", BOOT, || {
        story.laptops[0].page(&format!("http://{address}/cgi-bin/page"))
    });
    assert!(page.contains("host web"), "{page}");
    let page = story.laptops[0].page("http://web.default.internal/cgi-bin/page");
    assert!(page.is_some_and(|page| page.contains("host web")), "not by name");
    assert!(story.laptops[0].pings("web.default.internal", 10));
    let peer = "/v1/tenants/default/wireguard-peers/laptop";
    story.is_seen(peer);
    story.is_listed("wireguard-peer", "laptop");
    let office = story.house.get("/v1/tenants/default/wireguard-servers/office");
    let device = office["status"]["device"].as_str().unwrap();
    assert!(["kernel", "userspace"].contains(&device), "{office:#}");

    // Somebody else: with a key that nobody ordered, and without the key that both sides share.
    let own = String::from_utf8(std::process::Command::new("wg").arg("genkey").output().unwrap().stdout);
    let given = std::fs::read_to_string(&key).unwrap();
    let forged = printed.replace(given.trim(), own.unwrap().trim());
    assert_ne!(forged, printed);
    let without: Vec<&str> = printed.lines().filter(|line| !line.starts_with("PresharedKey")).collect();
    for bad in [forged, without.join("\n")] {
        story.laptops[1].up(&bad);
        assert!(!story.laptops[1].pings(&address, 3), "{bad}");
        story.laptops[1].down();
    }

    let refused = story.house.world.said(&["wireguard-server", "delete", "office"]).unwrap_err().to_string();
    assert!(refused.contains("laptop"), "{refused}");
    assert!(story.laptops[0].pings(&address, COMES_BACK));
    story.house.delete(peer);
    assert!(!story.laptops[0].pings(&address, 3), "it was deleted");
    story.laptops[0].down();
    story.house.delete("/v1/tenants/default/wireguard-servers/office");
    story.house.delete(&path_of(&web));
    story.house.nothing_left(&before);
}
