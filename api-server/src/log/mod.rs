//! The leader of the event log: one server appends what waits, signs the end now and then, and takes out what need
//! not be kept. What a bell says is only "look again"; the lease and its epoch are in the store.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::kernel::Error;
use crate::store::{Bell, Bells, Keep, LogLease, MOST_APPENDED, Seal, Store};

/// Well within the lease.
const RENEW: Duration = Duration::from_secs(5);
/// How long to sleep when no bell rings.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long events are gathered before one transaction takes them: long enough that the commit of a log does not
/// get between a request and the guest that it starts, and that a busy second costs forty commits.
const GATHER: Duration = Duration::from_millis(25);
/// The end is signed after so many entries, or after this time.
const SIGN_ENTRIES: i64 = 1000;
const SIGN_EVERY: Duration = Duration::from_secs(300);
const PRUNE_EVERY: Duration = Duration::from_secs(3600);
/// For how long an event may wait for its commit after it got its number, and not be missed when one looks behind
/// the numbers that were taken; and how often one looks at all that waits, so that it is not missed even then.
const LATE: Duration = Duration::from_secs(10);
const ALL_EVERY: Duration = Duration::from_secs(60);

/// What the leader is told.
#[derive(Clone)]
pub struct LogDuty {
    /// This server.
    pub server: String,
    /// Nobody else can have the lease: this is the only process.
    pub alone: bool,
    /// Signs the end of the log.
    pub seal: Arc<dyn Seal>,
    /// How much of it is kept.
    pub keep: Keep,
}

/// Behind which number to look for what waits.
struct Taken {
    /// All up to here were taken.
    until: i64,
    /// The greatest that was taken at `since`, and the greatest of all.
    then: i64,
    since: Instant,
    greatest: i64,
    all: Instant,
}

struct Leader {
    store: Store,
    duty: LogDuty,
    lease: Option<LogLease>,
    renew: Instant,
    /// The last entry that is signed, and when to sign again.
    signed: i64,
    sign: Instant,
    prune: Instant,
    taken: Taken,
}

/// Runs until it is told to stop. Of several servers one leads; the others try to.
pub async fn run(store: Store, duty: LogDuty, stop: CancellationToken) {
    let mut bells = store.bells().subscribe();
    let now = Instant::now();
    let mut leader = Leader {
        store,
        duty,
        lease: None,
        renew: now,
        signed: 0,
        sign: now + SIGN_EVERY,
        prune: now,
        taken: Taken::nothing(now),
    };
    loop {
        if let Err(error) = leader.turn().await {
            tracing::warn!(%error, "the event log was not appended to; trying again");
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = Bells::heard(&mut bells, |bell| *bell == Bell::Events) => tokio::time::sleep(GATHER).await,
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
    }
    if let Err(error) = leader.leave().await {
        tracing::warn!(%error, "the end of the event log was not signed; the next start does it");
    }
}

impl Taken {
    fn nothing(now: Instant) -> Taken {
        Taken { until: 0, then: 0, since: now, greatest: 0, all: now + ALL_EVERY }
    }

    /// Behind which number to look now.
    fn look(&mut self, now: Instant) -> i64 {
        if now >= self.since + LATE {
            (self.until, self.then, self.since) = (self.then, self.greatest, now);
        }
        if now < self.all {
            return self.until;
        }
        self.all = now + ALL_EVERY;
        0
    }
}

impl Leader {
    async fn turn(&mut self) -> Result<(), Error> {
        if Instant::now() >= self.renew {
            self.take().await?;
        }
        let Some(lease) = self.lease.clone() else { return Ok(()) };
        loop {
            let after = self.taken.look(Instant::now());
            let Some(appended) = self.store.append_log_after(&lease, after).await? else {
                return self.lost();
            };
            self.taken.greatest = self.taken.greatest.max(appended.number);
            if !self.sign(&lease).await? {
                return self.lost();
            }
            if appended.entries < MOST_APPENDED {
                break;
            }
        }
        if self.duty.keep != Keep::default() && Instant::now() >= self.prune {
            self.prune = Instant::now() + PRUNE_EVERY;
            // Only what is before a signed entry can be taken out.
            self.store.seal_log(&lease, self.duty.seal.clone()).await?;
            self.store.prune_log(&lease, self.duty.keep).await?;
        }
        Ok(())
    }

    async fn take(&mut self) -> Result<(), Error> {
        self.renew = Instant::now() + RENEW;
        let lease = self.store.lead_log(&self.duty.server, self.duty.alone).await?;
        if lease.is_some() && self.lease != lease {
            self.taken = Taken::nothing(Instant::now());
            self.signed = self.store.sealed_log().await?;
            tracing::debug!(
                epoch = lease.as_ref().map(|lease| lease.epoch),
                "this server leads the event log"
            );
        }
        self.lease = lease;
        Ok(())
    }

    fn lost(&mut self) -> Result<(), Error> {
        tracing::warn!("another server leads the event log by now");
        self.lease = None;
        Ok(())
    }

    /// Signs the end if that is due. `false`: the lease is another's.
    async fn sign(&mut self, lease: &LogLease) -> Result<bool, Error> {
        let waited = Instant::now() >= self.sign;
        let head = self.store.log_head().await?.seq;
        if head == self.signed || (head - self.signed < SIGN_ENTRIES && !waited) {
            return Ok(true);
        }
        let Some(signed) = self.store.seal_log(lease, self.duty.seal.clone()).await? else {
            return Ok(false);
        };
        self.signed = signed;
        self.sign = Instant::now() + SIGN_EVERY;
        Ok(true)
    }

    async fn leave(&mut self) -> Result<(), Error> {
        let Some(lease) = self.lease.take() else { return Ok(()) };
        while self.store.append_log(&lease).await?.is_some_and(|appended| appended > 0) {}
        self.store.seal_log(&lease, self.duty.seal.clone()).await?;
        self.store.leave_log(&lease).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_long_ago_is_not_looked_at_again() {
        let start = Instant::now();
        let mut taken = Taken::nothing(start);
        assert_eq!(taken.look(start), 0);
        taken.greatest = 7;
        // It got its number before those that were taken, and is committed now.
        assert_eq!(taken.look(start + LATE), 0);
        taken.greatest = 9;
        assert_eq!(taken.look(start + LATE * 3 / 2), 0);
        assert_eq!(taken.look(start + LATE * 2), 7);
        assert_eq!(taken.look(start + ALL_EVERY), 0);
        assert_eq!(taken.look(start + ALL_EVERY), 9);
    }
}
