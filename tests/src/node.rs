//! A node in memory. Ledger, decisions and reports are the agent's own; the wire and the drivers are replaced:
//! what a driver would make is noted in the world that the next decision is made from. Drivers of plain kinds are the
//! agent's own, too, and work in the node's folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use prost::Message as _;
use rhyzome_agent::ledger::Ledger;
use rhyzome_agent::owner::Intake;
use rhyzome_agent::plain::{Ordered, OrderedAll, Plain, Plains};
use rhyzome_agent::reconcile::{Action, Decision, View, World, plan};
use rhyzome_agent::report::{self, Failure};
use rhyzome_agent::simulate::fake;
use rhyzome_api::kernel::Error;
use rhyzome_api::kernel::secret::Plain as Secret;
use rhyzome_api::store::{AssignmentRow, Look, NodeReport, Store};
use rhyzome_proto::v1::{Order, OrderBody, OrderSecret, Report, ReportState};

use crate::audit::Side;
use crate::given::Time;
use crate::quick;

/// How many actions in a row are a loop without an end.
const TOO_MANY: usize = 10_000;
/// A session that lived on for this long after GONE was sent has heard it, as in the agent.
const HEARD_AFTER_MS: u64 = 30_000;

/// A node and its agent.
pub struct SimNode {
    /// Its id.
    pub id: String,
    /// What is there.
    pub world: World,
    /// Objects that it says cannot be made, and why.
    pub refuses: BTreeMap<String, String>,
    /// True: guests do not hear the power button.
    pub deaf: bool,
    ledger: Ledger,
    plain: Plains,
    intake: Intake,
    /// Nothing can be written; what was tried in vain since then.
    full: Option<BTreeSet<String>>,
    folder: tempfile::TempDir,
    time: Time,
    session: Option<i64>,
    sent: i64,
    told: BTreeMap<String, Report>,
    gone_told: BTreeMap<String, u64>,
    pids: u32,
    boots: u32,
}

impl SimNode {
    /// A node that holds nothing.
    pub fn new(id: &str, time: &Time) -> SimNode {
        let folder = quick::folder();
        let ledger = Ledger::open(folder.path()).unwrap();
        let world = World { accelerator: "tcg".into(), host_boot_id: "boot-0".into(), ..World::default() };
        let mut node = SimNode {
            id: id.to_owned(),
            world,
            refuses: BTreeMap::new(),
            deaf: false,
            ledger,
            plain: fake::plain(folder.path()),
            intake: Intake::default(),
            full: None,
            folder,
            time: time.clone(),
            session: None,
            sent: 0,
            told: BTreeMap::new(),
            gone_told: BTreeMap::new(),
            pids: 0,
            boots: 0,
        };
        node.look_at_plain();
        node
    }

    /// The folder where its agent keeps its things.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Orders in its ledger, by object.
    pub fn orders(&self) -> &BTreeMap<String, Order> {
        self.ledger.orders()
    }

    /// Whether it has a session.
    pub fn connected(&self) -> bool {
        self.session.is_some()
    }

    /// Begins a session: everything is told again, and ordered from where the ledger ends.
    pub async fn connect(&mut self, store: &Store) -> Result<(), Error> {
        self.lose();
        let cursor = i64::try_from(self.ledger.cursor()).unwrap();
        let session = store.open_session(&self.id, "server").await?;
        let look =
            Look { node: self.id.clone(), session, serial: String::new(), sent: cursor, is_first: true };
        let again = store.news(&[look]).await?.remove(0).removals;
        (self.session, self.sent) = (Some(session), cursor);
        self.told.clear();
        self.gone_told.clear();
        self.take(again.into_iter().map(order).collect());
        Ok(())
    }

    /// The connection is lost, and the server has not noticed.
    pub fn lose(&mut self) {
        self.session = None;
        self.intake.forget();
    }

    /// The session ends, and the server notices.
    pub async fn disconnect(&mut self, store: &Store) -> Result<(), Error> {
        self.intake.forget();
        match self.session.take() {
            Some(session) => store.close_session(&self.id, session).await,
            None => Ok(()),
        }
    }

    /// The agent is killed and started again: guests go on, what it knew is gone.
    pub fn restart(&mut self) {
        self.lose();
        self.world.in_force.clear();
        self.world.pressed_ms.clear();
        // A full disk can be read.
        let full = self.full.is_some();
        self.relieve();
        self.ledger = Ledger::open(self.folder.path()).unwrap();
        self.look_at_plain();
        if full {
            self.fill();
        }
    }

    /// Its disk is full: the ledger really cannot write, and drivers say so.
    pub fn fill(&mut self) {
        if self.full.is_none() {
            std::fs::rename(self.folder.path().join("ledger"), self.folder.path().join("away")).unwrap();
            self.full = Some(BTreeSet::new());
        }
    }

    /// Its disk has room again.
    pub fn relieve(&mut self) {
        if self.full.take().is_some() {
            std::fs::rename(self.folder.path().join("away"), self.folder.path().join("ledger")).unwrap();
        }
    }

    /// True while its disk is full.
    pub fn is_full(&self) -> bool {
        self.full.is_some()
    }

    /// The machine goes down and comes back: files stay.
    pub fn reboot(&mut self) {
        self.restart();
        self.boots += 1;
        self.world.host_boot_id = format!("boot-{}", self.boots);
        self.world.networks.clear();
        for instance in self.world.instances.values_mut() {
            instance.process = None;
        }
    }

    /// Hears, works and tells as far as it goes. True: something happened.
    pub async fn turn(&mut self, store: &Store) -> Result<bool, Error> {
        let mut busy = self.hear(store).await?;
        busy |= self.work();
        for report in self.news() {
            busy = true;
            store.record_report(&self.id, report).await?;
        }
        Ok(busy)
    }

    /// Takes the orders that were not streamed yet.
    pub async fn hear(&mut self, store: &Store) -> Result<bool, Error> {
        if self.session.is_none() {
            return Ok(false);
        }
        let rows = store.assignments_after(&self.id, self.sent, 1000).await?;
        let Some(last) = rows.last() else { return Ok(false) };
        self.sent = last.sequence;
        self.take(rows.into_iter().map(order).collect());
        Ok(true)
    }

    /// Takes orders that arrived together.
    pub fn take(&mut self, orders: Vec<Order>) {
        let answers = match self.intake.take(&mut self.ledger, orders) {
            Ok(answers) => answers,
            Err(error) => return assert!(self.is_full(), "{error}"),
        };
        for (order, answer) in answers {
            if answer.is_ok() {
                self.told.remove(&order.object_id);
                self.gone_told.remove(&order.object_id);
            }
        }
    }

    /// Does all that there is to do. True: there was something.
    pub fn work(&mut self) -> bool {
        self.take(Vec::new());
        let mut done = 0;
        while let Some((id, action)) = self.next() {
            self.act(&id, action);
            done += 1;
            assert!(done < TOO_MANY, "node {} does the same over and over: {id}", self.id);
        }
        done > 0
    }

    /// Does one thing, if there is one to do.
    pub fn work_once(&mut self) -> Option<String> {
        self.take(Vec::new());
        let (id, action) = self.next()?;
        let said = fake::name_of(&action);
        self.act(&id, action);
        Some(said)
    }

    fn next(&self) -> Option<(String, Action)> {
        self.decisions().into_iter().find_map(|(id, decision)| match decision {
            Decision::Do(action) if self.refusal(&id).is_none() && !self.in_vain(&id, &action) => {
                Some((id, action))
            }
            _ => None,
        })
    }

    /// Nothing that must be written can be done on a full disk. What is to be forgotten is tried once.
    fn in_vain(&self, id: &str, action: &Action) -> bool {
        let Some(tried) = &self.full else { return false };
        fake::writes(action) || (*action == Action::Forget && tried.contains(id))
    }

    /// Nothing is ever so wrong that it could not be removed.
    fn refusal(&self, id: &str) -> Option<String> {
        let wanted = self.ledger.orders().get(id).is_some_and(|order| !order.remove);
        self.refuses.get(id).filter(|_| wanted).cloned()
    }

    fn decisions(&self) -> BTreeMap<String, Decision> {
        plan(View { orders: self.ledger.orders(), world: &self.world, now_ms: self.time.now_ms() })
    }

    /// What the server has not been told in this session.
    pub fn news(&mut self) -> Vec<NodeReport> {
        if self.session.is_none() {
            return Vec::new();
        }
        let mut news = Vec::new();
        for (id, decision) in self.decisions() {
            let Some(order) = self.ledger.orders().get(&id) else { continue };
            let full = matches!(&decision, Decision::Do(action) if self.in_vain(&id, action));
            let failure = Failure { message: "no space left on device".into(), permanent: false };
            let failure = full.then_some(&failure);
            let mut report = report::of(order, &decision, &self.world, failure, None);
            if let Some(why) = self.refusal(&id) {
                (report.message, report.permanent) = (why, true);
                report.set_state(ReportState::Failed);
            }
            if self.told.get(&id) != Some(&report) {
                self.told.insert(id, report.clone());
                news.push(report);
            }
        }
        for (id, gone) in self.ledger.gone() {
            if !self.gone_told.contains_key(id) && !self.ledger.orders().contains_key(id) {
                self.gone_told.insert(id.clone(), self.time.now_ms());
                news.push(report::of_gone(id, gone));
            }
        }
        self.forget_heard();
        news.into_iter().map(node_report).collect()
    }

    fn forget_heard(&mut self) {
        let now = self.time.now_ms();
        let old = self.gone_told.iter().filter(|(_, told)| **told + HEARD_AFTER_MS <= now);
        let heard: Vec<String> = old.map(|(id, _)| id.clone()).collect();
        if !heard.is_empty() {
            if let Err(error) = self.ledger.heard(&heard) {
                return assert!(self.is_full(), "{error}");
            }
            self.gone_told.retain(|id, _| !heard.contains(id));
        }
    }

    // === the drivers ===

    fn act(&mut self, id: &str, action: Action) {
        match action {
            Action::ApplyPlain(kind, ordered) => {
                self.driver(kind).make(id, &ordered).unwrap();
                self.look_at_plain();
            }
            Action::RemovePlain(kind) => {
                self.driver(kind).take_away(id).unwrap();
                self.look_at_plain();
            }
            Action::Forget => {
                let done = self.ledger.finish_removal(id);
                assert!(done.is_ok() || self.full.is_some(), "{done:?}");
                if let Some(tried) = &mut self.full {
                    tried.insert(id.to_owned());
                }
            }
            action => {
                let now = self.time.now_ms();
                fake::act(&mut self.world, id, action, now, self.deaf, &mut self.pids);
            }
        }
    }

    fn driver(&self, kind: &str) -> &dyn Plain {
        &**self.plain.iter().find(|driver| driver.kind() == kind).unwrap()
    }

    fn look_at_plain(&mut self) {
        let ordered =
            self.ledger.orders().iter().filter_map(|(id, order)| Some((id.clone(), Ordered::of(order)?)));
        let ordered: OrderedAll = ordered.collect();
        let look = |driver: &Arc<dyn Plain>| (driver.kind(), driver.look_at_all(&ordered).unwrap());
        self.world.plain = self.plain.iter().map(look).collect();
    }

    /// Ids of all that is there, but of images: those are there by their digest.
    pub fn holds(&self) -> BTreeSet<String> {
        Side::from(self).holds()
    }
}

impl From<&SimNode> for Side {
    fn from(node: &SimNode) -> Side {
        Side { node: node.id.clone(), orders: node.orders().clone(), world: node.world.clone() }
    }
}

// === the wire ===

/// An assignment as it arrives.
pub fn order(row: AssignmentRow) -> Order {
    let unsigned = |number: i64| u64::try_from(number).unwrap();
    Order {
        body: Some(OrderBody::decode(row.body.as_slice()).unwrap()),
        object_id: row.object_id,
        kind: row.kind,
        tenant: row.tenant,
        name: row.name,
        db_epoch: 1,
        placement_epoch: unsigned(row.placement_epoch),
        generation: unsigned(row.generation),
        sequence: unsigned(row.sequence),
        remove: row.remove,
        needs: row.needs,
        secrets: row.secrets.unwrap().into_iter().map(secret).collect(),
    }
}

fn secret((marker, plain): (String, Secret)) -> OrderSecret {
    OrderSecret { marker, value: plain.reveal().to_owned() }
}

fn node_report(report: Report) -> NodeReport {
    let signed = |number: u64| i64::try_from(number).unwrap();
    let state = match report.state() {
        ReportState::Working => "working",
        ReportState::Applied => "applied",
        ReportState::Gone => "gone",
        ReportState::Failed | ReportState::Unspecified => "failed",
    };
    let bytes = report.encode_to_vec();
    NodeReport {
        state: state.to_owned(),
        message: report.message,
        permanent: report.permanent,
        progress: i64::from(report.progress_percent),
        placement_epoch: signed(report.placement_epoch),
        generation: signed(report.generation),
        sequence: signed(report.sequence),
        rendered: report.rendered.into_iter().collect(),
        object_id: report.object_id,
        bytes,
    }
}
