//! The cluster's authority while servers run: following it, exchanging it for another step by step, and saying in time
//! what ends.
//!
//! Each server looks at the authority's folder, which all share; whoever finds that the next step of an exchange can be
//! taken takes it. It can when nobody would be refused by it: see `turn`.

mod alarms;
mod verbs;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rhyzome_pki::{Authority, Phase};
use tokio_util::sync::CancellationToken;

pub use alarms::{Alarm, alarms};
pub use verbs::{retire, rotate, status};

use crate::kernel::{Caller, Error, Timestamp};
use crate::store::{Asked, Store, Untold};

/// How often to look.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How often to look at what ends soon.
const ALARMS_EVERY: Duration = Duration::from_secs(3600);

/// How long the steps of an exchange wait at least.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Until the other one signs, in seconds: a server that has not written its heartbeat yet is not seen.
    pub activate_seconds: i64,
    /// Until the one before is trusted no more: so long are join tokens good that name its root.
    pub retire_seconds: i64,
}

/// For which server, and what it looks after.
#[derive(Clone)]
pub struct AuthorityDuty {
    /// The authority.
    pub authority: Arc<Authority>,
    /// This server.
    pub server: String,
    /// How long steps wait.
    pub pace: Pace,
    /// A certificate for REST that is not the authority's.
    pub http_certificate: Option<std::path::PathBuf>,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { activate_seconds: 10, retire_seconds: 20 * 60 }
    }
}

/// Now, by the App's clock.
pub(crate) fn now(store: &Store) -> SystemTime {
    store.env().now().into()
}

/// Looks after it until it is told to stop.
pub async fn keep(store: Store, duty: AuthorityDuty, stop: CancellationToken) {
    let mut looked: Option<tokio::time::Instant> = None;
    let (mut told, mut rung) = (String::new(), Vec::new());
    loop {
        if let Err(error) = turn(&store, &duty, &mut told).await {
            tracing::warn!(error = format!("{error:#}"), "the authority was not looked after; trying again");
        }
        if looked.is_none_or(|at| at.elapsed() > ALARMS_EVERY) {
            looked = Some(tokio::time::Instant::now());
            alarms::ring(&store, &duty, &mut rung).await;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
    }
}

/// Follows the authority, says so, and takes the next step of an exchange if it can be taken. `told`: what was said last.
///
/// **The other one signs** once every server that lives, and every node that is connected, trusts its root. **The one
/// before retires** once every node that has joined shows a certificate of the other one and trusts its root, and no join
/// token is left that names the old root.
pub async fn turn(store: &Store, duty: &AuthorityDuty, told: &mut String) -> anyhow::Result<()> {
    let authority = &duty.authority;
    authority.refresh()?;
    let (phase, trust) = (authority.phase(), authority.trust_digest());
    if phase == Phase::Settled && *told == trust {
        return Ok(());
    }
    store.server_trusts(&duty.server, &trust).await?;
    told.clone_from(&trust);
    let waited = store.env().now().0 - Timestamp::from(authority.since()).0;
    match phase {
        Phase::Prepared if waited >= duty.pace.activate_seconds * 1_000_000 => {
            if store.untold(&trust).await? == Untold::default() && authority.activate(now(store))? {
                noted(store, "activate").await?;
                tracing::info!(root = authority.fingerprint(), "the other authority signs from now on");
            }
        }
        Phase::Activated if waited >= duty.pace.retire_seconds * 1_000_000 => {
            let beside = store.nodes_beside(&authority.issuer_key(), &trust).await?;
            if beside.is_empty() && authority.retire(now(store))? {
                noted(store, "retire").await?;
                tracing::info!("the authority before is trusted no more");
            }
        }
        Phase::Prepared | Phase::Activated | Phase::Settled => {}
    }
    Ok(())
}

async fn noted(store: &Store, verb: &'static str) -> Result<(), Error> {
    let asked = Asked { source: "local".into(), ..Asked::default() };
    store.note(&Caller::system(), "authority", verb, &asked).await
}
