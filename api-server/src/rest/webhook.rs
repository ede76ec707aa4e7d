//! What webhooks have beside what all kinds have: the test button, the last tries, and sending one once more.

use axum::Json;
use axum::response::IntoResponse;
use serde_json::{Value, json};

use super::extract::Ask;
use super::page;
use super::problem::{Answer, Problem};
use crate::kernel::{Clash, Error, Kind, Right, Stored};
use crate::webhooks;

/// `POST .../{id}/actions/test`
pub async fn test(mut ask: Ask, kind: &'static dyn Kind) -> Answer {
    let (right, webhook) = mine(&mut ask, kind, "test").await?;
    right.may_change(&webhook.core)?;
    let tried = webhooks::ping(&ask.ctx.store, &ask.ctx.courier, &webhook).await?;
    Ok(Json(json!(tried)).into_response())
}

/// `GET .../{id}/deliveries`
pub async fn deliveries(ask: Ask, kind: &'static dyn Kind) -> Answer {
    let right = ask.right("get", kind.meta().kind)?;
    ask.query(&["limit", "page"])?;
    let limit = page::limit(&ask)?;
    let before = match page::after(&ask, "d")? {
        None => None,
        Some(place) => Some(place.parse().map_err(|_| page::bad("page", "is not one of this list"))?),
    };
    let found = ask.ctx.store.deliveries(&right, kind, ask.id()?, limit, before).await?;
    let full = i64::try_from(found.len()).is_ok_and(|length| length == limit);
    let next = found.last().filter(|_| full).map(|last| last.number.to_string());
    let items = found.iter().map(|tried| json!(tried)).collect();
    Ok(Json(page::page(items, next, "d")).into_response())
}

/// `POST .../{id}/deliveries/{number}/redeliver`
pub async fn redeliver(mut ask: Ask, kind: &'static dyn Kind) -> Answer {
    let number: i64 = ask.param("number")?.parse().map_err(|_| Problem::not_found())?;
    let (right, webhook) = mine(&mut ask, kind, "test").await?;
    let store = &ask.ctx.store;
    let found = store.deliveries(&right, kind, &webhook.core.id, 1, Some(number.saturating_add(1))).await?;
    let tried = found.into_iter().find(|one| one.number == number).ok_or_else(Problem::not_found)?;
    let tried = match tried.seq {
        0 => webhooks::ping(store, &ask.ctx.courier, &webhook).await?,
        seq => {
            let Some(event) = store.entry(&right, seq).await? else {
                return Err(Problem::new("gone", format!("entry {seq} of the log is not kept any more")));
            };
            webhooks::again(store, &ask.ctx.courier, &webhook, &event).await?
        }
    };
    Ok(Json(json!(tried)).into_response())
}

/// The webhook, for somebody who may have it send something.
async fn mine(ask: &mut Ask, kind: &'static dyn Kind, verb: &str) -> Result<(Right, Stored), Problem> {
    let right = ask.right(verb, kind.meta().kind)?;
    ask.no_query()?;
    ask.no_key("it is sent each time that you ask")?;
    let body = ask.json(true).await?;
    if let Some(strange) = body.as_object().and_then(|map| map.keys().next()) {
        return Err(Error::field(strange, "there is no such field").into());
    }
    let webhook = ask.ctx.store.get(&right, kind, ask.id()?).await?;
    if webhook.core.deleted_at.is_some() {
        return Err(Error::from(Clash::WrongState("it is being deleted".into())).into());
    }
    // Its receiver may take its time.
    ask.takes_long()?;
    Ok((right, webhook))
}

/// Schema of a try.
pub fn schema() -> Value {
    let text = |about: &str| json!({ "type": "string", "description": about });
    let number = |about: &str| json!({ "type": "integer", "format": "int64", "description": about });
    let outcomes = ["delivered", "failed", "given-up"];
    let properties = json!({
        "number": number("Rises by one from try to try; the last hundred are kept."),
        "seq": number("The entry of the log that it tells of; 0 for a test."),
        "message": text("`webhook-id`: the same whenever the entry is sent again."),
        "type": text("`instance.create`, `instance.create.done`, `instance.phase.running`."),
        "attempt": number("How often the entry had been tried."),
        "at": { "type": "string", "format": "date-time", "description": "When." },
        "took_ms": number("How long it took, in milliseconds."),
        "outcome": { "type": "string", "x-extensible-enum": outcomes, "description": "`delivered`: answered with 2xx." },
        "status": number("What the receiver answered; 0 if it answered nothing."),
        "detail": text("Why it failed."),
    });
    let required: Vec<String> =
        properties.as_object().into_iter().flat_map(serde_json::Map::keys).cloned().collect();
    json!({ "type": "object", "description": "One try to deliver.", "required": required, "properties": properties })
}
