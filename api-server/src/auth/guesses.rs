//! What all who ask for a name and a password have in common: a source may guess a few times only, and what another
//! authenticator knows was no guess.

use std::time::Duration;

use futures_util::future::BoxFuture;

use super::cache::Cache;
use super::header::{self, Basic};
use super::person::{PASSWORD, Person, Terms};
use super::tries::Tries;
use super::{Authenticator, Now, Refusal, RequestDetails, Verdict};
use crate::kernel::{Caller, Env};

/// Wrong passwords of one source: so many, then one each so often.
pub const TRIES: (u32, Duration) = (10, Duration::from_secs(6));
/// For how long what another authenticator knows is not looked at again.
const REMEMBERED: Duration = Duration::from_secs(60);

/// An authenticator that asks for a name and a password.
pub trait ByPassword: Send + Sync {
    /// What is known of those who guess.
    fn guesses(&self) -> &Guesses;

    /// How its people are known.
    fn terms(&self) -> &Terms;

    /// The groups of somebody, and what must stay the same while they have a session, if more is known than was said
    /// when it began; or why nobody is let in.
    fn kept(&self, kept: &Caller) -> Result<(Option<Vec<String>>, String), Refusal>;

    /// Whose name and password these are, of somebody at this address.
    fn verdict(&self, pair: Basic, source: &str) -> impl Future<Output = Verdict> + Send;
}

/// The guesses at one authenticator's passwords.
pub struct Guesses {
    tries: Tries,
    /// Names and passwords that another authenticator knows.
    elsewhere: Cache<()>,
}

impl Guesses {
    /// None yet.
    pub fn new(env: &Env) -> Guesses {
        Guesses { tries: Tries::new(env, TRIES.0, TRIES.1), elsewhere: Cache::new(env) }
    }

    /// The name and the password that are shown; or what is to be said at once.
    pub fn asked(&self, header: Option<&str>) -> Result<Basic, Box<Verdict>> {
        match header::basic(header) {
            None => Err(Box::new(Verdict::NotMine)),
            Some(None) => Err(Box::new(Verdict::Refused("`Basic` wants BASE64 of NAME:PASSWORD".into()))),
            Some(Some(pair)) => match self.elsewhere.get(&self.elsewhere.fingerprint(&parts(&pair))) {
                Some(()) => Err(Box::new(Verdict::NotMine)),
                None => Ok(pair),
            },
        }
    }

    /// Takes a try, before it is known whether it is a right one; `Some`: there is none left.
    pub fn take(&self, source: &str) -> Option<Verdict> {
        let wait = self.tries.take(source).err()?;
        Some(Verdict::Wrong(format!("too many wrong passwords: try again in {} s", wait.as_secs() + 1)))
    }

    /// It was no guess.
    pub fn give_back(&self, source: &str) {
        self.tries.give_back(source);
    }

    /// As [`super::Authenticator::known_elsewhere`].
    pub fn known_elsewhere(&self, header: Option<&str>, request: &RequestDetails) {
        if let Some(Some(pair)) = header::basic(header) {
            self.elsewhere.put(self.elsewhere.fingerprint(&parts(&pair)), (), REMEMBERED);
            self.give_back(&request.source);
        }
    }
}

impl<T: ByPassword> Authenticator for T {
    fn serves(&self, domain: Option<&str>) -> bool {
        self.terms().serves(domain)
    }

    fn authenticate<'a>(
        &'a self,
        header: Option<&'a str>,
        request: &'a RequestDetails,
    ) -> BoxFuture<'a, Verdict> {
        Box::pin(async move {
            match self.guesses().asked(header) {
                Ok(pair) => self.verdict(pair, &request.source).await,
                Err(verdict) => *verdict,
            }
        })
    }

    fn name(&self) -> &str {
        &self.terms().authenticator
    }

    fn now(&self, kept: &Caller) -> Option<Now> {
        let of_terms = |(groups, mark): (Option<Vec<String>>, String)| {
            let told = match groups {
                Some(groups) => {
                    let (name, subject) = (kept.subject.clone(), kept.subject.clone());
                    self.terms().caller(Person {
                        name,
                        subject,
                        groups,
                        credential: PASSWORD,
                        ..Person::default()
                    })
                }
                None => self.terms().again(kept),
            };
            match told {
                Verdict::Caller(caller) => Ok((caller, mark)),
                other => Err(Refusal::of(other)),
            }
        };
        Some(self.kept(kept).and_then(of_terms))
    }

    fn known_elsewhere(&self, header: Option<&str>, request: &RequestDetails) {
        self.guesses().known_elsewhere(header, request);
    }
}

fn parts(pair: &Basic) -> [&[u8]; 2] {
    [pair.user.as_bytes(), pair.password.as_bytes()]
}
