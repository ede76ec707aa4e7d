//! An agent: a process with the production link and owner, on a node in memory, until it ends.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rhyzome_agent::identity::{IdentityFolder, NodeRecord};
use rhyzome_agent::lease::Lease;
use rhyzome_agent::ledger::Ledger;
use rhyzome_agent::link::{Link, LinkConfig, LinkHandle};
use rhyzome_agent::owner::{Event, Owner, Wires};
use rhyzome_api::kernel::Timestamp;
use rhyzome_pki::Authority;
use rhyzome_proto::v1::NodeStatus;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::hands::Hands;
use super::house::{House, Switch, system_time, unless};
use super::wire::{Line, Wire};
use crate::audit::Side;
use crate::quick;
use crate::world::World;

/// An agent that has ended comes back after so long at most, in milliseconds.
const AWAY_MS: u64 = 15_000;
/// How often the guard looks.
const GUARD_LOOKS: Duration = Duration::from_millis(500);

pub(super) struct Agent {
    /// Its node.
    pub(super) id: String,
    pub(super) name: String,
    /// Its way to servers.
    pub(super) line: Arc<Line>,
    house: Arc<House>,
    cluster_id: String,
    folder: tempfile::TempDir,
    hands: Arc<Hands>,
    still: Switch,
    running: Option<JoinSet<()>>,
    back_at: Instant,
}

impl Agent {
    /// One whose node has joined, with a certificate that it is going to renew.
    pub(super) async fn joined(
        index: usize,
        id: &str,
        house: &Arc<House>,
        authority: &Authority,
        world: &World,
    ) -> Agent {
        let folder = quick::folder();
        let name = format!("n{index}");
        let identity = IdentityFolder::new(folder.path());
        let csr = identity.key().unwrap().csr_pem().unwrap();
        let leaf = authority.sign_node_csr(&csr, id, system_time(&house.time)).unwrap();
        let ends = leaf.not_after.duration_since(std::time::UNIX_EPOCH).unwrap();
        let ends = Timestamp(i64::try_from(ends.as_micros()).unwrap());
        world.store.record_certificate(&leaf.serial_hex, id, ends).await.unwrap();
        identity.keep_certificate(&leaf.chain_pem, &authority.trust_pem()).unwrap();
        let record = NodeRecord {
            node_id: id.to_owned(),
            node_name: name.clone(),
            cluster_id: authority.cluster_id().to_owned(),
            root_sha256: authority.fingerprint(),
            server: "a server".to_owned(),
        };
        identity.keep_record(&record).unwrap();
        let still = Switch::default();
        let hands = Arc::new(Hands::new(&name, house, folder.path(), still.clone()));
        house.nodes.lock().unwrap().push(Arc::downgrade(&hands));
        tokio::spawn(guard(hands.clone()));
        Agent {
            id: id.to_owned(),
            name,
            line: Arc::new(Line::new()),
            house: house.clone(),
            cluster_id: authority.cluster_id().to_owned(),
            folder,
            hands,
            still,
            running: None,
            back_at: Instant::now(),
        }
    }

    /// Begins, as another process: what it knows is in its folder, and on its node.
    pub(super) fn start(&mut self) {
        // A full disk can be read.
        let ledger = self.hands.while_it_has_room(|| Ledger::open(self.folder.path()).unwrap());
        let ledger = Arc::new(Mutex::new(ledger));
        let config = LinkConfig {
            server: "a server".to_owned(),
            state_dir: self.folder.path().to_owned(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: self.hands.boot_id(),
            machine_id: format!("machine of {}", self.name),
            incarnation: format!("{} {}", self.name, self.hands.life()),
            socket_of: Arc::new(|_, _| Err("nothing is lent here".to_owned())),
            env: self.house.env(),
        };
        let wire = Wire {
            house: self.house.clone(),
            name: self.name.clone(),
            cluster_id: self.cluster_id.clone(),
            line: self.line.clone(),
        };
        let (link, handle, orders) = Link::over(config, ledger.clone(), Arc::new(wire)).unwrap();
        let (_, bell) = mpsc::unbounded_channel();
        let (news, events) = mpsc::unbounded_channel();
        news.send(Event::Accelerator("tcg".to_owned())).unwrap();
        let session = Arc::new(Notify::new());
        let (reports, findings) = (handle.clone(), handle.clone());
        let wires = Wires {
            link: orders,
            teller: Arc::new(move |report| reports.report(report)),
            findings: Arc::new(move |found| findings.findings(found)),
            session: session.clone(),
            events,
            bell,
        };
        let leases = handle.clone();
        let lease = Lease::open(self.folder.path(), &self.hands.boot_id());
        let owner = Owner::new(ledger, self.hands.clone(), wires, self.hands.boot_id(), self.house.env())
            .with_lease(lease, Arc::new(move |wanted| leases.want_lease(wanted)));
        let mut tasks = JoinSet::new();
        tasks.spawn(unless(self.still.clone(), link.run(CancellationToken::new())));
        tasks.spawn(unless(self.still.clone(), owner.run()));
        tasks.spawn(unless(self.still.clone(), say_what_it_is(self.name.clone(), handle, session, news)));
        self.running = Some(tasks);
        self.house.note(format!("{} begins", self.name));
    }

    /// Ends, wherever it is. Guests go on.
    pub(super) fn end(&mut self) {
        if self.running.take().is_some() {
            self.hands.end_life();
            self.still.set(false);
            self.back_at = Instant::now() + Duration::from_millis(self.house.below(AWAY_MS));
        }
    }

    /// Its machine goes down: guests do not go on.
    pub(super) fn reboot(&mut self) {
        self.end();
        self.hands.reboot();
    }

    /// Begins again, once it was away for long enough.
    pub(super) fn come_back_in_time(&mut self) {
        if self.running.is_none() && Instant::now() >= self.back_at {
            self.start();
        }
    }

    /// Stands still, or goes on.
    pub(super) fn stand_still_or_go_on(&self) {
        self.still.flip();
    }

    /// Its disk is full, or has room again.
    pub(super) fn fill_or_relieve(&self) {
        self.hands.fill_or_relieve();
    }

    /// Nothing is wrong with it any more.
    pub(super) fn heal(&mut self) {
        self.hands.relieve();
        self.line.dark.set(false);
        self.still.set(false);
        if self.running.is_none() {
            self.start();
        }
    }

    /// What it was told and what it holds, once it has ended.
    pub(super) fn side(&self) -> Side {
        let orders = Ledger::open(self.folder.path()).unwrap().orders().clone();
        Side { node: self.id.clone(), orders, world: self.hands.world() }
    }
}

/// Beside the agent, whatever becomes of it.
async fn guard(hands: Arc<Hands>) {
    loop {
        tokio::time::sleep(GUARD_LOOKS).await;
        hands.guard();
    }
}

async fn say_what_it_is(
    name: String,
    link: LinkHandle,
    session: Arc<Notify>,
    // The owner hears of no more, and must not think that nobody could tell it any.
    _news: mpsc::UnboundedSender<Event>,
) {
    loop {
        session.notified().await;
        link.node_status(NodeStatus {
            hostname: name.clone(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            architecture: "x86_64".to_owned(),
            vcpus: 64,
            memory_bytes: 8 << 30,
            disk_bytes: 1 << 40,
            disk_available_bytes: 1 << 40,
            accelerator: "tcg".to_owned(),
            ..NodeStatus::default()
        });
    }
}
