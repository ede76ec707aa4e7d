//! What the agent's folder says, for people: read only, with or without a server.

use crate::drivers::instance::process::Identity;
use crate::identity::IdentityFolder;
use crate::ledger::Ledger;
use crate::refusal;
use std::fmt::Write as _;
use std::path::Path;
use std::time::SystemTime;

/// All of it.
pub fn text(state: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let mut line = |word: &str, value: String| {
        let _ = writeln!(text, "{word:<12} {value}");
    };
    line("folder", state.display().to_string());
    let folder = IdentityFolder::new(state);
    match folder.record()? {
        None => line("node", "has not joined: get a line from `rhyzome node invite NAME`".into()),
        Some(record) => {
            line("node", format!("{} ({})", record.node_name, record.node_id));
            line("cluster", record.cluster_id);
            line("server", record.server);
            match folder.load() {
                Ok(loaded) => line("certificate", until(loaded.times.not_after)),
                Err(error) => line("certificate", error.to_string()),
            }
        }
    }
    line("machine", folder.machine().unwrap_or_else(|| "not written down yet".into()));
    if state.join("ledger").is_dir() {
        let ledger = Ledger::open(state)?;
        let orders = ledger.orders().values();
        let older = orders.clone().filter(|order| order.db_epoch < ledger.db_epoch()).count();
        let older = if older > 0 { format!(", {older} of an older database") } else { String::new() };
        line("orders", format!("{}{older}", orders.count()));
        line("heard up to", format!("{} of database epoch {}", ledger.cursor(), ledger.db_epoch()));
    }
    for (id, runs) in guests(state) {
        line("guest", format!("{id} {runs}"));
    }
    match refusal::read(state) {
        None => line("refused", "no".into()),
        Some(refusal) => {
            line("refused", refusal.name.clone());
            line("  because", refusal.reason.clone());
            line("  way out", refusal.way_out().to_owned());
        }
    }
    Ok(text)
}

fn until(end: SystemTime) -> String {
    match end.duration_since(SystemTime::now()) {
        Ok(left) => format!("good for {} more minutes", left.as_secs() / 60),
        Err(_) => "has run out; the agent comes back with its key by itself".into(),
    }
}

fn guests(state: &Path) -> Vec<(String, String)> {
    let entries = std::fs::read_dir(state.join("instances")).into_iter().flatten().flatten();
    let mut all: Vec<(String, String)> = entries
        .filter_map(|entry| {
            let running = Identity::read(&entry.path().join("pid")).filter(Identity::is_alive);
            let runs = running.map_or("is stopped".to_owned(), |running| format!("runs as {}", running.pid));
            Some((entry.file_name().into_string().ok()?, runs))
        })
        .collect();
    all.sort();
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::Env;

    #[test]
    fn an_empty_folder_and_a_refusal_are_told_in_words() {
        let folder = tempfile::tempdir().unwrap();
        let empty = text(folder.path()).unwrap();
        assert!(empty.contains("has not joined") && empty.contains("refused      no"), "{empty}");
        refusal::note(folder.path(), "wrong-cluster: the server is of cluster b", &Env::system());
        let refused = text(folder.path()).unwrap();
        assert!(
            refused.contains("refused      wrong-cluster") && refused.contains("--state-dir"),
            "{refused}"
        );
        assert!(!folder.path().join("ledger").exists(), "only read");
    }
}
