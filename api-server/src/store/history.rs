//! What was, by whom, when: a revision and an event for each write, in its own transaction. `log.rs` takes the
//! events from there into the log.

use super::create::Maker;
use super::db::row;
use super::objects::text;
use super::phases::Last;
use super::run::JobRow;
use super::tx::{Table, Tx};
use super::{Bell, Context, Job};
use crate::kernel::{Stored, Verb};

/// What happened, before it has its number.
#[derive(Clone, Debug, Default)]
pub(super) struct Entry<'a> {
    pub(super) class: &'static str,
    pub(super) tenant: &'a str,
    pub(super) kind: &'a str,
    pub(super) resource: &'a str,
    pub(super) name: &'a str,
    pub(super) verb: &'a str,
    pub(super) outcome: &'a str,
    pub(super) phase: &'a str,
    pub(super) version: i64,
    pub(super) job: &'a str,
    pub(super) actor: &'a str,
    pub(super) credential: &'a str,
    pub(super) source: &'a str,
    pub(super) request_id: &'a str,
    pub(super) detail: &'a str,
}

/// The columns of an event, in the order in which they are digested.
pub(super) const COLUMNS: &str = "at, class, tenant, kind, resource, name, verb, outcome, phase, version, job, \
     actor, credential, source, request_id, detail";

const EVENT: Table = Table::new("event", COLUMNS);
const REVISION: Table =
    Table::new("revision", "resource, version, generation, name, tags, metadata, spec, actor, at");

/// A user wrote an object.
pub(super) fn record(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    object: &Stored,
    verb: &Verb,
    job: Option<&str>,
) {
    let core = &object.core;
    tx.later(
        &REVISION,
        row![
            &core.id,
            core.version,
            core.generation,
            &core.name,
            text(&core.tags),
            &core.metadata,
            &object.spec,
            &maker.caller.name,
            context.env.now(),
        ],
    );
    let outcome = if job.is_some() { "accepted" } else { "done" };
    let entry = Entry { outcome, job: job.unwrap_or_default(), ..written(maker, object, verb.as_str()) };
    add(tx, context, entry);
}

/// A user did something with an object that gives it no new version.
pub(super) fn noted(tx: &mut Tx, context: &Context, maker: &Maker<'_>, object: &Stored, verb: &str) {
    add(tx, context, written(maker, object, verb));
}

/// A user did something with a job.
pub(super) fn job_noted(tx: &mut Tx, context: &Context, maker: &Maker<'_>, of: &Job, verb: &str, job: &str) {
    let entry = Entry {
        class: "write",
        tenant: &of.tenant,
        kind: "job",
        resource: &of.resource,
        name: &of.resource_name,
        verb,
        outcome: "accepted",
        job,
        actor: &maker.caller.name,
        credential: &maker.caller.credential,
        source: &maker.asked.source,
        request_id: &maker.asked.request_id,
        detail: maker.asked.reason.as_deref().unwrap_or_default(),
        ..Entry::default()
    };
    add(tx, context, entry);
}

fn written<'a>(maker: &'a Maker<'_>, object: &'a Stored, verb: &'a str) -> Entry<'a> {
    let core = &object.core;
    Entry {
        class: "write",
        tenant: &core.tenant,
        kind: &core.kind,
        resource: &core.id,
        name: &core.name,
        verb,
        outcome: "done",
        phase: &core.phase,
        version: core.version,
        job: "",
        actor: &maker.caller.name,
        credential: &maker.caller.credential,
        source: &maker.asked.source,
        request_id: &maker.asked.request_id,
        detail: maker.asked.reason.as_deref().unwrap_or_default(),
    }
}

/// A job has ended.
pub(super) fn ended(tx: &mut Tx, context: &Context, job: &JobRow) {
    let entry = Entry {
        class: "job",
        tenant: &job.tenant,
        kind: &job.kind,
        resource: &job.resource,
        name: &job.resource_name,
        verb: job.verb.as_str(),
        outcome: job.state.as_str(),
        job: &job.id,
        actor: &job.actor,
        credential: &job.credential,
        source: &job.source,
        request_id: &job.request_id,
        detail: job.problem.as_deref().unwrap_or_default(),
        ..Entry::default()
    };
    add(tx, context, entry);
}

/// An object has come into another phase, and not by a write: whoever asked for its last job did it.
pub(super) fn phase_changed(tx: &mut Tx, context: &Context, object: &Stored, by: Option<&Last>) {
    let core = &object.core;
    let mut entry = Entry {
        class: "phase",
        tenant: &core.tenant,
        kind: &core.kind,
        resource: &core.id,
        name: &core.name,
        verb: "phase",
        phase: &core.phase,
        version: core.version,
        job: core.job.as_deref().unwrap_or_default(),
        actor: "system",
        credential: "none",
        ..Entry::default()
    };
    if let Some(by) = by {
        (entry.actor, entry.credential) = (&by.actor, &by.credential);
        (entry.source, entry.request_id) = (&by.source, &by.request_id);
    }
    add(tx, context, entry);
}

/// Adds an event to the transaction.
pub(super) fn add(tx: &mut Tx, context: &Context, entry: Entry<'_>) {
    let row = row![
        context.env.now(),
        entry.class,
        entry.tenant,
        entry.kind,
        entry.resource,
        entry.name,
        entry.verb,
        entry.outcome,
        entry.phase,
        entry.version,
        entry.job,
        entry.actor,
        entry.credential,
        entry.source,
        entry.request_id,
        entry.detail,
    ];
    tx.later(&EVENT, row);
    tx.ring(Bell::Events);
}
