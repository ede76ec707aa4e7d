//! Runs programs, and says clearly what went wrong.

use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// Runs a program to its end with its output captured; answers standard output, or an error with the end of its
/// standard error.
pub fn output(command: &mut Command) -> Result<String> {
    let output = captured(command)?;
    if !output.status.success() {
        let said = [output.stderr, output.stdout].concat();
        bail!("`{}` failed ({}): {}", line(command), output.status, tail(&said));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Like [`output`], but only whether it succeeded.
pub fn succeeds(command: &mut Command) -> Result<bool> {
    Ok(captured(command)?.status.success())
}

/// Runs a program whose output the user sees, as apt-get's.
pub fn shown(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| missing(command))?;
    if !status.success() {
        bail!("`{}` failed ({status})", line(command));
    }
    Ok(())
}

/// Cargo, in the repository, as if a user had called it.
///
/// What the outer cargo says of this very program must not reach it: build scripts such as ring's ask to be run
/// again when it changes, and everything above them would be built anew at each change between `cargo xtask` and
/// `cargo`.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let of_us = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"];
        if of_us.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command.current_dir(crate::repository());
    command
}

/// A command from a line of words without quotes.
pub fn words(line: &str) -> Command {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    command
}

fn captured(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).output().with_context(|| missing(command))
}

fn missing(command: &Command) -> String {
    format!("cannot run `{}`", command.get_program().to_string_lossy())
}

fn line(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(command.get_args().map(|word| word.to_string_lossy()));
    words.join(" ")
}

fn tail(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(8)..].join(" | ")
}
