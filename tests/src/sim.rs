//! Simulation: the production store and jobs, and agents whose ledger, decisions and reports are the real ones,
//! in one process, from a seed. Clients ask for anything at any time; connections are lost, reports come late
//! and twice, machines and servers end, clocks jump, replies to commits are lost, disks are full, the database is
//! away. When all is healed and quiet the auditor looks. The same seed does the same.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use rhyzome_api::jobs;
use rhyzome_api::kernel::env::Moment;
use rhyzome_api::kernel::resource::Call;
use rhyzome_api::kernel::{Env, Error};
use rhyzome_api::resources;
use rhyzome_api::store::{Asked, NewObject, NodeReport, Store};
use serde_json::{Value, json};

use crate::audit::{Finding, Wrong, audit};
use crate::drive::{calm, open_jobs};
use crate::given::{Dice, Time};
use crate::life::Strikes;
use crate::node::SimNode;
use crate::world::{Engine, World};

const NODES: usize = 3;

/// How a simulation came out.
#[derive(Debug)]
pub struct Story {
    /// Of which seed.
    pub seed: u64,
    /// A digest of all that happened and of what stands in the database at the end.
    pub trace: u64,
    /// What went wrong on purpose, and how often.
    pub faults: BTreeMap<&'static str, u64>,
    /// What does not fit at the end.
    pub found: Vec<Finding>,
    /// The last things that happened.
    pub last: VecDeque<String>,
}

struct Sim {
    world: World,
    store: Store,
    nodes: Vec<SimNode>,
    /// Reports that were sent and have not arrived.
    wires: Vec<VecDeque<NodeReport>>,
    /// Agents that stand still.
    paused: [bool; NODES],
    time: Time,
    dice: Dice,
    strikes: Arc<Strikes>,
    comebacks: u64,
    hasher: DefaultHasher,
    story: Story,
}

/// A simulation from this seed on this database, with so many things that happen.
pub async fn run(engine: Engine, seed: u64, steps: u32) -> Story {
    let mut sim = Sim::new(engine, seed).await;
    for _ in 0..steps {
        sim.step().await;
    }
    sim.heal().await;
    sim.end().await
}

fn env(seed: u64, comebacks: u64, time: &Time, strikes: &Arc<Strikes>) -> Env {
    time.env(seed.wrapping_mul(1_000).wrapping_add(comebacks)).with_faults(strikes.clone())
}

impl Sim {
    async fn new(engine: Engine, seed: u64) -> Sim {
        let (time, strikes) = (Time::begin(), Arc::new(Strikes::default()));
        let world = World::with_env(engine, env(seed, 0, &time, &strikes)).await;
        let mut nodes = Vec::new();
        for index in 0..NODES {
            let id = world.make_node(&format!("n{index}"), 8 << 30).await;
            nodes.push(SimNode::new(&id, &time));
        }
        world.make_image("", "tiny").await;
        let pool = json!({"driver": "dir", "path": "/srv/all", "shared": true});
        world.make("", "storage-pool", "everywhere", pool).await;
        let store = world.store.clone();
        for node in &mut nodes {
            node.connect(&store).await.unwrap();
        }
        let story =
            Story { seed, trace: 0, faults: BTreeMap::new(), found: Vec::new(), last: VecDeque::new() };
        Sim {
            world,
            store,
            nodes,
            wires: vec![VecDeque::new(); NODES],
            paused: [false; NODES],
            time,
            dice: Dice::new(seed),
            strikes,
            comebacks: 0,
            hasher: DefaultHasher::new(),
            story,
        }
    }

    fn note(&mut self, what: impl Into<String>) {
        let what = what.into();
        what.hash(&mut self.hasher);
        self.story.last.push_back(what);
        if self.story.last.len() > 60 {
            self.story.last.pop_front();
        }
    }

    fn fault(&mut self, what: &'static str) {
        *self.story.faults.entry(what).or_default() += 1;
        self.note(what);
    }

    fn pick(&mut self, most: usize) -> usize {
        usize::try_from(self.dice.below(most as u64)).unwrap()
    }

    async fn step(&mut self) {
        let index = self.pick(NODES);
        let done = match self.dice.below(100) {
            0..20 => self.client().await,
            20..40 => jobs::look_in_turn(&self.store).await,
            40..55 if !self.paused[index] => self.nodes[index].hear(&self.store).await.map(drop),
            55..70 if !self.paused[index] => {
                let said = self.nodes[index].work_once().unwrap_or_default();
                self.note(format!("n{index} {said}"));
                Ok(())
            }
            70..78 if !self.paused[index] => {
                let news = self.nodes[index].news();
                self.wires[index].extend(news);
                Ok(())
            }
            78..91 => self.deliver(index).await,
            91..95 => {
                let seconds = i64::try_from(self.dice.below(20)).unwrap();
                self.time.pass(seconds);
                Ok(())
            }
            _ => self.misfortune(index).await,
        };
        self.hear_of(done).await;
    }

    /// What is refused is refused; what the database cannot do now it can do later; anything else is a fault of ours.
    async fn hear_of(&mut self, done: Result<(), Error>) {
        match done {
            Ok(()) => {}
            Err(Error::Unavailable(_)) if self.strikes.ended() => self.come_back().await,
            Err(Error::Internal(text)) => {
                self.story
                    .found
                    .push(Finding { wrong: Wrong::Stuck, what: format!("a fault of ours: {text}") });
            }
            Err(error) => self.note(format!("refused: {error}")),
        }
    }

    async fn deliver(&mut self, index: usize) -> Result<(), Error> {
        let Some(report) = self.wires[index].pop_front() else { return Ok(()) };
        let id = self.nodes[index].id.clone();
        self.note(format!("n{index} says {} {}", report.object_id, report.state));
        let twice = self.dice.percent(10);
        if twice {
            self.fault("a report comes twice");
        }
        for _ in 0..=usize::from(twice) {
            let kept = self.store.record_report(&id, report.clone()).await;
            // As the channel does: what cannot be kept now is kept as soon as it can be.
            if matches!(kept, Err(Error::Unavailable(_))) && !self.strikes.ended() {
                self.wires[index].push_front(report);
                return kept;
            }
            kept?;
        }
        Ok(())
    }

    async fn misfortune(&mut self, index: usize) -> Result<(), Error> {
        let store = self.store.clone();
        match self.dice.below(11) {
            0 | 1 => {
                self.fault("a connection is lost");
                // What was under way may arrive, or not.
                if self.dice.percent(50) {
                    self.wires[index].clear();
                }
                self.nodes[index].lose();
                Ok(())
            }
            2 => {
                self.fault("a session ends");
                self.wires[index].clear();
                self.nodes[index].disconnect(&store).await
            }
            3 | 4 => {
                self.note(format!("n{index} dials in"));
                if self.paused[index] { Ok(()) } else { self.nodes[index].connect(&store).await }
            }
            5 => {
                self.fault("an agent is killed");
                self.wires[index].clear();
                self.nodes[index].restart();
                Ok(())
            }
            6 => {
                self.fault("a machine reboots");
                self.wires[index].clear();
                self.nodes[index].reboot();
                Ok(())
            }
            7 => {
                self.fault("an agent stands still, or goes on");
                self.paused[index] = !self.paused[index];
                Ok(())
            }
            8 => {
                self.fault("a disk is full, or has room again");
                let node = &mut self.nodes[index];
                if node.is_full() {
                    node.relieve()
                } else {
                    node.fill()
                }
                Ok(())
            }
            9 => {
                self.fault("a server is cut off from its database");
                self.strikes.cut_off(1 + self.dice.below(20));
                Ok(())
            }
            _ if self.dice.percent(50) => {
                self.fault("the clock jumps");
                let seconds = i64::try_from(self.dice.below(600)).unwrap() - 300;
                self.time.pass(seconds);
                Ok(())
            }
            _ => {
                self.fault("a server ends at a commit");
                let moment = [Moment::Before, Moment::Inside, Moment::After][self.pick(3)];
                let commit = 1 + self.dice.below(5);
                self.strikes.plan(&[(commit, moment)]);
                Ok(())
            }
        }
    }

    /// Another process opens the database; its ids and its clock are its own. Every session has ended with the first.
    async fn come_back(&mut self) {
        loop {
            self.comebacks += 1;
            self.strikes.begin_again();
            let env = env(self.story.seed, self.comebacks, &self.time, &self.strikes);
            let url = self.world.db.parse().unwrap();
            if let Ok(store) = Store::open(&url, env, resources::registry()).await {
                self.store = store;
                break;
            }
        }
        for index in 0..NODES {
            self.nodes[index].lose();
            self.wires[index].clear();
        }
        self.note("another server comes");
    }

    // === clients ===

    async fn client(&mut self) -> Result<(), Error> {
        let name = format!("i{}", self.dice.below(6));
        let kind = ["instance", "instance", "instance", "disk", "network"][self.pick(5)];
        let roll = self.dice.below(100);
        self.note(format!("a client: {kind} {name} {roll}"));
        let (right, of) = (self.world.right("default"), self.world.kind(kind));
        let (store, asked) = (self.store.clone(), Asked::default());
        match roll {
            0..30 => {
                let spec = self.spec(kind);
                let body = NewObject { name: Some(name), spec, ..NewObject::default() };
                store.create(&right, of, body, &asked).await.map(drop)
            }
            30..50 => store.remove(&right, of, &name, None, &asked).await.map(drop),
            50..75 => {
                let verb = ["start", "stop", "restart", "pause", "resume"][self.pick(5)];
                let hard = self.dice.percent(30) && matches!(verb, "stop" | "restart");
                let call = Call { verb: verb.into(), hard, ..Call::default() };
                let supersede = self.dice.percent(20);
                store
                    .act(&right, self.world.kind("instance"), &name, call, supersede, None, &asked)
                    .await
                    .map(drop)
            }
            75..85 => {
                let vcpus = 1 + self.dice.below(4);
                let patch = match kind {
                    "instance" => json!({"spec": {"vcpus": vcpus}}),
                    "disk" => json!({"spec": {"size_bytes": (vcpus << 30)}}),
                    _ => json!({"spec": {"dns": [format!("9.9.9.{vcpus}")]}}),
                };
                store.update(&right, of, &name, patch, None, &asked).await.map(drop)
            }
            85..96 => self.about_a_job().await,
            96..98 => {
                let hard = self.dice.percent(50);
                let call = Call { verb: "drain".into(), hard, ..Call::default() };
                let node = format!("n{}", self.pick(NODES));
                let (right, of) = (self.world.right(""), self.world.kind("node"));
                store.act(&right, of, &node, call, false, None, &asked).await.map(drop)
            }
            _ => {
                let node = format!("n{}", self.pick(NODES));
                let patch = json!({"spec": {"cordoned": false}});
                let (right, of) = (self.world.right(""), self.world.kind("node"));
                store.update(&right, of, &node, patch, None, &asked).await.map(drop)
            }
        }
    }

    fn spec(&mut self, kind: &str) -> Value {
        match kind {
            "disk" => json!({"size_bytes": 1 << 30}),
            "network" => json!({}),
            _ => {
                let mut spec = json!({"image": "tiny"});
                if self.dice.percent(40) {
                    spec["root"] = json!({"pool": "everywhere"});
                }
                if self.dice.percent(30) {
                    spec["disks"] = json!({"data": {"disk": format!("i{}", self.dice.below(6))}});
                }
                if self.dice.percent(30) {
                    spec["nics"] = json!({"lan": {"network": format!("i{}", self.dice.below(6))}});
                }
                spec
            }
        }
    }

    /// Somebody cancels, retries, skips or undoes one of the last jobs.
    async fn about_a_job(&mut self) -> Result<(), Error> {
        let jobs = self.world.ask("SELECT id FROM job ORDER BY id DESC LIMIT 12").await;
        if jobs.is_empty() {
            return Ok(());
        }
        let id = jobs[self.pick(jobs.len())][0].clone();
        let verb = self.dice.below(4);
        self.note(format!("job {id}: {verb}"));
        let right = rhyzome_api::kernel::Caller::system().may_everywhere("all", "job")?;
        let (store, asked) = (self.store.clone(), Asked::default());
        match verb {
            0 => store.cancel_job(&right, &id).await.map(drop),
            1 => store.retry_job(&right, &id, &asked).await.map(drop),
            2 => store.skip_job(&right, &id, &asked).await.map(drop),
            _ => store.undo_job(&right, &id, &asked).await.map(drop),
        }
    }

    // === the end ===

    /// Everything works again, until all is quiet.
    async fn heal(&mut self) {
        self.strikes.plan(&[]);
        self.strikes.cut_off(0);
        self.nodes.iter_mut().for_each(SimNode::relieve);
        if self.strikes.ended() {
            self.come_back().await;
        }
        for index in 0..NODES {
            while let Some(report) = self.wires[index].pop_front() {
                let id = self.nodes[index].id.clone();
                self.store.record_report(&id, report).await.unwrap();
            }
            let store = self.store.clone();
            self.nodes[index].connect(&store).await.unwrap();
        }
        for _ in 0..260 {
            let done = calm(&self.store, &mut self.nodes).await;
            let failed = done.is_err();
            self.hear_of(done).await;
            if failed || open_jobs(&self.world).await.is_empty() {
                return;
            }
            self.time.pass(17);
        }
    }

    async fn end(mut self) -> Story {
        for sql in [
            "SELECT id, phase, spec, claims FROM resource ORDER BY id",
            "SELECT id, verb, state, problem FROM job ORDER BY id",
            "SELECT node, object, sequence, state FROM assignment ORDER BY node, object",
        ] {
            self.world.ask(sql).await.hash(&mut self.hasher);
        }
        self.story.found.extend(audit(&self.world, &self.nodes).await);
        self.story.trace = self.hasher.finish();
        self.story
    }
}
