//! `cargo xtask bench`: figures, each beside a floor or a peer that was taken in the same run, each against its target.
//!
//! - `figure`: one figure, as a line and as JSON. `exec`: the moment at which a program is executed.
//! - `stage`: a world to measure in. `bare`: QEMU without Rhyzome, with the very same command line.
//! - `flushes`: what reached the disk, counted.
//! - `create`: how long a user waits for an instance.
//! - `agents`: thousands of agents on one server.
//! - `inside`: benches of the control plane, in one process with it; they are `tests/benches/figures`.

mod agents;
mod bare;
mod create;
mod exec;
pub mod figure;
mod flushes;
pub mod inside;
mod stage;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

use figure::Figure;

/// Arguments of `cargo xtask bench`.
#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// From POST to QEMU and to the guest's greeting, commits on the way, memory when idle
    Create(create::Arguments),
    /// Thousands of agents on one server: memory, processor, a change for all, a server that is killed
    Agents(agents::Arguments),
    #[command(flatten)]
    Inside(inside::Inside),
}

/// What every bench does with its figures.
#[derive(Args, Clone)]
pub struct Ends {
    /// Exit with 1 when a target is missed
    #[arg(long)]
    check: bool,
    /// Write the figures here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Install nothing: refuse when packages are missing, and say which
    #[arg(long)]
    no_install: bool,
}

/// Runs it.
pub fn main(arguments: &Arguments) -> Result<()> {
    match &arguments.what {
        What::Create(wanted) => conclude(&create::run(wanted)?, &wanted.ends),
        What::Agents(wanted) => conclude(&agents::run(wanted)?, &wanted.ends),
        What::Inside(wanted) => inside::start(wanted),
    }
}

/// Shows the figures, writes them down, and fails if that was asked for.
pub fn conclude(figures: &[Figure], ends: &Ends) -> Result<()> {
    figures.iter().for_each(|figure| println!("{figure}"));
    if let Some(file) = &ends.json {
        let text = format!("{:#}\n", figure::json(figures));
        std::fs::write(file, text).with_context(|| format!("{} cannot be written", file.display()))?;
    }
    let missed: Vec<&str> =
        figures.iter().filter(|figure| figure.is_missed()).map(|figure| figure.name.as_str()).collect();
    if ends.check && !missed.is_empty() {
        bail!("missed: {}", missed.join(", "));
    }
    Ok(())
}
