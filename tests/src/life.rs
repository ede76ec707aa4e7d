//! The life of an object of each kind, made from the registry: made, used by an instance where a node can hold
//! it, changed, acted upon, taken away. And a run of it whose process may end at any commit, and comes back.

use std::sync::{Arc, Mutex};

use rhyzome_api::kernel::env::{Faults, Moment};
use rhyzome_api::kernel::resource::Call;
use rhyzome_api::kernel::{Caller, Clash, Env, Error, Held, Kind, NameRule, Right, Scope, Target};
use rhyzome_api::resources;
use rhyzome_api::store::{Asked, ImageContent, NewObject, Store, Terms, Write};
use serde_json::{Value, json};

use crate::audit::{Finding, audit};
use crate::drive::{calm, open_jobs};
use crate::given::Time;
use crate::node::SimNode;
use crate::world::{Engine, World};

/// What a client asks for, one after the other; each until it is so.
#[derive(Clone, Debug)]
pub enum Ask {
    /// Make an object of this kind and name.
    Make(&'static str, String, Value),
    /// Upload the bytes of an image.
    Content(String),
    /// Change an object.
    Patch(&'static str, String, Value),
    /// One of its kind's verbs.
    Act(&'static str, String, String),
    /// Take it away.
    Remove(&'static str, String),
    /// Take a tenant away, with all that it has.
    Empty(String),
}

/// A change of spec that has a job, for kinds that have such.
const CHANGES: [(&str, &str); 9] = [
    ("instance", r#"{"vcpus": 2}"#),
    ("disk", r#"{"size_bytes": 8589934592}"#),
    ("network", r#"{"dns": ["9.9.9.9"]}"#),
    ("vpn-pool", r#"{"enabled": false}"#),
    ("vpn-network", r#"{"expires_at": "2030-01-01T00:00:00Z"}"#),
    ("wireguard-server", r#"{"enabled": false}"#),
    ("wireguard-peer", r#"{"networks": ["10.30.0.0/16"]}"#),
    ("mesh", r#"{"keepalive_seconds": 5}"#),
    ("mesh-member", r#"{"endpoint": "203.0.113.9"}"#),
];

/// The example of the document.
fn example(kind: &dyn Kind) -> Value {
    serde_json::to_value(kind.schemas().spec.1).unwrap()["example"].clone()
}

/// How an instance names an object of this kind; none if it does not.
fn user(kind: &str, name: &str) -> Option<Value> {
    Some(match kind {
        "image" => json!({"image": name}),
        "disk" => json!({"image": "tiny", "disks": {"data": {"disk": name}}}),
        "network" => json!({"image": "tiny", "nics": {"lan": {"network": name}}}),
        "ssh-key" => json!({"image": "tiny", "ssh_keys": [name]}),
        "placement-group" => json!({"image": "tiny", "placement": {"groups": [name]}}),
        _ => return None,
    })
}

/// The name of the object that a life is about.
pub fn name(kind: &dyn Kind) -> String {
    if kind.meta().name == NameRule::Label { "the-one" } else { "theone" }.to_owned()
}

/// A whole life of an object of this kind.
pub fn life(kind: &'static dyn Kind) -> Vec<Ask> {
    let meta = kind.meta();
    let name = name(kind);
    let mut asks = vec![Ask::Make(meta.kind, name.clone(), on_node(kind, "n1"))];
    if meta.kind == "image" {
        asks.push(Ask::Content(name.clone()));
    }
    let user = user(meta.kind, &name);
    if let Some(spec) = &user {
        asks.push(Ask::Make("instance", "user".into(), spec.clone()));
    }
    let change = CHANGES.iter().find(|(of, _)| *of == meta.kind);
    if let Some((_, change)) = change {
        let spec: Value = serde_json::from_str(change).unwrap();
        asks.push(Ask::Patch(meta.kind, name.clone(), json!({"spec": spec})));
    }
    asks.push(Ask::Patch(meta.kind, name.clone(), json!({"tags": {"env": "prod"}})));
    for action in meta.actions {
        asks.push(Ask::Act(meta.kind, name.clone(), action.verb.to_owned()));
    }
    if user.is_some() {
        asks.push(Ask::Remove("instance", "user".into()));
    }
    asks.push(Ask::Remove(meta.kind, name));
    asks
}

/// True if tests are to ask this kind: all, or those that `RHYZOME_CONTRACT_OF` names (`mail-box,bucket`), for whoever
/// builds one.
pub fn is_asked(kind: &dyn Kind) -> bool {
    let only = std::env::var("RHYZOME_CONTRACT_OF").ok();
    only.is_none_or(|only| only.split(',').any(|one| one == kind.meta().kind))
}

/// True if a node can come to hold an object of this kind for itself, and so refuse it.
pub fn can_be_refused(kind: &dyn Kind) -> bool {
    // Disks come to a node with an instance.
    matches!(kind.meta().held, Held::Alone | Held::Among { .. }) && kind.meta().kind != "disk"
}

// === faults ===

/// Where processes end.
#[derive(Default)]
pub struct Strikes(Mutex<State>);

#[derive(Default)]
struct State {
    commits: u64,
    ended: bool,
    at: Vec<(u64, Moment)>,
    fails: Option<i64>,
    away: u64,
}

impl Faults for Strikes {
    fn ends(&self, moment: Moment) -> bool {
        let mut state = self.0.lock().unwrap();
        if state.ended {
            return true;
        }
        if moment == Moment::Before {
            state.commits += 1;
        }
        state.ended = state.at.contains(&(state.commits, moment));
        state.ended
    }

    fn fails(&self, step: i64) -> Option<String> {
        let state = self.0.lock().unwrap();
        (state.fails == Some(step)).then(|| format!("step {step} was made to fail"))
    }

    fn away(&self) -> bool {
        let mut state = self.0.lock().unwrap();
        let away = state.away > 0;
        state.away = state.away.saturating_sub(1);
        away
    }
}

impl Strikes {
    /// Counts from here, and ends there.
    pub fn plan(&self, at: &[(u64, Moment)]) {
        let mut state = self.0.lock().unwrap();
        (state.commits, state.at) = (0, at.to_vec());
    }

    /// Every job fails at this step.
    pub fn fail_at(&self, step: Option<i64>) {
        self.0.lock().unwrap().fails = step;
    }

    /// So many times from here the database cannot be reached.
    pub fn cut_off(&self, times: u64) {
        self.0.lock().unwrap().away = times;
    }

    /// Commits so far.
    pub fn commits(&self) -> u64 {
        self.0.lock().unwrap().commits
    }

    /// True after the process has ended.
    pub fn ended(&self) -> bool {
        self.0.lock().unwrap().ended
    }

    /// Another process begins.
    pub fn begin_again(&self) {
        self.0.lock().unwrap().ended = false;
    }
}

// === runs ===

/// A server that may end, its node, and a client that does not give up.
pub struct Run {
    /// The database.
    pub world: World,
    /// The server's door to it.
    pub store: Store,
    /// All nodes.
    pub nodes: Vec<SimNode>,
    /// The clock.
    pub time: Time,
    /// Where the process ends.
    pub strikes: Arc<Strikes>,
    /// How often it came back.
    pub comebacks: u32,
    /// What was there before, because the object of this life names it.
    needed: Vec<(&'static str, String)>,
    env: Env,
}

impl Run {
    /// A world with a node, an image, and all that an object of this kind names.
    pub async fn new(engine: Engine, kind: &'static dyn Kind) -> Run {
        let time = Time::begin();
        let strikes = Arc::new(Strikes::default());
        let env = time.env(7).with_faults(strikes.clone());
        let world = World::with_env(engine, env.clone()).await;
        let node = world.make_node("n1", 1 << 40).await;
        world.make_image("", "tiny").await;
        let mut needed = Vec::new();
        for (other, name) in named(&world, kind) {
            let spec = on_node(other, "n1");
            world.make(tenant(other), other.meta().kind, &name, spec).await;
            needed.push((other.meta().kind, name));
        }
        let mut nodes = vec![SimNode::new(&node, &time)];
        let store = world.store.clone();
        nodes[0].connect(&store).await.unwrap();
        let mut run = Run { world, store, nodes, time, strikes, comebacks: 0, needed, env };
        run.quiet().await;
        run
    }

    /// Takes away what was there for the object of this life.
    pub async fn leave(&mut self) {
        for (kind, name) in self.needed.split_off(0).into_iter().rev() {
            self.step(&Ask::Remove(kind, name)).await;
        }
    }

    fn right(&self, kind: &str) -> Right {
        Caller::system().may("all", "all", tenant(self.world.kind(kind))).unwrap()
    }

    /// The process has ended: another one opens the same database, and the agents dial in again.
    async fn come_back(&mut self) {
        loop {
            self.comebacks += 1;
            assert!(self.comebacks < 100, "it ends over and over");
            self.strikes.begin_again();
            let url = self.world.db.parse().unwrap();
            self.store = match Store::open(&url, self.env.clone(), resources::registry()).await {
                Ok(store) => {
                    store.seal_with(self.world.keyring.clone());
                    store
                }
                // What it does first is a commit too.
                Err(_) if self.strikes.ended() => continue,
                Err(error) => panic!("{error}"),
            };
            let mut good = true;
            for node in &mut self.nodes {
                // Every other time the agent ended with it.
                if self.comebacks.is_multiple_of(2) {
                    node.restart()
                } else {
                    node.lose()
                }
                good &= node.connect(&self.store).await.is_ok();
            }
            if good && !self.strikes.ended() {
                return;
            }
        }
    }

    /// Asks until it is so; what makes no sense in this state is left out.
    pub async fn ask(&mut self, ask: &Ask) {
        loop {
            match self.once(ask).await {
                Ok(()) | Err(Error::Clash(Clash::NameTaken(_) | Clash::WrongState(_))) => {}
                Err(Error::NotFound) if matches!(ask, Ask::Remove(..) | Ask::Empty(_)) => {}
                Err(Error::Unavailable(_)) => {
                    self.come_back().await;
                    // Whoever was not answered looks whether it was done.
                    if let Ask::Make(kind, name, _) = ask
                        && self.id(kind, name).await.is_some()
                    {
                        return;
                    }
                    continue;
                }
                Err(error) => panic!("{ask:?}: {error:?}"),
            }
            return;
        }
    }

    /// Asks, and waits for the quiet; not after an image was made, because it waits for its bytes.
    pub async fn step(&mut self, ask: &Ask) {
        self.ask(ask).await;
        if !matches!(ask, Ask::Make("image", ..)) {
            self.quiet().await;
        }
    }

    async fn once(&self, ask: &Ask) -> Result<(), Error> {
        let (store, asked) = (&self.store, Asked::default());
        match ask {
            Ask::Make(kind, name, spec) => {
                let body = NewObject { name: Some(name.clone()), spec: spec.clone(), ..NewObject::default() };
                store.create(&self.right(kind), self.world.kind(kind), body, &asked).await?;
            }
            Ask::Content(name) => {
                let content = ImageContent {
                    sha256: "b".repeat(64),
                    size_bytes: 1 << 20,
                    virtual_size_bytes: 1 << 30,
                    format: "qcow2".into(),
                };
                store.set_image_content(&self.right("image"), name, content, &asked).await?;
            }
            Ask::Patch(kind, name, patch) => {
                let kind = self.world.kind(kind);
                store.update(&self.right(kind.meta().kind), kind, name, patch.clone(), None, &asked).await?;
            }
            Ask::Act(kind, name, verb) => {
                let call = Call { verb: verb.clone(), ..Call::default() };
                let right = self.right(kind);
                store.act(&right, self.world.kind(kind), name, call, false, None, &asked).await?;
            }
            Ask::Remove(kind, name) => {
                store.remove(&self.right(kind), self.world.kind(kind), name, None, &asked).await?;
            }
            Ask::Empty(name) => {
                let write = Write::Empty {
                    kind: self.world.kind("tenant"),
                    id: name.clone(),
                    if_match: None,
                    realm: false,
                };
                store.perform(&self.right("tenant"), write, &asked, &Terms::default()).await?;
            }
        }
        Ok(())
    }

    /// Until all jobs have ended and the nodes are at rest, or hours have passed.
    pub async fn quiet(&mut self) {
        for _ in 0..260 {
            let calm = calm(&self.store, &mut self.nodes).await;
            if calm.is_err() || self.strikes.ended() {
                self.come_back().await;
                continue;
            }
            if open_jobs(&self.world).await.is_empty() {
                return;
            }
            self.time.pass(17);
        }
    }

    /// The whole of a life, with an audit at its end.
    pub async fn live(&mut self, life: &[Ask]) -> Vec<Finding> {
        for ask in life {
            self.step(ask).await;
        }
        audit(&self.world, &self.nodes).await
    }

    /// The id of a living object.
    pub async fn id(&self, kind: &str, name: &str) -> Option<String> {
        let kind = self.world.kind(kind);
        let found = self.store.get(&self.right(kind.meta().kind), kind, name).await;
        found.ok().map(|object| object.core.id)
    }
}

/// All that an example names, and what those name in turn: first what the others need. The node and the image are there.
fn named(world: &World, kind: &dyn Kind) -> Vec<(&'static dyn Kind, String)> {
    let mut all: Vec<(&'static dyn Kind, String)> = Vec::new();
    for reference in kind.refs(&kind.complete(&example(kind)).unwrap()) {
        let (Target::Named(name), None) = (&reference.target, &reference.or_make) else { continue };
        if matches!(reference.kind, "node" | "image") {
            continue;
        }
        let other = world.kind(reference.kind);
        for one in named(world, other).into_iter().chain([(other, name.clone())]) {
            if !all.iter().any(|(kind, name)| kind.meta().kind == one.0.meta().kind && *name == one.1) {
                all.push(one);
            }
        }
    }
    all
}

/// The example, on this node if it is to say one.
fn on_node(kind: &dyn Kind, node: &str) -> Value {
    let mut spec = example(kind);
    if spec["node"].is_string() {
        spec["node"] = node.into();
    }
    spec
}

fn tenant(kind: &dyn Kind) -> &'static str {
    if kind.meta().scope == Scope::Operator { "" } else { "default" }
}
