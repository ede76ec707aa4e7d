//! What was changed in a network by somebody else: noticed while it is put right, and told.

use super::plan::{DesiredNetwork, Uplink};
use super::record::{Record, Whole};
use crate::drivers::Deviation;
use crate::host::process::host_boot_id;
use crate::names::short_digest;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// At most so many lines of what differs are told.
const LINES: usize = 6;

/// What a network should be now, and whether it was just that before.
pub(super) struct Eye {
    now: Whole,
    /// It was exactly so, in this boot of the node: whatever differs is somebody's doing.
    pub settled: bool,
}

impl Eye {
    pub fn new(before: &Record, network: &DesiredNetwork) -> Self {
        let now = Whole { boot_id: host_boot_id(), network: short_digest(&format!("{network:?}")) };
        Self { settled: before.whole.as_ref() == Some(&now), now }
    }

    /// To be remembered once all of it is as it should be.
    pub fn whole(self) -> Whole {
        self.now
    }

    /// Links that differ.
    pub fn links(
        &self,
        live: &super::links::Live,
        network: &DesiredNetwork,
        uplink: Option<Uplink>,
    ) -> Vec<Deviation> {
        if self.settled { live.deviations(network, uplink) } else { Vec::new() }
    }

    /// A namespace that is not there.
    pub fn namespace(&self, namespace: &str, is_there: bool) -> Option<Deviation> {
        let gone = self.settled && !is_there;
        gone.then(|| Deviation::new("network.links", format!("the namespace {namespace}"), "it is gone"))
    }
}

/// Files that are not as they were written last.
pub(super) fn files(folder: &Path, written: &BTreeMap<String, String>) -> Vec<Deviation> {
    let changed = |(name, digest): (&String, &String)| {
        let found = match fs::read_to_string(folder.join(name)) {
            Ok(text) if short_digest(&text) == *digest => return None,
            Ok(_) => "it was changed by hand",
            Err(_) => "it is gone, or cannot be read",
        };
        Some(Deviation::new("network.file", format!("{name} as the agent wrote it"), found))
    };
    written.iter().filter_map(changed).collect()
}

/// Digests of files as they were just written.
pub(super) fn digests(rendered: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    rendered.iter().map(|(name, text)| (name.clone(), short_digest(text))).collect()
}

/// Rules as they were found, compared with what they are after they were written anew; none if they are the same.
pub(super) fn rules(whose: &str, found: &str, after: &str) -> Option<Deviation> {
    // Elements of a set come in whatever order.
    let words = |text: &str| {
        let mut words: Vec<String> =
            text.split(|c: char| c.is_whitespace() || c == ',').map(str::to_owned).collect();
        words.retain(|word| !word.is_empty());
        words.sort();
        words
    };
    if words(found) == words(after) {
        return None;
    }
    let lines = |text: &str| text.lines().map(|line| line.trim().to_owned()).collect::<BTreeSet<_>>();
    let (found, after) = (lines(found), lines(after));
    let only = |one: &BTreeSet<String>, other: &BTreeSet<String>, sign: &str| {
        let mut all: Vec<String> = one.difference(other).map(|line| format!("{sign} {line}")).collect();
        all.truncate(LINES);
        all
    };
    let mut differing = only(&found, &after, "+");
    differing.extend(only(&after, &found, "-"));
    Some(Deviation::new("network.rules", format!("the rules of {whose}"), differing.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_elements_is_no_difference_and_a_rule_is() {
        let one = "table inet rhyzome {\n  elements = { a, b,\n c }\n}";
        assert_eq!(rules("x", one, "table inet rhyzome {\n  elements = { c, a,\n b }\n}"), None);
        let more = rules("x", &one.replace("  elements", "  tcp dport 22 accept\n  elements"), one).unwrap();
        assert_eq!((more.what, more.found.as_str()), ("network.rules", "+ tcp dport 22 accept"));
    }

    #[test]
    fn a_file_is_compared_with_what_was_written_not_with_what_is_wanted() {
        let folder = tempfile::tempdir().unwrap();
        let written = digests(&BTreeMap::from([("hosts".to_owned(), "a\n".to_owned())]));
        fs::write(folder.path().join("hosts"), "a\n").unwrap();
        assert_eq!(files(folder.path(), &written), []);
        fs::write(folder.path().join("hosts"), "b\n").unwrap();
        assert_eq!(files(folder.path(), &written)[0].found, "it was changed by hand");
        fs::remove_file(folder.path().join("hosts")).unwrap();
        assert!(files(folder.path(), &written)[0].found.contains("gone"));
    }
}
