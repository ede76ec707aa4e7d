//! `cargo xtask tokens`: hostile tokens against the code that verifies them, from a seed.

use anyhow::Result;
use clap::Args;

use crate::run;

/// Arguments of `cargo xtask tokens`.
#[derive(Args)]
pub struct Arguments {
    /// How many
    #[arg(long, default_value_t = 1_000_000)]
    count: u64,
    /// All follows from it
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The number of the first one
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Unoptimised, as the other tests are: no time is spent on building it
    #[arg(long)]
    debug: bool,
}

/// Runs the command.
pub fn main(arguments: &Arguments) -> Result<()> {
    let mut command = run::cargo();
    command.args(["run", "--quiet", "--package", "rhyzome-tests", "--example", "tokens"]);
    if !arguments.debug {
        command.arg("--release");
    }
    let numbers = [("--count", arguments.count), ("--seed", arguments.seed), ("--first", arguments.first)];
    command
        .arg("--")
        .args(numbers.iter().flat_map(|(name, number)| [(*name).to_owned(), number.to_string()]));
    run::shown(&mut command)
}
