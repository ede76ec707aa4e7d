//! Deleting: the name is free and "in use" is refused in the acknowledgement itself; the rest is a job.

use super::change::{Asked, Written};
use super::create::{Maker, finish};
use super::db::values;
use super::jobs::Intent;
use super::request::Write;
use super::tx::{Tx, apart};
use super::{Context, Store, assign, nodes};
use crate::kernel::error::UsedBy;
use crate::kernel::{Clash, Error, Facts, Kind, Right, Stored, Verb};

impl Store {
    /// Takes an object away, and what it owns.
    pub async fn remove(
        &self,
        right: &Right,
        kind: &'static dyn Kind,
        id: &str,
        if_match: Option<i64>,
        asked: &Asked,
    ) -> Result<Written, Error> {
        self.written(right, Write::Remove { kind, id: id.to_owned(), if_match, realm: false }, asked).await
    }
}

/// Protection is for whoever asks for this object by its name, not for what goes with another.
pub(super) fn refuse_protected(object: &Stored) -> Result<(), Error> {
    if object.core.protected { Err(Clash::Protected.into()) } else { Ok(()) }
}

pub(super) async fn remove(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    kind: &'static dyn Kind,
    object: Stored,
) -> Result<Written, Error> {
    remove_when(tx, context, maker, kind, object, false).await
}

/// The same; `later`: its job begins in a transaction of its own.
pub(super) async fn remove_when(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    kind: &'static dyn Kind,
    mut object: Stored,
    later: bool,
) -> Result<Written, Error> {
    let id = object.core.id.clone();
    let users = users(tx, &id).await?;
    if !users.is_empty() {
        let mut seen = Vec::new();
        for user in users {
            let object = super::objects::by_id(tx, &user.id, false).await?;
            let own = maker.tenant.is_empty() || user.tenant == maker.tenant;
            if object.is_some_and(|object| own && maker.caller.lets("get", &object.core, maker.tenant)) {
                seen.push(user);
            }
        }
        return Err(Clash::InUse(seen).into());
    }
    let owned = owned(tx, &id).await?;
    tx.run("DELETE FROM reference WHERE source = $1", values![&id]).await?;
    tx.run("DELETE FROM live WHERE id = $1", values![&id]).await?;
    if kind.meta().kind == nodes::KIND {
        assign::forget_node(tx, context, &id).await?;
    }
    let plan = kind.remove(&object)?;
    object.claims.extend(plan.values);
    object.core.deleted_at = Some(context.env.now());
    object.core.updated_at = context.env.now();
    object.core.version += 1;
    let intent = Intent { later, ..Intent::new(Verb::Remove, plan.steps) };
    let nothing = Facts::default();
    let written = apart(tx, |tx| finish(tx, context, maker, object, intent, &nothing)).await?;
    for (key, child) in owned {
        if written.object.claims.get(&format!("keep_{key}")).and_then(serde_json::Value::as_bool)
            == Some(true)
        {
            continue;
        }
        let child_kind = context.registry.get(&child.core.kind)?;
        apart(tx, |tx| remove_when(tx, context, maker, child_kind, child, later)).await?;
    }
    Ok(written)
}

/// Who refers to an object, the first hundred.
pub(super) async fn users(tx: &mut Tx, id: &str) -> Result<Vec<UsedBy>, Error> {
    let sql = "SELECT r.kind, r.id, r.name, r.tenant FROM reference f JOIN resource r ON r.id = f.source \
               WHERE f.target = $1 ORDER BY r.id LIMIT 100";
    let mut users = Vec::new();
    for row in tx.rows(sql, values![id]).await? {
        users.push(UsedBy {
            kind: row.text("kind")?,
            id: row.text("id")?,
            name: row.text("name")?,
            tenant: row.text("tenant")?,
        });
    }
    users.dedup();
    Ok(users)
}

/// What an object owns, by the keys of its claims.
async fn owned(tx: &mut Tx, id: &str) -> Result<Vec<(String, Stored)>, Error> {
    let sql = "SELECT field, target FROM reference WHERE source = $1 AND relation = 'owns' ORDER BY field";
    let mut all = Vec::new();
    for row in tx.rows(sql, values![id]).await? {
        let key = row.text("field")?.trim_start_matches("child.").to_owned();
        if let Some(child) = super::objects::by_id(tx, &row.text("target")?, true).await? {
            all.push((key, child));
        }
    }
    Ok(all)
}
