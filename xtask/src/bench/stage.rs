//! Where creates are measured: a real server and agent on the embedded default, an image, a network that is in use.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::exec::{Exec, Watch};
use super::flushes::{Flush, Flushes};
use crate::world::{Options, World, namespace_of};
use crate::{image, procfs, repository, run};

/// The guest's greeting: it is up, and has its address.
const MARKER: &str = "is up, addresses";
/// For whatever should take milliseconds or seconds.
const PATIENCE: Duration = Duration::from_secs(120);
const NODE: &str = "node1";
const INSTANCES: &str = "/v1/tenants/default/instances";

/// A world to measure in.
pub struct Stage {
    /// The world.
    pub world: World,
    /// Executions of QEMU.
    pub watch: Watch,
    /// The network that is in use.
    pub network: String,
    flushes: Flushes,
    folder: PathBuf,
}

/// An instance, and how it came to be.
pub struct Made {
    /// Its id.
    pub id: String,
    /// From right before the request to its answer.
    pub answered: Duration,
    /// From there to the execution of its QEMU.
    pub executed: Duration,
    /// Right before the request.
    pub since: Instant,
    /// The same, on the wall.
    pub asked: SystemTime,
    /// When the answer was there.
    pub accepted: SystemTime,
    /// The execution.
    pub exec: Exec,
}

impl Stage {
    /// Builds what is needed, and starts it in a new folder.
    pub fn set(install: bool, qemu: &Path) -> Result<Stage> {
        let tiny = image::tiny(None, install)?;
        let binaries = release()?;
        // Server and agent run as `rhyzome`, who must be able to reach it.
        let folder = PathBuf::from(format!("/var/lib/rhyzome-bench-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let flushes = Flushes::prepare(&folder.join("flushes"))?;
        let options = Options {
            binaries,
            server_env: flushes.environment(),
            agent_env: flushes.environment(),
            nodes: vec![NODE.to_owned()],
            // What is logged costs time: as much as a user's.
            ..Options::in_folder(&folder)?
        };
        let watch = Watch::of(qemu)?;
        let world = World::start(options)?;
        world.said(&["image", "import", "tiny", &tiny.display().to_string()])?;
        let mut stage = Stage { world, watch, network: String::new(), flushes, folder };
        stage.network = stage.add_network("bench")?;
        // The network stays on the node as long as somebody is on it, and the image as long as a disk needs it.
        let holder = stage.create("holder", "bench")?;
        stage.await_marker(&holder)?;
        stage.stop(&holder.id)?;
        Ok(stage)
    }

    /// One create, until QEMU is executed.
    pub fn create(&self, name: &str, network: &str) -> Result<Made> {
        let body = json!({"name": name, "spec": {"image": "tiny", "nics": {"lan": {"network": network}}}});
        self.watch.forget();
        let (since, asked) = (Instant::now(), SystemTime::now());
        let reply = self.world.call("POST", INSTANCES, Some(&body))?;
        let (answered, accepted) = (since.elapsed(), SystemTime::now());
        if reply.status != 202 {
            bail!("POST {INSTANCES} answers {}: {}", reply.status, reply.body);
        }
        let object: Value = serde_json::from_str(&reply.body)?;
        let id = object["id"].as_str().context("the answer has no id")?.to_owned();
        // Its own pid file says which execution is meant: others may start guests on this machine too.
        let exec = self.watch.next(PATIENCE, |exec| self.is_of(&id, exec))?;
        Ok(Made { id, answered, executed: exec.at.duration_since(since), since, asked, accepted, exec })
    }

    fn is_of(&self, id: &str, exec: &Exec) -> bool {
        let text = fs::read_to_string(self.folder_of(id).join("pid")).unwrap_or_default();
        text.split_whitespace().next().and_then(|pid| pid.parse().ok()) == Some(exec.pid)
    }

    /// What the agent keeps of an instance.
    pub fn folder_of(&self, id: &str) -> PathBuf {
        self.agents_folder().join("instances").join(id)
    }

    /// Everything of the agent.
    pub fn agents_folder(&self) -> PathBuf {
        self.world.state_of(NODE)
    }

    /// The processes of server and agent.
    pub fn pids(&mut self) -> Result<[i32; 2]> {
        let server = self.world.server.pid().context("the server does not run")?;
        let agent = self.world.agents[0].pid().context("the agent does not run")?;
        Ok([server, agent])
    }

    /// How often both waited for the disk until now.
    pub fn flushes(&self) -> Result<Vec<Flush>> {
        self.flushes.seen()
    }

    /// A folder for what is run beside Rhyzome.
    pub fn beside(&self) -> PathBuf {
        self.folder.join("bare")
    }

    /// How long after the request the guest greeted.
    pub fn await_marker(&self, made: &Made) -> Result<Duration> {
        await_marker(&self.folder_of(&made.id).join("console.log"), made.since)
    }

    /// The taps that its QEMU has open, in the order of its command line.
    pub fn taps_of(&self, made: &Made) -> Result<Vec<String>> {
        let seen = procfs::look(made.exec.pid).context("QEMU has ended")?;
        let numbers = seen.argv.iter().flat_map(|word| word.split(',')).filter_map(|o| o.strip_prefix("fd="));
        let tap = |number: &str| {
            let info = fs::read_to_string(format!("/proc/{}/fdinfo/{number}", seen.pid))?;
            let tap = info.lines().find_map(|line| line.strip_prefix("iff:"));
            Ok(tap.context("an inherited descriptor of QEMU is no tap")?.trim().to_owned())
        };
        numbers.map(tap).collect()
    }

    /// The namespace of the network that is in use.
    pub fn namespace(&self) -> String {
        namespace_of(&self.network)
    }

    /// Ends its guest; what was made for it stays.
    pub fn stop(&self, id: &str) -> Result<()> {
        self.world.said(&["instance", "stop", id, "--hard", "--wait"]).map(drop)
    }

    /// Takes it away.
    pub fn delete(&self, id: &str) -> Result<()> {
        self.world.said(&["instance", "delete", id, "--wait"]).map(drop)
    }

    /// A network that no node holds yet.
    pub fn add_network(&self, name: &str) -> Result<String> {
        let reply = self.world.call("POST", "/v1/tenants/default/networks", Some(&json!({"name": name})))?;
        let object: Value = serde_json::from_str(&reply.body)?;
        object["id"].as_str().map(str::to_owned).with_context(|| format!("no network: {}", reply.body))
    }

    /// Ends everything and removes the folder.
    pub fn clear(self) -> Result<()> {
        drop(self.world);
        fs::remove_dir_all(&self.folder)
            .with_context(|| format!("{} cannot be removed", self.folder.display()))
    }
}

/// How long after `since` the greeting was in this console's log.
pub fn await_marker(log: &Path, since: Instant) -> Result<Duration> {
    let (mut text, mut offset) = (Vec::new(), 0);
    while since.elapsed() < PATIENCE {
        if let Ok(mut file) = fs::File::open(log) {
            file.seek(SeekFrom::Start(offset))?;
            offset += file.read_to_end(&mut text)? as u64;
            if String::from_utf8_lossy(&text).contains(MARKER) {
                return Ok(since.elapsed());
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    bail!("the guest did not greet within {} s; see {}", PATIENCE.as_secs(), log.display())
}

/// Builds the product as it is shipped; answers where the programs are.
pub(super) fn release() -> Result<PathBuf> {
    let words =
        ["build", "--release", "--quiet", "--bins", "--package", "rhyzome-api", "--package", "rhyzome-agent"];
    run::shown(run::cargo().args(words).args(["--package", "rhyzome"]))?;
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from);
    Ok(target.join("release"))
}
