//! What the issuer says of a token that it alone understands (RFC 7662).

use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use reqwest::Method;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use serde::Deserialize;
use serde_json::Value;
use url::form_urlencoded;

use super::provider::Provider;
use crate::auth::breaker::Breaker;
use crate::auth::secret_in;
use crate::kernel::Env;
use crate::outbound::Outbound;

/// As the configuration has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// As what this server asks.
    client_id: String,
    /// Holds what proves it.
    client_secret_file: PathBuf,
}

/// Asks.
pub struct Introspection {
    authorization: HeaderValue,
    outbound: Arc<Outbound>,
    breaker: Breaker,
}

impl Introspection {
    /// With this secret; or why there is none.
    pub fn new(settings: Settings, outbound: Arc<Outbound>, env: &Env) -> Result<Introspection, String> {
        let secret = secret_in("introspection.client_secret_file", &settings.client_secret_file)?;
        let encoded = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
        let pair = format!("{}:{}", encoded(&settings.client_id), encoded(&secret));
        let mut authorization = HeaderValue::from_str(&format!("Basic {}", BASE64_STANDARD.encode(pair)))
            .map_err(|_| "`introspection`: the secret cannot be sent".to_owned())?;
        authorization.set_sensitive(true);
        Ok(Introspection { authorization, outbound, breaker: Breaker::new(env) })
    }

    /// What it says of a token; `None`: it is not good.
    pub async fn ask(&self, provider: &Provider, token: &str) -> Result<Option<Value>, String> {
        let away = |_| "the issuer cannot be asked where it is".to_owned();
        let url = provider.introspection().await.map_err(away)?;
        let url = url.ok_or("the issuer offers no introspection")?;
        if !self.breaker.may_ask() {
            return Err("the issuer has not answered for some time".into());
        }
        let said = self.call(&url, token).await;
        self.breaker.was(said.is_ok());
        let said = said?;
        Ok((said["active"] == Value::Bool(true)).then_some(said))
    }

    async fn call(&self, url: &str, token: &str) -> Result<Value, String> {
        let body = form_urlencoded::Serializer::new(String::new())
            .append_pair("token", token)
            .append_pair("token_type_hint", "access_token")
            .finish();
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, self.authorization.clone());
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        let answered = self.outbound.call(Method::POST, url, headers, body.into_bytes()).await;
        let answered = answered.map_err(|error| error.to_string())?;
        if answered.status != 200 {
            return Err(format!("introspection answers with status {}", answered.status));
        }
        serde_json::from_slice(&answered.body).map_err(|_| "introspection answers what is no JSON".to_owned())
    }
}
