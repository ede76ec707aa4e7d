//! A machine that is not there: what drivers would make is noted in memory. It outlives the agent on it, as guests do,
//! and ends with the program.

use super::fake;
use super::rules::Rules;
use crate::drivers::{self, DriverError};
use crate::env::Env;
use crate::owner::{Done, Hands, Seen, Sight};
use crate::reconcile::{Action, Orders, World};
use futures_util::future::BoxFuture;
use rhyzome_proto::v1::NodeStatus;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What guests are said to run on.
pub const ACCELERATOR: &str = "simulated";

/// What a simulated machine is said to have.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Processors.
    pub vcpus: u32,
    /// Memory.
    pub memory_bytes: u64,
    /// Disk.
    pub disk_bytes: u64,
}

/// What was done on all machines of a simulation.
#[derive(Debug, Default)]
pub struct Tally {
    /// Sessions that began.
    pub sessions: AtomicU64,
    /// Actions that were carried out or failed.
    pub acts: AtomicU64,
    /// Those after which something was different.
    pub changes: AtomicU64,
    /// When the last of these was, in milliseconds since 1970.
    pub last_change_ms: AtomicU64,
}

/// What all machines of a simulation share.
#[derive(Clone)]
pub struct Shared {
    /// What each of them has.
    pub size: Size,
    /// What happens to whatever is done on them.
    pub rules: Arc<Rules>,
    /// What was done.
    pub tally: Arc<Tally>,
    /// Clock and chance.
    pub env: Env,
}

/// One machine.
pub struct Machine {
    name: String,
    size: Size,
    rules: Arc<Rules>,
    tally: Arc<Tally>,
    env: Env,
    plain: Vec<&'static str>,
    state: Mutex<State>,
    /// Which process of the agent it is: what an earlier one has begun comes to nothing.
    life: AtomicU64,
}

#[derive(Default)]
struct State {
    world: World,
    pids: u32,
    boots: u32,
}

impl Machine {
    /// One on which nothing is, whose agent keeps its things in this folder.
    pub fn new(name: &str, folder: &Path, shared: &Shared) -> Machine {
        Machine {
            name: name.to_owned(),
            size: shared.size,
            rules: shared.rules.clone(),
            tally: shared.tally.clone(),
            env: shared.env.clone(),
            plain: fake::plain(folder).iter().map(|driver| driver.kind()).collect(),
            state: Mutex::default(),
            life: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which boot it is.
    pub fn boot_id(&self) -> String {
        format!("simulated-{}-{}", std::process::id(), self.lock().boots)
    }

    /// Which process of the agent this is.
    pub fn incarnation(&self) -> String {
        format!("{}-{}-{}", std::process::id(), self.life.load(Ordering::SeqCst), self.env.now_ms())
    }

    /// The agent's process has ended.
    pub fn end_life(&self) {
        self.life.fetch_add(1, Ordering::SeqCst);
    }

    /// It goes down and comes back: files stay, guests and networks do not.
    pub fn reboot(&self) {
        let mut state = self.lock();
        state.boots += 1;
        state.world.networks.clear();
        state.world.in_force.clear();
        state.world.instances.values_mut().for_each(|instance| instance.process = None);
    }

    /// What its agent says of it, at the beginning of each session.
    pub fn introduce(&self) -> NodeStatus {
        self.tally.sessions.fetch_add(1, Ordering::Relaxed);
        NodeStatus {
            hostname: self.name.clone(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            architecture: std::env::consts::ARCH.to_owned(),
            vcpus: self.size.vcpus,
            memory_bytes: self.size.memory_bytes,
            disk_bytes: self.size.disk_bytes,
            disk_available_bytes: self.size.disk_bytes,
            accelerator: ACCELERATOR.to_owned(),
            accelerator_reason:
                "simulated: nothing runs on this node, its drivers only note what they would do".to_owned(),
            boot_id: self.boot_id(),
            simulated: true,
            ..NodeStatus::default()
        }
    }

    async fn carry_out(&self, id: &str, action: Action, now_ms: u64) -> Done {
        let life = self.life.load(Ordering::SeqCst);
        // A look whether all is still as it should be waits for nobody.
        let turn = match self.is_so(id, &action) {
            true => Ok(()),
            false => self.rules.turn(&self.name, id, &action).await,
        };
        if self.life.load(Ordering::SeqCst) != life {
            let ended = DriverError::Retry("the agent has ended".to_owned());
            return Done { result: Err(ended), seen: Vec::new() };
        }
        self.tally.acts.fetch_add(1, Ordering::Relaxed);
        let mut state = self.lock();
        let before = fake::seen(&state.world, id, &action);
        if turn.is_ok() {
            let State { world, pids, .. } = &mut *state;
            fake::act(world, id, action.clone(), now_ms, false, pids);
        }
        let after = fake::seen(&state.world, id, &action);
        if before != after {
            self.tally.changes.fetch_add(1, Ordering::Relaxed);
            self.tally.last_change_ms.fetch_max(self.env.now_ms(), Ordering::Relaxed);
        }
        Done { result: turn, seen: vec![after] }
    }

    /// Whether doing this would change nothing.
    fn is_so(&self, id: &str, action: &Action) -> bool {
        match action {
            Action::ApplyNetwork(network) => self.lock().world.in_force.get(id) == Some(network),
            _ => false,
        }
    }
}

impl Hands for Machine {
    fn act<'a>(
        &'a self,
        id: &'a str,
        action: Action,
        now_ms: u64,
        _progress: drivers::Progress,
    ) -> BoxFuture<'a, Done> {
        Box::pin(self.carry_out(id, action, now_ms))
    }

    fn look<'a>(&'a self, orders: &'a Orders) -> BoxFuture<'a, Sight> {
        Box::pin(async { fake::sight(&self.lock().world, orders) })
    }

    fn look_at_instance<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Seen> {
        Box::pin(async { fake::instance(&self.lock().world, id) })
    }

    fn look_at_image(&self, sha256: &str) -> Seen {
        fake::image(&self.lock().world, sha256)
    }

    fn plain_kinds(&self) -> Vec<&'static str> {
        self.plain.clone()
    }
}
