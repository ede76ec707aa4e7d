//! One server of two processes: REST in one, the agents' door in the other, the database between them.

use std::io::Read as _;
use std::process::Stdio;
use std::time::Duration;

use rhyzome_tests::postgres::Database;
use serde_json::{Value, json};

use super::house::{BOOT, House, SCRIPT, alone, nic, path_of};

/// Orders and reports pass through the database: an instance lives as on one process; and either process may go and
/// come back.
#[test]
fn two_processes_on_postgresql_are_one_server() {
    let database = Database::new();
    let mut house = House::with(alone(), |options| {
        options.db = Some(database.url());
        options.split = true;
    });
    let before = house.snapshot();
    house.import_tiny();

    let asked = json!({"name": "web", "spec": {"image": "tiny", "user_data": SCRIPT}});
    let made = house.call("POST", "/v1/tenants/default/instances", asked).is(202).json;
    let promised = nic(&made)["address"].as_str().unwrap().to_owned();
    let path = path_of(&made);
    house.done(&made);
    let web = house.get(&path);
    assert_eq!(web["phase"], "running", "{web:#}");
    let page = house.await_page(&web, |_| true);
    assert_eq!(page.word("address").split('/').next(), promised.split('/').next());

    // Console and log come by the process that holds the node's session.
    let shown = house.world.said(&["instance", "console", "web", "--show"]).unwrap();
    assert!(shown.contains("is up, addresses"), "{shown}");
    let whole = house.world.said(&["instance", "log", "web"]).unwrap();
    assert_eq!(whole, house.console(web["id"].as_str().unwrap()));
    let last = house.world.said(&["instance", "log", "web", "--tail", "1"]).unwrap();
    assert!(whole.ends_with(&last) && last.trim_end().lines().count() == 1, "{last:?}");
    let mut follow = house.world.command(&["instance", "log", "web", "--follow"]);
    let mut follow = follow.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = vec![0; whole.len()];
    follow.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    assert!(said == whole.as_bytes());

    // So do the bytes of a snapshot.
    house.world.said(&["snapshot", "create", "monday", "--disk", "web-root", "--wait"]).unwrap();
    let copy = house.world.folder.join("monday.qcow2");
    house.world.said(&["snapshot", "download", "monday", copy.to_str().unwrap()]).unwrap();
    let taken = house.get("/v1/tenants/default/snapshots/monday");
    assert_eq!(taken["status"]["sha256"], rhyzome_pki::sha256_hex(&std::fs::read(&copy).unwrap()));
    std::fs::remove_file(&copy).unwrap();
    house.delete(&path_of(&taken));

    // Without the agents' door REST goes on, and takes orders; they are carried out when it is back. What came through it
    // has broken off, and says so.
    house.world.door.as_mut().unwrap().kill9().unwrap();
    let broken = follow.wait_with_output().unwrap();
    let why = String::from_utf8_lossy(&broken.stderr);
    assert!(!broken.status.success() && why.contains("the log broke off"), "{why}");
    let refused = house.world.said(&["instance", "log", "web"]).unwrap_err().to_string();
    let grpc = house.world.grpc;
    assert!(refused.contains(&format!("cannot be reached at {grpc}")), "{refused}");
    let stopping = house.call("POST", &format!("{path}/actions/stop"), json!({"mode": "hard"})).is(202).json;
    assert_eq!(house.qemus(web["id"].as_str().unwrap()).len(), 1);
    house.world.restart_server().unwrap();
    house.done(&stopping);
    assert_eq!(house.get(&path)["phase"], "stopped");

    // Without REST the agents' door goes on: what is under way comes to its end.
    let starting = house.call("POST", &format!("{path}/actions/start"), json!({})).is(202).json;
    house.world.server.terminate(Duration::from_secs(20)).unwrap();
    house.console_says(web["id"].as_str().unwrap(), "is up, addresses", 2, BOOT);
    house.world.restart_server().unwrap();
    house.done(&starting);

    house.delete(&path);
    house.call("GET", &path, Value::Null).problem(404, "not-found");
    house.delete("/v1/tenants/default/networks/default");
    house.nothing_left(&before);
}
