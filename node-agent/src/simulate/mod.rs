//! `rhyzome-agent simulate`: many nodes in one process, on which nothing is made.
//!
//! Each node has the production link (its own key and certificate, mutual TLS, renewal), the production ledger and the
//! production owner; only its drivers are fakes that note what they would do. For tests, for benches, and for trying the
//! API where there is no QEMU. A node says of itself that it is simulated.
//!
//! - `invitations`: joining. `member`: one node. `machine`: what it stands on. `fake`: what drivers would make.
//! - `rules`: waiting, slowness and failure, as told. `control`: who tells, in lines.
//!
//! Identities and ledgers are kept below the state folder, a folder for each node: started again, they are the same
//! nodes. What was noted to be on a machine is gone then, as after a reboot with empty disks, and is made anew.

mod control;
pub mod fake;
mod invitations;
mod machine;
mod member;
mod rules;

use crate::identity::IdentityFolder;
use crate::{env::Env, names};
use anyhow::{Context as _, bail};
pub use control::Command;
pub use invitations::{Invitation, read};
pub use machine::{ACCELERATOR, Machine, Shared, Size, Tally};
pub use member::Member;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
pub use rules::Rules;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Where the nodes' folders are, unless it is said.
pub const STATE: &str = "var/simulated";
/// Below the state folder: commands are taken here, one a line.
pub const SOCKET: &str = "control.sock";
/// So many agents are started at once, with a pause after them: thousands at the same moment would only wait for one
/// another.
const AT_ONCE: usize = 64;
const PAUSE: Duration = Duration::from_millis(20);
/// Files that a process needs beside its connections.
const OTHER_FILES: u64 = 256;

/// Arguments of `rhyzome-agent simulate`.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// How many nodes [default: all that have joined or are invited]
    #[arg(long)]
    pub nodes: Option<usize>,
    /// Lines that `rhyzome node invite` has printed; `-` reads them from standard input
    #[arg(long, value_name = "FILE")]
    pub invitations: Option<PathBuf>,
    /// Processors that each node says it has
    #[arg(long, default_value_t = 64)]
    pub vcpus: u32,
    /// Memory that each node says it has, in GiB
    #[arg(long, default_value_t = 256)]
    pub memory_gib: u64,
    /// Disk that each node says it has, in GiB
    #[arg(long, default_value_t = 4096)]
    pub disk_gib: u64,
    /// Begin with this command, as if it had been told; may be repeated
    #[arg(long = "tell", value_name = "COMMAND")]
    pub told: Vec<Command>,
}

/// All nodes, and what happens to them.
pub struct Simulation {
    members: BTreeMap<String, Member>,
    shared: Shared,
    // Given up when dropped.
    _lock: Flock<File>,
}

impl Arguments {
    /// What each node says it has.
    fn size(&self) -> Size {
        Size { vcpus: self.vcpus, memory_bytes: self.memory_gib << 30, disk_bytes: self.disk_gib << 30 }
    }

    /// The invitations.
    pub fn read_invitations(&self) -> anyhow::Result<Vec<Invitation>> {
        let Some(file) = &self.invitations else { return Ok(Vec::new()) };
        let text = match file.as_os_str() == "-" {
            true => std::io::read_to_string(std::io::stdin()),
            false => std::fs::read_to_string(file),
        };
        read(&text.with_context(|| format!("the invitations {} cannot be read", file.display()))?)
    }
}

/// Runs until `shutdown`: joins, starts all agents, and takes commands.
pub async fn run(
    arguments: Arguments,
    state: PathBuf,
    server: Option<String>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let invited = arguments.read_invitations()?;
    let mut simulation =
        Simulation::open(&state, invited, arguments.nodes, server.as_deref(), arguments.size()).await?;
    for command in &arguments.told {
        simulation.obey(command)?;
    }
    simulation.start().await?;
    tracing::info!(nodes = simulation.members.len(), state = %state.display(), "simulated nodes run; say `help` for commands");
    let reads_stdin = arguments.invitations.as_deref() != Some(Path::new("-"));
    let simulation = Arc::new(Mutex::new(simulation));
    control::listen(simulation, &state.join(SOCKET), reads_stdin, shutdown).await
}

/// As many open files as so many nodes need, as far as we may have them.
pub fn raise_files(nodes: usize) -> anyhow::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let needed = OTHER_FILES + u64::try_from(nodes)?;
    if soft >= needed {
        return Ok(());
    }
    setrlimit(Resource::RLIMIT_NOFILE, needed, hard.max(needed)).with_context(|| {
        format!("{nodes} nodes need {needed} open files and this process may have {hard}: raise it (`ulimit -Hn {needed}` as root)")
    })
}

impl Simulation {
    /// The nodes that have joined below `state`, and those that are invited; `nodes` of them. Each joins, none is started.
    pub async fn open(
        state: &Path,
        invited: Vec<Invitation>,
        nodes: Option<usize>,
        server: Option<&str>,
        size: Size,
    ) -> anyhow::Result<Simulation> {
        if IdentityFolder::new(state).record()?.is_some() {
            bail!("{} is the folder of a real node; choose another with --state-dir", state.display());
        }
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(state);
        made.with_context(|| format!("{} cannot be made", state.display()))?;
        let lock = only_one(state)?;
        let (joined, invited) = choose(joined(state)?, invited, nodes)?;
        raise_files(joined.len() + invited.len())?;
        let all: Vec<String> = joined.into_iter().chain(invited.iter().map(|one| one.name.clone())).collect();
        invitations::join_all(invited, state, server).await?;
        let shared = Shared { size, rules: Arc::default(), tally: Arc::default(), env: Env::system() };
        let mut members = BTreeMap::new();
        for name in all {
            members.insert(name.clone(), Member::open(&state.join(&name), server, &shared)?);
        }
        Ok(Simulation { members, shared, _lock: lock })
    }

    /// Starts all agents, some at a time.
    pub async fn start(&mut self) -> anyhow::Result<()> {
        for (at, member) in self.members.values_mut().enumerate() {
            member.start()?;
            if (at + 1) % AT_ONCE == 0 {
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(())
    }

    /// The nodes.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// What happens to whatever is done on them.
    pub fn rules(&self) -> &Rules {
        &self.shared.rules
    }
}

/// Two simulations of one folder would be the same nodes twice.
fn only_one(state: &Path) -> anyhow::Result<Flock<File>> {
    let path = state.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("{} cannot be opened", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
        anyhow::anyhow!("{}: another simulation runs in this folder ({error})", state.display())
    })
}

/// The names of the nodes that have joined here, the shorter ones first: sim-2 comes before sim-10.
fn joined(state: &Path) -> anyhow::Result<Vec<String>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(state).with_context(|| state.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if names::is_safe_id(&name) && entry.path().join("identity/node.json").exists() {
            all.push(name);
        }
    }
    all.sort_by(|one, other| (one.len(), one).cmp(&(other.len(), other)));
    Ok(all)
}

/// Which of the nodes run, and which of them have to join first.
fn choose(
    joined: Vec<String>,
    mut invited: Vec<Invitation>,
    nodes: Option<usize>,
) -> anyhow::Result<(Vec<String>, Vec<Invitation>)> {
    invited.retain(|one| !joined.contains(&one.name));
    let there = joined.len() + invited.len();
    let wanted = nodes.unwrap_or(there);
    if there == 0 || wanted > there {
        let more = wanted.max(1) - there;
        bail!(
            "{there} nodes have joined or are invited here; invite {more} more: `rhyzome node invite sim --count {} >FILE`, \
             then add --invitations FILE",
            wanted.max(1)
        );
    }
    let mut joined = joined;
    joined.truncate(wanted);
    invited.truncate(wanted - joined.len());
    Ok((joined, invited))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invited(names: &[&str]) -> Vec<Invitation> {
        let lines = names.iter().map(|name| format!("join --server h:1 --name {name} --token t\n"));
        read(&lines.collect::<String>()).unwrap()
    }

    fn names(chosen: (Vec<String>, Vec<Invitation>)) -> (Vec<String>, Vec<String>) {
        (chosen.0, chosen.1.into_iter().map(|one| one.name).collect())
    }

    #[test]
    fn those_that_have_joined_come_first_and_too_few_are_refused() {
        let joined = || vec!["a".to_owned(), "b".to_owned()];
        let all = names(choose(joined(), invited(&["b", "c"]), None).unwrap());
        assert_eq!(all, (joined(), vec!["c".to_owned()]));
        let one = names(choose(joined(), invited(&["c"]), Some(1)).unwrap());
        assert_eq!(one, (vec!["a".to_owned()], vec![]));
        let few = choose(joined(), vec![], Some(5)).unwrap_err().to_string();
        assert!(few.contains("invite 3 more: `rhyzome node invite sim --count 5"), "{few}");
        let none = choose(vec![], vec![], None).unwrap_err().to_string();
        assert!(none.contains("invite 1 more"), "{none}");
    }

    #[tokio::test]
    async fn the_folder_of_a_real_node_is_refused_and_one_simulation_has_a_folder_for_itself() {
        let folder = tempfile::tempdir().unwrap();
        let size = Size { vcpus: 1, memory_bytes: 1, disk_bytes: 1 };
        let held = only_one(folder.path()).unwrap();
        let open = async || Simulation::open(folder.path(), vec![], None, None, size).await;
        let twice = open().await.err().unwrap().to_string();
        assert!(twice.contains("another simulation runs in this folder"), "{twice}");
        drop(held);
        let empty = open().await.err().unwrap().to_string();
        assert!(empty.contains("invite 1 more"), "{empty}");
        let record = r#"{"node_id":"n","node_name":"n","cluster_id":"c","root_sha256":"","server":"h:1"}"#;
        std::fs::create_dir(folder.path().join("identity")).unwrap();
        std::fs::write(folder.path().join("identity/node.json"), record).unwrap();
        let real = open().await.err().unwrap().to_string();
        assert!(real.contains("is the folder of a real node"), "{real}");
    }
}
