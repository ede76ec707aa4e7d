//! A folder with a configuration and a database of either kind, and the program in it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rhyzome_api::store::DbUrl;
use rhyzome_sql::Link;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::postgres::Database;

/// A folder that the server can reach as whatever user it becomes.
pub fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    folder
}

/// The program in this folder, with these variables of ours and no others.
fn program(folder: &Path, words: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rhyzome-api"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("RHYZOME_")) {
        command.env_remove(name);
    }
    command.args(words).envs(variables.iter().copied()).env("RUST_LOG", "error").current_dir(folder);
    command.stdin(Stdio::null());
    command
}

/// What the program says on its way out.
pub fn refusal(folder: &Path, words: &[&str], variables: &[(&str, &str)]) -> String {
    let output = program(folder, words, variables).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{words:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{words:?}: {said}");
    assert!(output.stdout.is_empty() && said.starts_with("rhyzome-api: "), "{words:?}: {said}");
    said
}

/// A configuration that is good: nothing outside of the folder is touched.
pub fn good(folder: &Path) -> Value {
    json!({
        "data": folder.join("data"), "user": "nobody",
        "http": {"listen": "127.0.0.1:0"}, "grpc": {"listen": "127.0.0.1:0"},
    })
}

/// A folder with a good configuration, and its database.
pub struct Place {
    pub folder: TempDir,
    pub db: String,
    _database: Option<Database>,
}

/// A server process, ended with the test.
pub struct Running(Child);

impl Place {
    pub fn sqlite() -> Place {
        let folder = folder();
        let db = format!("sqlite:{}", folder.path().join("data/rhyzome.db").display());
        Place { folder, db, _database: None }.configured()
    }

    pub fn postgres() -> Place {
        let database = Database::new();
        Place { folder: folder(), db: database.url(), _database: Some(database) }.configured()
    }

    pub fn both() -> [Place; 2] {
        [Place::sqlite(), Place::postgres()]
    }

    fn configured(self) -> Place {
        let mut config = good(self.path());
        config["db"] = json!(self.db);
        std::fs::write(self.path().join("rhyzome-api.json"), config.to_string()).unwrap();
        self
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// What the program says when all goes well.
    pub fn done(&self, words: &[&str]) -> String {
        let output = program(self.path(), words, &[]).output().unwrap();
        let wrong = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{words:?}: {wrong}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What it says when it refuses.
    pub fn refused(&self, words: &[&str]) -> String {
        refusal(self.path(), words, &[])
    }

    /// A connection of the test's own, to a database that is there.
    pub async fn link(&self) -> Link {
        self.db.parse::<DbUrl>().unwrap().link(false).await.unwrap()
    }

    /// What the database has written outside of the folder.
    pub fn written(&self) -> Vec<u8> {
        self._database.as_ref().map(Database::written).unwrap_or_default()
    }

    /// A server that is ready.
    pub fn serve(&self) -> Running {
        self.started(program(self.path(), &[], &[]))
    }

    /// As `serve`; all that it says, and it says much, ends up in this file.
    pub fn serve_saying(&self, log: &Path) -> Running {
        let mut command = program(self.path(), &[], &[]);
        let file = std::fs::File::create(log).unwrap();
        command.env("RUST_LOG", "debug").stdout(file.try_clone().unwrap()).stderr(file);
        self.started(command)
    }

    fn started(&self, mut command: Command) -> Running {
        // An earlier one may have left it.
        let ready = self.path().join("data/client.json");
        let _ = std::fs::remove_file(&ready);
        let mut server = Running(command.spawn().unwrap());
        let end = Instant::now() + Duration::from_secs(60);
        while !ready.exists() {
            assert!(
                server.0.try_wait().unwrap().is_none() && Instant::now() < end,
                "the server does not start"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }
}

impl Running {
    /// Of the process.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Ends it as a fault of its own would.
    pub fn crash(mut self, signal: Signal) -> ExitStatus {
        kill(Pid::from_raw(self.0.id() as i32), signal).unwrap();
        self.0.wait().unwrap()
    }

    /// Ends it in order, and waits for that.
    pub fn stop(mut self) {
        kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM).unwrap();
        let status = self.0.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself, which the test has seen then.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
