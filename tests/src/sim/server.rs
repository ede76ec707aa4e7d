//! A server: a process that opens the database, looks after jobs and log, and holds sessions, until it ends.

use std::sync::Arc;
use std::time::Duration;

use rhyzome_api::channel::{self, ChannelContext, NET, SessionDoor, Streams};
use rhyzome_api::kernel::env::{Moment, Outside};
use rhyzome_api::log::{self, LogDuty};
use rhyzome_api::store::{Keep, Seal, Store};
use rhyzome_api::{jobs, resources};
use rhyzome_pki::Authority;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::house::{House, Switch, unless};
use crate::life::Strikes;
use crate::world::World;

/// Well within a server's lease.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// More than it is ever cut off for.
const MOST_TRIES: u32 = 100;
/// A server that has ended comes back after so long at most, in milliseconds.
const AWAY_MS: u64 = 30_000;

pub(super) struct Server {
    pub(super) index: usize,
    seed: u64,
    house: Arc<House>,
    authority: Arc<Authority>,
    world: World,
    /// Where it ends.
    pub(super) strikes: Arc<Strikes>,
    /// How often it was begun.
    begun: u64,
    running: Option<Running>,
    back_at: Instant,
}

struct Running {
    store: Store,
    still: Switch,
    _tasks: JoinSet<()>,
}

/// Signs the log, as far as a simulation looks.
struct Stamp;

impl Seal for Stamp {
    fn key(&self) -> String {
        "stamp".to_owned()
    }

    fn sign(&self, message: &[u8]) -> String {
        rhyzome_pki::sha256_hex(message)
    }

    fn is_ours(&self, message: &[u8], signature: &str) -> bool {
        self.sign(message) == signature
    }
}

impl Server {
    pub(super) fn new(
        index: usize,
        seed: u64,
        house: &Arc<House>,
        authority: &Arc<Authority>,
        world: &World,
    ) -> Server {
        Server {
            index,
            seed,
            house: house.clone(),
            authority: authority.clone(),
            world: world.clone(),
            strikes: Arc::default(),
            begun: 0,
            running: None,
            back_at: Instant::now(),
        }
    }

    /// Its door to the database, while it is there.
    pub(super) fn store(&self) -> Option<&Store> {
        self.running.as_ref().map(|running| &running.store)
    }

    /// True if it met the end that was planned for it.
    pub(super) fn has_ended(&self) -> bool {
        self.running.is_some() && self.strikes.ended()
    }

    /// Begins, as another process: its ids are its own.
    pub(super) async fn start(&mut self) {
        for tried in 0.. {
            if self.running.is_some() {
                break;
            }
            // What was planned may end it before it serves anybody, and it may be cut off from its database.
            assert!(tried < MOST_TRIES, "server {} cannot begin", self.index);
            self.begun += 1;
            self.strikes.begin_again();
            self.running = self.begin().await;
        }
        self.house.note(format!("server {} begins", self.index));
    }

    async fn begin(&self) -> Option<Running> {
        let number = self.seed.wrapping_mul(1_000_000) + self.begun * 10 + self.index as u64;
        let env = self.house.time.env(number).with_faults(self.strikes.clone()).waiting(self.house.how);
        let store = Store::open(&self.world.db.parse().unwrap(), env, resources::registry()).await.ok()?;
        store.seal_with(self.world.keyring.clone());
        let name = format!("server-{}-{}", self.index, self.begun);
        let context = ChannelContext {
            store: store.clone(),
            authority: self.authority.clone(),
            server_id: name.clone(),
            names: Vec::new(),
            blobs: "/nowhere".into(),
            streams: Streams::new(),
            net: NET,
            heartbeat: channel::HEARTBEAT,
        };
        jobs::heartbeat(&store, &name).await.ok()?;
        let door = SessionDoor::open(Arc::new(context)).await.ok()?;
        let still = Switch::default();
        let mut tasks = JoinSet::new();
        let stop = CancellationToken::new();
        tasks.spawn(unless(still.clone(), jobs::run(store.clone(), stop.clone())));
        tasks.spawn(unless(still.clone(), jobs::rescue(store.clone(), stop.clone())));
        tasks.spawn(unless(still.clone(), beat(store.clone(), name.clone())));
        let duty = LogDuty { server: name, alone: false, seal: Arc::new(Stamp), keep: Keep::default() };
        tasks.spawn(unless(still.clone(), log::run(store.clone(), duty, stop)));
        let ears = door.clone();
        tasks.spawn(unless(still.clone(), async move { ears.hear().await }));
        self.house.doors.lock().unwrap()[self.index] = Some((door, still.clone()));
        Some(Running { store, still, _tasks: tasks })
    }

    /// Ends, wherever it is.
    pub(super) fn end(&mut self) {
        if let Some(running) = self.running.take() {
            // Another process would have left none to the database.
            tokio::spawn(async move { running.store.close().await });
            if let Some((door, _)) = self.house.doors.lock().unwrap()[self.index].take() {
                door.end_as_a_process_does();
            }
            self.back_at = Instant::now() + Duration::from_millis(self.house.below(AWAY_MS));
            self.house.note(format!("server {} has ended", self.index));
        }
    }

    /// Begins again, once it was away for long enough.
    pub(super) async fn come_back_in_time(&mut self) {
        if self.running.is_none() && Instant::now() >= self.back_at {
            self.start().await;
        }
    }

    /// Ends at one of the next commits.
    pub(super) fn doom(&self) {
        let moment = [Moment::Before, Moment::Inside, Moment::After][self.house.pick(3)];
        let commit = 1 + self.house.below(8);
        self.house.fault("a server ends at a commit", format!("server {}, {commit} {moment:?}", self.index));
        self.strikes.plan(&[(commit, moment)]);
    }

    /// Stands still, or goes on. Not where that could be in the middle of a question, for which time stands still.
    pub(super) fn stand_still_or_go_on(&self) -> bool {
        let running = self.running.as_ref().filter(|_| self.house.how == Outside::InPlace);
        running.inspect(|running| running.still.flip()).is_some()
    }

    /// Nothing is wrong with it any more.
    pub(super) async fn heal(&mut self) {
        self.strikes.plan(&[]);
        self.strikes.cut_off(0);
        if self.has_ended() {
            self.end();
        }
        self.start().await;
        if let Some(running) = &self.running {
            running.still.set(false);
        }
    }
}

/// What the sweep does on time.
async fn beat(store: Store, name: String) {
    loop {
        // As the sweep does: what fails is tried again by the next.
        let _ = jobs::heartbeat(&store, &name).await;
        tokio::time::sleep(HEARTBEAT).await;
    }
}
