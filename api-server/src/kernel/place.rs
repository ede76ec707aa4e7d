//! Placement: a pure function over nodes.

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
            table.push(WhyNot { node: node.name.clone(), reasons });
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

fn why_not(needs: &Needs, node: &Candidate) -> Vec<String> {
    let mut reasons = Vec::new();
    if needs.node.as_ref().is_some_and(|wanted| *wanted != node.id) {
        reasons.push("another node was asked for".to_owned());
    }
    if !node.online {
        reasons.push("its agent is not connected".to_owned());
    }
    if node.cordoned {
        reasons.push("it is cordoned".to_owned());
    }
    if needs.guests && !node.guests {
        reasons.push("it cannot run guests (see its capabilities)".to_owned());
    }
    if !needs.architecture.is_empty() && needs.architecture != node.architecture {
        reasons.push(format!("it is {}, not {}", node.architecture, needs.architecture));
    }
    let rooms = [
        ("vCPUs", u64::from(needs.vcpus), node.vcpus, node.vcpus_used),
        ("bytes of memory", needs.memory_bytes, node.memory_bytes, node.memory_used),
        ("bytes of disk", needs.disk_bytes, node.disk_bytes, node.disk_used),
    ];
    for (what, wanted, total, used) in rooms {
        let free = total.saturating_sub(used);
        if wanted > free {
            reasons.push(format!("{wanted} {what} wanted, {free} of {total} free"));
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
    fn a_pinned_node_or_none() {
        let pinned = Needs { node: Some("b".into()), ..needs(1) };
        assert_eq!(place(&pinned, &[node("a", 100, 0), node("b", 100, 90)]), Ok("b".into()));
        assert!(place(&pinned, &[node("a", 100, 0)]).is_err());
    }
}
