//! `cargo xtask test`: everything that must hold, in one command, or a part of it by name.
//!
//! All parts run even when one fails: whoever waited wants to know all of it. The last line counts the tests
//! of all parts, alone on its line.

use std::io::{BufRead as _, BufReader, Write};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{image, keycloak, packages, provider, repository, run};

/// Arguments of `cargo xtask test`.
#[derive(Args)]
pub struct Arguments {
    /// One part only
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(PARTS.iter().map(|part| part.name)))]
    part: Option<String>,
    /// Install nothing: refuse when packages are missing, and say which
    #[arg(long)]
    no_install: bool,
}

/// A part of the tests.
struct Part {
    name: &'static str,
    /// Arguments for cargo, each line a run.
    runs: &'static [&'static str],
    /// Guest images that it boots.
    images: &'static [&'static str],
    /// The part that it runs beside, when that runs too: one that mostly waits.
    beside: Option<&'static str>,
}

impl Part {
    const fn new(name: &'static str, runs: &'static [&'static str]) -> Part {
        Part { name, runs, images: &[], beside: None }
    }
}

/// All parts, in the order in which they run: what fails fast comes first.
const PARTS: &[Part] = &[
    Part::new("fmt", &["fmt --all --check"]),
    Part::new("lint", &["clippy --workspace --all-targets --quiet -- -D warnings"]),
    Part::new("build", &["build --workspace --bins --quiet"]),
    Part::new(
        "unit",
        &[
            "test --workspace --lib --bins --test authority --test matrix --test rotation --test hostile --test qemu --test auditor --test process --test replay --test plain",
        ],
    ),
    Part::new("in-process", &["test --workspace --test in_process"]),
    Part::new("scaffold", &["test --workspace --test scaffold"]),
    Part::new(
        "agent",
        &[
            "test --workspace --test rights",
            "test --workspace --test network",
            "test --workspace --test lifecycle",
            "test --workspace --test wireguard",
            "test --workspace --test mesh",
        ],
    ),
    Part { images: &["tiny", "debian"], ..Part::new("e2e", &["test --workspace --test e2e"]) },
    // The same questions each time; `cargo xtask fuzz` asks others.
    Part { beside: Some("e2e"), ..Part::new("fuzz", &["xtask fuzz --seconds 120 --seed 3"]) },
];

/// What the parts counted.
#[derive(Default)]
struct Count {
    passed: u64,
    failed: u64,
}

/// Runs the command.
pub fn main(arguments: &Arguments) -> Result<()> {
    let wanted = [
        packages::DEMO,
        packages::TEST,
        packages::WIREGUARD,
        packages::FUZZ,
        packages::KEYCLOAK,
        packages::LDAP,
        packages::SSH,
    ];
    packages::ensure(&wanted, !arguments.no_install)?;
    packages::ensure_npm(!arguments.no_install)?;
    let chosen: Vec<&Part> =
        PARTS.iter().filter(|part| arguments.part.as_ref().is_none_or(|name| name == part.name)).collect();
    let is_beside = |part: &Part| chosen.iter().any(|other| part.beside == Some(other.name));
    let mut done = Vec::new();
    for part in chosen.iter().filter(|part| !is_beside(part)) {
        let beside = chosen.iter().filter(|other| other.beside == Some(part.name));
        done.extend(together(part, beside.copied(), !arguments.no_install));
    }
    println!();
    for Done { name, time, .. } in &done {
        println!("{name:<12} {:>5} s", time.as_secs());
    }
    let mut total = Count::default();
    let mut failed = 0;
    for Done { name, count, error, .. } in &done {
        total.passed += count.passed;
        total.failed += count.failed;
        if let Some(error) = error {
            failed += 1;
            println!("FAILED  {name}: {error:#}");
        }
    }
    println!("{} passed, {} failed", total.passed, total.failed);
    if failed == 0 { Ok(()) } else { bail!("{failed} part(s) failed") }
}

/// A part that came to its end.
struct Done {
    name: &'static str,
    time: Duration,
    count: Count,
    error: Option<anyhow::Error>,
}

/// Runs a part, and others beside it, which are shown when they have ended.
fn together<'a>(part: &Part, beside: impl Iterator<Item = &'a Part>, install: bool) -> Vec<Done> {
    thread::scope(|scope| {
        let others: Vec<_> = beside
            .map(|other| {
                scope.spawn(move || {
                    let mut shown = Vec::new();
                    let done = run(other, install, &mut shown);
                    (done, shown)
                })
            })
            .collect();
        let mut all = vec![run(part, install, &mut std::io::stdout())];
        for other in others {
            match other.join() {
                Ok((done, shown)) => {
                    // Whoever reads this may have gone; what it says is counted.
                    let _ = std::io::stdout().write_all(&shown);
                    all.push(done);
                }
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    })
}

fn run(part: &Part, install: bool, out: &mut impl Write) -> Done {
    let began = Instant::now();
    let mut count = Count::default();
    let error = go_through(part, install, out, &mut count).err();
    Done { name: part.name, time: began.elapsed(), count, error }
}

fn go_through(part: &Part, install: bool, out: &mut impl Write, total: &mut Count) -> Result<()> {
    writeln!(out, "\n=== {}", part.name)?;
    if matches!(part.name, "e2e" | "agent" | "in-process") {
        prepare(out)?;
    }
    if part.name == "e2e" {
        keycloak::prepared(install)?;
        provider::prepared(install)?;
    }
    for name in part.images {
        match *name {
            "tiny" => image::tiny(None, install)?,
            _ => image::debian(None, install)?,
        };
    }
    let mut failed = Vec::new();
    for line in part.runs {
        let line =
            if !install && line.starts_with("xtask") { &format!("{line} --no-install") } else { *line };
        let failed_before = total.failed;
        if !cargo(line, out, total)? {
            // A run that failed without a failed test (a lint, a build) counts as one.
            total.failed += u64::from(total.failed == failed_before);
            failed.push(format!("`cargo {line}`"));
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("{} failed", failed.join(", ")) }
}

/// What tests with real processes need of the machine: the programs, and the user that they become.
fn prepare(out: &mut impl Write) -> Result<()> {
    let mut ignored = Count::default();
    if !cargo("build --workspace --bins --quiet", out, &mut ignored)? {
        bail!("the programs do not build");
    }
    if nix::unistd::geteuid().is_root() {
        let agent = repository().join("target/debug/rhyzome-agent");
        run::output(Command::new(agent).arg("setup")).context("preparing this machine")?;
    }
    Ok(())
}

/// Runs cargo with its output shown, and counts the tests that it reports.
fn cargo(line: &str, out: &mut impl Write, total: &mut Count) -> Result<bool> {
    writeln!(out, "--- cargo {line}")?;
    let mut command = run::cargo();
    command.args(line.split(' ')).stdin(Stdio::null()).stdout(Stdio::piped());
    if line.starts_with("test") {
        // One failing binary does not hide what the others would say.
        command.arg("--no-fail-fast");
    }
    // Output is compared in places, and a backtrace belongs to nobody's expectation.
    command.env_remove("RUST_BACKTRACE");
    let mut child = command.spawn().context("cargo cannot be run")?;
    let output = child.stdout.take().context("cargo has no output")?;
    for line in BufReader::new(output).lines() {
        let line = line?;
        count(&line, total);
        // Whoever reads this may have gone; the tests go on.
        let _ = writeln!(out, "{line}");
    }
    Ok(child.wait()?.success())
}

/// Adds what a line such as `test result: ok. 3 passed; 0 failed; 0 ignored; ...` says.
fn count(line: &str, total: &mut Count) {
    let Some(rest) = line.strip_prefix("test result: ") else { return };
    for part in rest.split(['.', ';']) {
        let mut words = part.split_whitespace();
        let (Some(number), Some(what)) =
            (words.next().and_then(|word| word.parse::<u64>().ok()), words.next())
        else {
            continue;
        };
        match what {
            "passed" => total.passed += number,
            "failed" => total.failed += number,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn no_file_of_tests_is_forgotten() {
        let named: Vec<&str> =
            PARTS.iter().flat_map(|part| part.runs).flat_map(|run| run.split(' ')).collect();
        for member in fs::read_dir(repository()).unwrap().flatten() {
            for file in fs::read_dir(member.path().join("tests")).into_iter().flatten().flatten() {
                let path = file.path();
                let is_target = path.join("main.rs").exists() || path.extension().is_some_and(|e| e == "rs");
                let name = path.file_stem().unwrap().to_str().unwrap();
                assert!(!is_target || named.contains(&name), "{} is in no part: add it", path.display());
            }
        }
    }

    #[test]
    fn results_are_added_up() {
        let mut total = Count::default();
        count("test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 7 filtered out", &mut total);
        count("test result: ok. 1 passed; 0 failed; 0 ignored; finished in 0.05s", &mut total);
        count("3 passed; 2 failed", &mut total);
        assert_eq!((total.passed, total.failed), (4, 2));
    }
}
