//! `rhyzome node invite`.

use anyhow::Context as _;
use clap::ArgMatches;
use serde_json::{Value, json};

use super::{Context, Usage, text};
use crate::output::Format;

/// Makes the node if it is not there, and prints the line that its machine is to run.
pub async fn invite(context: &Context<'_>, leaf: &ArgMatches) -> anyhow::Result<()> {
    let name = text(leaf, "name").ok_or_else(|| Usage("say its name".into()))?;
    let path = format!("/v1/nodes/{name}");
    match context.client.get::<Value>(&path).await {
        Err(error) if error.is_not_found() => {
            context.client.create("/v1/nodes", json!({"name": name, "spec": {}})).await?;
        }
        found => {
            found?;
        }
    }
    let answer = context.client.action(&path, "invite", json!({})).await?.body;
    match context.format {
        Format::Json => say!("{}", serde_json::to_string_pretty(&answer)?),
        _ => say!("{}", answer["command"].as_str().context("the answer to the invitation has no `command`")?),
    }
    if let (Format::Table, Some(expires)) = (context.format, answer["expires_at"].as_str()) {
        eprintln!("run this line on {name}; it is good once, until {expires}");
    }
    Ok(())
}
