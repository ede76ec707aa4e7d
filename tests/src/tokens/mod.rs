//! Hostile tokens, from a seed, shown to the code that verifies tokens in a real server. Each is a good token in which
//! one to three things are wrong, and around that whatever makes no difference; now and then one has nothing wrong, and
//! must count: where that counts and the others do not, the difference is what is wrong with them.
//!
//! One token is made of the seed and its number alone: whoever knows both has it again.

mod hostile;
mod issuer;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rhyzome_api::auth::{AuthFile, Authenticators, RequestDetails, Sessions};
use rhyzome_api::kernel::Env;
use rhyzome_api::outbound::{Limits, Outbound, Rules, SystemNames};
use ring::hmac;
use serde_json::{Map, Value, json};

use self::hostile::{Draft, PARTS, Purpose, Signed};
use self::issuer::{Issuer, Key};
use crate::given::{Dice, Time};

/// Whom tokens are for.
const AUDIENCE: &str = "rhyzome";
/// With which client people log in.
const CLIENT: &str = "shell";
/// The name of the authenticator.
const NAME: &str = "acme";
/// What the clock shows, in seconds.
const NOW: i64 = 1_790_000_000;
/// One of so many has nothing wrong.
const CONTROL_EVERY: u64 = 500;
/// One of so many says that a login has ended.
const LOGOUT_EVERY: u64 = 8;

/// One of so many that are signed is for the key of RSA.
const RSA_EVERY: u64 = 64;
/// Where keys stand among the issuer's; the first one is of a curve.
const RSA: usize = 1;
const ED: usize = 2;

/// All keys that there are.
struct Keys {
    /// The issuer's, that sign.
    own: [Key; 3],
    /// Somebody's who calls them the same.
    strangers: [Key; 3],
    /// The issuer's, for something else.
    encrypts: Key,
    /// Stands in the issuer's set, and is nobody's secret there.
    symmetric: Vec<u8>,
    /// Where a stranger serves keys.
    lure: String,
}

/// What is shown to the server.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// All follows from it.
    pub seed: u64,
    /// The number of the first one.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// How many threads show them.
    pub threads: u64,
    /// Whom the server takes tokens for: more than it should, to see that this is found.
    pub audiences: Vec<&'static str>,
}

/// What became of it.
#[derive(Debug, Default)]
pub struct Shown {
    /// Bad ones that were refused, by what was wrong with them.
    pub refused: BTreeMap<&'static str, u64>,
    /// Good ones that counted.
    pub controls: u64,
    /// Those that were taken, or refused, or not looked at, though they should not have been: number and story.
    pub wrong: Vec<(u64, String)>,
    /// How often the issuer was asked.
    pub asked: u64,
    /// How often somebody was whom only tokens name.
    pub lured: u64,
    /// How long it took.
    pub took: Duration,
}

impl Wanted {
    /// So many of this seed, on this many threads.
    pub fn new(seed: u64, count: u64, threads: u64) -> Wanted {
        Wanted { seed, first: 0, count, threads: threads.max(1), audiences: vec![AUDIENCE] }
    }
}

impl Shown {
    /// How many were bad and refused.
    pub fn all_refused(&self) -> u64 {
        self.refused.values().sum()
    }
}

/// One token, and what is to become of it.
struct Token {
    text: String,
    purpose: Purpose,
    /// Empty: nothing.
    flaws: Vec<&'static str>,
}

/// The server's side, and what is wrong with it at most.
struct Bench {
    keys: Keys,
    issuer: Issuer,
    lure: Issuer,
    server: Authenticators,
}

/// Shows them all; stops at the first few that are wrong.
pub fn show(wanted: &Wanted) -> Shown {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let bench = runtime.block_on(Bench::new(wanted));
    let (next, stop, begun) = (AtomicU64::new(0), AtomicBool::new(false), Instant::now());
    let mut all = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..wanted.threads).map(|_| scope.spawn(|| bench.worker(wanted, &next, &stop))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).fold(Shown::default(), |mut all, one| {
            one.refused.into_iter().for_each(|(name, count)| *all.refused.entry(name).or_default() += count);
            all.controls += one.controls;
            all.wrong.extend(one.wrong);
            all
        })
    });
    all.wrong.sort();
    (all.asked, all.lured, all.took) = (bench.issuer.asked(), bench.lure.asked(), begun.elapsed());
    all
}

impl Bench {
    async fn new(wanted: &Wanted) -> Bench {
        let symmetric = b"a secret that stands in a set of public keys".to_vec();
        let lure = Issuer::serve(Vec::new()).await;
        let keys = Keys {
            own: [Key::ec("es", "sig"), Key::rsa("rs"), Key::ed("ed")],
            strangers: [Key::ec("es", "sig"), Key::ed("rs"), Key::ed("ed")],
            encrypts: Key::ec("enc", "enc"),
            symmetric,
            lure: format!("{}/keys", lure.url),
        };
        let mut set: Vec<Value> =
            keys.own.iter().chain([&keys.encrypts]).map(|key| key.jwk.clone()).collect();
        let secret = BASE64_URL_SAFE_NO_PAD.encode(&keys.symmetric);
        set.push(json!({ "kty": "oct", "kid": "symmetric", "alg": "HS256", "k": secret }));
        let issuer = Issuer::serve(set).await;
        let server = server(&issuer.url, &wanted.audiences, &Time::begin().env(1));
        Bench { keys, issuer, lure, server }
    }

    fn worker(&self, wanted: &Wanted, next: &AtomicU64, stop: &AtomicBool) -> Shown {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut shown = Shown::default();
        while !stop.load(Ordering::Relaxed) {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= wanted.count {
                break;
            }
            let number = wanted.first + at;
            let token = self.token(wanted.seed, number);
            match (runtime.block_on(self.judged(&token)), token.flaws.first()) {
                (Ok(true), None) => shown.controls += 1,
                (Ok(false), Some(flaw)) => *shown.refused.entry(flaw).or_default() += 1,
                (said, _) => {
                    shown.wrong.push((
                        number,
                        format!("{said:?} {:?} {:?} {}", token.purpose, token.flaws, token.text),
                    ));
                    stop.store(shown.wrong.len() >= 5, Ordering::Relaxed);
                }
            }
        }
        shown
    }

    /// Whether it counts; an error if that cannot be told.
    async fn judged(&self, token: &Token) -> Result<bool, String> {
        match token.purpose {
            Purpose::Access => {
                let header = format!("Bearer {}", token.text);
                match self.server.authenticate(Some(&header), &RequestDetails::default()).await {
                    Ok(_) => Ok(true),
                    Err(refusal) if refusal.later => Err(refusal.reason),
                    Err(_) => Ok(false),
                }
            }
            Purpose::Logout => match self.server.logout(None, NAME, &token.text).await {
                Some(told) => Ok(told.is_ok()),
                None => Err("nobody hears of logouts".to_owned()),
            },
        }
    }

    /// The one of this number.
    fn token(&self, seed: u64, number: u64) -> Token {
        let mut dice = Dice::new(seed ^ number.wrapping_mul(0x9e6c_63d0_876a_3f6b));
        let dice = &mut dice;
        dice.roll();
        let purpose = if number % LOGOUT_EVERY == 5 { Purpose::Logout } else { Purpose::Access };
        let mut parts: Vec<&hostile::Part> = Vec::new();
        if !number.is_multiple_of(CONTROL_EVERY) {
            for _ in 0..1 + dice.below(8) / 6 + dice.below(8) / 7 {
                let part = drawn(purpose, dice);
                if parts.iter().all(|other| other.name != part.name) {
                    parts.push(part);
                }
            }
        }
        let flaws: Vec<&'static str> = parts.iter().map(|part| part.name).collect();
        let mut draft = self.good(purpose, number, drawn_key(&flaws, dice));
        parts.iter().for_each(|part| (part.spoil)(&mut draft, dice, &self.keys));
        for _ in 0..dice.below(3) {
            hostile::noise(&mut draft, dice, &self.keys);
        }
        Token { text: self.written(&draft, dice), purpose, flaws }
    }

    /// Nothing is wrong with it.
    fn good(&self, purpose: Purpose, number: u64, key: usize) -> Draft {
        let own = &self.keys.own[key];
        let (typ, claims) = match purpose {
            Purpose::Access => (
                "JWT",
                json!({
                    "iss": self.issuer.url, "aud": [AUDIENCE, "account"], "azp": CLIENT, "typ": "Bearer", "sub": "u-1",
                    "sid": "s-1", "preferred_username": "anna", "iat": NOW - 1, "exp": NOW + 300, "jti": number,
                    "groups": ["/dev"],
                }),
            ),
            Purpose::Logout => (
                "logout+jwt",
                json!({
                    "iss": self.issuer.url, "aud": CLIENT, "iat": NOW - 1, "exp": NOW + 120, "jti": format!("j-{number}"),
                    "sid": "s-1", "sub": "u-1",
                    "events": { "http://schemas.openid.net/event/backchannel-logout": {} },
                }),
            ),
        };
        Draft {
            header: map(json!({ "alg": own.alg, "typ": typ, "kid": own.kid })),
            claims: map(claims),
            key,
            signed: Signed::Well,
            swapped: None,
            frame: |token, _| token,
        }
    }

    fn written(&self, draft: &Draft, dice: &mut Dice) -> String {
        let of = |claims: &Map<String, Value>| format!("{}.{}", encoded(&draft.header), encoded(claims));
        let message = of(&draft.claims);
        let signature = match &draft.signed {
            Signed::Hmac(algorithm, secret) => {
                hmac::sign(&hmac::Key::new(*algorithm, secret), message.as_bytes()).as_ref().to_vec()
            }
            Signed::Spoilt(spoil) => spoil(hostile::signer(draft, &self.keys).sign(message.as_bytes()), dice),
            _ => hostile::signer(draft, &self.keys).sign(message.as_bytes()),
        };
        let message = draft.swapped.as_ref().map_or(message, of);
        (draft.frame)(format!("{message}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature)), dice)
    }
}

/// The part that is spoilt: those that are refused before anything is calculated come more often.
fn drawn(purpose: Purpose, dice: &mut Dice) -> &'static hostile::Part {
    let of = || PARTS.iter().filter(|part| part.of.contains(&purpose));
    let mut lot = dice.below(of().map(|part| part.weight).sum());
    let found = of().find(|part| {
        let here = lot < part.weight;
        lot = lot.saturating_sub(part.weight);
        here
    });
    found.unwrap_or(&PARTS[0])
}

/// Which of the issuer's keys it is for. RSA takes many times as long to sign as the others: where a token is signed at
/// all, few are for that one; as a secret each of them is taken as often.
fn drawn_key(flaws: &[&str], dice: &mut Dice) -> usize {
    let lots = if flaws.contains(&hostile::AS_A_SECRET) { 3 } else { RSA_EVERY };
    match dice.below(lots) {
        0 => RSA,
        lot => usize::from(lot % 2 == 0) * ED,
    }
}

fn map(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn encoded(value: &impl serde::Serialize) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(value).unwrap())
}

/// As a server makes it of its configuration.
fn server(issuer: &str, audiences: &[&str], env: &Env) -> Authenticators {
    let rules = Rules { allow: vec!["127.0.0.0/8".parse().unwrap()], own: Vec::new() };
    let outbound = Arc::new(Outbound::new(rules, Limits::default(), Arc::new(SystemNames)).unwrap());
    let file: AuthFile = serde_json::from_value(json!({ "authenticators": [{
        "type": "oidc", "name": NAME, "issuer": issuer, "audiences": audiences, "clients": [CLIENT],
        "login_client": CLIENT, "http": true,
    }] }))
    .unwrap();
    let sessions = Arc::<Sessions>::default();
    let made = file.resolve().unwrap().make(env, &outbound, &sessions).unwrap();
    Authenticators::new(made).with_sessions(sessions)
}
