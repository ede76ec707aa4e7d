//! Thousands of simulated agents on one server, each end a process: what an idle agent costs the server, how fast one
//! change reaches all, and how long it takes until all are back after the server was killed.
//!
//! - `crowd`: server and agents. `probe`: requests meanwhile. `floor`: what handshakes cost at the least.

mod crowd;
mod floor;
mod probe;

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};

use super::Ends;
use super::figure::{Figure, load, number, percentile};
use super::stage::release;
use crate::progress::Progress;
use crate::{packages, run};
use crowd::{Crowd, GIB, Used};
use probe::Probe;

/// After which a server has done what it does at its start, and agents what they do at theirs.
const SETTLE: Duration = Duration::from_secs(20);
/// The most memory that an idle agent may cost the server, in KiB.
const MEMORY_KIB: f64 = 64.0;
/// The most that heartbeats may take of one core, in percent, of ten thousand agents.
const CPU_PERCENT: f64 = 5.0;
/// Within which all are back, in seconds.
const BACK_SECONDS: f64 = 15.0;
/// How much longer requests may take meanwhile.
const SLOWER: f64 = 5.0;
/// Within which a change for all is applied by the last, in milliseconds.
const CHANGE_MS: f64 = 1000.0;
/// Bytes to each agent for one change of one object of a few hundred.
const CHANGE_BYTES: f64 = 1024.0;
/// What each node holds for one instance: its image, its network, its disk, and itself.
const HELD: u64 = 4;
/// Requests at once, where something is made for each node.
const CLIENTS: u32 = 16;

/// Arguments of `cargo xtask bench agents`.
#[derive(Args)]
pub struct Arguments {
    /// How many agents; several numbers, with commas between, to see how it grows
    #[arg(long, default_value = "10000", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(10..=25_000))]
    nodes: Vec<u32>,
    /// How often they say that they are there
    #[arg(long, default_value_t = 30)]
    heartbeat_seconds: u32,
    /// Measure the programs in this folder, instead of building what is shipped
    #[arg(long, value_name = "FOLDER")]
    binaries: Option<PathBuf>,
    #[command(flatten)]
    pub(super) ends: Ends,
}

/// Measures; answers all figures.
pub fn run(arguments: &Arguments) -> Result<Vec<Figure>> {
    if !nix::unistd::geteuid().is_root() {
        bail!("run it as root: it needs many open files");
    }
    packages::ensure(&[packages::DEMO], !arguments.ends.no_install)?;
    let progress = Progress::start("bench agents");
    progress.step("builds the product");
    let binaries = arguments.binaries.clone().map_or_else(release, Ok)?;
    let binaries = std::fs::canonicalize(&binaries).with_context(|| binaries.display().to_string())?;
    let mut figures = Vec::new();
    for nodes in &arguments.nodes {
        progress.step(&format!("{nodes} agents join"));
        let mut crowd = Crowd::set(*nodes, &binaries, arguments.heartbeat_seconds)?;
        let floor = floor::handshakes()?;
        figures.extend(idle(&mut crowd, arguments.heartbeat_seconds, floor, &progress)?);
        progress.step(&format!("one change for {nodes} agents"));
        figures.extend(change(&mut crowd)?);
        progress.step(&format!("the server of {nodes} agents is killed"));
        figures.extend(killed(&mut crowd, floor)?);
        crowd.clear()?;
    }
    progress.done(&format!("load {}", load()));
    Ok(figures)
}

fn named(what: &str, crowd: &Crowd) -> String {
    format!("{what}: {} agents", crowd.nodes)
}

// === idle ===

/// What was used over a while in which nothing is asked.
struct Quiet {
    cpu_percent: f64,
    commits: f64,
    end: Used,
}

fn quiet(crowd: &mut Crowd, long: Duration) -> Result<Quiet> {
    let (before, commits, since) = (crowd.used()?, crowd.commits()?, Instant::now());
    std::thread::sleep(long);
    let (end, seconds) = (crowd.used()?, since.elapsed().as_secs_f64());
    let commits = u32::try_from(crowd.commits()? - commits)?;
    Ok(Quiet { cpu_percent: 100.0 * (end.cpu - before.cpu) / seconds, commits: f64::from(commits), end })
}

fn idle(crowd: &mut Crowd, heartbeat_seconds: u32, floor: f64, progress: &Progress) -> Result<Vec<Figure>> {
    // Two heartbeats of each agent.
    let long = Duration::from_secs(u64::from(heartbeat_seconds) * 2);
    std::thread::sleep(SETTLE);
    let empty = quiet(crowd, long)?;
    let joined = crowd.join()?;
    progress.step(&format!("{} agents are idle", crowd.nodes));
    std::thread::sleep(SETTLE + Duration::from_secs(heartbeat_seconds.into()));
    let full = quiet(crowd, long)?;
    let nodes = f64::from(crowd.nodes);
    let memory = (full.end.rss_kib - empty.end.rss_kib) / nodes;
    let share = (full.end.pss_kib - empty.end.pss_kib) / nodes;
    let beside = format!(
        "Rss of smaps_rollup, less {} of the empty server; Pss {}",
        number(empty.end.rss_kib / 1024.0, "MiB"),
        number(share, "KiB")
    );
    let cpu = format!(
        "of one core, at a heartbeat each {heartbeat_seconds} s; without agents {}",
        number(empty.cpu_percent, "%")
    );
    let commits = (full.commits - empty.commits).max(0.0) / (nodes * 2.0);
    let of_all =
        format!("{} commits in {} s, {} without agents", full.commits, long.as_secs(), empty.commits);
    Ok(vec![
        Figure::new(&named("server's memory per idle agent", crowd), memory, "KiB")
            .beside(beside)
            .at_most(MEMORY_KIB),
        Figure::new(&named("server's processor when idle", crowd), full.cpu_percent, "%")
            .beside(cpu)
            .at_most(CPU_PERCENT),
        // What is left of the server's own clockwork in so many heartbeats is no write of theirs.
        Figure::new(&named("commits per heartbeat", crowd), (commits * 1000.0).round() / 1000.0, "")
            .beside(of_all)
            .at_most(0.0),
        Figure::new(&named("joined and connected after", crowd), joined.as_secs_f64(), "s").beside(format!(
            "both ends on this machine; a core carries one end of {} handshakes a second",
            floor.round()
        )),
    ])
}

// === one change for all ===

fn now_ms() -> Result<u64> {
    Ok(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?)
}

fn ask(crowd: &Crowd, method: &str, path: &str, body: &Value) -> Result<Value> {
    let reply = crowd.world.call(method, path, Some(body))?;
    if !(200..300).contains(&reply.status) {
        bail!("{method} {path} answers {}: {}", reply.status, reply.body);
    }
    Ok(serde_json::from_str(&reply.body)?)
}

/// What both ends took of the processors of this machine: in truth each node has its own.
fn shared(before: [f64; 2], after: [f64; 2]) -> String {
    let [server, agents] = [after[0] - before[0], after[1] - before[1]].map(|seconds| number(seconds, "s"));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("processor: server {server}, agents {agents}, of {cores} cores")
}

/// An instance on each node, all in one network.
fn settle_everywhere(crowd: &mut Crowd) -> Result<()> {
    let image = crowd.world.folder.join("empty.qcow2");
    run::output(run::words("qemu-img create -q -f qcow2").arg(&image).arg("1M"))?;
    crowd.world.said(&["image", "import", "empty", &image.display().to_string()])?;
    ask(
        crowd,
        "POST",
        "/v1/tenants/default/networks",
        &json!({"name": "all", "spec": {"cidr": "10.0.0.0/16"}}),
    )?;
    let there: &Crowd = crowd;
    std::thread::scope(|scope| -> Result<()> {
        let client = |first: u32| {
            move || -> Result<()> {
                for at in (first..there.nodes).step_by(CLIENTS as usize) {
                    let spec = json!({
                        "image": "empty", "vcpus": 1, "memory_bytes": GIB << 30,
                        "nics": {"lan": {"network": "all"}},
                    });
                    let body = json!({"name": format!("i{at}"), "spec": spec});
                    ask(there, "POST", "/v1/tenants/default/instances", &body)?;
                }
                Ok(())
            }
        };
        let clients: Vec<_> = (0..CLIENTS).map(|first| scope.spawn(client(first))).collect();
        for client in clients {
            client.join().unwrap_or_else(|_| bail!("a client panicked"))?;
        }
        Ok(())
    })?;
    crowd.until("an instance on each node", |shown, nodes| shown.changes >= nodes * HELD)?;
    // Until all of it is reported.
    let mut commits = 0;
    loop {
        std::thread::sleep(Duration::from_secs(2));
        let now = crowd.commits()?;
        if now < commits + 20 {
            return Ok(());
        }
        commits = now;
    }
}

fn change(crowd: &mut Crowd) -> Result<Vec<Figure>> {
    let none = crowd.bytes_to_agents()?;
    settle_everywhere(crowd)?;
    let nodes = u64::from(crowd.nodes);
    let (shown, bytes) = (crowd.show()?, crowd.bytes_to_agents()?);
    let (since, busy) = (now_ms()?, crowd.busy()?);
    ask(crowd, "PATCH", "/v1/tenants/default/networks/all", &json!({"spec": {"dns": ["9.9.9.9"]}}))?;
    let answered = now_ms()? - since;
    let after = crowd.until("the change on each node", |now, _| now.changes >= shown.changes + nodes)?;
    let busy = shared(busy, crowd.busy()?);
    #[allow(clippy::cast_precision_loss, reason = "milliseconds and bytes of a bench")]
    let per_agent = |bytes: u64| bytes as f64 / f64::from(crowd.nodes);
    let told = per_agent(crowd.bytes_to_agents()? - bytes);
    #[allow(clippy::cast_precision_loss, reason = "milliseconds and bytes of a bench")]
    let took = after.last_change_ms.saturating_sub(since) as f64;
    Ok(vec![
        Figure::new(&named("a change for all until the last has it", crowd), took, "ms")
            .beside(format!(
                "from the first byte of PATCH of a network that each node holds; answered after {answered} ms; {busy}"
            ))
            .at_most(CHANGE_MS),
        Figure::new(&named("bytes to each for it", crowd), told, "B")
            .beside(format!(
                "{} B for all that it holds; TLS and heartbeats among it, as the kernel counts",
                per_agent(bytes - none).round()
            ))
            .at_most(CHANGE_BYTES),
    ])
}

// === the server is killed ===

fn killed(crowd: &mut Crowd, floor: f64) -> Result<Vec<Figure>> {
    let usual = Probe::start(&crowd.world)?.for_a_while(Duration::from_secs(10))?;
    let before = crowd.show()?;
    let (since, [_, agents]) = (Instant::now(), crowd.busy()?);
    crowd.world.server.kill9()?;
    crowd.world.restart_server()?;
    let served = since.elapsed();
    let probe = Probe::start(&crowd.world)?;
    crowd.until("all to be back", |now, nodes| {
        now.connected == nodes && now.sessions >= before.sessions + nodes
    })?;
    let back = since.elapsed();
    // The server is another process since.
    let busy = shared([0.0, agents], crowd.busy()?);
    let meanwhile = probe.end()?;
    let [usual, meanwhile] = [usual, meanwhile].map(|times| percentile(&times, 99.0));
    let least = f64::from(crowd.nodes) * 2.0 / floor / 2.0;
    let asked = crowd.show()?;
    let since = Instant::now();
    crowd.world.server.terminate(Duration::from_secs(60))?;
    crowd.world.restart_server()?;
    crowd.until("all to be back", |now, nodes| {
        now.connected == nodes && now.sessions >= asked.sessions + nodes
    })?;
    let drained = since.elapsed();
    Ok(vec![
        Figure::new(&named("kill -9 until all are back", crowd), back.as_secs_f64(), "s")
            .beside(format!(
                "it serves after {}; floor {}: both ends of the handshakes on two cores; {busy}",
                number(served.as_secs_f64(), "s"),
                number(least, "s")
            ))
            .at_most(BACK_SECONDS),
        Figure::new(&named("p99 of requests meanwhile / before", crowd), meanwhile / usual, "")
            .beside(format!("{} against {}", number(meanwhile, "ms"), number(usual, "ms")))
            .at_most(SLOWER),
        Figure::new(&named("restart in order until all are back", crowd), drained.as_secs_f64(), "s"),
    ])
}
