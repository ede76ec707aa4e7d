//! State by verb: every action in every state has one specified outcome. A new action without a row fails by
//! name.

use rhyzome_api::kernel::resource::Call;
use rhyzome_api::kernel::{Error, Kind};
use rhyzome_api::store::Asked;
use rhyzome_tests::drive::{calm, settle};
use rhyzome_tests::given::Time;
use rhyzome_tests::node::SimNode;
use rhyzome_tests::world::{Engine, World};
use serde_json::json;

/// Each cell: the phase in the answer, and the phase when all is quiet; or that it is refused.
///
/// `creating`, `starting`, `stopping`, `deleting`: its node has not said anything yet. `failed`: its creation
/// failed. `unapplied`: a change of it failed. `away`: it ran, and its node has lost its connection, and comes
/// back later.
const INSTANCE: &str = "
            | creating           | running            | starting           | stopping           | stopped            | paused             | failed            | unapplied          | away               | deleting
start       | starting running   | starting running   | starting running   | starting running   | starting running   | refused            | refused           | starting running   | starting running   | refused
stop        | stopping stopped   | stopping stopped   | stopping stopped   | stopping stopped   | stopping stopped   | stopping stopped   | refused           | stopping stopped   | stopping stopped   | refused
stop!       | stopping stopped   | stopping stopped   | stopping stopped   | stopping stopped   | stopping stopped   | stopping stopped   | refused           | stopping stopped   | stopping stopped   | refused
restart     | restarting running | restarting running | restarting running | refused            | refused            | refused            | refused           | restarting running | restarting running | refused
restart!    | restarting running | restarting running | restarting running | refused            | refused            | restarting running | refused           | restarting running | restarting running | refused
pause       | pausing paused     | pausing paused     | pausing paused     | refused            | refused            | pausing paused     | refused           | pausing paused     | pausing paused     | refused
resume      | resuming running   | resuming running   | resuming running   | refused            | refused            | resuming running   | refused           | resuming running   | resuming running   | refused
patch       | updating running   | updating running   | updating running   | updating stopped   | updating stopped   | updating paused    | refused           | updating running   | updating running   | refused
power-off   | stopping stopped   | stopping stopped   | stopping stopped   | stopping stopped   | stopped stopped    | stopping stopped   | refused           | stopping stopped   | stopping stopped   | refused
rename      | creating running   | running running    | starting running   | stopping stopped   | stopped stopped    | paused paused      | failed failed     | running running    | running running    | refused
delete      | deleting gone      | deleting gone      | deleting gone      | deleting gone      | deleting gone      | deleting gone      | deleting gone     | deleting gone      | deleting gone      | refused
retry       | refused            | refused            | refused            | refused            | refused            | refused            | creating running  | updating running   | refused            | refused
cancel      | creating failed    | refused            | stopped running    | running stopped    | refused            | refused            | refused           | refused            | refused            | refused
";

/// The same of a node; each cell: whether it is open, cordoned or gone when all is quiet.
///
/// `busy`: a guest runs on it whose disk is nowhere else. `draining`: that guest has not stopped yet.
const NODE: &str = "
       | empty    | busy     | draining
drain  | cordoned | refused  | refused
drain! | cordoned | cordoned | cordoned
patch  | open     | open     | cordoned
delete | gone     | refused  | refused
retry  | refused  | refused  | refused
cancel | refused  | refused  | open
";

/// The same of a mesh member; each cell: its phase when all is quiet, or that it is gone.
const MESH_MEMBER: &str = "
       | ready   | deleting
rotate | ready   | refused
patch  | ready   | refused
delete | gone    | refused
retry  | refused | refused
cancel | refused | refused
";

/// The same of a tenant with an instance; each cell: its phase when all is quiet, and how its instance is.
///
/// `suspending`: its instance has not stopped yet.
const TENANT: &str = "
        | ready             | suspending        | suspended
suspend | suspended stopped | suspended stopped | suspended stopped
resume  | refused           | ready running     | ready running
patch   | ready running     | suspended stopped | suspended stopped
delete  | refused           | refused           | refused
retry   | refused           | refused           | refused
cancel  | refused           | suspended stopped | refused
";

/// Kinds with actions, and their tables.
const TABLES: [(&str, &str); 4] =
    [("instance", INSTANCE), ("node", NODE), ("mesh-member", MESH_MEMBER), ("tenant", TENANT)];

/// Verbs that every kind has.
const COMMON: [&str; 4] = ["patch", "delete", "retry", "cancel"];

struct Stage {
    world: World,
    time: Time,
    nodes: Vec<SimNode>,
    count: u32,
}

impl Stage {
    async fn new(engine: Engine) -> Stage {
        let time = Time::begin();
        let world = World::with_time(engine, &time, 1).await;
        let id = world.make_node("n1", 1 << 44).await;
        world.make_image("", "tiny").await;
        let mut node = SimNode::new(&id, &time);
        node.connect(&world.store).await.unwrap();
        Stage { world, time, nodes: vec![node], count: 0 }
    }

    fn kind(&self) -> &'static dyn Kind {
        self.world.kind("instance")
    }

    async fn quiet(&mut self) {
        let stuck = settle(&self.world, &self.world.store, &mut self.nodes, &self.time).await.unwrap();
        assert!(stuck.is_empty(), "stuck: {stuck:?}");
    }

    async fn act(&self, id: &str, verb: &str, hard: bool) -> Result<String, Error> {
        let call = Call { verb: verb.into(), hard, ..Call::default() };
        let right = self.world.right("default");
        let done =
            self.world.store.act(&right, self.kind(), id, call, false, None, &Asked::default()).await?;
        Ok(done.object.core.phase)
    }

    async fn patch(&self, id: &str, patch: serde_json::Value) -> Result<String, Error> {
        let right = self.world.right("default");
        let done = self.world.store.update(&right, self.kind(), id, patch, None, &Asked::default()).await?;
        Ok(done.object.core.phase)
    }

    async fn phase(&self, id: &str) -> String {
        match self.world.store.get(&self.world.right("default"), self.kind(), id).await {
            Ok(object) => object.core.phase,
            Err(Error::NotFound) => "gone".to_owned(),
            Err(error) => panic!("{error}"),
        }
    }

    async fn job(&self, id: &str) -> String {
        let object = self.world.store.get(&self.world.right("default"), self.kind(), id).await.unwrap();
        object.core.job.unwrap()
    }

    /// An instance in this state; its id.
    async fn bring_to(&mut self, state: &str) -> String {
        self.count += 1;
        let name = format!("i{}", self.count);
        let id = self.world.make("default", "instance", &name, json!({"image": "tiny"})).await.object.core.id;
        match state {
            "creating" => return id,
            "failed" => drop(self.nodes[0].refuses.insert(id.clone(), "no such machine".into())),
            _ => {}
        }
        self.quiet().await;
        let verbs: &[&str] = match state {
            "starting" => &["stop", "start"],
            "stopping" | "stopped" => &["stop"],
            "paused" => &["pause"],
            _ => &[],
        };
        for (index, verb) in verbs.iter().enumerate() {
            self.act(&id, verb, false).await.unwrap();
            // The last word of these has not been answered yet.
            if index + 1 < verbs.len() || matches!(state, "stopped" | "paused") {
                self.quiet().await;
            }
        }
        match state {
            "unapplied" => {
                self.nodes[0].refuses.insert(id.clone(), "it does not fit".into());
                self.patch(&id, json!({"spec": {"vcpus": 2}})).await.unwrap();
                self.quiet().await;
            }
            "away" => self.nodes[0].disconnect(&self.world.store).await.unwrap(),
            "deleting" => {
                self.remove(&id).await.unwrap();
            }
            _ => {}
        }
        self.nodes[0].refuses.clear();
        id
    }

    async fn call(&mut self, id: &str, verb: &str) -> Result<String, Error> {
        let (store, right) = (self.world.store.clone(), self.world.right("default"));
        match verb {
            "patch" => self.patch(id, json!({"spec": {"vcpus": 4}})).await,
            "power-off" => self.patch(id, json!({"spec": {"power": "off"}})).await,
            "rename" => self.patch(id, json!({"name": format!("new{}", self.count)})).await,
            "delete" => self.remove(id).await,
            "retry" | "cancel" => {
                let job = self.job(id).await;
                match verb {
                    "retry" => store.retry_job(&right, &job, &Asked::default()).await?,
                    _ => store.cancel_job(&right, &job).await?,
                };
                Ok(self.phase(id).await)
            }
            verb => match verb.strip_suffix('!') {
                Some(verb) => self.act(id, verb, true).await,
                None => self.act(id, verb, false).await,
            },
        }
    }

    async fn remove(&self, id: &str) -> Result<String, Error> {
        let right = self.world.right("default");
        let done = self.world.store.remove(&right, self.kind(), id, None, &Asked::default()).await?;
        Ok(done.object.core.phase)
    }

    /// Whatever its state was: the name is free with the acknowledgement.
    async fn its_name_is_free(&self, name: &str) {
        let again = self.world.make("default", "instance", name, json!({"image": "tiny"})).await;
        self.remove(&again.object.core.id).await.unwrap();
    }

    /// What comes of a verb in a state.
    async fn outcome(&mut self, state: &str, verb: &str) -> String {
        let id = self.bring_to(state).await;
        let said = match self.call(&id, verb).await {
            Ok(phase) => phase,
            Err(Error::Clash(_)) => "refused".to_owned(),
            Err(error) => panic!("{verb} of what is {state}: {error}"),
        };
        if !self.nodes[0].connected() {
            // Nothing that needs the node is said to be done while it is away.
            calm(&self.world.store, &mut self.nodes).await.unwrap();
            self.nodes[0].connect(&self.world.store).await.unwrap();
        }
        if verb == "delete" {
            self.its_name_is_free(&format!("i{}", self.count)).await;
        }
        self.quiet().await;
        let end = self.phase(&id).await;
        if end != "gone" {
            self.remove(&id).await.unwrap();
        }
        if said == "refused" { said } else { format!("{said} {end}") }
    }
}

fn cells(line: &str) -> Vec<String> {
    line.split('|').map(|cell| cell.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

async fn the_table_holds(engine: Engine) {
    let mut stage = Stage::new(engine).await;
    let mut lines = INSTANCE.lines().filter(|line| !line.trim().is_empty()).map(cells);
    let states = lines.next().unwrap();
    let mut wrong = Vec::new();
    for line in lines {
        assert_eq!(line.len(), states.len(), "{} has a hole", line[0]);
        for (state, wanted) in states.iter().zip(&line).skip(1) {
            let got = stage.outcome(state, &line[0]).await;
            if got != *wanted {
                wrong.push(format!("{} of what is {state}: `{got}`, not `{wanted}`", line[0]));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What comes of a verb of a node in a state.
async fn outcome_of_node(engine: Engine, state: &str, verb: &str) -> String {
    let mut stage = Stage::new(engine).await;
    let (store, right, kind) = (stage.world.store.clone(), stage.world.right(""), stage.world.kind("node"));
    let asked = Asked::default();
    let drain = |hard| Call { verb: "drain".into(), hard, ..Call::default() };
    if state != "empty" {
        stage.bring_to("running").await;
    }
    if state == "draining" {
        store.act(&right, kind, "n1", drain(true), false, None, &asked).await.unwrap();
    }
    let done = match verb {
        "drain" => store.act(&right, kind, "n1", drain(false), false, None, &asked).await.map(drop),
        "drain!" => store.act(&right, kind, "n1", drain(true), false, None, &asked).await.map(drop),
        "patch" => {
            let patch = json!({"spec": {"vcpu_overcommit": 4.0}});
            store.update(&right, kind, "n1", patch, None, &asked).await.map(drop)
        }
        "delete" => store.remove(&right, kind, "n1", None, &asked).await.map(drop),
        verb => match store.get(&right, kind, "n1").await.unwrap().core.job {
            Some(job) if verb == "retry" => store.retry_job(&right, &job, &asked).await.map(drop),
            Some(job) => store.cancel_job(&right, &job).await.map(drop),
            None => return "refused".to_owned(),
        },
    };
    match done {
        Err(Error::Clash(_)) => return "refused".to_owned(),
        done => done.unwrap(),
    }
    stage.quiet().await;
    match store.get(&right, kind, "n1").await {
        Ok(node) if node.spec["cordoned"] == true => "cordoned".to_owned(),
        Ok(_) => "open".to_owned(),
        Err(_) => "gone".to_owned(),
    }
}

async fn the_table_of_nodes_holds(engine: Engine) {
    let mut lines = NODE.lines().filter(|line| !line.trim().is_empty()).map(cells);
    let states = lines.next().unwrap();
    for line in lines {
        for (state, wanted) in states.iter().zip(&line).skip(1) {
            let got = outcome_of_node(engine, state, &line[0]).await;
            assert_eq!(got, *wanted, "{} of a node that is {state}", line[0]);
        }
    }
}

#[tokio::test]
async fn the_table_of_nodes_holds_on_sqlite() {
    the_table_of_nodes_holds(Engine::Sqlite).await;
}

#[tokio::test]
async fn the_table_of_nodes_holds_on_postgres() {
    the_table_of_nodes_holds(Engine::Postgres).await;
}

#[tokio::test]
async fn the_table_holds_on_sqlite() {
    the_table_holds(Engine::Sqlite).await;
}

#[tokio::test]
async fn the_table_holds_on_postgres() {
    the_table_holds(Engine::Postgres).await;
}

#[test]
fn no_action_is_without_a_row() {
    for kind in rhyzome_api::resources::registry().all() {
        let meta = kind.meta();
        if meta.actions.is_empty() {
            continue;
        }
        let table = TABLES.iter().find(|(of, _)| *of == meta.kind);
        let (_, table) = table.unwrap_or_else(|| panic!("kind {} has actions and no table", meta.kind));
        let rows: Vec<String> = table.lines().map(|line| cells(line)[0].clone()).collect();
        for verb in meta.actions.iter().map(|action| action.verb).chain(COMMON) {
            assert!(rows.iter().any(|row| row == verb), "{} {verb}: its table has no row", meta.kind);
        }
    }
}

/// The node takes the order and does nothing: whoever stops the guest then finds it stopped in the end.
async fn a_hung_start_ends_stopped(engine: Engine) {
    for hard in [false, true] {
        let mut stage = Stage::new(engine).await;
        let id = stage.bring_to("stopped").await;
        stage.act(&id, "start", false).await.unwrap();
        stage.nodes[0].hear(&stage.world.store).await.unwrap();
        stage.act(&id, "stop", hard).await.unwrap();
        // Nothing is heard of the start for as long as it may take.
        for _ in 0..40 {
            rhyzome_api::jobs::look(&stage.world.store).await.unwrap();
            stage.time.pass(17);
        }
        stage.quiet().await;
        assert_eq!(stage.phase(&id).await, "stopped", "hard: {hard}");
        let running = stage.nodes[0].world.instances.values().filter(|i| i.process.is_some()).count();
        assert_eq!(running, 0);
    }
}

#[tokio::test]
async fn a_hung_start_ends_stopped_on_sqlite() {
    a_hung_start_ends_stopped(Engine::Sqlite).await;
}

#[tokio::test]
async fn a_hung_start_ends_stopped_on_postgres() {
    a_hung_start_ends_stopped(Engine::Postgres).await;
}

/// What comes of a verb of a mesh member in a state.
async fn outcome_of_member(engine: Engine, state: &str, verb: &str) -> String {
    let mut stage = Stage::new(engine).await;
    let (store, right) = (stage.world.store.clone(), stage.world.right(""));
    let (kind, asked) = (stage.world.kind("mesh-member"), Asked::default());
    stage.world.make("", "mesh", "backbone", json!({"prefix": "10.98.0.0/24"})).await;
    stage.world.make("", "mesh-member", "m1", json!({"mesh": "backbone", "node": "n1"})).await;
    stage.quiet().await;
    if state == "deleting" {
        store.remove(&right, kind, "m1", None, &asked).await.unwrap();
    }
    let done = match verb {
        "rotate" => {
            let call = Call { verb: verb.into(), ..Call::default() };
            store.act(&right, kind, "m1", call, false, None, &asked).await.map(drop)
        }
        "patch" => {
            let patch = json!({"spec": {"endpoint": "203.0.113.7"}});
            store.update(&right, kind, "m1", patch, None, &asked).await.map(drop)
        }
        "delete" => store.remove(&right, kind, "m1", None, &asked).await.map(drop),
        verb => match store.get(&right, kind, "m1").await.ok().and_then(|member| member.core.job) {
            Some(job) if verb == "retry" => store.retry_job(&right, &job, &asked).await.map(drop),
            Some(job) => store.cancel_job(&right, &job).await.map(drop),
            None => return "refused".to_owned(),
        },
    };
    match done {
        Err(Error::Clash(_) | Error::NotFound) => return "refused".to_owned(),
        done => done.unwrap(),
    }
    stage.quiet().await;
    store.get(&right, kind, "m1").await.map_or_else(|_| "gone".to_owned(), |member| member.core.phase)
}

async fn the_table_of_mesh_members_holds(engine: Engine) {
    let mut lines = MESH_MEMBER.lines().filter(|line| !line.trim().is_empty()).map(cells);
    let states = lines.next().unwrap();
    for line in lines {
        for (state, wanted) in states.iter().zip(&line).skip(1) {
            let got = outcome_of_member(engine, state, &line[0]).await;
            assert_eq!(got, *wanted, "{} of a mesh member that is {state}", line[0]);
        }
    }
}

#[tokio::test]
async fn the_table_of_mesh_members_holds_on_sqlite() {
    the_table_of_mesh_members_holds(Engine::Sqlite).await;
}

#[tokio::test]
async fn the_table_of_mesh_members_holds_on_postgres() {
    the_table_of_mesh_members_holds(Engine::Postgres).await;
}

/// What comes of a verb of a tenant in a state.
async fn outcome_of_tenant(engine: Engine, state: &str, verb: &str) -> String {
    let mut stage = Stage::new(engine).await;
    let (store, right) = (stage.world.store.clone(), stage.world.right(""));
    let (kind, asked) = (stage.world.kind("tenant"), Asked::default());
    let id = stage.bring_to("running").await;
    let act = async |verb: &str| {
        let call = Call { verb: verb.into(), ..Call::default() };
        store.act(&right, kind, "default", call, false, None, &asked).await.map(drop)
    };
    if state != "ready" {
        act("suspend").await.unwrap();
    }
    if state == "suspended" {
        stage.quiet().await;
    }
    let job = async || store.get(&right, kind, "default").await.unwrap().core.job;
    let done = match verb {
        "patch" => {
            let patch = json!({"spec": {"billing_reference": "4711"}});
            store.update(&right, kind, "default", patch, None, &asked).await.map(drop)
        }
        "delete" => store.remove(&right, kind, "default", None, &asked).await.map(drop),
        "retry" | "cancel" => match job().await {
            Some(job) if verb == "retry" => store.retry_job(&right, &job, &asked).await.map(drop),
            Some(job) => store.cancel_job(&right, &job).await.map(drop),
            None => return "refused".to_owned(),
        },
        verb => act(verb).await,
    };
    match done {
        Err(Error::Clash(_) | Error::NotFound) => return "refused".to_owned(),
        done => done.unwrap(),
    }
    stage.quiet().await;
    let tenant = store.get(&right, kind, "default").await.unwrap();
    format!("{} {}", tenant.core.phase, stage.phase(&id).await)
}

async fn the_table_of_tenants_holds(engine: Engine) {
    let mut lines = TENANT.lines().filter(|line| !line.trim().is_empty()).map(cells);
    let states = lines.next().unwrap();
    for line in lines {
        for (state, wanted) in states.iter().zip(&line).skip(1) {
            let got = outcome_of_tenant(engine, state, &line[0]).await;
            assert_eq!(got, *wanted, "{} of a tenant that is {state}", line[0]);
        }
    }
}

#[tokio::test]
async fn the_table_of_tenants_holds_on_sqlite() {
    the_table_of_tenants_holds(Engine::Sqlite).await;
}

#[tokio::test]
async fn the_table_of_tenants_holds_on_postgres() {
    the_table_of_tenants_holds(Engine::Postgres).await;
}
