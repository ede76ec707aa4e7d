//! The leader of the event log: one server appends what waits, signs the end now and then, and takes out what need
//! not be kept. What a bell says is only "look again"; the lease and its epoch are in the store.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::kernel::Error;
use crate::store::{Bell, Keep, LogLease, MOST_APPENDED, Seal, Store};

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
/// For how long a number that was passed over is looked for: its event may yet be committed, or never; how many of
/// them are; and how often one looks at all that waits, so that none is missed even then.
const LATE: Duration = Duration::from_secs(10);
const MOST_MISSING: usize = 200;
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

/// What was taken, so that it is not looked at again.
struct Taken {
    /// The greatest number, once there is one.
    greatest: i64,
    /// Smaller ones that were not there, and since when they are missed.
    missing: BTreeMap<i64, Instant>,
    /// When to look at all.
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
    let mut following = store.bells().follow(Bell::Events, LOOK_AGAIN, stop).gathering(GATHER);
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
    while following.again().await {
        if let Err(error) = leader.turn().await {
            tracing::warn!(%error, "the event log was not appended to; trying again");
        }
    }
    if let Err(error) = leader.leave().await {
        tracing::warn!(%error, "the end of the event log was not signed; the next start does it");
    }
}

impl Taken {
    fn nothing(now: Instant) -> Taken {
        Taken { greatest: 0, missing: BTreeMap::new(), all: now + ALL_EVERY }
    }

    /// Where to look now: behind a number, and for some below it.
    fn look(&mut self, now: Instant) -> (i64, Vec<i64>) {
        if now >= self.all {
            self.all = now + ALL_EVERY;
            return (0, Vec::new());
        }
        self.missing.retain(|_, since| now < *since + LATE);
        (self.greatest, self.missing.keys().copied().collect())
    }

    /// These were there, in order.
    fn took(&mut self, numbers: &[i64], now: Instant) {
        for number in numbers {
            self.missing.remove(number);
            if self.greatest > 0 {
                let passed = (self.greatest + 1..*number).rev().take(MOST_MISSING);
                self.missing.extend(passed.map(|number| (number, now)));
            }
            self.greatest = self.greatest.max(*number);
        }
        while self.missing.len() > MOST_MISSING {
            self.missing.pop_first();
        }
    }
}

impl Leader {
    async fn turn(&mut self) -> Result<(), Error> {
        if Instant::now() >= self.renew {
            self.take().await?;
        }
        let Some(lease) = self.lease.clone() else { return Ok(()) };
        loop {
            let (after, missing) = self.taken.look(Instant::now());
            let Some(taken) = self.store.append_log_after(&lease, after, missing).await? else {
                return self.lost();
            };
            self.taken.took(&taken, Instant::now());
            if !self.sign(&lease).await? {
                return self.lost();
            }
            if taken.len() < MOST_APPENDED {
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
    fn what_was_taken_is_not_looked_at_again_and_what_is_missing_is() {
        let start = Instant::now();
        let mut taken = Taken::nothing(start);
        assert_eq!(taken.look(start), (0, vec![]));
        taken.took(&[5, 6, 9], start);
        assert_eq!(taken.look(start), (9, vec![7, 8]));
        // It got its number before one that was taken, and was committed after it.
        taken.took(&[8, 11], start + LATE / 2);
        assert_eq!(taken.look(start + LATE / 2), (11, vec![7, 10]));
        assert_eq!(taken.look(start + LATE), (11, vec![10]));
        assert_eq!(taken.look(start + ALL_EVERY), (0, vec![]));
        assert_eq!(taken.look(start + ALL_EVERY), (11, vec![]));
        taken.took(&[1_000_000], start + ALL_EVERY);
        let (after, missing) = taken.look(start + ALL_EVERY);
        assert_eq!((after, missing.len(), missing.last()), (1_000_000, MOST_MISSING, Some(&999_999)));
    }
}
