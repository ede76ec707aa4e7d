//! `?plan=true`: what would happen. The very transaction of the request is run and rolled back; what it
//! decides on its way is noted on it.

use std::collections::BTreeMap;

use serde_json::Value;

use super::request::{Did, Request, Write, carry_out};
use super::tx::Tx;
use super::{Context, Job, Usage, objects, quota, views};
use crate::kernel::error::WhyNot;
use crate::kernel::quota::Amounts;
use crate::kernel::{Change, Error, Kind, Right, Stored};

/// What would happen.
#[derive(Debug, Default)]
pub struct Planned {
    /// Why it would be refused.
    pub refused: Option<Error>,
    /// What would be done, else.
    pub did: Option<Did>,
    /// The jobs that would be begun, with their steps.
    pub jobs: Vec<Job>,
    /// Which node it would be on, and why not the others.
    pub placement: Option<Placement>,
    /// What the tenant would use of each quantity that changes: now, then.
    pub quota: Vec<QuotaChange>,
    /// Fields whose change would wait for the next stop.
    pub needs_stop: Vec<String>,
}

/// How a place was chosen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Placement {
    /// Id of the node; none if no node has room.
    pub node: Option<String>,
    /// Its name.
    pub name: String,
    /// Why none of the others.
    pub why_not: Vec<WhyNot>,
}

/// How much more or less of a quantity a tenant would use.
#[derive(Clone, Debug, PartialEq)]
pub struct QuotaChange {
    /// `vcpus`.
    pub quantity: String,
    /// It uses so much now.
    pub before: u64,
    /// It would use so much, when all is done.
    pub after: u64,
    /// It may use so much; `None`: there is no limit.
    pub limit: Option<u64>,
}

/// What a transaction notes for a plan.
#[derive(Default)]
pub(super) struct Notes {
    pub(super) jobs: Vec<String>,
    pub(super) placement: Option<Placement>,
}

pub(super) async fn plan(tx: &mut Tx, context: &Context, request: &Request) -> Result<Planned, Error> {
    let before = before(tx, &request.right, &request.write).await?;
    let used = used_of(tx, context, &request.right).await?;
    tx.notes = Some(Box::default());
    let outcome = carry_out(tx, context, request).await;
    // On SQLite others come after in the same transaction: they must not find it.
    let notes = tx.notes.take().unwrap_or_default();
    let mut planned = Planned { placement: notes.placement, ..Planned::default() };
    match outcome {
        Ok(did) => {
            for id in &notes.jobs {
                planned.jobs.push(views::one_job(tx, &request.right.everywhere(), id).await?);
            }
            if let (Some((kind, old)), Did::Object(new)) = (before, &did) {
                planned.needs_stop = needs_stop(kind, &old, &new.object);
            }
            let removed: Vec<String> = planned
                .jobs
                .iter()
                .filter(|job| job.verb == "remove")
                .map(|job| job.resource.clone())
                .collect();
            let back = quota::to_come_back(tx, &removed).await?;
            planned.quota = changed(used, used_of(tx, context, &request.right).await?, &back);
            planned.did = Some(did);
        }
        Err(error @ (Error::Invalid(_) | Error::Clash(_) | Error::Stale { .. })) => {
            if let Error::Clash(crate::kernel::Clash::NoCapacity(why_not)) = &error {
                planned.placement = Some(Placement { why_not: why_not.clone(), ..Placement::default() });
            }
            planned.refused = Some(error);
        }
        Err(error) => return Err(error),
    }
    Ok(planned)
}

/// What the tenant of a right uses.
async fn used_of(tx: &mut Tx, context: &Context, right: &Right) -> Result<BTreeMap<String, Usage>, Error> {
    match objects::by_name(tx, "tenant", "", right.tenant()).await? {
        Some(tenant) => quota::usage(tx, context, &tenant.core.id).await,
        None => Ok(BTreeMap::new()),
    }
}

fn changed(
    before: BTreeMap<String, Usage>,
    after: BTreeMap<String, Usage>,
    back: &Amounts,
) -> Vec<QuotaChange> {
    let all = after.into_iter().map(|(quantity, usage)| QuotaChange {
        before: before.get(&quantity).map_or(0, |usage| usage.used),
        after: usage.used.saturating_sub(back.get(&quantity).copied().unwrap_or(0)),
        limit: usage.limit,
        quantity,
    });
    all.filter(|change| change.before != change.after).collect()
}

/// The object as it is, where fields of it may change.
async fn before(
    tx: &mut Tx,
    right: &Right,
    write: &Write,
) -> Result<Option<(&'static dyn Kind, Stored)>, Error> {
    match write {
        Write::Update { kind, id, .. } | Write::Restore { kind, id, .. } => {
            Ok(Some((*kind, objects::find(tx, right, *kind, id).await?)))
        }
        _ => Ok(None),
    }
}

/// Fields that differ and wait for a stop, unless it is stopped already.
fn needs_stop(kind: &dyn Kind, old: &Stored, new: &Stored) -> Vec<String> {
    if kind.settled(old) == "stopped" {
        return Vec::new();
    }
    let fields = kind.meta().fields.iter().filter(|(_, change)| *change == Change::NeedsStop);
    let mut all = Vec::new();
    for (path, _) in fields {
        let keys: Vec<&str> = path.split('.').collect();
        differing("spec".to_owned(), &keys, &old.spec, &new.spec, &mut all);
    }
    all
}

/// The paths at which two specs differ; `*` stands for a map's key.
pub(super) fn differing(at: String, path: &[&str], old: &Value, new: &Value, found: &mut Vec<String>) {
    match path {
        [] if old != new => found.push(at),
        [] => {}
        ["*", rest @ ..] => {
            // Entries that come or go are the map's own affair.
            let (Some(a), Some(b)) = (old.as_object(), new.as_object()) else { return };
            for (key, old) in a {
                if let Some(new) = b.get(key) {
                    differing(format!("{at}.{key}"), rest, old, new, found);
                }
            }
        }
        [key, rest @ ..] => {
            let (old, new) = (old.get(key).unwrap_or(&Value::Null), new.get(key).unwrap_or(&Value::Null));
            differing(format!("{at}.{key}"), rest, old, new, found);
        }
    }
}
