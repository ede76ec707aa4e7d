//! Quotas: a row per tenant and quantity, raised by a conditional UPDATE in the transaction that uses it, and
//! lowered in the one in which the object is gone. Nothing is ever counted by reading what is there.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::db::{Conn, Value as Cell, int, row, values};
use super::tx::{Table, Tx, list, padded, places};
use super::{Context, Store, facts, objects};
use crate::kernel::quota::{Amounts, Exceeded, amounts, quantities};
use crate::kernel::{Caller, Clash, Error, Right, Stored};

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
        let mut conn = self.read_for(right).await?;
        // Of its tenant no more than this is told.
        let look = Caller::system().may("get", objects::TENANT, "")?;
        let tenant = objects::find(&mut conn, &look, context.registry.get(objects::TENANT)?, tenant).await?;
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
    let known = facts::known(tx, context, kind, &object.spec).await?;
    let wanted = amounts(kind.meta(), &kind.create(&object, &known)?);
    let held = held(tx, id).await?;
    let who = Who { tenant: &tenant.core.id, object: &object, any_state: true, any_amount: true };
    change(tx, context, who, held, &wanted).await
}

/// Whose quota is used, and for what.
struct Who<'a> {
    /// Id of the tenant.
    tenant: &'a str,
    object: &'a Stored,
    /// Also while the tenant is suspended.
    any_state: bool,
    /// Whatever the limit.
    any_amount: bool,
}

impl<'a> Who<'a> {
    fn of(caller: &Caller, tenant: &'a str, object: &'a Stored) -> Who<'a> {
        Who { tenant, object, any_state: caller.operator, any_amount: false }
    }
}

/// A row among a tenant's quotas that says that it is suspended: whoever makes something in it locks all of them, and so
/// sees it, whenever they began.
const SUSPENDED: &str = "suspended";

/// Nothing is made in this tenant from now on but by operators: what others have begun to make is there already.
pub(super) async fn mark(tx: &mut Tx, context: &Context, tenant: &str) -> Result<(), Error> {
    lock(tx, context, tenant, &[]).await?;
    let sql = "INSERT INTO quota (tenant, quantity, used) VALUES ($1, $2, 0) ON CONFLICT DO NOTHING";
    tx.run(sql, values![tenant, SUSPENDED]).await?;
    Ok(())
}

/// The end of that.
pub(super) async fn unmark(tx: &mut Tx, tenant: &str) -> Result<(), Error> {
    tx.run("DELETE FROM quota WHERE tenant = $1 AND quantity = $2", values![tenant, SUSPENDED]).await?;
    Ok(())
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
        if quantity == SUSPENDED {
            continue;
        }
        let limit = most.or_else(|| default(&quantity));
        all.insert(quantity, Usage { used: natural(row.int("used")?), limit, own: most.is_some() });
    }
    Ok(all)
}

/// Takes these amounts for a new object.
pub(super) async fn take(
    tx: &mut Tx,
    context: &Context,
    caller: &Caller,
    (tenant, holder): (&str, &Stored),
    wanted: &Amounts,
) -> Result<(), Error> {
    change(tx, context, Who::of(caller, tenant, holder), Amounts::new(), wanted).await
}

/// What an object holds is changed to these amounts.
pub(super) async fn retake(
    tx: &mut Tx,
    context: &Context,
    caller: &Caller,
    object: &Stored,
    wanted: &Amounts,
) -> Result<(), Error> {
    let (tenant, holder) = (object.core.tenant.as_str(), object.core.id.as_str());
    let sql = "SELECT target FROM reference WHERE source = $1 AND field = 'tenant'";
    match tx.row(sql, values![holder]).await? {
        Some(row) => {
            let held = held(tx, holder).await?;
            change(tx, context, Who::of(caller, &row.text("target")?, object), held, wanted).await
        }
        None if tenant.is_empty() => Ok(()),
        None => Err(Error::Internal(format!("{holder} of tenant {tenant} does not refer to it"))),
    }
}

async fn change(
    tx: &mut Tx,
    context: &Context,
    who: Who<'_>,
    held: Amounts,
    wanted: &Amounts,
) -> Result<(), Error> {
    let (tenant, holder) = (who.tenant, who.object.core.id.as_str());
    let mut moves = Vec::new();
    for quantity in held.keys().chain(wanted.keys()).collect::<BTreeSet<_>>() {
        let before = held.get(quantity).copied().unwrap_or(0);
        let after = wanted.get(quantity).copied().unwrap_or(0);
        if after != before {
            moves.push(Move { quantity: quantity.clone(), before, after });
        }
    }
    if moves.is_empty() {
        return Ok(());
    }
    let there = lock(tx, context, tenant, &moves).await?;
    if there.contains_key(SUSPENDED) && !who.any_state {
        return Err(Error::Suspended(who.object.core.tenant.clone()));
    }
    let exceeded: Vec<Exceeded> =
        moves.iter().filter_map(|one| one.exceeded(&there, &context.quota)).collect();
    if !exceeded.is_empty() && !who.any_amount {
        return Err(Clash::QuotaExceeded(exceeded).into());
    }
    let rows: Vec<Vec<Cell>> =
        padded(&moves).iter().map(|one| row![&one.quantity, int(one.after) - int(one.before)]).collect();
    let sql = format!(
        "UPDATE quota SET used = used + v.column2 FROM (VALUES {}) AS v WHERE tenant = $1 AND quantity = v.column1",
        places(rows.len(), 2, 2)
    );
    let mut all = vec![Cell::from(tenant)];
    all.extend(rows.concat());
    tx.run(&sql, &all).await?;
    moves.iter().for_each(|one| tx.later(&USE, row![holder, &one.quantity, tenant, int(one.after)]));
    Ok(())
}

const USE: Table = Table {
    name: "quota_use",
    columns: "holder, quantity, tenant, amount",
    key: 2,
    tail: " ON CONFLICT (holder, quantity) DO UPDATE SET amount = excluded.amount",
};

/// From so much of a quantity to so much.
#[derive(Clone)]
struct Move {
    quantity: String,
    before: u64,
    after: u64,
}

impl Move {
    /// With figures, if it is too much.
    fn exceeded(&self, there: &Limits, defaults: &BTreeMap<String, u64>) -> Option<Exceeded> {
        let (used, most) = there.get(&self.quantity).copied().unwrap_or_default();
        let limit = most.or_else(|| defaults.get(&self.quantity).copied())?;
        let wanted = self.after.checked_sub(self.before)?;
        let quantity = self.quantity.clone();
        (used.saturating_add(wanted) > limit).then_some(Exceeded { quantity, limit, used, wanted })
    }
}

/// What is used of each quantity, and the tenant's own limit.
type Limits = BTreeMap<String, (u64, Option<u64>)>;

/// All rows of the tenant, made where there are none, locked in the order of their names. All: what is made along with
/// an object uses other quantities, and by then there are other locks. So no two transactions wait for each other.
async fn lock(tx: &mut Tx, context: &Context, tenant: &str, moves: &[Move]) -> Result<Limits, Error> {
    let lock = tx.for_update();
    let sql = format!("SELECT quantity, used, most FROM quota WHERE tenant = $1 ORDER BY quantity{lock}");
    for _ in 0..2 {
        let mut there = Limits::new();
        for row in tx.rows(&sql, values![tenant]).await? {
            let most = row.maybe_int("most")?.map(natural);
            there.insert(row.text("quantity")?, (natural(row.int("used")?), most));
        }
        if moves.iter().all(|one| there.contains_key(&one.quantity)) {
            return Ok(there);
        }
        let all =
            quantities(&context.registry).into_iter().map(|quantity| row![tenant, quantity, 0]).collect();
        let head = "INSERT INTO quota (tenant, quantity, used) VALUES";
        tx.put(head, " ON CONFLICT DO NOTHING", all).await?;
    }
    Err(Error::Internal(format!("the quotas of {tenant} have no rows that stay")))
}

async fn held(tx: &mut Tx, holder: &str) -> Result<Amounts, Error> {
    let sql = "SELECT quantity, amount FROM quota_use WHERE holder = $1";
    let mut held = Amounts::new();
    for row in tx.rows(sql, values![holder]).await? {
        held.insert(row.text("quantity")?, natural(row.int("amount")?));
    }
    Ok(held)
}

/// Takes what the release of these objects will lower in hand. For whoever has other things to take in hand before.
pub(super) async fn take_in_hand(tx: &mut Tx, holders: &[String]) -> Result<(), Error> {
    if tx.is_postgres() && !holders.is_empty() {
        let (list, holders) = list(holders);
        let sql = format!(
            "SELECT 1 AS one FROM quota WHERE tenant IN (SELECT tenant FROM quota_use WHERE holder IN {list}) \
             ORDER BY tenant, quantity FOR NO KEY UPDATE"
        );
        tx.rows(&sql, &holders).await?;
    }
    Ok(())
}

/// Gives back all that an object uses; also what a tenant was allowed, when it is the tenant that goes.
pub(super) async fn release(tx: &mut Tx, holder: &str) -> Result<(), Error> {
    take_in_hand(tx, &[holder.to_owned()]).await?;
    let sql = "DELETE FROM quota_use WHERE holder = $1 RETURNING quantity, tenant, amount";
    let mut rows = Vec::new();
    for row in tx.rows(sql, values![holder]).await? {
        rows.push(row![row.text("tenant")?, row.text("quantity")?, row.int("amount")?]);
    }
    if !rows.is_empty() {
        let rows = padded(&rows);
        let sql = format!(
            "UPDATE quota SET used = used - v.column3 FROM (VALUES {}) AS v \
             WHERE tenant = v.column1 AND quantity = v.column2",
            places(rows.len(), 3, 1)
        );
        tx.run(&sql, &rows.concat()).await?;
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
