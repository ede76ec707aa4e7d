//! Suspending a tenant: its people may only look, nothing new is made in it, its instances stop or go on. Resuming it:
//! what ran starts again.
//!
//! Who asks after this is refused by their rights, which say it (`rights.rs`). Who had asked before and comes too late is
//! stopped by rows that they lock anyway: a creation by a mark among the tenant's quotas, an instance that was stopped
//! by a mark in its claims. So nothing slips through, and nothing else costs a statement.

use serde_json::{Value, json};

use super::change;
use super::create::Maker;
use super::db::values;
use super::tx::Tx;
use super::{Context, grants, objects, quota};
use crate::kernel::resource::Call;
use crate::kernel::{Error, Scope, Step, Stored};

/// What a tenant is called to do.
pub(super) const VERB: &str = "suspend";
/// And what ends it.
pub(super) const RESUME: &str = "resume";

/// In the claims of a tenant: since when, and what its instances do. In those of an instance that was stopped for it:
/// whether it was `on` or `paused`.
const MARK: &str = "suspended";

/// True while a tenant is suspended, or goes.
pub(super) fn is(tenant: &Stored) -> bool {
    tenant.core.deleted_at.is_some() || tenant.claims.get(MARK).is_some_and(|mark| !mark.is_null())
}

/// Whoever changes an object that was stopped for a suspension: nobody but operators, and for them it counts from then
/// on: resuming leaves it as they left it.
pub(super) fn touched(maker: &Maker<'_>, object: &mut Stored) -> Result<(), Error> {
    if object.core.kind == objects::TENANT || !object.claims.contains_key(MARK) {
        return Ok(());
    }
    if !maker.caller.operator {
        return Err(Error::Suspended(object.core.tenant.clone()));
    }
    object.claims.remove(MARK);
    Ok(())
}

/// What an action of a tenant means for all that it has; the steps of its job.
pub(super) async fn act(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    tenant: &mut Stored,
    call: &Call,
) -> Result<Vec<Step>, Error> {
    let jobs = match call.verb.as_str() {
        VERB => suspend(tx, context, maker, tenant, call).await?,
        RESUME => resume(tx, context, maker, tenant).await?,
        _ => return Ok(Vec::new()),
    };
    grants::changed(tx, context).await?;
    Ok(if jobs.is_empty() { Vec::new() } else { vec![Step::AwaitJobs { jobs }] })
}

async fn suspend(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    tenant: &mut Stored,
    call: &Call,
) -> Result<Vec<String>, Error> {
    if tenant.claims[MARK]["since"].is_null() {
        tenant.claims[MARK]["since"] = json!(context.env.now());
    }
    let stops = tenant.claims[MARK]["instances"] == "stop";
    // In the order in which all lock: objects, then quotas. Whoever made something in between had the quotas first.
    let before = if stops { that_stop(tx, context, &tenant.core.name).await? } else { Vec::new() };
    quota::mark(tx, context, &tenant.core.id).await?;
    let after = if stops { that_stop(tx, context, &tenant.core.name).await? } else { Vec::new() };
    let mut jobs = Vec::new();
    for id in before.iter().chain(after.iter().filter(|id| !before.contains(id))) {
        let Some(object) = objects::by_id(tx, id, true).await? else { continue };
        let was = object.spec["power"].as_str().unwrap_or("on").to_owned();
        if object.core.deleted_at.is_some() || was == "off" || object.core.phase == "failed" {
            continue;
        }
        let stop = Call { verb: "stop".to_owned(), choices: Default::default(), ..call.clone() };
        jobs.extend(act_on(tx, context, maker, object, &stop, Some(&was)).await?);
    }
    Ok(jobs)
}

async fn resume(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    tenant: &Stored,
) -> Result<Vec<String>, Error> {
    let mut jobs = Vec::new();
    for id in that_stop(tx, context, &tenant.core.name).await? {
        let Some(mut object) = objects::by_id(tx, &id, true).await? else { continue };
        let Some(was) = object.claims.remove(MARK) else { continue };
        if object.core.deleted_at.is_some() || object.core.phase == "failed" {
            // It never came to be, or goes: there is nothing to start.
            objects::update(tx, &object).await?;
            continue;
        }
        let call = |verb: &str| Call { verb: verb.to_owned(), ..Call::default() };
        jobs.extend(act_on(tx, context, maker, object, &call("start"), None).await?);
        if was == "paused"
            && let Some(object) = objects::by_id(tx, &id, true).await?
        {
            jobs.extend(act_on(tx, context, maker, object, &call("pause"), None).await?);
        }
    }
    quota::unmark(tx, &tenant.core.id).await?;
    Ok(jobs)
}

/// Does one of an object's own verbs, and leaves it marked as it was; its job.
async fn act_on(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    mut object: Stored,
    call: &Call,
    was: Option<&str>,
) -> Result<Option<String>, Error> {
    let kind = context.registry.get(&object.core.kind)?;
    match was {
        Some(was) => drop(object.claims.insert(MARK.to_owned(), Value::from(was))),
        None => drop(object.claims.remove(MARK)),
    }
    Ok(Box::pin(change::do_act(tx, context, maker, kind, object, call, false)).await?.job)
}

/// Ids of what the tenant of this name has and what can be stopped, in their order, locked in it.
async fn that_stop(tx: &mut Tx, context: &Context, tenant: &str) -> Result<Vec<String>, Error> {
    let mut all = Vec::new();
    for kind in context.registry.all() {
        let meta = kind.meta();
        if meta.scope != Scope::Tenant || !meta.actions.iter().any(|action| action.verb == "stop") {
            continue;
        }
        let lock = tx.for_update();
        let sql = format!(
            "SELECT r.id FROM resource r WHERE r.kind = $1 AND r.tenant = $2 AND r.gone_at IS NULL ORDER BY r.id{lock}"
        );
        for row in tx.rows(&sql, values![meta.kind, tenant]).await? {
            all.push(row.text("id")?);
        }
    }
    Ok(all)
}
