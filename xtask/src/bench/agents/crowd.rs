//! A server, and beside it one process with thousands of agents.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;

use crate::bench::flushes::Flushes;
use crate::run;
use crate::world::{Options, Process, Style, World};

/// For thousands of agents to join, or to come back, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(900);
/// Files that server and agents have open beside one for each connection.
const FILES: u64 = 1_000;
/// What each node claims to have, and what an instance takes: room for one.
pub const GIB: u64 = 1;

/// Server and agents.
pub struct Crowd {
    /// The server.
    pub world: World,
    /// How many agents.
    pub nodes: u32,
    agents: Process,
    flushes: Flushes,
    folder: PathBuf,
    state: PathBuf,
}

/// What the agents count.
#[derive(Debug, Clone, Copy, Default)]
pub struct Shown {
    /// With a session.
    pub connected: u64,
    /// Sessions that began.
    pub sessions: u64,
    /// Actions after which something was different.
    pub changes: u64,
    /// When the last of these was, in milliseconds since 1970.
    pub last_change_ms: u64,
}

/// What a process has used.
#[derive(Debug, Clone, Copy)]
pub struct Used {
    /// Resident memory, in KiB.
    pub rss_kib: f64,
    /// Its share of memory, in KiB.
    pub pss_kib: f64,
    /// Seconds of processor since its start.
    pub cpu: f64,
}

impl Crowd {
    /// Starts the server of these programs. No agent is there yet.
    pub fn set(nodes: u32, binaries: &Path, heartbeat_seconds: u32) -> Result<Crowd> {
        raise_files(FILES + u64::from(nodes))?;
        let folder = PathBuf::from(format!("/var/lib/rhyzome-bench-{}-{nodes}", std::process::id()));
        fs::create_dir_all(&folder)?;
        // In truth each node has a disk of its own: those of thousands are no part of what is measured here.
        let state = PathBuf::from(format!("/dev/shm/rhyzome-bench-{}-{nodes}", std::process::id()));
        let flushes = Flushes::prepare(&folder.join("flushes"))?;
        let options = Options {
            binaries: binaries.to_owned(),
            server_env: flushes.environment(),
            nodes: Vec::new(),
            config: json!({"grpc": {"heartbeat_seconds": heartbeat_seconds}}),
            ..Options::in_folder(&folder)?
        };
        let agent = options.binary("rhyzome-agent");
        let world = World::start_server(options)?;
        let invitations = folder.join("invitations").display().to_string();
        let words = [&agent, "simulate", "--state-dir", &state.display().to_string()].map(str::to_owned);
        let more = ["--invitations", &invitations, "--memory-gib", &GIB.to_string()].map(str::to_owned);
        let words = words.into_iter().chain(more).collect();
        let agents = Process::new("agents", &folder, words, Style::default());
        Ok(Crowd { world, nodes, agents, flushes, folder, state })
    }

    /// Invites all, and starts their agents; how long it took until all were connected.
    pub fn join(&mut self) -> Result<Duration> {
        let lines = self.world.said(&["node", "invite", "sim", "--count", &self.nodes.to_string()])?;
        fs::write(self.folder.join("invitations"), lines)?;
        let since = Instant::now();
        self.agents.start()?;
        self.until("all to be connected", |shown, nodes| shown.connected == nodes)?;
        Ok(since.elapsed())
    }

    /// Waits until the agents' counts are as wanted.
    pub fn until(&mut self, what: &str, wanted: impl Fn(Shown, u64) -> bool) -> Result<Shown> {
        let until = Instant::now() + PATIENCE;
        let mut last = Shown::default();
        while Instant::now() < until {
            // It takes no commands before all have joined.
            if let Ok(shown) = self.show() {
                last = shown;
                if wanted(shown, u64::from(self.nodes)) {
                    return Ok(shown);
                }
            }
            if !self.agents.is_running() {
                bail!("the agents ended{}", self.agents.last_words());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("waited {} s in vain for {what}: {last:?}", PATIENCE.as_secs())
    }

    /// What the agents count now.
    pub fn show(&self) -> Result<Shown> {
        let mut socket = UnixStream::connect(self.state.join("control.sock"))?;
        socket.write_all(b"show\n")?;
        socket.shutdown(Shutdown::Write)?;
        let mut text = String::new();
        socket.read_to_string(&mut text)?;
        Ok(shown(&text))
    }

    /// What the server has used.
    pub fn used(&mut self) -> Result<Used> {
        let pid = self.world.server.pid().context("the server does not run")?;
        used(pid)
    }

    /// Seconds of processor that server and agents have used.
    pub fn busy(&mut self) -> Result<[f64; 2]> {
        let server = self.world.server.pid().context("the server does not run")?;
        let agents = self.agents.pid().context("the agents do not run")?;
        Ok([cpu_seconds(server)?, cpu_seconds(agents)?])
    }

    /// How often the server waited for the disk until now.
    pub fn commits(&self) -> Result<usize> {
        let home = self.world.home();
        Ok(self.flushes.seen()?.iter().filter(|flush| Path::new(&flush.path).starts_with(&home)).count())
    }

    /// Bytes that the server has sent on connections of agents that are there now.
    pub fn bytes_to_agents(&self) -> Result<u64> {
        let port = self.world.grpc.port();
        let told = run::output(&mut run::words(&format!("ss -tinH state established sport = :{port}")))?;
        let sent = told.split_whitespace().filter_map(|word| word.strip_prefix("bytes_sent:"));
        Ok(sent.filter_map(|number| number.parse::<u64>().ok()).sum())
    }

    /// Ends everything and removes what was written.
    pub fn clear(self) -> Result<()> {
        let Crowd { world, agents, folder, state, .. } = self;
        drop(agents);
        drop(world);
        for folder in [folder, state] {
            fs::remove_dir_all(&folder).with_context(|| format!("{} cannot be removed", folder.display()))?;
        }
        Ok(())
    }
}

/// Both are started by this process, and have its limits.
fn raise_files(needed: u64) -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most.max(needed), most.max(needed)).with_context(|| {
        format!("{needed} open files are needed and {most} allowed: `ulimit -Hn {needed}`, or fewer --nodes")
    })
}

fn shown(text: &str) -> Shown {
    let number = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    Shown {
        connected: number("connected"),
        sessions: number("sessions"),
        changes: number("changes"),
        last_change_ms: number("last_change_ms"),
    }
}

fn used(pid: i32) -> Result<Used> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let kib = |name: &str| -> Result<f64> {
        let line = rollup.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        kib.with_context(|| format!("smaps_rollup has no {name}"))
    };
    Ok(Used { rss_kib: kib("Rss:")?, pss_kib: kib("Pss:")?, cpu: cpu_seconds(pid)? })
}

fn cpu_seconds(pid: i32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    cpu_of(&stat).context("/proc/PID/stat cannot be read")
}

/// Seconds in user and system, of a kernel with the usual hundred ticks in each.
fn cpu_of(stat: &str) -> Option<f64> {
    let after = stat.rsplit_once(") ")?.1;
    let mut ticks = after.split(' ').skip(11).take(2).map(|field| field.parse::<f64>().ok());
    Some((ticks.next()?? + ticks.next()??) / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read() {
        let counted = shown("nodes 3\nconnected 2\nsessions 5\nchanges 7\nlast_change_ms 9\n");
        let Shown { connected, sessions, changes, last_change_ms } = counted;
        assert_eq!((connected, sessions, changes, last_change_ms), (2, 5, 7, 9));
        let own = used(std::process::id().cast_signed()).unwrap();
        assert!(own.rss_kib > 100.0 && own.pss_kib <= own.rss_kib && own.cpu >= 0.0, "{own:?}");
        assert_eq!(cpu_of("1 (a) b) S 1 1 1 0 -1 4 0 0 0 0 150 50 0 0 20"), Some(2.0));
    }
}
