//! Room on nodes: taken in the transaction of the create, given back with the object. The sums stand in
//! `node_state`, so that choosing costs as much as there are nodes, not as there are instances.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Context;
use super::db::{int, values};
use super::objects;
use super::objects::Reference;
use super::plan::Placement;
use super::tx::Tx;
use crate::kernel::error::WhyNot;
use crate::kernel::place::{Candidate, Needs, place, why_not_others};
use crate::kernel::{Clash, Error, Relation, Stored};

/// Takes room for an object; the id of its node. What it holds already is changed to the new needs.
pub(super) async fn take(
    tx: &mut Tx,
    context: &Context,
    object: &mut Stored,
    needs: &Needs,
) -> Result<String, Error> {
    let holder = object.core.id.clone();
    let sql = "SELECT node, vcpus, memory_bytes, disk_bytes, restart FROM placement WHERE holder = $1";
    let held = if object.is_new() { None } else { tx.row(sql, values![&holder]).await? };
    let mut pinned = needs.clone();
    if let Some(row) = &held {
        let node = row.text("node")?;
        let had = [row.int("vcpus")?, row.int("memory_bytes")?, row.int("disk_bytes")?];
        if had == [i64::from(needs.vcpus), int(needs.memory_bytes), int(needs.disk_bytes)] {
            if row.truth("restart")? != needs.restart {
                let sql = "UPDATE placement SET restart = $2 WHERE holder = $1";
                tx.run(sql, values![&holder, needs.restart]).await?;
            }
            note(tx, &node).await?;
            return Ok(node);
        }
        (pinned.node, pinned.stays) = (Some(node), true);
        release(tx, context, &holder).await?;
    } else if let Some(node) = beside(tx, needs).await? {
        (pinned.node, pinned.stays) = (Some(node), true);
    }
    let node = reserve(tx, context, &pinned).await?;
    hold(tx, &holder, &node, needs).await?;
    object.claims.entry("placement_epoch").or_insert(Value::from(1));
    Ok(node)
}

/// Where something is used that an object is to be beside: it may be held elsewhere too, where it was used before.
async fn beside(tx: &mut Tx, needs: &Needs) -> Result<Option<String>, Error> {
    let Some(beside) = &needs.beside else { return Ok(None) };
    let sql = "SELECT p.node FROM reference f JOIN resource r ON r.id = f.source JOIN placement p ON p.holder = r.id \
               WHERE f.target = $1 AND r.kind = $2 ORDER BY r.id LIMIT 1";
    let row = tx.row(sql, values![&beside.of, beside.by]).await?;
    Ok(row.map(|row| row.text("node")).transpose()?)
}

/// Takes room on another node than its present one, which takes nothing new; the id of that node, or why there is
/// none. What it holds is given back only then.
pub(super) async fn relocate(
    tx: &mut Tx,
    context: &Context,
    object: &Stored,
    needs: &Needs,
) -> Result<Result<String, Vec<WhyNot>>, Error> {
    let holder = &object.core.id;
    let node = match reserve(tx, context, needs).await {
        Ok(node) => node,
        Err(Error::Clash(Clash::NoCapacity(table))) => return Ok(Err(table)),
        Err(error) => return Err(error),
    };
    release(tx, context, holder).await?;
    hold(tx, holder, &node, needs).await?;
    Ok(Ok(node))
}

async fn hold(tx: &mut Tx, holder: &str, node: &str, needs: &Needs) -> Result<(), Error> {
    let sql = "INSERT INTO placement (holder, node, vcpus, memory_bytes, disk_bytes, restart) \
               VALUES ($1, $2, $3, $4, $5, $6)";
    let sums = (i64::from(needs.vcpus), int(needs.memory_bytes), int(needs.disk_bytes));
    tx.run(sql, values![holder, node, sums.0, sums.1, sums.2, needs.restart]).await?;
    let reference = Reference { field: "node".into(), target: node.to_owned(), relation: Relation::Uses };
    objects::add_reference(tx, holder, &reference);
    Ok(())
}

/// For a plan: it stays where it is.
async fn note(tx: &mut Tx, node: &str) -> Result<(), Error> {
    if tx.notes.is_none() {
        return Ok(());
    }
    let name = objects::by_id(tx, node, false).await?.map(|object| object.core.name).unwrap_or_default();
    if let Some(notes) = &mut tx.notes {
        notes.placement = Some(Placement { node: Some(node.to_owned()), name, why_not: Vec::new() });
    }
    Ok(())
}

/// How often another transaction may take the room that this one chose.
const TRIES: u32 = 16;

/// Chooses a node and takes the room, unless it has gone meanwhile: then it chooses again.
async fn reserve(tx: &mut Tx, context: &Context, needs: &Needs) -> Result<String, Error> {
    // A plan tells why not the others, and groups have to be counted: neither is answered by a guess.
    if tx.notes.is_none()
        && needs.groups.is_empty()
        && let Some(guess) = context.nodes.choose(needs, context.env.now())
        && occupy(tx, needs, &guess).await?
    {
        return Ok(guess.id);
    }
    for group in &needs.groups {
        // Two new members of a group must not choose at once. References lock `live`, never this row.
        let sql = format!("SELECT id FROM resource WHERE id = $1{}", tx.for_update());
        tx.row(&sql, values![&group.id]).await?;
    }
    for _ in 0..TRIES {
        context.nodes.forget();
        let mut candidates = candidates(tx).await?;
        context.nodes.keep(&candidates, context.env.now());
        count_members(tx, needs, &mut candidates).await?;
        let node = place(needs, &candidates).map_err(Clash::NoCapacity)?;
        let Some(chosen) = candidates.iter().find(|candidate| candidate.id == node) else { continue };
        if occupy(tx, needs, chosen).await? {
            if tx.notes.is_none() {
                let used = [i64::from(needs.vcpus), int(needs.memory_bytes), int(needs.disk_bytes)];
                context.nodes.used(&node, used);
            }
            if let Some(notes) = &mut tx.notes {
                let why_not = why_not_others(needs, &candidates, &node);
                let name = chosen.name.clone();
                notes.placement = Some(Placement { node: Some(node.clone()), name, why_not });
            }
            return Ok(node);
        }
    }
    Err(Error::Unavailable("too many others are taking room on the nodes; try again in a moment".to_owned()))
}

/// Takes the room on this node, if it is still as it was when it was read, and has so much left.
async fn occupy(tx: &mut Tx, needs: &Needs, node: &Candidate) -> Result<bool, Error> {
    let sql = "UPDATE node_state SET vcpus_used = vcpus_used + $2, memory_used = memory_used + $3, \
               disk_used = disk_used + $4 WHERE node = $1 AND vcpus_used + $2 <= $5 AND memory_used + $3 <= $6 \
               AND disk_used + $4 <= $7 AND connected = $8 AND EXISTS (SELECT 1 FROM resource r JOIN live l \
               ON l.id = r.id WHERE r.id = $1 AND r.version = $9 AND r.status_version = $10)";
    let (vcpus, memory, disk) = (i64::from(needs.vcpus), int(needs.memory_bytes), int(needs.disk_bytes));
    let most = (int(node.vcpus), int(node.memory_bytes), int(node.disk_bytes));
    let read = (node.version, node.status_version);
    let asked = values![&node.id, vcpus, memory, disk, most.0, most.1, most.2, node.online, read.0, read.1];
    Ok(tx.run(sql, asked).await? == 1)
}

/// Gives the room back.
pub(super) async fn release(tx: &mut Tx, context: &Context, holder: &str) -> Result<(), Error> {
    let sql = "DELETE FROM placement WHERE holder = $1 RETURNING node, vcpus, memory_bytes, disk_bytes";
    let Some(row) = tx.row(sql, values![holder]).await? else { return Ok(()) };
    let node = row.text("node")?;
    let held = [row.int("vcpus")?, row.int("memory_bytes")?, row.int("disk_bytes")?];
    tx.run(
        "UPDATE node_state SET vcpus_used = vcpus_used - $2, memory_used = memory_used - $3, \
         disk_used = disk_used - $4 WHERE node = $1",
        values![&node, held[0], held[1], held[2]],
    )
    .await?;
    context.nodes.used(&node, held.map(|amount| -amount));
    Ok(())
}

/// Where the members of the groups are. Costs as much as the groups have members.
async fn count_members(tx: &mut Tx, needs: &Needs, nodes: &mut [Candidate]) -> Result<(), Error> {
    for group in &needs.groups {
        let sql = "SELECT p.node, count(*) AS members FROM reference f JOIN placement p ON p.holder = f.source \
                   WHERE f.target = $1 GROUP BY p.node";
        for row in tx.rows(sql, values![&group.id]).await? {
            let (id, members) = (row.text("node")?, row.int("members")?);
            if let Some(node) = nodes.iter_mut().find(|node| node.id == id) {
                node.members.insert(group.id.clone(), u64::try_from(members).unwrap_or(0));
            }
        }
    }
    Ok(())
}

async fn candidates(tx: &mut Tx) -> Result<Vec<Candidate>, Error> {
    let sql = "SELECT r.id, r.name, r.tags, r.version, r.status_version, r.spec, r.status, s.connected, s.vcpus_used, s.memory_used, s.disk_used \
               FROM live l JOIN resource r ON r.id = l.id JOIN node_state s ON s.node = l.id \
               WHERE l.kind = 'node' ORDER BY l.name";
    let rows = tx.rows(sql, &[]).await?;
    let mut all = Vec::with_capacity(rows.len());
    for row in rows {
        let (spec, status): (Value, Value) = (row.json("spec")?, row.json("status")?);
        let used = |name| row.int(name).map(|n| u64::try_from(n).unwrap_or(0));
        all.push(Candidate {
            id: row.text("id")?,
            name: row.text("name")?,
            online: row.truth("connected")?,
            cordoned: spec["cordoned"].as_bool().unwrap_or(false),
            unsupported: status["version_skew"] == "unsupported",
            guests: matches!(status["accelerator"].as_str(), Some("kvm" | "tcg" | "simulated")),
            no_wireguard: lacks(&status, "wireguard"),
            architecture: status["architecture"].as_str().unwrap_or_default().to_owned(),
            vcpus: scaled(&status["vcpus"], &spec["vcpu_overcommit"]),
            vcpus_used: used("vcpus_used")?,
            memory_bytes: scaled(&status["memory_bytes"], &spec["memory_overcommit"]),
            memory_used: used("memory_used")?,
            disk_bytes: scaled(&status["disk_bytes"], &spec["disk_overcommit"]),
            disk_used: used("disk_used")?,
            tags: row.json("tags")?,
            members: BTreeMap::new(),
            version: row.int("version")?,
            status_version: row.int("status_version")?,
        });
    }
    Ok(all)
}

/// Why a node has not this capability, as its agent says; none if it has.
fn lacks(status: &Value, name: &str) -> Option<String> {
    let said = status["capabilities"].as_array().into_iter().flatten().find(|one| one["name"] == name);
    match said {
        Some(one) if one["available"] == true => None,
        Some(one) => Some(one["detail"].as_str().unwrap_or_default().to_owned()),
        None => Some("its agent says nothing of it".to_owned()),
    }
}

fn scaled(amount: &Value, ratio: &Value) -> u64 {
    let exact = amount.as_f64().unwrap_or(0.0) * ratio.as_f64().unwrap_or(1.0);
    exact.max(0.0) as u64
}

/// The row of sums that a node has from its first day.
pub(super) async fn new_node(tx: &mut Tx, node: &str) -> Result<(), Error> {
    tx.run(
        "INSERT INTO node_state (node, sequence, session, server, connected, joined, vcpus_used, memory_used, \
         disk_used) VALUES ($1, 0, 0, '', 0, 0, 0, 0, 0) ON CONFLICT DO NOTHING",
        values![node],
    )
    .await?;
    Ok(())
}
