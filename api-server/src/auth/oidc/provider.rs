//! Whoever issues tokens: where it has what (discovery), and the keys with which it signs (JWKS).
//!
//! Keys are kept and asked for anew now and then. A token that names a key which is not among them makes us ask once,
//! and not again for a while: whoever invents names of keys has nobody called more often than that.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use jsonwebtoken::jwk::{Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::Value;
use tokio::sync::Mutex;

use crate::kernel::Env;
use crate::outbound::Outbound;

/// Keys are asked for anew after so long.
const FRESH: Duration = Duration::from_secs(600);
/// Older ones count for nothing: the issuer has not been there for so long.
const LONGEST_KEPT: Duration = Duration::from_secs(24 * 3600);
/// It is asked at most once in this time, whatever for.
pub const BETWEEN: Duration = Duration::from_secs(10);
/// More keys than that are nobody's.
const MOST_KEYS: usize = 100;

/// Who issues tokens.
pub struct Provider {
    issuer: String,
    env: Env,
    outbound: Arc<Outbound>,
    found: ArcSwapOption<Found>,
    /// When it was asked last. Held while it is asked, so that all who need it ask once.
    asked: Mutex<Option<Duration>>,
}

/// What it said.
#[derive(Default)]
struct Found {
    keys: Vec<Key>,
    introspection: Option<String>,
    places: Places,
    at: Duration,
}

/// Where a browser logs in and out.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// Where it is sent.
    pub authorization: Option<String>,
    /// Where a code is exchanged for tokens.
    pub token: Option<String>,
    /// Where a login ends.
    pub end: Option<String>,
}

struct Key {
    kid: Option<String>,
    algorithm: Option<String>,
    key: DecodingKey,
}

/// Why there is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoKey {
    /// It has none of this name.
    Unknown,
    /// It has not said which it has.
    Away,
}

impl Provider {
    /// The one of this issuer. Nobody is asked yet.
    pub fn new(issuer: &str, outbound: Arc<Outbound>, env: &Env) -> Provider {
        let issuer = issuer.to_owned();
        Provider {
            issuer,
            env: env.clone(),
            outbound,
            found: ArcSwapOption::empty(),
            asked: Mutex::default(),
        }
    }

    /// The key of this name, for this algorithm.
    pub async fn key(&self, kid: Option<&str>, algorithm: Algorithm) -> Result<DecodingKey, NoKey> {
        let known = self.known();
        if let Some(found) = &known
            && self.age(found) < FRESH
            && let Some(key) = found.key(kid, algorithm)
        {
            return Ok(key);
        }
        self.ask(known.as_ref()).await;
        let known = self.known().ok_or(NoKey::Away)?;
        known.key(kid, algorithm).ok_or(NoKey::Unknown)
    }

    /// Where it tells what an opaque token is, if it does.
    pub async fn introspection(&self) -> Result<Option<String>, NoKey> {
        Ok(self.said().await?.introspection.clone())
    }

    /// Where a browser logs in and out.
    pub async fn places(&self) -> Result<Places, NoKey> {
        Ok(self.said().await?.places.clone())
    }

    /// What it says, not long ago.
    async fn said(&self) -> Result<Arc<Found>, NoKey> {
        let known = self.known();
        if let Some(found) = known.as_ref().filter(|found| self.age(found) < FRESH) {
            return Ok(found.clone());
        }
        self.ask(known.as_ref()).await;
        self.known().ok_or(NoKey::Away)
    }

    fn known(&self) -> Option<Arc<Found>> {
        self.found.load_full().filter(|found| self.age(found) < LONGEST_KEPT)
    }

    fn age(&self, found: &Found) -> Duration {
        self.env.uptime().saturating_sub(found.at)
    }

    /// Asks it, unless somebody else just did.
    async fn ask(&self, seen: Option<&Arc<Found>>) {
        let mut asked = self.asked.lock().await;
        let newer = match (seen, self.found.load_full()) {
            (Some(seen), Some(found)) => !Arc::ptr_eq(seen, &found),
            (None, found) => found.is_some_and(|found| self.age(&found) < FRESH),
            (Some(_), None) => false,
        };
        let now = self.env.uptime();
        if newer || asked.is_some_and(|last| now.saturating_sub(last) < BETWEEN) {
            return;
        }
        *asked = Some(now);
        match self.learn(now).await {
            Ok(found) => self.found.store(Some(Arc::new(found))),
            Err(error) => tracing::warn!(issuer = self.issuer, %error, "an issuer of tokens cannot be asked"),
        }
    }

    async fn learn(&self, now: Duration) -> Result<Found, String> {
        let about = self
            .get(&format!("{}/.well-known/openid-configuration", self.issuer.trim_end_matches('/')))
            .await?;
        if about["issuer"].as_str() != Some(&self.issuer) {
            return Err(format!("it calls itself `{}`", about["issuer"].as_str().unwrap_or_default()));
        }
        let jwks = self.url(&about, "jwks_uri")?.ok_or("it does not say where its keys are")?;
        let introspection = self.url(&about, "introspection_endpoint")?;
        // Tokens count without them.
        let places = Places {
            authorization: self.url(&about, "authorization_endpoint").ok().flatten(),
            token: self.url(&about, "token_endpoint").ok().flatten(),
            end: self.url(&about, "end_session_endpoint").ok().flatten(),
        };
        let keys = keys(&self.get(&jwks).await?)?;
        Ok(Found { keys, introspection, places, at: now })
    }

    /// A URL that it names. What is encrypted stays encrypted.
    fn url(&self, about: &Value, member: &str) -> Result<Option<String>, String> {
        let Some(url) = about[member].as_str() else { return Ok(None) };
        if self.issuer.starts_with("https:") && !url.starts_with("https:") {
            return Err(format!("its `{member}` is not encrypted"));
        }
        Ok(Some(url.to_owned()))
    }

    async fn get(&self, url: &str) -> Result<Value, String> {
        let answered = self.outbound.call(Method::GET, url, HeaderMap::new(), Vec::new()).await;
        let answered = answered.map_err(|error| error.to_string())?;
        if answered.status != 200 {
            return Err(format!("{url} answers with status {}", answered.status));
        }
        serde_json::from_slice(&answered.body).map_err(|_| format!("{url} answers what is no JSON"))
    }
}

impl Found {
    /// The key of this name; of a token that names none: the only one there is.
    fn key(&self, kid: Option<&str>, algorithm: Algorithm) -> Option<DecodingKey> {
        let name = format!("{algorithm:?}");
        let good = |key: &&Key| key.algorithm.as_ref().is_none_or(|known| *known == name);
        let mut fitting =
            self.keys.iter().filter(|key| kid.is_none() || key.kid.as_deref() == kid).filter(good);
        let first = fitting.next()?;
        (kid.is_some() || fitting.next().is_none()).then(|| first.key.clone())
    }
}

/// The keys of a set that verify signatures and that we understand; others do not harm those.
fn keys(set: &Value) -> Result<Vec<Key>, String> {
    let list = set["keys"].as_array().ok_or("its keys are no JWKS")?;
    if list.len() > MOST_KEYS {
        return Err(format!("it has more than {MOST_KEYS} keys"));
    }
    let understood = |value: &Value| {
        let jwk: Jwk = serde_json::from_value(value.clone()).ok()?;
        let signs = jwk.common.public_key_use.as_ref().is_none_or(|usage| *usage == PublicKeyUse::Signature);
        // Whoever knows a secret key could sign: it verifies nothing.
        if !signs || value["kty"] == "oct" {
            return None;
        }
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        Some(Key { kid: jwk.common.key_id.clone(), algorithm: value["alg"].as_str().map(str::to_owned), key })
    };
    Ok(list.iter().filter_map(understood).collect())
}
