//! Ten thousand peers on one device, by the agent's own loop, ledger and drivers: all at its start, all by the link, and
//! one more. Who counts messages stands between the drivers and the device.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::StreamExt as _;
use prost::Message as _;
use rhyzome_agent::drivers::disk::DiskDriver;
use rhyzome_agent::drivers::image::{BlobSource, ImageDriver};
use rhyzome_agent::drivers::instance::InstanceDriver;
use rhyzome_agent::drivers::network::NetworkDriver;
use rhyzome_agent::drivers::snapshot::SnapshotDriver;
use rhyzome_agent::env::Env;
use rhyzome_agent::ledger::Ledger;
use rhyzome_agent::link::LinkEvent;
use rhyzome_agent::names;
use rhyzome_agent::owner::{Drivers, Owner, Wires};
use rhyzome_agent::wireguard::engine::{Engine, Place};
use rhyzome_agent::wireguard::keys::{PublicKey, SecretKey};
use rhyzome_agent::wireguard::plan::{Change, Live, Peer};
use rhyzome_agent::wireguard::process::Userspace;
use rhyzome_agent::wireguard::{of_room, room::Room};
use rhyzome_proto::v1::order_body::Body;
use rhyzome_proto::v1::{
    Order, OrderBody, OrderSecret, Report, ReportState, WireguardPeerOrder, WireguardServerOrder,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use xtask::bench::figure::{Figure, median, ms, number};
use xtask::progress::Progress;

/// Peers on one device.
const PEERS: u16 = 10_000;
/// The longest that all of them may take.
const LOAD_MS: f64 = 5_000.0;
/// The longest that one more may take.
const ONE_MORE_MS: f64 = 50.0;
/// How many come one by one.
const ONE_BY_ONE: u16 = 40;
/// How long anything may take before the bench gives up on it.
const PATIENCE: Duration = Duration::from_secs(120);
const SERVER: &str = "wgs_bench";

/// Measures; answers all figures.
pub fn run(progress: &Progress) -> Result<Vec<Figure>> {
    // As the agent's own.
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).max_blocking_threads(16).enable_all().build()?;
    let figures = runtime.block_on(measure(progress));
    runtime.shutdown_background();
    figures
}

async fn measure(progress: &Progress) -> Result<Vec<Figure>> {
    progress.step("ten thousand peers, by the link");
    let by_link = {
        let device = Device::new()?;
        let mut agent = Agent::start(device.folder.path(), &device.counted)?;
        let since = Instant::now();
        for order in all() {
            agent.order(order).await?;
        }
        agent.applied(usize::from(PEERS) + 1).await?;
        let took = ms(since.elapsed());
        device.holds(PEERS)?;
        agent.end();
        took
    };
    progress.step("ten thousand peers, at the agent's start");
    let device = Device::new()?;
    Ledger::open(device.folder.path())?.take(all())?;
    let since = Instant::now();
    let mut agent = Agent::start(device.folder.path(), &device.counted)?;
    agent.applied(usize::from(PEERS) + 1).await?;
    let load_ms = ms(since.elapsed());
    let before = device.holds(PEERS)?;
    let messages = device.counted.messages();
    let floor_ms = floor()?;

    progress.step("one more peer");
    let (mut times, mut said, mut named) = (Vec::new(), 0, 0);
    for number in PEERS..PEERS + ONE_BY_ONE {
        let (messages, peers) = (device.counted.messages(), device.counted.peers());
        let since = Instant::now();
        agent.order(peer_order(number)).await?;
        agent.applied(1).await?;
        times.push(ms(since.elapsed()));
        said = said.max(device.counted.messages() - messages);
        named = named.max(device.counted.peers() - peers);
    }
    let after = device.holds(PEERS + ONE_BY_ONE)?;
    let touched = before.peers.iter().filter(|(key, peer)| after.peers.get(*key) != Some(*peer)).count();
    agent.end();
    let count =
        |name: &str, count: usize| anyhow::Ok(Figure::new(name, f64::from(u32::try_from(count)?), ""));
    let slowest = times.iter().copied().fold(0.0, f64::max);
    Ok(vec![
        Figure::new("10000 peers: first load from the ledger", load_ms, "ms")
            .beside(format!("the message alone {}", number(floor_ms, "ms")))
            .at_most(LOAD_MS),
        count("10000 peers: messages of the first load", messages)?.at_most(1.0),
        Figure::new("10000 peers: first load by the link", by_link, "ms")
            .beside("each order on the disk before it is obeyed")
            .at_most(LOAD_MS),
        Figure::new("one more peer: from the order to the report", median(&times), "ms")
            .beside(format!("median of {ONE_BY_ONE}; slowest {}", number(slowest, "ms")))
            .at_most(ONE_MORE_MS),
        count("one more peer: messages to the device", said)?.at_most(1.0),
        count("one more peer: peers named in them", named)?.at_most(1.0),
        count("one more peer: others touched", touched)?.at_most(0.0),
    ])
}

// === orders ===

fn key(number: u16, first: u8) -> [u8; 32] {
    let mut key = [0; 32];
    let [high, low] = number.to_be_bytes();
    (key[0], key[1], key[2], key[31]) = (first, high, low, 0x40);
    key
}

fn address(number: u16) -> String {
    let [high, low] = number.to_be_bytes();
    format!("10.9.{high}.{low}/32")
}

fn order(id: &str, kind: &str, sequence: u64, body: Vec<u8>) -> Order {
    Order {
        object_id: id.into(),
        kind: kind.into(),
        tenant: "default".into(),
        name: id.into(),
        db_epoch: 1,
        placement_epoch: 1,
        generation: 1,
        sequence,
        body: Some(OrderBody { body: Some(Body::Plain(body)) }),
        ..Order::default()
    }
}

fn peer_order(number: u16) -> Order {
    let body = WireguardPeerOrder {
        server_id: SERVER.into(),
        public_key: PublicKey(key(number, 8)).to_string(),
        allowed_ips: vec![address(number)],
        enabled: true,
        ..WireguardPeerOrder::default()
    };
    let id = format!("wgp_{number:05}");
    let order = order(&id, "wireguard-peer", u64::from(number) + 2, body.encode_to_vec());
    Order { needs: vec![SERVER.into()], ..order }
}

/// The server and its peers, in the order in which they were made.
fn all() -> Vec<Order> {
    let body = WireguardServerOrder {
        private_key: "sealed:1".into(),
        listen_port: 51820,
        addresses: vec!["10.9.255.254/16".into()],
        enabled: true,
        ..WireguardServerOrder::default()
    };
    let value = PublicKey(key(1, 16)).to_string();
    let secrets = vec![OrderSecret { marker: "sealed:1".into(), value }];
    let server = Order { secrets, ..order(SERVER, "wireguard-server", 1, body.encode_to_vec()) };
    std::iter::once(server).chain((0..PEERS).map(peer_order)).collect()
}

// === the agent ===

/// All of the agent but its line to a server.
struct Agent {
    owner: JoinHandle<()>,
    link: mpsc::Sender<LinkEvent>,
    reports: mpsc::UnboundedReceiver<Report>,
    states: BTreeMap<String, ReportState>,
}

impl Agent {
    fn start(state: &Path, engine: &Counted) -> Result<Agent> {
        let nothing: BlobSource =
            Arc::new(|_, _| Box::pin(async { Ok(futures_util::stream::empty().boxed()) }));
        let (ring, bell) = mpsc::unbounded_channel();
        // As many as the agent's own.
        let (link, link_in) = mpsc::channel(256);
        let (reports_out, reports) = mpsc::unbounded_channel();
        let (_, events) = mpsc::unbounded_channel();
        let room = Room::with_engine(state, Env::system(), Box::new(engine.clone()));
        let drivers = Drivers {
            images: Arc::new(ImageDriver::new(state, nothing)),
            disks: Arc::new(DiskDriver::new(state)),
            snapshots: Arc::new(SnapshotDriver::new(state)),
            networks: NetworkDriver::new(state),
            instances: Arc::new(InstanceDriver::new(state, ring)),
            plain: of_room(&Arc::new(room)),
        };
        link.try_send(LinkEvent::Connected { db_epoch: 1, session: 1 }).context("the link")?;
        let ledger = Arc::new(Mutex::new(Ledger::open(state)?));
        let teller = Arc::new(move |report| drop(reports_out.send(report)));
        let findings = Arc::new(|_| {});
        let wires = Wires { link: link_in, teller, findings, session: Arc::default(), events, bell };
        let owner = Owner::new(ledger, Arc::new(drivers), wires, "boot".into(), Env::system());
        Ok(Agent { owner: tokio::spawn(owner.run()), link, reports, states: BTreeMap::new() })
    }

    async fn order(&self, order: Order) -> Result<()> {
        self.link.send(LinkEvent::Order(Box::new(order))).await.context("the agent has ended")
    }

    /// Waits until so many more are told to be as they were ordered.
    async fn applied(&mut self, more: usize) -> Result<()> {
        let is_applied = |state: &&ReportState| **state == ReportState::Applied;
        let wanted = self.states.values().filter(is_applied).count() + more;
        let mut count = wanted - more;
        let end = tokio::time::Instant::now() + PATIENCE;
        while count < wanted {
            let report = tokio::time::timeout_at(end, self.reports.recv()).await;
            let report =
                report.with_context(|| format!("{count} of {wanted} came"))?.context("the agent ended")?;
            ensure!(report.state() != ReportState::Failed, "{}: {}", report.object_id, report.message);
            let before = self.states.insert(report.object_id.clone(), report.state());
            count += usize::from(report.state() == ReportState::Applied);
            count -= usize::from(before == Some(ReportState::Applied));
        }
        Ok(())
    }

    fn end(self) {
        self.owner.abort();
    }
}

// === the device ===

/// What is said to a userspace device, counted.
#[derive(Clone)]
struct Counted {
    engine: Userspace,
    messages: Arc<AtomicUsize>,
    peers: Arc<AtomicUsize>,
}

impl Counted {
    /// How many were sent that change something.
    fn messages(&self) -> usize {
        self.messages.load(Ordering::SeqCst)
    }

    /// How many peers they named.
    fn peers(&self) -> usize {
        self.peers.load(Ordering::SeqCst)
    }
}

impl Engine for Counted {
    fn word(&self) -> &'static str {
        self.engine.word()
    }

    fn ensure(&self, place: &Place, mtu: u32) -> io::Result<bool> {
        self.engine.ensure(place, mtu)
    }

    fn get(&self, place: &Place) -> io::Result<Option<Live>> {
        self.engine.get(place)
    }

    fn set(&self, place: &Place, change: &Change) -> io::Result<()> {
        self.messages.fetch_add(1, Ordering::SeqCst);
        self.peers.fetch_add(change.set.len() + change.remove.len(), Ordering::SeqCst);
        self.engine.set(place, change)
    }

    fn remove(&self, place: &Place) -> io::Result<()> {
        self.engine.remove(place)
    }
}

/// The device and the folder of its agent: both go with it.
struct Device {
    folder: tempfile::TempDir,
    counted: Counted,
    place: Place,
}

impl Device {
    fn new() -> Result<Device> {
        let folder = tempfile::tempdir()?;
        let engine = Userspace::new(folder.path());
        let counted = Counted { engine, messages: Arc::default(), peers: Arc::default() };
        let place = Place { id: SERVER.into(), name: names::wireguard(SERVER), namespace: None };
        Ok(Device { folder, counted, place })
    }

    /// All that it holds, if that is so many peers.
    fn holds(&self, peers: u16) -> Result<Live> {
        let Some(live) = self.counted.get(&self.place)? else { bail!("there is no device") };
        ensure!(live.peers.len() == usize::from(peers), "{} peers, not {peers}", live.peers.len());
        Ok(live)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Err(error) = self.counted.remove(&self.place) {
            eprintln!("the device {} is left: {error}", self.place.name);
        }
    }
}

/// The same peers in one message to a bare device.
fn floor() -> Result<f64> {
    let device = Device::new()?;
    let place = Place { name: "rzwgfloor".into(), ..device.place.clone() };
    device.counted.ensure(&place, 1420)?;
    let peer = |number: u16| {
        let allowed = BTreeSet::from([address(number).parse()?]);
        let key = PublicKey(key(number, 8));
        anyhow::Ok(Peer { key, preshared: None, allowed, endpoint: None, keepalive: 0 })
    };
    let set = (0..PEERS).map(peer).collect::<Result<Vec<Peer>>>()?;
    let change = Change { private_key: Some(SecretKey(key(1, 16))), set, ..Change::default() };
    let since = Instant::now();
    device.counted.set(&place, &change)?;
    Ok(ms(since.elapsed()))
}
