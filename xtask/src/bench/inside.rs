//! Benches of the control plane, which need its library: they are a program of their own, `tests/benches/figures`, that
//! reads the same words. This builds it as programs are shipped, and becomes it.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde_json::Value;

use super::Ends;
use super::flushes::Flushes;
use crate::{packages, run};

/// The name of the program.
const PROGRAM: &str = "figures";

/// One of them.
#[derive(Subcommand, Clone)]
pub enum Inside {
    /// Who asks and what they may, when both are known already
    Auth(Arguments),
    /// GET of one object, beside a bare handler that reads the same row
    Get(Arguments),
    /// Pages of lists, in a small table and in a large one
    List(Crowded),
    /// A thousand readers of the event log, beside one
    Streams(Arguments),
    /// Durable writes on SQLite, beside what the disk can do one at a time
    Sqlite(Flushing),
    /// Acknowledged creates, beside a bare transaction that writes the same rows
    CreateRate(Crowded),
    /// Jobs through the queue, beside graphile-worker, and while a transaction is held open
    Jobs(Arguments),
    /// A quiet tenant's p99 while another asks a hundred times its share, beside its p99 alone
    Limits(Arguments),
    /// Ten thousand peers on one WireGuard device, and a tunnel beside Debian's wireguard-go
    Wireguard(Arguments),
}

/// Arguments of each of them.
#[derive(Args, Clone)]
pub struct Arguments {
    /// What to do with the figures.
    #[command(flatten)]
    pub ends: Ends,
}

/// Arguments of what waits for the disk.
#[derive(Args, Clone)]
pub struct Flushing {
    /// How long each flush takes at least: 3.64 is what a plain cloud disk needs [default: as the disk here does]
    #[arg(long, value_name = "MS", value_parser = milliseconds)]
    pub flush_ms: Option<f64>,
    /// What to do with the figures.
    #[command(flatten)]
    pub ends: Ends,
}

fn milliseconds(text: &str) -> Result<f64, String> {
    let most = 1000.0;
    let good = text.parse().ok().filter(|ms| (0.0..=most).contains(ms));
    good.ok_or_else(|| format!("a number of milliseconds, at most {most}"))
}

/// Arguments of those that look at a large table.
#[derive(Args, Clone)]
pub struct Crowded {
    /// How many instances there are in the large table
    #[arg(long, default_value_t = 1_000_000)]
    pub rows: u64,
    /// What to do with the figures.
    #[command(flatten)]
    pub ends: Ends,
}

impl Inside {
    /// What to do with the figures.
    pub fn ends(&self) -> &Ends {
        match self {
            Inside::Auth(all)
            | Inside::Get(all)
            | Inside::Streams(all)
            | Inside::Jobs(all)
            | Inside::Limits(all)
            | Inside::Wireguard(all) => &all.ends,
            Inside::Sqlite(flushing) => &flushing.ends,
            Inside::List(crowded) | Inside::CreateRate(crowded) => &crowded.ends,
        }
    }
}

/// Builds the program and becomes it, with the words that we were given.
pub fn start(wanted: &Inside) -> Result<()> {
    let sets = match wanted {
        Inside::Wireguard(_) => vec![packages::WIREGUARD, packages::TUNNELS],
        _ => vec![packages::BENCH],
    };
    packages::ensure(&sets, !wanted.ends().no_install)?;
    if matches!(wanted, Inside::Jobs(_)) {
        packages::ensure_npm(!wanted.ends().no_install)?;
    }
    let words = std::env::args_os().skip_while(|word| word != "bench").skip(1);
    let program = build()?;
    let mut command = Command::new(&program);
    if let Inside::Sqlite(Flushing { flush_ms: Some(ms), .. }) = wanted {
        command.envs(Flushes::prepare(&program.with_extension("flushes"))?.at_least(*ms));
    }
    // Only a failure comes back.
    Err(command.args(words).exec()).context("the benches cannot be started")
}

/// Where the program is, once it is built.
fn build() -> Result<PathBuf> {
    let mut cargo = run::cargo();
    cargo.args(["bench", "--quiet", "--no-run", "--package", "rhyzome-tests", "--bench", PROGRAM]);
    cargo.args(["--message-format", "json-render-diagnostics"]);
    let built =
        cargo.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("cargo cannot be run")?;
    if !built.status.success() {
        bail!("the benches do not build");
    }
    let told = String::from_utf8_lossy(&built.stdout);
    told.lines().find_map(executable).context("cargo does not say where the benches are")
}

/// The program's path, if this message of cargo's says it.
fn executable(message: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(message).ok()?;
    let path = message["executable"].as_str().filter(|_| message["target"]["name"] == PROGRAM)?;
    Some(PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_says_where_it_is() {
        let ours =
            r#"{"reason":"compiler-artifact","target":{"name":"figures"},"executable":"/t/figures-1"}"#;
        assert_eq!(executable(ours), Some(PathBuf::from("/t/figures-1")));
        for other in
            [ours.replace("figures\"", "x\""), ours.replace("\"/t/figures-1\"", "null"), String::new()]
        {
            assert_eq!(executable(&other), None, "{other}");
        }
    }
}
