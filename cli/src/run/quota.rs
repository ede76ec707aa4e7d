//! `rhyzome tenant quota`.

use clap::ArgMatches;
use serde_json::Value;

use super::{Context, text};
use crate::output::{self, Format};

/// Used and limit of every quantity.
pub async fn quota(context: &Context<'_>, leaf: &ArgMatches) -> anyhow::Result<()> {
    let tenant = text(leaf, "name").unwrap_or_else(|| context.tenant.clone());
    let answer: Value = context.client.get(&format!("/v1/tenants/{tenant}/quota")).await?;
    if context.format == Format::Json {
        say!("{}", serde_json::to_string_pretty(&answer)?);
        return Ok(());
    }
    let rows = answer["quota"].as_object().into_iter().flatten().map(|(quantity, usage)| {
        let limit = match &usage["limit"] {
            Value::Null => "none".to_owned(),
            limit => limit.to_string(),
        };
        let whose = if usage["own"] == true { "its own" } else { "default" };
        vec![quantity.clone(), usage["used"].to_string(), limit, whose.to_owned()]
    });
    say!("{}", output::table(&["quantity", "used", "limit", "from"], rows));
    Ok(())
}
