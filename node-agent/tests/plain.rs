//! The agent's owner with the driver of a plain kind: makes, repairs, changes, refuses, finds again, takes away.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use futures_util::StreamExt;
use prost::Message as _;
use rhyzome_agent::drivers::disk::DiskDriver;
use rhyzome_agent::drivers::image::{BlobSource, ImageDriver};
use rhyzome_agent::drivers::instance::InstanceDriver;
use rhyzome_agent::drivers::network::NetworkDriver;
use rhyzome_agent::drivers::snapshot::SnapshotDriver;
use rhyzome_agent::drivers::{Deviation, DriverError};
use rhyzome_agent::env::Env;
use rhyzome_agent::ledger::Ledger;
use rhyzome_agent::link::LinkEvent;
use rhyzome_agent::owner::{Drivers, Owner, Wires};
use rhyzome_agent::plain::{self, Driver, Here, ObservedPlain, Ordered, Plain};
use rhyzome_proto::v1::order_body::Body;
use rhyzome_proto::v1::report::Body as ReportBody;
use rhyzome_proto::v1::{Goodbye, ImageReport, Order, OrderBody, Report, ReportState};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(60);

/// While this note is removed the disk gets full.
const LAST_STRAW: &[u8] = b"last straw";

/// From here on the ledger cannot be written, as on a full disk.
fn fill(state: &Path) {
    fs::rename(state.join("ledger"), state.join("away")).unwrap();
}

fn relieve(state: &Path) {
    fs::rename(state.join("away"), state.join("ledger")).unwrap();
}

/// Keeps a text in a file. Its messages are borrowed: a text and a number.
struct Notes(PathBuf);

impl Driver for Notes {
    const KIND: &'static str = "note";
    type Order = Goodbye;
    type Report = ImageReport;

    fn new(state: &Path) -> Self {
        Notes(state.join("notes"))
    }

    fn ids(&self) -> Result<BTreeSet<String>, DriverError> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        Ok(entries.map(|entry| entry.file_name().into_string().unwrap()).collect())
    }

    fn observe(&self, id: &str) -> Result<Option<Here<Self>>, DriverError> {
        let Ok(reason) = fs::read_to_string(self.0.join(id)) else { return Ok(None) };
        let report = ImageReport { bytes_on_disk: reason.len() as u64 };
        let rendered = BTreeMap::from([("note".to_owned(), reason.clone())]);
        Ok(Some(Here { order: Some(Goodbye { reason, ..Goodbye::default() }), report, rendered }))
    }

    fn apply(&self, id: &str, order: &Goodbye) -> Result<(), DriverError> {
        match order.reason.as_str() {
            "bad" => return Err(DriverError::Permanent("a bad note".into())),
            "wrong" => return Ok(()),
            _ => {}
        }
        let written = fs::create_dir_all(&self.0).and_then(|()| fs::write(self.0.join(id), &order.reason));
        written.map_err(|error| DriverError::io("write a note", &error))
    }

    fn remove(&self, id: &str) -> Result<(), DriverError> {
        if fs::read(self.0.join(id)).is_ok_and(|text| text == LAST_STRAW) {
            fill(self.0.parent().unwrap());
        }
        rhyzome_agent::files::remove_if_there(&self.0.join(id))
            .map(drop)
            .map_err(|error| DriverError::io("remove a note", &error))
    }
}

struct Agent {
    owner: JoinHandle<()>,
    link: mpsc::Sender<LinkEvent>,
    reports: mpsc::UnboundedReceiver<Report>,
}

impl Agent {
    /// With a session.
    fn start(state: &Path) -> Agent {
        let agent = Agent::alone(state, plain::driver::<Notes>(state), Env::system());
        agent.link.try_send(LinkEvent::Connected { db_epoch: 1, session: 1 }).unwrap();
        agent
    }

    /// Without one, with this driver.
    fn alone(state: &Path, driver: Arc<dyn Plain>, env: Env) -> Agent {
        let nothing: BlobSource =
            Arc::new(|_, _| Box::pin(async { Ok(futures_util::stream::empty().boxed()) }));
        let (ring, bell) = mpsc::unbounded_channel();
        let (link, link_in) = mpsc::channel(16);
        let (reports_out, reports) = mpsc::unbounded_channel();
        let (_, events) = mpsc::unbounded_channel();
        let drivers = Drivers {
            images: Arc::new(ImageDriver::new(state, nothing)),
            disks: Arc::new(DiskDriver::new(state)),
            snapshots: Arc::new(SnapshotDriver::new(state)),
            networks: NetworkDriver::new(state),
            instances: Arc::new(InstanceDriver::new(state, ring)),
            plain: vec![driver],
        };
        let ledger = Arc::new(Mutex::new(Ledger::open(state).unwrap()));
        let teller = Arc::new(move |report| drop(reports_out.send(report)));
        let findings = Arc::new(|_| {});
        let wires = Wires { link: link_in, teller, findings, session: Arc::default(), events, bell };
        let owner = Owner::new(ledger, Arc::new(drivers), wires, "boot".into(), env);
        Agent { owner: tokio::spawn(owner.run()), link, reports }
    }

    async fn order(&self, order: Order) {
        self.link.send(LinkEvent::Order(Box::new(order))).await.unwrap();
    }

    async fn state(&mut self, generation: u64, state: ReportState) -> Report {
        let wait = async {
            loop {
                let report = self.reports.recv().await.expect("the owner ended");
                if (report.generation, report.state()) == (generation, state) {
                    return report;
                }
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("no {state:?} of {generation}"))
    }
}

fn order(generation: u64, reason: &str) -> Order {
    let body = Goodbye { reason: reason.into(), ..Goodbye::default() }.encode_to_vec();
    Order {
        object_id: "note_1".into(),
        kind: "note".into(),
        db_epoch: 1,
        placement_epoch: 1,
        generation,
        sequence: generation,
        body: Some(OrderBody { body: Some(Body::Plain(body)) }),
        ..Order::default()
    }
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..1500 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("waited in vain until {what}");
}

#[tokio::test]
async fn one_of_a_plain_kind_lives_and_goes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("notes/note_1");
    let mut agent = Agent::start(folder.path());
    agent.order(order(1, "first")).await;
    let report = agent.state(1, ReportState::Applied).await;
    let told = ImageReport { bytes_on_disk: 5 }.encode_to_vec();
    assert_eq!(report.body, Some(ReportBody::Plain(told)));
    assert_eq!(report.rendered["note"], "first");

    // Somebody changes it by hand, and takes it away: it is put right.
    fs::write(&file, "by hand").unwrap();
    until("it is repaired", || fs::read(&file).unwrap() == b"first").await;
    fs::remove_file(&file).unwrap();
    until("it is made again", || file.exists()).await;

    agent.order(order(2, "second")).await;
    agent.state(2, ReportState::Applied).await;
    assert_eq!(fs::read(&file).unwrap(), b"second");

    // What its driver refuses is told, and what it is wrong about.
    agent.order(order(3, "bad")).await;
    let refused = agent.state(3, ReportState::Failed).await;
    assert_eq!((refused.message.as_str(), refused.permanent), ("a bad note", true));
    agent.order(order(4, "wrong")).await;
    let wrong = agent.state(4, ReportState::Failed).await;
    assert!(wrong.message.contains("is not as ordered") && !wrong.permanent, "{wrong:?}");

    // Another agent finds it, and takes away what was ordered away meanwhile.
    agent.owner.abort();
    let mut agent = Agent::start(folder.path());
    agent.order(order(5, "second")).await;
    agent.state(5, ReportState::Applied).await;
    agent.order(Order { remove: true, body: None, ..order(6, "") }).await;
    agent.state(6, ReportState::Gone).await;
    assert!(!file.exists());
    agent.owner.abort();
}

#[tokio::test]
async fn a_plain_kind_without_a_driver_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let mut agent = Agent::start(folder.path());
    agent.order(Order { kind: "surely-not".into(), ..order(1, "x") }).await;
    let refused = agent.state(1, ReportState::Failed).await;
    assert!(refused.permanent && refused.message.contains("does not know the kind \"surely-not\""));
    agent.order(Order { kind: "surely-not".into(), remove: true, ..order(2, "x") }).await;
    agent.state(2, ReportState::Gone).await;
    agent.owner.abort();
}

#[tokio::test]
async fn what_a_full_disk_refused_is_done_when_it_has_room() {
    let folder = tempfile::tempdir().unwrap();
    let mut agent = Agent::start(folder.path());
    let (first, late) = (folder.path().join("notes/note_1"), folder.path().join("notes/note_2"));
    agent.order(order(1, "first")).await;
    agent.state(1, ReportState::Applied).await;
    fill(folder.path());
    agent.order(Order { object_id: "note_2".into(), ..order(2, "late") }).await;
    // The owner has looked at everything since, and has gone on with what it holds.
    fs::remove_file(&first).unwrap();
    until("it is made again", || first.exists()).await;
    assert!(!late.exists(), "an order that was not kept is obeyed");
    relieve(folder.path());
    agent.state(2, ReportState::Applied).await;
    assert_eq!(Ledger::open(folder.path()).unwrap().cursor(), 2);
    agent.owner.abort();
}

#[tokio::test]
async fn a_removal_that_a_full_disk_holds_up_is_told_and_ends_when_it_has_room() {
    let folder = tempfile::tempdir().unwrap();
    let mut agent = Agent::start(folder.path());
    agent.order(order(1, std::str::from_utf8(LAST_STRAW).unwrap())).await;
    agent.state(1, ReportState::Applied).await;
    agent.order(Order { remove: true, body: None, ..order(2, "") }).await;
    let told = agent.state(2, ReportState::Failed).await;
    assert!(told.message.contains("ledger: write meta.json") && !told.permanent, "{told:?}");
    relieve(folder.path());
    agent.state(2, ReportState::Gone).await;
    agent.owner.abort();
}

/// Something that is as ordered until a moment, and is then to be made anew. Keeps when it was made.
struct Candle {
    env: Env,
    until_ms: u64,
    made_ms: Mutex<Vec<u64>>,
}

impl Plain for Candle {
    fn kind(&self) -> &'static str {
        "note"
    }

    fn all(&self) -> Result<BTreeSet<String>, DriverError> {
        Ok(self.made_ms.lock().unwrap().iter().map(|_| "note_1".to_owned()).collect())
    }

    fn look(&self, _id: &str, ordered: Option<&Ordered>) -> Result<Option<ObservedPlain>, DriverError> {
        let Some(last) = self.made_ms.lock().unwrap().last().copied() else { return Ok(None) };
        let in_force = ordered.map(|ordered| ordered.body.clone());
        let until_ms = Some(self.until_ms).filter(|until| last < *until);
        Ok(Some(ObservedPlain { in_force, until_ms, ..ObservedPlain::default() }))
    }

    fn make(&self, _id: &str, _ordered: &Ordered) -> Result<Vec<Deviation>, DriverError> {
        self.made_ms.lock().unwrap().push(self.env.now_ms());
        Ok(Vec::new())
    }

    fn take_away(&self, _id: &str) -> Result<(), DriverError> {
        self.made_ms.lock().unwrap().clear();
        Ok(())
    }
}

/// Between two looks at everything, without a word from a server: the loop wakes for it.
#[tokio::test(start_paused = true)]
async fn what_expires_is_made_anew_at_that_moment_by_the_node_alone() {
    let folder = tempfile::tempdir().unwrap();
    let begun = tokio::time::Instant::now();
    let env = Env::simulated(Arc::new(move || UNIX_EPOCH + begun.elapsed()), Arc::new(|| 0.5));
    let candle = Arc::new(Candle { env: env.clone(), until_ms: 5_700, made_ms: Mutex::default() });
    Ledger::open(folder.path()).unwrap().take(vec![order(1, "burns")]).unwrap();
    let agent = Agent::alone(folder.path(), candle.clone(), env);
    while begun.elapsed() < Duration::from_secs(30) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let made = candle.made_ms.lock().unwrap().clone();
    assert_eq!(made.len(), 2, "once, and once more: {made:?}");
    assert!(made[0] < 1_000 && (5_700..5_710).contains(&made[1]), "{made:?}");
    agent.owner.abort();
}
