//! How a browser comes to a session by an OpenID provider, and what of it is nobody's answer to what this browser asked.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rhyzome_api::auth::{AuthFile, Authenticators, Sessions};
use rhyzome_api::outbound::{Limits, Outbound, Rules, SystemNames};
use rhyzome_tests::face::{Face, Reply};
use rhyzome_tests::given::Time;
use rhyzome_tests::world::{Engine, World};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};
use url::{Url, form_urlencoded};

const HOST: (&str, &str) = ("host", "api.example");
const SITE: (&str, &str) = ("sec-fetch-site", "same-origin");
const LOGIN: &str = "/v1/session/login";
const CALLBACK: &str = "/v1/session/callback";
const CODE: &str = "code-of-a-test";
const ANSWER: &str = "/console?a=b#c";

/// What somebody was sent to the provider with, and what it says otherwise than it should: by claim, in the identity token.
#[derive(Default)]
struct Said {
    challenge: String,
    nonce: String,
    redirect: String,
    lies: Vec<(&'static str, Value)>,
    id_token: String,
    used: bool,
}

#[derive(Clone)]
struct Provider {
    url: String,
    key: Arc<EcdsaKeyPair>,
    said: Arc<Mutex<Said>>,
    time: Time,
}

fn encoded(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

fn key() -> EcdsaKeyPair {
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap()
}

impl Provider {
    async fn serve(time: &Time) -> Provider {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let provider = Provider { url, key: Arc::new(key()), said: Arc::default(), time: time.clone() };
        let about = async |State(provider): State<Provider>| {
            let at = |path: &str| format!("{}{path}", provider.url);
            Json(json!({
                "issuer": provider.url, "jwks_uri": at("/keys"), "authorization_endpoint": at("/auth?tenant=1"),
                "token_endpoint": at("/token"), "end_session_endpoint": at("/end"),
            }))
        };
        let keys = async |State(provider): State<Provider>| {
            let point = provider.key.public_key().as_ref();
            let (x, y) = (encoded(&point[1..33]), encoded(&point[33..]));
            Json(
                json!({ "keys": [{ "kty": "EC", "crv": "P-256", "kid": "k", "alg": "ES256", "use": "sig", "x": x, "y": y }] }),
            )
        };
        let tokens = async |State(provider): State<Provider>, body: Bytes| {
            provider.tokens(&form_urlencoded::parse(&body).into_owned().collect())
        };
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(about))
            .route("/keys", get(keys))
            .route("/token", post(tokens))
            .with_state(provider.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        provider
    }

    fn signed(&self, key: &EcdsaKeyPair, typ: &str, claims: &Value) -> String {
        let header = json!({ "alg": "ES256", "kid": "k", "typ": typ });
        let text = format!("{}.{}", encoded(header.to_string()), encoded(claims.to_string()));
        let signature = key.sign(&SystemRandom::new(), text.as_bytes()).unwrap();
        format!("{text}.{}", encoded(signature))
    }

    fn tokens(&self, form: &BTreeMap<String, String>) -> (StatusCode, Json<Value>) {
        let mut said = self.said.lock().unwrap();
        let is = |key: &str, value: &str| form.get(key).is_some_and(|given| given == value);
        let proven = form.get("code_verifier").is_some_and(|given| {
            encoded(ring::digest::digest(&ring::digest::SHA256, given.as_bytes())) == said.challenge
        });
        let good = is("code", CODE) && is("client_id", "web") && is("redirect_uri", &said.redirect) && proven;
        if !good || std::mem::replace(&mut said.used, true) {
            return (StatusCode::BAD_REQUEST, Json(json!({ "error": "invalid_grant" })));
        }
        let now = self.time.now().0 / 1_000_000;
        let base = json!({ "iss": self.url, "sub": "7", "sid": "s1", "iat": now, "exp": now + 300 });
        let (mut access, mut identity) = (base.clone(), base);
        for (claim, value) in
            [("aud", json!("rhyzome")), ("preferred_username", json!("anna")), ("azp", json!("web"))]
        {
            access[claim] = value;
        }
        (identity["aud"], identity["nonce"]) = (json!("web"), json!(said.nonce));
        let (mut stranger, mut left_out) = (None, false);
        for (claim, value) in &said.lies {
            match *claim {
                "key" => stranger = Some(key()),
                "none" => left_out = true,
                "access" => access["aud"] = value.clone(),
                claim => identity[claim] = value.clone(),
            }
        }
        said.id_token = self.signed(stranger.as_ref().unwrap_or(&self.key), "JWT", &identity);
        let mut all = json!({ "token_type": "Bearer", "expires_in": 300, "access_token": self.signed(&self.key, "at+jwt", &access) });
        if !left_out {
            all["id_token"] = json!(said.id_token);
        }
        (StatusCode::OK, Json(all))
    }
}

struct Story {
    world: World,
    time: Time,
    provider: Provider,
    face: Face,
}

/// A browser on its way.
struct Away {
    cookie: String,
    state: String,
}

impl Story {
    async fn new(engine: Engine) -> Story {
        let time = Time::begin();
        let world = World::with_time(engine, &time, 7).await;
        let provider = Provider::serve(&time).await;
        let entry = json!({
            "type": "oidc", "name": "people", "issuer": provider.url, "audiences": ["rhyzome"], "login_client": "web", "http": true,
        });
        let tokens = json!({ "type": "tokens", "name": "ops", "tokens": [{ "name": "ci", "sha256": "ab".repeat(32) }] });
        let config: AuthFile = serde_json::from_value(json!({ "authenticators": [entry, tokens] })).unwrap();
        let sessions = Arc::new(Sessions::default());
        let rules = Rules { allow: vec!["127.0.0.0/8".parse().unwrap()], own: Vec::new() };
        let outbound = Arc::new(Outbound::new(rules, Limits::default(), Arc::new(SystemNames)).unwrap());
        let made = config.resolve().unwrap().make(world.store.env(), &outbound, &sessions).unwrap();
        let face = Face::knowing(&world, Authenticators::new(made).with_sessions(sessions));
        Story { world, time, provider, face }
    }

    async fn get(&self, path: &str, more: &[(&str, &str)]) -> Reply {
        self.face.raw("GET", path, &[&[HOST], more].concat(), "").await
    }

    async fn sent(&self) -> Away {
        let sent = self.get(&format!("{LOGIN}?return_to=/console?a%3Db%23c"), &[]).await.is(303);
        let to: Url = sent.header("location").parse().unwrap();
        let query: BTreeMap<String, String> = to.query_pairs().into_owned().collect();
        let text = |key: &str| query[key].clone();
        assert!(to.as_str().starts_with(&format!("{}/auth?tenant=1&", self.provider.url)), "{to}");
        assert_eq!((text("response_type"), text("client_id")), ("code".into(), "web".into()));
        assert_eq!((text("code_challenge_method"), text("scope")), ("S256".into(), "openid".into()));
        assert_eq!(text("redirect_uri"), "https://api.example/v1/session/callback");
        let (cookie, rest) = sent.header("set-cookie").split_once(';').unwrap();
        assert_eq!(rest, " Path=/; HttpOnly; SameSite=Lax; Secure; Max-Age=600");
        assert!(cookie.starts_with("__Host-rhyzome-login=rzs_") && !to.as_str().contains("rzs_"), "{to}");
        *self.provider.said.lock().unwrap() = Said {
            challenge: text("code_challenge"),
            nonce: text("nonce"),
            redirect: text("redirect_uri"),
            ..Said::default()
        };
        Away { cookie: cookie.to_owned(), state: text("state") }
    }

    async fn back_with(&self, away: &Away, query: &str) -> Reply {
        // As a browser says of a way that began at another site.
        let headers = [("cookie", away.cookie.as_str()), ("sec-fetch-site", "cross-site")];
        self.get(&format!("{CALLBACK}?state={}&{query}", away.state), &headers).await
    }

    async fn back(&self, away: &Away) -> Reply {
        self.back_with(away, &format!("code={CODE}")).await
    }
}

macro_rules! stories {
    ($($name:ident),* $(,)?) => {
        mod sqlite { $(#[tokio::test(flavor = "multi_thread")] async fn $name() {
            super::$name(super::Story::new(super::Engine::Sqlite).await).await;
        })* }
        mod postgres { $(#[tokio::test(flavor = "multi_thread")] async fn $name() {
            super::$name(super::Story::new(super::Engine::Postgres).await).await;
        })* }
    };
}

stories!(somebody_goes_there_and_comes_back, what_is_no_answer_lets_nobody_in, one_goes_where_one_is_sent);

async fn somebody_goes_there_and_comes_back(story: Story) {
    let away = story.sent().await;
    let back = story.back(&away).await.is(303);
    assert_eq!(back.header("location"), ANSWER);
    assert_eq!((back.header("cache-control"), back.header("referrer-policy")), ("no-store", "no-referrer"));
    let set: Vec<&str> = back.headers.get_all("set-cookie").iter().map(|one| one.to_str().unwrap()).collect();
    let cookie = set[0].split(';').next().unwrap();
    assert!(
        set[0].starts_with("__Host-rhyzome=rzs_") && set[0].ends_with("; SameSite=Strict; Secure"),
        "{set:?}"
    );
    assert!(set[1].starts_with("__Host-rhyzome-login=;") && set[1].ends_with("; Max-Age=0"), "{set:?}");
    // Another secret than that of the way: whoever had planted that has nothing.
    assert_ne!(cookie.split_once('=').unwrap().1, away.cookie.split_once('=').unwrap().1);
    let me = story.get("/v1/whoami", &[("cookie", cookie), SITE]).await.is(200).json;
    assert_eq!((&me["name"], &me["credential"]), (&json!("anna"), &json!("people/session")), "{me:#}");
    // Once.
    story.back(&away).await.is_problem(400, "malformed");
    let session = story.get("/v1/session", &[("cookie", cookie), SITE]).await.is(200).json;
    let id_token = story.provider.said.lock().unwrap().id_token.clone();
    let written = story.world.written().await;
    for secret in [cookie, &away.cookie, &id_token] {
        let secret = secret.rsplit('=').next().unwrap();
        assert!(!written.windows(secret.len()).any(|part| part == secret.as_bytes()), "{secret} is written");
    }
    let csrf = session["csrf"].as_str().unwrap();
    let headers =
        [HOST, SITE, ("cookie", cookie), ("origin", "https://api.example"), ("x-rhyzome-csrf", csrf)];
    let ended = story.face.raw("DELETE", "/v1/session", &headers, "").await.is(200).json;
    let end = format!("{}/end?id_token_hint={id_token}&client_id=web", story.provider.url);
    assert_eq!(ended, json!({ "end_session_url": end }));
    story.get("/v1/whoami", &[("cookie", cookie), SITE]).await.is_problem(401, "unauthenticated");
}

async fn what_is_no_answer_lets_nobody_in(story: Story) {
    let early = story.time.now().0 / 1_000_000 - 100;
    for lie in [
        ("nonce", json!("another")),
        ("nonce", Value::Null),
        ("aud", json!("another")),
        ("aud", json!(["web", "another"])),
        ("azp", json!("another")),
        ("iss", json!("https://evil.example")),
        ("sub", json!("8")),
        ("exp", json!(early)),
        ("key", Value::Null),
        ("none", Value::Null),
        ("access", json!("another")),
    ] {
        let away = story.sent().await;
        story.provider.said.lock().unwrap().lies = vec![lie.clone()];
        let refused = story.back(&away).await;
        assert_eq!(refused.status, 401, "{lie:?}: {:#}", refused.json);
        assert!(refused.headers.get("set-cookie").is_none(), "{lie:?}");
    }
    // Another provider's answer, another code, what somebody else has said, and a code that was used.
    let away = story.sent().await;
    story
        .back_with(&away, &format!("code={CODE}&iss=https://evil.example"))
        .await
        .is_problem(401, "unauthenticated");
    let away = story.sent().await;
    story.back_with(&away, "code=another").await.is_problem(401, "unauthenticated");
    let away = story.sent().await;
    let refused = story.back_with(&away, "error=access_denied&error_description=call+0800").await;
    let refused = refused.is_problem(401, "unauthenticated");
    assert_eq!(refused.json["detail"], "nobody has logged in: the provider says access_denied");
    let away = story.sent().await;
    story.provider.said.lock().unwrap().used = true;
    story.back(&away).await.is_problem(401, "unauthenticated");
    // Brought into another browser: one that has asked for nothing, or for something else.
    let (mine, yours) = (story.sent().await, story.sent().await);
    for cookie in ["", &mine.cookie] {
        let stolen = Away { cookie: cookie.to_owned(), state: yours.state.clone() };
        story.back(&stolen).await.is_problem(400, "malformed");
    }
    // Who it is meant for is not disturbed by that.
    story.back(&yours).await.is(303);
    // Too late.
    let away = story.sent().await;
    story.time.pass(601);
    story.back(&away).await.is_problem(400, "malformed");
    assert_eq!(story.world.ask("SELECT count(*) FROM browser_session").await, [["1"]]);
    // What nobody came back from is swept.
    story.time.pass(601);
    story.sent().await;
    assert_eq!(story.world.ask("SELECT count(*) FROM browser_login").await, [["1"]]);
}

async fn one_goes_where_one_is_sent(story: Story) {
    for to in ["//evil.example", "https://evil.example", "/%5Cevil.example", "/%09/evil.example", "console"] {
        let refused = story.get(&format!("{LOGIN}?return_to={to}"), &[]).await;
        assert_eq!(refused.is_problem(400, "malformed").fields(), ["?return_to"], "{to}");
    }
    // Those by whom nobody logs in so, and those that are not there, are the same.
    for name in ["ops", "nobody", "realm-acme", ""] {
        let refused = story.get(&format!("{LOGIN}?authenticator={name}"), &[]).await;
        assert_eq!(refused.is_problem(400, "malformed").fields(), ["?authenticator"], "{name}");
    }
    story.get(&format!("{LOGIN}?authenticator=people&state=x"), &[]).await.is_problem(400, "malformed");
    let at_home = story.face.raw("GET", LOGIN, &[("host", "127.0.0.1:8080")], "").await.is(303);
    assert!(
        at_home
            .header("location")
            .contains("redirect_uri=http%3A%2F%2F127.0.0.1%3A8080%2Fv1%2Fsession%2Fcallback")
    );
    assert!(at_home.header("set-cookie").starts_with("rhyzome-login=rzs_"));
    // Nobody who is suspended has a session of it.
    let away = story.sent().await;
    story.back(&away).await.is(303);
    let sql = "UPDATE resource SET spec = replace(spec, '\"username\":\"anna\"', '\"username\":\"anna\",\"disabled\":true') WHERE kind = 'user'";
    story.world.sql(sql).await;
    story.time.pass(2);
    let away = story.sent().await;
    let refused = story.back(&away).await.is_problem(401, "unauthenticated");
    assert_eq!(refused.json["detail"], "this user is disabled: ask an operator");
}
