//! Making a record of what a node holds already: the object is there, so no job makes it, and none could take it back.

use super::create::{Maker, create_as};
use super::db::values;
use super::tx::Tx;
use super::{Context, NewObject, Written, assign, objects};
use crate::kernel::adopt::Adopted;
use crate::kernel::{Clash, Error, Held, Stored};

/// Under which tenant and name; empty: what the node says.
#[derive(Clone, Debug, Default)]
pub struct AdoptAs {
    /// Whose it is to be.
    pub tenant: String,
    /// What it is to be called.
    pub name: String,
}

/// Makes the record, and orders from the node what it holds already: nothing changes there.
pub(super) async fn adopt(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    node: &str,
    mut found: Adopted,
    wanted: AdoptAs,
) -> Result<Written, Error> {
    let kind = context.registry.get("instance")?;
    for id in found.children.values().map(|child| &child.id).chain([&found.id]) {
        refuse_known(tx, id).await?;
    }
    let say = |asked: String, known: &str| if asked.is_empty() { known.to_owned() } else { asked };
    let tenant = say(wanted.tenant, &found.tenant);
    if tenant.is_empty() {
        return Err(Error::field("tenant", "its node does not know whose it was: say the name of a tenant"));
    }
    found.name = say(wanted.name, &found.name);
    found.claims.insert("node".into(), node.into());
    let body = NewObject { name: Some(found.name.clone()), spec: found.spec.clone(), ..NewObject::default() };
    let maker = Maker { caller: maker.caller, tenant: &tenant, asked: maker.asked };
    let written = create_as(tx, context, &maker, kind, body, Some(&found)).await?;
    let held = needed(tx, context, &written.object).await?;
    assign::assign(tx, context, &held, node).await?;
    Ok(written)
}

async fn refuse_known(tx: &mut Tx, id: &str) -> Result<(), Error> {
    let sql = "SELECT gone_at FROM resource WHERE id = $1";
    match tx.row(sql, values![id]).await? {
        None => Ok(()),
        Some(row) => {
            let why = if row.maybe_time("gone_at")?.is_some() { "was deleted here" } else { "is known here" };
            Err(Clash::WrongState(format!("{id} {why}: a record of it cannot be made anew")).into())
        }
    }
}

/// The object and everything that a node must hold for it, what is needed first.
async fn needed(tx: &mut Tx, context: &Context, object: &Stored) -> Result<Vec<Stored>, Error> {
    let mut all = vec![object.clone()];
    let mut at = 0;
    while let Some(one) = all.get(at) {
        let sql = "SELECT target FROM reference WHERE source = $1 ORDER BY target";
        let rows = tx.rows(sql, values![&one.core.id]).await?;
        for row in rows {
            let target = row.text("target")?;
            let Some(other) = objects::by_id(tx, &target, false).await? else { continue };
            let held = context.registry.get(&other.core.kind)?.meta().held != Held::Never;
            if held && all.iter().all(|known| known.core.id != target) {
                all.push(other);
            }
        }
        at += 1;
    }
    all.reverse();
    Ok(all)
}
