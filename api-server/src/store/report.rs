//! What nodes say: reports on what they hold, and on themselves.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::{Value, json};

use super::db::{self, Row, row, values};
use super::objects::{self, by_id, text};
use super::phases::{self, Last};
use super::tx::{Tx, padded, places};
use super::{Bell, Context, Store, among, assign, history, jobs, nodes, secrets};
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
        let sql = format!(
            "SELECT {ASSIGNMENT} FROM assignment a JOIN resource r ON r.id = a.object \
             WHERE a.node = $1 AND a.sequence > $2 ORDER BY a.sequence LIMIT $3"
        );
        let rows = self.read().await?.rows(&sql, values![node, cursor, limit]).await?;
        let mut all = rows.iter().map(assignment).collect::<Result<Vec<_>, _>>()?;
        secrets::open_for(&mut self.read().await?, &self.context, &mut all).await?;
        Ok(all)
    }

    /// Keeps what a node says of an object. What speaks of an older order, or of nothing that was ordered
    /// from it, is ignored.
    pub async fn record_report(&self, node: &str, report: NodeReport) -> Result<(), Error> {
        self.record_reports(vec![(node.to_owned(), report)]).await
    }

    /// The same, of what many nodes say at once: together, in the order in which they are named where they speak of the
    /// same. One that cannot be kept keeps none of the others from it; the first such error is the answer.
    pub async fn record_reports(&self, all: Vec<(String, NodeReport)>) -> Result<(), Error> {
        let kept = self.keep_reports(all.clone()).await;
        if all.len() < 2 || !matches!(&kept, Err(error) if !matches!(error, Error::Unavailable(_))) {
            return kept;
        }
        let mut first = Ok(());
        for one in all {
            match self.keep_reports(vec![one]).await {
                Err(error @ Error::Unavailable(_)) => return Err(error),
                kept => first = first.and(kept),
            }
        }
        first
    }

    async fn keep_reports(&self, all: Vec<(String, NodeReport)>) -> Result<(), Error> {
        self.write(all, |tx, context, all| Box::pin(async move { keep(tx, &context, all).await })).await
    }

    /// Keeps what a node says of itself.
    pub async fn record_node_status(&self, node: &str, said: Value) -> Result<(), Error> {
        self.record_node_statuses(vec![(node.to_owned(), said)]).await
    }

    /// The same, of many at once.
    pub async fn record_node_statuses(&self, all: Vec<(String, Value)>) -> Result<(), Error> {
        self.write(all, |tx, context, all| {
            Box::pin(async move { merge_statuses(tx, &context, all).await.map(drop) })
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

/// The columns of an order, of `assignment a` and `resource r`.
pub(super) const ASSIGNMENT: &str = "a.object, r.kind, r.tenant, r.name, a.placement_epoch, a.generation, \
                                     a.sequence, a.remove, a.needs, a.body";

/// An order, but for its secrets.
pub(super) fn assignment(row: &Row) -> Result<AssignmentRow, Error> {
    Ok(AssignmentRow {
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
    })
}

async fn keep(tx: &mut Tx, context: &Context, mut all: Vec<(String, NodeReport)>) -> Result<(), Error> {
    // Whoever else has several in hand takes them in the same order.
    all.sort_by(|one, other| (&one.1.object_id, &one.0).cmp(&(&other.1.object_id, &other.0)));
    while !all.is_empty() {
        let mut now: Vec<(String, NodeReport)> = Vec::new();
        let mut later = Vec::new();
        for (node, report) in all {
            let is_same =
                |(its, last): &(String, NodeReport)| *its == node && last.object_id == report.object_id;
            if now.last().is_some_and(is_same) { &mut later } else { &mut now }.push((node, report));
        }
        keep_each(tx, context, now).await?;
        all = later;
    }
    Ok(())
}

/// No two of them are of one node on one object.
async fn keep_each(tx: &mut Tx, context: &Context, all: Vec<(String, NodeReport)>) -> Result<(), Error> {
    let mut rows = ordered(tx, &all).await?;
    let (mut gone, mut news, mut heard) = (Vec::new(), Vec::new(), Vec::new());
    for (node, report) in all {
        let Some(row) = rows.remove(&(node.clone(), report.object_id.clone())) else { continue };
        let is_older = report.placement_epoch < row.int("placement_epoch")?
            || report.generation < row.int("reported_generation")?;
        if is_older {
            continue;
        }
        if report.state == "gone" {
            // One that speaks of an earlier removal says nothing of what was ordered, and brought back, since.
            let late = report.sequence > 0 && report.sequence < row.int("sequence")?;
            if row.truth("remove")? && !late {
                gone.push((node, report.object_id));
            }
            continue;
        }
        news.extend(changed(&node, &report, &row)?);
        heard.push((node, report));
    }
    write_reported(tx, &news).await?;
    let objects = news.iter().map(|changed| changed.object.clone());
    jobs::wake(tx, context, &distinct(objects)).await?;
    observe(tx, context, heard).await?;
    for (node, object) in gone {
        // Who has such a job in hand has it before what is ordered of the node.
        jobs::wake(tx, context, std::slice::from_ref(&object)).await?;
        assign::gone(tx, context, &node, &object).await?;
        tx.ring(Bell::Resource(object));
    }
    Ok(())
}

/// What was ordered of them, by node and object.
async fn ordered(tx: &mut Tx, all: &[(String, NodeReport)]) -> Result<HashMap<(String, String), Row>, Error> {
    // The object first, as every write does: who has it in hand looks at its orders and jobs next.
    let lock = if tx.is_postgres() { " FOR NO KEY UPDATE OF r FOR NO KEY UPDATE OF a" } else { "" };
    let which: Vec<_> = all.iter().map(|(node, report)| row![node, &report.object_id]).collect();
    let which = padded(&which);
    let sql = format!(
        "SELECT a.node, a.object, a.generation, a.placement_epoch, a.sequence, a.remove, a.state, a.message, \
         a.progress, a.reported_generation, a.applied_generation, a.rendered FROM (VALUES {}) AS v \
         JOIN assignment a ON a.node = v.column1 AND a.object = v.column2 \
         JOIN resource r ON r.id = a.object ORDER BY a.object, a.node{lock}",
        places(which.len(), 2, 1)
    );
    let rows = tx.rows(&sql, &which.concat()).await?;
    rows.into_iter().map(|row| Ok(((row.text("node")?, row.text("object")?), row))).collect()
}

/// What is to be written of a report.
#[derive(Clone)]
struct Changed {
    node: String,
    object: String,
    state: String,
    message: String,
    progress: i64,
    permanent: bool,
    reported: i64,
    applied: i64,
    rendered: String,
}

/// `None` if nothing is new.
fn changed(node: &str, report: &NodeReport, row: &Row) -> Result<Option<Changed>, Error> {
    let known = row.int("applied_generation")?;
    let applied = if report.state == "applied" { report.generation } else { known };
    let rendered = if report.rendered.is_empty() { row.text("rendered")? } else { text(&report.rendered) };
    let is_new = row.text("state")? != report.state
        || row.text("message")? != report.message
        || row.int("progress")? != report.progress
        || row.int("reported_generation")? != report.generation
        || known != applied
        || row.text("rendered")? != rendered;
    Ok(is_new.then(|| Changed {
        node: node.to_owned(),
        object: report.object_id.clone(),
        state: report.state.clone(),
        message: report.message.clone(),
        progress: report.progress,
        permanent: report.permanent,
        reported: report.generation,
        applied,
        rendered,
    }))
}

async fn write_reported(tx: &mut Tx, all: &[Changed]) -> Result<(), Error> {
    if all.is_empty() {
        return Ok(());
    }
    let rows: Vec<Vec<db::Value>> = padded(all)
        .into_iter()
        .map(|it| {
            row![
                it.node,
                it.object,
                it.state,
                it.message,
                it.progress,
                it.permanent,
                it.reported,
                it.applied,
                it.rendered,
            ]
        })
        .collect();
    let sql = format!(
        "UPDATE assignment SET state = v.column3, message = v.column4, progress = v.column5, \
         permanent = v.column6, reported_generation = v.column7, applied_generation = v.column8, \
         rendered = v.column9 FROM (VALUES {}) AS v WHERE node = v.column1 AND object = v.column2",
        places(rows.len(), 9, 1)
    );
    tx.run(&sql, &rows.concat()).await?;
    Ok(())
}

/// What the objects are by what is said of them, one after the other; each is written once.
async fn observe(tx: &mut Tx, context: &Context, all: Vec<(String, NodeReport)>) -> Result<(), Error> {
    let ids = distinct(all.iter().map(|(_, report)| report.object_id.clone()));
    let objects = objects::all_by_id(tx, &ids).await?;
    let mut objects: BTreeMap<String, Stored> =
        objects.into_iter().map(|object| (object.core.id.clone(), object)).collect();
    let before: BTreeMap<String, (Value, String)> = objects
        .iter()
        .map(|(id, object)| (id.clone(), (object.status.clone(), object.core.phase.clone())))
        .collect();
    let mut told = Vec::new();
    for (node, report) in &all {
        let Some(object) = objects.get_mut(&report.object_id) else { continue };
        let kind = context.registry.get(&object.core.kind)?;
        // What one node holds and others know of is as that one says.
        if among::is_elsewhere(kind, object, node) {
            continue;
        }
        // A node that was revoked, or has no session any more, is told of to nobody: it tells again when it comes back.
        if among::is_told_to_others(kind) && !nodes::is_connected(tx, node).await? {
            continue;
        }
        // What a node says that it was taken from is not how it is.
        let placed = object.claims.get("placement_epoch").and_then(Value::as_i64).unwrap_or(0);
        if report.placement_epoch < placed {
            continue;
        }
        if among::is_told_to_others(kind) {
            told.push((object.core.id.clone(), kind.told(object)?));
        }
        kind.observe(object, &report.bytes)?;
    }
    // A phase follows from more than what is said, so each is looked at; what is as it was is not written.
    let mut seen: Vec<Stored> = objects.into_values().collect();
    let last_jobs = phases::last_of(tx, &seen).await?;
    let mut other = Vec::new();
    for object in &mut seen {
        let last = object.core.job.as_ref().and_then(|job| last_jobs.get(job));
        object.core.phase = phases::now(context, object, last.map(Last::place))?;
        let Some((status, phase)) = before.get(&object.core.id) else { continue };
        if *status != object.status || *phase != object.core.phase {
            other.push((object.clone(), *phase != object.core.phase));
        }
    }
    write_statuses(tx, context, other, &last_jobs).await?;
    for (id, before) in told {
        // Now, as others who are told of in the same breath may have changed it.
        if let Some(object) = by_id(tx, &id, true).await? {
            among::heard(tx, context, before, &object).await?;
        }
    }
    Ok(())
}

/// Writes objects whose status is another, and of those whose phase is as well, that it is.
async fn write_statuses(
    tx: &mut Tx,
    context: &Context,
    all: Vec<(Stored, bool)>,
    last_jobs: &BTreeMap<String, Last>,
) -> Result<(), Error> {
    let (mut objects, phases): (Vec<Stored>, Vec<bool>) = all.into_iter().unzip();
    objects::update_statuses(tx, &mut objects).await?;
    for (object, _) in objects.iter().zip(phases).filter(|(_, is_other)| *is_other) {
        let last = object.core.job.as_ref().and_then(|job| last_jobs.get(job));
        history::phase_changed(tx, context, object, last);
    }
    Ok(())
}

fn distinct(ids: impl Iterator<Item = String>) -> Vec<String> {
    ids.collect::<BTreeSet<String>>().into_iter().collect()
}

/// Merges what is said into the status of a node; whether that changes it.
pub(super) async fn merge_status(
    tx: &mut Tx,
    context: &Context,
    node: &str,
    said: Value,
) -> Result<bool, Error> {
    Ok(merge_statuses(tx, context, vec![(node.to_owned(), said)]).await? > 0)
}

/// The same, of many; how many of them that changes.
pub(super) async fn merge_statuses(
    tx: &mut Tx,
    context: &Context,
    all: Vec<(String, Value)>,
) -> Result<usize, Error> {
    let ids = distinct(all.iter().map(|(node, _)| node.clone()));
    let mut objects = objects::all_by_id(tx, &ids).await?;
    let mut said: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for (node, one) in all {
        said.entry(node).or_default().push(one);
    }
    objects.retain_mut(|object| {
        let mut status = if object.status.is_object() { object.status.clone() } else { json!({}) };
        said.get(&object.core.id).into_iter().flatten().for_each(|one| json_patch::merge(&mut status, one));
        std::mem::replace(&mut object.status, status) != object.status
    });
    let last_jobs = phases::last_of(tx, &objects).await?;
    let mut other = Vec::new();
    for mut object in objects {
        let last = object.core.job.as_ref().and_then(|job| last_jobs.get(job));
        let phase = phases::now(context, &object, last.map(Last::place))?;
        let before = std::mem::replace(&mut object.core.phase, phase);
        let is_other = before != object.core.phase;
        other.push((object, is_other));
    }
    let count = other.len();
    write_statuses(tx, context, other, &last_jobs).await?;
    Ok(count)
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
