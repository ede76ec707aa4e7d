//! What was, by whom, when: a revision and an event for each write, in its own transaction.

use super::Context;
use super::create::Maker;
use super::db::{Tx, values};
use super::objects::text;
use crate::kernel::{Error, Stored, Verb};

pub(super) async fn record(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    object: &Stored,
    verb: &Verb,
    job: Option<&str>,
) -> Result<(), Error> {
    let core = &object.core;
    let now = context.env.now();
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
            now,
        ],
    )
    .await?;
    tx.run(
        "INSERT INTO event (id, at, tenant, kind, resource, verb, actor, credential, source, request_id, version, \
         job) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
        values![
            context.env.id("ev"),
            now,
            &core.tenant,
            &core.kind,
            &core.id,
            verb.as_str(),
            &maker.caller.name,
            &maker.caller.credential,
            &maker.asked.source,
            &maker.asked.request_id,
            core.version,
            job.map(str::to_owned),
        ],
    )
    .await?;
    Ok(())
}
