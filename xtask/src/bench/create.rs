//! How long a user waits for an instance: from the first byte of POST to QEMU's exec, and to the guest's greeting.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use clap::Args;

use super::Ends;
use super::bare::Peer;
use super::exec::Watch;
use super::figure::{Figure, load, median, ms, number, percentile};
use super::flushes::Flush;
use super::stage::{Made, Stage, await_marker};
use crate::packages;
use crate::progress::Progress;

const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// The most that may lie between POST and QEMU's exec, at the median.
const EXEC_MS: f64 = 40.0;
/// How much longer than bare QEMU the way to the greeting may be.
const RATIO: f64 = 1.05;
/// Networks whose first instance is measured.
const FIRSTS: usize = 5;
/// After which nothing moves any more.
const IDLE: Duration = Duration::from_secs(45);

/// Arguments of `cargo xtask bench create`.
#[derive(Args)]
pub struct Arguments {
    /// How many creates are measured until exec
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(20..))]
    creates: u32,
    /// How many creates are measured until the guest's greeting, each beside bare QEMU
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(5..))]
    pairs: u32,
    #[command(flatten)]
    pub(super) ends: Ends,
}

/// Measures; answers all figures.
pub fn run(arguments: &Arguments) -> Result<Vec<Figure>> {
    if !nix::unistd::geteuid().is_root() {
        bail!("run it as root: it watches executions, and opens guests' taps");
    }
    packages::ensure(&[packages::DEMO], !arguments.ends.no_install)?;
    let progress = Progress::start("bench create");
    progress.step("builds the product and starts it");
    let stage = Stage::set(!arguments.ends.no_install, Path::new(QEMU))?;
    let mut figures = Vec::new();
    progress.step("from POST to exec");
    let (times, made) = until_exec(&stage, arguments.creates)?;
    figures.extend(times);
    figures.extend(commits(&stage, &made)?);
    progress.step("in networks that are new to the node");
    figures.push(first_of_networks(&stage)?);
    progress.step("from POST to the greeting, and bare QEMU, in turn");
    figures.push(until_greeting(&stage, arguments.pairs)?);
    progress.step("memory, once all is quiet");
    figures.extend(memory(stage)?);
    progress.done(&format!("load {}", load()));
    Ok(figures)
}

// === time ===

fn until_exec(stage: &Stage, creates: u32) -> Result<(Vec<Figure>, Vec<Made>)> {
    let (mut executed, mut answered, mut floor) = (Vec::new(), Vec::new(), Vec::new());
    let mut all = Vec::new();
    for number in 0..creates {
        floor.push(ms(bare_exec(&stage.watch)?));
        let made = stage.create(&format!("exec-{number}"), "bench")?;
        executed.push(ms(made.executed));
        answered.push(ms(made.answered));
        stage.delete(&made.id)?;
        all.push(made);
    }
    let floor = number(median(&floor), "ms");
    let spread = format!(
        "{} to {}",
        number(percentile(&executed, 0.0), "ms"),
        number(percentile(&executed, 100.0), "ms")
    );
    let figures = vec![
        Figure::new(&format!("POST to 202: median of {creates}"), median(&answered), "ms"),
        Figure::new(&format!("POST to QEMU's exec: median of {creates}"), median(&executed), "ms")
            .beside(format!("floor {floor}: exec of bare QEMU"))
            .at_most(EXEC_MS),
        Figure::new("POST to QEMU's exec: p99", percentile(&executed, 99.0), "ms")
            .beside(format!("{spread}; the goal is 80 ms")),
    ];
    Ok((figures, all))
}

/// From a process of ours to QEMU's exec: nobody can be faster.
fn bare_exec(watch: &Watch) -> Result<Duration> {
    watch.forget();
    let since = Instant::now();
    let mut command = Command::new(QEMU);
    let mut child = command.arg("--version").stdout(Stdio::null()).spawn()?;
    let pid = child.id().cast_signed();
    let exec = watch.next(Duration::from_secs(10), |exec| exec.pid == pid);
    child.wait()?;
    Ok(exec?.at.duration_since(since))
}

/// The first instance of a network pays for the network: namespace, bridge, rules, dnsmasq.
fn first_of_networks(stage: &Stage) -> Result<Figure> {
    let mut executed = Vec::new();
    for number in 0..FIRSTS {
        let network = format!("first-{number}");
        stage.add_network(&network)?;
        let made = stage.create(&network, &network)?;
        executed.push(ms(made.executed));
        stage.delete(&made.id)?;
        stage.world.said(&["network", "delete", &network, "--wait"])?;
    }
    let name = format!("the same first in a network: median of {FIRSTS}");
    Ok(Figure::new(&name, median(&executed), "ms").beside("makes namespace, bridge, rules and dnsmasq"))
}

fn until_greeting(stage: &Stage, pairs: u32) -> Result<Figure> {
    let (mut ours, mut bare, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..pairs {
        let made = stage.create(&format!("pair-{number}"), "bench")?;
        let with = ms(stage.await_marker(&made)?);
        let taps = stage.taps_of(&made)?;
        stage.stop(&made.id)?;
        let peer = Peer::of(&stage.folder_of(&made.id), stage.beside(), &stage.namespace(), &taps)?;
        let running = peer.start()?;
        let without = ms(await_marker(&peer.console(), running.since)?);
        drop(running);
        stage.delete(&made.id)?;
        ours.push(with);
        bare.push(without);
        // Each beside its own neighbour: a machine that is slower for a minute is so for both.
        ratios.push(with / without);
    }
    let medians = (number(median(&ours), "ms"), number(median(&bare), "ms"));
    let beside = format!(
        "{} against {}: bare QEMU; median of {pairs} pairs, {} to {}",
        medians.0,
        medians.1,
        number(percentile(&ratios, 0.0), ""),
        number(percentile(&ratios, 100.0), "")
    );
    Ok(Figure::new("POST to greeting / bare QEMU", median(&ratios), "").beside(beside).at_most(RATIO))
}

// === commits ===

fn commits(stage: &Stage, made: &[Made]) -> Result<Vec<Figure>> {
    let flushes = stage.flushes()?;
    let (server, agent) = (stage.world.home(), stage.agents_folder());
    let count = |folder: &Path, until: fn(&Made) -> SystemTime| -> f64 {
        let counts: Vec<f64> =
            made.iter().map(|one| between(&flushes, folder, one.asked, until(one))).collect();
        median(&counts)
    };
    let beside = format!("median of {}", made.len());
    Ok(vec![
        Figure::new("durable commits until the 202", count(&server, |one| one.accepted), "")
            .beside(beside.clone())
            .at_most(1.0),
        Figure::new("durable commits until QEMU's exec", count(&server, |one| one.exec.time), "")
            .beside(beside.clone())
            .at_most(3.0),
        Figure::new("the agent's own fsyncs until then", count(&agent, |one| one.exec.time), "")
            .beside(beside),
    ])
}

fn between(flushes: &[Flush], folder: &Path, from: SystemTime, to: SystemTime) -> f64 {
    let there = flushes.iter().filter(|flush| Path::new(&flush.path).starts_with(folder));
    let count = there.filter(|flush| (from..=to).contains(&flush.time)).count();
    u32::try_from(count).map_or(f64::NAN, f64::from)
}

// === memory ===

fn memory(mut stage: Stage) -> Result<Vec<Figure>> {
    std::thread::sleep(IDLE);
    let [server, agent] = stage.pids()?;
    let one = |name: &str, pid: i32, target: f64| -> Result<Figure> {
        let (resident, anonymous) = resident(pid)?;
        Ok(Figure::new(name, resident, "MiB")
            .beside(format!("{} of it anonymous; Rss of smaps_rollup", number(anonymous, "MiB")))
            .at_most(target))
    };
    let figures = vec![
        one("resident memory of the idle server", server, 40.0)?,
        one("resident memory of the idle agent", agent, 25.0)?,
    ];
    stage.clear()?;
    Ok(figures)
}

/// All of it, and what belongs to no file, in MiB.
fn resident(pid: i32) -> Result<(f64, f64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let kib: Option<f64> = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        kib.map(|kib| kib / 1024.0).with_context(|| format!("smaps_rollup has no {name}"))
    };
    Ok((field("Rss:")?, field("Anonymous:")?))
}
