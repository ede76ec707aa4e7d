//! `cargo xtask demo`: from a bare machine to a running instance, and back to nothing, as any user would do it.
//!
//! Everything that happens to the cloud goes through the `rhyzome` command line over REST. Only the proof looks
//! past it: what is left on the machine is compared without asking the agent.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

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

/// What the guest runs on its first boot. It counts itself, and leaves behind what serves the page on every boot: that
/// counts itself as well, on the bare disk that was attached as `data`.
const INIT: &str = r#"#!/bin/sh
mkdir -p /www /var/lib/demo /var/lib/cloud/scripts/per-boot
echo run >> /var/lib/demo/runs
cat > /var/lib/cloud/scripts/per-boot/page <<'PAGE'
#!/bin/sh
boots=$(cat /var/lib/rhyzome/boots)
runs=$(wc -l < /var/lib/demo/runs)
disk=missing
for block in /sys/block/vd*; do
    [ "$(cat "$block/serial")" = data ] || continue
    device=/dev/${block##*/}
    count=$(dd if="$device" bs=512 count=1 2>/dev/null | tr -dc 0-9)
    printf '%-512s' $((count + 1)) | dd of="$device" bs=512 conv=fsync 2>/dev/null
    # Past the guest's memory of it: from the disk itself.
    echo 3 > /proc/sys/vm/drop_caches
    disk=$(dd if="$device" bs=512 count=1 2>/dev/null | tr -dc 0-9)
done
echo "<h1>$(hostname)</h1> boots=$boots runs=$((runs)) disk=$disk" > /www/index.html
httpd -p 80 -h /www
PAGE
chmod +x /var/lib/cloud/scripts/per-boot/page
/var/lib/cloud/scripts/per-boot/page
"#;

/// Ports that a user can remember; the same on every run, unless somebody else has them.
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
    (options.http, options.grpc) = (if_free(HTTP)?, if_free(GRPC)?);
    let world = World::start(options)?;
    progress.done(&format!(
        "the server runs at http://{}, and its node is ready; everything is under {}",
        world.http,
        world.folder.display()
    ));
    for (usual, what, taken) in [(HTTP, "REST", world.http), (GRPC, "the agents' door", world.grpc)] {
        if usual.parse() != Ok(taken) {
            println!("{usual} is taken: {what} is at {taken}");
        }
    }
    Ok(world)
}

/// The address, unless another program listens there: then any free one will do.
fn if_free(address: &str) -> Result<Option<SocketAddr>> {
    let address: SocketAddr = address.parse()?;
    Ok(TcpListener::bind(address).is_ok().then_some(address))
}

/// What any user would do.
fn story(world: &World, tiny: &Path) -> Result<()> {
    let script = world.folder.join("init.sh");
    fs::write(&script, INIT)?;
    let (tiny, script) = (tiny.display().to_string(), format!("@{}", script.display()));
    shown(world, &["image", "import", "tiny", &tiny])?;
    shown(world, &["network", "create", "lan", "--cidr", "10.20.30.0/24"])?;
    shown(world, &["disk", "create", "data", "--size", "64MiB"])?;
    let words = "instance create web --image tiny --set nics.lan.network=lan --set disks.data.disk=data --tag env=demo";
    let words: Vec<&str> = words.split(' ').chain(["--user-data", &script]).collect();
    shown(world, &words)?;
    follow(world, "web")?;
    let instance = world.json(&["instance", "show", "web"])?;
    let address =
        instance["status"]["nics"]["lan"]["address"].as_str().context("the answer has no address")?;
    let network = instance["spec"]["nics"]["lan"]["network"].as_str().context("the answer has no network")?;
    greeting(world)?;
    page(world, network, address, "boots=1 runs=1 disk=1")?;
    for verb in ["stop", "start"] {
        shown(world, &["instance", verb, "web"])?;
        follow(world, "web")?;
    }
    page(world, network, address, "boots=2 runs=1 disk=2")?;
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

/// Waits for the last job of an instance, and shows each of its steps as the API tells it.
fn follow(world: &World, name: &str) -> Result<()> {
    let instance = world.json(&["instance", "show", name])?;
    let id = instance["job"].as_str().context("the instance has no job")?;
    let progress = Progress::bar(&format!("job {id}"));
    let until = Instant::now() + BOOT;
    let mut told = String::new();
    loop {
        let job = world.json(&["job", "show", id])?;
        let (percent, step) = how_far(&job);
        match job["state"].as_str().unwrap_or_default() {
            "done" => {
                progress.done("done");
                return Ok(());
            }
            state @ ("failed" | "cancelled") => bail!("{id} is {state}: {}", job["problem"]),
            _ if Instant::now() > until => bail!("{id} is not done after {} s: {job:#}", BOOT.as_secs()),
            _ => {}
        }
        let now = format!("{percent} {step}");
        if now != told {
            progress.at(percent, &step);
            told = now;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// How much of a job is done, and its present step: `3 of 6, await applied: fetching the image, 40 %`.
fn how_far(job: &Value) -> (u64, String) {
    let steps = job["steps"].as_array().map(Vec::as_slice).unwrap_or_default();
    let done = steps.iter().filter(|step| step["state"] == "done").count();
    let Some(step) = steps.get(done) else {
        return (100, job["state"].as_str().unwrap_or_default().to_owned());
    };
    let within = step["progress"].as_u64().unwrap_or(0).min(100);
    let percent = (100 * done as u64 + within) / steps.len() as u64;
    let what = step["what"]["do"].as_str().unwrap_or_default().replace('_', " ");
    let message = step["message"].as_str().filter(|message| !message.is_empty());
    let mut text = format!("step {} of {}, {what}", done + 1, steps.len());
    text.extend(message.map(|message| format!(": {message}")));
    if within > 0 {
        text.push_str(&format!(", {within} %"));
    }
    (percent, text)
}

/// Waits for the guest's greeting on its console, and shows it.
fn greeting(world: &World) -> Result<()> {
    let words = ["instance", "console", "web", "--show"];
    println!("\n$ rhyzome {}", words.join(" "));
    let progress = Progress::start("guest");
    progress.step("booting (emulated where the machine has no KVM)");
    let until = Instant::now() + BOOT;
    let mut told = String::new();
    loop {
        let said = world.said(&words)?;
        if let Some(line) = said.lines().find(|line| line.contains(" is up, addresses ")) {
            progress.done(line.trim());
            return Ok(());
        }
        let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("booting").trim().to_owned();
        if last != told {
            progress.step(&last);
            told = last;
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

#[cfg(test)]
mod tests {
    use std::{iter, thread};

    use super::*;

    #[test]
    fn the_bar_is_where_the_job_is() {
        let step = |state: &str, progress: u64| serde_json::json!({"what": {"do": "await_applied"}, "state": state, "progress": progress, "message": "x"});
        let job = serde_json::json!({"state": "running", "steps": [step("done", 100), step("running", 50)]});
        assert_eq!(how_far(&job), (75, "step 2 of 2, await applied: x, 50 %".to_owned()));
        let job = serde_json::json!({"state": "done", "steps": [step("done", 100)]});
        assert_eq!(how_far(&job), (100, "done".to_owned()));
    }

    #[test]
    fn a_taken_port_is_not_asked_for() {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = other.local_addr().unwrap();
        assert_eq!(if_free(&address.to_string()).unwrap(), None);
        drop(other);
        // A process that another test begins at this moment has it too, until it is the program that it is to become.
        let ask = || if_free(&address.to_string()).unwrap();
        let free = iter::repeat_with(|| {
            ask().or_else(|| {
                thread::sleep(Duration::from_millis(20));
                None
            })
        });
        assert_eq!(free.take(250).flatten().next(), Some(address));
    }
}
