//! `cargo xtask provider`: a second identity provider for the tests, that is not Keycloak: oidc-provider, from npm by npm
//! itself. What is installed is what the lock file in `tests/provider` says, digests and all.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::packages;
use crate::run;
use crate::world::{Process, Style};

/// What it is made of.
const FILES: [&str; 3] = ["package.json", "package-lock.json", "provider.js"];
/// Until it answers.
const PATIENCE: Duration = Duration::from_secs(60);

/// A provider that runs, in memory only, until this is dropped.
#[derive(Debug)]
pub struct Provider {
    process: Process,
    /// Where it is.
    pub address: SocketAddr,
}

/// Runs the command.
pub fn main(arguments: &packages::Installing) -> Result<()> {
    println!("{}", prepared(!arguments.no_install)?.display());
    Ok(())
}

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

/// An address of loopback where nobody listens.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

impl Provider {
    /// Starts it at this address, and waits until it answers. It tells `ended` of logins that have ended. Its log goes to
    /// `folder`.
    pub fn start(home: &Path, folder: &Path, address: SocketAddr, ended: &str) -> Result<Provider> {
        let program = home.join("provider.js").display().to_string();
        let words = ["node".to_owned(), program, address.port().to_string(), ended.to_owned()];
        let process = Process::new("provider", folder, words.to_vec(), Style::default());
        let mut provider = Provider { process, address };
        provider.process.start_and_answer(address, "/.well-known/openid-configuration", PATIENCE)?;
        Ok(provider)
    }

    /// Ends it.
    pub fn stop(mut self) -> Result<()> {
        self.process.terminate(Duration::from_secs(30)).context("the provider")?;
        Ok(())
    }
}
