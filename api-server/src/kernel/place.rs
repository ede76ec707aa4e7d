//! Placement: a pure function over nodes.

use std::collections::BTreeMap;

use super::error::WhyNot;

/// What an object needs of a node.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Needs {
    /// Virtual processors.
    pub vcpus: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of disk in the node's own pool.
    pub disk_bytes: u64,
    /// `x86_64`; empty: any.
    pub architecture: String,
    /// This node and no other.
    pub node: Option<String>,
    /// True: the node must be able to run guests. A node without QEMU is never a place for instances.
    pub guests: bool,
}

/// A node as placement sees it.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Candidate {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// False: its agent has not been heard of.
    pub online: bool,
    /// True: an operator wants nothing new on it.
    pub cordoned: bool,
    /// True: it has QEMU and an accelerator.
    pub guests: bool,
    /// `x86_64`.
    pub architecture: String,
    /// Virtual processors that may be given, overcommit included.
    pub vcpus: u64,
    /// Of those, given.
    pub vcpus_used: u64,
    /// Bytes of memory that may be given.
    pub memory_bytes: u64,
    /// Of those, given.
    pub memory_used: u64,
    /// Bytes of disk that may be given.
    pub disk_bytes: u64,
    /// Of those, given.
    pub disk_used: u64,
}

/// The node with the most free memory that has room (spreading), or why none has. Ties: the lower id.
pub fn place(needs: &Needs, nodes: &[Candidate]) -> Result<String, Vec<WhyNot>> {
    let mut table = Vec::new();
    let mut best: Option<&Candidate> = None;
    for node in nodes {
        let reasons = why_not(needs, node);
        if !reasons.is_empty() {
            table.push(line(node, reasons));
            continue;
        }
        let free = |node: &Candidate| node.memory_bytes.saturating_sub(node.memory_used);
        let better = match best {
            None => true,
            Some(best) => (free(node), &best.id) > (free(best), &node.id),
        };
        if better {
            best = Some(node);
        }
    }
    best.map(|node| node.id.clone()).ok_or(table)
}

/// Why each node but `chosen` was not chosen.
pub fn why_not_others(needs: &Needs, nodes: &[Candidate], chosen: &str) -> Vec<WhyNot> {
    let others = nodes.iter().filter(|node| node.id != chosen);
    others
        .map(|node| {
            let mut reasons = why_not(needs, node);
            if reasons.is_empty() {
                reasons.push(("another has more free memory", "another has more free memory".to_owned()));
            }
            line(node, reasons)
        })
        .collect()
}

/// How many nodes say each reason.
pub fn counts(table: &[WhyNot]) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for word in table.iter().flat_map(|line| &line.words) {
        *counts.entry(*word).or_default() += 1;
    }
    counts
}

/// A reason in a word, and in full.
type Reason = (&'static str, String);

fn line(node: &Candidate, reasons: Vec<Reason>) -> WhyNot {
    let (words, reasons) = reasons.into_iter().unzip();
    WhyNot { node: node.name.clone(), reasons, words }
}

fn why_not(needs: &Needs, node: &Candidate) -> Vec<Reason> {
    let mut reasons: Vec<Reason> = Vec::new();
    let mut say = |text: &'static str| reasons.push((text, text.to_owned()));
    if needs.node.as_ref().is_some_and(|wanted| *wanted != node.id) {
        say("another node was asked for");
    }
    if !node.online {
        say("its agent is not connected");
    }
    if node.cordoned {
        say("it is cordoned");
    }
    if needs.guests && !node.guests {
        say("it cannot run guests (see its capabilities)");
    }
    if !needs.architecture.is_empty() && needs.architecture != node.architecture {
        let text = format!("it is {}, not {}", node.architecture, needs.architecture);
        reasons.push(("it has another architecture", text));
    }
    let rooms = [
        ("too few free vCPUs", "vCPUs", u64::from(needs.vcpus), node.vcpus, node.vcpus_used),
        (
            "too little free memory",
            "bytes of memory",
            needs.memory_bytes,
            node.memory_bytes,
            node.memory_used,
        ),
        ("too little free disk", "bytes of disk", needs.disk_bytes, node.disk_bytes, node.disk_used),
    ];
    for (word, what, wanted, total, used) in rooms {
        let free = total.saturating_sub(used);
        if wanted > free {
            reasons.push((word, format!("{wanted} {what} wanted, {free} of {total} free")));
        }
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str, memory: u64, used: u64) -> Candidate {
        Candidate {
            id: id.into(),
            name: id.into(),
            online: true,
            guests: true,
            architecture: "x86_64".into(),
            vcpus: 8,
            memory_bytes: memory,
            memory_used: used,
            disk_bytes: 100,
            ..Candidate::default()
        }
    }

    fn needs(memory: u64) -> Needs {
        Needs {
            vcpus: 1,
            memory_bytes: memory,
            architecture: "x86_64".into(),
            guests: true,
            ..Needs::default()
        }
    }

    #[test]
    fn spreads_by_free_memory() {
        assert_eq!(place(&needs(10), &[node("a", 100, 60), node("b", 100, 10)]), Ok("b".into()));
        assert_eq!(place(&needs(10), &[node("b", 100, 10), node("a", 100, 10)]), Ok("a".into()));
    }

    #[test]
    fn says_why_not_with_figures() {
        let mut off = node("off", 100, 0);
        off.online = false;
        let table = place(&needs(50), &[node("full", 100, 60), off]).unwrap_err();
        assert_eq!(table[0].reasons, ["50 bytes of memory wanted, 40 of 100 free"]);
        assert_eq!(table[1].reasons, ["its agent is not connected"]);
    }

    #[test]
    fn says_of_all_others_why_not() {
        let table =
            why_not_others(&needs(50), &[node("a", 100, 0), node("b", 100, 60), node("c", 90, 0)], "a");
        let words: Vec<_> = table.iter().map(|line| (line.node.as_str(), line.words[0])).collect();
        assert_eq!(words, [("b", "too little free memory"), ("c", "another has more free memory")]);
        assert_eq!(counts(&table).values().sum::<usize>(), 2);
    }

    #[test]
    fn a_pinned_node_or_none() {
        let pinned = Needs { node: Some("b".into()), ..needs(1) };
        assert_eq!(place(&pinned, &[node("a", 100, 0), node("b", 100, 90)]), Ok("b".into()));
        assert!(place(&pinned, &[node("a", 100, 0)]).is_err());
    }
}
