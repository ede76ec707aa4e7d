//! Moments at which server, agent or both are ended by force, in the middle of a create, a stop, a start, a delete and
//! an undo, by a seed. The client asks again, all comes to its end, and the auditor looks at the whole machine.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use rhyzome_tests::audit::{Finding, Wrong};
use rhyzome_tests::given::Dice;
use rhyzome_tests::machine::Machine;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use xtask::http::Reply;
use xtask::run;

use crate::house::{BOOT, House, path_of, seed, until};

const INSTANCES: &str = "/v1/tenants/default/instances";
/// All of both lists, twice.
const POINTS: u64 = 30;
/// A create on a quiet machine takes about as long from the request to its guest; the rest is quicker.
const SPREAD_MS: u64 = 700;
/// For what is under way when a job has ended: a copy that nobody needs any more goes after it.
const SETTLED: u64 = 30;

/// Who ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Server,
    Agent,
    Both,
}

/// In the middle of what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum During {
    Create,
    Stop,
    Start,
    Delete,
    Undo,
}

/// One crash.
#[derive(Clone, Debug)]
struct Point {
    number: u64,
    who: Who,
    during: During,
    after: Duration,
}

impl Point {
    fn of(seed: u64, number: u64) -> Point {
        let mut dice = Dice::new(seed.wrapping_mul(1_000).wrapping_add(number));
        let who = [Who::Server, Who::Agent, Who::Both][usize::try_from(number % 3).unwrap()];
        let all = [During::Create, During::Stop, During::Start, During::Delete, During::Undo];
        // Early moments are as close to each other as late ones are far apart.
        let part = dice.below(1_000);
        let after = Duration::from_micros(SPREAD_MS * part * part / 1_000);
        Point { number, who, during: all[usize::try_from(number % 5).unwrap()], after }
    }

    /// From the first request to the end of its object.
    fn live(&self, house: &mut House, machine: &Machine) {
        let name = format!("web-{}", self.number);
        let off = self.during == During::Start;
        let asked = json!({"name": name, "spec": {"image": "tiny", "power": if off { "off" } else { "on" }}});
        if self.during == During::Create {
            let made = self.killed(house, "POST", INSTANCES, asked);
            assert_eq!(made.status, 202, "{self:?}: {made:?}");
            let all = house.get(&format!("{INSTANCES}?name={name}"));
            assert_eq!(all["items"].as_array().unwrap().len(), 1, "{self:?}: {all:#}");
            return self.ends(house, machine, &path_of(&json_of(&made)), "running");
        }
        if self.during == During::Undo {
            let made = house.call("POST", INSTANCES, asked).is(202).json;
            let cancel = format!("/v1/jobs/{}/cancel", made["job"].as_str().unwrap());
            // Cancelled in time, or done before.
            let said = self.killed(house, "POST", &cancel, Value::Null);
            assert!(matches!(said.status, 202 | 409), "{self:?}: {said:?}");
            return self.ends(house, machine, &path_of(&made), "failed");
        }
        let web = house.make(INSTANCES, asked);
        let path = path_of(&web);
        let (method, way, body, phase) = match self.during {
            During::Stop => ("POST", format!("{path}/actions/stop"), json!({"mode": "hard"}), "stopped"),
            During::Start => ("POST", format!("{path}/actions/start"), json!({}), "running"),
            _ => ("DELETE", path.clone(), Value::Null, ""),
        };
        let said = self.killed(house, method, &way, body);
        assert_eq!(said.status, 202, "{self:?}: {said:?}");
        self.ends(house, machine, &path, phase);
    }

    /// Asks, ends who is to end at the moment, starts them again, and asks again until there is an answer.
    fn killed(&self, house: &mut House, method: &'static str, path: &str, body: Value) -> Reply {
        let (address, token) = (house.world.http, house.world.token().unwrap());
        let (path, text) = (path.to_owned(), if body.is_null() { String::new() } else { body.to_string() });
        let mut headers =
            vec![format!("Authorization: Bearer {token}"), format!("Idempotency-Key: point-{}", self.number)];
        if !text.is_empty() {
            headers.push("Content-Type: application/json".into());
        }
        let ask =
            move || xtask::http::request(address, method, &path, &headers, &text, Duration::from_secs(20));
        let first = std::thread::spawn(ask.clone());
        // Spread over the request and what follows it; not a wait for anything.
        std::thread::sleep(self.after);
        if self.who != Who::Agent {
            house.world.server.kill9().unwrap();
        }
        if self.who != Who::Server {
            house.world.agents[0].kill9().unwrap();
        }
        let first = first.join().unwrap().ok();
        if self.who != Who::Agent {
            house.world.restart_server().unwrap();
        }
        match self.who {
            Who::Server => house.world.await_node(0).unwrap(),
            Who::Agent | Who::Both => house.world.restart_agent(0).unwrap(),
        }
        let again = ask().unwrap();
        if let Some(first) = first {
            // A refusal is not kept: what was refused may be refused otherwise.
            assert!(first == again || first.status >= 400, "{self:?}: {first:?}, then {again:?}");
        }
        again
    }

    /// All jobs end, the object comes to this phase (or has gone), the auditor finds nothing; then it is deleted.
    fn ends(&self, house: &House, machine: &Machine, path: &str, phase: &str) {
        let runtime = Runtime::new().unwrap();
        let open = "SELECT id, verb, state, step, awaits FROM job WHERE finished_at IS NULL";
        until(&format!("all jobs to end: {self:?}"), BOOT, || {
            runtime.block_on(machine.tables.ask(open)).is_empty().then_some(())
        });
        let found = house.call("GET", path, Value::Null);
        let is = found.json["phase"].as_str().unwrap_or_default();
        // What was done before it was cancelled runs.
        let done_before = self.during == During::Undo && is == "running";
        assert!(is == phase || done_before, "{self:?}: {:#}", found.json);
        fits(&runtime, machine, &format!("{self:?}"));
        if found.status == 200 {
            house.delete(path);
            fits(&runtime, machine, &format!("{self:?}, deleted"));
        }
    }
}

fn json_of(reply: &Reply) -> Value {
    serde_json::from_str(&reply.body).unwrap()
}

fn machine(house: &House) -> Machine {
    let db = format!("sqlite:{}", house.world.home().join("rhyzome.db").display());
    Machine::of(&db, &house.world.folder, "node1")
}

/// Nothing is found, as soon as all is settled.
fn fits(runtime: &Runtime, machine: &Machine, when: &str) {
    let mut found = Vec::new();
    for _ in 0..SETTLED * 5 {
        found = runtime.block_on(machine.audit());
        if found.is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    panic!("{when}: {found:#?}");
}

#[test]
fn server_agent_or_both_killed_at_any_moment() {
    let (seed, mut house) = (seed(), House::new());
    let (before, machine) = (house.snapshot(), machine(&house));
    house.import_tiny();
    // What every moment needs is there; only what is asked for is interrupted.
    house.make("/v1/tenants/default/networks", json!({"name": "default", "spec": {}}));
    for number in 0..POINTS {
        let point = Point::of(seed, number);
        println!("seed {seed}: {point:?}");
        point.live(&mut house, &machine);
    }
    house.nothing_left(&before);
}

// === the auditor itself ===

/// Something that does not fit, put there by hand, and how it is taken away again.
struct Plant {
    wrong: Wrong,
    what: String,
    here: Vec<String>,
    away: Vec<String>,
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

/// One of each, on each side that can have it.
#[test]
fn the_auditor_of_machines_finds_what_is_planted() {
    let mut house = House::new();
    let (runtime, machine) = (Runtime::new().unwrap(), machine(&house));
    house.import_tiny();
    let web = house.make_instance("default", "web", json!({}));
    let id = web["id"].as_str().unwrap().to_owned();
    fits(&runtime, &machine, "nothing was planted");
    let audit = || runtime.block_on(machine.audit());
    let expect = |found: &[Finding], wrong: Wrong, what: &str| {
        let there = found.iter().any(|one| one.wrong == wrong && one.what.contains(what));
        assert!(there, "{wrong:?} {what}: {found:#?}");
    };
    // Nobody mends what is planted.
    house.world.agents[0].kill9().unwrap();
    for plant in plants(&house, &web) {
        run::output(Command::new(&plant.here[0]).args(&plant.here[1..])).unwrap();
        expect(&audit(), plant.wrong, &plant.what);
        run::output(Command::new(&plant.away[0]).args(&plant.away[1..])).unwrap();
        assert_eq!(audit(), [], "after {}", plant.what);
    }
    // Processes: one more of the same guest, one of nobody, and something else that works in the folder.
    let folder = house.world.folder.display().to_string();
    for (program, word, wrong, what) in [
        ("qemu-system-x86_64", format!("guest={id}"), Wrong::Duplicate, id.as_str()),
        ("qemu-system-x86_64", "guest=inst_nobody".into(), Wrong::Orphan, "inst_nobody"),
        ("copies", folder.clone(), Wrong::Orphan, "process copies"),
    ] {
        let mut command = Command::new("sh");
        command.arg0(program).args(["-c", "read line", &word, &folder]).stdin(Stdio::piped());
        let mut child = command.spawn().unwrap();
        until("the process to be there", 10, || audit().iter().any(|one| one.wrong == wrong).then_some(()));
        expect(&audit(), wrong, what);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert_eq!(audit(), []);
    house.qemu(&id).kill9();
    until("the guest to end", 10, || house.qemus(&id).is_empty().then_some(()));
    expect(&audit(), Wrong::Ghost, &format!("a guest of {id:?}"));
    // The rows, which are nobody's any more.
    house.world.server.kill9().unwrap();
    runtime
        .block_on(machine.tables.run(&format!("UPDATE job SET finished_at = NULL WHERE resource = '{id}'")));
    expect(&audit(), Wrong::Stuck, "job");
    runtime.block_on(machine.tables.run(&format!("DELETE FROM lease WHERE holder = '{id}'")));
    expect(&audit(), Wrong::Ghost, "is told to have nics.default.address");
}

fn plants(house: &House, web: &Value) -> Vec<Plant> {
    let (state, id) = (house.state(), web["id"].as_str().unwrap());
    let network = web["status"]["nics"]["default"]["network"].as_str().unwrap();
    let space = xtask::world::namespace_of(network);
    let disk = web["status"]["root_disk"].as_str().unwrap();
    let path = |name: &str| state.join(name).display().to_string();
    let plant = |wrong, what: &str, here: String, away: String| Plant {
        wrong,
        what: what.to_owned(),
        here: words(&here),
        away: words(&away),
    };
    let file = |wrong, what: &str, name: &str| {
        plant(wrong, what, format!("touch {}", path(name)), format!("rm {}", path(name)))
    };
    let rule = |verb: &str| {
        format!(
            "ip netns exec {space} nft {verb} element bridge rhyzome port_arp \
             {{ \"tdeadbeef00\" . 52:54:00:00:00:01 . 10.9.9.9 }}"
        )
    };
    let leases = path(&format!("networks/{network}/leases"));
    let mut lease = plant(Wrong::Leak, "DHCP lease", String::new(), String::new());
    lease.here =
        vec!["sh".into(), "-c".into(), format!("echo '99 52:54:00:00:00:01 10.9.9.9 * *' >>{leases}")];
    lease.away = words(&format!("sed -i /10.9.9.9/d {leases}"));
    vec![
        file(Wrong::Orphan, "disk_nobody", "disks/disk_nobody.qcow2"),
        file(Wrong::Orphan, "inst_nobody", "instances/inst_nobody"),
        file(Wrong::Orphan, "inst_nobody.json", "ledger/objects/inst_nobody.json"),
        file(Wrong::Orphan, "image", "images/of-nobody"),
        plant(
            Wrong::Ghost,
            disk,
            format!("mv {} {}", path(&format!("disks/{disk}.qcow2")), path("elsewhere")),
            format!("mv {} {}", path("elsewhere"), path(&format!("disks/{disk}.qcow2"))),
        ),
        plant(
            Wrong::Ghost,
            id,
            format!("mv {} {}", path(&format!("ledger/objects/{id}.json")), path("elsewhere")),
            format!("mv {} {}", path("elsewhere"), path(&format!("ledger/objects/{id}.json"))),
        ),
        plant(
            Wrong::Orphan,
            "tdeadbeef00",
            format!("ip netns exec {space} ip tuntap add tdeadbeef00 mode tap"),
            format!("ip netns exec {space} ip tuntap del tdeadbeef00 mode tap"),
        ),
        plant(
            Wrong::Orphan,
            "rz-nobody0000",
            "ip netns add rz-nobody0000".into(),
            "ip netns delete rz-nobody0000".into(),
        ),
        plant(Wrong::Orphan, "a rule for", rule("add"), rule("delete")),
        lease,
    ]
}
