//! graphile-worker, the peer: a queue in PostgreSQL too (MIT), from the registry of its own world, in a folder that
//! goes with the bench.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use rhyzome_tests::world::World;

const PACKAGE: &str = "graphile-worker@0.17.3";
const SCRIPT: &str = include_str!("peer.mjs");

/// The worker's process.
pub struct Peer {
    process: Mutex<Child>,
    _folder: tempfile::TempDir,
}

impl Peer {
    /// Installs it, and lets it make its tables.
    pub async fn install(world: &World) -> Result<Peer> {
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("package.json"), "{}")?;
        std::fs::write(folder.path().join("peer.mjs"), SCRIPT)?;
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-audit", "--no-fund", "--silent", PACKAGE]).current_dir(folder.path());
        let done = npm.output().context("npm cannot be run")?;
        ensure!(done.status.success(), "npm: {}", String::from_utf8_lossy(&done.stderr));
        let options = world.postgres_options();
        let (database, socket) = (
            options.get_database().context("the database has a name")?,
            options.get_socket().context("the database has a socket")?.display().to_string(),
        );
        let url = format!("postgres://rhyzome@localhost/{database}?host={}", socket.replace('/', "%2F"));
        let mut node = Command::new("node");
        node.args(["peer.mjs", &url]).current_dir(folder.path());
        let process =
            node.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("node cannot be run")?;
        let peer = Peer { process: Mutex::new(process), _folder: folder };
        // The first time makes its tables, and warms up.
        peer.once()?;
        Ok(peer)
    }

    /// Jobs per second, from when it begins until a backlog of so many is done.
    #[allow(clippy::cast_precision_loss, reason = "so many are never added")]
    pub async fn drained(&self, world: &World, many: u64) -> Result<f64> {
        world
            .sql(&format!(
                "SELECT count(*) FROM graphile_worker.add_jobs(array(SELECT ('nothing', '{{}}', null, null, null, \
                 null, null, null)::graphile_worker.job_spec FROM generate_series(1, {many})))"
            ))
            .await;
        let seconds = tokio::task::block_in_place(|| self.once())?;
        world.sql("VACUUM (ANALYZE) graphile_worker._private_jobs").await;
        Ok(many as f64 / seconds)
    }

    /// Drains what is there; how many seconds that took.
    fn once(&self) -> Result<f64> {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stdin = process.stdin.as_ref().context("it has no standard input")?;
        writeln!(stdin, "go")?;
        let mut line = String::new();
        let stdout = process.stdout.as_mut().context("it has no standard output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        line.trim().parse().with_context(|| format!("graphile-worker says `{line}`"))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = process.kill();
        let _ = process.wait();
    }
}
