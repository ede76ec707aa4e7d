//! What nodes say: reports on what they hold, and on themselves.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::db::values;
use super::objects::{self, by_id, text};
use super::phases::{self, Last};
use super::tx::Tx;
use super::{Bell, Context, Store, advance, among, assign, history, nodes, secrets};
use crate::kernel::secret::Plain;
use crate::kernel::{Error, Stored};

/// One assignment as it is streamed to its node.
#[derive(Clone, Debug)]
pub struct AssignmentRow {
    /// Id of the object.
    pub object_id: String,
    /// Its kind.
    pub kind: String,
    /// Its tenant.
    pub tenant: String,
    /// Its name.
    pub name: String,
    /// Rises when it is placed anew.
    pub placement_epoch: i64,
    /// Of its spec.
    pub generation: i64,
    /// Numbers the orders of the node.
    pub sequence: i64,
    /// True: let go of it.
    pub remove: bool,
    /// Ids of what must be held before.
    pub needs: Vec<String>,
    /// An encoded `rhyzome.v1.OrderBody`.
    pub body: Vec<u8>,
    /// What the markers in the body stand for, opened for this reading and kept nowhere; or why one cannot be opened.
    pub secrets: Result<Vec<(String, Plain)>, String>,
}

/// A node's report on one object, its words taken out of the wire form that kinds read themselves.
#[derive(Clone, Debug, Default)]
pub struct NodeReport {
    /// On what.
    pub object_id: String,
    /// Of the order that it speaks of.
    pub placement_epoch: i64,
    /// Of the order that it speaks of.
    pub generation: i64,
    /// `gone`: of the order to remove it; 0 if the node did not say.
    pub sequence: i64,
    /// `working`, `applied`, `failed`, `gone`.
    pub state: String,
    /// Why, or how far.
    pub message: String,
    /// No retry will help.
    pub permanent: bool,
    /// 0 to 100.
    pub progress: i64,
    /// What the node wrote, by file name.
    pub rendered: BTreeMap<String, String>,
    /// The whole report, an encoded `rhyzome.v1.Report`.
    pub bytes: Vec<u8>,
}

impl Store {
    /// The orders of a node above its cursor, first to last.
    pub async fn assignments_after(
        &self,
        node: &str,
        cursor: i64,
        limit: i64,
    ) -> Result<Vec<AssignmentRow>, Error> {
        self.assignments("a.sequence > $2", node, cursor, limit).await
    }

    /// What a node was told to let go of, and has not: told again when a session begins, because a node forgets
    /// what is gone once it believes that this was heard.
    pub async fn removals_until(&self, node: &str, cursor: i64) -> Result<Vec<AssignmentRow>, Error> {
        self.assignments("a.remove = 1 AND a.sequence <= $2", node, cursor, i64::MAX).await
    }

    async fn assignments(
        &self,
        which: &str,
        node: &str,
        cursor: i64,
        limit: i64,
    ) -> Result<Vec<AssignmentRow>, Error> {
        let sql = format!(
            "SELECT a.object, r.kind, r.tenant, r.name, a.placement_epoch, a.generation, a.sequence, a.remove, \
             a.needs, a.body FROM assignment a JOIN resource r ON r.id = a.object \
             WHERE a.node = $1 AND {which} ORDER BY a.sequence LIMIT $3"
        );
        let rows = self.read().await?.rows(&sql, values![node, cursor, limit]).await?;
        let mut all = Vec::with_capacity(rows.len());
        for row in rows {
            all.push(AssignmentRow {
                object_id: row.text("object")?,
                kind: row.text("kind")?,
                tenant: row.text("tenant")?,
                name: row.text("name")?,
                placement_epoch: row.int("placement_epoch")?,
                generation: row.int("generation")?,
                sequence: row.int("sequence")?,
                remove: row.truth("remove")?,
                needs: row.json("needs")?,
                body: row.bytes("body")?,
                secrets: Ok(Vec::new()),
            });
        }
        secrets::open_for(&mut self.read().await?, &self.context, &mut all).await?;
        Ok(all)
    }

    /// Keeps what a node says of an object. What speaks of an older order, or of nothing that was ordered
    /// from it, is ignored.
    pub async fn record_report(&self, node: &str, report: NodeReport) -> Result<(), Error> {
        let taken = (node.to_owned(), report);
        self.write(taken, move |tx, context, (node, report)| {
            Box::pin(async move { keep(tx, &context, &node, report).await })
        })
        .await
    }

    /// Keeps what a node says of itself. `false` if nothing is new.
    pub async fn record_node_status(&self, node: &str, said: Value) -> Result<bool, Error> {
        let taken = (node.to_owned(), said);
        self.write(taken, move |tx, context, (node, said)| {
            Box::pin(async move { merge_status(tx, &context, &node, said).await })
        })
        .await
    }

    /// True if an assignment of this node needs these bytes.
    pub async fn node_may_fetch(&self, node: &str, sha256: &str) -> Result<bool, Error> {
        let sql = "SELECT r.status FROM assignment a JOIN resource r ON r.id = a.object \
                   WHERE a.node = $1 AND r.kind = 'image'";
        let rows = self.read().await?.rows(sql, values![node]).await?;
        for row in rows {
            let status: Value = row.json("status")?;
            if status["sha256"].as_str() == Some(sha256) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

async fn keep(tx: &mut Tx, context: &Context, node: &str, report: NodeReport) -> Result<(), Error> {
    let id = &report.object_id;
    // The object first, as every write does: who has it in hand looks at its orders and jobs next.
    let lock = if tx.is_postgres() { " FOR NO KEY UPDATE OF r FOR NO KEY UPDATE OF a" } else { "" };
    let sql = format!(
        "SELECT a.generation, a.placement_epoch, a.sequence, a.remove, a.state, a.message, a.progress, \
         a.reported_generation, a.applied_generation, a.rendered FROM assignment a \
         JOIN resource r ON r.id = a.object WHERE a.node = $1 AND a.object = $2{lock}"
    );
    let Some(row) = tx.row(&sql, values![node, id]).await? else { return Ok(()) };
    let old_order = report.placement_epoch < row.int("placement_epoch")?;
    if old_order || report.generation < row.int("reported_generation")? {
        return Ok(());
    }
    if report.state == "gone" {
        // One that speaks of an earlier removal says nothing of what was ordered, and brought back, since.
        let late = report.sequence > 0 && report.sequence < row.int("sequence")?;
        if row.truth("remove")? && !late {
            // Who has such a job in hand has it before what is ordered of the node.
            advance::wake(tx, context, id).await?;
            assign::gone(tx, context, node, id).await?;
            tx.ring(Bell::Resource(id.clone()));
        }
        return Ok(());
    }
    let applied = if report.state == "applied" { report.generation } else { row.int("applied_generation")? };
    let rendered = if report.rendered.is_empty() { row.text("rendered")? } else { text(&report.rendered) };
    let news = row.text("state")? != report.state
        || row.text("message")? != report.message
        || row.int("progress")? != report.progress
        || row.int("reported_generation")? != report.generation
        || row.int("applied_generation")? != applied
        || row.text("rendered")? != rendered;
    if news {
        tx.run(
            "UPDATE assignment SET state = $3, message = $4, progress = $5, permanent = $6, \
             reported_generation = $7, applied_generation = $8, rendered = $9 WHERE node = $1 AND object = $2",
            values![
                node,
                id,
                &report.state,
                &report.message,
                report.progress,
                report.permanent,
                report.generation,
                applied,
                rendered,
            ],
        )
        .await?;
        advance::wake(tx, context, id).await?;
    }
    observe(tx, context, node, &report).await
}

async fn observe(tx: &mut Tx, context: &Context, node: &str, report: &NodeReport) -> Result<(), Error> {
    let Some(mut object) = by_id(tx, &report.object_id, true).await? else { return Ok(()) };
    let kind = context.registry.get(&object.core.kind)?;
    // What one node holds and others know of is as that one says.
    if among::is_elsewhere(kind, &object, node) {
        return Ok(());
    }
    // A node that was revoked, or has no session any more, is told of to nobody: it tells again when it comes back.
    if among::is_told_to_others(kind) && !nodes::is_connected(tx, node).await? {
        return Ok(());
    }
    // What a node says that it was taken from is not how it is.
    let placed = object.claims.get("placement_epoch").and_then(Value::as_i64).unwrap_or(0);
    if report.placement_epoch < placed {
        return Ok(());
    }
    let before = (object.status.clone(), object.core.phase.clone());
    let told = kind.told(&object)?;
    kind.observe(&mut object, &report.bytes)?;
    let last = phases::last(tx, &object).await?;
    object.core.phase = phases::now(context, &object, last.as_ref().map(Last::place))?;
    if before.0 != object.status || before.1 != object.core.phase {
        objects::update_status(tx, &mut object).await?;
    }
    if before.1 != object.core.phase {
        history::phase_changed(tx, context, &object, last.as_ref());
    }
    among::heard(tx, context, told, &object).await
}

/// Merges what is said into the status of a node.
pub(super) async fn merge_status(
    tx: &mut Tx,
    context: &Context,
    node: &str,
    said: Value,
) -> Result<bool, Error> {
    let Some(mut object) = by_id(tx, node, true).await? else { return Ok(false) };
    let mut status = if object.status.is_object() { object.status.clone() } else { json!({}) };
    json_patch::merge(&mut status, &said);
    if status == object.status {
        return Ok(false);
    }
    set_status(tx, context, &mut object, status).await?;
    Ok(true)
}

/// Writes another status of an object, and the phase that comes of it.
pub(super) async fn set_status(
    tx: &mut Tx,
    context: &Context,
    object: &mut Stored,
    status: Value,
) -> Result<(), Error> {
    object.status = status;
    let last = phases::last(tx, object).await?;
    let phase = phases::now(context, object, last.as_ref().map(Last::place))?;
    let before = std::mem::replace(&mut object.core.phase, phase);
    objects::update_status(tx, object).await?;
    if before != object.core.phase {
        history::phase_changed(tx, context, object, last.as_ref());
    }
    Ok(())
}
