//! Logins that have ended before their tokens did. Whoever issues tokens says so once, to one server; the others hear it
//! by the store. Held in memory, so that a request costs no look into the database; rows leave when the last token of
//! the login has.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::kernel::{Caller, Error, Timestamp};
use crate::store::{Bell, EndedSession, Store};

/// How often the store is looked at, should a bell be lost.
const EVERY: Duration = Duration::from_secs(1);
/// Rows may be committed in another order than they were made.
const OVERLAP: i64 = 60;

/// What has ended.
#[derive(Default)]
pub struct Sessions {
    known: RwLock<Known>,
    more: Notify,
}

#[derive(Default)]
struct Known {
    /// By authenticator, session and subject; one of the last two is empty.
    ended: BTreeMap<(String, String, String), EndedSession>,
    seen: Timestamp,
}

impl Sessions {
    /// True if the login has ended from which a token comes that was issued then. One that does not say when is as old
    /// as can be.
    pub fn is_over(
        &self,
        authenticator: &str,
        session: Option<&str>,
        subject: &str,
        issued: Option<Timestamp>,
    ) -> bool {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if known.ended.is_empty() {
            return false;
        }
        let key =
            |session: &str, subject: &str| (authenticator.to_owned(), session.to_owned(), subject.to_owned());
        session.is_some_and(|session| known.ended.contains_key(&key(session, "")))
            || known.ended.get(&key("", subject)).is_some_and(|ended| issued.unwrap_or_default() <= ended.at)
    }

    /// Waits until the caller's login has ended: forever, if nobody would say so.
    pub async fn over(self: Arc<Sessions>, caller: Caller) {
        if caller.session.is_none() && caller.subject.is_empty() {
            return std::future::pending().await;
        }
        loop {
            let more = self.more.notified();
            tokio::pin!(more);
            // Before looking: what is told in between must not be missed.
            more.as_mut().enable();
            let Caller { authenticator, session, subject, issued, .. } = &caller;
            if self.is_over(authenticator, session.as_deref(), subject, *issued) {
                return;
            }
            more.await;
        }
    }

    /// Reads what is new.
    pub async fn read(&self, store: &Store) -> Result<(), Error> {
        let seen = self.known.read().unwrap_or_else(PoisonError::into_inner).seen;
        let rows = store.ended_sessions(seen.plus_seconds(-OVERLAP)).await?;
        let now = store.env().now();
        self.known.write().unwrap_or_else(PoisonError::into_inner).ended.retain(|_, ended| ended.until > now);
        rows.into_iter().filter(|row| row.until > now).for_each(|row| self.tell(row));
        Ok(())
    }

    /// Knows that this has ended.
    pub fn tell(&self, ended: EndedSession) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.seen = known.seen.max(ended.told_at);
        let key = (ended.authenticator.clone(), ended.session.clone(), ended.subject.clone());
        let at = ended.at;
        let before = known.ended.insert(key, ended);
        drop(known);
        if before.is_none_or(|before| before.at < at) {
            self.more.notify_waiters();
        }
    }

    /// Follows the store until `stop`.
    pub async fn follow(self: Arc<Sessions>, store: Store, stop: CancellationToken) {
        let mut following = store.bells().follow(Bell::Sessions, EVERY, stop);
        while following.again().await {
            if let Err(error) = self.read(&store).await {
                tracing::warn!(%error, "which logins have ended cannot be read; going on with those that are known");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn an_end_of_all_takes_along_what_was_issued_until_then_whatever_our_clock_says() {
        let sessions = Arc::new(Sessions::default());
        // The issuer's clock may be far behind ours.
        let (authenticator, subject, at) = ("acme".to_owned(), "u-1".to_owned(), Timestamp(45_000_000));
        let ended = EndedSession {
            authenticator,
            subject,
            at,
            told_at: Timestamp(100_000_000),
            ..Default::default()
        };
        sessions.tell(ended);
        for (issued, is_over) in [(Some(44), true), (Some(45), true), (Some(46), false), (None, true)] {
            let caller = Caller {
                authenticator: "acme".into(),
                subject: "u-1".into(),
                session: Some("s-1".into()),
                issued: issued.map(|seconds| Timestamp(seconds * 1_000_000)),
                ..Caller::default()
            };
            let over = sessions.clone().over(caller).now_or_never();
            assert_eq!(over.is_some(), is_over, "{issued:?}");
        }
    }
}
