//! Assignments: what each node should hold. Orders are rendered here, numbered, and kept as bytes.

use std::collections::BTreeMap;

use serde_json::Value;

use super::db::{Value as Cell, row, values};
use super::objects::{Reference, add_reference, by_id, text};
use super::tx::{Table, Tx, padded, places};
use super::{Bell, Context, facts, jobs};
use crate::kernel::{Error, Held, Order, Relation, Stored};

/// What became of an order.
#[derive(Clone, Copy, Default)]
pub(super) struct Assigned {
    /// It was not ordered from there before.
    pub(super) made: bool,
    /// The node is told anew by this transaction, so it has not answered yet.
    pub(super) told: bool,
}

/// Orders these objects, each once, from `node`, as they are here.
pub(super) async fn assign(
    tx: &mut Tx,
    context: &Context,
    objects: &[Stored],
    node: &str,
) -> Result<Vec<Assigned>, Error> {
    let mut all = vec![Assigned::default(); objects.len()];
    if objects.is_empty() {
        return Ok(all);
    }
    // The numbers first, for with them comes the node: what it holds stays until it is known what is needed of it.
    let last = sequences(tx, node, objects.len()).await?;
    let first = last + 1 - i64::try_from(objects.len()).unwrap_or(0);
    let held = held(tx, objects, node).await?;
    let mut orders = Vec::new();
    for (object, assigned) in objects.iter().zip(&mut all) {
        let kind = context.registry.get(&object.core.kind)?;
        let known = facts::known(tx, context, kind, &object.spec).await?;
        let Some(order) = kind.order(object, &known)? else { continue };
        let before = held.get(&object.core.id);
        // What the node gave up for good it tries again when it is ordered again.
        if before.is_some_and(|before| *before == Some((object.core.generation, placement_epoch(object)))) {
            continue;
        }
        *assigned = Assigned { made: before.is_none(), told: true };
        orders.push((object, kind, order, before.is_some()));
    }
    if orders.is_empty() {
        return Ok(all);
    }
    let rows = orders.iter().zip(first..);
    let rows =
        rows.map(|((object, _, order, _), sequence)| order_row(node, sequence, object, order)).collect();
    let told = tx.put(INSERT, AGAIN, rows).await?;
    if told < orders.len() as u64 {
        // Somebody else has ordered some of it meanwhile, and may have been answered.
        all.iter_mut().for_each(|assigned| assigned.told = false);
    }
    for (object, kind, order, before) in orders {
        let id = &object.core.id;
        if before {
            let sql = "DELETE FROM assignment_need WHERE node = $1 AND object = $2";
            tx.run(sql, values![node, id]).await?;
        }
        order.needs.iter().for_each(|need| tx.later(&NEED, row![node, id, need]));
        // Placement has said so already for what was placed.
        if !before && !object.claims.contains_key("node") && kind.meta().held == Held::Alone {
            bind(tx, id, node);
        }
    }
    tx.ring(Bell::Node(node.to_owned()));
    Ok(all)
}

/// What of an object's orders is not as it is now. What a node gave up for good it tries again when it is ordered again.
const STALE: &str =
    "object = $1 AND remove = 0 AND (permanent = 1 OR generation <> $2 OR placement_epoch <> $3)";

/// Orders an object anew, as it is here, from all nodes that hold it. The order is the same on each, so that thousands
/// cost as many statements as one.
pub(super) async fn refresh(tx: &mut Tx, context: &Context, object: &Stored) -> Result<(), Error> {
    let kind = context.registry.get(&object.core.kind)?;
    let known = facts::known(tx, context, kind, &object.spec).await?;
    let Some(order) = kind.order(object, &known)? else { return Ok(()) };
    let id = &object.core.id;
    let key = values![id, object.core.generation, placement_epoch(object)];
    if tx.is_postgres() {
        // Two who order from many nodes at once go to them in the same order.
        let sql = format!(
            "SELECT node FROM node_state WHERE node IN (SELECT node FROM assignment WHERE {STALE}) ORDER BY node FOR UPDATE"
        );
        tx.rows(&sql, key).await?;
    }
    let sql = format!(
        "UPDATE node_state SET sequence = sequence + 1 WHERE node IN (SELECT node FROM assignment WHERE {STALE}) \
         RETURNING node"
    );
    let rows = tx.rows(&sql, key).await?;
    let nodes = rows.iter().map(|row| row.text("node")).collect::<Result<Vec<_>, _>>()?;
    let sql = format!(
        "UPDATE assignment SET sequence = (SELECT s.sequence FROM node_state s WHERE s.node = assignment.node), \
         generation = $2, placement_epoch = $3, body = $4, needs = $5, state = '', message = '', progress = 0, \
         permanent = 0 WHERE {STALE}"
    );
    let (generation, epoch) = (object.core.generation, placement_epoch(object));
    tx.run(&sql, values![id, generation, epoch, order.body.clone(), text(&order.needs)]).await?;
    let sql = "DELETE FROM assignment_need WHERE object = $1 AND node IN (SELECT node FROM assignment WHERE object = $1)";
    tx.run(sql, values![id]).await?;
    for node in nodes {
        order.needs.iter().for_each(|need| tx.later(&NEED, row![&node, id, need]));
        tx.ring(Bell::Node(node));
    }
    Ok(())
}

const NEED: Table =
    Table { name: "assignment_need", columns: "node, object, need", key: 3, tail: " ON CONFLICT DO NOTHING" };

const INSERT: &str = "INSERT INTO assignment (node, object, sequence, placement_epoch, generation, remove, body, needs, \
     state, reported_generation, applied_generation, permanent, message, progress, rendered) VALUES";

/// Of two who order the same at once the second tells the node nothing anew.
const AGAIN: &str = " ON CONFLICT (node, object) DO UPDATE SET sequence = excluded.sequence, \
     placement_epoch = excluded.placement_epoch, generation = excluded.generation, remove = 0, \
     fenced = 0, body = excluded.body, needs = excluded.needs, state = '', message = '', progress = 0, permanent = 0, \
     reported_generation = CASE WHEN assignment.remove = 1 THEN 0 ELSE assignment.reported_generation END, \
     applied_generation = CASE WHEN assignment.remove = 1 THEN 0 ELSE assignment.applied_generation END \
     WHERE assignment.remove = 1 OR assignment.permanent = 1 OR assignment.generation <> excluded.generation \
     OR assignment.placement_epoch <> excluded.placement_epoch";

fn order_row(node: &str, sequence: i64, object: &Stored, order: &Order) -> Vec<Cell> {
    row![
        node,
        &object.core.id,
        sequence,
        placement_epoch(object),
        object.core.generation,
        false,
        order.body.clone(),
        text(&order.needs),
        "",
        0,
        0,
        false,
        "",
        0,
        "{}",
    ]
}

fn placement_epoch(object: &Stored) -> i64 {
    object.claims.get("placement_epoch").and_then(Value::as_i64).unwrap_or(1)
}

/// Which of these objects a node was ordered to hold, in which generation and placement; `None` for what it is to
/// be told again whatever it was told.
async fn held(
    tx: &mut Tx,
    objects: &[Stored],
    node: &str,
) -> Result<BTreeMap<String, Option<(i64, i64)>>, Error> {
    let ids: Vec<String> = objects.iter().map(|object| object.core.id.clone()).collect();
    let ids = padded(&ids);
    let mut held = BTreeMap::new();
    if ids.is_empty() {
        return Ok(held);
    }
    let sql = format!(
        "SELECT object, generation, placement_epoch, remove, permanent FROM assignment WHERE node = $1 AND object IN {}",
        places(1, ids.len(), 2)
    );
    let mut all = vec![Cell::from(node)];
    all.extend(ids.iter().map(Cell::from));
    for row in tx.rows(&sql, &all).await? {
        let holds = !row.truth("remove")? && !row.truth("permanent")?;
        let order = (row.int("generation")?, row.int("placement_epoch")?);
        held.insert(row.text("object")?, holds.then_some(order));
    }
    Ok(held)
}

/// What a node holds alone keeps the node from being deleted.
fn bind(tx: &mut Tx, object: &str, node: &str) {
    let reference = Reference { field: "node".into(), target: node.to_owned(), relation: Relation::Uses };
    add_reference(tx, object, &reference);
}

/// A node was deleted: nobody will report on what it was ordered to hold.
pub(super) async fn forget_node(tx: &mut Tx, context: &Context, node: &str) -> Result<(), Error> {
    tx.run("DELETE FROM assignment_need WHERE node = $1", values![node]).await?;
    let rows = tx.rows("DELETE FROM assignment WHERE node = $1 RETURNING object", values![node]).await?;
    let objects: Vec<String> = rows.iter().map(|row| row.text("object")).collect::<Result<_, _>>()?;
    jobs::wake(tx, context, &objects).await
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
    let sequence = sequences(tx, node, 1).await?;
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
        if is_needed(tx, node, &need).await? {
            continue;
        }
        let Some(needed) = by_id(tx, &need, false).await? else { continue };
        if context.registry.get(&needed.core.kind)?.meta().held == Held::WhileNeeded {
            unassign_from(tx, node, &need).await?;
        }
    }
    Ok(())
}

/// True if the node holds something that needs this. What is answered stays true until the transaction ends.
pub(super) async fn is_needed(tx: &mut Tx, node: &str, need: &str) -> Result<bool, Error> {
    if tx.is_postgres() {
        // Whoever orders something that needs it has the node in hand, and its needs are not seen before it commits.
        tx.row("SELECT 1 AS one FROM node_state WHERE node = $1 FOR NO KEY UPDATE", values![node]).await?;
    }
    let sql = "SELECT 1 AS one FROM assignment_need WHERE node = $1 AND need = $2 LIMIT 1";
    Ok(tx.row(sql, values![node, need]).await?.is_some())
}

/// Takes so many numbers for orders, and the node until the transaction ends; the last of them.
async fn sequences(tx: &mut Tx, node: &str, count: usize) -> Result<i64, Error> {
    let sql = "UPDATE node_state SET sequence = sequence + $2 WHERE node = $1 RETURNING sequence";
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    let row = tx.row(sql, values![node, count]).await?;
    let row = row.ok_or_else(|| Error::Internal(format!("node {node} has no state row")))?;
    Ok(row.int("sequence")?)
}
