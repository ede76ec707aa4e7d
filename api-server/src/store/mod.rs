//! The only place that knows SQL.
//!
//! Every write passes one door (`Store::write`) and is one transaction. Writes of users (`create`, `change`,
//! `remove`) do everything that one request means: names, references, claims, history, job, and the job's
//! first steps, so that the 202 shows the address and a crash finds all of it or nothing.
//!
//! Each column has one hand: users write `spec`, `claims.rs` writes claims, `advance.rs` writes jobs and
//! assignments, `report.rs` writes status. `phase` is stored with whichever of them is written.

mod adopt;
mod advance;
mod among;
mod assign;
mod audit;
mod authority;
mod awaits;
mod bells;
mod browser;
mod change;
mod claims;
mod create;
mod credentials;
pub(crate) mod db;
mod denials;
mod domains;
mod drain;
mod empty;
mod erase;
mod expiry;
mod facts;
mod figures;
mod findings;
mod given;
mod grants;
mod guess;
mod history;
mod jobs;
mod keys;
mod leases;
mod letters;
mod lite;
mod log;
mod lost;
mod machines;
mod news;
mod nodes;
mod notes;
mod notify;
mod objects;
mod open;
mod phases;
mod placement;
mod plan;
mod pool;
mod ports;
mod prefixes;
mod prove;
mod prune;
mod quota;
mod reads;
mod realms;
mod remove;
mod report;
mod request;
mod retain;
mod retry;
mod rights;
mod run;
mod second_factor;
mod secrets;
mod servers;
mod sessions;
mod ssh;
mod standing;
mod steps;
mod suspend;
mod tail;
mod tx;
mod users;
mod views;
mod webhooks;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

pub use adopt::AdoptAs;
pub use audit::AuditQuery;
pub use bells::{Bell, Bells};
pub use browser::{
    BROWSER_IDLE_SECONDS, BrowserLogin, BrowserSession, NewBrowserSession, browser_hash, browser_secret,
};
pub use change::{Asked, NewObject, Written};
pub use credentials::{NodeKeys, Shown, Untold};
pub use db::outside;
pub use denials::Denial;
pub use domains::ApiDomain;
pub use figures::{Figures, MOST_COUNTED};
pub use findings::{Decided, Decision, Findings, Found};
pub use keys::{Kept, KeptAnswer, Key};
pub use leases::NODE_LEASE;
pub use log::{Event, LOG_LEASE_SECONDS, LogHead, LogLease, MOST_APPENDED, Seal};
pub use lost::{Away, Rescued};
pub use machines::Introduction;
pub use news::{Look, News};
pub use nodes::{JoinRefusal, NodeHead, NodeInvite, Revoked, SessionStanding};
pub use open::{DbUrl, OpenError};
pub use plan::{Placement, Planned, QuotaChange};
pub use prove::{MOST_UNSIGNED, Proof};
pub use prune::Keep;
pub use quota::Usage;
pub use reads::{ListQuery, Page};
pub use realms::{RealmTold, RealmWork};
pub use report::{AssignmentRow, NodeReport};
pub use request::{Did, Once, Outcome, Terms, Write};
pub use retain::KeepHistory;
pub use rights::{RIGHTS_STALE, Refused};
pub use second_factor::{Owed, Proven, SecondFactorState};
pub use secrets::{Sealed, Vault};
pub use servers::{Holder, SERVER_LEASE_SECONDS};
pub use sessions::EndedSession;
pub use ssh::{SshAuthority, SshCertificate};
pub use tail::{LogReader, ReadError, TAIL_ENTRIES, TailReads};
pub use users::{TOKEN_PREFIX, token_hash};
pub use views::{ImageContent, Job, JobQuery, JobStep, Revision};
pub use webhooks::{Delivery, Hook, HookState, KEPT_DELIVERIES, UrlJudge};
pub use writer::TxFuture;

use crate::kernel::caller::Wall;
use crate::kernel::env::Moment;
use crate::kernel::{Env, Error, Registry, Right};
use db::Conn;
use denials::Denials;
use open::Readers;
use tail::TailCell;
use tx::Tx;
use writer::Writer;

/// The control plane's state, in either database. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    readers: Readers,
    writer: Writer,
    bells: Bells,
    context: Arc<Context>,
    tail: TailCell,
    denials: Arc<Denials>,
    rights: Arc<rights::Rights>,
}

/// What transactions need besides the database.
pub(crate) struct Context {
    pub(crate) env: Env,
    pub(crate) registry: Registry,
    /// What each tenant may use of a quantity, unless its spec says otherwise; no limit where nothing is said.
    pub(crate) quota: BTreeMap<String, u64>,
    /// Where new instances may go, as it was a moment ago.
    pub(crate) nodes: guess::Nodes,
    /// For hashes that nobody else can make; read when first needed.
    pub(crate) secret: tokio::sync::OnceCell<String>,
    /// Seals what must not be read in the database.
    pub(crate) vault: OnceLock<Arc<dyn Vault>>,
    /// The SSH authorities of tenants that were asked for.
    pub(crate) authorities: authority::Opened,
    /// Refuses URLs that are not to be called.
    pub(crate) url_judge: OnceLock<UrlJudge>,
    /// By which names the server itself is served.
    pub(crate) own_names: OnceLock<BTreeSet<String>>,
    /// Whether realms can be made at an identity provider.
    pub(crate) makes_realms: OnceLock<()>,
    /// When each server that works with this store last said that it is there.
    pub(crate) beats: leases::Beats,
    /// For how long answers under a key are kept, unless it is a day.
    pub(crate) answer_seconds: OnceLock<i64>,
    /// Where other servers reach this one, if it holds sessions.
    pub(crate) own_address: OnceLock<String>,
}

impl Store {
    /// Opens the database, and brings its schema to this program's version.
    pub async fn open(url: &DbUrl, env: Env, registry: Registry) -> Result<Store, OpenError> {
        Store::open_with(url, env, registry, BTreeMap::new()).await
    }

    /// As `open`, with a limit for each quantity that every tenant has unless its spec says otherwise.
    pub async fn open_with(
        url: &DbUrl,
        env: Env,
        registry: Registry,
        quota: BTreeMap<String, u64>,
    ) -> Result<Store, OpenError> {
        let opened = open::open(url, env.outside()).await?;
        let context = Arc::new(Context {
            env,
            registry,
            quota,
            nodes: guess::Nodes::new(&opened.bells),
            secret: tokio::sync::OnceCell::new(),
            vault: OnceLock::new(),
            authorities: authority::Opened::default(),
            url_judge: OnceLock::new(),
            own_names: OnceLock::new(),
            makes_realms: OnceLock::new(),
            beats: leases::Beats::default(),
            answer_seconds: OnceLock::new(),
            own_address: OnceLock::new(),
        });
        let store = Store {
            readers: opened.readers,
            writer: opened.writer,
            bells: opened.bells,
            context,
            tail: TailCell::default(),
            denials: Arc::default(),
            rights: Arc::default(),
        };
        store.count_what_is_there().await.map_err(|e| OpenError::Count(e.to_string()))?;
        Ok(store)
    }

    /// As `open_with`, but changes no schema: for whoever works beside a server.
    pub async fn attach(
        url: &DbUrl,
        env: Env,
        registry: Registry,
        quota: BTreeMap<String, u64>,
    ) -> Result<Store, OpenError> {
        let (found, known) = (url.link(false).await?.known_version().await?, rhyzome_sql::version());
        if found != known {
            return Err(OpenError::Behind { found, known });
        }
        Store::open_with(url, env, registry, quota).await
    }

    /// Seals secrets with this from now on; without it none can be kept. Once is enough: a later one is ignored.
    pub fn seal_with(&self, vault: Arc<dyn Vault>) {
        let _ = self.context.vault.set(vault);
    }

    /// Closes the connections to the database, for whoever opens many stores in one process: what is under way comes
    /// to its end, and nothing more is done.
    pub async fn close(&self) {
        self.readers.close().await;
    }

    /// Where to listen for "look again".
    pub fn bells(&self) -> &Bells {
        &self.bells
    }

    /// Clock, random numbers, ids.
    pub fn env(&self) -> &Env {
        &self.context.env
    }

    /// All kinds.
    pub fn registry(&self) -> &Registry {
        &self.context.registry
    }

    /// One transaction; durable when this returns `Ok`. The closure may run more than once: each try gets a
    /// copy of what it takes along.
    pub(crate) async fn write<A, T, F>(&self, taken: A, work: F) -> Result<T, Error>
    where
        A: Clone + Send + Sync + 'static,
        T: Send + 'static,
        F: for<'a> Fn(&'a mut Tx, Arc<Context>, A) -> TxFuture<'a, T> + Send + Sync + 'static,
    {
        self.write_behind(Wall::Open, taken, work).await
    }

    /// The same, for somebody: it comes upon nothing but what is within this wall.
    pub(crate) async fn write_behind<A, T, F>(&self, wall: Wall, taken: A, work: F) -> Result<T, Error>
    where
        A: Clone + Send + Sync + 'static,
        T: Send + 'static,
        F: for<'a> Fn(&'a mut Tx, Arc<Context>, A) -> TxFuture<'a, T> + Send + Sync + 'static,
    {
        self.reached()?;
        let (context, work) = (self.context.clone(), Arc::new(work));
        let ended = || Error::Unavailable("the process has ended".to_owned());
        if self.env().ends(Moment::Before) {
            return Err(ended());
        }
        let written = self.writer.write(&self.bells, wall.text().into(), move |tx| {
            let (work, context, taken) = (work.clone(), context.clone(), taken.clone());
            Box::pin(async move {
                let env = context.env.clone();
                let done = work(tx, context, taken).await?;
                tx.close().await?;
                if env.ends(Moment::Inside) { Err(ended()) } else { Ok(done) }
            })
        });
        let written = written.await?;
        if self.env().ends(Moment::After) { Err(ended()) } else { Ok(written) }
    }

    /// The same, for many who come at once: together they have half of the connections, so that nobody else waits until
    /// all of them were served.
    pub fn for_many(&self) -> Store {
        let readers = self.readers.half();
        // PostgreSQL is written by the same connections; SQLite by one, in turn.
        let writer = match &readers {
            Readers::Pg(pool) => Writer::Pg(pool.clone()),
            Readers::Lite(_) => self.writer.clone(),
        };
        Store { readers, writer, ..self.clone() }
    }

    /// A connection for reading.
    pub(crate) async fn read(&self) -> Result<Conn, Error> {
        self.reached()?;
        self.readers.acquire().await
    }

    /// A connection for reading what somebody asks for.
    pub(crate) async fn read_for(&self, right: &Right) -> Result<Conn, Error> {
        self.reached()?;
        self.readers.acquire_behind(right.wall().text().into()).await
    }

    /// In simulation a server may be cut off from its database.
    fn reached(&self) -> Result<(), Error> {
        match self.env().away() {
            true => Err(Error::Unavailable("the database is not there now".to_owned())),
            false => Ok(()),
        }
    }
}
