//! The agent that makes a node hold what the control plane assigned to it.

use clap::{Parser, Subcommand};
use rhyzome_agent::config::{Config, Settings};
use rhyzome_agent::enroll::{Joined, join};
use rhyzome_agent::host::tools;
use rhyzome_agent::{agent, guard, privileges, setup, simulate, status, wireguard};
use std::path::PathBuf;
use std::process::ExitCode;
use tokio_util::sync::CancellationToken;

/// Makes this machine a node of a Rhyzome cluster: runs its guests, disks and networks as ordered.
#[derive(Debug, Parser)]
#[command(name = "rhyzome-agent", version, args_conflicts_with_subcommands = false)]
struct Command {
    /// The configuration file [default: rhyzome-agent.json here, then in /etc/rhyzome]
    #[arg(long, global = true, env = "RHYZOME_AGENT_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Runs the agent (what it does without a word, too)
    Run,
    /// Joins a cluster: trades a token for this node's certificate
    Join {
        /// The node's name, as the token was made for
        #[arg(long, env = "RHYZOME_AGENT_NAME")]
        name: String,
        /// The join token
        #[arg(long, env = "RHYZOME_AGENT_TOKEN", hide_env_values = true)]
        token: String,
    },
    /// Prepares this machine: packages, user, service; prints what it does
    Setup {
        /// Only print it
        #[arg(long)]
        dry_run: bool,
    },
    /// Prints what the agent's folder says: who it is, where it belongs, what it holds, and why it was refused last
    ///
    /// Only reads; works without a server, and while the agent runs or not.
    Status,
    /// Simulates nodes: real agents on machines that are not there; needs no rights
    #[command(after_help = SIMULATE)]
    Simulate(simulate::Arguments),
    /// Tries every tool that the agent needs, and prints what is there and what is missing
    Check,
    /// Carries the packets of one WireGuard device; the agent starts it by itself
    #[command(hide = true)]
    WireguardDevice(wireguard::device::Arguments),
    /// Ends guests that need the node's lease when it ends; the agent starts it by itself
    #[command(hide = true)]
    Guard,
    /// Prints the version
    Version,
}

const SIMULATE: &str = "Two commands, where a server runs:
  rhyzome node invite sim --count 3 >sim.txt
  rhyzome-agent simulate --invitations sim.txt

Later `rhyzome-agent simulate` alone: the nodes are kept in --state-dir [default: var/simulated].
It takes commands on standard input and on control.sock in that folder; `help` shows them.";

/// The exit code for a configuration that cannot be used.
const MISUSE: u8 = 2;

fn main() -> ExitCode {
    let command = Command::parse();
    if let (Some(Verb::Guard), Some(state_dir)) = (&command.verb, &command.settings.state_dir) {
        // Nothing that is wrong with the configuration may keep it from its work.
        return match guard::run(state_dir) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("rhyzome-agent guard: {}: {error}", state_dir.display());
                ExitCode::FAILURE
            }
        };
    }
    if let Some(Verb::WireguardDevice(arguments)) = &command.verb {
        return match wireguard::device::run(arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("rhyzome-agent wireguard-device: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    // Never in the folder of this machine's own agent, unless it is named.
    let loaded = match &command.verb {
        Some(Verb::Simulate(_)) => Config::load_beside(
            command.settings,
            command.config.as_deref(),
            std::env::vars(),
            simulate::STATE,
        ),
        _ => Config::load(command.settings, command.config.as_deref(), std::env::vars()),
    };
    let config = match loaded {
        Ok(config) => config,
        Err(error) => {
            eprintln!("rhyzome-agent: {error}");
            return ExitCode::from(MISUSE);
        }
    };
    match perform(command.verb.unwrap_or(Verb::Run), config) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("rhyzome-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(verb: Verb, config: Config) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::WireguardDevice(_) => anyhow::bail!("a device has no configuration"),
        Verb::Guard => anyhow::bail!("guard needs --state-dir DIR, the agent's own folder"),
        Verb::Version => println!("rhyzome-agent {}", env!("CARGO_PKG_VERSION")),
        Verb::Check => return Ok(check(&config)),
        Verb::Status => print!("{}", status::text(&config.state_dir)?),
        Verb::Setup { dry_run } => setup::run(dry_run, &mut std::io::stdout())?,
        Verb::Run => run(config)?,
        Verb::Simulate(arguments) => {
            log_to_stderr(&config)?;
            let (state, server) = (config.state_dir, config.server);
            until_asked(|shutdown| simulate::run(arguments, state, server, shutdown))?;
        }
        Verb::Join { name, token } => {
            let Some(server) = config.server.clone() else {
                eprintln!("rhyzome-agent: join needs --server HOST:PORT");
                return Ok(ExitCode::from(MISUSE));
            };
            prepare(&config)?;
            match runtime()?.block_on(join(&server, &token, &name, &config.state_dir))? {
                Joined::Now(node) => println!("joined as node {} ({})", node.node_name, node.node_id),
                Joined::Already(node) => println!("is node {} already ({})", node.node_name, node.node_id),
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn check(config: &Config) -> ExitCode {
    let tools = tools::probe(config.wireguard);
    for tool in &tools {
        println!("{:<12} {:<8} {}", tool.name, if tool.available { "ok" } else { "MISSING" }, tool.detail);
    }
    // Without KVM guests are emulated; everything else is needed.
    let is_fine = tools.iter().all(|tool| tool.available || matches!(tool.name, "kvm" | "landlock"));
    if is_fine { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Makes the agent's folder and becomes its user. Only before the first thread: rights belong to threads.
fn prepare(config: &Config) -> anyhow::Result<privileges::Standing> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&config.state_dir).map_err(|error| {
        anyhow::anyhow!("{}: {error}; choose another with --state-dir", config.state_dir.display())
    })?;
    Ok(privileges::become_user(&config.user, &[&config.state_dir])?)
}

fn run(config: Config) -> anyhow::Result<()> {
    log_to_stderr(&config)?;
    let standing = prepare(&config)?;
    if standing.is_warning() {
        tracing::warn!("{standing}");
    } else {
        tracing::info!("{standing}");
    }
    until_asked(|shutdown| agent::run(config, shutdown))
}

/// Runs this until somebody asks us to end.
fn until_asked<F: Future<Output = anyhow::Result<()>>>(
    work: impl FnOnce(CancellationToken) -> F,
) -> anyhow::Result<()> {
    runtime()?.block_on(async {
        let shutdown = CancellationToken::new();
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let asked = shutdown.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            asked.cancel();
        });
        work(shutdown).await
    })
}

/// Small: the agent waits most of the time, and should take little memory meanwhile.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        .thread_keep_alive(std::time::Duration::from_secs(5))
        .enable_all()
        .build()
}

fn log_to_stderr(config: &Config) -> anyhow::Result<()> {
    let filter: tracing_subscriber::EnvFilter =
        config.log.parse().map_err(|error| anyhow::anyhow!("log {:?}: {error}", config.log))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    if config.log_json {
        log.json().init();
    } else {
        log.init();
    }
    Ok(())
}
