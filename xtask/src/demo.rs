//! `cargo xtask demo`: from a bare machine to a running instance, and back to nothing, as any user would do it.
//!
//! Everything that happens to the cloud goes through the `rhyzome` command line over REST. Only the proof looks
//! past it: what is left on the machine is compared without asking the agent.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::leftovers::{Snapshot, settled};
use crate::progress::Progress;
use crate::world::{Options, World, end_all};
use crate::{image, packages, repository, run};

/// Arguments of `cargo xtask demo`.
#[derive(Args)]
pub struct Arguments {
    /// End everything after the proof, instead of leaving the server running
    #[arg(long)]
    exit: bool,
    /// Install nothing: refuse when packages are missing, and say which
    #[arg(long)]
    no_install: bool,
    /// End a demo that was left running, with its guests
    #[arg(long, conflicts_with = "exit")]
    stop: bool,
    /// Everything goes under here [default: /var/lib/rhyzome-demo as root, else ./var/demo]
    #[arg(long)]
    folder: Option<PathBuf>,
}

/// What the guest runs on its first boot. It counts itself, and leaves behind what serves the page on every boot.
const INIT: &str = r#"#!/bin/sh
mkdir -p /www /var/lib/demo /var/lib/cloud/scripts/per-boot
echo run >> /var/lib/demo/runs
cat > /var/lib/cloud/scripts/per-boot/page <<'PAGE'
#!/bin/sh
boots=$(cat /var/lib/rhyzome/boots)
runs=$(wc -l < /var/lib/demo/runs)
echo "<h1>$(hostname)</h1> boots=$boots runs=$((runs))" > /www/index.html
httpd -p 80 -h /www
PAGE
chmod +x /var/lib/cloud/scripts/per-boot/page
/var/lib/cloud/scripts/per-boot/page
"#;

/// Ports that a user can remember; the same on every run.
const HTTP: &str = "127.0.0.1:8440";
const GRPC: &str = "127.0.0.1:8441";
/// How long an emulated guest may take to boot on a busy machine.
const BOOT: Duration = Duration::from_secs(180);

/// Runs the command.
pub fn main(arguments: &Arguments) -> Result<()> {
    let folder = arguments.folder.clone().unwrap_or_else(default_folder);
    if arguments.stop {
        return stop(&folder);
    }
    packages::ensure(&[packages::DEMO, packages::IMAGE_TINY], !arguments.no_install)?;
    build()?;
    let tiny = image::tiny(None, !arguments.no_install)?;
    let world = start(&folder)?;
    let before = Snapshot::take(&world.folder)?;
    story(&world, &tiny)?;
    prove(&before, &world)?;
    if arguments.exit {
        drop(world);
        println!("\nThe server and the agent have ended; what they kept is in {}.", folder.display());
        return Ok(());
    }
    farewell(&world)?;
    world.leave();
    Ok(())
}

fn default_folder() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        "/var/lib/rhyzome-demo".into()
    } else {
        repository().join("var/demo")
    }
}

fn build() -> Result<()> {
    println!("\n--- building server, agent and command line");
    run::shown(run::cargo().arg("build"))
}

fn stop(folder: &Path) -> Result<()> {
    let folder = fs::canonicalize(folder).with_context(|| format!("no demo is in {}", folder.display()))?;
    match end_all(&folder).first() {
        Some(line) => bail!("{line}"),
        None => println!("the demo in {} has ended", folder.display()),
    }
    Ok(())
}

/// A new cloud: an earlier demo's is ended first, and what was in it goes.
fn start(folder: &Path) -> Result<World> {
    let progress = Progress::start("cloud");
    progress.step("ending an earlier demo, if one runs, and removing what was in it");
    if folder.exists() {
        let folder = fs::canonicalize(folder)?;
        if let Some(line) = end_all(&folder).first() {
            bail!("an earlier demo does not end: {line}");
        }
        for part in ["server", "node1"] {
            match fs::remove_dir_all(folder.join(part)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    bail!("{}: {error}; remove it as root", folder.join(part).display());
                }
                _ => {}
            }
        }
    }
    progress.step("starting the server; the agent joins by token");
    let mut options = Options::in_folder(folder)?;
    options.binaries = repository().join("target/debug");
    options.own_session = true;
    (options.http, options.grpc) = (Some(HTTP.parse()?), Some(GRPC.parse()?));
    let world = World::start(options)?;
    progress.done(&format!(
        "the server runs, and its node is ready; everything is under {}",
        world.folder.display()
    ));
    Ok(world)
}

/// What any user would do.
fn story(world: &World, tiny: &Path) -> Result<()> {
    let script = world.folder.join("init.sh");
    fs::write(&script, INIT)?;
    let (tiny, script) = (tiny.display().to_string(), format!("@{}", script.display()));
    shown(world, &["image", "import", "tiny", &tiny])?;
    shown(world, &["network", "create", "lan", "--cidr", "10.20.30.0/24"])?;
    shown(world, &["disk", "create", "data", "--size", "64MiB"])?;
    let nic = "nics.lan.network=lan";
    let disk = "disks.data.disk=data";
    shown(
        world,
        &[
            "instance",
            "create",
            "web",
            "--image",
            "tiny",
            "--set",
            nic,
            "--set",
            disk,
            "--user-data",
            &script,
            "--tag",
            "env=demo",
            "--wait",
        ],
    )?;
    let instance = world.json(&["instance", "show", "web"])?;
    let address =
        instance["status"]["nics"]["lan"]["address"].as_str().context("the answer has no address")?;
    let network = instance["spec"]["nics"]["lan"]["network"].as_str().context("the answer has no network")?;
    greeting(world)?;
    page(world, network, address, "boots=1 runs=1")?;
    shown(world, &["instance", "stop", "web", "--wait"])?;
    shown(world, &["instance", "start", "web", "--wait"])?;
    page(world, network, address, "boots=2 runs=1")?;
    for (kind, name) in [("instance", "web"), ("disk", "data"), ("network", "lan"), ("image", "tiny")] {
        shown(world, &[kind, "delete", name, "--wait"])?;
    }
    Ok(())
}

/// Runs the CLI as a user would see it.
fn shown(world: &World, words: &[&str]) -> Result<()> {
    println!("\n$ rhyzome {}", words.join(" "));
    let mut command = world.command(words);
    command.env_remove("RUST_BACKTRACE");
    run::shown(&mut command)
}

/// Waits for the guest's greeting on its console, and shows it.
fn greeting(world: &World) -> Result<()> {
    let words = ["instance", "console", "web", "--show"];
    println!("\n$ rhyzome {}", words.join(" "));
    let progress = Progress::start("guest");
    progress.step("booting (emulated where the machine has no KVM)");
    let until = Instant::now() + BOOT;
    loop {
        let said = world.said(&words)?;
        if let Some(line) = said.lines().find(|line| line.contains(" is up, addresses ")) {
            progress.done(line.trim());
            return Ok(());
        }
        if Instant::now() > until {
            bail!("the guest did not greet within {} s; its console says: {said}", BOOT.as_secs());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Fetches the guest's page from the host, inside the guest's network: addresses may repeat between networks.
fn page(world: &World, network: &str, address: &str, wanted: &str) -> Result<()> {
    println!("\n$ curl http://{address}/      (on the host, in the network's namespace)");
    let progress = Progress::start("page");
    progress.step("waiting for the guest to serve it");
    let until = Instant::now() + BOOT;
    loop {
        let said = world.guest_page(network, address, 80, "/");
        match said {
            Ok(page) if page.contains(wanted) => {
                progress.done(page.trim());
                return Ok(());
            }
            _ if Instant::now() < until => std::thread::sleep(Duration::from_millis(200)),
            Ok(page) => bail!("the page says `{}`, not `{wanted}`", page.trim()),
            Err(error) => return Err(error.context("the guest does not serve its page")),
        }
    }
}

fn prove(before: &Snapshot, world: &World) -> Result<()> {
    println!();
    let progress = Progress::start("proof");
    progress.step("comparing processes, interfaces, rules, leases and files with those before");
    let left = settled(before, &world.folder, Duration::from_secs(90))?;
    // The script was ours, and so it is no leftover of the cloud's.
    let left: Vec<&String> = left.iter().filter(|line| !line.ends_with("file init.sh")).collect();
    if !left.is_empty() {
        bail!("something is left: {}", left.iter().map(|line| line.as_str()).collect::<Vec<_>>().join("; "));
    }
    progress.done(&format!("nothing is left ({})", before.summary()));
    Ok(())
}

fn farewell(world: &World) -> Result<()> {
    let url = format!("http://{}", world.http);
    let home = world.home().display().to_string();
    let token = format!("$(cat {home}/operator.token)");
    println!("\nThe server and its node go on running: {url}");
    println!("The API's pages: {url}/docs/");
    println!(
        "The command line: RHYZOME_HOME={home} {} --help",
        repository().join("target/debug/rhyzome").display()
    );
    println!("\nTo try (as {}):", if nix::unistd::geteuid().is_root() { "root" } else { "yourself" });
    let header = format!("curl -s -H \"Authorization: Bearer {token}\"");
    println!("  {header} {url}/v1/whoami");
    println!("  {header} {url}/v1/nodes");
    println!(
        "  {header} -H 'Content-Type: application/json' -d '{{\"name\":\"lan\",\"spec\":{{}}}}' \
         {url}/v1/tenants/default/networks"
    );
    println!("\nTo end it, with its guests: cargo xtask demo --stop --folder {}", world.folder.display());
    Ok(())
}
