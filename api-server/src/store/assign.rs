//! Assignments: what each node should hold. Orders are rendered here, numbered, and kept as bytes.

use serde_json::Value;

use super::db::values;
use super::objects::{Reference, add_reference, by_id, text};
use super::tx::Tx;
use super::{Bell, Context, facts};
use crate::kernel::{Error, Held, Relation, Stored};

/// Orders `object` from `node`, as it is in `object`. True: it was not ordered from there before.
pub(super) async fn assign(
    tx: &mut Tx,
    context: &Context,
    object: &Stored,
    node: &str,
) -> Result<bool, Error> {
    let kind = context.registry.get(&object.core.kind)?;
    let known = facts::known(tx, context, kind, &object.spec).await?;
    let Some(order) = kind.order(object, &known)? else { return Ok(false) };
    let core = &object.core;
    let epoch = object.claims.get("placement_epoch").and_then(Value::as_i64).unwrap_or(1);
    let sql = "SELECT generation, placement_epoch, remove, permanent FROM assignment WHERE node = $1 AND object = $2";
    let held = tx.row(sql, values![node, &core.id]).await?;
    if let Some(row) = &held {
        let same = row.int("generation")? == core.generation && row.int("placement_epoch")? == epoch;
        // What the node gave up for good it tries again when it is ordered again.
        if same && !row.truth("remove")? && !row.truth("permanent")? {
            return Ok(false);
        }
    }
    let sequence = next_sequence(tx, node).await?;
    tx.run(
        "INSERT INTO assignment (node, object, sequence, placement_epoch, generation, remove, body, needs, state, \
         reported_generation, applied_generation, permanent, message, progress, rendered) \
         VALUES ($1, $2, $3, $4, $5, 0, $6, $7, '', 0, 0, 0, '', 0, '{}') \
         ON CONFLICT (node, object) DO UPDATE SET sequence = excluded.sequence, \
         placement_epoch = excluded.placement_epoch, generation = excluded.generation, remove = 0, \
         body = excluded.body, needs = excluded.needs, state = '', message = '', progress = 0, permanent = 0, \
         reported_generation = CASE WHEN assignment.remove = 1 THEN 0 ELSE assignment.reported_generation END, \
         applied_generation = CASE WHEN assignment.remove = 1 THEN 0 ELSE assignment.applied_generation END",
        values![node, &core.id, sequence, epoch, core.generation, order.body, text(&order.needs)],
    )
    .await?;
    if held.is_some() {
        tx.run("DELETE FROM assignment_need WHERE node = $1 AND object = $2", values![node, &core.id])
            .await?;
    }
    for need in &order.needs {
        let sql =
            "INSERT INTO assignment_need (node, object, need) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
        tx.run(sql, values![node, &core.id, need]).await?;
    }
    // Placement has said so already for what was placed.
    let placed = object.claims.contains_key("node");
    if held.is_none() && !placed && kind.meta().held == Held::Alone {
        bind(tx, &core.id, node).await?;
    }
    tx.ring(Bell::Node(node.to_owned()));
    Ok(held.is_none())
}

/// What a node holds alone keeps the node from being deleted.
async fn bind(tx: &mut Tx, object: &str, node: &str) -> Result<(), Error> {
    tx.run("DELETE FROM reference WHERE source = $1 AND field = 'node'", values![object]).await?;
    let reference = Reference { field: "node".into(), target: node.to_owned(), relation: Relation::Uses };
    add_reference(tx, object, &reference);
    Ok(())
}

/// A node was deleted: nobody will report on what it was ordered to hold.
pub(super) async fn forget_node(tx: &mut Tx, context: &Context, node: &str) -> Result<(), Error> {
    tx.run("DELETE FROM assignment_need WHERE node = $1", values![node]).await?;
    for row in tx.rows("DELETE FROM assignment WHERE node = $1 RETURNING object", values![node]).await? {
        super::advance::wake(tx, context, &row.text("object")?).await?;
    }
    Ok(())
}

/// The nodes that hold an object, or were ordered to.
pub(super) async fn holders(tx: &mut Tx, object: &str) -> Result<Vec<String>, Error> {
    let sql = "SELECT node FROM assignment WHERE object = $1 AND remove = 0 ORDER BY node";
    let rows = tx.rows(sql, values![object]).await?;
    Ok(rows.iter().map(|row| row.text("node")).collect::<Result<_, _>>()?)
}

/// Orders the removal of an object from everywhere; how many nodes held it.
pub(super) async fn unassign(tx: &mut Tx, object: &str) -> Result<usize, Error> {
    let nodes = holders(tx, object).await?;
    for node in &nodes {
        unassign_from(tx, node, object).await?;
    }
    Ok(nodes.len())
}

/// Orders the removal of an object from one node.
pub(super) async fn unassign_from(tx: &mut Tx, node: &str, object: &str) -> Result<(), Error> {
    let sequence = next_sequence(tx, node).await?;
    let sql = "UPDATE assignment SET remove = 1, sequence = $3, message = '', permanent = 0 \
               WHERE node = $1 AND object = $2 AND remove = 0";
    tx.run(sql, values![node, object, sequence]).await?;
    tx.ring(Bell::Node(node.to_owned()));
    Ok(())
}

/// A node has let go of an object: its row goes, and so does, in turn, what only it needed there and a node
/// keeps only while it is needed.
pub(super) async fn gone(tx: &mut Tx, context: &Context, node: &str, object: &str) -> Result<(), Error> {
    tx.run("DELETE FROM assignment WHERE node = $1 AND object = $2", values![node, object]).await?;
    let sql = "DELETE FROM assignment_need WHERE node = $1 AND object = $2 RETURNING need";
    let needs = tx.rows(sql, values![node, object]).await?;
    let needs = needs.iter().map(|row| row.text("need")).collect::<Result<Vec<_>, _>>()?;
    for need in needs {
        let sql = "SELECT 1 AS one FROM assignment_need WHERE node = $1 AND need = $2 LIMIT 1";
        if tx.row(sql, values![node, &need]).await?.is_some() {
            continue;
        }
        let Some(needed) = by_id(tx, &need, false).await? else { continue };
        if context.registry.get(&needed.core.kind)?.meta().held == Held::WhileNeeded {
            unassign_from(tx, node, &need).await?;
        }
    }
    Ok(())
}

async fn next_sequence(tx: &mut Tx, node: &str) -> Result<i64, Error> {
    let sql = "UPDATE node_state SET sequence = sequence + 1 WHERE node = $1 RETURNING sequence";
    let row = tx.row(sql, values![node]).await?;
    let row = row.ok_or_else(|| Error::Internal(format!("node {node} has no state row")))?;
    Ok(row.int("sequence")?)
}
