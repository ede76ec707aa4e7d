//! What passes through a tunnel between two namespaces: ours on both ends, then wireguard-go on both, in turn.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rhyzome_agent::host::netns;
use rhyzome_agent::names;
use rhyzome_agent::wireguard::engine::{Engine as _, Place};
use rhyzome_agent::wireguard::keys::{PublicKey, SecretKey};
use rhyzome_agent::wireguard::plan::{Change, Peer};
use rhyzome_agent::wireguard::process::Userspace;
use serde_json::Value;
use xtask::bench::figure::{Figure, median, number};
use xtask::progress::Progress;

/// How often each kind is measured, in turn.
const PAIRS: usize = 5;
/// How long each time, and how long before that what passes is not counted.
const SECONDS: [&str; 2] = ["4", "1"];
const MTU: u32 = 1420;
const PORT: u16 = 5000;
/// How long anything may take before the bench gives up on it.
const PATIENCE: Duration = Duration::from_secs(20);

/// Measures; answers the figure.
pub fn run(progress: &Progress) -> Result<Vec<Figure>> {
    let (mut ours, mut theirs, mut ratios) = (vec![], vec![], vec![]);
    for round in 1..=PAIRS {
        progress.step(&format!("throughput {round} of {PAIRS}"));
        // Who is first changes: a machine that gets busier favours neither.
        let (own, other) = if round % 2 == 1 {
            let other = through(Kind::Go)?;
            (through(Kind::Own)?, other)
        } else {
            (through(Kind::Own)?, through(Kind::Go)?)
        };
        ratios.push(own / other);
        ours.push(own);
        theirs.push(other);
    }
    let beside = format!(
        "median of {PAIRS} pairs; {} beside {}",
        number(median(&ours).round(), "Mbit/s"),
        number(median(&theirs).round(), "Mbit/s")
    );
    Ok(vec![Figure::new("throughput: ours / wireguard-go", median(&ratios), "").beside(beside).at_least(1.0)])
}

/// Whose device.
#[derive(Clone, Copy)]
enum Kind {
    Own,
    Go,
}

/// Megabits a second through a tunnel of this kind.
fn through(kind: Kind) -> Result<f64> {
    let pair = Pair::new()?;
    let ends = [End::start(kind, &pair, 0)?, End::start(kind, &pair, 1)?];
    ends.iter().try_for_each(End::configure)?;
    iperf(&pair)
}

/// Two namespaces and a cable.
struct Pair([String; 2]);

impl Pair {
    fn new() -> Result<Self> {
        let pair = Pair(["a", "b"].map(|side| format!("wgbench{}{side}", std::process::id())));
        pair.0.iter().try_for_each(|name| netns::create(name))?;
        let [one, other] = &pair.0;
        run_program(&[
            "ip", "link", "add", "wire", "netns", one, "type", "veth", "peer", "name", "wire", "netns", other,
        ])?;
        for (number, name) in pair.0.iter().enumerate() {
            run_program(&["ip", "-n", name, "addr", "add", &format!("{}/24", outer(number)), "dev", "wire"])?;
            run_program(&["ip", "-n", name, "link", "set", "wire", "up"])?;
            run_program(&["ip", "-n", name, "link", "set", "lo", "up"])?;
        }
        Ok(pair)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for name in &self.0 {
            if let Err(error) = netns::delete(name) {
                eprintln!("the namespace {name} is left: {error}");
            }
        }
    }
}

fn outer(side: usize) -> String {
    format!("10.1.0.{}", side + 1)
}

fn inner(side: usize) -> String {
    format!("10.2.0.{}", side + 1)
}

/// One end of a tunnel. Its process ends with it.
struct End {
    side: usize,
    namespace: String,
    name: String,
    device: Device,
}

enum Device {
    Own(Userspace, #[allow(dead_code, reason = "its socket is in there")] tempfile::TempDir),
    Go(Child),
}

impl End {
    fn start(kind: Kind, pair: &Pair, side: usize) -> Result<End> {
        let namespace = pair.0[side].clone();
        let name = format!("{}{side}{}", names::WIREGUARD_PREFIX, std::process::id());
        let device = match kind {
            Kind::Own => {
                let folder = tempfile::tempdir()?;
                Device::Own(Userspace::new(folder.path()), folder)
            }
            Kind::Go => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", &namespace, "wireguard-go", "-f", &name]);
                let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
                Device::Go(child.context("wireguard-go")?)
            }
        };
        let end = End { side, namespace, name, device };
        match &end.device {
            // Its UDP socket is in the namespace, too, as that of wireguard-go is.
            Device::Own(engine, _) => {
                netns::run_in(&end.namespace, || engine.ensure(&end.place(), MTU))?;
            }
            Device::Go(_) => {
                let socket = format!("/var/run/wireguard/{}.sock", end.name);
                let deadline = Instant::now() + PATIENCE;
                while UnixStream::connect(&socket).is_err() {
                    ensure!(Instant::now() < deadline, "wireguard-go does not answer at {socket}");
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
        Ok(end)
    }

    fn place(&self) -> Place {
        Place { id: self.name.clone(), name: self.name.clone(), namespace: None }
    }

    fn configure(&self) -> Result<()> {
        let other = 1 - self.side;
        let public = wg(&["pubkey"], &PublicKey(private(other).0).to_string())?;
        match &self.device {
            Device::Own(engine, _) => {
                let peer = Peer {
                    key: PublicKey::parse(&public).map_err(anyhow::Error::msg)?,
                    preshared: None,
                    allowed: BTreeSet::from([format!("{}/32", inner(other)).parse()?]),
                    endpoint: Some(format!("{}:{PORT}", outer(other)).parse()?),
                    keepalive: 0,
                };
                let key = Some(private(self.side));
                let change =
                    Change { private_key: key, port: Some(PORT), set: vec![peer], ..Change::default() };
                netns::run_in(&self.namespace, || engine.set(&self.place(), &change))?;
            }
            Device::Go(_) => {
                let text = format!(
                    "[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n[Peer]\nPublicKey = {public}\n\
                     AllowedIPs = {}/32\nEndpoint = {}:{PORT}\n",
                    PublicKey(private(self.side).0),
                    inner(other),
                    outer(other)
                );
                wg(&["setconf", &self.name, "/dev/stdin"], &text)?;
            }
        }
        let (namespace, name) = (&self.namespace, &self.name);
        run_program(&[
            "ip",
            "-n",
            namespace,
            "addr",
            "add",
            &format!("{}/24", inner(self.side)),
            "dev",
            name,
        ])?;
        run_program(&["ip", "-n", namespace, "link", "set", name, "mtu", &MTU.to_string(), "up"])
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let place = self.place();
        let ended = match &mut self.device {
            Device::Own(engine, _) => netns::run_in(&self.namespace, || engine.remove(&place)),
            // It takes its socket away by itself.
            Device::Go(child) => kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM)
                .map_err(Into::into)
                .and_then(|()| child.wait().map(drop)),
        };
        if let Err(error) = ended {
            eprintln!("the device {} is left: {error}", self.name);
        }
    }
}

/// The private keys of the two ends.
fn private(side: usize) -> SecretKey {
    SecretKey([if side == 0 { 0x48 } else { 0x50 }; 32])
}

/// Megabits a second, after the first one.
fn iperf(pair: &Pair) -> Result<f64> {
    let [one, other] = &pair.0;
    run_program(&["ip", "netns", "exec", one, "ping", "-c1", "-w10", "-q", &inner(1)])?;
    let mut server = Command::new("ip");
    server.args(["netns", "exec", other, "iperf3", "-s", "-1"]).stdin(Stdio::null()).stdout(Stdio::null());
    let mut server = Ending(server.spawn().context("iperf3")?);
    let deadline = Instant::now() + PATIENCE;
    let [seconds, omitted] = SECONDS;
    loop {
        let mut client = Command::new("ip");
        client.args(["netns", "exec", one, "iperf3", "-J", "-c", &inner(1), "-t", seconds, "-O", omitted]);
        let said: Value = serde_json::from_slice(&client.output()?.stdout).unwrap_or_default();
        if let Some(bits) = said["end"]["sum_received"]["bits_per_second"].as_f64() {
            server.0.wait()?;
            return Ok(bits / 1e6);
        }
        // It may not listen yet.
        ensure!(Instant::now() < deadline, "iperf3: {}", said["error"]);
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A process that is ended when it is not waited for.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        // One that has ended already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wg(words: &[&str], input: &str) -> Result<String> {
    let mut command = Command::new("wg");
    let mut child = command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("wg")?;
    child.stdin.take().context("wg")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "wg {words:?} fails");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Runs a program to its end, which must be a good one.
fn run_program(words: &[&str]) -> Result<()> {
    let output = Command::new(words[0]).args(&words[1..]).output().with_context(|| words[0].to_owned())?;
    ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
