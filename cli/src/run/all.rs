//! The same on all that a filter matches.

use clap::ArgMatches;
use rhyzome_client::{Outcome, Problem};
use serde_json::Value;

use super::{Context, Usage, switch, text, texts, timeout};
use crate::command::FILTERS;
use crate::output::{self, Format};
use crate::wait;

/// The query that the filters of a command line say; empty if there are none.
pub fn query(leaf: &ArgMatches) -> Result<Vec<(String, String)>, Usage> {
    let mut query = Vec::new();
    for filter in FILTERS {
        match filter {
            "tag" | "metadata" => {
                for label in texts(leaf, filter) {
                    let (key, value) = label
                        .split_once('=')
                        .ok_or_else(|| Usage(format!("--{filter} {label}: must be KEY=VALUE")))?;
                    query.push((format!("{filter}.{key}"), value.to_owned()));
                }
            }
            _ => query.extend(text(leaf, filter).map(|value| (filter.replace('-', "_"), value))),
        }
    }
    Ok(query)
}

/// Calls, waits if that is wanted, and tells what became of each.
pub async fn all(
    context: &Context<'_>,
    method: &str,
    path: &str,
    query: &[(String, String)],
    body: Option<Value>,
    leaf: &ArgMatches,
) -> anyhow::Result<()> {
    let body = body.map(|body| ("application/json", body));
    let mut all = context.client.on_all(method, path, query, body).await?;
    if switch(leaf, "wait") {
        let tenant = if path.starts_with("/v1/tenants/") { context.tenant.as_str() } else { "" };
        for one in &mut all {
            let Some(job) = one.job.clone().filter(|_| one.problem.is_none()) else { continue };
            if let Err(error) = wait::wait(&context.client, tenant, &job, &one.name, timeout(leaf)).await {
                one.problem = Some(
                    serde_json::json!({ "title": "the job did not succeed", "detail": error.to_string() }),
                );
            }
        }
    }
    match context.format {
        Format::Json => say!("{}", serde_json::to_string_pretty(&all)?),
        Format::Name => all.iter().for_each(|one| say!("{}", one.name)),
        Format::Table => say!("{}", output::table(&["name", "outcome", "job"], all.iter().map(row))),
    }
    match all.iter().filter(|one| one.problem.is_some()).count() {
        0 => Ok(()),
        failed => Err(anyhow::anyhow!("{failed} of {} failed", all.len())),
    }
}

fn row(one: &Outcome) -> Vec<String> {
    let outcome = match &one.problem {
        Some(problem) => match serde_json::from_value::<Problem>(problem.clone()) {
            Ok(problem) => problem.to_string(),
            Err(_) => problem.to_string(),
        },
        None if one.status == Some(202) => "at work".to_owned(),
        None => "done".to_owned(),
    };
    vec![one.name.clone(), outcome, one.job.clone().unwrap_or_default()]
}

#[cfg(test)]
mod tests {
    use rhyzome_client::Kinds;

    use super::*;
    use crate::command::command;

    fn asked(line: &str) -> Option<Vec<(String, String)>> {
        let matches = command(&Kinds::known()).try_get_matches_from(line.split(' ')).ok()?;
        let (_, rest) = matches.subcommand()?;
        let (_, leaf) = rest.subcommand()?;
        query(leaf).ok()
    }

    #[test]
    fn a_verb_is_for_names_or_for_all_that_match() {
        assert_eq!(asked("rhyzome instance stop web db"), Some(Vec::new()));
        let wanted = [("tag.env", "prod"), ("name_prefix", "a")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(asked("rhyzome instance stop --tag env=prod --name-prefix a"), Some(wanted.into()));
        assert_eq!(
            asked("rhyzome disk delete --tag env=prod"),
            Some(vec![("tag.env".into(), "prod".into())])
        );
        assert_eq!(asked("rhyzome instance stop"), None, "neither a name nor a filter");
        assert_eq!(asked("rhyzome instance stop web --tag env=prod"), None, "both");
        assert_eq!(asked("rhyzome instance stop --tag env"), None, "no value");
    }
}
