//! What was, by whom, when: a revision and an event for each write, in its own transaction. `log.rs` takes the
//! events from there into the log.

use super::create::Maker;
use super::db::{Row, Tx, values};
use super::objects::text;
use super::{Bell, Context, Job};
use crate::kernel::{Error, Stored, Verb};

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

/// A user wrote an object.
pub(super) async fn record(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    object: &Stored,
    verb: &Verb,
    job: Option<&str>,
) -> Result<(), Error> {
    let core = &object.core;
    tx.run(
        "INSERT INTO revision (resource, version, generation, name, tags, metadata, spec, actor, at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        values![
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
    )
    .await?;
    let outcome = if job.is_some() { "accepted" } else { "done" };
    let entry = Entry { outcome, job: job.unwrap_or_default(), ..written(maker, object, verb.as_str()) };
    add(tx, context, entry).await
}

/// A user did something with an object that gives it no new version.
pub(super) async fn noted(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    object: &Stored,
    verb: &str,
) -> Result<(), Error> {
    add(tx, context, written(maker, object, verb)).await
}

/// A user did something with a job.
pub(super) async fn job_noted(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    of: &Job,
    verb: &str,
    job: &str,
) -> Result<(), Error> {
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
    add(tx, context, entry).await
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

/// A job has ended; `row` has its columns.
pub(super) async fn ended(tx: &mut Tx, context: &Context, job: &str, row: &Row) -> Result<(), Error> {
    let problem = row.maybe_text("problem")?.unwrap_or_default();
    let entry = Entry {
        class: "job",
        tenant: &row.text("tenant")?,
        kind: &row.text("kind")?,
        resource: &row.text("resource")?,
        name: &row.text("resource_name")?,
        verb: &row.text("verb")?,
        outcome: &row.text("state")?,
        job,
        actor: &row.text("actor")?,
        credential: &row.text("credential")?,
        source: &row.text("source")?,
        request_id: &row.text("request_id")?,
        detail: &problem,
        ..Entry::default()
    };
    add(tx, context, entry).await
}

/// An object has come into another phase, and not by a write: whoever asked for its last job did it.
pub(super) async fn phase_changed(tx: &mut Tx, context: &Context, object: &Stored) -> Result<(), Error> {
    let core = &object.core;
    let sql = format!(
        "INSERT INTO event ({COLUMNS}) SELECT $1, 'phase', $2, $3, $4, $5, 'phase', '', $6, $7, $8, \
         coalesce(j.actor, 'system'), coalesce(j.credential, 'none'), coalesce(j.source, ''), \
         coalesce(j.request_id, ''), '' FROM (SELECT 1 AS one) o LEFT JOIN job j ON j.id = $8"
    );
    let job = core.job.as_deref().unwrap_or_default();
    let row = values![
        context.env.now(),
        &core.tenant,
        &core.kind,
        &core.id,
        &core.name,
        &core.phase,
        core.version,
        job,
    ];
    tx.run(&sql, row).await?;
    tx.ring(Bell::Events);
    Ok(())
}

/// Adds an event to the transaction.
pub(super) async fn add(tx: &mut Tx, context: &Context, entry: Entry<'_>) -> Result<(), Error> {
    let sql = format!(
        "INSERT INTO event ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)"
    );
    let row = values![
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
    tx.run(&sql, row).await?;
    tx.ring(Bell::Events);
    Ok(())
}
