//! Puts the agent together: ledger, drivers, owner, link, and the node's status.

use crate::accelerator::{self, Accelerator};
use crate::config::Config;
use crate::console_log::ConsoleLog;
use crate::drivers::disk::DiskDriver;
use crate::drivers::image::{BlobSource, ImageDriver};
use crate::drivers::instance::{BootRecord, InstanceDriver, argv, program};
use crate::drivers::network::NetworkDriver;
use crate::drivers::snapshot::SnapshotDriver;
use crate::drivers::{self, DriverError};
use crate::env::Env;
use crate::host::process::host_boot_id;
use crate::host::tools::{self, Tool};
use crate::identity::IdentityFolder;
use crate::lease::Lease;
use crate::ledger::Ledger;
use crate::link::{Blob, LedgerView, Lendable, Link, LinkConfig, LinkError, LinkHandle};
use crate::machine::{Guard, Here};
use crate::owner::{Drivers, Event, Owner, Wires};
use crate::{names, node};
use futures_util::StreamExt;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Between two words on the node's own status.
const STATUS_EVERY: Duration = Duration::from_secs(60);

impl LedgerView for Mutex<Ledger> {
    fn cursor(&self) -> u64 {
        self.lock().unwrap_or_else(PoisonError::into_inner).cursor()
    }

    fn db_epoch(&self) -> u64 {
        self.lock().unwrap_or_else(PoisonError::into_inner).db_epoch()
    }
}

/// What was found out about this machine since the start.
#[derive(Debug, Clone, Default)]
struct Machine {
    tools: Vec<Tool>,
    accelerator: Option<Accelerator>,
}

/// Runs the agent until `shutdown`. Guests go on.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let (state, env) = (config.state_dir.clone(), Env::system());
    // The rooms of its folder are there from the start, so that nothing is left that was not there before.
    for room in ["instances", "disks", "snapshots", "images", "networks", "wireguard", "run"] {
        std::fs::create_dir_all(state.join(room))?;
    }
    let ledger = Arc::new(Mutex::new(Ledger::open(&state)?));
    let record = IdentityFolder::new(&state).record()?.ok_or_else(|| {
        anyhow::anyhow!("{} holds no identity: run `rhyzome-agent join` first", state.display())
    })?;
    let here = Here::of(config.pretend.as_deref());
    let link_config = LinkConfig {
        server: config.server.clone().unwrap_or_else(|| record.server.clone()),
        state_dir: state.clone(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        boot_id: here.boot_id.clone(),
        machine_id: here.machine_id.clone(),
        incarnation: rhyzome_pki::random_hex().unwrap_or_default(),
        socket_of: socket_of(&state),
        env: env.clone(),
    };
    tracing::info!(node = record.node_name, server = link_config.server, state = %state.display(), "agent starts");
    let (link, handle, link_events) = Link::new(link_config, ledger.clone())?;

    let (ring, bell) = mpsc::unbounded_channel();
    let (events, heard) = mpsc::unbounded_channel();
    let session = Arc::new(Notify::new());
    let drivers = Drivers {
        images: Arc::new(ImageDriver::new(&state, blob_source(handle.clone()))),
        disks: Arc::new(DiskDriver::new(&state)),
        snapshots: Arc::new(SnapshotDriver::new(&state)),
        networks: NetworkDriver::new(&state),
        instances: Arc::new(guarded(InstanceDriver::new(&state, ring))),
        plain: drivers::plain(&state, &env, config.wireguard),
    };
    let teller = {
        let handle = handle.clone();
        Arc::new(move |report| handle.report(report))
    };
    let finder = {
        let handle = handle.clone();
        Arc::new(move |findings| handle.findings(findings))
    };
    let guard = Guard::of(&state, &here.machine_id, env.clone());
    let (told, leases, folder) = (session.clone(), handle.clone(), state.clone());
    let owner = tokio::spawn(async move {
        // Where the folder may be a copy of another machine's, nothing is done before the server has said that it is not.
        let link = guard.admit(link_events).await;
        let wires = Wires { link, teller, findings: finder, session: told, events: heard, bell };
        let wanter = Arc::new(move |wanted| leases.want_lease(wanted));
        // By the real boot, as the guard has it.
        let lease = Lease::open(&folder, &host_boot_id());
        Owner::new(ledger, Arc::new(drivers), wires, here.boot_id, env).with_lease(lease, wanter).run().await;
    });
    let (found, machine) = watch::channel(Machine::default());
    tokio::spawn(tell_status(state, handle, session, machine));
    tokio::spawn(find_out(config, events, found));

    tokio::select! {
        () = link.run(shutdown) => {}
        ended = owner => anyhow::bail!("the agent's loop ended: {ended:?}"),
    }
    tracing::info!("agent ends; guests go on");
    Ok(())
}

/// The guard is this very program. By its own name, so that people see what it is; unless its file was replaced already.
fn guarded(driver: InstanceDriver) -> InstanceDriver {
    match std::env::current_exe() {
        Ok(program) if program.exists() => driver.guarded_by(program.display().to_string()),
        _ => driver,
    }
}

/// Tries the tools, then the accelerator: some seconds at worst, beside everything else.
async fn find_out(config: Config, events: mpsc::UnboundedSender<Event>, found: watch::Sender<Machine>) {
    let wireguard = config.wireguard;
    let tools = tokio::task::spawn_blocking(move || tools::probe(wireguard)).await.unwrap_or_default();
    for tool in tools.iter().filter(|tool| !tool.available) {
        tracing::warn!(tool = tool.name, "{}", tool.detail);
    }
    let _ = events.send(Event::Missing(node::missing(&tools)));
    found.send_modify(|machine| machine.tools.clone_from(&tools));
    let qemu = tools.iter().find(|tool| tool.name == "qemu" && tool.available);
    let version = qemu.map(|tool| tool.detail.as_str());
    let chosen = accelerator::choose(config.accelerator, &program(), version, &config.state_dir).await;
    if chosen.name == "kvm" {
        tracing::info!(accelerator = chosen.name, reason = chosen.reason, "accelerator");
    } else {
        tracing::warn!(accelerator = chosen.name, reason = chosen.reason, "accelerator");
    }
    if chosen.name != "none" {
        let _ = events.send(Event::Accelerator(chosen.name.clone()));
    }
    found.send_modify(|machine| machine.accelerator = Some(chosen));
}

async fn tell_status(
    state: PathBuf,
    link: LinkHandle,
    session: Arc<Notify>,
    mut machine: watch::Receiver<Machine>,
) {
    let mut timer = tokio::time::interval(STATUS_EVERY);
    loop {
        tokio::select! {
            () = session.notified() => {}
            _ = timer.tick() => {}
            changed = machine.changed() => if changed.is_err() {
                // All is found out; only the others remain.
                tokio::select! {
                    () = session.notified() => {}
                    _ = timer.tick() => {}
                }
            }
        }
        let known = machine.borrow().clone();
        link.node_status(node::status(&state, known.accelerator.as_ref(), &known.tools));
    }
}

/// Images come over the link.
fn blob_source(link: LinkHandle) -> BlobSource {
    Arc::new(move |sha256, offset| {
        let link = link.clone();
        Box::pin(async move {
            let blob = link.fetch_blob(&sha256, offset).await.map_err(retry)?;
            Ok(futures_util::stream::try_unfold(blob, next_chunk).boxed())
        })
    })
}

async fn next_chunk(mut blob: Blob) -> Result<Option<(bytes::Bytes, Blob)>, DriverError> {
    Ok(blob.next().await.map_err(retry)?.map(|chunk| (chunk, blob)))
}

fn retry(error: LinkError) -> DriverError {
    DriverError::Retry(format!("fetch image: {error}"))
}

/// The streams that a server may want lent.
fn socket_of(state: &Path) -> crate::link::SocketOf {
    let state = state.to_owned();
    Arc::new(move |object_id, purpose| {
        if let Some(from) = purpose.strip_prefix("snapshot:").and_then(|from| from.parse().ok()) {
            let file = SnapshotDriver::new(&state).file(object_id).map_err(|error| error.to_string())?;
            return Ok(Lendable::File { file, from });
        }
        let port = purpose.strip_prefix("port:").and_then(|port| port.parse().ok());
        if !(matches!(purpose, "console" | "log") || port.is_some()) || !names::is_safe_id(object_id) {
            return Err(format!("this node lends no {purpose:?} of {object_id:?}"));
        }
        let folder = names::instance_folder(&state, object_id);
        if let Some(port) = port {
            return port_of(&folder, object_id, port);
        }
        let log = ConsoleLog::at(&folder.join("console.log"));
        if purpose == "log" {
            // One that was never started has a folder at most, and has printed nothing.
            return if folder.exists() {
                Ok(Lendable::Log(log))
            } else {
                Err(format!("{object_id} was never started on this node"))
            };
        }
        let socket = argv::socket(&state, object_id, "console.sock");
        if !socket.exists() {
            return Err(format!("{object_id} does not run on this node"));
        }
        Ok(Lendable::Socket { socket, log: Some(log) })
    })
}

/// A port of what runs there, at the address of its first network interface.
fn port_of(folder: &Path, object_id: &str, port: u16) -> Result<Lendable, String> {
    let boot = BootRecord::read(&folder.join("boot.json"));
    let boot = boot.ok_or_else(|| format!("{object_id} was never started on this node"))?;
    let nic = boot.order.nics.first().ok_or_else(|| format!("{object_id} is on no network"))?;
    let address: Option<Ipv4Addr> = nic.address.split('/').next().and_then(|text| text.parse().ok());
    let address = address.ok_or_else(|| format!("{object_id} has no address"))?;
    Ok(Lendable::Port { namespace: names::namespace(&nic.network_id), address: (address, port).into() })
}
