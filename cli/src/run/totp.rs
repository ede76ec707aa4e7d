//! `rhyzome totp`.

use anyhow::Context as _;
use clap::ArgMatches;
use qrcode::render::unicode::Dense1x2;
use qrcode::{EcLevel, QrCode};
use serde_json::{Value, json};

use super::{Context, Usage, text};
use crate::output::{self, Format};

const PATH: &str = "/v1/second-factor";

/// Runs one of its verbs.
pub async fn run(context: &Context<'_>, verb: &str, leaf: &ArgMatches) -> anyhow::Result<()> {
    match verb {
        "enrol" => enrol(context).await,
        "confirm" => confirm(context, leaf).await,
        "show" => show(context).await,
        "drop" => {
            context.client.delete(PATH).await?;
            say!("a password is enough again");
            Ok(())
        }
        "reset" => {
            let name = text(leaf, "name").unwrap_or_default();
            context.client.delete(&format!("/v1/users/{name}/second-factor")).await?;
            say!("{name} gets in by the password alone, until they enrol again");
            Ok(())
        }
        _ => Err(Usage("say what to do; --help helps".into()).into()),
    }
}

async fn enrol(context: &Context<'_>) -> anyhow::Result<()> {
    let answer = context.client.call("POST", PATH, None, None).await?.body;
    if context.format == Format::Json {
        say!("{}", serde_json::to_string_pretty(&answer)?);
        return Ok(());
    }
    let uri = answer["uri"].as_str().context("the server's answer has no `uri`")?;
    let code = QrCode::with_error_correction_level(uri.as_bytes(), EcLevel::L)?;
    say!("{}", code.render::<Dense1x2>().quiet_zone(true).build());
    say!("{uri}");
    say!("Show this to your app. It is not shown again.");
    say!("`rhyzome totp confirm CODE`, with the code that the app shows then, makes it count.");
    Ok(())
}

async fn confirm(context: &Context<'_>, leaf: &ArgMatches) -> anyhow::Result<()> {
    let body = json!({ "code": text(leaf, "code") });
    let body = Some(("application/json", body));
    let answer = context.client.call("POST", &format!("{PATH}/confirm"), body, None).await?.body;
    if context.format == Format::Json {
        say!("{}", serde_json::to_string_pretty(&answer)?);
        return Ok(());
    }
    say!(
        "From now on a code is needed with the password. These are for when the app is gone, each for once:"
    );
    for code in answer["recovery_codes"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        say!("  {code}");
    }
    say!("They are not shown again: keep them where the phone is not.");
    Ok(())
}

async fn show(context: &Context<'_>) -> anyhow::Result<()> {
    let state: Value = context.client.get(PATH).await?;
    if context.format == Format::Json {
        say!("{}", serde_json::to_string_pretty(&state)?);
        return Ok(());
    }
    let word = |key: &str| match &state[key] {
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let keys = ["enrolled", "required", "confirmed_at", "recovery_codes"];
    say!(
        "{}",
        output::table(&["enrolled", "required", "since", "recovery codes"], [keys.map(word).to_vec()])
    );
    Ok(())
}
