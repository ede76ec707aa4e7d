//! A checker of the operator's own, asked over HTTP: it is given the header and the request's details, and answers who
//! that is, or that it is nobody. In doubt it is nobody.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use serde::Deserialize;
use serde_json::json;

use super::breaker::Breaker;
use super::cache::Cache;
use super::header::LONGEST;
use super::person::{Person, Terms};
use super::{Authenticator, RequestDetails, Verdict};
use crate::kernel::Env;
use crate::outbound::{Answered, Outbound};

/// As the configuration has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where it is asked, by POST.
    url: String,
    /// Only headers that begin so are shown to it: `Bearer ext_`.
    #[serde(default)]
    prefix: String,
    /// Holds what this server shows to the checker as a bearer token.
    token_file: Option<PathBuf>,
    /// How long it may take.
    #[serde(default = "two")]
    timeout_seconds: u64,
    /// For how long an answer counts for the same request; 0: it is asked each time.
    #[serde(default = "ten")]
    cache_seconds: u64,
    /// Who it is when the checker says `allow` and not who.
    allow_as: Option<Described>,
}

fn two() -> u64 {
    2
}

fn ten() -> u64 {
    10
}

/// Somebody, as the checker describes them.
#[derive(Clone, Debug, Deserialize)]
struct Described {
    name: String,
    #[serde(default)]
    subject: String,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    session: Option<String>,
}

/// What it answers. Words that are not known here are not understood as anything.
#[derive(Debug, Deserialize)]
struct Said {
    verdict: Word,
    caller: Option<Described>,
    reason: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Word {
    Allow,
    Deny,
    NotMine,
}

/// Asks the checker.
pub struct External {
    settings: Settings,
    terms: Terms,
    headers: HeaderMap,
    outbound: Arc<Outbound>,
    known: Cache<Verdict>,
    breaker: Breaker,
}

impl External {
    /// That of this configuration; or what is wrong with it.
    pub fn new(
        terms: Terms,
        settings: Settings,
        outbound: Arc<Outbound>,
        env: &Env,
    ) -> Result<External, String> {
        outbound.judge(&settings.url).map_err(|error| format!("`url`: {error}"))?;
        if !(1..=30).contains(&settings.timeout_seconds) {
            return Err("`timeout_seconds` must be 1 to 30".into());
        }
        if settings.cache_seconds > 300 {
            return Err(
                "`cache_seconds` must be at most 300: what is denied there must count here soon".into()
            );
        }
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(file) = &settings.token_file {
            let token = super::secret_in("token_file", file)?;
            let mut value = HeaderValue::from_str(&format!("Bearer {}", token.as_str()))
                .map_err(|_| format!("`token_file`: {} holds no token", file.display()))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        Ok(External {
            settings,
            terms,
            headers,
            outbound,
            known: Cache::new(env),
            breaker: Breaker::new(env),
        })
    }

    async fn verdict(&self, header: &str, request: &RequestDetails) -> Verdict {
        let parts = [header, &request.method, &request.path, &request.source].map(str::as_bytes);
        let print = self.known.fingerprint(&parts);
        if let Some(known) = self.known.get(&print) {
            return known;
        }
        if !self.breaker.may_ask() {
            return self.away("it has not answered for some time");
        }
        let body = json!({
            "authorization": header, "method": request.method, "path": request.path, "source": request.source,
        });
        let asking = self.outbound.call(
            reqwest::Method::POST,
            &self.settings.url,
            self.headers.clone(),
            body.to_string().into_bytes(),
        );
        let answered = tokio::time::timeout(Duration::from_secs(self.settings.timeout_seconds), asking).await;
        let understood = match answered {
            Err(_) => Err("it takes too long".to_owned()),
            Ok(Err(error)) => Err(error.to_string()),
            Ok(Ok(answered)) => understood(&answered),
        };
        self.breaker.was(understood.is_ok());
        match understood {
            Err(why) => self.away(&why),
            Ok(said) => {
                let verdict = self.meant(said);
                if self.settings.cache_seconds > 0 {
                    self.known.put(print, verdict.clone(), Duration::from_secs(self.settings.cache_seconds));
                }
                verdict
            }
        }
    }

    fn meant(&self, said: Said) -> Verdict {
        let who = said.caller.or_else(|| self.settings.allow_as.clone());
        match (said.verdict, who) {
            (Word::NotMine, _) => Verdict::NotMine,
            (Word::Deny, _) => {
                let reason = said.reason.unwrap_or_else(|| "these credentials are refused".into());
                Verdict::Refused(reason.chars().filter(|c| !c.is_control()).take(200).collect())
            }
            (Word::Allow, Some(Described { name, subject, groups, session })) => self.terms.caller(Person {
                name,
                subject,
                groups,
                session,
                issued: None,
                credential: "external",
            }),
            (Word::Allow, None) => self.away("it allows somebody and does not say whom; `allow_as` may"),
        }
    }

    /// In doubt, nobody.
    fn away(&self, why: &str) -> Verdict {
        tracing::warn!(authenticator = self.terms.authenticator, why, "the checker cannot be asked");
        Verdict::Unavailable("whoever knows these credentials cannot be asked now".into())
    }
}

fn understood(answered: &Answered) -> Result<Said, String> {
    if answered.status != 200 {
        return Err(format!("it answers with status {}", answered.status));
    }
    serde_json::from_slice(&answered.body)
        .map_err(|error| format!("it answers what is not understood: {error}"))
}

impl Authenticator for External {
    fn serves(&self, domain: Option<&str>) -> bool {
        self.terms.serves(domain)
    }

    fn authenticate<'a>(
        &'a self,
        header: Option<&'a str>,
        request: &'a RequestDetails,
    ) -> BoxFuture<'a, Verdict> {
        Box::pin(async move {
            let header =
                header.filter(|header| header.len() <= LONGEST && begins(header, &self.settings.prefix));
            match header {
                None => Verdict::NotMine,
                Some(header) => self.verdict(header, request).await,
            }
        })
    }
}

/// The scheme in any case, the rest as it stands.
fn begins(header: &str, prefix: &str) -> bool {
    let Some(start) = header.get(..prefix.len()) else { return false };
    match (start.split_once(' '), prefix.split_once(' ')) {
        (Some((a, b)), Some((c, d))) => a.eq_ignore_ascii_case(c) && b == d,
        _ => start.eq_ignore_ascii_case(prefix),
    }
}

#[cfg(test)]
mod tests;
