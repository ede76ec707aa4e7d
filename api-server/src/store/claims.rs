//! Claims: things that exist once, taken in the transaction of the request that wants them.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde_json::{Map, Value};

use super::db::values;
use super::tx::{Tx, list};
use super::{Context, domains, placement, ports, prefixes, quota, realms, ssh};
use crate::kernel::{Claim, ClaimKind, Clash, Error, FieldError, Stored};

/// How many random addresses are tried before the free ones are counted.
const GUESSES: u32 = 16;

/// Takes all of `wanted` for `object`: what it holds already and still wants is kept. The results stand in
/// `object.claims`. Field errors are gathered; a full range or no room ends it.
///
/// What is no longer wanted is given back by `drop_stale` when the job that no longer needs it is done.
pub(super) async fn resolve(
    tx: &mut Tx,
    context: &Context,
    object: &mut Stored,
    wanted: &[Claim],
) -> Result<Vec<FieldError>, Error> {
    let mut errors = Vec::new();
    let keys: Vec<&str> = wanted.iter().map(|claim| claim.key.as_str()).collect();
    for claim in wanted {
        let held = object.claims.get(&claim.key).and_then(Value::as_str).map(str::to_owned);
        let taken = match &claim.what {
            ClaimKind::Address { network, cidr, reserved, wanted } => {
                let want = Wanted { network, cidr: *cidr, reserved, wanted: *wanted };
                address(tx, context, object, claim, want, held).await?
            }
            ClaimKind::Mac { network } => mac(tx, context, object, claim, network, held).await?,
            ClaimKind::Prefix { scope, wanted, within, length, pick } => {
                let search = prefixes::Search {
                    scope,
                    wanted: *wanted,
                    within: *within,
                    length: *length,
                    pick: *pick,
                };
                prefixes::take(tx, context, &object.core.id, claim, search, held).await?
            }
            ClaimKind::Port { wanted, from } => ports::take(tx, object, claim, *wanted, *from, held).await?,
            ClaimKind::Exclusive { scope, value, taken } => {
                let got = take(tx, &object.core.id, scope, value, &claim.key).await?;
                if got { Ok(value.clone()) } else { Err(taken.clone()) }
            }
            // Nothing that exists once, so no lease; and what the guest was given at its first boot stays.
            ClaimKind::SshHost { .. } | ClaimKind::SshUsers if held.is_some() => Ok(held.unwrap_or_default()),
            ClaimKind::SshHost { public_key, names } => {
                Ok(ssh::certify_host(tx, context, object, public_key, names).await?)
            }
            ClaimKind::SshUsers => Ok(ssh::users_of(tx, context, &object.core.tenant).await?),
            ClaimKind::Placement(needs) => placement::take(tx, context, object, needs).await.map(Ok)?,
        };
        match taken {
            Ok(value) => drop(object.claims.insert(claim.key.clone(), Value::String(value))),
            Err(reason) => errors.push(FieldError::new(&claim.field, reason)),
        }
    }
    forget_unwanted(&mut object.claims, &keys);
    Ok(errors)
}

/// Claims of nics and disks that the spec no longer has are no longer told; their leases go with the job.
fn forget_unwanted(claims: &mut Map<String, Value>, keys: &[&str]) {
    claims.retain(|key, _| !key.contains('.') || keys.contains(&key.as_str()));
}

/// Takes `value` of `scope` for `holder`; true also when it holds it already.
pub(super) async fn take(
    tx: &mut Tx,
    holder: &str,
    scope: &str,
    value: &str,
    key: &str,
) -> Result<bool, Error> {
    let sql = "INSERT INTO lease (scope, value, holder, key) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
    if tx.run(sql, values![scope, value, holder, key]).await? == 1 {
        return Ok(true);
    }
    let sql = "SELECT holder FROM lease WHERE scope = $1 AND value = $2";
    let row = tx.row(sql, values![scope, value]).await?;
    Ok(row.map(|row| row.text("holder")).transpose()?.as_deref() == Some(holder))
}

// === addresses ===

struct Wanted<'a> {
    network: &'a str,
    cidr: Ipv4Net,
    reserved: &'a [Ipv4Addr],
    wanted: Option<Ipv4Addr>,
}

async fn address(
    tx: &mut Tx,
    context: &Context,
    object: &Stored,
    claim: &Claim,
    want: Wanted<'_>,
    held: Option<String>,
) -> Result<Result<String, String>, Error> {
    let holder = &object.core.id;
    let scope = format!("address:{}", want.network);
    if let Some(address) = want.wanted {
        if !usable(&want, address) {
            // `validate` has said why.
            return Ok(Ok(address.to_string()));
        }
        let got = take(tx, holder, &scope, &address.to_string(), &claim.key).await?;
        return Ok(if got { Ok(address.to_string()) } else { Err(format!("{address} is in use")) });
    }
    if let Some(held) = held
        && held.parse().is_ok_and(|address| usable(&want, address))
        && take(tx, holder, &scope, &held, &claim.key).await?
    {
        return Ok(Ok(held));
    }
    // Random, not the lowest: two transactions seldom want the same one.
    let first = u32::from(want.cidr.network()) + 1;
    let count = hosts(want.cidr);
    for _ in 0..GUESSES {
        let offset = u32::try_from(context.env.below(u64::from(count))).unwrap_or(0);
        let guess = Ipv4Addr::from(first + offset);
        if usable(&want, guess) && take_new(tx, holder, &scope, guess, &claim.key).await? {
            return Ok(Ok(guess.to_string()));
        }
    }
    sweep(tx, holder, &scope, &want, claim).await.map(Ok)
}

/// Nearly full: every address in turn, each an insert that a taken one refuses.
async fn sweep(
    tx: &mut Tx,
    holder: &str,
    scope: &str,
    want: &Wanted<'_>,
    claim: &Claim,
) -> Result<String, Error> {
    let rows = tx.rows("SELECT value FROM lease WHERE scope = $1", values![scope]).await?;
    let used =
        rows.iter().map(|row| row.text("value")).collect::<Result<std::collections::HashSet<_>, _>>()?;
    for address in want.cidr.hosts().filter(|address| usable(want, *address)) {
        if !used.contains(&address.to_string()) && take_new(tx, holder, scope, address, &claim.key).await? {
            return Ok(address.to_string());
        }
    }
    let text = format!("all {} addresses of {} are in use", used.len(), want.cidr);
    Err(Clash::Exhausted(text).into())
}

async fn take_new(tx: &mut Tx, holder: &str, scope: &str, value: Ipv4Addr, key: &str) -> Result<bool, Error> {
    let sql = "INSERT INTO lease (scope, value, holder, key) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
    Ok(tx.run(sql, values![scope, value.to_string(), holder, key]).await? == 1)
}

fn usable(want: &Wanted<'_>, address: Ipv4Addr) -> bool {
    want.cidr.contains(&address)
        && address != want.cidr.network()
        && address != want.cidr.broadcast()
        && !want.reserved.contains(&address)
}

/// How many addresses of a range are neither its first nor its last.
fn hosts(cidr: Ipv4Net) -> u32 {
    (u32::from(cidr.broadcast()) - u32::from(cidr.network())).saturating_sub(1).max(1)
}

// === MAC addresses ===

async fn mac(
    tx: &mut Tx,
    context: &Context,
    object: &Stored,
    claim: &Claim,
    network: &str,
    held: Option<String>,
) -> Result<Result<String, String>, Error> {
    let scope = format!("mac:{network}");
    if let Some(held) = held
        && take(tx, &object.core.id, &scope, &held, &claim.key).await?
    {
        return Ok(Ok(held));
    }
    for _ in 0..GUESSES {
        let [a, b, c] = context.env.bytes::<3>();
        // 52:54:00 is the prefix that QEMU guests use by custom.
        let guess = format!("52:54:00:{a:02x}:{b:02x}:{c:02x}");
        let sql =
            "INSERT INTO lease (scope, value, holder, key) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
        if tx.run(sql, values![&scope, &guess, &object.core.id, &claim.key]).await? == 1 {
            return Ok(Ok(guess));
        }
    }
    Err(Clash::Exhausted("no MAC address is free in this network".to_owned()).into())
}

// === giving back ===

/// Gives back everything that an object holds.
pub(super) async fn release(tx: &mut Tx, context: &Context, holder: &str) -> Result<(), Error> {
    let gone = tx.rows("DELETE FROM lease WHERE holder = $1 RETURNING scope", values![holder]).await?;
    if gone.iter().any(|row| row.text("scope").is_ok_and(|scope| scope.starts_with(domains::TENANTS))) {
        domains::changed(tx, context).await?;
    }
    tx.run("DELETE FROM range_lease WHERE holder = $1", values![holder]).await?;
    quota::release(tx, holder).await?;
    placement::release(tx, context, holder).await
}

/// Gives back the leases that these objects hold but no longer claim.
pub(super) async fn drop_stale(tx: &mut Tx, holders: &[String]) -> Result<(), Error> {
    if holders.is_empty() {
        return Ok(());
    }
    let (list, ids) = list(holders);
    let sql = format!(
        "SELECT l.scope, l.value, l.key, r.claims FROM lease l JOIN resource r ON r.id = l.holder \
         WHERE l.holder IN {list} AND r.gone_at IS NULL"
    );
    for row in tx.rows(&sql, &ids).await? {
        let (scope, value, key) = (row.text("scope")?, row.text("value")?, row.text("key")?);
        let claims: Map<String, Value> = row.json("claims")?;
        // What a job wants done with a realm is nothing that is claimed.
        if scope != realms::WANTED && claims.get(&key).and_then(Value::as_str) != Some(&value) {
            tx.run("DELETE FROM lease WHERE scope = $1 AND value = $2", values![scope, value]).await?;
        }
    }
    let sql = format!(
        "SELECT l.scope, l.first, l.key, r.claims FROM range_lease l JOIN resource r ON r.id = l.holder \
         WHERE l.holder IN {list} AND r.gone_at IS NULL"
    );
    for row in tx.rows(&sql, &ids).await? {
        let claims: Map<String, Value> = row.json("claims")?;
        if !claims.contains_key(&row.text("key")?) {
            let which = values![row.text("scope")?, row.text("first")?];
            tx.run("DELETE FROM range_lease WHERE scope = $1 AND first = $2", which).await?;
        }
    }
    Ok(())
}
