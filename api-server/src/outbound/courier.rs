//! The courier: brings signed messages to where users want them, by the one client that calls others.

use std::sync::{Arc, OnceLock};

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};

use super::{Limits, Names, Outbound, Rules, judged};
use crate::kernel::webhook::signature;

/// Brings messages.
pub struct Courier {
    rules: Rules,
    limits: Limits,
    names: Arc<dyn Names>,
    /// `http` is good enough.
    http: bool,
    /// Made when first needed: it knows all authorities of the machine.
    outbound: OnceLock<Option<Outbound>>,
}

/// A message to be brought.
#[derive(Clone, Debug)]
pub struct Message {
    /// `webhook-id`: the same whenever it is brought again.
    pub id: String,
    /// `webhook-timestamp`: seconds since 1970.
    pub seconds: i64,
    /// JSON.
    pub body: Vec<u8>,
}

impl Courier {
    /// Under these rules.
    pub fn new(rules: Rules, limits: Limits, names: Arc<dyn Names>, http: bool) -> Courier {
        Courier { rules, limits, names, http, outbound: OnceLock::new() }
    }

    /// Why nothing is brought there, as far as it can be told without resolving a name.
    pub fn judge(&self, url: &str) -> Result<(), String> {
        let url = judged(&self.rules, url).map_err(|error| error.to_string())?;
        if url.scheme() == "http" && !self.http {
            return Err(
                "must begin with https://: http is not allowed by the operator of this server".to_owned()
            );
        }
        Ok(())
    }

    /// Brings a message: the status that was answered, whatever it is. Nothing else of the answer is kept: it is not
    /// for whoever chose the address.
    pub async fn bring(&self, url: &str, key: &[u8], message: &Message) -> Result<u16, String> {
        self.judge(url)?;
        let outbound = self.outbound.get_or_init(|| {
            Outbound::new(self.rules.clone(), self.limits, self.names.clone())
                .map_err(|error| tracing::error!(%error, "nobody can be called"))
                .ok()
        });
        let Some(outbound) = outbound else { return Err("this server cannot call anybody".to_owned()) };
        let signature = signature(key, &message.id, message.seconds, &message.body);
        let headers =
            headers(&message.id, message.seconds, &signature).ok_or("the message has no good id")?;
        outbound.post(url, headers, message.body.clone()).await.map_err(|error| error.to_string())
    }
}

fn headers(id: &str, seconds: i64, signature: &str) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for (name, value) in
        [("webhook-id", id), ("webhook-timestamp", &seconds.to_string()), ("webhook-signature", signature)]
    {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value).ok()?);
    }
    Some(headers)
}
