//! `cargo xtask provider`: a second identity provider for the tests, that is not Keycloak: oidc-provider, from npm by npm
//! itself. What is installed is what the lock file in `tests/provider` says, digests and all.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::packages;
use crate::run;
use crate::world::{Answering, Process, Style};

/// What it is made of.
const FILES: [&str; 3] = ["package.json", "package-lock.json", "provider.js"];
/// Until it answers.
const PATIENCE: Duration = Duration::from_secs(60);

/// Installs it, unless that was done; where it is.
pub fn prepared(install: bool) -> Result<PathBuf> {
    packages::ensure_npm(install)?;
    let (source, home) =
        (crate::repository().join("tests/provider"), crate::repository().join("var/provider"));
    let texts = FILES.map(|name| fs::read(source.join(name)));
    let is_there = |(name, text): (&&str, &std::io::Result<Vec<u8>>)| {
        text.as_ref().is_ok_and(|text| fs::read(home.join(name)).is_ok_and(|there| there == *text))
    };
    if home.join("ready").exists() && FILES.iter().zip(&texts).all(is_there) {
        return Ok(home);
    }
    if home.exists() {
        fs::remove_dir_all(&home)?;
    }
    fs::create_dir_all(&home)?;
    for (name, text) in FILES.iter().zip(texts) {
        fs::write(home.join(name), text.with_context(|| format!("tests/provider/{name}"))?)?;
    }
    let words = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"];
    run::output(Command::new("npm").args(words).current_dir(&home))?;
    fs::write(home.join("ready"), "")?;
    Ok(home)
}

/// Starts it at this address, in memory only. It tells `ended` of logins that have ended. Its log goes to `folder`.
pub fn start(home: &Path, folder: &Path, address: SocketAddr, ended: &str) -> Result<Answering> {
    let program = home.join("provider.js").display().to_string();
    let words = ["node".to_owned(), program, address.port().to_string(), ended.to_owned()];
    let process = Process::new("provider", folder, words.to_vec(), Style::default());
    Answering::start(process, address, "/.well-known/openid-configuration", PATIENCE)
}
