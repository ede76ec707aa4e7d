//! Draining a node: nothing new comes, and what is there is moved to other nodes, or stopped.
//!
//! A guest is moved cold: stopped, taken from its node, made on another one, started. What has a disk that only this
//! node has cannot be moved: it is stopped, if that was said (`mode: hard`), else all of it is refused.

use serde_json::Value;

use super::change;
use super::create::{Maker, finish};
use super::db::values;
use super::jobs::Intent;
use super::tx::Tx;
use super::{Context, facts, history, objects, placement};
use crate::kernel::error::WhyNot;
use crate::kernel::place::Needs;
use crate::kernel::resource::Call;
use crate::kernel::{ClaimKind, Clash, Error, Facts, Held, Kind, Step, Stored, Verb, Who};

/// What a node is called to do.
pub(super) const VERB: &str = "drain";
/// The job of what is moved.
pub(super) const MOVE: &str = "move";

/// Why something has to stay.
enum Stays {
    /// For this reason.
    Because(String),
    /// No other node has room: why, node by node.
    NoRoom(Vec<WhyNot>),
}

/// Begins to empty `node`, which is cordoned already; the steps of its job.
pub(super) async fn begin(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    node: &Stored,
    call: &Call,
) -> Result<Vec<Step>, Error> {
    // Written first: it is no place for what leaves it.
    objects::update(tx, node).await?;
    let sql = "SELECT holder FROM placement WHERE node = $1 ORDER BY holder";
    let rows = tx.rows(sql, values![&node.core.id]).await?;
    let (mut jobs, mut stay) = (Vec::new(), Vec::new());
    for row in rows {
        let Some(object) = objects::by_id(tx, &row.text("holder")?, true).await? else { continue };
        if object.core.deleted_at.is_some() {
            jobs.extend(object.core.job);
            continue;
        }
        if let Some(why) = immovable(tx, context, &object).await? {
            stay.extend(why.filter(|_| !call.hard).map(|why| (object.core.name, Stays::Because(why))));
            continue;
        }
        match elsewhere(tx, context, maker, &node.core.id, &object, call).await? {
            Ok(job) => jobs.push(job),
            // What does not run is in nobody's way.
            Err(_) if matches!(object.core.phase.as_str(), "stopped" | "failed") => {}
            Err(_) if call.hard => jobs.extend(act(tx, context, maker, object, "stop", call).await?.1),
            Err(why) => stay.push((object.core.name, why)),
        }
    }
    refuse(stay)?;
    Ok(vec![Step::AwaitJobs { jobs }])
}

/// Why an object of a kind that cannot be stopped is not moved, if it is one. Nothing is said of what only goes along
/// with another one.
async fn immovable(tx: &mut Tx, context: &Context, object: &Stored) -> Result<Option<Option<String>>, Error> {
    let kind = context.registry.get(&object.core.kind)?;
    if kind.meta().actions.iter().any(|action| action.verb == "stop") {
        return Ok(None);
    }
    let facts = facts::known(tx, context, kind, &object.spec).await?;
    let goes_along = anew(kind, object, &facts)?.is_some_and(|(needs, _)| needs.stays);
    let words = object.core.kind.replace('-', " ");
    Ok(Some((!goes_along).then(|| format!("a {words} stays where it was made, and goes on there"))))
}

fn refuse(stay: Vec<(String, Stays)>) -> Result<(), Error> {
    let mut lines = Vec::new();
    for (name, why) in &stay {
        match why {
            Stays::Because(why) => lines.push(format!("`{name}` ({why})")),
            Stays::NoRoom(table) if stay.len() == 1 => return Err(Clash::NoCapacity(table.clone()).into()),
            Stays::NoRoom(table) => {
                let nodes = table.iter().map(|line| format!("{}: {}", line.node, line.reasons.join(", ")));
                lines.push(format!("`{name}` (no room: {})", nodes.collect::<Vec<_>>().join("; ")));
            }
        }
    }
    if lines.is_empty() {
        return Ok(());
    }
    let text = format!("these cannot be moved: {}; `mode: hard` stops them where they are", lines.join(", "));
    Err(Clash::WrongState(text).into())
}

/// Moves an object to another node; its last job.
async fn elsewhere(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    node: &str,
    object: &Stored,
    call: &Call,
) -> Result<Result<String, Stays>, Error> {
    if matches!(object.core.phase.as_str(), "creating" | "failed") {
        return Ok(Err(Stays::Because(format!("it is {}", object.core.phase))));
    }
    if let Some(name) = only_here(tx, context, node, &object.core.id).await? {
        return Ok(Err(Stays::Because(format!("its disk `{name}` is only on this node"))));
    }
    let kind = context.registry.get(&object.core.kind)?;
    let facts = facts::known(tx, context, kind, &object.spec).await?;
    let Some((needs, making)) = anew(kind, object, &facts)? else {
        return Ok(Err(Stays::Because("it is nowhere".to_owned())));
    };
    let to = match placement::relocate(tx, context, object, &needs).await? {
        Ok(to) => to,
        Err(table) => return Ok(Err(Stays::NoRoom(table))),
    };
    let was = match (object.core.phase.as_str(), object.spec["power"].as_str()) {
        // Nobody knows; this is how it is to be.
        ("unknown", Some("off")) => "stopped".to_owned(),
        ("unknown", Some("paused")) => "paused".to_owned(),
        (phase, _) => phase.to_owned(),
    };
    let mut object = object.clone();
    if was != "stopped" {
        object = act(tx, context, maker, object, "stop", call).await?.0;
    }
    placed_on(context, &mut object, to);
    let mut steps = vec![Step::Unassign { who: Who::This }, Step::AwaitGone { who: Who::This }];
    steps.extend(making);
    let intent = Intent::new(Verb::Act(MOVE.to_owned()), steps);
    let moved = finish(tx, context, maker, object, intent, &facts).await?;
    let mut last = (moved.object, moved.job);
    let again: &[&str] = match was.as_str() {
        "stopped" => &[],
        "paused" => &["start", "pause"],
        _ => &["start"],
    };
    for verb in again {
        last = act(tx, context, maker, last.0, verb, &Call::default()).await?;
    }
    Ok(Ok(last.1.unwrap_or_default()))
}

/// The object has its place on this node now: a new generation, of which that node is told, in a new placement.
pub(super) fn placed_on(context: &Context, object: &mut Stored, node: String) {
    let epoch = object.claims.get("placement_epoch").and_then(Value::as_i64).unwrap_or(1);
    object.core.generation += 1;
    object.core.version += 1;
    object.core.updated_at = context.env.now();
    object.claims.insert("placement_epoch".into(), (epoch + 1).into());
    object.claims.insert("placed_generation".into(), object.core.generation.into());
    object.claims.insert("node".into(), node.into());
}

/// What a kind's object needs of a node when it is made anew somewhere, and how; nothing if it needs no node.
pub(super) fn anew(
    kind: &'static dyn Kind,
    object: &Stored,
    facts: &Facts,
) -> Result<Option<(Needs, Vec<Step>)>, Error> {
    let mut free = object.clone();
    free.claims.remove("node");
    let plan = kind.create(&free, facts)?;
    let needs = plan.claims.into_iter().find_map(|claim| match claim.what {
        ClaimKind::Placement(needs) => Some(needs),
        _ => None,
    });
    Ok(needs.map(|needs| (needs, plan.steps)))
}

/// Does one of the object's own verbs; the object then, and the job.
async fn act(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    object: Stored,
    verb: &str,
    call: &Call,
) -> Result<(Stored, Option<String>), Error> {
    let kind = context.registry.get(&object.core.kind)?;
    let deadline_seconds = call.deadline_seconds;
    let call = Call { verb: verb.to_owned(), deadline_seconds, ..Call::default() };
    let done = Box::pin(change::act(tx, context, maker, kind, object, &call, false)).await?;
    Ok((done.object, done.job))
}

/// The name of something that the object needs, and that is on this node and nowhere else.
async fn only_here(
    tx: &mut Tx,
    context: &Context,
    node: &str,
    object: &str,
) -> Result<Option<String>, Error> {
    let sql = "SELECT r.name, r.kind, r.claims FROM assignment_need n JOIN resource r ON r.id = n.need \
               WHERE n.node = $1 AND n.object = $2 ORDER BY r.name";
    for row in tx.rows(sql, values![node, object]).await? {
        let claims: Value = row.json("claims")?;
        let alone = context.registry.get(&row.text("kind")?)?.meta().held == Held::Alone;
        if alone && claims["pool"]["shared"] != true {
            return Ok(Some(row.text("name")?));
        }
    }
    Ok(None)
}

/// A drain was cancelled: the node is open again, if it was before. What is on its way arrives.
pub(super) async fn cancelled(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    node: &str,
) -> Result<(), Error> {
    let Some(mut node) = objects::by_id(tx, node, true).await? else { return Ok(()) };
    let before = node.claims.get("cordoned_before").cloned().unwrap_or(Value::Bool(false));
    if node.spec["cordoned"] == before {
        return Ok(());
    }
    node.spec["cordoned"] = before;
    node.core.generation += 1;
    node.core.version += 1;
    node.core.updated_at = context.env.now();
    objects::update(tx, &node).await?;
    history::record(tx, context, maker, &node, &Verb::Update, None);
    Ok(())
}
