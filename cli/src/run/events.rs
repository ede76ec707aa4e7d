//! `rhyzome events` and `rhyzome audit`.

use std::time::Duration;

use clap::ArgMatches;
use jiff::{Timestamp, ToSpan as _};
use rhyzome_client::{Error, Event};

use super::{Context, Usage, switch, text};
use crate::output::{self, Format};
use crate::units;

/// How many events are shown when nobody says since when.
const USUAL: &str = "-50";

/// What happened; with `--follow` what happens.
pub async fn events(context: &Context<'_>, leaf: &ArgMatches) -> anyhow::Result<()> {
    let follow = switch(leaf, "follow");
    let mut query = pairs(leaf, &["kind", "resource", "class"]);
    query.push(("follow".to_owned(), follow.to_string()));
    let since = match text(leaf, "since") {
        None => (!follow).then(|| USUAL.to_owned()),
        Some(since) if since.parse::<i64>().is_ok() => Some(since),
        Some(since) => Some(moment(&since, context.now)?),
    };
    query.extend(since.map(|since| ("since".to_owned(), since)));
    let path = path(context, "events");
    let mut last = None;
    loop {
        let mut stream = match context.client.events(&path, &query, last).await {
            Ok(stream) => stream,
            Err(error @ Error::Unreachable { .. }) if last.is_some() => {
                again(&error).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let broken = loop {
            match stream.next().await {
                Ok(Some(event)) => print(context, &event)?,
                Ok(None) => break None,
                Err(error @ Error::Unreachable { .. }) => break Some(error),
                Err(error) => return Err(error.into()),
            }
        };
        last = stream.last().or(last);
        match (broken, follow) {
            (None, false) => return Ok(()),
            (Some(error), false) => return Err(error.into()),
            // Goes on behind the last number: nothing is missed, nothing comes twice.
            (broken, true) => match broken {
                Some(error) => again(&error).await,
                None => tokio::time::sleep(Duration::from_secs(1)).await,
            },
        }
    }
}

async fn again(error: &Error) {
    eprintln!("rhyzome: {error}; trying again");
    tokio::time::sleep(Duration::from_secs(1)).await;
}

fn print(context: &Context<'_>, event: &Event) -> anyhow::Result<()> {
    match context.format {
        Format::Json => say!("{}", serde_json::to_string(event)?),
        Format::Name => say!("{}", event.seq),
        Format::Table => say!("{}", output::event(event, context.global)),
    }
    Ok(())
}

/// Who did what, and who was denied what.
pub async fn audit(context: &Context<'_>, leaf: &ArgMatches) -> anyhow::Result<()> {
    let mut query = pairs(leaf, &["actor", "resource", "kind", "verb", "outcome"]);
    for key in ["since", "until"] {
        if let Some(time) = text(leaf, key) {
            query.push((key.to_owned(), moment(&time, context.now)?));
        }
    }
    let most = leaf.get_one::<usize>("limit").copied();
    let list: Vec<Event> = context.client.list(&path(context, "audit"), &query, most).await?;
    match context.format {
        Format::Json => say!("{}", serde_json::to_string_pretty(&list)?),
        Format::Name => list.iter().for_each(|event| say!("{}", event.seq)),
        Format::Table => say!("{}", output::audit(&list, context.global)),
    }
    Ok(())
}

fn path(context: &Context<'_>, what: &str) -> String {
    if context.global { format!("/v1/{what}") } else { format!("/v1/tenants/{}/{what}", context.tenant) }
}

fn pairs(leaf: &ArgMatches, keys: &[&str]) -> Vec<(String, String)> {
    keys.iter().filter_map(|key| text(leaf, key).map(|value| ((*key).to_owned(), value))).collect()
}

/// A time, or how long ago it was.
fn moment(said: &str, now: Timestamp) -> Result<String, Usage> {
    if let Ok(time) = said.parse::<Timestamp>() {
        return Ok(time.to_string());
    }
    let refuse = || Usage(format!("`{said}` is no time: write 10m, 2h, 1d, or 2026-11-21T08:00:00Z"));
    let seconds =
        units::seconds(said).ok().and_then(|seconds| i64::try_from(seconds).ok()).ok_or_else(refuse)?;
    now.checked_sub(seconds.seconds()).map(|time| time.to_string()).map_err(|_| refuse())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_times_or_ages() {
        let now: Timestamp = "2026-11-21T08:00:00Z".parse().unwrap();
        assert_eq!(moment("10m", now).unwrap(), "2026-11-21T07:50:00Z");
        assert_eq!(moment("2026-11-20T08:00:00Z", now).unwrap(), "2026-11-20T08:00:00Z");
        assert!(moment("yesterday", now).is_err());
    }
}
