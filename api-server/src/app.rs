//! The App: makes clock, random numbers, store and everything around it, and hands each what it needs.

mod agents;
mod certificates;
mod doors;
mod serve;

use std::fs::File;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
pub use certificates::{Certificates, Tenants};
use futures_util::future::BoxFuture;
use nix::fcntl::{Flock, FlockArg};
use rhyzome_pki::Authority;
pub use serve::{Serving, serve};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::{ApiTokens, Authenticator, Authenticators, Domains, OperatorToken, Realms, Sessions};
use crate::authority::{self, AuthorityDuty, Pace};
use crate::blobs::Blobs;
use crate::channel::{self, ChannelContext, Peers, Purpose, StreamError, Streams};
use crate::config::Config;
use crate::environment::system_env;
use crate::kernel::{Caller, Clash, Env, Error, Scope};
use crate::limits::Gate;
use crate::log::LogDuty;
use crate::metrics::{self, Metrics, Watched};
use crate::outbound::{Courier, Limits, Outbound, Rules, SystemNames, own_addresses};
use crate::realms::{self, Keycloak};
use crate::rest::{ConsoleEnds, ConsoleHub, Joining, Regulars, RestContext, RestLimits, Wanted};
use crate::store::{Asked, DbUrl, NewObject, Store};
use crate::webhooks::{self, Deliveries};
use crate::{audit, images_folder, jobs, log, resources, sealing};

/// Which doors this process opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Both.
    All,
    /// REST.
    Http,
    /// The agents'.
    Grpc,
}

/// How long requests may go on after the server was told to stop.
const GRACE: Duration = Duration::from_secs(5);

/// How long somebody is waited for of whom a request needs to know something.
const AUTH_TIME: Duration = Duration::from_secs(5);
/// The same for who makes a realm, which takes long, and nobody waits there.
const REALM_TIME: Duration = Duration::from_secs(30);

/// Runs a server until `stop`.
pub async fn run(config: Config, role: Role, stop: CancellationToken) -> anyhow::Result<()> {
    let url: DbUrl = config.db.parse()?;
    let alone = matches!(url, DbUrl::Sqlite(_));
    if alone && role != Role::All {
        bail!(
            "on SQLite there is one process: start `rhyzome-api` without a word, or name a PostgreSQL in `db`"
        );
    }
    private_folder(&config.data)?;
    let _only_one = if alone { Some(only_one(&config.data)?) } else { None };
    let env = system_env();
    let store = Store::open_with(&url, env.clone(), resources::registry(), config.quota.clone()).await?;
    let server = env.id("srv");
    let keyring = Arc::new(sealing::keyring(&config, &env)?);
    sealing::furnish(&store, keyring.clone()).await?;
    store.server_heartbeat(&server).await?;
    store.bury_servers(&server, alone).await?;
    seed(&store).await?;
    let authority = Arc::new(authority(&config)?);
    let limits =
        rhyzome_imagefmt::Limits { max_file_size_bytes: config.image_max_bytes, ..Default::default() };
    let folder = config.data.join("blobs");
    private_folder(&folder)?;
    let (store_at_end, own) = (store.clone(), server.clone());
    let streams = Streams::new();
    let tasks = TaskTracker::new();
    let courier = courier(&config, &store);
    let deliveries = Deliveries::new(store.clone(), courier.clone(), &server);
    tasks.spawn(webhooks::run(deliveries, stop.clone()));
    tasks.spawn(jobs::run(store.clone(), stop.clone()));
    tasks.spawn(jobs::rescue(store.clone(), stop.clone()));
    let seal = Arc::new(audit::seal(&config.data)?);
    let duty = LogDuty { server: server.clone(), alone, seal, keep: config.events };
    tasks.spawn(log::run(store.clone(), duty, stop.clone()));
    tasks.spawn(sealing::keep_fresh(store.clone(), keyring, stop.clone()));
    let duty = AuthorityDuty {
        authority: authority.clone(),
        server: server.clone(),
        pace: Pace::default(),
        http_certificate: config.http_certificate.as_ref().map(|(cert, _)| cert.clone()),
    };
    tasks.spawn(authority::keep(store.clone(), duty, stop.clone()));
    store.keep_answers(config.answer_seconds);
    let duty = jobs::SweepDuty { server: server.clone(), blobs: folder.clone(), keep: config.history };
    tasks.spawn(jobs::sweep(store.clone(), duty, stop.clone()));
    if role != Role::Http {
        let listener = tokio::net::TcpListener::bind(config.grpc)
            .await
            .with_context(|| format!("`grpc.listen`: {} cannot be listened on", config.grpc))?;
        let context = ChannelContext {
            // Thousands of agents may come back at once.
            store: store.for_many(),
            authority: authority.clone(),
            server_id: server.clone(),
            names: doors::names(config.grpc, &config.grpc_names),
            blobs: folder.clone(),
            streams: streams.clone(),
            net: channel::NET,
            heartbeat: Duration::from_secs(config.heartbeat_seconds.into()),
        };
        let address = listener.local_addr()?;
        store.reached_at(&advertised(&config, address.port()));
        store.server_heartbeat(&server).await?;
        tracing::info!(%address, "agents may dial in");
        let serving = agents::serve(listener, context, stop.clone())?;
        tasks.spawn(or_stop(serving, stop.clone(), "the agents' door"));
    }
    let (metrics, mut shown) = (Metrics::new(), None);
    if role != Role::Grpc {
        // Opening it sweeps out what arrived halfway: only who takes bytes in may do that.
        let blobs = Blobs::open(&folder, limits, env.clone()).context("the folder of image bytes")?;
        if let Some(folder) = config.images_folder.clone() {
            tasks.spawn(images_folder::watch(store.clone(), blobs.clone(), folder, stop.clone()));
        }
        let peers = Peers::new(streams.clone(), store.clone(), authority.clone(), &server);
        let consoles = ConsolesOfChannel(peers);
        let sessions = Arc::new(Sessions::default());
        // What has ended while we were not there is known before anybody asks.
        sessions.read(&store).await?;
        tasks.spawn(sessions.clone().follow(store.clone(), stop.clone()));
        let outbound = Arc::new(outbound_of_auth(&config, AUTH_TIME)?);
        if let Some(keycloak) = keycloak(&config)? {
            store.makes_realms();
            tasks.spawn(realms::run(store.clone(), keycloak, stop.clone()));
        }
        store.called(config.http_names.iter().cloned());
        let domains = Arc::new(Domains::beside(config.http_names.iter().cloned()));
        domains.read(&store).await?;
        tasks.spawn(domains.clone().follow(store.clone(), stop.clone()));
        let context = RestContext {
            authenticators: authenticators(&config, store.env(), sessions, domains, &outbound)?
                .with_browsers(&store),
            store: store.clone(),
            blobs,
            consoles: Arc::new(consoles),
            courier,
            limits: RestLimits::default(),
            gate: Gate::new(config.limits.clone(), store.env()),
            regulars: Regulars::new(store.env()),
            joining: joining(&config, &authority),
            metrics: metrics.clone(),
        };
        let (shows, serving) = doors::serve_rest(&config, context, authority.clone(), stop.clone())?;
        shown = shows;
        tasks.spawn(or_stop(serving, stop.clone(), "the REST door"));
    }
    if let Some(how) = &config.metrics {
        let http_ends = move || shown.as_ref().and_then(|shown| shown.ends());
        let traffic = move || doors::traffic(&streams);
        let watched =
            Watched { store, authority, traffic: Box::new(traffic), http_ends: Box::new(http_ends) };
        let watched = Arc::new(watched);
        tasks.spawn(metrics::watch(metrics.clone(), watched.clone(), stop.clone()));
        let serving = doors::serve_metrics(&config, how, metrics, watched, stop.clone())?;
        tasks.spawn(or_stop(serving, stop.clone(), "the door of metrics"));
    }
    stop.cancelled().await;
    tasks.close();
    if let Err(error) = store_at_end.flush_denials().await {
        tracing::warn!(%error, "the last denials were not kept");
    }
    // Whoever is still busy then is cut off: every write is a transaction, and every start a recovery.
    let _ = tokio::time::timeout(GRACE + Duration::from_secs(2), tasks.wait()).await;
    if let Err(error) = store_at_end.server_leaves(&own).await {
        tracing::warn!(%error, "this server's row was left behind");
    }
    Ok(())
}

/// A door that falls shut takes the whole server down, loudly: half a server is worse than none.
async fn or_stop(
    serving: impl Future<Output = anyhow::Result<()>>,
    stop: CancellationToken,
    what: &'static str,
) {
    if let Err(error) = serving.await {
        tracing::error!(error = format!("{error:#}"), "{what} failed");
    }
    stop.cancel();
}

pub(crate) fn authority(config: &Config) -> anyhow::Result<Authority> {
    let authority = match &config.pki {
        Some(files) => {
            let authority = Authority::from_files(&files.cert, &files.key)?;
            let root = std::fs::read_to_string(&files.ca).context("`pki.ca`")?;
            if !rhyzome_pki::fingerprints(&root)?.contains(&authority.fingerprint()) {
                bail!("`pki.cert` does not lead to the root in `pki.ca`");
            }
            authority
        }
        None => Authority::open_or_create(&config.data.join("pki"), SystemTime::now())?,
    };
    Ok(authority.with_node_life(Duration::from_secs(config.leaf_seconds)))
}

// === REST ===

/// Consoles, logs and snapshots by the channel, at whichever server a node is.
pub struct ConsolesOfChannel(pub Peers);

impl ConsoleHub for ConsolesOfChannel {
    fn open<'a>(
        &'a self,
        node: &'a str,
        object: &'a str,
        wanted: Wanted,
    ) -> BoxFuture<'a, Result<ConsoleEnds, Error>> {
        let purpose = match wanted {
            Wanted::Console => Purpose::Console,
            Wanted::Port(port) => Purpose::Port(port),
            Wanted::Log { tail_lines, follow } => Purpose::Log { tail_lines, follow },
            Wanted::Snapshot { from } => Purpose::Snapshot { from },
        };
        Box::pin(async move {
            self.0.open(node, object, purpose).await.map_err(|error| match error {
                // The node knows of no such thing: asking again changes nothing.
                StreamError::Refused(_) => Clash::WrongState(error.to_string()).into(),
                error => Error::NodeAway(error.to_string()),
            })
        })
    }
}

/// The operator's token first: it is there however the others do.
fn authenticators(
    config: &Config,
    env: &Env,
    sessions: Arc<Sessions>,
    domains: Arc<Domains>,
    outbound: &Arc<Outbound>,
) -> anyhow::Result<Authenticators> {
    let token = OperatorToken::load_or_create(&config.data.join(TOKEN_FILE), env)?;
    let mut list: Vec<Arc<dyn Authenticator>> = vec![Arc::new(token), Arc::new(ApiTokens)];
    let made = config.auth.make(env, outbound, &sessions);
    list.extend(made.map_err(anyhow::Error::msg)?);
    if let Some(keycloak) = &config.keycloak {
        let (domains, sessions) = (domains.clone(), sessions.clone());
        list.push(Arc::new(Realms::new(keycloak.clone(), domains, sessions, outbound.clone(), env)));
    }
    Ok(Authenticators::new(list).with_sessions(sessions).with_domains(domains))
}

/// Who makes realms for tenants, if somebody does.
fn keycloak(config: &Config) -> anyhow::Result<Option<Keycloak>> {
    let Some(keycloak) = &config.keycloak else { return Ok(None) };
    let outbound = outbound_of_auth(config, REALM_TIME)?;
    Keycloak::new(keycloak, Arc::new(outbound)).map_err(anyhow::Error::msg)
}

/// What calls those who know callers.
fn outbound_of_auth(config: &Config, time: Duration) -> anyhow::Result<Outbound> {
    let allow = config.outbound_allow.iter().chain(&config.auth.allow).copied().collect();
    let authorities = match &config.auth.ca {
        Some(path) => {
            let pem = std::fs::read(path).with_context(|| format!("`auth.ca`: {}", path.display()))?;
            reqwest::Certificate::from_pem_bundle(&pem)
                .with_context(|| format!("`auth.ca`: {}", path.display()))?
        }
        None => Vec::new(),
    };
    let rules = Rules { allow, own: own_addresses() };
    let limits = Limits { time, ..Limits::default() };
    Ok(Outbound::believing(rules, limits, Arc::new(SystemNames), authorities)?)
}

/// Where other servers reach the agents' door of this one.
fn advertised(config: &Config, port: u16) -> String {
    if let Some(told) = &config.grpc_advertise {
        return told.clone();
    }
    let host = match config.grpc.ip() {
        ip if !ip.is_unspecified() => ip.to_string(),
        // A name may lead to several servers, an address on which this one listens does not.
        ip => config.grpc_names.first().cloned().unwrap_or_else(|| doors::reachable(ip).to_string()),
    };
    host_port(&host, port)
}

fn host_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// What an agent that is invited must know.
pub(crate) fn joining(config: &Config, authority: &Arc<Authority>) -> Joining {
    let host =
        config.grpc_names.first().cloned().unwrap_or_else(|| doors::reachable(config.grpc.ip()).to_string());
    let authority = authority.clone();
    let root_sha256 = Arc::new(move || authority.fingerprint());
    Joining { root_sha256, server: host_port(&host, config.grpc.port()) }
}

/// The operator's token, in the folder of data.
pub(crate) const TOKEN_FILE: &str = "operator.token";

/// Who calls others, for users. What they give is judged by the same rules when it is written.
fn courier(config: &Config, store: &Store) -> Arc<Courier> {
    let rules = Rules { allow: config.outbound_allow.clone(), own: own_addresses() };
    let limits = Limits { bytes: 64 << 10, ..Limits::default() };
    let courier = Arc::new(Courier::new(rules, limits, Arc::new(SystemNames), config.webhooks_http));
    let judge = courier.clone();
    store.judge_urls(Box::new(move |url| judge.judge(url)));
    courier
}

/// On SQLite one process works on a folder: held until the process ends, however it ends.
pub(crate) fn only_one(data: &Path) -> anyhow::Result<Flock<File>> {
    let path = data.join("server.lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| path.display().to_string())?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        nix::errno::Errno::EWOULDBLOCK => {
            anyhow::anyhow!(
                "another rhyzome-api works on {} already: end it, or choose another `data`",
                data.display()
            )
        }
        error => anyhow::anyhow!("{} cannot be locked: {error}", path.display()),
    })
}

pub(crate) fn private_folder(path: &Path) -> anyhow::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("the folder {} cannot be made", path.display()))
}

// === the first start ===

/// What a first start makes: machine types, a pool, a tenant. Once per database: what an operator deletes
/// stays deleted.
pub async fn seed(store: &Store) -> Result<(), Error> {
    let mine = store.env().id("seed");
    if store.meta("seeded", mine.clone()).await? != mine {
        return Ok(());
    }
    let asked = Asked { request_id: "first-start".into(), ..Asked::default() };
    for (kind, name, spec) in resources::seeds() {
        let kind = store.registry().get(kind)?;
        debug_assert_ne!(kind.meta().scope, Scope::Tenant);
        let right = Caller::system().may("create", kind.meta().kind, "")?;
        let body = NewObject { name: Some(name.to_owned()), spec, ..NewObject::default() };
        match store.create(&right, kind, body, &asked).await {
            Ok(_) | Err(Error::Clash(Clash::NameTaken(_))) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
