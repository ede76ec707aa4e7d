//! `rhyzome node invite`, `revoke`, `guests`, `drift`, `repair` and `forget`.

use anyhow::Context as _;
use clap::ArgMatches;
use futures_util::StreamExt as _;
use rhyzome_client::Kind;
use serde_json::{Value, json};

use super::{Context, Usage, text};
use crate::output::{self, Format};

/// Nodes that are invited side by side.
const AT_ONCE: usize = 32;

/// Makes the node if it is not there, and prints the line that its machine is to run; of many nodes a line each.
pub async fn invite(context: &Context<'_>, leaf: &ArgMatches) -> anyhow::Result<()> {
    let name = text(leaf, "name").ok_or_else(|| Usage("say its name".into()))?;
    let Some(count) = leaf.get_one::<u32>("count") else {
        let answer = one(context, &name).await?;
        print(context, &answer)?;
        if let (Format::Table, Some(expires)) = (context.format, answer["expires_at"].as_str()) {
            eprintln!("run this line on {name}; it is good once, until {expires}");
        }
        return Ok(());
    };
    let names = (1..=*count).map(|number| format!("{name}-{number}"));
    let inviting = names.map(|name| async move { one(context, &name).await });
    let mut inviting = futures_util::stream::iter(inviting).buffered(AT_ONCE);
    while let Some(answer) = inviting.next().await {
        print(context, &answer?)?;
    }
    if context.format == Format::Table {
        eprintln!("each line is good once; `rhyzome-agent simulate --invitations FILE` takes all of them");
    }
    Ok(())
}

async fn one(context: &Context<'_>, name: &str) -> anyhow::Result<Value> {
    let path = format!("/v1/nodes/{name}");
    match context.client.get::<Value>(&path).await {
        Err(error) if error.is_not_found() => {
            context.client.create("/v1/nodes", json!({"name": name, "spec": {}})).await?;
        }
        found => {
            found?;
        }
    }
    Ok(context.client.action(&path, "invite", json!({})).await?.body)
}

fn print(context: &Context<'_>, answer: &Value) -> anyhow::Result<()> {
    match context.format {
        Format::Json => say!("{}", serde_json::to_string_pretty(answer)?),
        _ => say!("{}", answer["command"].as_str().context("the answer to the invitation has no `command`")?),
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

/// Everything that runs on it.
pub async fn guests(context: &Context<'_>, leaf: &ArgMatches) -> anyhow::Result<()> {
    let name = text(leaf, "name").unwrap_or_default();
    let path = format!("/v1/nodes/{name}/guests");
    let columns = ["id", "state", "name", "pid", "vcpus", "memory_bytes", "since", "disks"];
    table(context, &name, &path, &columns, "nothing runs there").await
}

/// Where it is not as it was ordered; or a decision on that.
pub async fn drift(context: &Context<'_>, leaf: &ArgMatches) -> anyhow::Result<()> {
    let Some((verb, leaf)) = leaf.subcommand() else {
        let name = text(leaf, "name").unwrap_or_default();
        let path = format!("/v1/nodes/{name}/drift");
        let columns =
            ["id", "what", "object", "expected", "found", "since", "repaired_at", "actions", "decision"];
        return table(context, &name, &path, &columns, "it is as it was ordered").await;
    };
    let (name, difference) =
        (text(leaf, "name").unwrap_or_default(), text(leaf, "difference").unwrap_or_default());
    let mut body = json!({});
    for (flag, field) in [("of", "tenant"), ("as", "name")] {
        if let Some(value) = text(leaf, flag) {
            body[field] = json!(value);
        }
    }
    let path = format!("/v1/nodes/{name}/drift/{difference}");
    let answer = context.client.action(&path, verb, body).await?.body;
    if context.format == Format::Json {
        say!("{}", serde_json::to_string_pretty(&answer)?);
        return Ok(());
    }
    let what = answer["difference"]["what"].as_str().unwrap_or_default();
    say!("{verb}: {difference} ({what})");
    if let Some(id) = answer["instance"]["id"].as_str() {
        let instance = |key: &str| answer["instance"][key].as_str().unwrap_or_default();
        say!(
            "  instance {} of tenant {} ({id}); its guest was not touched",
            instance("name"),
            instance("tenant")
        );
    }
    Ok(())
}

/// Which machine it is, and who was refused.
pub async fn settle(context: &Context<'_>, verb: &str, leaf: &ArgMatches) -> anyhow::Result<()> {
    let name = text(leaf, "name").unwrap_or_default();
    let body = text(leaf, "machine").map_or_else(|| json!({}), |machine| json!({"machine": machine}));
    let node = context.client.action(&format!("/v1/nodes/{name}"), verb, body).await?.body;
    match context.format {
        Format::Json => say!("{}", serde_json::to_string_pretty(&node)?),
        _ => {
            let machine = node["status"]["machine"].as_str().unwrap_or("not known yet");
            say!("node {name} is the machine {machine}; nobody is refused any more");
        }
    }
    Ok(())
}

async fn table(
    context: &Context<'_>,
    name: &str,
    path: &str,
    columns: &[&str],
    nothing: &str,
) -> anyhow::Result<()> {
    let found: Value = context.client.get(path).await.map_err(|error| match context.kinds.get("node") {
        Some(kind) => context.missing(kind, name, error),
        None => error.into(),
    })?;
    let items = found["items"].as_array().cloned().unwrap_or_default();
    match context.format {
        Format::Json => say!("{}", serde_json::to_string_pretty(&items)?),
        Format::Name => items.iter().for_each(|item| say!("{}", item["id"].as_str().unwrap_or_default())),
        Format::Table if items.is_empty() => say!("{nothing}"),
        Format::Table => {
            let rows = items.iter().map(|item| columns.iter().map(|column| cell(&item[*column])).collect());
            say!("{}", output::table(columns, rows));
        }
    }
    Ok(())
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().map(cell).collect::<Vec<_>>().join(", "),
        // A decision.
        Value::Object(map) => format!("{} by {}", cell(&map["verb"]), cell(&map["by"])),
        other => other.to_string(),
    }
}
