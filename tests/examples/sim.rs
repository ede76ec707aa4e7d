//! `cargo xtask sim`: simulations from as many seeds as one likes.

// A simulation that cannot go on says so by a panic.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::process::ExitCode;

use rhyzome_tests::sim;
use rhyzome_tests::world::Engine;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

const USAGE: &str = "sim [--seeds N] [--first SEED] [--steps N] [--database sqlite|postgres]";

fn main() -> ExitCode {
    // `RUST_LOG=rhyzome::sql=trace`: each statement. Without times, so that two runs of a seed can be compared.
    let silent = LevelFilter::OFF.into();
    let wanted = EnvFilter::builder().with_default_directive(silent).from_env_lossy();
    tracing_subscriber::fmt().without_time().with_env_filter(wanted).with_ansi(false).init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |name: &str, usual: u64| {
        let at = arguments.iter().position(|argument| argument == name);
        at.map_or(Some(usual), |at| arguments.get(at + 1)?.parse().ok())
    };
    let (Some(seeds), Some(first), Some(steps)) =
        (number("--seeds", 100), number("--first", 1), number("--steps", 300))
    else {
        eprintln!("{USAGE}");
        return ExitCode::FAILURE;
    };
    let database = arguments.iter().position(|argument| argument == "--database");
    let engine = match database.map(|at| arguments.get(at + 1).map(String::as_str)) {
        None | Some(Some("sqlite")) => Engine::Sqlite,
        Some(Some("postgres")) => Engine::Postgres,
        Some(_) => {
            eprintln!("{USAGE}");
            return ExitCode::FAILURE;
        }
    };
    let mut faults: BTreeMap<&str, u64> = BTreeMap::new();
    let mut failed = Vec::new();
    for seed in first..first + seeds {
        let story = sim::run(engine, seed, u32::try_from(steps).unwrap_or(u32::MAX));
        for (what, times) in &story.faults {
            *faults.entry(what).or_default() += times;
        }
        if !story.found.is_empty() {
            failed.push(seed);
            println!("seed {seed} FAILED, the last of what happened:");
            story.last.iter().for_each(|line| println!("  {line}"));
            story.found.iter().for_each(|finding| println!("  {finding}"));
        }
    }
    for (what, times) in &faults {
        println!("{times:>8} {what}");
    }
    let (seconds, all) = (cpu_seconds(), faults.values().sum::<u64>());
    println!("{seeds} seeds, {all} faults in {seconds:.1} CPU seconds:");
    println!("{:.2} seeds and {:.1} faults per CPU second", seeds as f64 / seconds, all as f64 / seconds);
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("seeds that failed: {failed:?}; `cargo xtask sim --first SEED --seeds 1` does one again");
    ExitCode::FAILURE
}

/// What this process has used: the third and fourth number after the name in `stat`, in hundredths of a second.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    let ticks = after.split_whitespace().skip(11).take(2).filter_map(|word| word.parse::<f64>().ok());
    (ticks.sum::<f64>() / 100.0).max(0.01)
}
