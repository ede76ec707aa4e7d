//! A node on a machine of its own, as far as networks go, and the laptops of its users: namespaces with a cable to it, in
//! which Debian's `wg-quick` and `wireguard-go` take the file that `rhyzome` printed.

use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use xtask::world::Options;

use super::super::house::until;

/// What the users of the pool and of the server dial.
pub const HOSTNAME: &str = "vpn.example.test";

fn run(words: &[&str]) -> String {
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A namespace, by name; gone with its cables when it is dropped.
struct Namespace(String);

impl Namespace {
    fn new(name: String) -> Namespace {
        run(&["ip", "netns", "add", &name]);
        let namespace = Namespace(name);
        namespace.ip("link set lo up");
        namespace
    }

    fn ip(&self, words: &str) {
        let words: Vec<&str> = ["ip", "-n", &self.0].into_iter().chain(words.split(' ')).collect();
        run(&words);
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // What is left of it fails the story that looks for what is left.
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).output();
    }
}

/// Where the agent of `node1` runs.
pub struct Machine {
    namespace: Namespace,
    server: SocketAddr,
    /// This machine's end of its cable.
    here: String,
}

impl Machine {
    pub fn new() -> Machine {
        // Another one each time: the one of the story before goes when that story's turn is over.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (own, number) = (std::process::id(), COUNT.fetch_add(1, Ordering::SeqCst));
        let namespace = Namespace::new(format!("rzvpn{own}n{number}"));
        let (cable, third) = (format!("rzv{own}n{number}"), own % 250);
        let [here, there] = [1, 2].map(|last| format!("10.232.{third}.{}", 4 * number + last));
        let machine = Machine { namespace, server: free_port(), here };
        let there = format!("{there}/30");
        run(&[
            "ip",
            "link",
            "add",
            &cable,
            "type",
            "veth",
            "peer",
            "name",
            "up0",
            "netns",
            &machine.namespace.0,
        ]);
        run(&["ip", "address", "add", &format!("{}/30", machine.here), "dev", &cable]);
        run(&["ip", "link", "set", &cable, "up"]);
        machine.namespace.ip(&format!("address add {there} dev up0"));
        machine.namespace.ip("link set up0 up");
        machine
    }

    /// Has the agent run there, and the server hear it.
    pub fn furnish(&self, options: &mut Options) {
        options.grpc = Some(self.server);
        options.config = json!({"grpc": {"names": [self.here]}});
        let words = vec!["nsenter".to_owned(), format!("--net=/run/netns/{}", self.namespace.0)];
        options.around = vec![("node1".to_owned(), words)];
    }
}

fn free_port() -> SocketAddr {
    TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap()
}

/// A laptop, wired to the machine that the VPN is on, which it knows by name.
pub struct Laptop {
    namespace: Namespace,
    /// Its own address, as the node sees it.
    pub address: String,
    file: PathBuf,
    path: String,
    is_up: bool,
}

impl Laptop {
    pub fn new(machine: &Machine, folder: &Path) -> Laptop {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (own, number) = (std::process::id(), COUNT.fetch_add(1, Ordering::SeqCst));
        let namespace = Namespace::new(format!("rzlap{own}n{number}"));
        let (cable, third, fourth) = (format!("lap{number}"), own % 250, 4 * number);
        let [node, address] = [1, 2].map(|last| format!("10.233.{third}.{}", fourth + last));
        machine.namespace.ip(&format!("link add {cable} type veth peer name wire0 netns {}", namespace.0));
        machine.namespace.ip(&format!("address add {node}/30 dev {cable}"));
        machine.namespace.ip(&format!("link set {cable} up"));
        namespace.ip(&format!("address add {address}/30 dev wire0"));
        namespace.ip("link set wire0 up");
        // `ip netns exec` puts these files where programs look for them.
        let etc = Path::new("/etc/netns").join(&namespace.0);
        std::fs::create_dir_all(&etc).unwrap();
        std::fs::write(etc.join("hosts"), format!("127.0.0.1 localhost\n{node} {HOSTNAME}\n")).unwrap();
        std::fs::write(etc.join("resolv.conf"), "").unwrap();
        // What keeps a laptop's resolvers: wg-quick tells it of those that the file names.
        let programs = folder.join(format!("laptop{number}"));
        std::fs::create_dir(&programs).unwrap();
        let script = "#!/bin/sh\ncase $1 in\n-a) cat >FILE ;;\n-d) : >FILE ;;\nesac\n";
        let script = script.replace("FILE", &etc.join("resolv.conf").display().to_string());
        std::fs::write(programs.join("resolvconf"), script).unwrap();
        let executable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(programs.join("resolvconf"), executable).unwrap();
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
        let file = programs.join(format!("rzl{own}n{number}.conf"));
        Laptop { namespace, address, file, path, is_up: false }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace.0]).args(words);
        command.env("PATH", &self.path).stdin(Stdio::null());
        command
    }

    fn try_run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// Takes exactly this file.
    pub fn up(&mut self, printed: &str) {
        assert!(!self.is_up);
        std::fs::write(&self.file, printed).unwrap();
        std::fs::set_permissions(&self.file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let said = self.try_run(&["wg-quick", "up", self.file.to_str().unwrap()]);
        assert!(said.status.success(), "{printed}\n{}", String::from_utf8_lossy(&said.stderr));
        self.is_up = true;
    }

    pub fn down(&mut self) {
        if std::mem::take(&mut self.is_up) {
            let said = self.try_run(&["wg-quick", "down", self.file.to_str().unwrap()]);
            assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
            // Its process ends after that, and takes its socket along; the next one has the same name.
            let name = self.file.file_stem().unwrap().to_str().unwrap();
            let socket = Path::new("/var/run/wireguard").join(format!("{name}.sock"));
            until("the end of wireguard-go", 30, || (!socket.exists()).then_some(()));
        }
    }

    /// Whether an answer comes within so many seconds.
    pub fn pings(&self, to: &str, seconds: u32) -> bool {
        self.try_run(&["ping", "-c1", "-w", &seconds.to_string(), to]).status.success()
    }

    /// A page, if it is there.
    pub fn page(&self, url: &str) -> Option<String> {
        let said = self.try_run(&["curl", "-sSf", "--max-time", "5", url]);
        said.status.success().then(|| String::from_utf8_lossy(&said.stdout).into_owned())
    }

    /// Asks 50 times a second until it is stopped.
    pub fn keep_asking(&self, to: &str) -> Asking {
        let mut command = self.command(&["ping", "-i", "0.02", to]);
        let mut ping = command.stdout(Stdio::piped()).spawn().unwrap();
        let (said, mut out) = (Arc::new(Mutex::new(Vec::new())), BufReader::new(ping.stdout.take().unwrap()));
        let all = said.clone();
        let listener = std::thread::spawn(move || {
            let mut line = Vec::new();
            while out.read_until(b'\n', &mut line).unwrap() > 0 {
                all.lock().unwrap().append(&mut line);
            }
        });
        Asking { ping, said, listener }
    }
}

impl Drop for Laptop {
    fn drop(&mut self) {
        if self.is_up {
            let _ = self.try_run(&["wg-quick", "down", self.file.to_str().unwrap()]);
        }
        let _ = std::fs::remove_dir_all(Path::new("/etc/netns").join(&self.namespace.0));
        // The last one takes the folder along, if we made it.
        let _ = std::fs::remove_dir("/etc/netns");
    }
}

/// A `ping` that goes on.
pub struct Asking {
    ping: Child,
    said: Arc<Mutex<Vec<u8>>>,
    listener: JoinHandle<()>,
}

impl Asking {
    fn said(&self) -> String {
        String::from_utf8(self.said.lock().unwrap().clone()).unwrap()
    }

    fn answered(&self) -> usize {
        self.said().matches(" bytes from ").count()
    }

    /// Waits for this many answers more.
    pub fn goes_on(&self, answers: usize) {
        let wanted = self.answered() + answers;
        until("more answers", 30, || (self.answered() >= wanted).then_some(()));
    }

    /// How many questions there were and how many answers.
    pub fn stop(mut self) -> (u32, u32) {
        kill(Pid::from_raw(self.ping.id().cast_signed()), Signal::SIGINT).unwrap();
        self.ping.wait().unwrap();
        until("its last words", 30, || self.listener.is_finished().then_some(()));
        let said = self.said();
        let line = said.lines().find(|line| line.contains("packets transmitted"));
        let line = line.unwrap_or_else(|| panic!("ping said: {said}"));
        let mut words = line.split(", ").map(|part| part.split(' ').next().unwrap().parse().unwrap());
        (words.next().unwrap(), words.next().unwrap())
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        // It has ended, or its story failed.
        let _ = self.ping.kill();
        let _ = self.ping.wait();
    }
}
