//! An OpenID provider of a few lines, for one client: discovery, one key, and tokens that it signs.

use std::net::Ipv4Addr;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use axum::routing::get;
use axum::{Json, Router};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;

/// It serves until this goes.
pub struct Provider {
    /// As tokens name it.
    pub url: String,
    key: EcdsaKeyPair,
    _serving: AbortOnDropHandle<()>,
}

impl Provider {
    /// On a port of this machine.
    pub async fn start() -> Result<Provider> {
        let random = SystemRandom::new();
        let failed = |_| anyhow!("no key can be made");
        let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).map_err(failed)?;
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, made.as_ref(), &random);
        let key = key.map_err(|why| anyhow!("the key is not good: {why}"))?;
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let about = json!({ "issuer": url, "jwks_uri": format!("{url}/keys") });
        let (x, y) = key.public_key().as_ref()[1..].split_at(32);
        let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        let keys = json!({ "keys": [
            { "kty": "EC", "crv": "P-256", "kid": "1", "use": "sig", "alg": "ES256", "x": encode(x), "y": encode(y) },
        ]});
        let says = |text: Value| get(async move || Json(text));
        let router =
            Router::new().route("/.well-known/openid-configuration", says(about)).route("/keys", says(keys));
        let serving = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                eprintln!("the provider ended: {error}");
            }
        });
        Ok(Provider { url, key, _serving: AbortOnDropHandle::new(serving) })
    }

    /// An `Authorization` that is good for an hour.
    pub fn token(&self) -> Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock")?.as_secs();
        let header = json!({ "alg": "ES256", "kid": "1", "typ": "at+jwt" });
        let claims = json!({
            "iss": self.url, "aud": "rhyzome", "sub": "4711", "preferred_username": "bert", "groups": ["ops", "dev"],
            "iat": now, "exp": now + 3600,
        });
        let encode = |part: &Value| BASE64_URL_SAFE_NO_PAD.encode(part.to_string());
        let message = format!("{}.{}", encode(&header), encode(&claims));
        let signed = self.key.sign(&SystemRandom::new(), message.as_bytes());
        let signed = signed.map_err(|_| anyhow!("nothing can be signed"))?;
        Ok(format!("Bearer {message}.{}", BASE64_URL_SAFE_NO_PAD.encode(signed)))
    }
}
