//! What a world is to be.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// How a world is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// Everything goes under here. The user `rhyzome` must be able to reach it: not under /root.
    pub folder: PathBuf,
    /// Where `rhyzome-api`, `rhyzome-agent` and `rhyzome` are.
    pub binaries: PathBuf,
    /// The database; the embedded default without it.
    pub db: Option<String>,
    /// REST and the agents' door in two processes (needs `db`).
    pub split: bool,
    /// Where REST listens; a free port of 127.0.0.1 without it.
    pub http: Option<SocketAddr>,
    /// Where agents dial in; a free port of 127.0.0.1 without it.
    pub grpc: Option<SocketAddr>,
    /// More keys of the server's configuration.
    pub config: Value,
    /// Variables for the server.
    pub server_env: Vec<(String, String)>,
    /// Variables for the agents.
    pub agent_env: Vec<(String, String)>,
    /// More words on the agents' command lines.
    pub agent_arguments: Vec<String>,
    /// By node, words before its agent's command line: what puts it into namespaces of its own.
    pub around: Vec<(String, Vec<String>)>,
    /// Names of the nodes that join.
    pub nodes: Vec<String>,
    /// Server and agents get sessions of their own, so that they can be left running.
    pub own_session: bool,
}

impl Options {
    /// The embedded default and one node, with the programs beside the one that runs.
    pub fn in_folder(folder: impl Into<PathBuf>) -> Result<Options> {
        Ok(Options {
            folder: folder.into(),
            binaries: binaries()?,
            db: None,
            split: false,
            http: None,
            grpc: None,
            config: json!({}),
            server_env: Vec::new(),
            agent_env: Vec::new(),
            agent_arguments: Vec::new(),
            around: Vec::new(),
            nodes: vec!["node1".to_owned()],
            own_session: false,
        })
    }

    /// The path of one of the programs.
    pub fn binary(&self, name: &str) -> String {
        self.binaries.join(name).display().to_string()
    }

    pub(super) fn addresses(&self) -> Result<(SocketAddr, SocketAddr)> {
        // Both are held until both are chosen, so that they differ.
        let (one, other) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
        let http = self.http.map_or_else(|| one.local_addr(), Ok)?;
        let grpc = self.grpc.map_or_else(|| other.local_addr(), Ok)?;
        Ok((http, grpc))
    }
}

/// The folder of the running program: cargo puts all of a workspace's programs into one (tests one level deeper).
pub fn binaries() -> Result<PathBuf> {
    let mut folder = std::env::current_exe()?;
    folder.pop();
    if folder.ends_with("deps") {
        folder.pop();
    }
    std::fs::canonicalize(&folder).with_context(|| format!("{} is gone", folder.display()))
}

/// Puts the keys of `more` over those of `base`, objects key by key.
pub(super) fn merge(base: &mut Value, more: &Value) {
    match (base, more) {
        (Value::Object(base), Value::Object(more)) => {
            for (key, value) in more {
                merge(base.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (base, more) => *base = more.clone(),
    }
}
