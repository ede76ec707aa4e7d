//! Machines for agents, as far as networks go: namespaces of their own, each with a line to the server that can be cut.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::unistd::User;

use super::super::house::until;

pub struct Machines {
    all: Vec<Machine>,
    port: u16,
}

struct Machine {
    node: &'static str,
    /// Whose namespaces are the machine's.
    holder: Child,
    /// This end of its line.
    line: String,
    /// Ours and its address on it.
    addresses: [String; 2],
}

fn run(words: &[&str]) {
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Machine {
    fn new(node: &'static str, number: u32) -> Machine {
        let own = std::process::id();
        // Names of networks are the node's own, too.
        let prepare =
            "mkdir -p /run/netns && mount -t tmpfs none /run/netns && ip link set lo up && exec sleep 86400";
        let holder = Command::new("unshare")
            .args(["--mount", "--net", "sh", "-c", prepare])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let pid = holder.id().to_string();
        until("a machine", 20, || {
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
            words.starts_with(b"sleep").then_some(())
        });
        let line = format!("ls{own}n{number}");
        let (third, fourth) = (own % 250, number * 4);
        let addresses = [1, 2].map(|last| format!("10.231.{third}.{}", fourth + last));
        let machine = Machine { node, holder, line, addresses };
        run(&["ip", "link", "add", &machine.line, "type", "veth", "peer", "name", "up0", "netns", &pid]);
        run(&["ip", "address", "add", &format!("{}/30", machine.addresses[0]), "dev", &machine.line]);
        run(&["ip", "link", "set", &machine.line, "up"]);
        let inside = format!("{}/30", machine.addresses[1]);
        run(&["nsenter", "-t", &pid, "-n", "ip", "address", "add", &inside, "dev", "up0"]);
        run(&["nsenter", "-t", &pid, "-n", "ip", "link", "set", "up0", "up"]);
        machine
    }
}

impl Machines {
    pub fn new(nodes: [&'static str; 2]) -> Machines {
        let all = nodes.into_iter().zip(1..).map(|(node, number)| Machine::new(node, number)).collect();
        let port = TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
        Machines { all, port }
    }

    /// Where the server listens for agents.
    pub fn server(&self) -> SocketAddr {
        SocketAddr::from(([0, 0, 0, 0], self.port))
    }

    /// The server's names, one on each line.
    pub fn names(&self) -> Vec<String> {
        self.all.iter().map(|machine| machine.addresses[0].clone()).collect()
    }

    /// What puts each agent onto its machine.
    pub fn around(&self) -> Vec<(String, Vec<String>)> {
        let around = |machine: &Machine| {
            let pid = machine.holder.id().to_string();
            let server = format!("RHYZOME_AGENT_SERVER={}:{}", machine.addresses[0], self.port);
            let words = ["nsenter", "-t", &pid, "-m", "-n", "--", "env", &server];
            (machine.node.to_owned(), words.map(str::to_owned).to_vec())
        };
        self.all.iter().map(around).collect()
    }

    /// Nothing passes any more, and nobody is told.
    pub fn cut(&mut self, node: &str) {
        self.set(node, "down");
    }

    /// It passes again.
    pub fn mend(&mut self, node: &str) {
        self.set(node, "up");
    }

    /// At the machine's own end: ours keeps its address.
    fn set(&self, node: &str, how: &str) {
        let machine = self.all.iter().find(|machine| machine.node == node).unwrap();
        let pid = machine.holder.id().to_string();
        run(&["nsenter", "-t", &pid, "-n", "ip", "link", "set", "up0", how]);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "delete", &self.line]).output();
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A folder that all nodes share.
pub fn shared_folder(world: &Path) -> PathBuf {
    let folder = world.join("shared");
    std::fs::create_dir(&folder).unwrap();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    let user = User::from_name("rhyzome").unwrap().unwrap();
    std::os::unix::fs::chown(&folder, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    folder
}
