//! `rhyzome api` and `rhyzome whoami`.

use clap::ArgMatches;
use serde_json::Value;

use super::{Context, Usage, text};
use crate::fields;
use crate::output::{self, Format};

/// Any call.
pub async fn raw(context: &Context<'_>, leaf: &ArgMatches) -> anyhow::Result<()> {
    let method = text(leaf, "method").unwrap_or_default().to_uppercase();
    let path = text(leaf, "path").unwrap_or_default();
    let body = match text(leaf, "body") {
        None => None,
        Some(text) => {
            let text = fields::text_or_file(&text).map_err(Usage)?;
            let body: Value =
                serde_json::from_str(&text).map_err(|e| Usage(format!("the body is no JSON: {e}")))?;
            let media = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
            Some((media, body))
        }
    };
    let answer = context.client.call(&method, &path, body, None).await?;
    match &answer.body {
        Value::Null => say!("{}", answer.status),
        Value::String(text) => say!("{text}"),
        body => say!("{}", serde_json::to_string_pretty(body)?),
    }
    Ok(())
}

/// Who I am.
pub async fn whoami(context: &Context<'_>) -> anyhow::Result<()> {
    let answer: Value = context.client.get("/v1/whoami").await?;
    match context.format {
        Format::Table => say!("{}\nserver: {}", output::lines(&answer), context.client.url()),
        _ => say!("{}", serde_json::to_string_pretty(&answer)?),
    }
    Ok(())
}
