//! Deleting a tenant with all that it has: one job, which takes away what nobody refers to any more, some at a time and
//! each by its own removal, until nothing is left. What was made for it goes in the order of its references: an instance
//! before its disk and its network. The name is free when all of it is gone, not before: what is on its way out is still
//! under it.
//!
//! All of it is rows: whichever server looks next goes on, and a node that is away holds up only what it holds.

use super::awaits::{LOOK_AGAIN_SECONDS, Outcome};
use super::change::{Asked, Written};
use super::create::{Maker, finish};
use super::db::values;
use super::jobs::Intent;
use super::run::JobRow;
use super::tx::Tx;
use super::{Bell, Context, grants, objects, quota, remove};
use crate::kernel::error::UsedBy;
use crate::kernel::realm;
use crate::kernel::{Caller, Clash, Error, Facts, Kind, Scope, Step, Stored, Verb};

/// So many are taken away in one transaction.
const AT_ONCE: i64 = 100;

/// Begins to take a tenant away, and all that it has.
pub(super) async fn begin(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    mut tenant: Stored,
) -> Result<Written, Error> {
    let name = tenant.core.name.clone();
    let kept = protected(tx, context, &name).await?;
    if !kept.is_empty() {
        return Err(Clash::ProtectedWithin(kept).into());
    }
    tenant.core.deleted_at = Some(context.env.now());
    tenant.core.updated_at = context.env.now();
    tenant.core.version += 1;
    quota::mark(tx, context, &tenant.core.id).await?;
    grants::changed(tx, context).await?;
    // Written before anything of it goes: nothing is made in it from now on.
    objects::update(tx, &tenant).await?;
    let realm = realm::goes(&tenant.claims);
    let steps = [Some(Step::Empty), realm, Some(Step::Release)].into_iter().flatten().collect();
    let intent = Intent { later: true, ..Intent::new(Verb::Remove, steps) };
    finish(tx, context, maker, tenant, intent, &Facts::default()).await
}

/// Takes some of it away; done when nothing is left.
pub(super) async fn some(tx: &mut Tx, context: &Context, job: &JobRow) -> Result<Outcome, Error> {
    let caller = Caller::operator(&job.actor, &job.credential);
    let (source, request_id) = (job.source.clone(), job.request_id.clone());
    let asked = Asked { source, request_id, reason: Some("the tenant is deleted".to_owned()) };
    let maker = Maker { caller: &caller, tenant: &job.resource_name, asked: &asked };
    let mut taken = 0;
    for kind in owned_kinds(context) {
        // What another one has goes with it, or after it.
        let sql = "SELECT l.id FROM live l WHERE l.kind = $1 AND l.tenant = $2 \
                   AND NOT EXISTS (SELECT 1 FROM reference f WHERE f.target = l.id) ORDER BY l.name LIMIT $3";
        let rows = tx.rows(sql, values![kind.meta().kind, maker.tenant, AT_ONCE - taken]).await?;
        for row in rows {
            let Some(object) = objects::by_id(tx, &row.text("id")?, true).await? else { continue };
            Box::pin(remove::remove_when(tx, context, &maker, kind, object, true)).await?;
            taken += 1;
        }
        if taken >= AT_ONCE {
            break;
        }
    }
    if taken > 0 {
        tx.ring(Bell::Jobs);
        let message = format!("{taken} more are being taken away");
        return Ok(Outcome::Wait { awaits: None, until: context.env.now(), message, progress: 0 });
    }
    rest(tx, context, job, maker.tenant).await
}

/// Nothing more can be taken away now: what is still there, and why.
async fn rest(tx: &mut Tx, context: &Context, job: &JobRow, tenant: &str) -> Result<Outcome, Error> {
    let until = context.env.now().plus_seconds(LOOK_AGAIN_SECONDS);
    let mut used = None;
    for kind in owned_kinds(context) {
        let sql = "SELECT id, name, job, deleted_at FROM resource \
                   WHERE kind = $1 AND tenant = $2 AND gone_at IS NULL ORDER BY id LIMIT 100";
        for row in tx.rows(sql, values![kind.meta().kind, tenant]).await? {
            let what = format!("{} `{}`", kind.meta().kind.replace('-', " "), row.text("name")?);
            if row.maybe_time("deleted_at")?.is_some() {
                let message = format!("waits for the {what}, which is on its way out");
                let awaits = row.maybe_text("job")?;
                return Ok(Outcome::Wait { awaits, until, message, progress: 0 });
            }
            used.get_or_insert((what, row.text("id")?));
        }
    }
    if let Some((what, id)) = used {
        let users = remove::users(tx, &id).await?;
        let users: Vec<String> = users.iter().map(|user| format!("{} `{}`", user.kind, user.name)).collect();
        let message = format!("waits for the {what}, which is used by {}", users.join(", "));
        return Ok(Outcome::Wait { awaits: None, until, message, progress: 0 });
    }
    // Whoever has just begun to make something in it is refused by the database itself, or found the next time.
    tx.run("DELETE FROM reference WHERE source = $1", values![&job.resource]).await?;
    tx.run("DELETE FROM live WHERE id = $1", values![&job.resource]).await?;
    grants::changed(tx, context).await?;
    Ok(Outcome::Done { made: false })
}

/// What of a tenant's is protected, the first hundred of each kind.
async fn protected(tx: &mut Tx, context: &Context, tenant: &str) -> Result<Vec<UsedBy>, Error> {
    let mut all = Vec::new();
    for kind in owned_kinds(context) {
        let sql = "SELECT id, kind, name, tenant FROM resource WHERE kind = $1 AND tenant = $2 AND gone_at IS NULL \
                   AND deleted_at IS NULL AND protected = 1 ORDER BY id LIMIT 100";
        for row in tx.rows(sql, values![kind.meta().kind, tenant]).await? {
            let (id, name) = (row.text("id")?, row.text("name")?);
            all.push(UsedBy { kind: row.text("kind")?, id, name, tenant: row.text("tenant")? });
        }
    }
    Ok(all)
}

/// Kinds of which tenants own some.
fn owned_kinds(context: &Context) -> impl Iterator<Item = &'static dyn Kind> {
    let all = context.registry.all().iter().copied();
    all.filter(|kind| kind.meta().scope != Scope::Operator)
}
