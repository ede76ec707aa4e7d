//! `rhyzome-api`: the control plane.

mod memory;

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use rhyzome_api::admin::Admin;
use rhyzome_api::app::{self, Role};
use rhyzome_api::config::Config;
use rhyzome_api::{audit, process, resources, rest, sealing};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The control plane of Rhyzome: REST API, jobs, and the door for the agents.
///
/// No configuration is needed: without any, everything is kept under ./var/rhyzome, and REST is served on
/// http://127.0.0.1:8440.
#[derive(Parser)]
#[command(name = "rhyzome-api", version, after_help = EXAMPLES)]
struct Arguments {
    /// The configuration file [default: rhyzome-api.json here, then in /etc/rhyzome]
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Open both doors (what happens without a word)
    All,
    /// Open the REST door only (PostgreSQL)
    Http,
    /// Open the agents' door only (PostgreSQL)
    Grpc,
    /// Print the API's document (OpenAPI 3.1)
    Openapi,
    /// The audit log
    #[command(subcommand)]
    Audit(Audit),
    #[command(flatten)]
    Admin(Admin),
    /// The keys that seal secrets in the database
    #[command(subcommand)]
    Secret(Secret),
}

#[derive(Subcommand)]
enum Secret {
    /// Add a key, and seal everything with it; also while servers run
    Rotate,
    /// Take away keys that seal nothing any more
    Forget,
    /// Which keys there are, and how much each seals
    Status,
}

#[derive(Subcommand)]
enum Audit {
    /// Prove that no entry of the event log was changed, taken out or put elsewhere
    Verify,
    /// Empty all entries of one actor, for good; that it was done is an entry itself
    Erase {
        /// The actor's name, as entries have it
        actor: String,
    },
}

const EXAMPLES: &str = "Examples:
  rhyzome-api
  RHYZOME_DB='dbname=rhyzome host=/var/run/postgresql' rhyzome-api
  rhyzome-api --config /etc/rhyzome/rhyzome-api.json http";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let role = match arguments.command {
        None | Some(Command::All) => Role::All,
        Some(Command::Http) => Role::Http,
        Some(Command::Grpc) => Role::Grpc,
        Some(Command::Openapi) => {
            print!("{}", rest::document(&resources::registry()));
            return ExitCode::SUCCESS;
        }
        Some(Command::Admin(what)) => return administer(arguments.config.as_deref(), what),
        Some(Command::Audit(what)) => return audit_log(arguments.config.as_deref(), &what),
        Some(Command::Secret(what)) => return secrets(arguments.config.as_deref(), &what),
    };
    let config = match prepare(arguments.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return refuse(&error),
    };
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("RUST_LOG").unwrap_or_else(|_| "info".into()),
        )
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match serve(config, role) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => refuse(&format!("{error:#}")),
    }
}

/// The configuration, read by a process that is allowed no more than it needs from here on.
fn prepare(file: Option<&Path>) -> Result<Config, String> {
    let config = Config::load(file, std::env::vars()).map_err(|error| error.to_string())?;
    process::keep_private();
    process::raise_files();
    process::leave_root(&config.user, &config.data)?;
    Ok(config)
}

/// Exit code 1: something is wrong with the log. 2: it could not be looked at.
fn audit_log(file: Option<&Path>, what: &Audit) -> ExitCode {
    let work = async |config: &Config| -> anyhow::Result<(String, bool)> {
        match what {
            Audit::Verify => {
                let proof = audit::verify(config).await?;
                Ok((audit::report(&proof), proof.faults.is_empty()))
            }
            Audit::Erase { actor } => {
                let count = audit::erase(config, actor).await?;
                Ok((format!("{count} entries were emptied"), true))
            }
        }
    };
    straight(file, work)
}

fn secrets(file: Option<&Path>, what: &Secret) -> ExitCode {
    straight(file, async |config: &Config| {
        let said = match what {
            Secret::Rotate => sealing::rotate(config).await,
            Secret::Forget => sealing::forget(config).await,
            Secret::Status => sealing::status(config).await,
        };
        said.map(|text| (text, true))
    })
}

/// Does something straight on the database, and prints what is to be said of it; `false`: it is nothing good.
fn straight(
    file: Option<&Path>,
    work: impl AsyncFnOnce(&Config) -> anyhow::Result<(String, bool)>,
) -> ExitCode {
    told(prepare(file).and_then(|config| wait_for(work(&config))))
}

fn administer(file: Option<&Path>, what: Admin) -> ExitCode {
    // Who has called is asked, and files that were named are opened, before this process becomes another user.
    let done = what.prepare().map_err(|error| format!("{error:#}")).and_then(|ready| {
        let config = prepare(file)?;
        wait_for(ready.run(&config)).map(|text| (text, true))
    });
    told(done)
}

fn wait_for<T>(work: impl Future<Output = anyhow::Result<T>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| error.to_string())?.block_on(work).map_err(|error| format!("{error:#}"))
}

fn told(done: Result<(String, bool), String>) -> ExitCode {
    match done {
        Ok((text, good)) => {
            println!("{text}");
            if good { ExitCode::SUCCESS } else { ExitCode::from(1) }
        }
        Err(error) => refuse(&error),
    }
}

fn refuse(line: &str) -> ExitCode {
    eprintln!("rhyzome-api: {line}");
    ExitCode::from(2)
}

fn serve(config: Config, role: Role) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(process::workers())
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let on_signal = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("told to stop");
            on_signal.cancel();
        });
        app::run(config, role, stop).await
    })
}
