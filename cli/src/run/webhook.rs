//! `rhyzome webhook test`, `deliveries` and `redeliver`.

use clap::ArgMatches;
use rhyzome_client::Kind;
use serde_json::{Value, json};

use super::{Context, text};
use crate::output::{self, Format};

/// Sends a test message; an error if it was not taken.
pub async fn test(context: &Context<'_>, kind: &Kind, leaf: &ArgMatches) -> anyhow::Result<()> {
    let name = text(leaf, "name").unwrap_or_default();
    let path = format!("{}/{name}", context.path(kind));
    let sent = context.client.action(&path, "test", json!({})).await;
    tell(context, &sent.map_err(|error| context.missing(kind, &name, error))?.body)
}

/// Sends once more what was sent before.
pub async fn redeliver(context: &Context<'_>, kind: &Kind, leaf: &ArgMatches) -> anyhow::Result<()> {
    let (name, number) = (text(leaf, "name").unwrap_or_default(), text(leaf, "number").unwrap_or_default());
    let path = format!("{}/{name}/deliveries/{number}/redeliver", context.path(kind));
    tell(context, &context.client.call("POST", &path, None, None).await?.body)
}

/// The last tries.
pub async fn deliveries(context: &Context<'_>, kind: &Kind, leaf: &ArgMatches) -> anyhow::Result<()> {
    let name = text(leaf, "name").unwrap_or_default();
    let path = format!("{}/{name}/deliveries?limit=100", context.path(kind));
    let page: Value = context.client.get(&path).await.map_err(|error| context.missing(kind, &name, error))?;
    if context.format == Format::Json {
        say!("{}", serde_json::to_string_pretty(&page["items"])?);
        return Ok(());
    }
    let rows = page["items"].as_array().into_iter().flatten().map(|tried| {
        let word = |key: &str| match &tried[key] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        ["number", "at", "type", "attempt", "outcome", "status", "detail"].map(word).to_vec()
    });
    let header = ["number", "at", "type", "attempt", "outcome", "status", "detail"];
    say!("{}", output::table(&header, rows));
    Ok(())
}

fn tell(context: &Context<'_>, tried: &Value) -> anyhow::Result<()> {
    if context.format == Format::Json {
        say!("{}", serde_json::to_string_pretty(tried)?);
    }
    let (status, took) = (&tried["status"], &tried["took_ms"]);
    if tried["outcome"] != "delivered" {
        anyhow::bail!("it was not taken: {}", tried["detail"].as_str().unwrap_or("no reason was given"));
    }
    if context.format != Format::Json {
        say!(
            "taken: the receiver answered {status} in {took} ms ({})",
            tried["message"].as_str().unwrap_or_default()
        );
    }
    Ok(())
}
