//! The verbs that every kind has, and its actions.

use clap::ArgMatches;
use rhyzome_client::{Kind, Resource};
use serde_json::{Value, json};

use super::{Context, Usage, all, body, switch, text, texts, timeout};
use crate::output::{self, Format};
use crate::wait;

/// Runs one of them.
pub async fn run(context: &Context<'_>, kind: &Kind, verb: &str, leaf: &ArgMatches) -> anyhow::Result<()> {
    let path = context.path(kind);
    match verb {
        "list" => list(context, kind, &path, leaf).await,
        "show" => context.print(&get(context, kind, &path, &name(leaf)?).await?),
        "create" => {
            let made = context.client.create(&path, body::create(context.kinds, kind, leaf)?).await?;
            context.settle(made, &path, "create", leaf).await
        }
        "edit" => {
            let patch = body::edit(context.kinds, kind, leaf)?;
            let name = name(leaf)?;
            let changed = context.client.patch(&format!("{path}/{name}"), patch, None).await;
            context.settle(changed.map_err(|e| context.missing(kind, &name, e))?, &path, "edit", leaf).await
        }
        "delete" if !all::query(leaf)?.is_empty() => {
            all::all(context, "DELETE", &path, &all::query(leaf)?, None, leaf).await
        }
        "delete" => each(leaf, async |name| delete(context, kind, &path, &name, leaf).await).await,
        "revisions" => revisions(context, &format!("{path}/{}", name(leaf)?)).await,
        "restore" => {
            let name = name(leaf)?;
            let version = leaf.get_one::<i64>("version").copied().unwrap_or_default();
            let restored = context.client.restore(&format!("{path}/{name}"), version).await;
            context.settle(restored?, &path, "restore", leaf).await
        }
        "access" => access(context, &format!("{path}/{}/access", name(leaf)?)).await,
        "rendered" => rendered(context, &format!("{path}/{}/rendered", name(leaf)?)).await,
        verb if !all::query(leaf)?.is_empty() => {
            let path = format!("{path}/actions/{verb}");
            all::all(context, "POST", &path, &all::query(leaf)?, Some(call(kind, verb, leaf)), leaf).await
        }
        verb => each(leaf, async |name| act(context, kind, &path, &name, verb, leaf).await).await,
    }
}

fn name(leaf: &ArgMatches) -> Result<String, Usage> {
    text(leaf, "name").ok_or_else(|| Usage("say its name".into()))
}

/// All names in turn; the first failure does not keep the others from being tried.
async fn each(leaf: &ArgMatches, one: impl AsyncFn(String) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let names = texts(leaf, "name");
    let alone = names.len() == 1;
    let mut failed = 0;
    for name in names {
        match one(name.clone()).await {
            Err(error) if alone => return Err(error),
            Err(error) => {
                eprintln!("rhyzome: {name}: {error:#}");
                failed += 1;
            }
            Ok(()) => {}
        }
    }
    if failed > 0 { Err(anyhow::anyhow!("{failed} of them failed")) } else { Ok(()) }
}

async fn list(context: &Context<'_>, kind: &Kind, path: &str, leaf: &ArgMatches) -> anyhow::Result<()> {
    let everywhere = switch(leaf, "all-tenants");
    // A tenant's list of these has those that are there for all in it.
    let mixed = everywhere || (kind.of_tenants && kind.of_operators && !context.global);
    let path = if everywhere { format!("/v1/{}", kind.plural) } else { path.to_owned() };
    let mut query = all::query(leaf)?;
    if switch(leaf, "by-name") {
        query.push(("order".into(), "name".into()));
    }
    let most = leaf.get_one::<usize>("limit").copied();
    let list: Vec<Resource> = context.client.list(&path, &query, most).await?;
    match context.format {
        Format::Json => say!("{}", serde_json::to_string_pretty(&list)?),
        Format::Name => list.iter().for_each(|resource| say!("{}", resource.name)),
        Format::Table => say!("{}", output::resources(&list, mixed, context.now)),
    }
    Ok(())
}

async fn get(context: &Context<'_>, kind: &Kind, path: &str, name: &str) -> anyhow::Result<Resource> {
    context.client.get(&format!("{path}/{name}")).await.map_err(|e| context.missing(kind, name, e))
}

async fn delete(
    context: &Context<'_>,
    kind: &Kind,
    path: &str,
    name: &str,
    leaf: &ArgMatches,
) -> anyhow::Result<()> {
    let more = [("cascade", "cascade=true"), ("delete-realm", "realm=delete")];
    let more: Vec<&str> =
        more.iter().filter(|(word, _)| switch(leaf, word)).map(|(_, query)| *query).collect();
    let query = if more.is_empty() { String::new() } else { format!("?{}", more.join("&")) };
    let answer = context.client.delete(&format!("{path}/{name}{query}")).await;
    let answer = answer.map_err(|e| context.missing(kind, name, e))?;
    let job = answer.body["job"].as_str().map(str::to_owned);
    let tenant = answer.body["tenant"].as_str().unwrap_or_default().to_owned();
    match (&job, switch(leaf, "wait")) {
        (Some(job), true) => {
            wait::wait(&context.client, &tenant, job, &format!("delete {name}"), timeout(leaf)).await?;
        }
        (Some(job), false) if context.format == Format::Table => {
            say!("{} {name} is being deleted (job {job})", kind.kind);
            return Ok(());
        }
        _ => {}
    }
    match context.format {
        Format::Json => say!("{}", serde_json::to_string_pretty(&answer.body)?),
        Format::Name => say!("{name}"),
        Format::Table => say!("{} {name} is gone", kind.kind),
    }
    Ok(())
}

async fn act(
    context: &Context<'_>,
    kind: &Kind,
    path: &str,
    name: &str,
    verb: &str,
    leaf: &ArgMatches,
) -> anyhow::Result<()> {
    let acted = context.client.act(&format!("{path}/{name}"), verb, call(kind, verb, leaf)).await;
    context.settle(acted.map_err(|e| context.missing(kind, name, e))?, path, verb, leaf).await
}

/// The body of an action.
fn call(kind: &Kind, verb: &str, leaf: &ArgMatches) -> Value {
    let mut call = json!({});
    if switch(leaf, "hard") {
        call["mode"] = "hard".into();
    }
    if let Some(deadline) = leaf.get_one::<u64>("deadline") {
        call["deadline_seconds"] = (*deadline).into();
    }
    if switch(leaf, "supersede") {
        call["supersede"] = true.into();
    }
    for choice in kind.actions.iter().filter(|action| action.verb == verb).flat_map(|action| &action.choices)
    {
        call[&choice.field] = text(leaf, &choice.field).into();
    }
    call
}

async fn revisions(context: &Context<'_>, path: &str) -> anyhow::Result<()> {
    let list: Vec<Value> = context.client.list(&format!("{path}/revisions"), &[], None).await?;
    if context.format == Format::Json {
        say!("{}", serde_json::to_string_pretty(&list)?);
        return Ok(());
    }
    let rows = list.iter().map(|revision| {
        let text = |key: &str| match &revision[key] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        vec![text("version"), text("at"), text("actor"), text("name"), text("spec")]
    });
    say!("{}", output::table(&["version", "at", "by", "name", "spec"], rows));
    Ok(())
}

async fn access(context: &Context<'_>, path: &str) -> anyhow::Result<()> {
    let answer: Value = context.client.get(path).await?;
    if context.format == Format::Json {
        say!("{}", serde_json::to_string_pretty(&answer)?);
        return Ok(());
    }
    let rows = answer["items"].as_array().into_iter().flatten().map(|item| {
        let text = |key: &str| item[key].as_str().unwrap_or_default().to_owned();
        let may: Vec<&str> = item["may"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        vec![text("who"), may.join(" "), text("why")]
    });
    say!("{}", output::table(&["who", "may", "why"], rows));
    Ok(())
}

async fn rendered(context: &Context<'_>, path: &str) -> anyhow::Result<()> {
    let answer: Value = context.client.get(path).await?;
    if context.format == Format::Json {
        say!("{}", serde_json::to_string_pretty(&answer)?);
        return Ok(());
    }
    for (node, files) in answer["nodes"].as_object().into_iter().flatten() {
        for (file, content) in files.as_object().into_iter().flatten() {
            say!("# {node}: {file}\n{}", content.as_str().unwrap_or_default().trim_end());
        }
    }
    Ok(())
}
