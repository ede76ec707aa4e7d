//! The benches of `cargo xtask bench` that need the control plane's own library.
//!
//! - `served`: the API on a port. `clients`: many of them, who keep every time. `fill`: how rows get there.
//! - `counts`: what PostgreSQL was asked to do. `indexes`: how high they are, and how often passed. `disk`: how fast the disk is by itself.
//! - `auth`: who asks. `get`: one object. `list`: pages. `streams`: readers of the event log. `sqlite`: writes; `keys` are what they make.
//! - `create_rate`: instances. `jobs`: the queue. `limits`: one tenant's flood, and another. `wireguard`: peers and tunnels.

mod auth;
mod clients;
mod counts;
mod create_rate;
mod disk;
mod fill;
mod get;
mod indexes;
mod jobs;
mod keys;
mod limits;
mod list;
mod served;
mod sqlite;
mod streams;
mod wireguard;

use std::process::ExitCode;
use std::sync::Mutex;

use anyhow::{Context, Result};
use clap::Parser;
use xtask::bench::conclude;
use xtask::bench::inside::Inside;

/// Benches of the control plane; `cargo xtask bench` builds and runs them.
#[derive(Parser)]
#[command(name = "figures", bin_name = "cargo xtask bench")]
struct Cli {
    #[command(subcommand)]
    what: Inside,
    /// What `cargo bench` says to every bench
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let done = wireguard::as_device().unwrap_or_else(|| run(&Cli::parse().what));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(what: &Inside) -> Result<()> {
    log_as_a_server()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let figures = runtime.block_on(async {
        match what {
            Inside::Auth(_) => auth::run().await,
            Inside::Get(_) => get::run().await,
            Inside::List(crowded) => list::run(crowded.rows).await,
            Inside::Streams(_) => streams::run().await,
            Inside::Sqlite(_) => sqlite::run().await,
            Inside::CreateRate(crowded) => create_rate::run(crowded.rows).await,
            Inside::Jobs(_) => jobs::run().await,
            Inside::Limits(_) => limits::run().await,
            Inside::Wireguard(_) => wireguard::run(),
        }
    })?;
    // Whoever still works for a server that has been stopped is not waited for.
    runtime.shutdown_background();
    conclude(&figures, what.ends())
}

/// What a server logs costs it time: so it is written, to where nobody reads it.
fn log_as_a_server() -> Result<()> {
    let file = tempfile::tempfile().context("a temporary file")?;
    tracing_subscriber::fmt()
        .with_env_filter("info")
        .with_writer(Mutex::new(file))
        .with_ansi(false)
        .try_init()
        .map_err(|error| anyhow::anyhow!("the log cannot be written: {error}"))
}
