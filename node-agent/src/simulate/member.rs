//! One simulated node: a machine that is not there, and on it the production link, ledger and owner.

use super::machine::{Machine, Shared};
use crate::identity::IdentityFolder;
use crate::lease::Lease;
use crate::ledger::Ledger;
use crate::link::{Link, LinkConfig, LinkHandle};
use crate::owner::{Event, Owner, Wires};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;

/// A node of the simulation.
pub struct Member {
    /// Its name.
    pub name: String,
    folder: PathBuf,
    server: String,
    shared: Shared,
    machine: Arc<Machine>,
    running: Option<Running>,
}

struct Running {
    link: LinkHandle,
    ledger: Arc<Mutex<Ledger>>,
    _task: AbortOnDropHandle<()>,
}

impl Member {
    /// The node that has joined in this folder. `server`: where to dial, if not where it joined.
    pub fn open(folder: &Path, server: Option<&str>, shared: &Shared) -> anyhow::Result<Member> {
        let record = IdentityFolder::new(folder).record()?;
        let record = record.ok_or_else(|| anyhow::anyhow!("{} holds no identity", folder.display()))?;
        let machine = Machine::new(&record.node_name, folder, shared);
        Ok(Member {
            name: record.node_name,
            folder: folder.to_owned(),
            server: server.map_or(record.server, str::to_owned),
            shared: shared.clone(),
            machine: Arc::new(machine),
            running: None,
        })
    }

    /// Starts its agent, unless it runs.
    pub fn start(&mut self) -> anyhow::Result<()> {
        if self.running.is_some() {
            return Ok(());
        }
        let ledger = Arc::new(Mutex::new(Ledger::open(&self.folder)?));
        let boot_id = self.machine.boot_id();
        let config = LinkConfig {
            server: self.server.clone(),
            state_dir: self.folder.clone(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: boot_id.clone(),
            machine_id: format!("simulated {}", self.name),
            incarnation: self.machine.incarnation(),
            socket_of: Arc::new(|_, purpose| Err(format!("a simulated node has no {purpose}"))),
            env: self.shared.env.clone(),
        };
        let (link, handle, orders) = Link::new(config, ledger.clone())?;
        // Nothing rings it: guests of this machine do nothing by themselves.
        let (_, bell) = mpsc::unbounded_channel();
        let (news, events) = mpsc::unbounded_channel();
        // It waits in the channel until the owner begins.
        let _ = news.send(Event::Accelerator(super::ACCELERATOR.to_owned()));
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
        let (hands, env, leases) = (self.machine.clone(), self.shared.env.clone(), handle.clone());
        let wanter = Arc::new(move |wanted| leases.want_lease(wanted));
        let lease = Lease::open(&self.folder, &boot_id);
        let owner = Owner::new(ledger.clone(), hands, wires, boot_id, env).with_lease(lease, wanter).run();
        let status = say_what_it_is(self.machine.clone(), handle.clone(), session, news);
        // One task for all of it: it ends at once, wherever it is, as a process does.
        let whole = async move {
            tokio::select! {
                () = link.run(CancellationToken::new()) => {}
                () = owner => {}
                () = status => {}
            }
        };
        let whole = whole.instrument(tracing::info_span!("node", name = self.name));
        let task = AbortOnDropHandle::new(tokio::spawn(whole));
        self.running = Some(Running { link: handle, ledger, _task: task });
        Ok(())
    }

    /// Ends its agent; what it made stays.
    pub fn stop(&mut self) {
        if self.running.take().is_some() {
            self.machine.end_life();
        }
    }

    /// Its machine goes down and comes back, and its agent with it.
    pub fn reboot(&mut self) -> anyhow::Result<()> {
        self.stop();
        self.machine.reboot();
        self.start()
    }

    /// Whether its agent runs.
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Whether it has a session.
    pub fn is_connected(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.link.is_connected())
    }

    /// How many orders it has.
    pub fn orders(&self) -> usize {
        let ledger = self.running.as_ref().map(|running| &running.ledger);
        ledger.map_or(0, |ledger| ledger.lock().unwrap_or_else(PoisonError::into_inner).orders().len())
    }
}

async fn say_what_it_is(
    machine: Arc<Machine>,
    link: LinkHandle,
    session: Arc<Notify>,
    // The owner hears of no more, and must not think that nobody could tell it any.
    _news: mpsc::UnboundedSender<Event>,
) {
    loop {
        session.notified().await;
        link.node_status(machine.introduce());
    }
}
