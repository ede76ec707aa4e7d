//! Ranges of addresses that must not overlap: those of a tenant's networks.

use ipnet::Ipv4Net;

use super::Context;
use super::db::values;
use super::tx::Tx;
use crate::kernel::{Claim, Clash, Error};

/// How many random ranges are tried.
const GUESSES: u32 = 64;

/// What range is looked for.
pub(super) struct Search<'a> {
    pub(super) scope: &'a str,
    pub(super) wanted: Option<Ipv4Net>,
    pub(super) within: Ipv4Net,
    pub(super) length: u8,
}

/// Takes the wanted range, or a free one. `Ok(Err(_))` says with whom it overlaps.
pub(super) async fn take(
    tx: &mut Tx,
    context: &Context,
    holder: &str,
    claim: &Claim,
    search: Search<'_>,
    held: Option<String>,
) -> Result<Result<String, String>, Error> {
    if let Some(held) = held {
        // Ranges are immutable: what was given stays.
        return Ok(Ok(held));
    }
    tx.lock(&format!("prefix:{}", search.scope)).await?;
    if let Some(wanted) = search.wanted {
        return Ok(match overlap(tx, search.scope, wanted).await? {
            Some(other) => Err(format!("{wanted} overlaps {other} of this tenant")),
            None => Ok(insert(tx, search.scope, wanted, holder, &claim.key).await?),
        });
    }
    // "First come" would do, but a random range makes two clouds that meet later clash less often.
    let slots = 1_u64 << search.length.saturating_sub(search.within.prefix_len());
    for _ in 0..GUESSES {
        let offset = u32::try_from(context.env.below(slots)).unwrap_or(0);
        let network = u32::from(search.within.network()) + (offset << (32 - u32::from(search.length)));
        let Ok(guess) = Ipv4Net::new(network.into(), search.length) else { continue };
        if overlap(tx, search.scope, guess).await?.is_none() {
            return Ok(Ok(insert(tx, search.scope, guess, holder, &claim.key).await?));
        }
    }
    let text = format!("no free /{} was found in {}; name a range", search.length, search.within);
    Err(Clash::Exhausted(text).into())
}

async fn insert(tx: &mut Tx, scope: &str, range: Ipv4Net, holder: &str, key: &str) -> Result<String, Error> {
    tx.run(
        "INSERT INTO prefix_lease (scope, first, last, holder, key) VALUES ($1, $2, $3, $4, $5)",
        values![scope, first(range), last(range), holder, key],
    )
    .await?;
    Ok(range.to_string())
}

/// The name of who holds an overlapping range. Ranges of a scope do not overlap each other, so the one that
/// begins last before the end of ours is the only one that can.
async fn overlap(tx: &mut Tx, scope: &str, range: Ipv4Net) -> Result<Option<String>, Error> {
    let sql = "SELECT p.last, r.name FROM prefix_lease p JOIN resource r ON r.id = p.holder \
               WHERE p.scope = $1 AND p.first <= $2 ORDER BY p.first DESC LIMIT 1";
    let Some(row) = tx.row(sql, values![scope, last(range)]).await? else { return Ok(None) };
    Ok(if row.int("last")? >= first(range) { Some(format!("network `{}`", row.text("name")?)) } else { None })
}

fn first(range: Ipv4Net) -> i64 {
    i64::from(u32::from(range.network()))
}

fn last(range: Ipv4Net) -> i64 {
    i64::from(u32::from(range.broadcast()))
}
