//! Quotas: a row per tenant and quantity, raised by a conditional UPDATE in the transaction that uses it, and
//! lowered in the one in which the object is gone. Nothing is ever counted by reading what is there.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::db::{Conn, Tx, int, values};
use super::{Context, Store, facts, objects};
use crate::kernel::quota::{Amounts, Exceeded, amounts, quantities};
use crate::kernel::{Clash, Error, Right};

/// What a tenant uses of a quantity.
#[derive(Clone, Debug, PartialEq)]
pub struct Usage {
    /// So much.
    pub used: u64,
    /// Of so much; `None`: there is no limit.
    pub limit: Option<u64>,
    /// True: the limit is the tenant's own, not the default.
    pub own: bool,
}

impl Store {
    /// What a tenant uses and may use, by quantity.
    pub async fn quota(&self, right: &Right, tenant: &str) -> Result<BTreeMap<String, Usage>, Error> {
        let context = &self.context;
        let mut conn = self.read().await?;
        let tenant = objects::find(&mut conn, right, context.registry.get("tenant")?, tenant).await?;
        usage(&mut conn, context, &tenant.core.id).await
    }

    /// Counts what was made before there were quotas: once per database.
    pub(super) async fn count_what_is_there(&self) -> Result<(), Error> {
        self.write((), move |tx, context, ()| {
            Box::pin(async move {
                let sql =
                    "INSERT INTO meta (key, value) VALUES ('quota_counted', '1') ON CONFLICT DO NOTHING";
                if tx.run(sql, &[]).await? == 0 {
                    return Ok(());
                }
                let sql = "SELECT id FROM resource r WHERE r.tenant <> '' AND r.gone_at IS NULL ORDER BY id";
                for row in tx.rows(sql, &[]).await? {
                    count(tx, &context, &row.text("id")?).await?;
                }
                Ok(())
            })
        })
        .await
    }
}

async fn count(tx: &mut Tx, context: &Context, id: &str) -> Result<(), Error> {
    let Some(object) = objects::by_id(tx, id, false).await? else { return Ok(()) };
    let Some(tenant) = objects::by_name(tx, "tenant", "", &object.core.tenant).await? else { return Ok(()) };
    let kind = context.registry.get(&object.core.kind)?;
    let known = facts::known(tx, kind, &object.spec).await?;
    let wanted = amounts(kind.meta(), &kind.create(&object, &known)?);
    change(tx, context, &tenant.core.id, id, &wanted, true).await
}

/// What a tenant (its id) uses and may use of every quantity.
pub(super) async fn usage(
    conn: &mut Conn,
    context: &Context,
    tenant: &str,
) -> Result<BTreeMap<String, Usage>, Error> {
    let default = |quantity: &str| context.quota.get(quantity).copied();
    let mut all: BTreeMap<String, Usage> = quantities(&context.registry)
        .into_iter()
        .map(|quantity| {
            let limit = default(&quantity);
            (quantity, Usage { used: 0, limit, own: false })
        })
        .collect();
    let sql = "SELECT quantity, used, most FROM quota WHERE tenant = $1";
    for row in conn.rows(sql, values![tenant]).await? {
        let (quantity, most) = (row.text("quantity")?, row.maybe_int("most")?.map(natural));
        let limit = most.or_else(|| default(&quantity));
        all.insert(quantity, Usage { used: natural(row.int("used")?), limit, own: most.is_some() });
    }
    Ok(all)
}

/// Takes these amounts for an object; what it holds already is changed to them.
pub(super) async fn take(
    tx: &mut Tx,
    context: &Context,
    tenant: &str,
    holder: &str,
    wanted: &Amounts,
) -> Result<(), Error> {
    change(tx, context, tenant, holder, wanted, false).await
}

/// As `take`, for an object that exists: its tenant is known by its name.
pub(super) async fn retake(
    tx: &mut Tx,
    context: &Context,
    tenant: &str,
    holder: &str,
    wanted: &Amounts,
) -> Result<(), Error> {
    let sql = "SELECT target FROM reference WHERE source = $1 AND field = 'tenant'";
    match tx.row(sql, values![holder]).await? {
        Some(row) => take(tx, context, &row.text("target")?, holder, wanted).await,
        None if tenant.is_empty() => Ok(()),
        None => Err(Error::Internal(format!("{holder} of tenant {tenant} does not refer to it"))),
    }
}

async fn change(
    tx: &mut Tx,
    context: &Context,
    tenant: &str,
    holder: &str,
    wanted: &Amounts,
    whatever_the_limit: bool,
) -> Result<(), Error> {
    let held = held(tx, holder).await?;
    let mut exceeded = Vec::new();
    // In the order of names, so that two transactions never wait for each other.
    for quantity in held.keys().chain(wanted.keys()).collect::<BTreeSet<_>>() {
        let before = held.get(quantity).copied().unwrap_or(0);
        let after = wanted.get(quantity).copied().unwrap_or(0);
        if after > before {
            let limit = context.quota.get(quantity).copied().filter(|_| !whatever_the_limit);
            let most = if whatever_the_limit { Some(i64::MAX) } else { None };
            exceeded.extend(raise(tx, tenant, quantity, after - before, limit, most).await?);
        } else if after < before {
            lower(tx, tenant, quantity, before - after).await?;
        }
        if after != before {
            let sql = "INSERT INTO quota_use (holder, quantity, tenant, amount) VALUES ($1, $2, $3, $4) \
                       ON CONFLICT (holder, quantity) DO UPDATE SET amount = excluded.amount";
            tx.run(sql, values![holder, quantity, tenant, int(after)]).await?;
        }
    }
    if exceeded.is_empty() { Ok(()) } else { Err(Clash::QuotaExceeded(exceeded).into()) }
}

async fn held(tx: &mut Tx, holder: &str) -> Result<Amounts, Error> {
    let sql = "SELECT quantity, amount FROM quota_use WHERE holder = $1";
    let mut held = Amounts::new();
    for row in tx.rows(sql, values![holder]).await? {
        held.insert(row.text("quantity")?, natural(row.int("amount")?));
    }
    Ok(held)
}

/// Uses more, unless that is too much: then says so with figures.
async fn raise(
    tx: &mut Tx,
    tenant: &str,
    quantity: &str,
    more: u64,
    default: Option<u64>,
    whatever: Option<i64>,
) -> Result<Option<Exceeded>, Error> {
    let default = whatever.or(default.map(int)).unwrap_or(i64::MAX);
    let sql = match whatever {
        Some(_) => {
            "UPDATE quota SET used = used + $3 WHERE tenant = $1 AND quantity = $2 AND used + $3 <= $4"
        }
        None => {
            "UPDATE quota SET used = used + $3 WHERE tenant = $1 AND quantity = $2 \
             AND used + $3 <= coalesce(most, $4)"
        }
    };
    for _ in 0..5 {
        if tx.run(sql, values![tenant, quantity, int(more), default]).await? == 1 {
            return Ok(None);
        }
        let row = "SELECT used, coalesce(most, $3) AS most FROM quota WHERE tenant = $1 AND quantity = $2";
        if let Some(row) = tx.row(row, values![tenant, quantity, default]).await? {
            let (used, limit) = (natural(row.int("used")?), natural(row.int("most")?));
            if used.saturating_add(more) > limit {
                return Ok(Some(Exceeded { quantity: quantity.to_owned(), limit, used, wanted: more }));
            }
            // Another transaction made the row, or gave something back, between the two statements.
            continue;
        }
        let first = "INSERT INTO quota (tenant, quantity, used) VALUES ($1, $2, 0) ON CONFLICT DO NOTHING";
        tx.run(first, values![tenant, quantity]).await?;
    }
    Err(Error::Internal(format!("quota {quantity} of {tenant} has no row that stays")))
}

async fn lower(tx: &mut Tx, tenant: &str, quantity: &str, less: u64) -> Result<(), Error> {
    let sql = "UPDATE quota SET used = used - $3 WHERE tenant = $1 AND quantity = $2";
    tx.run(sql, values![tenant, quantity, int(less)]).await?;
    Ok(())
}

/// Gives back all that an object uses; also what a tenant was allowed, when it is the tenant that goes.
pub(super) async fn release(tx: &mut Tx, holder: &str) -> Result<(), Error> {
    let sql = "DELETE FROM quota_use WHERE holder = $1 RETURNING quantity, tenant, amount";
    let mut rows = Vec::new();
    for row in tx.rows(sql, values![holder]).await? {
        rows.push((row.text("quantity")?, row.text("tenant")?, natural(row.int("amount")?)));
    }
    rows.sort();
    for (quantity, tenant, amount) in rows {
        lower(tx, &tenant, &quantity, amount).await?;
    }
    // What the tenant's last objects still use is given back to a row that nobody reads any more.
    tx.run("DELETE FROM quota WHERE tenant = $1 AND used = 0", values![holder]).await?;
    Ok(())
}

/// A tenant's own limits, as its spec has them.
pub(super) async fn set_limits(tx: &mut Tx, tenant: &str, limits: &Value) -> Result<(), Error> {
    tx.run("UPDATE quota SET most = NULL WHERE tenant = $1", values![tenant]).await?;
    for (quantity, limit) in limits.as_object().into_iter().flatten() {
        let Some(limit) = limit.as_u64() else { continue };
        let sql = "INSERT INTO quota (tenant, quantity, used, most) VALUES ($1, $2, 0, $3) \
                   ON CONFLICT (tenant, quantity) DO UPDATE SET most = excluded.most";
        tx.run(sql, values![tenant, quantity, int(limit)]).await?;
    }
    Ok(())
}

/// What the removal of these objects will give back when it is done.
pub(super) async fn to_come_back(conn: &mut Conn, holders: &[String]) -> Result<Amounts, Error> {
    let mut all = Amounts::new();
    for holder in holders {
        let sql = "SELECT quantity, amount FROM quota_use WHERE holder = $1";
        for row in conn.rows(sql, values![holder]).await? {
            *all.entry(row.text("quantity")?).or_default() += natural(row.int("amount")?);
        }
    }
    Ok(all)
}

fn natural(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
