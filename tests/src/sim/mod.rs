//! Simulation: the production store, jobs, log and channel of two servers, and the production link and owner of
//! some agents, in one process and one thread, from a seed. Only the clock, the wire and the drivers are replaced.
//!
//! Clients ask for anything at any time; connections are lost, messages come late and twice, machines, agents and
//! servers end or stand still, clocks jump, replies to commits are lost, disks are full, a server is cut off from its
//! database. When all is healed and quiet the auditor looks. The same seed does the same, message by message.
//!
//! - `house`: what all share: chance, the clock, the doors that are open, and what is noted.
//! - `server`, `agent`: a process each, that can end at any moment. `hands`: an agent's node. `wire`: between them.
//! - `clients`: who asks. `faults`: what goes wrong.

mod agent;
mod clients;
mod faults;
mod hands;
mod house;
mod server;
mod wire;

use std::collections::{BTreeMap, VecDeque};
use std::hash::Hash as _;
use std::sync::Arc;
use std::time::Duration;

use rhyzome_api::kernel::Error;
use rhyzome_api::kernel::env::Outside;
use rhyzome_api::store::outside;
use rhyzome_pki::Authority;
use serde_json::json;

use crate::audit::{Finding, Wrong, audit};
use crate::drive::open_jobs;
use crate::given::Time;
use crate::world::{Engine, World};
use agent::Agent;
use house::House;
use server::Server;

const SERVERS: usize = 2;
const AGENTS: usize = 3;
/// For how long a certificate is good: it is renewed in time, or has run out.
const CERTIFICATE: Duration = Duration::from_secs(120);
/// Between two things that happen, in milliseconds, at most.
const BETWEEN_MS: u64 = 2_000;
/// How far the clock goes on between two looks whether all is quiet.
const LOOK_SECONDS: u64 = 17;
/// After so many what has not ended is stuck: more than the longest deadline.
const LOOKS: usize = 260;
/// What is said once more after the last job, and forgotten after that.
const LAST_WORDS: Duration = Duration::from_secs(120);

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
    house: Arc<House>,
    servers: Vec<Server>,
    agents: Vec<Agent>,
    found: Vec<Finding>,
}

/// A simulation from this seed on this database, with so many things that happen. It blocks, and has a thread of its own.
pub fn run(engine: Engine, seed: u64, steps: u32) -> Story {
    let alone = std::thread::Builder::new().stack_size(16 << 20);
    let told = alone.spawn(move || {
        // The clock goes on when nothing else does, from one timer to the next.
        let paused = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        paused.unwrap().block_on(tell(engine, seed, steps))
    });
    told.unwrap().join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

async fn tell(engine: Engine, seed: u64, steps: u32) -> Story {
    let mut sim = outside(Outside::TimeStandsStill, Sim::new(engine, seed)).await;
    sim.begin().await;
    for _ in 0..steps {
        sim.step().await;
        let wait = sim.house.below(BETWEEN_MS);
        tokio::time::sleep(Duration::from_millis(wait)).await;
    }
    sim.heal().await;
    sim.end(seed).await
}

impl Sim {
    async fn new(engine: Engine, seed: u64) -> Sim {
        let how = match engine {
            Engine::Sqlite => Outside::InPlace,
            Engine::Postgres => Outside::TimeStandsStill,
        };
        let time = Time::begin();
        let world = World::with_env(engine, time.env(seed).waiting(how)).await;
        let mut ids = Vec::new();
        for index in 0..AGENTS {
            ids.push(world.make_node(&format!("n{index}"), 8 << 30).await);
        }
        world.make_image("", "tiny").await;
        let pool = json!({"driver": "dir", "path": "/srv/all", "shared": true});
        world.make("", "storage-pool", "everywhere", pool).await;
        let folder = crate::quick::folder();
        let authority = Authority::open_or_create(folder.path(), house::system_time(&time)).unwrap();
        let authority = Arc::new(authority.with_node_life(CERTIFICATE));
        let house = Arc::new(House::new(seed, how, &time, SERVERS));
        let mut agents = Vec::new();
        for (index, id) in ids.iter().enumerate() {
            agents.push(Agent::joined(index, id, &house, &authority, &world).await);
        }
        let mut servers = Vec::new();
        for index in 0..SERVERS {
            servers.push(Server::new(index, seed, &house, &authority, &world));
        }
        Sim { world, house, servers, agents, found: Vec::new() }
    }

    async fn begin(&mut self) {
        self.house.time.run();
        for server in &mut self.servers {
            server.start().await;
        }
        self.agents.iter_mut().for_each(Agent::start);
    }

    async fn step(&mut self) {
        let done = match self.house.below(100) {
            0..70 => self.client().await,
            _ => self.misfortune().await,
        };
        self.hear_of(done);
        for server in &mut self.servers {
            if server.has_ended() {
                server.end();
            }
            server.come_back_in_time().await;
        }
        self.agents.iter_mut().for_each(Agent::come_back_in_time);
    }

    /// What is refused is refused; what the database cannot do now it can do later; anything else is a fault of ours.
    fn hear_of(&mut self, done: Result<(), Error>) {
        match done {
            Ok(()) => {}
            Err(Error::Internal(text)) => {
                self.found.push(Finding { wrong: Wrong::Stuck, what: format!("a fault of ours: {text}") });
            }
            Err(error) => self.house.note(format!("refused: {error}")),
        }
    }

    async fn ask(&self, sql: &str) -> Vec<Vec<String>> {
        outside(self.house.how, self.world.ask(sql)).await
    }

    // === the end ===

    /// Everything works again, until all is quiet.
    async fn heal(&mut self) {
        self.house.heal();
        self.house.note("all is healed");
        for server in &mut self.servers {
            server.heal().await;
        }
        self.agents.iter_mut().for_each(Agent::heal);
        for _ in 0..LOOKS {
            tokio::time::sleep(Duration::from_secs(LOOK_SECONDS)).await;
            if outside(self.house.how, open_jobs(&self.world)).await.is_empty() {
                break;
            }
        }
        tokio::time::sleep(LAST_WORDS).await;
    }

    async fn end(mut self, seed: u64) -> Story {
        self.agents.iter_mut().for_each(Agent::end);
        self.servers.iter_mut().for_each(Server::end);
        let taken = self.ask("SELECT id FROM job WHERE verb = 'move' AND actor = 'system' ORDER BY id").await;
        for job in taken {
            self.house.fault("an instance is taken from a lost node", &job[0]);
        }
        self.found.append(&mut self.house.found.lock().unwrap());
        let mut notes = self.house.notes();
        for sql in [
            "SELECT id, phase, spec, claims FROM resource ORDER BY id",
            "SELECT id, verb, state, problem FROM job ORDER BY id",
            "SELECT node, object, sequence, state FROM assignment ORDER BY node, object",
        ] {
            self.ask(sql).await.hash(&mut notes.hasher);
        }
        let sides: Vec<_> = self.agents.iter().map(Agent::side).collect();
        self.found.extend(outside(self.house.how, audit(&self.world, &sides)).await);
        Story { seed, trace: notes.trace(), faults: notes.faults, found: self.found, last: notes.last }
    }
}
