//! What one node holds and the nodes of others know of: members of a mesh. Each order is an object's own and the same
//! everywhere, so that a change of one costs as many rows as there are others, and a few statements.

use serde_json::Value;

use super::db::values;
use super::objects::{self, COLUMNS, by_id};
use super::run::JobRow;
use super::tx::Tx;
use super::{Bell, Context, assign, facts, report};
use crate::kernel::{Error, Held, Kind, Stored, Who};

/// True if this node is one that only knows of the object.
pub(super) fn is_elsewhere(kind: &dyn Kind, object: &Stored, node: &str) -> bool {
    matches!(kind.meta().held, Held::Among { .. }) && own_node(object) != Some(node)
}

/// The node that a job on an object of this kind waits for; empty: all that hold it. What others know of it they may
/// hear when they return.
pub(super) fn who_matters<'a>(context: &Context, job: &'a JobRow, who: &Who) -> Result<&'a str, Error> {
    let is_among = matches!(context.registry.get(&job.kind)?.meta().held, Held::Among { .. });
    let node = job.snapshot["claims"]["node"].as_str();
    Ok(node.filter(|_| is_among && *who == Who::This).unwrap_or_default())
}

/// The node of an object has told something of it; `before` is what others knew until now.
pub(super) async fn heard(
    tx: &mut Tx,
    context: &Context,
    before: Option<String>,
    object: &Stored,
) -> Result<(), Error> {
    let now = context.registry.get(&object.core.kind)?.told(object)?;
    // What is being deleted is on its way out everywhere.
    if before == now || object.core.deleted_at.is_some() {
        return Ok(());
    }
    if let Some(now) = &now {
        says_nothing_of_others(tx, context, object, now).await?;
    }
    match (before, now) {
        (None, Some(_)) => {
            join(tx, context, object).await?;
            tell(tx, context, object).await
        }
        (Some(_), Some(_)) => tell(tx, context, object).await,
        (_, None) => leave(tx, context, object).await,
    }
}

/// Orders anew, wherever it is held, whatever refers to this.
pub(super) async fn tell_users(tx: &mut Tx, context: &Context, id: &str) -> Result<(), Error> {
    for object in users(tx, id).await? {
        tell(tx, context, &object).await?;
    }
    Ok(())
}

/// Orders the removal of an object from everywhere, and of what its node knew for its sake.
pub(super) async fn unassign(tx: &mut Tx, context: &Context, id: &str) -> Result<(), Error> {
    if let Some(object) = by_id(tx, id, false).await? {
        leave(tx, context, &object).await?;
    }
    assign::unassign(tx, id).await.map(drop)
}

/// Nothing is believed of a node any more: what it told is forgotten, and all others let go of it.
pub(super) async fn shut_out(tx: &mut Tx, context: &Context, node: &str) -> Result<(), Error> {
    let all = context.registry.all().iter();
    for kind in all.filter(|kind| matches!(kind.meta().held, Held::Among { .. })) {
        let sql = "SELECT p.holder FROM placement p JOIN resource r ON r.id = p.holder \
                   WHERE p.node = $1 AND r.kind = $2 ORDER BY p.holder";
        for row in tx.rows(sql, values![node, kind.meta().kind]).await? {
            let Some(mut object) = by_id(tx, &row.text("holder")?, true).await? else { continue };
            let before = kind.told(&object)?;
            report::set_status(tx, context, &mut object, Value::Null).await?;
            heard(tx, context, before, &object).await?;
        }
    }
    Ok(())
}

/// What a node says of itself is told to others.
pub(super) fn is_told_to_others(kind: &dyn Kind) -> bool {
    matches!(kind.meta().held, Held::Among { .. })
}

/// Of two who change something in one group at once, the second sees what the first did. References lock `live`, never
/// this row.
async fn alone_in(tx: &mut Tx, group: &str) -> Result<(), Error> {
    if tx.is_postgres() {
        tx.row("SELECT id FROM resource WHERE id = $1 FOR UPDATE", values![group]).await?;
    }
    Ok(())
}

/// Nobody says of himself what another one has said: who repeats another's key would take the other's place.
async fn says_nothing_of_others(
    tx: &mut Tx,
    context: &Context,
    object: &Stored,
    now: &str,
) -> Result<(), Error> {
    let Some(group) = group(context, object)? else { return Ok(()) };
    alone_in(tx, &group).await?;
    for other in users(tx, &group).await? {
        if other.core.id == object.core.id || other.core.kind != object.core.kind {
            continue;
        }
        let its = context.registry.get(&other.core.kind)?.told(&other)?.unwrap_or_default();
        if its.split_whitespace().any(|word| now.split_whitespace().any(|own| own == word)) {
            let what = format!("{} tells what is of {}", object.core.id, other.core.id);
            return Err(Error::Internal(what));
        }
    }
    Ok(())
}

/// The others hear of it, and its node of the others.
async fn join(tx: &mut Tx, context: &Context, object: &Stored) -> Result<(), Error> {
    let (Some(group), Some(node)) = (group(context, object)?, own_node(object)) else { return Ok(()) };
    alone_in(tx, &group).await?;
    let mut others = Vec::new();
    for other in users(tx, &group).await? {
        let kind = context.registry.get(&other.core.kind)?;
        if other.core.id != object.core.id
            && other.core.kind == object.core.kind
            && own_node(&other).is_some_and(|its| its != node)
            && kind.told(&other)?.is_some()
        {
            others.push(other);
        }
    }
    if tx.is_postgres() {
        // Two who order from many nodes at once go to them in the same order.
        let sql = "SELECT node FROM node_state WHERE node IN (SELECT p.node FROM placement p JOIN reference f \
                   ON f.source = p.holder WHERE f.target = $1) ORDER BY node FOR UPDATE";
        tx.rows(sql, values![&group]).await?;
    }
    assign::assign(tx, context, &others, node).await?;
    for other in &others {
        if let Some(its) = own_node(other) {
            assign::assign(tx, context, std::slice::from_ref(object), its).await?;
        }
    }
    Ok(())
}

/// The others let go of it, and its node of the others.
async fn leave(tx: &mut Tx, context: &Context, object: &Stored) -> Result<(), Error> {
    let (Some(own), Some(node)) = (group(context, object)?, own_node(object)) else { return Ok(()) };
    let id = &object.core.id;
    for holder in assign::holders(tx, id).await? {
        if holder != node {
            assign::unassign_from(tx, &holder, id).await?;
        }
    }
    let sql = "SELECT a.object FROM assignment a JOIN resource r ON r.id = a.object \
               WHERE a.node = $1 AND a.remove = 0 AND r.kind = $2 AND a.object <> $3 ORDER BY a.object";
    for row in tx.rows(sql, values![node, &object.core.kind, id]).await? {
        let other = by_id(tx, &row.text("object")?, false).await?;
        if let Some(other) = other
            && group(context, &other)?.as_ref() == Some(&own)
        {
            assign::unassign_from(tx, node, &other.core.id).await?;
        }
    }
    Ok(())
}

/// Orders an object anew, as it is here, from all nodes that hold it as something else. Nobody waits for them: its
/// generation stays, and what they have answered to it stands.
async fn tell(tx: &mut Tx, context: &Context, object: &Stored) -> Result<(), Error> {
    const OTHER: &str = "object = $1 AND remove = 0 AND body <> $2";
    if let Some(group) = group(context, object)? {
        alone_in(tx, &group).await?;
    }
    let kind = context.registry.get(&object.core.kind)?;
    let known = facts::known(tx, context, kind, &object.spec).await?;
    let Some(order) = kind.order(object, &known)? else { return Ok(()) };
    let key = values![&object.core.id, order.body.clone()];
    if tx.is_postgres() {
        let sql = format!(
            "SELECT node FROM node_state WHERE node IN (SELECT node FROM assignment WHERE {OTHER}) ORDER BY node FOR UPDATE"
        );
        tx.rows(&sql, key).await?;
    }
    let sql = format!(
        "UPDATE node_state SET sequence = sequence + 1 WHERE node IN (SELECT node FROM assignment WHERE {OTHER}) \
         RETURNING node"
    );
    let rows = tx.rows(&sql, key).await?;
    let sql = format!(
        "UPDATE assignment SET sequence = (SELECT s.sequence FROM node_state s WHERE s.node = assignment.node), \
         body = $2 WHERE {OTHER}"
    );
    tx.run(&sql, key).await?;
    for row in rows {
        tx.ring(Bell::Node(row.text("node")?));
    }
    Ok(())
}

/// All that is there and refers to this; none of it goes before the transaction ends.
async fn users(tx: &mut Tx, id: &str) -> Result<Vec<Stored>, Error> {
    let lock = if tx.is_postgres() { " FOR SHARE OF l" } else { "" };
    let sql = format!(
        "SELECT {COLUMNS} FROM reference f JOIN live l ON l.id = f.source JOIN resource r ON r.id = l.id \
         WHERE f.target = $1 ORDER BY r.id{lock}"
    );
    let rows = tx.rows(&sql, values![id]).await?;
    let mut all = rows.iter().map(objects::stored).collect::<Result<Vec<_>, _>>()?;
    all.dedup_by(|a, b| a.core.id == b.core.id);
    Ok(all)
}

/// Id of what it has in common with others.
fn group(context: &Context, object: &Stored) -> Result<Option<String>, Error> {
    let Held::Among { by } = context.registry.get(&object.core.kind)?.meta().held else { return Ok(None) };
    Ok(object.spec[by].as_str().map(str::to_owned))
}

fn own_node(object: &Stored) -> Option<&str> {
    object.claims.get("node").and_then(Value::as_str)
}
