//! Tokens that must count and tokens that must not, of two providers that do not do it in the same way. Both are mocks
//! on loopback that sign as real ones do; a real Keycloak is in the tests of the whole.

mod attacks;
mod life;

use std::sync::Mutex;

use base64::prelude::BASE64_STANDARD;
use jsonwebtoken::{EncodingKey, Header};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    KeyPair as _,
};
use serde_json::json;

use super::super::testing::{Served, Watch, env, outbound};
use super::*;

/// A key of an issuer.
#[derive(Clone)]
struct Pair {
    kid: String,
    algorithm: Algorithm,
    secret: EncodingKey,
    /// As it stands in a JWKS.
    jwk: Value,
}

impl Pair {
    fn new(kid: &str, algorithm: Algorithm) -> Pair {
        let (kind, curve): (&EcdsaSigningAlgorithm, _) = match algorithm {
            Algorithm::ES256 => (&ECDSA_P256_SHA256_FIXED_SIGNING, "P-256"),
            _ => (&ECDSA_P384_SHA384_FIXED_SIGNING, "P-384"),
        };
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(kind, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(kind, document.as_ref(), &random).unwrap();
        let point = &pair.public_key().as_ref()[1..];
        let (x, y) = point.split_at(point.len() / 2);
        let jwk = json!({
            "kty": "EC", "crv": curve, "kid": kid, "use": "sig", "alg": format!("{algorithm:?}"),
            "x": BASE64_URL_SAFE_NO_PAD.encode(x), "y": BASE64_URL_SAFE_NO_PAD.encode(y),
        });
        Pair { kid: kid.into(), algorithm, secret: EncodingKey::from_ec_der(document.as_ref()), jwk }
    }

    fn sign(&self, typ: Option<&str>, claims: &Value) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.kid.clone());
        header.typ = typ.map(str::to_owned);
        jsonwebtoken::encode(&header, claims, &self.secret).unwrap()
    }
}

/// A mock provider: it serves discovery, keys and introspection, and says nowhere that it is real.
struct Mock {
    served: Served,
    keys: Arc<Mutex<Vec<Value>>>,
    /// False: it answers with 500.
    up: Arc<Mutex<bool>>,
    pair: Pair,
}

impl Mock {
    async fn new(pair: Pair) -> Mock {
        let keys = Arc::new(Mutex::new(vec![pair.jwk.clone()]));
        let (up, own) = (Arc::new(Mutex::new(true)), Arc::new(Mutex::new(String::new())));
        let (shown, alive, at) = (keys.clone(), up.clone(), own.clone());
        let served = Served::new(move |question| {
            if !*alive.lock().unwrap() {
                return (500, "{}".into());
            }
            let url = at.lock().unwrap().clone();
            match question.line.as_str() {
                "GET /.well-known/openid-configuration" => {
                    let about = json!({
                        "issuer": url, "jwks_uri": format!("{url}/keys"),
                        "introspection_endpoint": format!("{url}/introspect"), "about": "a mock, for tests",
                    });
                    (200, about.to_string())
                }
                "GET /keys" => (200, json!({ "keys": *shown.lock().unwrap() }).to_string()),
                "POST /introspect" => (200, introspected(&question.headers, &question.body).to_string()),
                _ => (404, "{}".into()),
            }
        })
        .await;
        own.lock().unwrap().clone_from(&served.url);
        Mock { served, keys, up, pair }
    }

    fn url(&self) -> &str {
        &self.served.url
    }
}

/// As `api` with the secret `hush` is told.
fn introspected(headers: &str, body: &str) -> Value {
    let secret = BASE64_STANDARD.encode("api:hush").to_ascii_lowercase();
    if !headers.contains(&secret) || !body.starts_with("token=opaque-") {
        return json!({ "active": false });
    }
    let ours = body.starts_with("token=opaque-anna&");
    json!({
        "active": true, "sub": "u-1", "username": "anna", "client_id": "shell", "token_type": "Bearer",
        "aud": if ours { "rhyzome" } else { "shop" }, "exp": NOW + 300, "groups": ["/ops"],
    })
}

/// What the clock of the tests begins with, in seconds.
const NOW: i64 = 1_800_000_000;

/// A server that knows one provider.
struct World {
    mock: Mock,
    watch: Watch,
    sessions: Arc<Sessions>,
    oidc: Oidc,
}

impl World {
    /// Keycloak's manner: `typ` is a claim.
    async fn keycloak(more: Value) -> World {
        World::new(Pair::new("k1", Algorithm::ES256), more).await
    }

    async fn new(pair: Pair, more: Value) -> World {
        let (mock, watch) = (Mock::new(pair).await, Watch::default());
        let mut settings = json!({ "issuer": mock.url(), "audiences": ["rhyzome"], "http": true });
        settings.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let terms = Terms { authenticator: "acme".into(), tenant: Some("acme".into()), ..Terms::default() };
        let sessions = Arc::new(Sessions::default());
        let settings = serde_json::from_value(settings).unwrap();
        let oidc = Oidc::new(terms, settings, outbound(), sessions.clone(), &env(&watch)).unwrap();
        World { mock, watch, sessions, oidc }
    }

    /// The claims of a good access token, as Keycloak makes them, with these changes; `null` takes one away.
    fn claims(&self, changes: Value) -> Value {
        let mut claims = json!({
            "iss": self.mock.url(), "aud": ["rhyzome", "account"], "azp": "shell", "typ": "Bearer", "sub": "u-1",
            "sid": "s-1", "preferred_username": "anna", "iat": NOW, "exp": NOW + 300,
            "groups": ["/ops"], "realm_access": { "roles": ["admin"] },
        });
        for (name, value) in changes.as_object().unwrap() {
            match value {
                Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
                value => claims[name] = value.clone(),
            }
        }
        claims
    }

    fn token(&self, changes: Value) -> String {
        self.mock.pair.sign(Some("JWT"), &self.claims(changes))
    }

    async fn show(&self, token: &str) -> Verdict {
        let header = format!("Bearer {token}");
        self.oidc.authenticate(Some(&header), &RequestDetails::default()).await
    }
}

/// The reason why it is refused.
fn refusal(verdict: Verdict) -> String {
    match verdict {
        Verdict::Refused(why) | Verdict::RefusedKnown(_, why) => why,
        other => panic!("{other:?}"),
    }
}
