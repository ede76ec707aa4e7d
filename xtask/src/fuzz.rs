//! `cargo xtask fuzz`: schemathesis asks a real server, with every check, whatever the served document allows and some
//! of what it does not. Not one answer may be a 5xx, or other than the document says.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::progress::Progress;
use crate::world::{Options, World};
use crate::{packages, repository, run};

/// Arguments of `cargo xtask fuzz`.
#[derive(Args)]
pub struct Arguments {
    /// For how long
    #[arg(long, default_value_t = 120, value_name = "N", value_parser = clap::value_parser!(u32).range(10..))]
    seconds: u32,
    /// Repeat the run of this seed; a new one by default
    #[arg(long, value_name = "N")]
    seed: Option<u32>,
    /// Install nothing: refuse when packages are missing, and say which
    #[arg(long)]
    no_install: bool,
}

/// Runs it; the programs are built if they are not.
pub fn main(arguments: &Arguments) -> Result<()> {
    packages::ensure(&[packages::DEMO, packages::FUZZ], !arguments.no_install)?;
    run::shown(run::cargo().args(["build", "--workspace", "--bins", "--quiet"]))?;
    let seed = arguments.seed.map_or_else(new_seed, Ok)?;
    fuzz(arguments.seconds, seed)
}

fn new_seed() -> Result<u32> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos())
}

fn fuzz(seconds: u32, seed: u32) -> Result<()> {
    let schemathesis = installed()?;
    let folder = tempfile::Builder::new().prefix("rhyzome-fuzz-").tempdir()?;
    // The server runs as another user, who must be able to reach it.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711))?;
    let options = Options { nodes: Vec::new(), ..Options::in_folder(folder.path())? };
    let world = World::start(options)?;
    let token = world.token()?;
    println!(
        "fuzz: {seconds} s with seed {seed}; again by `cargo xtask fuzz --seconds {seconds} --seed {seed}`"
    );
    let mut command = Command::new(schemathesis);
    command
        .arg("--config-file")
        .arg(repository().join("tests/fuzz/schemathesis.toml"))
        .args(["run", &format!("http://{}/openapi.json", world.http)])
        .args(["--header", &format!("Authorization: Bearer {token}")])
        .args(["--checks", "all", "--request-timeout", "10", "--continue-on-failure", "--no-color"])
        .args(["--warnings", "off", "--max-time", &seconds.to_string(), "--seed", &seed.to_string()])
        .current_dir(folder.path());
    let status = command.status().context("schemathesis cannot be run")?;
    if !status.success() {
        bail!("schemathesis found something (seed {seed})");
    }
    Ok(())
}

/// The program, in an environment of its own below target/.
fn installed() -> Result<PathBuf> {
    let wanted = repository().join("tests/fuzz/requirements.txt");
    let home = repository().join("target/fuzz");
    let (program, stamp) = (home.join("bin/schemathesis"), home.join("requirements.txt"));
    let text = fs::read(&wanted)?;
    if program.exists() && fs::read(&stamp).is_ok_and(|there| there == text) {
        return Ok(program);
    }
    let progress = Progress::start("fuzz");
    progress.step("installing schemathesis");
    run::output(Command::new("python3").args(["-m", "venv"]).arg(&home))?;
    let mut pip = Command::new(home.join("bin/pip"));
    run::output(pip.args(["install", "--quiet", "--requirement"]).arg(&wanted))?;
    fs::write(&stamp, text)?;
    progress.done("");
    Ok(program)
}
