//! People in browsers: whoever sends the cookie of a session is who it began as, as their authenticator knows them now.
//!
//! Sessions are held in memory, so that a request costs no look into the database; that one has ended is heard as ends of
//! logins are. When one was used last is written once a minute, and known to all servers before it counts as idle.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;

use super::{Authenticator, RequestDetails, Sessions, Verdict, people};
use crate::kernel::{Caller, Timestamp};
use crate::store::{BrowserSession, Store};

/// Sessions that are held in memory.
const MOST: usize = 10_000;
/// That one is used is written so often.
const WRITTEN_EVERY: i64 = 60;
/// The same for whoever asks, whatever has become of it.
const OVER: &str = "this session has ended: log in again";

/// The cookie of a session, as a request shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cookie {
    /// Hash of the secret in it.
    pub hash: String,
    /// Why it does not count for this request, if it does not.
    pub refused: Option<&'static str>,
    /// It is only looked at: that is no use of the session.
    pub is_look: bool,
}

/// Knows people by the cookies of their sessions.
pub struct Browsers {
    store: Store,
    sessions: Arc<Sessions>,
    /// By whom sessions begin.
    others: Vec<Arc<dyn Authenticator>>,
    held: Mutex<HashMap<String, Held>>,
}

#[derive(Clone)]
struct Held {
    session: Arc<BrowserSession>,
    seen: Timestamp,
    written: Timestamp,
}

impl Browsers {
    /// Whose sessions are in this store, and begin by these others.
    pub fn new(store: Store, sessions: Arc<Sessions>, others: Vec<Arc<dyn Authenticator>>) -> Browsers {
        Browsers { store, sessions, others, held: Mutex::default() }
    }

    async fn verdict(&self, cookie: &Cookie, request: &RequestDetails) -> Verdict {
        if let Some(why) = cookie.refused {
            return Verdict::Refused(why.to_owned());
        }
        let now = self.store.env().now();
        let held = match self.known(&cookie.hash, now).await {
            Ok(Some(held)) => held,
            Ok(None) => return Verdict::Wrong(OVER.to_owned()),
            Err(error) => {
                tracing::warn!(%error, "a session cannot be looked at");
                return Verdict::Unavailable("sessions cannot be looked at now".to_owned());
            }
        };
        let session = &held.session;
        if session.domain != request.domain.as_deref().unwrap_or_default() {
            return Verdict::Wrong("this session is one of another domain: log in here".to_owned());
        }
        let kept = &session.caller;
        let (login, issued) = (kept.session.as_deref(), kept.issued);
        let over = self.sessions.is_over("", Some(&session.hash), "", issued)
            || self.sessions.is_over(&kept.authenticator, login, &kept.subject, issued);
        if over || session.ends(held.seen) <= now {
            self.all().remove(&cookie.hash);
            return Verdict::RefusedKnown(kept.clone(), OVER.to_owned());
        }
        match people::now(&self.others, kept) {
            Some(Ok((_, mark))) if mark != session.mark => Verdict::RefusedKnown(
                kept.clone(),
                "your password is another one by now: log in again".to_owned(),
            ),
            Some(Ok((caller, _))) => {
                if !cookie.is_look {
                    self.used(&held, now);
                }
                // The code was shown when it began.
                Verdict::Caller(Caller {
                    credential: kept.credential.clone(),
                    session: kept.session.clone(),
                    issued: kept.issued,
                    browser: kept.browser.clone(),
                    second_factor: None,
                    ..caller
                })
            }
            Some(Err(refusal)) => refusal.into(),
            None => Verdict::RefusedKnown(
                kept.clone(),
                "whoever knew you here is asked no more: log in again".to_owned(),
            ),
        }
    }

    /// The session, as it is in memory; as the database has it, if it is not there or seems to be idle.
    async fn known(&self, hash: &str, now: Timestamp) -> Result<Option<Held>, crate::kernel::Error> {
        let found = self.all().get(hash).cloned();
        if let Some(held) = found.filter(|held| held.session.ends(held.seen) > now) {
            return Ok(Some(held));
        }
        let Some(session) = self.store.browser_session(hash).await? else {
            self.all().remove(hash);
            return Ok(None);
        };
        let (seen, session) = (session.seen_at, Arc::new(session));
        let held = Held { session, seen, written: seen };
        let mut all = self.all();
        if all.len() >= MOST {
            all.clear();
        }
        all.insert(hash.to_owned(), held.clone());
        Ok(Some(held))
    }

    fn used(&self, held: &Held, now: Timestamp) {
        let hash = &held.session.hash;
        {
            let mut all = self.all();
            let Some(held) = all.get_mut(hash) else { return };
            held.seen = held.seen.max(now);
            if held.written.plus_seconds(WRITTEN_EVERY) > now {
                return;
            }
            held.written = now;
        }
        let (store, hash) = (self.store.clone(), hash.clone());
        tokio::spawn(async move {
            if let Err(error) = store.browser_session_seen(&hash, now).await {
                tracing::warn!(%error, "the use of a session was not written");
            }
        });
    }

    fn all(&self) -> MutexGuard<'_, HashMap<String, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Authenticator for Browsers {
    fn authenticate<'a>(
        &'a self,
        header: Option<&'a str>,
        request: &'a RequestDetails,
    ) -> BoxFuture<'a, Verdict> {
        Box::pin(async move {
            match &request.cookie {
                // What is said on purpose stands over what a browser sends by itself.
                Some(cookie) if header.is_none() => self.verdict(cookie, request).await,
                _ => Verdict::NotMine,
            }
        })
    }
}
