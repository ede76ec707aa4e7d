//! A private PostgreSQL cluster: in a temporary folder, as a user without rights, on a socket in that folder,
//! ended with the test process. A missing server is an error, not a reason to skip.
//!
//! Tests get one that never waits for the disk; benches one that does, and that counts what it is asked.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::quick;

/// The account that owns the cluster when the tests run as root: PostgreSQL refuses root.
const NOBODY: u32 = 65534;

struct Cluster {
    folder: PathBuf,
    // Closing it ends the server: see `start`.
    _lifeline: ChildStdin,
    _shell: Child,
}

static CLUSTER: OnceLock<Cluster> = OnceLock::new();
static DURABLE: OnceLock<Cluster> = OnceLock::new();
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Where the disk is not memory, on any machine.
pub const ON_DISK: &str = "/var/tmp";

/// As tests have it. Servers that come and go in one process have more connections than one server would.
const QUICK: &str = "-F -c max_connections=300";
/// As a server has it that loses nothing; and what counts must not be disturbed by what is done in the background.
const COUNTING: &str = "-c shared_buffers=1GB -c max_wal_size=8GB -c checkpoint_timeout=1h -c max_connections=100 \
                        -c shared_preload_libraries=pg_stat_statements -c pg_stat_statements.max=10000 \
                        -c track_io_timing=off -c autovacuum=off -c jit=off";

/// A database of the cluster, which is started when first asked for. It goes with this value: hundreds of them
/// would fill the disk.
pub struct Database {
    name: String,
    host: String,
}

impl Database {
    /// A new, empty one.
    pub fn new() -> Database {
        Database::on(CLUSTER.get_or_init(|| start(&quick::below(), QUICK)))
    }

    /// A new one in the same cluster, with all that is in this one, to which nobody is connected.
    pub fn copy(&self) -> Database {
        Database::made(self.host.clone(), Some(&self.name))
    }

    /// A new, empty one in a cluster on the disk, which waits for it at each commit, and counts statements.
    pub fn durable() -> Database {
        let database = Database::on(DURABLE.get_or_init(|| start(Path::new(ON_DISK), COUNTING)));
        let mut counts = database.tool("psql");
        let made =
            counts.args(["-c", "CREATE EXTENSION pg_stat_statements"]).output().expect("psql can be run");
        assert!(made.status.success(), "pg_stat_statements: {}", String::from_utf8_lossy(&made.stderr));
        database
    }

    fn on(cluster: &Cluster) -> Database {
        Database::made(cluster.folder.display().to_string(), None)
    }

    fn made(host: String, like: Option<&str>) -> Database {
        let name = format!("t{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let database = Database { name, host };
        let made =
            database.tool("createdb").args(like.map(|like| ["-T", like]).into_iter().flatten()).output();
        let made = made.expect("createdb can be run");
        assert!(made.status.success(), "createdb: {}", String::from_utf8_lossy(&made.stderr));
        database
    }

    /// How to open it.
    pub fn url(&self) -> String {
        format!("dbname={} host={} user=rhyzome", self.name, self.host)
    }

    /// The files of the whole cluster, its log of changes among them, and a dump of this database.
    pub fn written(&self) -> Vec<u8> {
        let dump = self.tool("pg_dump").output().expect("pg_dump can be run");
        assert!(dump.status.success(), "pg_dump: {}", String::from_utf8_lossy(&dump.stderr));
        let mut all = dump.stdout;
        read_below(&Path::new(&self.host).join("data"), &mut all);
        all
    }

    fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(tool(name));
        command.args(["-h", &self.host, "-U", "rhyzome", &self.name]);
        command
    }
}

fn read_below(folder: &Path, into: &mut Vec<u8>) {
    for entry in std::fs::read_dir(folder).expect("the cluster's folder can be read").flatten() {
        let path = entry.path();
        if path.is_dir() {
            read_below(&path, into);
        } else if let Ok(mut bytes) = std::fs::read(&path) {
            // What goes while we look belongs to another test.
            into.append(&mut bytes);
        }
    }
}

impl Default for Database {
    fn default() -> Database {
        Database::new()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // What a test left running still holds connections. If it fails, the whole cluster goes soon.
        let _ = self.tool("dropdb").arg("--force").output();
    }
}

/// Starts one in a new folder below `below`, with these options.
fn start(below: &Path, options: &str) -> Cluster {
    let made = tempfile::Builder::new().prefix("rhyzome-pg-").tempdir_in(below);
    let folder = made.expect("a temporary folder").keep();
    let root = nix::unistd::geteuid().is_root();
    if root {
        std::os::unix::fs::chown(&folder, Some(NOBODY), Some(NOBODY)).expect("chown");
        // A server under test runs as another user yet, and comes by the socket.
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o711)).expect("chmod");
    }
    let as_nobody = |mut command: Command| {
        if root {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.current_dir(&folder);
        command
    };
    let mut initdb = as_nobody(Command::new(tool("initdb")));
    initdb.args(["-D", "data", "-U", "rhyzome", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]);
    let output = initdb.output().expect("initdb can be run");
    assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
    // The shell ends the server when its standard input closes: when this process ends, however it ends.
    let script = format!(
        "\"$0\" -D data -k \"$PWD\" -h '' {options} >log 2>&1 & pid=$!; cat >/dev/null; kill -INT $pid; \
         wait $pid; cd /; rm -rf \"$OLDPWD\""
    );
    let mut shell = as_nobody(Command::new("sh"));
    shell.arg("-c").arg(script).arg(tool("postgres")).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut shell = shell.process_group(0).spawn().expect("sh can be run");
    let lifeline = shell.stdin.take().expect("it was piped");
    let socket = folder.join(".s.PGSQL.5432");
    let end = Instant::now() + Duration::from_secs(30);
    while !(socket.exists() && answers(&folder)) {
        let log = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
        assert!(Instant::now() < end, "PostgreSQL did not start: {log}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Cluster { folder, _lifeline: lifeline, _shell: shell }
}

fn answers(folder: &Path) -> bool {
    let host = folder.display().to_string();
    let asked = Command::new(tool("psql"))
        .args(["-h", &host, "-U", "rhyzome", "-c", "select 1", "postgres"])
        .output();
    asked.is_ok_and(|output| output.status.success())
}

/// A program of the newest PostgreSQL that is installed: Debian keeps its server's beside the PATH.
fn tool(name: &str) -> PathBuf {
    let mut folders: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.flatten().map(|entry| entry.path().join("bin")).collect())
        .unwrap_or_default();
    folders.sort();
    folders.reverse();
    folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    folders
        .into_iter()
        .map(|folder| folder.join(name))
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("`{name}` is not installed: apt-get install postgresql"))
}
