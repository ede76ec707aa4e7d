//! Nodes that are lost: away for so long that no lease of theirs can still run. How what is on them is nobody knows; what
//! is marked for it is taken from them, and made on other nodes.
//!
//! Who says that a node is lost has watched it (`jobs/rescue.rs`). Each transaction here makes sure of it once more, with
//! the node's row locked: a session that begins then begins after it, and hears first what the node is to let go of.

use serde_json::{Value, json};

use super::create::{Maker, finish};
use super::db::values;
use super::jobs::{self, Intent, OPEN_OF};
use super::objects::{self, by_id};
use super::tx::Tx;
use super::{Asked, Context, Store, assign, drain, facts, placement, report};
use crate::kernel::{Caller, Error, JobState, Stored, Verb};

/// A node without a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Away {
    /// Which node.
    pub node: String,
    /// Its name.
    pub name: String,
    /// Its last session.
    pub session: i64,
    /// Whether it is said already that nobody knows how things on it are.
    pub lost: bool,
}

/// What became of an object on a lost node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rescued {
    /// It is made on another node, by this job.
    By(String),
    /// It stays where it is, for now.
    Stays(String),
    /// There is nothing to do: the node is back, or the object is not there any more.
    Not,
}

/// Objects of which it is said at once that nobody knows how they are.
const AT_ONCE: usize = 64;

impl Store {
    /// Nodes that had a session and have none.
    pub async fn nodes_away(&self) -> Result<Vec<Away>, Error> {
        let sql = "SELECT s.node, s.session, s.lost, r.name FROM node_state s JOIN live r ON r.id = s.node \
                   WHERE s.connected = 0 AND s.session > 0 ORDER BY s.node";
        let rows = self.read().await?.rows(sql, &[]).await?;
        let away = |row: &super::db::Row| -> Result<Away, Error> {
            Ok(Away {
                node: row.text("node")?,
                name: row.text("name")?,
                session: row.int("session")?,
                lost: row.truth("lost")?,
            })
        };
        rows.iter().map(away).collect()
    }

    /// Says of all that is on a lost node that nobody knows how it is.
    pub async fn node_lost(&self, away: &Away) -> Result<(), Error> {
        let sql = "SELECT holder FROM placement WHERE node = $1 ORDER BY holder";
        let rows = self.read().await?.rows(sql, values![&away.node]).await?;
        let ids = rows.iter().map(|row| row.text("holder")).collect::<Result<Vec<_>, _>>()?;
        for ids in ids.chunks(AT_ONCE) {
            self.write((away.clone(), ids.to_vec()), |tx, context, (away, ids)| {
                Box::pin(async move { nobody_knows(tx, &context, &away, &ids).await })
            })
            .await?;
        }
        self.write(away.clone(), |tx, _, away| {
            Box::pin(async move {
                let sql = "UPDATE node_state SET lost = 1 WHERE node = $1 AND session = $2 AND connected = 0";
                tx.run(sql, values![away.node, away.session]).await?;
                Ok(())
            })
        })
        .await
    }

    /// What is on this node and is to be restarted on another one when it is lost.
    pub async fn to_rescue(&self, node: &str) -> Result<Vec<String>, Error> {
        let sql = "SELECT holder FROM placement WHERE node = $1 AND restart = 1 ORDER BY holder";
        let rows = self.read().await?.rows(sql, values![node]).await?;
        Ok(rows.iter().map(|row| row.text("holder")).collect::<Result<_, _>>()?)
    }

    /// Takes an object from a lost node and has another one make it.
    pub async fn rescue(&self, away: &Away, id: &str) -> Result<Rescued, Error> {
        self.write((away.clone(), id.to_owned()), |tx, context, (away, id)| {
            Box::pin(async move { rescue(tx, &context, &away, &id).await })
        })
        .await
    }
}

/// Whether the node still has no session, which stays so until the end of this transaction.
async fn still_away(tx: &mut Tx, away: &Away) -> Result<bool, Error> {
    let sql = format!("SELECT connected, session FROM node_state WHERE node = $1{}", tx.for_update());
    let row = tx.row(&sql, values![&away.node]).await?;
    Ok(match row {
        Some(row) => !row.truth("connected")? && row.int("session")? == away.session,
        None => false,
    })
}

async fn nobody_knows(tx: &mut Tx, context: &Context, away: &Away, ids: &[String]) -> Result<(), Error> {
    let objects = objects::all_by_id(tx, ids).await?;
    if !still_away(tx, away).await? {
        return Ok(());
    }
    for mut object in objects.into_iter().filter(|object| is_on(object, &away.node)) {
        if object.status["away"] == true {
            continue;
        }
        let mut status = if object.status.is_object() { object.status.clone() } else { json!({}) };
        status["away"] = true.into();
        report::set_status(tx, context, &mut object, status).await?;
    }
    Ok(())
}

fn is_on(object: &Stored, node: &str) -> bool {
    object.claims.get("node").and_then(Value::as_str) == Some(node)
}

async fn rescue(tx: &mut Tx, context: &Context, away: &Away, id: &str) -> Result<Rescued, Error> {
    let Some(mut object) = by_id(tx, id, true).await? else { return Ok(Rescued::Not) };
    if object.core.deleted_at.is_some() || !is_on(&object, &away.node) || !still_away(tx, away).await? {
        return Ok(Rescued::Not);
    }
    if matches!(object.core.phase.as_str(), "creating" | "failed") {
        return Ok(Rescued::Stays(format!("it is {}", object.core.phase)));
    }
    if let Some(why) = may_run_elsewhere(tx, away, &object).await? {
        return Ok(Rescued::Stays(why));
    }
    let kind = context.registry.get(&object.core.kind)?;
    let known = facts::known(tx, context, kind, &object.spec).await?;
    let Some((needs, steps)) = drain::anew(kind, &object, &known)? else { return Ok(Rescued::Not) };
    let to = match placement::relocate(tx, context, &object, &needs).await? {
        Ok(to) => to,
        Err(table) => {
            let nodes = table.iter().map(|line| format!("{}: {}", line.node, line.reasons.join(", ")));
            let text = format!("no other node has room: {}", nodes.collect::<Vec<_>>().join("; "));
            return Ok(Rescued::Stays(text));
        }
    };
    let reason = format!("its node `{}` was lost", away.name);
    let sql = format!("SELECT id FROM job WHERE {OPEN_OF} = $1 ORDER BY id");
    for row in tx.rows(&sql, values![id]).await? {
        // What they wanted stands in the spec, and is done where it goes.
        context.env.after(&row.text("id")?);
        jobs::end(tx, context, &row.text("id")?, JobState::Cancelled, Some(&reason)).await?;
    }
    let_go(tx, away, &object).await?;
    drain::placed_on(context, &mut object, to);
    let caller = Caller::system();
    let right = caller.may(drain::MOVE, &object.core.kind, &object.core.tenant)?;
    let asked = Asked { reason: Some(reason), request_id: context.env.id("req"), ..Asked::default() };
    let intent = Intent::new(Verb::Act(drain::MOVE.to_owned()), steps);
    let moved = finish(tx, context, &Maker::of(&right, &asked), object, intent, &known).await?;
    Ok(Rescued::By(moved.job.unwrap_or_default()))
}

/// The lost node is told, when it returns, to let go of the object, and of disks that nobody but it can reach. Nobody
/// waits for that.
async fn let_go(tx: &mut Tx, away: &Away, object: &Stored) -> Result<(), Error> {
    let id = &object.core.id;
    let sql = "SELECT r.id FROM assignment_need n JOIN resource r ON r.id = n.need JOIN reference f \
               ON f.target = r.id AND f.source = n.object AND f.relation = 'owns' \
               WHERE n.node = $1 AND n.object = $2 ORDER BY r.id";
    for row in tx.rows(sql, values![&away.node, id]).await? {
        let Some(owned) = by_id(tx, &row.text("id")?, false).await? else { continue };
        let shared = owned.claims.get("pool").is_some_and(|pool| pool["shared"] == true);
        if !shared {
            assign::unassign_from(tx, &away.node, &owned.core.id).await?;
        }
    }
    assign::unassign_from(tx, &away.node, id).await?;
    let sql = "UPDATE assignment SET fenced = 1 WHERE node = $1 AND object = $2";
    tx.run(sql, values![&away.node, id]).await?;
    Ok(())
}

/// Why the object might still run where it is or was, if it might: a node stops what is marked, once it has said that it
/// knows of the mark.
async fn may_run_elsewhere(tx: &mut Tx, away: &Away, object: &Stored) -> Result<Option<String>, Error> {
    let number = |key: &str| object.claims.get(key).and_then(Value::as_i64);
    let Some(since) = number("ha_since") else { return Ok(Some("it is not marked".to_owned())) };
    let placed = number("placed_generation").unwrap_or(1);
    let sql = "SELECT a.node, a.applied_generation, a.fenced, r.name FROM assignment a JOIN resource r ON r.id = a.node \
               WHERE a.object = $1";
    for row in tx.rows(sql, values![&object.core.id]).await? {
        if row.truth("fenced")? {
            continue;
        }
        let name = row.text("name")?;
        if row.text("node")? != away.node {
            return Ok(Some(format!("node `{name}` has not let go of it")));
        }
        if placed.max(row.int("applied_generation")?) < since {
            return Ok(Some(format!("node `{name}` has not said that it knows of `ha: restart`")));
        }
    }
    Ok(None)
}
