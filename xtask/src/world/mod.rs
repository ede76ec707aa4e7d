//! A whole Rhyzome of real processes, under one folder: the server, agents that have joined it, and the CLI.
//!
//! For the demo, the benches and the tests. It ends what it started, and nothing else, when it is dropped: guests and
//! what serves them as well, which outlive their agent and are known by its folder in their command lines.

mod answering;
mod machine;
mod options;
mod process;

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::{http, procfs};
pub use answering::{Answering, free_address};
pub use machine::{namespace_of, prepare};
pub use options::{Options, binaries};
pub use process::{Process, Style};

/// How long a server may take to answer, and a node to be ready: TCG and a busy machine counted in.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running Rhyzome.
#[derive(Debug)]
pub struct World {
    /// Everything is under here.
    pub folder: PathBuf,
    /// Where REST is.
    pub http: SocketAddr,
    /// Where agents dial in.
    pub grpc: SocketAddr,
    /// The server; with `Options::split` the one that serves REST.
    pub server: Process,
    /// With `Options::split`: the one that agents dial in to.
    pub door: Option<Process>,
    /// The agents, in the order of `Options::nodes`.
    pub agents: Vec<Process>,
    nodes: Vec<String>,
    options: Options,
    is_left: bool,
}

impl World {
    /// Starts the server, lets its nodes join, starts their agents, and waits until all are ready.
    pub fn start(options: Options) -> Result<World> {
        let nodes = options.nodes.clone();
        let mut world = World::start_server(options)?;
        for node in nodes {
            world.add_node(&node)?;
        }
        Ok(world)
    }

    /// Starts the server only, and waits until it answers.
    pub fn start_server(options: Options) -> Result<World> {
        fs::create_dir_all(&options.folder)
            .with_context(|| format!("{} cannot be made", options.folder.display()))?;
        let folder = fs::canonicalize(&options.folder)?;
        prepare(&options.binaries)?;
        machine::check_traversable(&folder)?;
        let (http, grpc) = options.addresses()?;
        let mut config = json!({
            "data": folder.join("server"),
            "http": {"listen": http.to_string()}, "grpc": {"listen": grpc.to_string()},
        });
        options::merge(&mut config, &options.config);
        if let Some(db) = &options.db {
            config["db"] = json!(db);
        }
        let file = folder.join("rhyzome-api.json");
        fs::write(&file, format!("{config:#}\n"))?;
        let style = Style { own_session: options.own_session, by_sudo: false };
        let process = |name: &str, role: Option<&str>| {
            let mut words =
                vec![options.binary("rhyzome-api"), "--config".into(), file.display().to_string()];
            words.extend(role.map(str::to_owned));
            Process::new(name, &folder, words, style).with_environment(options.server_env.clone())
        };
        let (server, door) = if options.split {
            (process("server", Some("http")), Some(process("server-grpc", Some("grpc"))))
        } else {
            (process("server", None), None)
        };
        let mut world = World {
            folder,
            http,
            grpc,
            server,
            door,
            agents: Vec::new(),
            nodes: Vec::new(),
            options,
            is_left: false,
        };
        world.restart_server()?;
        Ok(world)
    }

    /// Starts the server (again) and waits until it answers; of two processes those that do not run, at once.
    pub fn restart_server(&mut self) -> Result<()> {
        if let Some(door) = &mut self.door
            && !door.is_running()
        {
            door.start()?;
        }
        if self.door.is_none() || !self.server.is_running() {
            self.server.start()?;
        }
        let until = Instant::now() + PATIENCE;
        while !self.is_healthy() {
            if !self.server.is_running() {
                bail!("the server ended{}", self.server.last_words());
            }
            if Instant::now() > until {
                bail!(
                    "the server does not answer at http://{}/healthz{}",
                    self.http,
                    self.server.last_words()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let grpc = self.grpc;
        let Some(door) = &mut self.door else { return Ok(()) };
        while TcpStream::connect_timeout(&grpc, Duration::from_secs(5)).is_err() {
            if !door.is_running() || Instant::now() > until {
                bail!("agents cannot dial in at {grpc}{}", door.last_words());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Whether the server answers.
    pub fn is_healthy(&self) -> bool {
        self.home().join("client.json").exists()
            && http::page(self.http, "/healthz", Duration::from_secs(5)).is_ok()
    }

    /// Lets another machine join: a folder and an agent of its own. One that has joined before is only started.
    pub fn add_node(&mut self, node: &str) -> Result<()> {
        let state = self.state_of(node);
        let agent = self.options.binary("rhyzome-agent");
        let mut common = vec!["--state-dir".to_owned(), state.display().to_string()];
        if !nix::unistd::geteuid().is_root() {
            // Under sudo, the agent goes on as the user who called, with the rights it needs.
            common.extend(["--user".into(), machine::own_name()?]);
        }
        if !state.join("identity/node.json").exists() {
            let invited = self.json(&["node", "invite", node])?;
            let line = invited["command"].as_str().context("the invitation has no command")?;
            let mut words = vec![agent.clone()];
            words.extend(line.split_whitespace().skip(1).map(str::to_owned));
            words.extend(common.clone());
            machine::as_root(&words, &self.options.agent_env)?;
        }
        let around = self.options.around.iter().filter(|(name, _)| name == node);
        let mut words: Vec<String> = around.flat_map(|(_, words)| words.clone()).collect();
        words.extend([agent, "run".to_owned()]);
        words.extend(common);
        words.extend(self.options.agent_arguments.clone());
        let by_sudo = !nix::unistd::geteuid().is_root();
        let style = Style { own_session: self.options.own_session, by_sudo };
        let process = Process::new(&format!("agent-{node}"), &self.folder, words, style)
            .with_environment(self.options.agent_env.clone());
        self.agents.push(process);
        self.nodes.push(node.to_owned());
        self.restart_agent(self.agents.len() - 1)
    }

    /// Starts an agent (again) and waits until the server calls its node ready.
    pub fn restart_agent(&mut self, index: usize) -> Result<()> {
        // The node may still be called ready after its last agent: this agent must have a session of its own.
        let sessions = |agent: &Process| agent.log_text().matches("session with the server").count();
        let before = sessions(&self.agents[index]);
        self.agents[index].start()?;
        let until = Instant::now() + PATIENCE;
        while sessions(&self.agents[index]) <= before {
            let agent = &mut self.agents[index];
            if !agent.is_running() || Instant::now() > until {
                bail!("the agent gets no session with the server{}", agent.last_words());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.await_node(index)
    }

    /// Waits until the server calls this agent's node ready.
    pub fn await_node(&mut self, index: usize) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            let node = self.json(&["node", "show", &self.nodes[index]])?;
            if node["phase"] == "ready" {
                return Ok(());
            }
            let agent = &mut self.agents[index];
            if !agent.is_running() {
                bail!("the agent ended{}", agent.last_words());
            }
            if Instant::now() > until {
                bail!("the node {} is still {}{}", self.nodes[index], node["phase"], agent.last_words());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The agent's own folder of a node.
    pub fn state_of(&self, node: &str) -> PathBuf {
        self.folder.join(node)
    }

    /// The server's own folder, in which the CLI finds address and token.
    pub fn home(&self) -> PathBuf {
        self.folder.join("server")
    }

    /// The operator's token.
    pub fn token(&self) -> Result<String> {
        Ok(fs::read_to_string(self.home().join("operator.token"))?.trim().to_owned())
    }

    /// The CLI, ready to be run with these words.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(self.options.binary("rhyzome"));
        // What the user has set for a server of their own is not meant for this one.
        for other in [
            "RHYZOME_URL",
            "RHYZOME_TOKEN",
            "RHYZOME_CA",
            "RHYZOME_TENANT",
            "RHYZOME_PROFILE",
            "RHYZOME_AS",
            "RHYZOME_OTP",
        ] {
            command.env_remove(other);
        }
        command.args(words).env("RHYZOME_HOME", self.home()).stdin(Stdio::null());
        command
    }

    /// Runs the CLI to its end with its output captured.
    pub fn cli(&self, words: &[&str]) -> Result<Output> {
        self.command(words).output().context("the CLI cannot be run")
    }

    /// Runs the CLI and answers what it printed; its error if it fails.
    pub fn said(&self, words: &[&str]) -> Result<String> {
        let output = self.cli(words)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("`rhyzome {}`: {}", words.join(" "), said.trim().trim_start_matches("rhyzome: "));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs the CLI with `--output json` and answers what it printed.
    pub fn json(&self, words: &[&str]) -> Result<Value> {
        let text = self.said(&[words, &["--output", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("`rhyzome {}` printed no JSON", words.join(" ")))
    }

    /// One request to the REST API as the operator: plain HTTP, as it listens on loopback.
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<http::Reply> {
        let mut headers = vec![format!("Authorization: Bearer {}", self.token()?)];
        let body = body.map(Value::to_string).unwrap_or_default();
        if !body.is_empty() {
            headers.push("Content-Type: application/json".into());
        }
        http::request(self.http, method, path, &headers, &body, PATIENCE)
    }

    /// Fetches a page of a guest from this machine, inside the guest's network.
    pub fn guest_page(&self, network_id: &str, address: &str, port: u16, path: &str) -> Result<String> {
        let address = address.split('/').next().unwrap_or_default();
        let ip = address.parse().with_context(|| format!("`{address}` is no address"))?;
        let server = SocketAddr::new(ip, port);
        machine::guest_page(&namespace_of(network_id), server, path, Duration::from_secs(3))
    }

    /// Leaves everything running after us.
    pub fn leave(mut self) {
        self.is_left = true;
        self.agents.drain(..).for_each(Process::leave);
        // The rest of it is dropped without being ended.
        let empty = Process::new("left", &self.folder, Vec::new(), Style::default());
        std::mem::replace(&mut self.server, empty).leave();
        self.door.take().into_iter().for_each(Process::leave);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.is_left {
            return;
        }
        self.agents.clear();
        let empty = Process::new("ended", &self.folder, Vec::new(), Style::default());
        drop(std::mem::replace(&mut self.server, empty));
        drop(self.door.take());
        for line in end_all(&self.folder) {
            eprintln!("{line}");
        }
    }
}

/// Ends every process whose command line names `folder`, and takes away the namespaces of its networks. Answers what
/// could not be ended.
pub fn end_all(folder: &Path) -> Vec<String> {
    let mut running = procfs::of(folder);
    // Not whoever only works in there, such as a user's shell.
    let ours = ["rhyzome-api", "rhyzome-agent", "qemu-system-", "qemu-img", "dnsmasq"];
    running.retain(|seen| {
        let program = seen.argv[0].rsplit('/').next().unwrap_or_default();
        ours.iter().any(|name| program.starts_with(name))
    });
    // Agents and servers first: they would start the rest again.
    let (first, then): (Vec<_>, Vec<_>) =
        running.into_iter().partition(|seen| seen.argv[0].contains("rhyzome-"));
    let mut left = procfs::end(&first, Duration::from_secs(10));
    left.extend(procfs::end(&then, Duration::from_secs(2)));
    let mut lines: Vec<String> =
        left.iter().map(|seen| format!("process {} does not end: {}", seen.pid, seen.line())).collect();
    lines.extend(machine::remove_namespaces(folder));
    lines
}
