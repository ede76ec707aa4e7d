//! `cargo xtask sim`: simulations of the control plane, from seeds.

use anyhow::Result;
use clap::Args;

use crate::run;

/// Arguments of `cargo xtask sim`.
#[derive(Args)]
pub struct Arguments {
    /// How many
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed; the others follow it
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// How many things happen in each
    #[arg(long, default_value_t = 300)]
    steps: u32,
    /// On which database
    #[arg(long, default_value = "sqlite", value_parser = ["sqlite", "postgres"])]
    database: String,
}

/// Runs the command.
pub fn main(arguments: &Arguments) -> Result<()> {
    let mut command = run::cargo();
    command.args(["run", "--quiet", "--package", "rhyzome-tests", "--example", "sim", "--"]);
    command.args(["--seeds", &arguments.seeds.to_string(), "--first", &arguments.first.to_string()]);
    command.args(["--steps", &arguments.steps.to_string(), "--database", &arguments.database]);
    run::shown(&mut command)
}
