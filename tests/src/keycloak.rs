//! As much of Keycloak's admin API as is needed, on loopback, and with the faults that a test wants. It says nowhere that
//! it is real; a real one is in the tests of the whole.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use rhyzome_api::auth::{RealmsConfig, RealmsFile};
use rhyzome_api::outbound::{Limits, Outbound, Rules, SystemNames};
use rhyzome_api::realms::Keycloak;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};

/// What the client shows that makes realms.
pub const SECRET: &str = "hush-of-the-maker-of-realms";

/// What goes wrong with the next change of a realm.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// It is answered with this status, and nothing is done.
    Status(u16),
    /// It is done, and answered with this status.
    DoneAnd(u16),
    /// It is done, and nobody hears of it in time.
    DoneAndLate,
    /// It is not done, and nobody hears of it in time.
    Late,
}

/// What it has, and what was asked of it.
#[derive(Default)]
pub struct Has {
    /// Realms, as they were sent.
    pub realms: BTreeMap<String, Value>,
    /// What goes wrong, next first.
    pub faults: VecDeque<Fault>,
    /// Every call of the admin API: method and path.
    pub asked: Vec<String>,
    /// Another secret counts than the one that is shown.
    pub locked: bool,
}

/// Somebody on loopback who makes realms.
pub struct FakeKeycloak {
    /// `http://127.0.0.1:PORT`
    pub url: String,
    has: Arc<Mutex<Has>>,
    key: Arc<EcdsaKeyPair>,
    folder: tempfile::TempDir,
    task: tokio::task::JoinHandle<()>,
}

type Shared = State<(Arc<Mutex<Has>>, Arc<EcdsaKeyPair>, String)>;

impl FakeKeycloak {
    /// One without a realm.
    pub async fn new() -> FakeKeycloak {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let key =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap();
        let (has, key) = (Arc::new(Mutex::new(Has::default())), Arc::new(key));
        let router = Router::new()
            .route("/realms/master/protocol/openid-connect/token", post(token))
            .route("/admin/realms", post(make))
            .route("/admin/realms/{realm}", get(look).delete(delete))
            .route("/realms/{realm}/.well-known/openid-configuration", get(about))
            .route("/realms/{realm}/keys", get(keys))
            .with_state((has.clone(), key.clone(), url.clone()));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let folder = tempfile::tempdir().unwrap();
        FakeKeycloak { url, has, key, folder, task }
    }

    /// What it has.
    pub fn has(&self) -> MutexGuard<'_, Has> {
        self.has.lock().unwrap()
    }

    /// Goes wrong in these ways, one after the other.
    pub fn will(&self, faults: &[Fault]) {
        self.has().faults.extend(faults);
    }

    /// How often this was asked.
    pub fn count(&self, asked: &str) -> usize {
        self.has().asked.iter().filter(|one| one.as_str() == asked).count()
    }

    /// As a configuration names it.
    pub fn config(&self) -> RealmsConfig {
        use std::os::unix::fs::PermissionsExt as _;

        let path = self.folder.path().join("secret");
        std::fs::write(&path, format!("{SECRET}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let file = json!({
            "url": self.url, "client_id": "rhyzome-maker", "client_secret_file": path, "http": true,
            "api_url": "https://api.example",
        });
        serde_json::from_value::<RealmsFile>(file).unwrap().resolve().unwrap().unwrap()
    }

    /// What may call it, and does not wait for long.
    pub fn outbound(&self) -> Arc<Outbound> {
        let rules = Rules { allow: vec!["127.0.0.0/8".parse().unwrap()], own: Vec::new() };
        let limits = Limits { time: Duration::from_millis(500), ..Limits::default() };
        Arc::new(Outbound::new(rules, limits, Arc::new(SystemNames)).unwrap())
    }

    /// What makes realms there.
    pub fn maker(&self) -> Keycloak {
        Keycloak::new(&self.config(), self.outbound()).unwrap().unwrap()
    }

    /// A token of somebody of this realm, in these groups.
    pub fn token_of(&self, realm: &str, name: &str, groups: &[&str], now: i64) -> String {
        let header = json!({ "alg": "ES256", "kid": realm, "typ": "JWT" });
        let claims = json!({
            "iss": format!("{}/realms/{realm}", self.url), "aud": "rhyzome", "azp": "rhyzome-cli", "typ": "Bearer",
            "sub": format!("{realm}-{name}"), "preferred_username": name, "iat": now, "exp": now + 300,
            "groups": groups,
        });
        let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", part(&header), part(&claims));
        let signature = self.key.sign(&SystemRandom::new(), text.as_bytes()).unwrap();
        format!("{text}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    }
}

impl Drop for FakeKeycloak {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn token(State((has, ..)): Shared, headers: HeaderMap) -> Response {
    let wanted = format!("Basic {}", BASE64_STANDARD.encode(format!("rhyzome-maker:{SECRET}")));
    let shown = headers.get("authorization").and_then(|value| value.to_str().ok());
    if has.lock().unwrap().locked || shown != Some(wanted.as_str()) {
        return (StatusCode::UNAUTHORIZED, Json(json!({ "error": "unauthorized_client" }))).into_response();
    }
    Json(json!({ "access_token": "token-of-the-maker", "token_type": "Bearer" })).into_response()
}

/// Notes what is asked; false, if whoever asks shows no token.
fn asked(has: &Mutex<Has>, headers: &HeaderMap, line: String) -> bool {
    has.lock().unwrap().asked.push(line);
    let shown = headers.get("authorization").and_then(|value| value.to_str().ok());
    shown == Some("Bearer token-of-the-maker")
}

/// Does a change, with whatever goes wrong.
async fn change(has: &Mutex<Has>, work: impl FnOnce(&mut Has) -> u16) -> Response {
    let fault = has.lock().unwrap().faults.pop_front();
    let status = match fault {
        Some(Fault::Status(_) | Fault::Late) => 0,
        _ => work(&mut has.lock().unwrap()),
    };
    let status = match fault {
        None => status,
        Some(Fault::Status(status) | Fault::DoneAnd(status)) => status,
        Some(Fault::Late | Fault::DoneAndLate) => {
            // Slow on purpose: longer than whoever asks is willing to wait. Nothing else waits for it.
            tokio::time::sleep(Duration::from_secs(5)).await;
            500
        }
    };
    StatusCode::from_u16(status).unwrap().into_response()
}

async fn make(State((has, ..)): Shared, headers: HeaderMap, body: Bytes) -> Response {
    if !asked(&has, &headers, "POST /admin/realms".into()) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let realm: Value = serde_json::from_slice(&body).unwrap();
    let name = realm["realm"].as_str().unwrap().to_owned();
    change(&has, |has| {
        if has.realms.contains_key(&name) {
            return 409;
        }
        has.realms.insert(name, realm);
        201
    })
    .await
}

async fn look(State((has, ..)): Shared, headers: HeaderMap, Path(realm): Path<String>) -> Response {
    if !asked(&has, &headers, format!("GET /admin/realms/{realm}")) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    match has.lock().unwrap().realms.get(&realm) {
        Some(realm) => Json(realm.clone()).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn delete(State((has, ..)): Shared, headers: HeaderMap, Path(realm): Path<String>) -> Response {
    if !asked(&has, &headers, format!("DELETE /admin/realms/{realm}")) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    change(&has, |has| if has.realms.remove(&realm).is_some() { 204 } else { 404 }).await
}

async fn about(State((_, _, url)): Shared, Path(realm): Path<String>) -> Json<Value> {
    let issuer = format!("{url}/realms/{realm}");
    Json(json!({ "issuer": issuer, "jwks_uri": format!("{issuer}/keys") }))
}

async fn keys(State((_, key, _)): Shared, Path(realm): Path<String>) -> Json<Value> {
    let point = &key.public_key().as_ref()[1..];
    let (x, y) = point.split_at(32);
    let (x, y) = (BASE64_URL_SAFE_NO_PAD.encode(x), BASE64_URL_SAFE_NO_PAD.encode(y));
    let jwk =
        json!({ "kty": "EC", "crv": "P-256", "kid": realm, "use": "sig", "alg": "ES256", "x": x, "y": y });
    Json(json!({ "keys": [jwk] }))
}
