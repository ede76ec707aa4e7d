//! An issuer of tokens on loopback, that says nowhere that it is real; its keys are.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::routing::get;
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
};
use serde_json::{Value, json};

/// A private key, and how others know it.
pub struct Key {
    /// Its name.
    pub kid: &'static str,
    /// What it signs by.
    pub alg: &'static str,
    /// As it stands in a JWKS.
    pub jwk: Value,
    /// Its public half, in all forms in which somebody may take it for a secret.
    pub forms: Vec<Vec<u8>>,
    pair: Pair,
}

enum Pair {
    Rsa(Box<RsaKeyPair>),
    Ec(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

/// The issuer, as long as it is not dropped.
pub struct Issuer {
    /// `http://127.0.0.1:PORT`
    pub url: String,
    asked: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

// === impl Key ===

fn url_safe(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

impl Key {
    /// RSA takes seconds to be made: this one is made.
    pub fn rsa(kid: &'static str) -> Key {
        let lines = include_str!("rsa.pem").lines();
        let text: String = lines
            .skip_while(|line| !line.starts_with("-----"))
            .filter(|line| !line.starts_with('-'))
            .collect();
        let pair = RsaKeyPair::from_pkcs8(&BASE64_STANDARD.decode(text).unwrap()).unwrap();
        let public = ring::rsa::PublicKeyComponents::<Vec<u8>>::from(pair.public());
        let jwk = json!({
            "kty": "RSA", "kid": kid, "alg": "RS256", "use": "sig", "n": url_safe(&public.n), "e": url_safe(&public.e),
        });
        let forms = vec![pair.public().as_ref().to_vec(), public.n];
        Key::new(kid, "RS256", jwk, forms, Pair::Rsa(Box::new(pair)))
    }

    /// A new one of the curve P-256, for this use.
    pub fn ec(kid: &'static str, usage: &str) -> Key {
        let (random, kind) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
        let document = EcdsaKeyPair::generate_pkcs8(kind, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(kind, document.as_ref(), &random).unwrap();
        let point = pair.public_key().as_ref().to_vec();
        let jwk = json!({
            "kty": "EC", "crv": "P-256", "kid": kid, "alg": "ES256", "use": usage, "x": url_safe(&point[1..33]),
            "y": url_safe(&point[33..]),
        });
        Key::new(kid, "ES256", jwk, vec![point], Pair::Ec(pair))
    }

    /// A new one of Ed25519.
    pub fn ed(kid: &'static str) -> Key {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap();
        let point = pair.public_key().as_ref().to_vec();
        let jwk = json!({
            "kty": "OKP", "crv": "Ed25519", "kid": kid, "alg": "EdDSA", "use": "sig", "x": url_safe(&point),
        });
        Key::new(kid, "EdDSA", jwk, vec![point], Pair::Ed(pair))
    }

    fn new(kid: &'static str, alg: &'static str, jwk: Value, mut forms: Vec<Vec<u8>>, pair: Pair) -> Key {
        for at in 0..forms.len() {
            let pem = BASE64_STANDARD.encode(&forms[at]);
            forms.push(format!("-----BEGIN PUBLIC KEY-----\n{pem}\n-----END PUBLIC KEY-----\n").into_bytes());
            forms.push(url_safe(&forms[at]).into_bytes());
        }
        forms.extend([jwk.to_string().into_bytes(), kid.as_bytes().to_vec(), Vec::new()]);
        Key { kid, alg, jwk, forms, pair }
    }

    /// Signs.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.pair {
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).unwrap();
                signature
            }
            Pair::Ec(pair) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            Pair::Ed(pair) => pair.sign(message).as_ref().to_vec(),
        }
    }
}

// === impl Issuer ===

impl Issuer {
    /// Answers what it is and which keys it has.
    pub async fn serve(keys: Vec<Value>) -> Issuer {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let about =
            json!({ "issuer": url, "jwks_uri": format!("{url}/keys"), "about": "made up, for tests" });
        let (asked, set) = (Arc::<AtomicU64>::default(), json!({ "keys": keys }));
        let count = asked.clone();
        let counted = move |body: Value| {
            let count = count.clone();
            async move || {
                count.fetch_add(1, Ordering::SeqCst);
                axum::Json(body.clone())
            }
        };
        let discovery = counted(about);
        let jwks = counted(set);
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(discovery))
            .route("/keys", get(jwks));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Issuer { url, asked, task }
    }

    /// How often anything was asked of it.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.task.abort();
    }
}
