//! People of a directory (LDAP), by `Basic`: whoever the directory lets in with that name and password is who they say,
//! and is in the groups that it tells. It is asked as `directory.rs` says, in the way that `settings.rs` has checked.
//!
//! A password that was right is not asked about again for a short while; a source may guess a few times only; a
//! directory that does not answer is left in peace. In doubt, nobody.

mod directory;
mod settings;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use self::directory::{Away, Directory, Found};
pub use self::settings::Settings;
use super::breaker::Breaker;
use super::cache::Cache;
use super::guesses::{ByPassword, Guesses};
use super::header::Basic;
use super::person::{LONGEST, Person, Terms};
use super::{Refusal, Verdict};
use crate::kernel::{Caller, Env};
use crate::outbound::Outbound;

/// Logins that wait for others to be done.
const WAITING: usize = 64;

/// Knows users by what a directory says of them.
pub struct Directories {
    terms: Terms,
    directory: Directory,
    time: Duration,
    remembered: Duration,
    right: Cache<Person>,
    guesses: Guesses,
    breaker: Breaker,
    working: Semaphore,
    places: Semaphore,
}

impl Directories {
    /// That of this configuration; or what is wrong with it. `believed` are authorities besides those of the machine.
    pub fn new(
        terms: Terms,
        settings: Settings,
        outbound: Arc<Outbound>,
        believed: Option<&Path>,
        env: &Env,
    ) -> Result<Directories, String> {
        let plan = settings.check(believed)?;
        outbound.judge_host(&plan.host).map_err(|error| format!("`url`: {error}"))?;
        Ok(Directories {
            terms,
            time: plan.time,
            remembered: plan.remembered,
            working: Semaphore::new(plan.connections),
            places: Semaphore::new(plan.connections + WAITING),
            directory: Directory::new(plan, outbound),
            right: Cache::new(env),
            guesses: Guesses::new(env),
            breaker: Breaker::new(env),
        })
    }

    async fn found(&self, pair: &Basic) -> Result<Found, String> {
        let busy = |_| "too many log in at once".to_owned();
        let _place = self.places.try_acquire().map_err(|_| busy(()))?;
        let _working = self.working.acquire().await.map_err(|_| busy(()))?;
        if !self.breaker.may_ask() {
            return Err("it has not answered for some time".into());
        }
        let answered = tokio::time::timeout(self.time, self.directory.person(pair)).await;
        self.breaker.was(matches!(answered, Ok(Ok(_))));
        match answered {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(Away::Lost(why) | Away::Cannot(why))) => Err(why),
            Ok(Err(Away::TooMuch)) => Err("a search found too much".to_owned()),
            Err(_) => Err("it takes too long".into()),
        }
    }
}

impl ByPassword for Directories {
    fn guesses(&self) -> &Guesses {
        &self.guesses
    }

    fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Nobody says when something changes in a directory: what it said counts until the session ends.
    fn kept(&self, _: &Caller) -> Result<(Option<Vec<String>>, String), Refusal> {
        Ok((None, String::new()))
    }

    async fn verdict(&self, pair: Basic, source: &str) -> Verdict {
        // Never shown to a directory: without a password it would let in whoever asks.
        if pair.password.is_empty() || pair.user.len() > LONGEST {
            return wrong();
        }
        let print = self.right.fingerprint(&[pair.user.as_bytes(), pair.password.as_bytes()]);
        if let Some(person) = self.right.get(&print) {
            return self.terms.caller(person);
        }
        if let Some(verdict) = self.guesses.take(source) {
            return verdict;
        }
        match self.found(&pair).await {
            Ok(Found::Nobody) => wrong(),
            Ok(Found::Unusable(why)) => {
                self.guesses.give_back(source);
                Verdict::Refused(format!("who you are cannot be told: {why}"))
            }
            Ok(Found::Person(person)) => {
                self.guesses.give_back(source);
                if !self.remembered.is_zero() {
                    self.right.put(print, person.clone(), self.remembered);
                }
                self.terms.caller(person)
            }
            Err(why) => {
                self.guesses.give_back(source);
                tracing::warn!(
                    authenticator = self.terms.authenticator,
                    why,
                    "the directory cannot be asked"
                );
                Verdict::Unavailable("passwords cannot be looked at now".into())
            }
        }
    }
}

/// The same whether there is such a user or not. Another authenticator may know them.
fn wrong() -> Verdict {
    Verdict::Wrong("the name or the password is wrong".into())
}
