//! Phases as they follow from an object, and from the last job that it names.

use std::collections::BTreeMap;

use super::tx::{Tx, list};
use super::{Bell, Context, history, objects};
use crate::kernel::phase::{LastJob, phase};
use crate::kernel::{Error, JobState, Stored, Verb};

/// What matters of an object's last job: where it is, and who asked for it.
pub(super) struct Last {
    pub(super) verb: Verb,
    pub(super) state: JobState,
    pub(super) actor: String,
    pub(super) credential: String,
    pub(super) source: String,
    pub(super) request_id: String,
}

/// The last job that an object names.
pub(super) async fn last(tx: &mut Tx, object: &Stored) -> Result<Option<Last>, Error> {
    let Some(job) = &object.core.job else { return Ok(None) };
    Ok(read(tx, std::slice::from_ref(job)).await?.remove(job))
}

/// The last jobs that these objects name, by id.
pub(super) async fn last_of(tx: &mut Tx, objects: &[Stored]) -> Result<BTreeMap<String, Last>, Error> {
    let jobs: Vec<String> = objects.iter().filter_map(|object| object.core.job.clone()).collect();
    read(tx, &jobs).await
}

/// The phase that an object should be in, given where its last job is.
pub(super) fn now(
    context: &Context,
    object: &Stored,
    last: Option<(&Verb, JobState)>,
) -> Result<String, Error> {
    let kind = context.registry.get(&object.core.kind)?;
    let doing = match last {
        Some((Verb::Act(verb), _)) => kind.meta().actions.iter().find(|a| a.verb == verb).map(|a| a.doing),
        _ => None,
    };
    let last = last.map(|(verb, state)| LastJob { verb, state });
    Ok(phase(object.core.deleted_at.is_some(), last, kind.settled(object), doing))
}

/// Computes the phases of these objects anew, and stores those that differ.
pub(super) async fn refresh(tx: &mut Tx, context: &Context, ids: &[String]) -> Result<(), Error> {
    if ids.is_empty() {
        return Ok(());
    }
    // Locked: whoever reports meanwhile must not be answered for with what was read before.
    let objects = objects::all_by_id(tx, ids).await?;
    let jobs = last_of(tx, &objects).await?;
    let mut changed = Vec::new();
    for mut object in objects {
        let last = object.core.job.as_ref().and_then(|job| jobs.get(job));
        let now = now(context, &object, last.map(Last::place))?;
        tx.ring(Bell::Resource(object.core.id.clone()));
        if now != object.core.phase {
            object.core.phase = now;
            changed.push((object.core.id.clone(), object.core.phase.clone()));
            history::phase_changed(tx, context, &object, last);
        }
    }
    objects::set_phases(tx, &changed).await
}

/// The same, of one.
pub(super) async fn refresh_one(tx: &mut Tx, context: &Context, id: &str) -> Result<(), Error> {
    refresh(tx, context, &[id.to_owned()]).await
}

async fn read(tx: &mut Tx, jobs: &[String]) -> Result<BTreeMap<String, Last>, Error> {
    let mut all = BTreeMap::new();
    if jobs.is_empty() {
        return Ok(all);
    }
    let (list, values) = list(jobs);
    let sql =
        format!("SELECT id, verb, state, actor, credential, source, request_id FROM job WHERE id IN {list}");
    for row in tx.rows(&sql, &values).await? {
        let last = Last {
            verb: Verb::parse(&row.text("verb")?),
            state: JobState::parse(&row.text("state")?),
            actor: row.text("actor")?,
            credential: row.text("credential")?,
            source: row.text("source")?,
            request_id: row.text("request_id")?,
        };
        all.insert(row.text("id")?, last);
    }
    Ok(all)
}

// === impl Last ===

impl Last {
    /// What the phase depends on.
    pub(super) fn place(&self) -> (&Verb, JobState) {
        (&self.verb, self.state)
    }
}
