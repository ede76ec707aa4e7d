//! `rhyzome-api pki`: what an operator sees of the authority and starts, where the server's files are.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::bail;
use rhyzome_pki::{Authority, Generation, Phase, Role};

use super::{Pace, alarms, now};
use crate::admin::columns;
use crate::kernel::Timestamp;
use crate::store::{NodeKeys, Store};

/// So much of a digest tells roots apart for people.
const SHORT: usize = 16;
/// So many names are listed; of more, how many there are.
const MOST_NAMES: usize = 20;

/// Begins an exchange; with `at_once`, the other authority signs without waiting for anybody. What is to be said.
pub fn rotate(store: &Store, authority: &Authority, at_once: bool) -> anyhow::Result<String> {
    authority.refresh()?;
    if authority.phase() == Phase::Activated {
        bail!("an exchange is under way, and its other authority signs already: `rhyzome-api pki status`");
    }
    let begun = authority.prepare(now(store))?;
    if at_once {
        authority.activate(now(store))?;
        return Ok(format!(
            "root {} signs from now on; nodes renew over their sessions. The one before is trusted until all of them have: `rhyzome-api pki status`",
            short(&authority.fingerprint())
        ));
    }
    if !begun {
        bail!(
            "an exchange is under way: `rhyzome-api pki status` says for whom it waits, `rhyzome-api pki rotate --now` waits no more"
        );
    }
    let next = authority.generations().into_iter().find(|generation| generation.role == Role::Next);
    Ok(format!(
        "root {} is prepared; servers take it over within seconds and tell every node that is connected. It signs as soon as all of these trust it: `rhyzome-api pki status`",
        next.map(|next| short(&next.root_sha256)).unwrap_or_default()
    ))
}

/// Ends an exchange now; with `cut_off`, also if that shuts nodes out. What is to be said.
pub async fn retire(store: &Store, authority: &Authority, cut_off: bool) -> anyhow::Result<String> {
    authority.refresh()?;
    if authority.phase() != Phase::Activated {
        bail!("there is no authority that could retire: `rhyzome-api pki status`");
    }
    let beside = store.nodes_beside(&authority.issuer_key(), &authority.trust_digest()).await?;
    let waits = Pace::default().retire_seconds
        - (store.env().now().0 - Timestamp::from(authority.since()).0) / 1_000_000;
    if !cut_off && !beside.is_empty() {
        bail!(
            "that would shut out {}: let them connect first, or say `--cut-off` and invite them again",
            listed(&beside)
        );
    }
    if !cut_off && waits > 0 {
        bail!(
            "join tokens may be left that name the old root: it retires by itself in {waits} s; or say `--cut-off`"
        );
    }
    authority.retire(now(store))?;
    let shut_out = if beside.is_empty() { String::new() } else { format!("; shut out: {}", listed(&beside)) };
    Ok(format!(
        "the authority before is trusted no more{shut_out}. Make a backup: the ones before have another authority"
    ))
}

/// Which authorities there are, for whom an exchange waits, what ends soon, and what each node shows and trusts.
pub async fn status(
    store: &Store,
    authority: &Authority,
    http_certificate: Option<&Path>,
) -> anyhow::Result<String> {
    authority.refresh()?;
    let (generations, nodes) = (authority.generations(), store.keys_of_nodes().await?);
    let mut parts = vec![table_of_authorities(&generations, &nodes), under_way(store, authority).await?];
    parts.extend(alarms(authority, http_certificate, now(store)).into_iter().map(|alarm| {
        format!("ALARM: {} ends at {}: {}", alarm.what, Timestamp::from(alarm.ends), alarm.way_out)
    }));
    if !nodes.is_empty() {
        parts.push(table_of_nodes(&generations, &authority.trust_digest(), &nodes));
    }
    Ok(parts.join("\n\n"))
}

fn table_of_authorities(generations: &[Generation], nodes: &[NodeKeys]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for node in nodes {
        *counts.entry(&node.shown.issuer).or_default() += 1;
    }
    let row = |generation: &Generation| {
        let role = match generation.role {
            Role::Signs => "signs",
            Role::Next => "next",
            Role::Previous => "previous",
        };
        let count = counts.get(generation.issuer_key.as_str()).copied().unwrap_or(0);
        vec![
            short(&generation.root_sha256),
            role.to_owned(),
            Timestamp::from(generation.root_ends).to_string(),
            Timestamp::from(generation.issuer_ends).to_string(),
            count.to_string(),
        ]
    };
    let heads = ["ROOT", "ROLE", "ROOT ENDS", "INTERMEDIATE ENDS", "NODES"];
    columns(&heads, generations.iter().map(row).collect())
}

async fn under_way(store: &Store, authority: &Authority) -> anyhow::Result<String> {
    let (trust, since) = (authority.trust_digest(), Timestamp::from(authority.since()));
    Ok(match authority.phase() {
        Phase::Settled => "No exchange is under way.".to_owned(),
        Phase::Prepared => {
            let untold = store.untold(&trust).await?;
            let mut waits = Vec::new();
            if !untold.servers.is_empty() {
                waits.push(format!("servers {}", listed(&untold.servers)));
            }
            if !untold.nodes.is_empty() {
                waits.push(format!("nodes {}", listed(&untold.nodes)));
            }
            let waits = if waits.is_empty() {
                "nobody: a server goes on within seconds".to_owned()
            } else {
                waits.join("; ")
            };
            format!("Prepared since {since}: both roots are trusted. It waits for {waits}.")
        }
        Phase::Activated => {
            let beside = store.nodes_beside(&authority.issuer_key(), &trust).await?;
            let waits = match beside.is_empty() {
                true => "no node; join tokens that name it are good for some minutes yet".to_owned(),
                false => format!("nodes {}", listed(&beside)),
            };
            format!(
                "Activated since {since}: the other one signs. Before the previous one retires it waits for {waits}."
            )
        }
    })
}

fn table_of_nodes(generations: &[Generation], trust: &str, nodes: &[NodeKeys]) -> String {
    let row = |node: &NodeKeys| {
        let shown = &node.shown;
        let by = generations.iter().find(|generation| generation.issuer_key == shown.issuer);
        let by = match by {
            Some(generation) => short(&generation.root_sha256),
            None if shown.issuer.is_empty() => "not seen yet".to_owned(),
            None => "another".to_owned(),
        };
        let trusts = match shown.trust.as_str() {
            "" => "does not say",
            digest if digest == trust => "all",
            _ => "others",
        };
        let ends = if shown.until.0 == 0 { String::new() } else { shown.until.to_string() };
        let connected = if node.connected { "yes" } else { "no" };
        vec![node.name.clone(), connected.to_owned(), by, trusts.to_owned(), ends, shown.problem.clone()]
    };
    let heads = ["NODE", "CONNECTED", "SHOWS ONE OF", "TRUSTS", "ENDS", "PROBLEM"];
    columns(&heads, nodes.iter().map(row).collect())
}

fn short(digest: &str) -> String {
    digest.chars().take(SHORT).collect()
}

fn listed(names: &[String]) -> String {
    let more = names.len().saturating_sub(MOST_NAMES);
    let first = names[..names.len() - more].join(", ");
    if more > 0 { format!("{first} and {more} more") } else { first }
}
