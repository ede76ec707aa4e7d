//! `auth`: what it costs to know who asks and what they may, when both are known already: processor time of those steps
//! alone, and what one GET asks the database.
//!
//! - `provider`: the OpenID provider that vouches for one of them.

mod provider;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::time::{ClockId, clock_gettime};
use rhyzome_api::auth::OperatorToken;
use rhyzome_api::auth::{ApiTokens, AuthFile, Authenticator, Authenticators, RequestDetails, Sessions};
use rhyzome_api::kernel::ResourceCore;
use rhyzome_api::kernel::policy::Thing;
use rhyzome_api::outbound::{Limits, Outbound, Rules, SystemNames};
use rhyzome_api::store::Store;
use rhyzome_tests::face::{Face, TOKEN};
use rhyzome_tests::world::{Engine, World};
use serde_json::{Value, json};
use xtask::bench::figure::{Figure, load, median, number};
use xtask::progress::Progress;

use crate::counts::Counter;
use crate::fill;
use provider::Provider;

/// The most that both may take of the processor, in microseconds.
const MOST_US: f64 = 50.0;
/// How much of a second's look at whether rights are as they were falls on one GET.
const READS: f64 = 1.01;
/// How many instances there are.
const ROWS: u64 = 1000;
/// How often each is asked at a stretch.
const TIMES: u32 = 20_000;
/// How many stretches; the median counts.
const STRETCHES: usize = 7;
/// GETs whose statements are counted.
const GETS: u64 = 2000;
/// `secret`, as `htpasswd -nbB -C 4 anna secret` writes it.
const LINE: &str = "anna:$2y$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n";
/// `anna:secret`.
const BASIC: &str = "Basic YW5uYTpzZWNyZXQ=";

/// Somebody who asks.
struct Asker {
    what: &'static str,
    authorization: String,
}

/// Measures; answers all figures.
pub async fn run() -> Result<Vec<Figure>> {
    let progress = Progress::start("bench auth");
    let world = World::durable(Engine::Postgres).await;
    fill::crowd(&world, 0, ROWS, &progress).await?;
    let folder = tempfile::tempdir()?;
    let provider = Provider::start().await?;
    let known = authenticators(&world, folder.path(), &provider)?;
    let face = Face::knowing(&world, known.clone());
    let askers = askers(&face, &provider).await?;
    let mut figures = Vec::new();
    for asker in &askers {
        progress.step(asker.what);
        figures.push(processor(&known, &world.store, asker).await?);
    }
    let mut counter = Counter::start(&world).await?;
    for asker in &askers {
        progress.step(&format!("statements of {}", asker.what));
        figures.push(statements(&face, &mut counter, asker).await?);
    }
    progress.done(&format!("load {}", load()));
    Ok(figures)
}

/// As a server that lets many kinds of people in: whoever comes last was none of the others'.
fn authenticators(world: &World, folder: &Path, provider: &Provider) -> Result<Authenticators> {
    let file = folder.join("htpasswd");
    std::fs::write(&file, LINE)?;
    std::fs::set_permissions(&file, Permissions::from_mode(0o600))?;
    let list = json!({ "authenticators": [
        { "type": "htpasswd", "name": "staff", "file": file },
        { "type": "oidc", "name": "corp", "issuer": provider.url, "audiences": ["rhyzome"], "http": true },
    ]});
    let rules = Rules { allow: vec!["127.0.0.0/8".parse()?], ..Rules::default() };
    let outbound = Outbound::new(rules, Limits::default(), Arc::new(SystemNames))?;
    let config = serde_json::from_value::<AuthFile>(list)?.resolve().map_err(anyhow::Error::msg)?;
    let sessions = Arc::<Sessions>::default();
    let made = config.make(world.store.env(), &Arc::new(outbound), &sessions).map_err(anyhow::Error::msg)?;
    let own: [Arc<dyn Authenticator>; 2] = [Arc::new(OperatorToken::new(TOKEN)), Arc::new(ApiTokens)];
    Ok(Authenticators::new(own.into_iter().chain(made).collect()).with_sessions(sessions))
}

/// One of each kind, with rights of several origins; of which some are looked at before the right one is found.
async fn askers(face: &Face, provider: &Provider) -> Result<Vec<Asker>> {
    let people = [("a password", BASIC.to_owned()), ("a token of an OpenID provider", provider.token()?)];
    let mut all = vec![Asker { what: "an operator's token", authorization: format!("Bearer {TOKEN}") }];
    for (what, authorization) in people {
        let user = said(face, &authorization, "GET", "/v1/whoami", Value::Null).await?["user"].clone();
        let member = json!({ "spec": { "user": user, "role": "viewer" } });
        ask(face, "/v1/tenants/default/members", member).await?;
        for (env, effect) in [("prod", "allow"), ("dev", "allow"), ("secret", "deny")] {
            let spec = json!({
                "subjects": { "them": { "user": user } }, "scopes": ["instance:*", "disk:*"], "effect": effect,
                "tags": { "env": env },
            });
            ask(face, "/v1/tenants/default/bindings", json!({ "spec": spec })).await?;
        }
        all.push(Asker { what, authorization });
    }
    let spec = json!({ "spec": { "tenant": "default", "scopes": ["instance:*"] } });
    let made = said(face, BASIC, "POST", "/v1/tokens", spec).await?;
    let secret = made["secrets"]["token"].as_str().with_context(|| format!("no token: {made}"))?;
    all.push(Asker { what: "a token that somebody made", authorization: format!("Bearer {secret}") });
    Ok(all)
}

async fn ask(face: &Face, path: &str, body: Value) -> Result<Value> {
    said(face, &format!("Bearer {TOKEN}"), "POST", path, body).await
}

async fn said(face: &Face, authorization: &str, method: &str, path: &str, body: Value) -> Result<Value> {
    let headers = [("authorization", authorization), ("content-type", "application/json")];
    let text = if body.is_null() { String::new() } else { body.to_string() };
    let reply = face.raw(method, path, &headers, text).await;
    ensure!((200..300).contains(&reply.status), "{method} {path}: {} {}", reply.status, reply.json);
    Ok(reply.json)
}

// === processor ===

/// Of this thread, and nothing else runs on it meanwhile: all that is asked is known already.
fn used() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

async fn processor(known: &Authenticators, store: &Store, asker: &Asker) -> Result<Figure> {
    let thing = ResourceCore {
        id: fill::id(2),
        kind: "instance".into(),
        tenant: "default".into(),
        tags: [("env", "prod"), ("team", "seven")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        ..ResourceCore::default()
    };
    let details = RequestDetails {
        method: "GET".into(),
        path: "/v1/tenants/default/instances/web".into(),
        source: "127.0.0.1".into(),
        ..RequestDetails::default()
    };
    let mut stretches = Vec::new();
    // The first time finds everything out.
    for _ in 0..=STRETCHES {
        let since = used()?;
        for _ in 0..TIMES {
            let caller = known.authenticate(Some(&asker.authorization), &details).await;
            let Ok(caller) = caller else { bail!("{} is not known", asker.what) };
            let Ok(caller) = store.admit(caller, &details.source).await else {
                bail!("{} may not come", asker.what)
            };
            let right = caller.may("get", "instance", "default")?;
            let may = match &caller.access {
                Some(access) => access.decide("get", &Thing::of(&thing, "default")).is_allowed(),
                None => caller.operator,
            };
            ensure!(may, "{} may not look", asker.what);
            drop(std::hint::black_box(right));
        }
        stretches.push((used()? - since).as_secs_f64() * 1e6 / f64::from(TIMES));
    }
    let each = median(&stretches[1..]);
    Ok(Figure::new(&format!("who asks and what they may: {}", asker.what), each, "us")
        .beside(format!(
            "of the processor, of a GET; slowest of {STRETCHES} stretches {}",
            number(stretches[1..].iter().copied().fold(0.0, f64::max), "us")
        ))
        .at_most(MOST_US))
}

// === statements ===

async fn statements(face: &Face, counter: &mut Counter, asker: &Asker) -> Result<Figure> {
    let get = async |nth: u64| {
        let path = format!("/v1/tenants/default/instances/{}", fill::id(2 * (nth % (ROWS / 2)) + 2));
        said(face, &asker.authorization, "GET", &path, Value::Null).await.map(drop)
    };
    // Each connection of the pool has prepared what it asks.
    for nth in 0..200 {
        get(nth).await?;
    }
    counter.again().await?;
    for nth in 0..GETS {
        get(nth).await?;
    }
    let counts = counter.read().await?;
    let name = format!("statements of a GET: {}", asker.what);
    #[allow(clippy::cast_precision_loss, reason = "two thousand")]
    let figure = counts.figure(&name, GETS as f64);
    Ok(figure.at_most(READS))
}
