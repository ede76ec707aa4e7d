//! A real server's door and real links, over loopback with mutual TLS.
use hyper_util::rt::TokioIo;
use rhyzome_agent::console_log::ConsoleLog;
use rhyzome_agent::enroll::{Joined, join};
use rhyzome_agent::env::Env;
use rhyzome_agent::identity::{IdentityFolder, NodeRecord};
use rhyzome_agent::link::{LedgerView, Lendable, Link, LinkConfig, LinkEvent, LinkHandle};
use rhyzome_api::channel::{Channel, ChannelContext, HEARTBEAT, Streams};
use rhyzome_api::kernel::join as token;
use rhyzome_api::store::{Asked, NodeInvite, Store};
use rhyzome_pki::{Authority, Identity, NodeKey, SERVER_NAME, agent_client_config};
use rhyzome_tests::wait::until;
use rhyzome_tests::world::World;
use serde_json::json;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Endpoint;

/// One cluster: a store, an authority, and a door that can be shut and opened again.
pub struct Cluster {
    pub world: World,
    pub authority: Arc<Authority>,
    pub folder: Arc<tempfile::TempDir>,
    /// This server among others.
    pub server: String,
    pub streams: Streams,
    pub address: SocketAddr,
    /// How often the door looks for what no bell told. An hour: whatever arrives was told by a bell.
    pub net: Duration,
    stop: CancellationToken,
    served: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Cluster {
    pub async fn start(world: World) -> Cluster {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("blobs")).unwrap();
        let authority = Authority::open_or_create(&folder.path().join("pki"), SystemTime::now()).unwrap();
        let mut cluster = Cluster {
            world,
            authority: Arc::new(authority),
            folder: Arc::new(folder),
            server: "server".into(),
            streams: Streams::new(),
            address: "127.0.0.1:0".parse().unwrap(),
            net: Duration::from_secs(3600),
            stop: CancellationToken::new(),
            served: None,
        };
        cluster.open().await;
        cluster
    }

    /// Another server of the same cluster, as another process on the same files would be.
    pub async fn beside(&self, server: &str) -> Cluster {
        let authority =
            Authority::open_or_create(&self.folder.path().join("pki"), SystemTime::now()).unwrap();
        let mut cluster = Cluster {
            world: self.world.clone(),
            authority: Arc::new(authority),
            folder: self.folder.clone(),
            server: server.into(),
            streams: Streams::new(),
            address: "127.0.0.1:0".parse().unwrap(),
            net: self.net,
            stop: CancellationToken::new(),
            served: None,
        };
        cluster.open().await;
        cluster
    }

    pub fn store(&self) -> &Store {
        &self.world.store
    }

    /// Opens the door, at the same address as before if it was open before.
    pub async fn open(&mut self) {
        // Meanwhile another test's connection may go out from this very port.
        let address = self.address;
        let listener =
            until("the port", 60, async || tokio::net::TcpListener::bind(address).await.ok()).await;
        self.address = listener.local_addr().unwrap();
        self.stop = CancellationToken::new();
        self.world.store.reached_at(&self.address.to_string());
        self.world.store.server_heartbeat(&self.server).await.unwrap();
        let context = ChannelContext {
            store: self.world.store.clone(),
            authority: self.authority.clone(),
            server_id: self.server.clone(),
            names: vec!["127.0.0.1".into()],
            blobs: self.folder.path().join("blobs"),
            streams: self.streams.clone(),
            net: self.net,
            heartbeat: HEARTBEAT,
        };
        self.served = Some(tokio::spawn(Channel::serve(listener, context, self.stop.clone())));
    }

    pub async fn shut(&mut self) {
        self.stop.cancel();
        self.served.take().unwrap().await.unwrap().unwrap();
    }

    /// Makes a node; its id.
    pub async fn make_node(&self, name: &str) -> String {
        self.world.make("", "node", name, json!({})).await.object.core.id
    }

    /// A join token's line for a node, good for so many seconds.
    pub async fn invite(&self, node: &str, seconds: i64) -> String {
        let env = self.store().env();
        let token = token::invite(env, &self.authority.fingerprint());
        let invite = NodeInvite { hash: token.hash, expires_at: env.now().plus_seconds(seconds) };
        self.store().invite_node(&self.world.right(""), node, invite, &Asked::default()).await.unwrap();
        token.line
    }

    pub async fn join(&self, line: &str, name: &str, state: &Path) -> Result<Joined, String> {
        join(&self.address.to_string(), line, name, state).await.map_err(|error| error.to_string())
    }

    /// A node that has joined, and its agent, connected.
    pub async fn agent(&self, name: &str) -> Agent {
        let node = self.make_node(name).await;
        let line = self.invite(&node, 60).await;
        let state = self.folder.path().join(name);
        self.join(&line, name, &state).await.unwrap();
        Agent::start(self, &node, state, Ledger::at(0, 0))
    }

    /// Puts an identity into a folder as a join would have, its certificate signed at another time.
    pub async fn plant(&self, node: &str, name: &str, signed_at: SystemTime) -> PathBuf {
        let state = self.folder.path().join(format!("{name}-planted"));
        let folder = IdentityFolder::new(&state);
        let csr = folder.key().unwrap().csr_pem().unwrap();
        let leaf = self.authority.sign_node_csr(&csr, node, signed_at).unwrap();
        let later = self.store().env().now().plus_seconds(3600);
        self.store().record_certificate(&leaf.serial_hex, node, later).await.unwrap();
        folder.keep_certificate(&leaf.chain_pem, &self.authority.trust_pem()).unwrap();
        let record = NodeRecord {
            node_id: node.into(),
            node_name: name.into(),
            cluster_id: self.authority.cluster_id().into(),
            root_sha256: self.authority.fingerprint(),
            server: self.address.to_string(),
        };
        folder.keep_record(&record).unwrap();
        state
    }

    /// A certificate for a node that the store knows of.
    pub async fn identity(&self, node: &str) -> Identity {
        let key = NodeKey::generate().unwrap();
        let leaf = self.authority.sign_node_csr(&key.csr_pem().unwrap(), node, SystemTime::now()).unwrap();
        let later = self.store().env().now().plus_seconds(3600);
        self.store().record_certificate(&leaf.serial_hex, node, later).await.unwrap();
        Identity::of_node(&leaf.chain_pem, &key).unwrap()
    }

    pub fn tls(&self, identity: &Identity) -> Arc<rustls::ClientConfig> {
        agent_client_config(&self.authority.trust_pem(), identity).unwrap()
    }

    /// A connection of a client that is not our agent.
    pub async fn dial(&self, tls: Arc<rustls::ClientConfig>) -> Result<tonic::transport::Channel, String> {
        let address = self.address;
        let connector = tower::service_fn(move |_| {
            let tls = tokio_rustls::TlsConnector::from(tls.clone());
            async move {
                let tcp = tokio::net::TcpStream::connect(address).await?;
                let name = rustls::pki_types::ServerName::try_from(SERVER_NAME).unwrap();
                Ok::<_, std::io::Error>(TokioIo::new(tls.connect(name, tcp).await?))
            }
        });
        let endpoint = Endpoint::from_static("http://api.rhyzome.internal");
        endpoint.connect_with_connector(connector).await.map_err(|error| format!("{error:?}"))
    }
}

/// What the link asks of a ledger.
pub struct Ledger {
    pub cursor: AtomicU64,
    pub db_epoch: AtomicU64,
}

impl Ledger {
    pub fn at(db_epoch: u64, cursor: u64) -> Arc<Ledger> {
        Arc::new(Ledger { cursor: AtomicU64::new(cursor), db_epoch: AtomicU64::new(db_epoch) })
    }
}

impl LedgerView for Ledger {
    fn cursor(&self) -> u64 {
        self.cursor.load(Ordering::SeqCst)
    }

    fn db_epoch(&self) -> u64 {
        self.db_epoch.load(Ordering::SeqCst)
    }
}

/// A real link, with a test as its owner.
pub struct Agent {
    pub node: String,
    pub state: PathBuf,
    pub ledger: Arc<Ledger>,
    pub handle: LinkHandle,
    pub events: mpsc::Receiver<LinkEvent>,
    _stop: DropGuard,
}

impl Agent {
    pub fn start(cluster: &Cluster, node: &str, state: PathBuf, ledger: Arc<Ledger>) -> Agent {
        Agent::start_in(cluster, node, state, ledger, Env::system())
    }

    pub fn start_in(cluster: &Cluster, node: &str, state: PathBuf, ledger: Arc<Ledger>, env: Env) -> Agent {
        Agent::start_at(cluster, cluster.address, node, state, ledger, env)
    }

    /// As this machine, and this process of the agent.
    pub fn start_as(
        cluster: &Cluster,
        node: &str,
        state: PathBuf,
        ledger: Arc<Ledger>,
        env: Env,
        (machine, incarnation): (&str, &str),
    ) -> Agent {
        let says = (env!("CARGO_PKG_VERSION"), machine, incarnation);
        Agent::begin(cluster, cluster.address, node, state, ledger, env, says)
    }

    /// One that says that it is of this version.
    pub fn start_saying(cluster: &Cluster, node: &str, state: PathBuf, version: &str) -> Agent {
        let says = (version, "", "");
        Agent::begin(cluster, cluster.address, node, state, Ledger::at(0, 0), Env::system(), says)
    }

    /// One that dials another address than the cluster's.
    pub fn start_at(
        cluster: &Cluster,
        address: SocketAddr,
        node: &str,
        state: PathBuf,
        ledger: Arc<Ledger>,
        env: Env,
    ) -> Agent {
        Agent::begin(cluster, address, node, state, ledger, env, (env!("CARGO_PKG_VERSION"), "", ""))
    }

    /// One that says of itself its version, machine and process.
    fn begin(
        cluster: &Cluster,
        address: SocketAddr,
        node: &str,
        state: PathBuf,
        ledger: Arc<Ledger>,
        env: Env,
        (version, machine, incarnation): (&str, &str, &str),
    ) -> Agent {
        let sockets = cluster.folder.path().to_owned();
        let config = LinkConfig {
            server: address.to_string(),
            state_dir: state.clone(),
            agent_version: version.into(),
            boot_id: "boot".into(),
            machine_id: machine.into(),
            incarnation: incarnation.into(),
            env,
            socket_of: Arc::new(move |object, purpose| match purpose {
                "console" if object.starts_with("inst") => {
                    Ok(Lendable::Socket { socket: sockets.join("console.sock"), log: None })
                }
                "log" if object.starts_with("inst") => {
                    Ok(Lendable::Log(ConsoleLog::at(&sockets.join("console.log"))))
                }
                _ => Err(format!("no {purpose} here")),
            }),
        };
        let (link, handle, events) = Link::new(config, ledger.clone()).unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(link.run(stop.clone()));
        Agent { node: node.into(), state, ledger, handle, events, _stop: stop.drop_guard() }
    }

    /// The next event, within so many seconds.
    pub async fn event(&mut self, seconds: u64) -> LinkEvent {
        let waited = tokio::time::timeout(Duration::from_secs(seconds), self.events.recv()).await;
        waited.expect("an event in time").expect("the link goes on")
    }

    /// Waits for a session; its number.
    pub async fn connected(&mut self) -> u64 {
        loop {
            if let LinkEvent::Connected { session, .. } = self.event(60).await {
                return session;
            }
        }
    }

    /// Why the session, or the attempt to have one, ended.
    pub async fn disconnected(&mut self) -> String {
        loop {
            if let LinkEvent::Disconnected { reason } = self.event(60).await {
                return reason;
            }
        }
    }

    /// Waits until all orders up to this one have come.
    pub async fn caught_up(&mut self, sequence: u64) {
        loop {
            match self.event(60).await {
                LinkEvent::CaughtUp(up) => return assert_eq!(up, sequence),
                LinkEvent::Disconnected { reason } => panic!("disconnected: {reason}"),
                _ => {}
            }
        }
    }

    /// The sequences of all orders until the server says that there are no more.
    pub async fn orders(&mut self) -> Vec<u64> {
        let mut sequences = vec![];
        loop {
            match self.event(60).await {
                LinkEvent::Order(order) => sequences.push(order.sequence),
                LinkEvent::CaughtUp(_) => return sequences,
                LinkEvent::Connected { .. } | LinkEvent::Lease { .. } | LinkEvent::Decisions(_) => {}
                LinkEvent::Disconnected { reason } => panic!("disconnected: {reason}"),
            }
        }
    }
}
