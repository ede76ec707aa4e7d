//! Users and passwords from a file, by `Basic`. The file is read again when it has changed.
//!
//! Looking at a password takes long, on purpose: so what was right is remembered for a short while, an unknown user
//! takes as long as a known one, few are looked at side by side, and a source may guess a few times only.

mod file;
mod hash;

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use self::file::{Known, Stamp};
use self::hash::Hash;
use super::cache::Cache;
use super::guesses::{ByPassword, Guesses};
use super::header::Basic;
use super::person::{PASSWORD, Person, Terms};
use super::{Refusal, Verdict};
use crate::kernel::{Caller, Env};

/// For how long a password that was right is not looked at again.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Passwords that are looked at side by side, and that wait for it.
const AT_ONCE: usize = 2;
const WAITING: usize = 64;

/// As the configuration has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `user:hash` lines.
    file: PathBuf,
    /// `group: user user` lines.
    groups_file: Option<PathBuf>,
}

/// Knows users by name and password.
pub struct Htpasswd {
    settings: Settings,
    terms: Terms,
    read: RwLock<(Stamps, Arc<Known>)>,
    right: Cache<()>,
    guesses: Guesses,
    working: Arc<Semaphore>,
    places: Arc<Semaphore>,
}

type Stamps = (Stamp, Option<Stamp>);

impl Htpasswd {
    /// That of these files; or what is wrong with them.
    pub fn new(terms: Terms, settings: Settings, env: &Env) -> Result<Htpasswd, String> {
        let stamps = stamps(&settings)?;
        let known = file::read(&settings.file, settings.groups_file.as_deref())?;
        Ok(Htpasswd {
            settings,
            terms,
            read: RwLock::new((stamps, Arc::new(known))),
            right: Cache::new(env),
            guesses: Guesses::new(env),
            working: Arc::new(Semaphore::new(AT_ONCE)),
            places: Arc::new(Semaphore::new(AT_ONCE + WAITING)),
        })
    }

    /// What the files say now. A file that is gone or not good lets nobody in: who was taken out of it must not come
    /// back by a slip.
    fn known(&self) -> Result<Arc<Known>, String> {
        let now = stamps(&self.settings)?;
        {
            let read = self.read.read().unwrap_or_else(PoisonError::into_inner);
            if read.0 == now {
                return Ok(read.1.clone());
            }
        }
        let known = Arc::new(file::read(&self.settings.file, self.settings.groups_file.as_deref())?);
        *self.read.write().unwrap_or_else(PoisonError::into_inner) = (now, known.clone());
        Ok(known)
    }

    /// The same, or what is said to who asks.
    fn known_now(&self) -> Result<Arc<Known>, Refusal> {
        self.known().map_err(|error| {
            tracing::error!(authenticator = self.terms.authenticator, %error, "nobody can log in by password");
            Refusal::of(Verdict::Unavailable("passwords cannot be looked at now".into()))
        })
    }

    /// The hash on which an unknown user's time is spent: one of those that there are, always the same for a name.
    fn instead<'a>(&self, known: &'a Known, user: &str) -> Option<&'a Hash> {
        let count = known.hashes.len();
        let [a, b, c, d, ..] = self.right.fingerprint(&[b"unknown", user.as_bytes()]);
        let lot = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(0);
        known.hashes.values().nth(lot.checked_rem(count)?)
    }

    /// Looks whether it is right, which takes long.
    async fn look(&self, pair: &Basic, hash: Hash, is_known: bool, source: &str) -> Result<(), Verdict> {
        if let Some(verdict) = self.guesses.take(source) {
            return Err(verdict);
        }
        let busy = || Verdict::Unavailable("too many log in at once: try again in a moment".into());
        let Ok(_place) = self.places.clone().try_acquire_owned() else { return Err(busy()) };
        let Ok(_working) = self.working.clone().acquire_owned().await else { return Err(busy()) };
        let password = pair.password.clone();
        let right = tokio::task::spawn_blocking(move || hash.verify(&password)).await.unwrap_or(false);
        if right && is_known {
            self.guesses.give_back(source);
            return Ok(());
        }
        Err(wrong())
    }
}

impl ByPassword for Htpasswd {
    fn guesses(&self) -> &Guesses {
        &self.guesses
    }

    fn terms(&self) -> &Terms {
        &self.terms
    }

    /// A session goes on as long as the line of the file stays as it was.
    fn kept(&self, kept: &Caller) -> Result<(Option<Vec<String>>, String), Refusal> {
        // Here a name is all that somebody is.
        let user = &kept.subject;
        let known = self.known_now()?;
        let gone = || Refusal {
            known: Some(Box::new(kept.clone())),
            ..Refusal::for_good("you are not known here any more")
        };
        let hash = known.hashes.get(user).ok_or_else(gone)?;
        let mark = rhyzome_pki::hex(&Sha256::digest(hash.text()));
        Ok((Some(known.groups.get(user).cloned().unwrap_or_default()), mark))
    }

    async fn verdict(&self, pair: Basic, source: &str) -> Verdict {
        let known = match self.known_now() {
            Ok(known) => known,
            Err(refusal) => return refusal.into(),
        };
        let found = known.hashes.get(&pair.user);
        let Some(hash) = found.or_else(|| self.instead(&known, &pair.user)).cloned() else {
            return wrong();
        };
        let print = self.right.fingerprint(&[
            pair.user.as_bytes(),
            pair.password.as_bytes(),
            hash.text().as_bytes(),
            &[u8::from(found.is_some())],
        ]);
        if self.right.get(&print).is_none() {
            if let Err(verdict) = self.look(&pair, hash, found.is_some(), source).await {
                return verdict;
            }
            self.right.put(print, (), REMEMBERED);
        }
        let groups = known.groups.get(&pair.user).cloned().unwrap_or_default();
        self.terms.caller(Person { name: pair.user, groups, credential: PASSWORD, ..Person::default() })
    }
}

/// The same whether there is such a user or not. Another authenticator may know them.
fn wrong() -> Verdict {
    Verdict::Wrong("nobody has this name and password".into())
}

fn stamps(settings: &Settings) -> Result<Stamps, String> {
    let groups = settings.groups_file.as_deref().map(file::stamp).transpose()?;
    Ok((file::stamp(&settings.file)?, groups))
}

#[cfg(test)]
mod tests;
