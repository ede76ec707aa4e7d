//! Debian packages that our commands need: which are missing, and how they get installed.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::run;

/// Arguments of commands that fetch something.
#[derive(clap::Args)]
pub struct Installing {
    /// Install nothing: refuse when packages are missing, and say which
    #[arg(long)]
    pub no_install: bool,
}

impl Installing {
    /// Prepares something, and says where it is.
    pub fn run(&self, prepared: impl FnOnce(bool) -> Result<PathBuf>) -> Result<()> {
        println!("{}", prepared(!self.no_install)?.display());
        Ok(())
    }
}

/// Packages that something needs, under a name to say it by.
#[derive(Debug, Clone, Copy)]
pub struct Set {
    /// What needs them.
    pub name: &'static str,
    /// Names of Debian packages.
    pub packages: &'static [&'static str],
}

/// What building the tiny guest image needs.
pub const IMAGE_TINY: Set = Set { name: "image tiny", packages: &["qemu-utils", "mtools", "e2fsprogs"] };

/// What building the Debian guest image needs.
pub const IMAGE_DEBIAN: Set =
    Set { name: "image debian", packages: &["qemu-utils", "mtools", "e2fsprogs", "mmdebstrap"] };

/// What building an image needs beyond that for users other than root.
pub const ROOTLESS: Set = Set { name: "building without root", packages: &["uidmap"] };

/// What the demo needs: a node's tools, and the tiny image's.
pub const DEMO: Set = Set {
    name: "demo",
    packages: &[
        "gcc",
        "make",
        "qemu-system-x86",
        "qemu-utils",
        "nftables",
        "dnsmasq-base",
        "iproute2",
        "iputils-ping",
        "util-linux",
        "curl",
        "mtools",
        "e2fsprogs",
    ],
};

/// What all tests need beyond the demo.
pub const TEST: Set = Set { name: "test", packages: &["postgresql", "mmdebstrap", "xorriso"] };

/// The other end of tunnels in tests: somebody else.
pub const WIREGUARD: Set =
    Set { name: "wireguard", packages: &["wireguard-tools", "wireguard-go", "iproute2", "iputils-ping"] };

/// What benches of the control plane need.
pub const BENCH: Set = Set { name: "bench", packages: &["postgresql"] };

/// What measures tunnels, beside the other end of them.
pub const TUNNELS: Set = Set { name: "bench wireguard", packages: &["iperf3", "nftables"] };

/// What runs programs of npm.
const NODE: Set = Set { name: "npm", packages: &["nodejs", "npm"] };

/// What a real Keycloak needs, and how it is fetched.
pub const KEYCLOAK: Set = Set { name: "keycloak", packages: &["maven", "openjdk-17-jre-headless"] };

/// What a real directory needs. It is started by tests, each with a configuration of its own.
pub const LDAP: Set = Set { name: "ldap", packages: &["slapd", "util-linux"] };

/// The other ends of logins: somebody else. Tests start sshd themselves, each with a configuration of its own.
pub const SSH: Set = Set { name: "ssh", packages: &["openssh-client", "openssh-server", "util-linux"] };

/// What asking the API at random needs.
pub const FUZZ: Set = Set { name: "fuzz", packages: &["python3", "python3-venv"] };

/// Makes sure that the packages of all sets are there.
///
/// Prints what is missing, and installs it through apt-get, as root or by sudo; without `install` it refuses, and says
/// what to install.
pub fn ensure(sets: &[Set], install: bool) -> Result<()> {
    let mut wanted: Vec<&str> = sets.iter().flat_map(|set| set.packages).copied().collect();
    wanted.sort_unstable();
    wanted.dedup();
    let missing = missing(&wanted)?;
    let names = sets.iter().map(|set| set.name).collect::<Vec<_>>().join(", ");
    if missing.is_empty() {
        println!("packages for {names}: all {} are there", wanted.len());
        return Ok(());
    }
    let list = missing.join(" ");
    if !install {
        bail!("packages for {names} are missing; install them with: apt-get install {list}");
    }
    println!("packages for {names}: installing {list}");
    update()?;
    let mut command = as_root("apt-get", &format!("apt-get install {list}"))?;
    command.args(["install", "--yes", "--quiet", "--no-install-recommends"]).args(&missing);
    run::shown(command.env("DEBIAN_FRONTEND", "noninteractive"))
}

/// The same for npm and its node, unless somebody has brought them from elsewhere.
pub fn ensure_npm(install: bool) -> Result<()> {
    let there = |program: &str| {
        let asked =
            Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        asked.is_ok_and(|status| status.success())
    };
    if there("node") && there("npm") { Ok(()) } else { ensure(&[NODE], install) }
}

/// Refreshes apt's lists.
pub fn update() -> Result<()> {
    run::shown(as_root("apt-get", "apt-get update")?.args(["update", "--quiet=2"]))
}

/// Those of `wanted` that are not installed.
fn missing<'a>(wanted: &[&'a str]) -> Result<Vec<&'a str>> {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${db:Status-Status} ${Package}\n"]).args(wanted);
    // It fails when it does not know a name; what it knows it prints all the same.
    let known = match query.output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Err(error) => bail!("dpkg-query cannot be run ({error}): this command needs Debian"),
    };
    Ok(pick_missing(wanted, &known))
}

fn pick_missing<'a>(wanted: &[&'a str], known: &str) -> Vec<&'a str> {
    let installed: Vec<&str> = known.lines().filter_map(|line| line.strip_prefix("installed ")).collect();
    wanted.iter().filter(|name| !installed.contains(*name)).copied().collect()
}

/// A command that runs as root: directly, or by sudo.
fn as_root(program: &str, wish: &str) -> Result<Command> {
    if nix::unistd::geteuid().is_root() {
        return Ok(Command::new(program));
    }
    if !run::succeeds(Command::new("sudo").arg("--version")).unwrap_or(false) {
        bail!("this needs root, and there is no sudo; run as root: {wish}");
    }
    let mut command = Command::new("sudo");
    command.args(["DEBIAN_FRONTEND=noninteractive", program]);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_installed_is_missing() {
        let known = "installed gcc\nnot-installed mtools\nconfig-files nftables\n";
        assert_eq!(
            pick_missing(&["gcc", "mtools", "nftables", "absent"], known),
            ["mtools", "nftables", "absent"]
        );
    }

    #[test]
    fn refusing_names_what_to_install() {
        let set = Set { name: "nothing", packages: &["no-such-package-anywhere"] };
        let refusal = ensure(&[set], false).unwrap_err().to_string();
        assert!(refusal.contains("apt-get install no-such-package-anywhere"), "{refusal}");
    }
}
