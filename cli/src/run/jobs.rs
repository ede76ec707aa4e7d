//! `rhyzome job`.

use clap::ArgMatches;
use rhyzome_client::Job;

use super::{Context, Usage, switch, text, timeout};
use crate::output::{self, Format};
use crate::wait::{self, job_path};

/// Runs one of its verbs.
pub async fn run(context: &Context<'_>, verb: &str, leaf: &ArgMatches) -> anyhow::Result<()> {
    let tenant = if context.global { "" } else { context.tenant.as_str() };
    if verb == "list" {
        return list(context, tenant, leaf).await;
    }
    let id = text(leaf, "id").ok_or_else(|| Usage("say which job".into()))?;
    let path = job_path(tenant, &id);
    if verb == "log" {
        let media = if context.format == Format::Json { "application/x-ndjson" } else { "text/plain" };
        context.client.lines(&format!("{path}/log"), media, |line| say!("{line}")).await?;
        return Ok(());
    }
    let job: Job = match verb {
        "show" => context.client.get(&path).await?,
        "wait" => wait::wait(&context.client, tenant, &id, "job", timeout(leaf)).await?,
        verb => {
            let answer = context.client.call("POST", &format!("{path}/{verb}"), None, None).await?;
            let job: Job = serde_json::from_value(answer.body)?;
            match switch(leaf, "wait") {
                true => wait::wait(&context.client, tenant, &job.id, &job.verb, timeout(leaf)).await?,
                false => job,
            }
        }
    };
    match context.format {
        Format::Json => say!("{}", serde_json::to_string_pretty(&job)?),
        Format::Name => say!("{}", job.id),
        Format::Table => say!("{}", output::job(&job)),
    }
    Ok(())
}

async fn list(context: &Context<'_>, tenant: &str, leaf: &ArgMatches) -> anyhow::Result<()> {
    let mut query: Vec<(String, String)> = ["resource", "state"]
        .into_iter()
        .filter_map(|key| text(leaf, key).map(|value| (key.to_owned(), value)))
        .collect();
    if switch(leaf, "dead") {
        query.push(("dead".to_owned(), "true".to_owned()));
    }
    let path = job_path(tenant, "");
    let most = leaf.get_one::<usize>("limit").copied();
    let list: Vec<Job> = context.client.list(path.trim_end_matches('/'), &query, most).await?;
    match context.format {
        Format::Json => say!("{}", serde_json::to_string_pretty(&list)?),
        Format::Name => list.iter().for_each(|job| say!("{}", job.id)),
        Format::Table => say!("{}", output::jobs(&list, context.now)),
    }
    Ok(())
}
