//! Why there is no session, where an operator has to do something: by name, with the way out, in the agent's folder.

use crate::env::Env;
use crate::files;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Every named reason, and its way out.
pub const WAYS: [(&str, &str); 4] = [
    (
        "cloned-state",
        "two machines or two agents have the same identity. On the server, `rhyzome node show NODE` shows the machine \
         that was refused; `rhyzome node repair NODE --machine ID` makes it the right one, `rhyzome node forget NODE` \
         drops what was refused. Stop the agent on the other one",
    ),
    (
        "wrong-cluster",
        "the server is of another cluster. Point the agent at its own (`--server`, rhyzome-agent.json), or join the \
         other one with an empty folder (`--state-dir`)",
    ),
    (
        "older-database",
        "the server's database is older than what this node has obeyed: a copy was put in its place. Restore it with \
         `rhyzome-api restore`, or say that it counts with `rhyzome-api db raise-epoch`; guests that it does not know \
         are then shown as orphans and left alone",
    ),
    (
        "not-accepted",
        "the node's certificate is not taken. Invite the node again (`rhyzome node invite NODE`) and join with \
         `identity/` moved away; what the node holds stays",
    ),
];

/// The last refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// One of [`WAYS`].
    pub name: String,
    /// In the words of who refused.
    pub reason: String,
    /// Milliseconds since 1970.
    pub at_ms: u64,
}

impl Refusal {
    /// What an operator can do.
    pub fn way_out(&self) -> &'static str {
        WAYS.iter().find(|(name, _)| *name == self.name).map_or("", |(_, way)| way)
    }
}

/// The name of a reason, if an operator has to do something about it.
pub fn named(reason: &str) -> Option<&'static str> {
    if reason.contains("not accepted here") || reason.contains("revoked") {
        return Some("not-accepted");
    }
    WAYS.iter().map(|(name, _)| *name).find(|name| reason.contains(&format!("{name}:")))
}

/// Keeps a reason if it has a name. Whoever cannot write goes on: it is in the log as well.
pub fn note(state: &Path, reason: &str, env: &Env) {
    let Some(name) = named(reason) else { return };
    let refusal = Refusal { name: name.into(), reason: reason.into(), at_ms: env.now_ms() };
    let known =
        read(state).is_some_and(|known| (known.name, known.reason) == (refusal.name.clone(), reason.into()));
    if !known {
        tracing::error!(reason = name, "the agent is refused; {}", refusal.way_out());
    }
    let bytes = serde_json::to_vec_pretty(&refusal).unwrap_or_default();
    if let Err(error) = files::write_atomic(&path(state), &bytes) {
        tracing::warn!(%error, "cannot keep why the agent was refused");
    }
}

/// There is a session.
pub fn clear(state: &Path) {
    if let Err(error) = files::remove_if_there(&path(state)) {
        tracing::warn!(%error, "cannot forget why the agent was refused");
    }
}

/// The last refusal, if no session has begun since.
pub fn read(state: &Path) -> Option<Refusal> {
    serde_json::from_slice(&std::fs::read(path(state)).ok()?).ok()
}

fn path(state: &Path) -> PathBuf {
    state.join("refusal.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_that_need_an_operator_have_a_name_and_a_way_out() {
        let ended = "the server ended the session: cloned-state: another machine is this node";
        assert_eq!(named(ended), Some("cloned-state"));
        assert_eq!(named("wrong-cluster: the server is of cluster b"), Some("wrong-cluster"));
        assert_eq!(named("10.0.0.1:8441 does not answer"), None);
        let folder = tempfile::tempdir().unwrap();
        note(folder.path(), "10.0.0.1:8441 does not answer", &Env::system());
        assert_eq!(read(folder.path()), None);
        note(folder.path(), ended, &Env::system());
        let refusal = read(folder.path()).unwrap();
        assert!(refusal.way_out().contains("rhyzome node repair"), "{refusal:?}");
        clear(folder.path());
        assert_eq!(read(folder.path()), None);
    }
}
