//! Bearer tokens of an OpenID provider, such as a realm of Keycloak: signed ones are verified here, opaque ones the
//! provider is asked about.
//!
//! A token is ours if it says that it was issued by the configured issuer; then it must be good. Nothing in a token says
//! how it is verified: the algorithm must be one of the configured ones and fit the issuer's own key, and URLs and keys
//! that stand in a token are not looked at.

mod claims;
mod code;
mod introspect;
mod logout;
mod provider;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use futures_util::future::BoxFuture;
use jsonwebtoken::{Algorithm, Validation};
use serde::Deserialize;
use serde_json::{Map, Value};

use self::claims::{Demands, Token};
use self::introspect::Introspection;
use self::provider::{NoKey, Provider};
use super::cache::{Cache, Fingerprint};
use super::person::Terms;
use super::sessions::Sessions;
use super::{Arrived, Authenticator, Ended, Now, Refusal, RequestDetails, Trip, Verdict, header};
use crate::kernel::{Caller, Env};
use crate::outbound::Outbound;

/// For how long a token that was verified is not verified again.
const REMEMBERED: Duration = Duration::from_secs(60);
/// What signs tokens, unless the configuration says otherwise. None of them has a secret that both sides know.
const ALGORITHMS: [&str; 7] = ["RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA"];

/// As the configuration has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// As tokens name it in `iss`: `https://id.example.com/realms/acme`.
    issuer: String,
    /// Whom tokens must be for (`aud`): one of these.
    audiences: BTreeSet<String>,
    /// Who must have got them (`azp`): one of these; left out: anybody.
    #[serde(default)]
    clients: BTreeSet<String>,
    /// The algorithms that are taken.
    algorithms: Option<BTreeSet<String>>,
    /// The claim that is the name.
    #[serde(default = "preferred_username")]
    name_claim: String,
    /// The claims that are groups; a dot leads into an object.
    #[serde(default = "group_claims")]
    group_claims: Vec<String>,
    /// The issuer does not say of an access token that it is one.
    #[serde(default)]
    untyped_tokens: bool,
    /// The issuer may be called without TLS.
    #[serde(default)]
    http: bool,
    /// How it is asked about opaque tokens; left out: those are not known.
    introspection: Option<introspect::Settings>,
    /// The client with which people log in by `rhyzome login`.
    login_client: Option<String>,
}

impl Settings {
    /// Those of a realm that a tenant has.
    pub fn of_realm(issuer: String, audience: &str, client: &str, http: bool) -> Settings {
        Settings {
            issuer,
            audiences: [audience.to_owned()].into(),
            clients: BTreeSet::new(),
            algorithms: None,
            name_claim: preferred_username(),
            group_claims: group_claims(),
            untyped_tokens: false,
            http,
            introspection: None,
            login_client: Some(client.to_owned()),
        }
    }
}

/// Who says to have issued this token; nothing of it is believed.
pub fn claimed_issuer(token: &str) -> Option<String> {
    Some(Signed::parse(token)?.claims["iss"].as_str()?.to_owned())
}

fn preferred_username() -> String {
    "preferred_username".into()
}

fn group_claims() -> Vec<String> {
    vec!["groups".into(), "realm_access.roles".into()]
}

/// Knows whoever shows a token of one issuer.
pub struct Oidc {
    terms: Terms,
    demands: Demands,
    algorithms: Vec<Algorithm>,
    env: Env,
    provider: Provider,
    outbound: Arc<Outbound>,
    introspection: Option<Introspection>,
    login_client: Option<String>,
    good: Cache<Token>,
    sessions: Arc<Sessions>,
}

/// A signed token, taken apart; nothing of it is believed yet.
struct Signed<'a> {
    text: &'a str,
    header: Map<String, Value>,
    claims: Value,
}

/// Why a signed token counts for nothing.
#[derive(Debug, PartialEq, Eq)]
enum Fault {
    Bad(String),
    Away,
}

impl Oidc {
    /// That of this configuration; or what is wrong with it.
    pub fn new(
        terms: Terms,
        settings: Settings,
        outbound: Arc<Outbound>,
        sessions: Arc<Sessions>,
        env: &Env,
    ) -> Result<Oidc, String> {
        outbound.judge(&settings.issuer).map_err(|error| format!("`issuer`: {error}"))?;
        if !settings.issuer.starts_with("https://") && !settings.http {
            return Err("`issuer` must begin with https://, unless `http` is true".into());
        }
        if settings.audiences.is_empty() {
            return Err("`audiences` is empty: say whom tokens must be for, such as `rhyzome`".into());
        }
        let names = settings.algorithms.unwrap_or_else(|| ALGORITHMS.map(str::to_owned).into());
        let introspection = settings.introspection.map(|one| Introspection::new(one, outbound.clone(), env));
        let demands = Demands {
            issuer: settings.issuer.clone(),
            audiences: settings.audiences,
            clients: settings.clients,
            name_claim: settings.name_claim,
            group_claims: settings.group_claims,
            untyped: settings.untyped_tokens,
        };
        Ok(Oidc {
            terms,
            demands,
            algorithms: names.iter().map(|name| algorithm(name)).collect::<Result<_, _>>()?,
            env: env.clone(),
            provider: Provider::new(&settings.issuer, outbound.clone(), env),
            outbound,
            introspection: introspection.transpose()?,
            login_client: settings.login_client,
            good: Cache::new(env),
            sessions,
        })
    }

    async fn verdict(&self, token: &str) -> Verdict {
        let print = self.good.fingerprint(&[token.as_bytes()]);
        if let Some(known) = self.good.get(&print) {
            return self.counts(known);
        }
        match Signed::parse(token) {
            Some(signed) if signed.claims["iss"].as_str() == Some(&self.demands.issuer) => {
                let now = self.env.now();
                let good = self.verified(&signed).await;
                let told = |claims: &Value| self.demands.check(signed.typ(), claims, now).map_err(Fault::Bad);
                self.told(print, good.and_then(|()| told(&signed.claims)))
            }
            Some(_) => Verdict::NotMine,
            None => match &self.introspection {
                None => Verdict::NotMine,
                Some(one) => match one.ask(&self.provider, token).await {
                    Ok(None) => Verdict::Wrong("this token is not known, or not good any more".into()),
                    Ok(Some(said)) => {
                        let token = self.demands.introspected(&said, self.env.now()).map_err(Fault::Bad);
                        self.told(print, token)
                    }
                    Err(why) => self.away(&why),
                },
            },
        }
    }

    /// Remembers a token that is good.
    fn told(&self, print: Fingerprint, outcome: Result<Token, Fault>) -> Verdict {
        match outcome {
            Err(Fault::Bad(why)) => Verdict::Refused(why),
            Err(Fault::Away) => self.away("the issuer cannot be asked for its keys"),
            Ok(token) => {
                self.good.put(print, token.clone(), REMEMBERED);
                self.counts(token)
            }
        }
    }

    /// What was good a moment ago: it may have ended meanwhile.
    fn counts(&self, token: Token) -> Verdict {
        let (name, person) = (&self.terms.authenticator, &token.person);
        let over = self.sessions.is_over(name, person.session.as_deref(), &person.subject, person.issued);
        let ended = token.until.plus_seconds(claims::SKEW) <= self.env.now();
        match self.terms.caller(token.person) {
            Verdict::Caller(caller) if over => {
                Verdict::RefusedKnown(caller, "this login has ended: log in again".into())
            }
            Verdict::Caller(caller) if ended => {
                Verdict::RefusedKnown(caller, "this token has expired: log in again, or refresh it".into())
            }
            other => other,
        }
    }

    fn away(&self, why: &str) -> Verdict {
        tracing::warn!(authenticator = self.terms.authenticator, why, "a token cannot be looked at");
        Verdict::Unavailable("whoever issued this token cannot be asked now".into())
    }

    /// Was it signed with a key of the issuer, by an algorithm that is allowed?
    async fn verified(&self, signed: &Signed<'_>) -> Result<(), Fault> {
        let bad = |why: &str| Fault::Bad(why.to_owned());
        if signed.header.contains_key("crit") {
            return Err(bad("this token wants something understood that is not (`crit`)"));
        }
        let name = signed.header.get("alg").and_then(Value::as_str).unwrap_or_default();
        let allowed = self.algorithms.iter().find(|one| format!("{one:?}") == name);
        let algorithm =
            *allowed.ok_or_else(|| bad("this token is not signed by an algorithm that counts here"))?;
        let kid = match signed.header.get("kid") {
            None => None,
            Some(Value::String(kid)) if kid.len() <= 256 => Some(kid.as_str()),
            Some(_) => return Err(bad("this token names no good key (`kid`)")),
        };
        let key = self.provider.key(kid, algorithm).await.map_err(|error| match error {
            NoKey::Unknown => bad("this token was signed with a key that its issuer does not have"),
            NoKey::Away => Fault::Away,
        })?;
        // Of what it says only the signature is looked at here: times are compared with our own clock, in `claims`.
        let mut validation = Validation::new(algorithm);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        let decoded = jsonwebtoken::decode::<Value>(signed.text, &key, &validation);
        decoded.map(drop).map_err(|_| bad("this token was not signed by its issuer"))
    }
}

impl<'a> Signed<'a> {
    fn parse(text: &'a str) -> Option<Signed<'a>> {
        let mut parts = text.split('.');
        let (header, claims, _signature) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() {
            return None;
        }
        let read =
            |part: &str| serde_json::from_slice::<Value>(&BASE64_URL_SAFE_NO_PAD.decode(part).ok()?).ok();
        let (Value::Object(header), claims @ Value::Object(_)) = (read(header)?, read(claims)?) else {
            return None;
        };
        Some(Signed { text, header, claims })
    }

    fn typ(&self) -> Option<&str> {
        match self.header.get("typ") {
            None => None,
            // What is no text is no type that there is.
            Some(typ) => Some(typ.as_str().unwrap_or("?")),
        }
    }
}

fn algorithm(name: &str) -> Result<Algorithm, String> {
    if !ALGORITHMS.contains(&name) && !["PS384", "PS512"].contains(&name) {
        let all = ALGORITHMS.join(", ");
        return Err(format!("`algorithms`: `{name}` is not taken; there are {all}, PS384, PS512"));
    }
    name.parse().map_err(|_| format!("`algorithms`: `{name}` is not understood"))
}

impl Authenticator for Oidc {
    fn serves(&self, domain: Option<&str>) -> bool {
        self.terms.serves(domain)
    }

    fn authenticate<'a>(&'a self, header: Option<&'a str>, _: &'a RequestDetails) -> BoxFuture<'a, Verdict> {
        Box::pin(async move {
            match header::bearer(header) {
                None => Verdict::NotMine,
                Some(token) => self.verdict(token).await,
            }
        })
    }

    fn name(&self) -> &str {
        &self.terms.authenticator
    }

    fn logout<'a>(&'a self, token: &'a str) -> Option<BoxFuture<'a, Result<Ended, String>>> {
        Some(Box::pin(self.ended(token)))
    }

    fn sent<'a>(&'a self, trip: &'a Trip) -> Option<BoxFuture<'a, Result<String, String>>> {
        self.login_client.as_ref()?;
        Some(Box::pin(self.sent(trip)))
    }

    fn back<'a>(
        &'a self,
        trip: &'a Trip,
        code: &'a str,
        iss: Option<&'a str>,
    ) -> Option<BoxFuture<'a, Result<Arrived, Refusal>>> {
        self.login_client.as_ref()?;
        Some(Box::pin(self.back(trip, code, iss)))
    }

    fn end_url<'a>(&'a self, hint: &'a str) -> BoxFuture<'a, Option<String>> {
        Box::pin(self.end_url(hint))
    }

    /// That the login has ended is told, and asked about elsewhere.
    fn now(&self, kept: &Caller) -> Option<Now> {
        let session = kept.session.clone();
        Some(match self.terms.again(kept) {
            Verdict::Caller(caller) => Ok((Caller { session, ..caller }, String::new())),
            other => Err(Refusal::of(other)),
        })
    }

    fn login(&self) -> Option<super::Login> {
        let client = self.login_client.clone()?;
        let tenant = self.terms.tenant.clone();
        Some(super::Login {
            name: self.terms.authenticator.clone(),
            issuer: self.demands.issuer.clone(),
            client,
            tenant,
        })
    }
}

/// For the tests of what a token may say.
#[cfg(test)]
mod tests;
