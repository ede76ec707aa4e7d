//! What there is on this machine of one folder's world: taken before and after, compared, without asking the agent.
//!
//! Processes whose command line or working directory names the folder; interfaces of the root and of every named
//! network namespace; nftables rules in each; names in /run/netns; DHCP leases; files.
//!
//! Other worlds may live on the same machine: a namespace in which another's process runs is theirs, and so is the
//! interface outside that leads to it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{procfs, run};

const NAMESPACES: &str = "/run/netns";

/// Everything found, one readable line each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    facts: BTreeSet<String>,
}

impl Snapshot {
    /// Looks (as root, to see into the namespaces).
    pub fn take(folder: &Path) -> Result<Snapshot> {
        let folder = fs::canonicalize(folder)
            .with_context(|| format!("{} cannot be looked into", folder.display()))?;
        let mut facts = BTreeSet::new();
        for seen in procfs::of(&folder) {
            facts.insert(format!("process {}: {}", seen.pid, seen.line()));
        }
        let others = others(&folder);
        facts.extend(links("the root namespace", &[], &others)?);
        facts.extend(rules("the root namespace", &[], !others.is_empty())?);
        for name in names().into_iter().filter(|name| !others.contains(name)) {
            facts.insert(format!("namespace {name}"));
            let inside = ["ip", "netns", "exec", name.as_str()];
            // It may go while one looks: then it is not there.
            facts.extend(links(&name, &inside, &others).unwrap_or_default());
            facts.extend(rules(&name, &inside, false).unwrap_or_default());
        }
        files(&folder, &folder, &mut facts);
        leases(Path::new("/var/lib/misc/dnsmasq.leases"), &mut facts);
        Ok(Snapshot { facts })
    }

    /// How many things were found.
    pub fn len(&self) -> usize {
        self.facts.len()
    }

    /// True if nothing was found.
    pub fn is_empty(&self) -> bool {
        self.facts.is_empty()
    }

    /// How many of each kind, in words: `3 processes, 12 files`.
    pub fn summary(&self) -> String {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for fact in &self.facts {
            *counts.entry(fact.split(' ').next().unwrap_or_default()).or_default() += 1;
        }
        counts.iter().map(|(word, count)| format!("{word}: {count}")).collect::<Vec<_>>().join(", ")
    }
}

/// What `after` has that `before` had not, and the other way round; nothing if they are the same.
pub fn compare(before: &Snapshot, after: &Snapshot) -> Vec<String> {
    let new = after.facts.difference(&before.facts).map(|fact| format!("left behind: {fact}"));
    let gone = before.facts.difference(&after.facts).map(|fact| format!("gone: {fact}"));
    new.chain(gone).collect()
}

/// Looks until nothing differs from `before`, for at most `patience`; what differs then.
pub fn settled(before: &Snapshot, folder: &Path, patience: Duration) -> Result<Vec<String>> {
    let until = Instant::now() + patience;
    loop {
        let left = compare(before, &Snapshot::take(folder)?);
        if left.is_empty() || Instant::now() > until {
            return Ok(left);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Names of all named namespaces.
fn names() -> Vec<String> {
    let entries = fs::read_dir(NAMESPACES).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Namespaces that are another's: a process that does not name the folder runs in it.
pub fn others(folder: &Path) -> BTreeSet<String> {
    let known: BTreeMap<u64, String> = names()
        .into_iter()
        .filter_map(|name| Some((fs::metadata(Path::new(NAMESPACES).join(&name)).ok()?.ino(), name)))
        .collect();
    if known.is_empty() {
        return BTreeSet::new();
    }
    let mut others = BTreeSet::new();
    let mut own = BTreeSet::new();
    for seen in procfs::all() {
        let file = PathBuf::from(format!("/proc/{}/ns/net", seen.pid));
        let Some(name) = fs::metadata(file).ok().and_then(|meta| known.get(&meta.ino()).cloned()) else {
            continue;
        };
        if seen.names(folder) {
            own.insert(name)
        } else {
            others.insert(name)
        };
    }
    &others - &own
}

fn links(place: &str, inside: &[&str], others: &BTreeSet<String>) -> Result<Vec<String>> {
    let found = json(inside, &["ip", "-j", "-d", "link"])?;
    let mut facts = Vec::new();
    for link in found.as_array().into_iter().flatten() {
        let name = link["ifname"].as_str().unwrap_or_default();
        let leads_to = link["link_netns"].as_str().unwrap_or_default();
        if others.contains(name) || others.contains(leads_to) {
            continue;
        }
        let kind = link["linkinfo"]["info_kind"].as_str().unwrap_or("plain");
        facts.push(format!("interface {name} ({kind}) in {place}"));
    }
    Ok(facts)
}

/// Every object of the ruleset, without the numbers and counters that mean nothing.
fn rules(place: &str, inside: &[&str], shared: bool) -> Result<Vec<String>> {
    let found = json(inside, &["nft", "-j", "list", "ruleset"])?;
    let mut facts = Vec::new();
    for object in found["nftables"].as_array().into_iter().flatten() {
        if object.get("metainfo").is_some() {
            continue;
        }
        let ours = object.as_object().into_iter().flatten().any(|(kind, value)| {
            let table = if kind == "table" { &value["name"] } else { &value["table"] };
            table == "rhyzome"
        });
        // The node's own table stays as long as any agent has networks.
        if ours && shared {
            continue;
        }
        let mut object = object.clone();
        plain(&mut object);
        facts.push(format!("nftables {object} in {place}"));
    }
    Ok(facts)
}

fn plain(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for meaningless in ["handle", "packets", "bytes", "index"] {
                map.remove(meaningless);
            }
            map.values_mut().for_each(plain);
        }
        Value::Array(list) => list.iter_mut().for_each(plain),
        _ => {}
    }
}

fn json(inside: &[&str], words: &[&str]) -> Result<Value> {
    let mut all: Vec<&str> = [inside, words].concat();
    // Looking at interfaces of one's own namespace is anybody's right, the rest is root's.
    if !nix::unistd::geteuid().is_root() && (words[0] != "ip" || !inside.is_empty()) {
        all.insert(0, "sudo");
    }
    let text = run::output(Command::new(all[0]).args(&all[1..]))?;
    if text.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&text).with_context(|| format!("`{}` printed no JSON", all.join(" ")))
}

/// Every file and folder below, by its name; its links are not followed.
fn files(root: &Path, folder: &Path, facts: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
        facts.insert(format!("file {name}"));
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files(root, &path, facts);
        } else if name.contains("lease") {
            leases(&path, facts);
        }
    }
}

fn leases(file: &Path, facts: &mut BTreeSet<String>) {
    for line in fs::read_to_string(file).unwrap_or_default().lines() {
        // Its end is the first word, and changes with each renewal.
        let lease = line.split_once(' ').map_or(line, |(_, rest)| rest);
        facts.insert(format!("lease {lease} in {}", file.display()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_mean_nothing_are_left_out() {
        let mut one: Value =
            serde_json::json!({"rule": {"handle": 4, "expr": [{"counter": {"packets": 1, "bytes": 2}}]}});
        plain(&mut one);
        assert_eq!(one, serde_json::json!({"rule": {"expr": [{"counter": {}}]}}));
    }

    #[test]
    fn both_ways_are_told() {
        let set = |facts: &[&str]| Snapshot { facts: facts.iter().map(|fact| (*fact).to_owned()).collect() };
        assert_eq!(compare(&set(&["a", "b"]), &set(&["b", "c"])), ["left behind: c", "gone: a"]);
        assert!(compare(&set(&["a"]), &set(&["a"])).is_empty());
    }
}
