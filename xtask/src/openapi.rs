//! `cargo xtask openapi`: the locked document is what the server serves; a change is a visible diff.

use std::fs;

use anyhow::{Result, bail};
use clap::Args;

use crate::{repository, run};

/// Arguments of `cargo xtask openapi`.
#[derive(Args)]
pub struct Arguments {
    /// Write what is served over what is locked
    #[arg(long)]
    accept: bool,
}

/// Runs the command.
pub fn main(arguments: &Arguments) -> Result<()> {
    regenerate(arguments.accept)
}

/// Writes what is served over what is locked.
pub fn accept() -> Result<()> {
    regenerate(true)
}

fn regenerate(accept: bool) -> Result<()> {
    let mut command = run::cargo();
    command.args(["run", "--quiet", "--package", "rhyzome-api", "--", "openapi"]);
    let served = run::output(&mut command)?;
    let file = repository().join("openapi/openapi.json");
    if fs::read_to_string(&file).unwrap_or_default() == served {
        println!("openapi/openapi.json is what the server serves");
        return Ok(());
    }
    if !accept {
        bail!(
            "openapi/openapi.json differs from what the server serves: look at it with --accept and git diff"
        );
    }
    fs::write(&file, served)?;
    println!("openapi/openapi.json is written: read its diff before you commit it");
    Ok(())
}
