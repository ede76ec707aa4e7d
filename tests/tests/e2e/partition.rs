//! A server is cut off from its database. Two servers on one PostgreSQL, two agents in network namespaces of their own,
//! each at a server of its own: what the other one is asked for goes on, no guest notices, and when the database is back
//! all is carried out and nothing is lost.

use std::fs::Permissions;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rhyzome_tests::postgres::Database;
use serde_json::{Value, json};
use xtask::http;
use xtask::world::{Process, Style, binaries};

use super::house::{BOOT, House, alone, path_of, until};

/// A server that was not heard of for so long is taken for dead, and some seconds more to find that out.
const BURIED: u64 = 60;

/// The way to a PostgreSQL, by a socket in a folder of its own; while it is cut nothing gets through, and nobody is told.
struct Way {
    folder: PathBuf,
    cut: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<UnixStream>>>,
}

impl Way {
    fn to(socket: PathBuf, folder: &Path) -> Way {
        std::fs::create_dir(folder).unwrap();
        let door = folder.join(".s.PGSQL.5432");
        let listener = UnixListener::bind(&door).unwrap();
        // The server works as another user.
        std::fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
        std::fs::set_permissions(&door, Permissions::from_mode(0o777)).unwrap();
        let way = Way { folder: folder.to_owned(), cut: Arc::default(), open: Arc::default() };
        let (cut, open) = (way.cut.clone(), way.open.clone());
        // It ends with the process of the tests.
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), UnixStream::connect(&socket).unwrap());
                let both = [client.try_clone().unwrap(), server.try_clone().unwrap()];
                open.lock().unwrap().extend(both);
                for (from, to) in
                    [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)]
                {
                    let cut = cut.clone();
                    std::thread::spawn(move || carry(from, to, &cut));
                }
            }
        });
        way
    }

    fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
    }

    /// What was under way is lost, and what comes now gets through.
    fn heal(&self) {
        for connection in self.open.lock().unwrap().drain(..) {
            // One end may have gone by itself.
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
        self.cut.store(false, Ordering::SeqCst);
    }
}

fn carry(mut from: UnixStream, mut to: UnixStream, cut: &AtomicBool) {
    let mut bytes = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut bytes) {
        while cut.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
        }
        if to.write_all(&bytes[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}

/// A network namespace with a cable to this machine.
struct Cabled {
    name: String,
    /// This machine's end of the cable.
    here: String,
}

impl Cabled {
    fn new(number: u8) -> Cabled {
        let name = format!("rztest{}-{number}", std::process::id());
        let cable = format!("rzt{}{number}", std::process::id() % 1_000_000);
        let here = format!("198.51.100.{}", 4 * number + 1);
        let there = format!("198.51.100.{}/30", 4 * number + 2);
        let cabled = Cabled { name, here };
        for words in [
            format!("netns add {}", cabled.name),
            format!("link add {cable} type veth peer name up0 netns {}", cabled.name),
            format!("address add {}/30 dev {cable}", cabled.here),
            format!("link set {cable} up"),
            format!("-n {} link set lo up", cabled.name),
            format!("-n {} address add {there} dev up0", cabled.name),
            format!("-n {} link set up0 up", cabled.name),
        ] {
            let done = Command::new("ip").args(words.split(' ')).output().unwrap();
            assert!(done.status.success(), "ip {words}: {}", String::from_utf8_lossy(&done.stderr));
        }
        cabled
    }

    fn inside(&self) -> Vec<String> {
        vec!["nsenter".into(), format!("--net=/run/netns/{}", self.name)]
    }
}

impl Drop for Cabled {
    fn drop(&mut self) {
        // The cable goes with it.
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).output();
    }
}

/// An agent in a namespace, that dials this server.
fn agent(house: &House, node: &str, cabled: &Cabled, server: SocketAddr) -> Process {
    let state = house.world.state_of(node).display().to_string();
    let program = binaries().unwrap().join("rhyzome-agent").display().to_string();
    let at = format!("{}:{}", cabled.here, server.port());
    let invited = house.world.json(&["node", "invite", node]).unwrap();
    let mut join = cabled.inside();
    join.push(program.clone());
    let words = invited["command"].as_str().unwrap().split_whitespace().skip(1);
    let mut is_address = false;
    for word in words {
        let word = if std::mem::replace(&mut is_address, word == "--server") { at.as_str() } else { word };
        join.push(word.to_owned());
    }
    join.extend(["--state-dir".into(), state.clone()]);
    let joined = Command::new(&join[0]).args(&join[1..]).output().unwrap();
    assert!(joined.status.success(), "{join:?}: {}", String::from_utf8_lossy(&joined.stderr));
    let mut run = cabled.inside();
    run.extend([program, "run".into(), "--state-dir".into(), state, "--server".into(), at]);
    let mut process = Process::new(&format!("agent-{node}"), &house.world.folder, run, Style::default());
    process.start().unwrap();
    process
}

fn phase(house: &House, path: &str) -> String {
    house.get(path)["phase"].as_str().unwrap().to_owned()
}

fn port() -> SocketAddr {
    TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap()
}

#[test]
fn a_server_that_is_cut_off_from_the_database_loses_nothing() {
    let (database, own) = (Database::new(), port());
    let cables = [Cabled::new(0), Cabled::new(1)];
    let house = House::with(alone(), |options| {
        options.db = Some(database.url());
        options.nodes.clear();
        options.grpc = Some(own);
        options.config = json!({"grpc": {"advertise": format!("127.0.0.1:{}", own.port())}});
    });
    // The other server, whose way to the database can be cut.
    let (other, rest) = (port(), TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let host =
        database.url().split(' ').find_map(|word| Some(word.strip_prefix("host=")?.to_owned())).unwrap();
    let way = Way::to(Path::new(&host).join(".s.PGSQL.5432"), &house.world.folder.join("way"));
    let config = json!({
        "data": house.world.home(), "db": database.url().replace(&host, &way.folder.display().to_string()),
        "http": {"listen": rest},
        "grpc": {"listen": other, "advertise": format!("127.0.0.1:{}", other.port())},
    });
    let file = house.world.folder.join("other.json").display().to_string();
    std::fs::write(&file, config.to_string()).unwrap();
    let program = binaries().unwrap().join("rhyzome-api").display().to_string();
    let words = vec![program.clone(), "--config".into(), file.clone()];
    let mut second = Process::new("second", &house.world.folder, words, Style::default());
    // It tells clients on this machine of itself; the first one is who we ask.
    let client = std::fs::read(house.world.home().join("client.json")).unwrap();
    second.start().unwrap();
    until("the second server to answer", 60, || http::page(rest, "/healthz", Duration::from_secs(5)).ok());
    std::fs::write(house.world.home().join("client.json"), client).unwrap();
    let agents = [("node1", own, &cables[0]), ("node2", other, &cables[1])];
    let mut agents = agents.map(|(node, server, cable)| agent(&house, node, cable, server));
    for node in ["node1", "node2"] {
        house.wait_for(&format!("/v1/nodes/{node}"), "ready", 60, |node| node["phase"] == "ready");
    }
    let before = house.snapshot();
    house.import_tiny();
    let guests = ["node1", "node2"].map(|node| {
        let name = format!("web-{node}");
        // Both agents are on one machine: a network of each.
        let network = format!("lan-{node}");
        house.make("/v1/tenants/default/networks", json!({"name": network, "spec": {}}));
        let nics = json!({"lan": {"network": network}});
        let made = json!({"name": name, "spec": {"image": "tiny", "node": node, "nics": nics}});
        let made = house.call("POST", "/v1/tenants/default/instances", made).is(202).json;
        house.done(&made);
        made
    });
    let [near, far] = [&guests[0], &guests[1]].map(path_of);
    let far_id = guests[1]["id"].as_str().unwrap();
    let far_log = || house.world.said(&["instance", "log", "web-node2"]);
    until("the guest of the other server to have come up, as its log says", BOOT, || {
        far_log().unwrap().contains("is up, addresses").then_some(())
    });
    let qemu = |guest: &Value, node: &str| {
        let pid =
            house.world.state_of(node).join("instances").join(guest["id"].as_str().unwrap()).join("pid");
        std::fs::read_to_string(pid).unwrap()
    };
    let (running, count) = (qemu(&guests[1], "node2"), AtomicU64::new(0));

    way.cut();
    // What is asked of the first server: acknowledged, and kept until the node is heard of again.
    let stopping = house.call("POST", &format!("{far}/actions/stop"), json!({"mode": "hard"})).is(202).json;
    let tag = |text: &str| {
        count.fetch_add(1, Ordering::SeqCst);
        house.call("PATCH", &far, json!({"tags": {"last": text}})).is(200);
    };
    tag("cut");
    // The node of the first one notices nothing.
    house.act(&near, "stop", json!({"mode": "hard"}));
    house.act(&near, "start", json!({}));
    assert_eq!(phase(&house, &near), "running");
    house.wait_for("/v1/nodes/node2", "offline", BURIED, |node| node["phase"] == "offline");
    assert_eq!(qemu(&guests[1], "node2"), running, "the guest was touched");
    assert_eq!(house.qemus(far_id).len(), 1);
    assert!(far_log().unwrap_err().to_string().contains("the node is not connected"));
    assert!(http::page(rest, "/healthz", Duration::from_secs(20)).is_err(), "it calls itself healthy");
    tag("still cut");

    way.heal();
    house.done(&stopping);
    house.wait_for("/v1/nodes/node2", "ready", BURIED, |node| node["phase"] == "ready");
    until("the second server to be healthy", 60, || {
        http::page(rest, "/healthz", Duration::from_secs(5)).ok()
    });
    assert!(house.qemus(far_id).is_empty());
    assert_eq!(phase(&house, &far), "stopped");
    house.act(&far, "start", json!({}));
    until("its second boot", BOOT, || {
        (far_log().ok()?.matches("is up, addresses").count() >= 2).then_some(())
    });
    // Every write is there, in order, at either server.
    let object = house.get(&far);
    assert_eq!((&object["tags"]["last"], &object["spec"]["power"]), (&json!("still cut"), &json!("on")));
    let token = format!("Authorization: Bearer {}", house.world.token().unwrap());
    let there = http::request(rest, "GET", &far, &[token], "", Duration::from_secs(20)).unwrap();
    let there: Value = serde_json::from_str(&there.body).unwrap();
    assert_eq!((&there["version"], &there["tags"]), (&object["version"], &object["tags"]));
    assert_eq!(object["version"].as_u64().unwrap(), 3 + count.load(Ordering::SeqCst), "{object:#}");
    for path in [&near, &far] {
        house.delete(path);
    }
    for node in ["node1", "node2"] {
        house.delete(&format!("/v1/tenants/default/networks/lan-{node}"));
    }
    until("audit verify to be good", 60, || {
        let said = Command::new(&program).args(["--config", &file, "audit", "verify"]).output().unwrap();
        said.status.success().then_some(())
    });
    house.nothing_left(&before);
    for process in agents.iter_mut().chain([&mut second]) {
        assert!(process.terminate(Duration::from_secs(30)).unwrap().success(), "{}", process.last_words());
    }
}
