//! Placement: a pure function over nodes.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

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
    /// The node of whoever uses this, before all: it is there already, as with `stays`.
    pub beside: Option<Beside>,
    /// True: the node must be able to run guests. A node without QEMU is never a place for instances.
    pub guests: bool,
    /// True: the node must be able to serve WireGuard. It need not be able to run guests.
    pub wireguard: bool,
    /// True: when its node is lost it is restarted on another.
    pub restart: bool,
    /// True: it is there already, and only asks for more room: it need not be online, or open for what is new.
    pub stays: bool,
    /// Tags that the node must have.
    pub node_tags: BTreeMap<String, String>,
    /// Groups whose members it is to be near to, or away from.
    pub groups: Vec<Group>,
}

/// Something that is used where it is to be.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Beside {
    /// Id of what is used.
    pub of: String,
    /// The kind of whoever uses it.
    pub by: &'static str,
}

/// How the members of a group stand to one another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
#[schema(as = PlacementGroupRule)]
pub enum Rule {
    /// All on one node.
    Affinity,
    /// Each on a node of its own.
    #[default]
    AntiAffinity,
}

/// What is done when the rule cannot be kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
#[schema(as = PlacementGroupPolicy)]
pub enum Policy {
    /// The next best node is taken.
    Allow,
    /// The new member is refused.
    #[default]
    Fail,
}

/// A group that the object belongs to.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Group {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Near or away.
    pub rule: Rule,
    /// What if not.
    pub policy: Policy,
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
    /// True: its agent's version is too far from the server's.
    pub unsupported: bool,
    /// True: it has QEMU and an accelerator.
    pub guests: bool,
    /// Why it cannot serve WireGuard; none if it can.
    pub no_wireguard: Option<String>,
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
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// How many members of each group that matters it has, by id of the group.
    pub members: BTreeMap<String, u64>,
    /// As it was when it was read.
    pub version: i64,
    /// The same, of what it said of itself.
    pub status_version: i64,
}

/// The node that has room and breaks the fewest groups' rules; among those the one with the most free memory
/// (spreading); or why there is none. Ties: the lower id.
pub fn place(needs: &Needs, nodes: &[Candidate]) -> Result<String, Vec<WhyNot>> {
    let mut table = Vec::new();
    let mut best: Option<&Candidate> = None;
    for node in nodes {
        let reasons = why_not(needs, nodes, node);
        if !reasons.is_empty() {
            table.push(line(node, reasons));
            continue;
        }
        let rank = |node: &Candidate| {
            let breaks: u64 = broken(needs, nodes, node, Policy::Allow).map(|(_, times)| times).sum();
            let free = node.memory_bytes.saturating_sub(node.memory_used);
            (breaks, Reverse(free), node.id.clone())
        };
        if best.is_none_or(|best| rank(node) < rank(best)) {
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
            let mut reasons = why_not(needs, nodes, node);
            if reasons.is_empty() {
                reasons.push((
                    "another fits better",
                    "another fits better: by its groups, or it has more free memory".to_owned(),
                ));
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

/// The groups of this policy whose rule a new member on this node would break, and how often.
fn broken<'a>(
    needs: &'a Needs,
    nodes: &'a [Candidate],
    node: &'a Candidate,
    policy: Policy,
) -> impl Iterator<Item = (&'a Group, u64)> {
    let members = |node: &Candidate, group: &Group| node.members.get(&group.id).copied().unwrap_or(0);
    needs.groups.iter().filter(move |group| group.policy == policy).filter_map(move |group| {
        let here = members(node, group);
        let times = match group.rule {
            Rule::AntiAffinity => here,
            Rule::Affinity if here > 0 => 0,
            Rule::Affinity => nodes.iter().map(|node| members(node, group)).sum(),
        };
        (times > 0).then_some((group, times))
    })
}

fn refusal(group: &Group) -> Reason {
    let name = &group.name;
    match group.rule {
        Rule::AntiAffinity => (
            "a member of its group is there",
            format!("a member of `{name}` is there, which keeps its members apart"),
        ),
        Rule::Affinity => (
            "the members of its group are elsewhere",
            format!("the members of `{name}`, which keeps them together, are elsewhere"),
        ),
    }
}

fn why_not(needs: &Needs, nodes: &[Candidate], node: &Candidate) -> Vec<Reason> {
    let mut reasons: Vec<Reason> = Vec::new();
    let mut say = |text: &'static str| reasons.push((text, text.to_owned()));
    if needs.node.as_ref().is_some_and(|wanted| *wanted != node.id) {
        say("another node was asked for");
    }
    if !node.online && !needs.stays {
        say("its agent is not connected");
    }
    if node.cordoned && !needs.stays {
        say("it is cordoned");
    }
    if node.unsupported && !needs.stays {
        say("its agent's version is not supported (see its version_advice)");
    }
    if needs.guests && !node.guests && !needs.stays {
        say("it cannot run guests (see its capabilities)");
    }
    if let Some(why) = node.no_wireguard.as_ref().filter(|_| needs.wireguard && !needs.stays) {
        let text = format!("it cannot serve WireGuard (see its capabilities): {why}");
        reasons.push(("it cannot serve WireGuard", text));
    }
    if !needs.architecture.is_empty() && needs.architecture != node.architecture {
        let text = format!("it is {}, not {}", node.architecture, needs.architecture);
        reasons.push(("it has another architecture", text));
    }
    for (key, value) in &needs.node_tags {
        if node.tags.get(key) != Some(value) {
            reasons.push(("it has not the tags that were asked for", format!("it has no tag {key}={value}")));
        }
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
    reasons.extend(broken(needs, nodes, node, Policy::Fail).map(|(group, _)| refusal(group)));
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

    fn with(mut node: Candidate, members: u64) -> Candidate {
        node.members.insert("grp_1".into(), members);
        node
    }

    fn grouped(rule: Rule, policy: Policy) -> Needs {
        let group = Group { id: "grp_1".into(), name: "web".into(), rule, policy };
        Needs { groups: vec![group], ..needs(1) }
    }

    #[test]
    fn members_are_kept_apart_or_together() {
        let nodes = [with(node("a", 100, 0), 1), with(node("b", 100, 50), 0), with(node("c", 100, 90), 2)];
        assert_eq!(place(&grouped(Rule::AntiAffinity, Policy::Fail), &nodes), Ok("b".into()));
        // Together: with those who are there, the roomier of two.
        assert_eq!(place(&grouped(Rule::Affinity, Policy::Fail), &nodes), Ok("a".into()));
        let first = [node("a", 100, 50), node("b", 100, 0)];
        assert_eq!(place(&grouped(Rule::Affinity, Policy::Fail), &first), Ok("b".into()));
    }

    #[test]
    fn a_rule_that_cannot_be_kept_fails_or_is_bent_least() {
        let nodes = [with(node("a", 100, 0), 2), with(node("b", 100, 50), 1)];
        let table = place(&grouped(Rule::AntiAffinity, Policy::Fail), &nodes).unwrap_err();
        assert_eq!(table[0].reasons, ["a member of `web` is there, which keeps its members apart"]);
        assert_eq!(place(&grouped(Rule::AntiAffinity, Policy::Allow), &nodes), Ok("b".into()));
        let full = [with(node("a", 100, 100), 2), with(node("b", 100, 50), 0)];
        let table = place(&grouped(Rule::Affinity, Policy::Fail), &full).unwrap_err();
        assert_eq!(table[1].reasons, ["the members of `web`, which keeps them together, are elsewhere"]);
        assert_eq!(place(&grouped(Rule::Affinity, Policy::Allow), &full), Ok("b".into()));
    }

    #[test]
    fn only_nodes_with_the_wanted_tags() {
        let mut fast = node("b", 100, 90);
        fast.tags.insert("disks".into(), "nvme".into());
        let wanted = BTreeMap::from([("disks".to_owned(), "nvme".to_owned())]);
        let tagged = Needs { node_tags: wanted, ..needs(1) };
        assert_eq!(place(&tagged, &[node("a", 100, 0), fast]), Ok("b".into()));
        let table = place(&tagged, &[node("a", 100, 0)]).unwrap_err();
        assert_eq!(table[0].reasons, ["it has no tag disks=nvme"]);
    }

    #[test]
    fn says_of_all_others_why_not() {
        let table =
            why_not_others(&needs(50), &[node("a", 100, 0), node("b", 100, 60), node("c", 90, 0)], "a");
        let words: Vec<_> = table.iter().map(|line| (line.node.as_str(), line.words[0])).collect();
        assert_eq!(words, [("b", "too little free memory"), ("c", "another fits better")]);
        assert_eq!(counts(&table).values().sum::<usize>(), 2);
    }

    #[test]
    fn nothing_new_where_the_agent_is_of_a_version_too_far_away() {
        let far = Candidate { unsupported: true, ..node("a", 100, 0) };
        assert_eq!(place(&needs(1), &[far.clone(), node("b", 100, 99)]), Ok("b".into()));
        let table = place(&needs(1), std::slice::from_ref(&far)).unwrap_err();
        assert!(table[0].reasons[0].contains("version is not supported"), "{table:?}");
        assert_eq!(place(&Needs { stays: true, ..needs(1) }, &[far]), Ok("a".into()));
    }

    #[test]
    fn a_vpn_host_is_no_place_for_guests_and_a_place_for_what_it_can_do() {
        let host = Candidate { guests: false, ..node("a", 100, 0) };
        let why = "install wireguard-tools";
        let other = Candidate { no_wireguard: Some(why.into()), ..node("b", 100, 90) };
        let nodes = [host, other];
        assert_eq!(place(&needs(1), &nodes), Ok("b".into()));
        let server = Needs { wireguard: true, ..Needs::default() };
        assert_eq!(place(&server, &nodes), Ok("a".into()));
        let table = place(&server, &nodes[1..]).unwrap_err();
        assert!(table[0].reasons[0].contains(why), "{table:?}");
        // Room for one more peer is asked for where its server is.
        let stays = Needs { node: Some("b".into()), stays: true, ..server };
        assert_eq!(place(&stays, &nodes), Ok("b".into()));
    }

    #[test]
    fn a_pinned_node_or_none() {
        let pinned = Needs { node: Some("b".into()), ..needs(1) };
        assert_eq!(place(&pinned, &[node("a", 100, 0), node("b", 100, 90)]), Ok("b".into()));
        assert!(place(&pinned, &[node("a", 100, 0)]).is_err());
    }
}
