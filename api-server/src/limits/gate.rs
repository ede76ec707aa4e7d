//! What every request of a known caller passes: their own share, their tenant's, and the server's.
//!
//! Who asks a little too often is made to wait for the moment at which they may, so that a client that asks one thing
//! after the other is never refused. Who asks far too often is refused, and not at once: a client that does not listen
//! gets no more refusals than it has patience.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::counts::Counts;
use super::rate::Rates;
use super::settings::{LimitsConfig, Share};
use super::source::network;
use super::turns::{Place, Ticket, Turns};
use crate::kernel::Env;

/// The longest that somebody is made to wait who asks too often.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long a refusal takes at least, and by how much longer at most: by chance, or those who asked at the same time
/// would all be back at the same time, and stand in the way of everybody in that moment.
const PENALTY: Duration = Duration::from_secs(1);
const PENALTY_SPREAD: Duration = Duration::from_secs(1);
/// The longest that an address is closed to strangers, however many came.
const CLOSED: Duration = Duration::from_secs(30);
/// Refusals that are held back at the same time, of one caller; beyond, the connection goes.
const MOST_HELD: usize = 512;

/// Who asks, and of whose share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// One who runs the place.
    Operator,
    /// Somebody.
    Caller {
        /// Told apart from all others.
        id: String,
        /// The tenant of which they are, if it is one of theirs.
        tenant: Option<String>,
    },
}

/// Why a request is not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Which limit it was: `caller-rate`.
    pub limit: &'static str,
    /// What the limit is.
    pub most: u64,
    /// When to come again.
    pub after: Duration,
    /// Whose limit it was; empty: no tenant's.
    pub tenant: String,
    /// There are so many of them that nobody is told any more.
    pub flood: bool,
}

/// Where requests pass.
#[derive(Clone)]
pub struct Gate(Arc<Inner>);

struct Inner {
    config: LimitsConfig,
    env: Env,
    state: Mutex<State>,
}

struct State {
    callers: Rates,
    tenants: Rates,
    strangers: Rates,
    requests: Counts,
    streams: Counts,
    held: Counts,
    turns: Turns,
    waiting: BTreeMap<Ticket, oneshot::Sender<()>>,
}

/// What a request holds until it is answered: the last byte of it, not the first.
pub struct Pass {
    gate: Gate,
    who: Who,
    holds: Mutex<Holds>,
}

#[derive(Clone, Copy, Default)]
struct Holds {
    request: bool,
    turn: bool,
    stream: bool,
}

// === impl Who ===

impl Who {
    fn caller_key(id: &str) -> String {
        format!("c/{id}")
    }

    fn tenant_key(tenant: &str) -> String {
        format!("t/{tenant}")
    }

    /// All keys under which they are counted, each with what it may have.
    fn shares<'a>(&self, config: &'a LimitsConfig) -> Vec<(String, &'a Share, bool)> {
        match self {
            Who::Operator => Vec::new(),
            Who::Caller { id, tenant } => {
                let tenant = tenant.as_ref().map(|name| (Who::tenant_key(name), &config.tenant, true));
                [(Who::caller_key(id), &config.caller, false)].into_iter().chain(tenant).collect()
            }
        }
    }

    /// With whom they take turns.
    fn group(&self) -> String {
        match self {
            Who::Operator => "operators".to_owned(),
            Who::Caller { tenant: Some(tenant), .. } => Who::tenant_key(tenant),
            Who::Caller { id, tenant: None } => Who::caller_key(id),
        }
    }

    fn tenant(&self) -> &str {
        match self {
            Who::Caller { tenant: Some(tenant), .. } => tenant,
            _ => "",
        }
    }
}

// === impl Gate ===

impl Gate {
    /// With these limits.
    pub fn new(config: LimitsConfig, env: &Env) -> Gate {
        let state = State {
            callers: Rates::new(config.caller.rate),
            tenants: Rates::new(config.tenant.rate),
            strangers: Rates::new(config.strangers),
            requests: Counts::default(),
            streams: Counts::default(),
            held: Counts::default(),
            turns: Turns::new(config.working),
            waiting: BTreeMap::new(),
        };
        Gate(Arc::new(Inner { config, env: env.clone(), state: Mutex::new(state) }))
    }

    /// What the limits are.
    pub fn config(&self) -> &LimitsConfig {
        &self.0.config
    }

    /// Lets a request in, as soon as it may work.
    pub async fn enter(&self, who: Who) -> Result<Pass, Refused> {
        let entered = self.count(&who).and_then(|pass| Ok((self.take(&who)?, pass)));
        let (wait, pass) = match entered {
            Ok(entered) => entered,
            Err(refused) => {
                let Who::Caller { id, .. } = &who else { return Err(refused) };
                return Err(self.hold_back(&Who::caller_key(id), refused).await);
            }
        };
        if !wait.is_zero() {
            sleep(wait).await;
        }
        self.turn(&pass).await?;
        Ok(pass)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more at the same time.
    fn count(&self, who: &Who) -> Result<Pass, Refused> {
        let most = |share: &Share| share.requests;
        self.state().requests.add_all(who, &self.0.config, most).map_err(|(tenants, most)| {
            let limit = if tenants { "tenant-requests" } else { "caller-requests" };
            who.refused(limit, most, Duration::from_secs(1))
        })?;
        let holds = Holds { request: true, ..Holds::default() };
        Ok(Pass { gate: self.clone(), who: who.clone(), holds: Mutex::new(holds) })
    }

    /// How long it is until they may ask again; taken, if that is soon.
    fn take(&self, who: &Who) -> Result<Duration, Refused> {
        let Who::Caller { id, tenant } = who else { return Ok(Duration::ZERO) };
        let (now, mut state) = (self.0.env.uptime(), self.state());
        let config = &self.0.config;
        let key = Who::caller_key(id);
        let own = state
            .callers
            .take(&key, now, PATIENCE)
            .map_err(|wait| who.refused("caller-rate", config.caller.rate.a_second(), wait))?;
        let Some(tenant) = tenant else { return Ok(own) };
        match state.tenants.take(&Who::tenant_key(tenant), now, PATIENCE) {
            Ok(wait) => Ok(own.max(wait)),
            Err(wait) => {
                state.callers.give_back(&key);
                Err(who.refused("tenant-rate", config.tenant.rate.a_second(), wait))
            }
        }
    }

    /// How long it is until somebody may come from this address without good credentials; `None`: now.
    pub fn stranger_waits(&self, source: &str) -> Option<Duration> {
        let wait = self.state().strangers.wait(&network(source), self.0.env.uptime());
        Some(wait).filter(|wait| !wait.is_zero())
    }

    /// Somebody came from this address without good credentials.
    pub fn stranger(&self, source: &str) {
        let now = self.0.env.uptime();
        // Whether it was one too many is asked before the next one is looked at.
        let _ = self.state().strangers.take(&network(source), now, CLOSED);
    }

    /// What somebody is told who comes without good credentials from an address from which too many did, after a while.
    pub async fn turn_away(&self, source: &str, after: Duration) -> Refused {
        let most = self.0.config.strangers.a_second();
        let refused = Refused { limit: "stranger-rate", most, after, tenant: String::new(), flood: false };
        self.hold_back(&format!("s/{}", network(source)), refused).await
    }

    /// Until it is their turn.
    async fn turn(&self, pass: &Pass) -> Result<(), Refused> {
        let group = pass.who.group();
        let waits = {
            let mut state = self.state();
            let most = match pass.who {
                Who::Operator => self.0.config.working,
                Who::Caller { .. } => self.0.config.working_of_one_tenant,
            };
            match state.turns.come(&group, most) {
                Place::Now => None,
                Place::Later(ticket) => {
                    let (call, called) = oneshot::channel();
                    state.waiting.insert(ticket, call);
                    Some((Waiting { gate: self.clone(), group, ticket, over: false }, called))
                }
            }
        };
        if let Some((mut waiting, called)) = waits {
            let patience = match pass.who {
                // Who runs the place waits as long as it takes.
                Who::Operator => Duration::MAX,
                Who::Caller { .. } => self.0.config.wait,
            };
            if !matches!(timeout(patience, called).await, Ok(Ok(()))) {
                drop(waiting);
                let working = self.0.config.working as u64;
                return Err(pass.who.refused("server-working", working, Duration::from_secs(1)));
            }
            waiting.over = true;
        }
        pass.holds().turn = true;
        Ok(())
    }

    fn end_turn(&self, group: &str) {
        let mut state = self.state();
        for ticket in state.turns.done(group) {
            if let Some(call) = state.waiting.remove(&ticket) {
                // Whoever is called takes their turn, or gives it back when they go.
                let _ = call.send(());
            }
        }
    }

    /// A refusal is told after a while, so that whoever does not listen is not served many of them.
    async fn hold_back(&self, key: &str, refused: Refused) -> Refused {
        if !self.state().held.add(key, MOST_HELD) {
            return Refused { flood: true, ..refused };
        }
        let _held = Held { gate: self, key };
        let spread = u64::try_from(PENALTY_SPREAD.as_micros()).unwrap_or(0);
        sleep(PENALTY + Duration::from_micros(self.0.env.below(spread))).await;
        refused
    }
}

/// A refusal that is held back.
struct Held<'a> {
    gate: &'a Gate,
    key: &'a str,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.gate.state().held.remove(self.key);
    }
}

/// Somebody who waits; whoever goes away before leaves the line.
struct Waiting {
    gate: Gate,
    group: String,
    ticket: Ticket,
    over: bool,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let waited = {
            let mut state = self.gate.state();
            state.waiting.remove(&self.ticket);
            state.turns.leave(&self.group, self.ticket)
        };
        // It was their turn in the very moment.
        if !waited {
            self.gate.end_turn(&self.group);
        }
    }
}

impl Who {
    fn refused(&self, limit: &'static str, most: u64, after: Duration) -> Refused {
        Refused { limit, most, after, tenant: self.tenant().to_owned(), flood: false }
    }
}

impl Counts {
    /// One more of each of their shares, or of none: then whether it was the tenant's, and how many there may be.
    fn add_all(
        &mut self,
        who: &Who,
        config: &LimitsConfig,
        most: impl Fn(&Share) -> usize,
    ) -> Result<(), (bool, u64)> {
        let shares = who.shares(config);
        for (at, (key, share, tenants)) in shares.iter().enumerate() {
            if !self.add(key, most(share)) {
                shares[..at].iter().for_each(|(key, ..)| self.remove(key));
                return Err((*tenants, most(share) as u64));
            }
        }
        Ok(())
    }

    fn remove_all(&mut self, who: &Who, config: &LimitsConfig) {
        who.shares(config).iter().for_each(|(key, ..)| self.remove(key));
    }
}

// === impl Pass ===

impl Pass {
    /// It will take long, and be no work: it is counted as a stream from now on, and not as a request.
    pub fn stream(&self) -> Result<(), Refused> {
        let gate = &self.gate;
        if self.holds().stream {
            return Ok(());
        }
        let most = |share: &Share| share.streams;
        gate.state().streams.add_all(&self.who, gate.config(), most).map_err(|(tenants, most)| {
            let limit = if tenants { "tenant-streams" } else { "caller-streams" };
            self.who.refused(limit, most, Duration::from_secs(5))
        })?;
        self.holds().stream = true;
        self.worked();
        if std::mem::take(&mut self.holds().request) {
            gate.state().requests.remove_all(&self.who, gate.config());
        }
        Ok(())
    }

    /// The work is done; what is left is to hand the answer over.
    pub fn worked(&self) {
        if std::mem::take(&mut self.holds().turn) {
            self.gate.end_turn(&self.who.group());
        }
    }

    /// There is work again: waits for their turn.
    pub async fn work(&self) -> Result<(), Refused> {
        let has_turn = self.holds().turn;
        if has_turn { Ok(()) } else { self.gate.turn(self).await }
    }

    fn holds(&self) -> MutexGuard<'_, Holds> {
        self.holds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.worked();
        let Holds { request, stream, .. } = *self.holds();
        let mut state = self.gate.state();
        if request {
            state.requests.remove_all(&self.who, self.gate.config());
        }
        if stream {
            state.streams.remove_all(&self.who, self.gate.config());
        }
    }
}

#[cfg(test)]
mod tests;
