//! The link: one session with the server, kept for ever.
//!
//! # The seam
//!
//! The link knows the server and nothing of the node; the owner (ledger, reconcile, drivers) knows the node and
//! nothing of gRPC. They meet in three places, and nowhere else:
//!
//! - **in**, server to owner: one channel of [`LinkEvent`]s, in order. First of each session comes
//!   [`LinkEvent::Connected`]; the owner keeps its `db_epoch` in the ledger and then reports *everything* it
//!   holds, node status included. Then come [`LinkEvent::Order`]s, which the owner keeps in the ledger before it
//!   acts on them. An owner that does not read makes the server wait; nothing is dropped.
//! - **out**, owner to server: [`LinkHandle::report`] and [`LinkHandle::node_status`], at any time, connected or
//!   not. They never block: a newer report of an object replaces one that was not sent yet.
//! - **asked**: [`LedgerView`], before each session: up to where the ledger has orders, and the highest
//!   `db_epoch` it has seen. A server whose epoch is lower, or that is of another cluster, is refused.
//!
//! Beside that [`LinkHandle::fetch_blob`] gets an image's bytes, and a stream that the server wants lent is joined
//! to what [`LinkConfig::socket_of`] names: a unix socket, a port of a guest, or a log. Both use connections of their own, so that no byte of
//! them ever stands before an order.
//!
//! # What it promises
//!
//! It never gives up: after any end it dials again, 0.2 to 15 seconds later with jitter, or when the server's
//! Goodbye says. It renews its certificate at two thirds of its life over the session, or when the server says that its
//! authority is exchanged for another, and comes back with its key when the certificate ran out while there was none. It has no opinion on orders.

mod attach;
mod backoff;
mod blob;
mod comeback;
mod credentials;
pub(crate) mod dial;
mod outbox;
mod reach;
mod renewal;
mod session;

use crate::console_log::ConsoleLog;
use crate::env::Env;
use crate::identity::{IdentityError, IdentityFolder, LoadedIdentity};
use backoff::Backoff;
pub use blob::Blob;
use outbox::Outbox;
use reach::Network;
pub use reach::{Begin, FromServer, Reach, Reached, ToReturning};
use rhyzome_proto::v1::{Decision, Findings, NodeStatus, Order, Report};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

/// Names what is behind a stream: called with the object's id and the purpose (`console`, `log`, `port:22`, `snapshot:0`). The error is told to
/// whoever asked for the stream.
pub type SocketOf = Arc<dyn Fn(&str, &str) -> Result<Lendable, String> + Send + Sync>;

/// What is behind a stream.
#[derive(Clone, Debug)]
pub enum Lendable {
    /// A unix socket: both directions are joined to it.
    Socket {
        /// Where it is.
        socket: PathBuf,
        /// Keeps what was said on it before; its end is sent first, so that whoever comes late sees it.
        log: Option<ConsoleLog>,
    },
    /// A TCP port of a guest: both directions are joined to it.
    Port {
        /// The namespace of its network.
        namespace: String,
        /// Where it listens.
        address: SocketAddr,
    },
    /// A log: it is sent, and nothing is taken.
    Log(ConsoleLog),
    /// A file that nobody writes any more: it is sent, and nothing is taken.
    File {
        /// Where it is.
        file: PathBuf,
        /// The first byte that is wanted.
        from: u64,
    },
}

/// What the link needs to know.
#[derive(Clone)]
pub struct LinkConfig {
    /// `host:port` of the server; `https://` before it is fine. Of several, with commas between, whichever can be reached.
    pub server: String,
    /// The agent's folder; the identity is in it since the node joined.
    pub state_dir: PathBuf,
    /// This program's version.
    pub agent_version: String,
    /// Which boot of the machine this is.
    pub boot_id: String,
    /// Which machine this is; empty if it does not say.
    pub machine_id: String,
    /// Which process of the agent this is.
    pub incarnation: String,
    /// Where the streams are that the server may want lent.
    pub socket_of: SocketOf,
    /// Clock and jitter.
    pub env: Env,
}

/// What the link asks of the ledger before each session.
pub trait LedgerView: Send + Sync + 'static {
    /// The highest order sequence that is kept. The server sends what is above it.
    fn cursor(&self) -> u64;
    /// The highest `db_epoch` ever obeyed.
    fn db_epoch(&self) -> u64;
}

/// What the link tells the owner, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum LinkEvent {
    /// A session began: keep the epoch, then report everything.
    Connected {
        /// Of the server's database.
        db_epoch: u64,
        /// Rises with each session of this node.
        session: u64,
    },
    /// What this node should hold, or let go: keep it, then act.
    Order(Box<Order>),
    /// All orders up to this sequence have been sent.
    CaughtUp(u64),
    /// The server has granted this node a lease until then, by the agent's clock of uptime. All orders that were there
    /// when the session began have come before it.
    Lease {
        /// Its end.
        until: Duration,
    },
    /// All that operators have decided on what this node has found.
    Decisions(Vec<Decision>),
    /// The session ended, or none could be had; the link goes on trying by itself.
    Disconnected {
        /// One line for logs and for the node's status.
        reason: String,
    },
}

/// Why a session could not be had or ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No connection, or it broke.
    #[error("{0}")]
    Connection(String),
    /// The server said no.
    #[error("the server refuses: {0}")]
    Refused(String),
    /// The certificate's time is over.
    #[error("the node's certificate has run out")]
    RanOut,
    /// The server ended the session.
    #[error("the server ended the session: {reason}")]
    Goodbye {
        /// The server's words.
        reason: String,
        /// When to come back.
        after: Duration,
    },
    /// Nothing was heard for three heartbeats.
    #[error("the server has been silent for {} s", .0.as_secs())]
    Silent(Duration),
    /// The server belongs to another cluster.
    #[error(
        "wrong-cluster: the server is of cluster {offered}, this node belongs to {own}; point the agent at its own cluster, or join again with an empty state folder"
    )]
    WrongCluster {
        /// The node's own.
        own: String,
        /// The server's.
        offered: String,
    },
    /// The server's database is older than what this node has obeyed: a backup restored without raising it.
    #[error(
        "older-database: the server's database epoch is {offered}, this node has obeyed {seen}; nothing is changed here until an operator raises the server's epoch"
    )]
    OlderDatabase {
        /// Highest ever obeyed.
        seen: u64,
        /// The server's.
        offered: u64,
    },
    /// The identity's files cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The server does not speak as agreed.
    #[error("the server does not speak as agreed: {0}")]
    Protocol(String),
    /// The owner is gone: there is nobody to tell.
    #[error("the agent is shutting down")]
    OwnerGone,
}

/// The owner's end of the link. Cheap to clone.
#[derive(Clone)]
pub struct LinkHandle(Arc<Shared>);

/// Keeps the session. [`Link::run`] ends only at shutdown.
pub struct Link {
    shared: Arc<Shared>,
    ledger: Arc<dyn LedgerView>,
    reach: Arc<dyn Reach>,
    events: mpsc::Sender<LinkEvent>,
}

pub(crate) struct Shared {
    config: LinkConfig,
    folder: IdentityFolder,
    current: RwLock<Arc<LoadedIdentity>>,
    outbox: Outbox,
    is_connected: AtomicBool,
    leases: Leases,
}

/// Whether the node needs a lease.
#[derive(Default)]
struct Leases {
    wanted: AtomicBool,
    /// Rung when it needs one that did not before.
    bell: Notify,
}

/// Events that wait for the owner before the server has to.
const EVENTS: usize = 256;

impl Link {
    /// A link for a node that has joined, the owner's handle, and the owner's events.
    pub fn new(
        config: LinkConfig,
        ledger: Arc<dyn LedgerView>,
    ) -> Result<(Link, LinkHandle, mpsc::Receiver<LinkEvent>), LinkError> {
        let network = Arc::new(Network { server: config.server.clone() });
        Link::over(config, ledger, network)
    }

    /// The same, with sessions that take another way than the network.
    pub fn over(
        config: LinkConfig,
        ledger: Arc<dyn LedgerView>,
        reach: Arc<dyn Reach>,
    ) -> Result<(Link, LinkHandle, mpsc::Receiver<LinkEvent>), LinkError> {
        let folder = IdentityFolder::new(&config.state_dir);
        let current = RwLock::new(Arc::new(folder.load()?));
        let shared = Arc::new(Shared {
            config,
            folder,
            current,
            outbox: Outbox::default(),
            is_connected: AtomicBool::new(false),
            leases: Leases::default(),
        });
        let (events, received) = mpsc::channel(EVENTS);
        let handle = LinkHandle(shared.clone());
        Ok((Link { shared, ledger, reach, events }, handle, received))
    }

    /// Dials, holds the session, dials again; until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        shutdown.run_until_cancelled(self.keep()).await;
    }

    async fn keep(self) {
        let mut backoff = Backoff::default();
        loop {
            let began = tokio::time::Instant::now();
            let error = session::hold(&self).await;
            self.shared.is_connected.store(false, Ordering::Relaxed);
            let asked = match &error {
                LinkError::OwnerGone => return,
                LinkError::Goodbye { after, .. } => Some(*after),
                _ => None,
            };
            let wait = backoff.next(began.elapsed(), asked, self.shared.config.env.chance());
            tracing::warn!(reason = %error, wait_ms = wait.as_millis(), "no session with the server; dialing again");
            if self.events.send(LinkEvent::Disconnected { reason: error.to_string() }).await.is_err() {
                return;
            }
            tokio::time::sleep(wait).await;
        }
    }

    async fn tell(&self, event: LinkEvent) -> Result<(), LinkError> {
        if matches!(event, LinkEvent::Connected { .. }) {
            self.shared.is_connected.store(true, Ordering::Relaxed);
        }
        self.events.send(event).await.map_err(|_| LinkError::OwnerGone)
    }
}

impl LinkHandle {
    /// Tells the server what this node holds of one object. Never blocks; the newest of an object counts.
    pub fn report(&self, report: Report) {
        self.0.outbox.report(report);
    }

    /// Tells the server what this node is. Never blocks; the newest counts.
    pub fn node_status(&self, status: NodeStatus) {
        self.0.outbox.node_status(status);
    }

    /// Whether the node needs a lease: then it is asked for often enough that it never ends while there is a server.
    pub fn want_lease(&self, wanted: bool) {
        let before = self.0.leases.wanted.swap(wanted, Ordering::Relaxed);
        if wanted && !before {
            self.0.leases.bell.notify_one();
        }
    }

    /// Tells the server what is here unasked. Never blocks; the newest counts.
    pub fn findings(&self, findings: Findings) {
        self.0.outbox.findings(findings);
    }

    /// The bytes of an image from `offset` on. Whoever asks verifies the digest at the end.
    pub async fn fetch_blob(&self, sha256: &str, offset: u64) -> Result<Blob, LinkError> {
        blob::fetch(&self.0, sha256, offset).await
    }

    /// Whether there is a session now.
    pub fn is_connected(&self) -> bool {
        self.0.is_connected.load(Ordering::Relaxed)
    }

    /// Who this node is.
    pub fn identity(&self) -> Arc<LoadedIdentity> {
        self.0.identity()
    }
}

impl Shared {
    fn identity(&self) -> Arc<LoadedIdentity> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes over what was just written to the identity's folder, for the next dial.
    fn reload_identity(&self) -> Result<(), IdentityError> {
        let loaded = Arc::new(self.folder.load()?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = loaded;
        Ok(())
    }

    /// A new connection that shows the present certificate.
    async fn dial(&self) -> Result<tonic::transport::Channel, LinkError> {
        Network { server: self.config.server.clone() }.dial(&self.identity()).await
    }
}
