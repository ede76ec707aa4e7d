//! `rhyzome node invite`, `rhyzome node revoke`.

use anyhow::Context as _;
use clap::ArgMatches;
use rhyzome_client::Kind;
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

/// Takes from it all with which it could call or come back, and says how it comes back all the same.
pub async fn revoke(context: &Context<'_>, kind: &Kind, leaf: &ArgMatches) -> anyhow::Result<()> {
    let name = text(leaf, "name").ok_or_else(|| Usage("say its name".into()))?;
    let path = format!("{}/{name}", context.path(kind));
    let answer = context.client.action(&path, "revoke", json!({})).await;
    let answer = answer.map_err(|error| context.missing(kind, &name, error))?.body;
    match context.format {
        Format::Json => say!("{}", serde_json::to_string_pretty(&answer)?),
        Format::Name => say!("{}", answer["name"].as_str().unwrap_or_default()),
        Format::Table => {
            say!(
                "revoked: node {name}; certificates refused from now on: {}, invitations: {}",
                answer["certificates"],
                answer["invitations"]
            );
            say!("  to bring it back: {}", answer["way_back"].as_str().unwrap_or_default());
        }
    }
    Ok(())
}
