//! One message: what it says, and what became of it.

use serde_json::json;

use crate::kernel::webhook::{key_of, message_id, message_type};
use crate::kernel::{Error, Stored};
use crate::outbound::{Courier, Message};
use crate::store::{Delivery, Event, Store};

/// What is sent of an entry.
#[derive(Clone, Debug)]
pub struct Letter {
    /// The entry; 0 for a test.
    pub seq: i64,
    /// `webhook-id`.
    pub id: String,
    /// `instance.create`.
    pub message_type: String,
    /// JSON.
    pub body: Vec<u8>,
}

/// What a webhook is told of an entry.
pub fn message_of(webhook: &str, event: &Event) -> Letter {
    let message_type = message_type(&event.class, &event.kind, &event.verb, &event.outcome, &event.phase);
    let body = json!({ "type": message_type, "timestamp": event.at, "data": event.told() });
    let id = message_id(webhook, event.seq);
    Letter { seq: event.seq, id, message_type, body: body.to_string().into_bytes() }
}

/// A message that says nothing but that it comes.
fn test_of(store: &Store, webhook: &Stored) -> Letter {
    let core = &webhook.core;
    let data = json!({ "webhook": core.id, "name": core.name, "tenant": core.tenant });
    let body = json!({ "type": "webhook.test", "timestamp": store.env().now(), "data": data });
    let id = store.env().id("ping");
    Letter { seq: 0, id, message_type: "webhook.test".into(), body: body.to_string().into_bytes() }
}

/// Sends a letter, once: what came of it. Taken is what was answered with 2xx.
pub async fn send(
    store: &Store,
    courier: &Courier,
    webhook: &Stored,
    letter: &Letter,
) -> Result<Delivery, Error> {
    let secret = store.secret(webhook, "spec.secret").await?;
    let key = secret.as_ref().and_then(|secret| key_of(secret.reveal()));
    let key = key.ok_or_else(|| Error::Internal(format!("{} has no good secret", webhook.core.id)))?;
    let url = webhook.spec["url"].as_str().unwrap_or_default();
    let at = store.env().now();
    let message =
        Message { id: letter.id.clone(), seconds: at.0.div_euclid(1_000_000), body: letter.body.clone() };
    let answered = courier.bring(url, &key, &message).await;
    let (status, detail) = match answered {
        Ok(status @ 200..300) => (status, String::new()),
        Ok(status @ 300..400) => (status, format!("it answered {status}: redirects are not followed")),
        Ok(status) => (status, format!("it answered {status}")),
        Err(why) => (0, why),
    };
    let outcome = if detail.is_empty() { "delivered" } else { "failed" };
    Ok(Delivery {
        seq: letter.seq,
        message: letter.id.clone(),
        message_type: letter.message_type.clone(),
        attempt: 1,
        at,
        took_ms: (store.env().now().0 - at.0) / 1000,
        outcome: outcome.to_owned(),
        status: i64::from(status),
        detail,
        ..Delivery::default()
    })
}

/// The test button: sends a message that says nothing, now.
pub async fn ping(store: &Store, courier: &Courier, webhook: &Stored) -> Result<Delivery, Error> {
    let tried = send(store, courier, webhook, &test_of(store, webhook)).await?;
    store.note_delivery(&webhook.core.id, tried).await
}

/// Sends what was sent before, once more, now.
pub async fn again(
    store: &Store,
    courier: &Courier,
    webhook: &Stored,
    event: &Event,
) -> Result<Delivery, Error> {
    let tried = send(store, courier, webhook, &message_of(&webhook.core.id, event)).await?;
    store.note_delivery(&webhook.core.id, tried).await
}
