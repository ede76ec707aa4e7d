//! Ranges of addresses that must not overlap: those of a tenant's networks, those that a VPN pool hands out, those that
//! are behind the peers of a server. Addresses are kept as 32 hexadecimal digits, so that both families sort as texts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::Context;
use super::db::{Conn, values};
use super::tx::Tx;
use crate::kernel::plan::ranges;
use crate::kernel::{Claim, Clash, Error, Pick};

/// How many random ranges are tried.
const GUESSES: u32 = 64;
/// How many ranges are read at once when a gap between them is looked for.
const PAGE: i64 = 1000;

/// What range is looked for.
pub(super) struct Search<'a> {
    pub(super) scope: &'a str,
    pub(super) wanted: Option<IpNet>,
    pub(super) within: IpNet,
    pub(super) length: u8,
    pub(super) pick: Pick,
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
        // What was given under a key stays.
        return Ok(Ok(held));
    }
    tx.lock(&format!("prefix:{}", search.scope)).await?;
    if let Some(wanted) = search.wanted {
        // What it held of this range under another key is what it has now.
        let sql = "DELETE FROM range_lease WHERE holder = $1 AND scope = $2 AND first <= $3 AND last >= $4";
        tx.run(sql, values![holder, search.scope, last(wanted), first(wanted)]).await?;
        return Ok(match overlap(tx, search.scope, wanted).await? {
            Some(other) => Err(format!("{wanted} overlaps {other}")),
            None => Ok(insert(tx, search.scope, wanted, holder, &claim.key).await?),
        });
    }
    let found = match search.pick {
        Pick::Any => any(tx, context, &search).await?,
        Pick::Next => next(tx, &search).await?,
    };
    match found {
        Some(free) => Ok(Ok(insert(tx, search.scope, free, holder, &claim.key).await?)),
        None => Err(Clash::Exhausted(exhausted(tx, &search).await?).into()),
    }
}

/// A random one.
async fn any(tx: &mut Tx, context: &Context, search: &Search<'_>) -> Result<Option<IpNet>, Error> {
    let slots = u64::try_from(ranges(search.within, search.length)).unwrap_or(u64::MAX);
    for _ in 0..GUESSES {
        let guess = nth(search, u128::from(context.env.below(slots)));
        if overlap(tx, search.scope, guess).await?.is_none() {
            return Ok(Some(guess));
        }
    }
    Ok(None)
}

/// The one after the last that is taken; at the end of the range, the first gap.
async fn next(tx: &mut Tx, search: &Search<'_>) -> Result<Option<IpNet>, Error> {
    // The very last one may be kept for something else for ever: it is looked at with the gaps.
    let sql = "SELECT last FROM range_lease WHERE scope = $1 AND first < $2 ORDER BY first DESC LIMIT 1";
    let slots = ranges(search.within, search.length);
    let mut slot = match tx.row(sql, values![search.scope, first(nth(search, slots - 1))]).await? {
        Some(row) => slot_after(search, &row.text("last")?),
        None => 0,
    };
    if slot < slots - 1 {
        return Ok(Some(nth(search, slot)));
    }
    let mut after = String::new();
    slot = 0;
    loop {
        let sql =
            "SELECT first, last FROM range_lease WHERE scope = $1 AND first > $2 ORDER BY first LIMIT $3";
        let rows = tx.rows(sql, values![search.scope, &after, PAGE]).await?;
        for row in &rows {
            after = row.text("first")?;
            if slot < slots && last(nth(search, slot)) < after {
                return Ok(Some(nth(search, slot)));
            }
            slot = slot.max(slot_after(search, &row.text("last")?));
        }
        if rows.is_empty() || slot >= slots {
            return Ok((slot < slots).then(|| nth(search, slot)));
        }
    }
}

async fn exhausted(tx: &mut Tx, search: &Search<'_>) -> Result<String, Error> {
    let used = count(tx, search.scope).await?;
    let Search { within, length, .. } = search;
    let all = ranges(*within, *length);
    Ok(match search.pick {
        Pick::Any => {
            format!("no free /{length} was found in {within}, where {used} are in use; name a range")
        }
        Pick::Next => format!("all {all} ranges of /{length} in {within} are in use"),
    })
}

/// How many ranges of a scope are taken.
pub(super) async fn count(conn: &mut Conn, scope: &str) -> Result<i64, Error> {
    let sql = "SELECT count(*) AS used FROM range_lease WHERE scope = $1";
    Ok(conn.row(sql, values![scope]).await?.map(|row| row.int("used")).transpose()?.unwrap_or(0))
}

async fn insert(tx: &mut Tx, scope: &str, range: IpNet, holder: &str, key: &str) -> Result<String, Error> {
    tx.run(
        "INSERT INTO range_lease (scope, first, last, holder, key) VALUES ($1, $2, $3, $4, $5)",
        values![scope, first(range), last(range), holder, key],
    )
    .await?;
    Ok(range.to_string())
}

/// Who holds an overlapping range. Ranges of a scope do not overlap each other, so the one that begins last before the
/// end of ours is the only one that can.
async fn overlap(tx: &mut Tx, scope: &str, range: IpNet) -> Result<Option<String>, Error> {
    let sql = "SELECT p.last, r.kind, r.name FROM range_lease p JOIN resource r ON r.id = p.holder \
               WHERE p.scope = $1 AND p.first <= $2 ORDER BY p.first DESC LIMIT 1";
    let Some(row) = tx.row(sql, values![scope, last(range)]).await? else { return Ok(None) };
    let kind = row.text("kind")?.replace('-', " ");
    Ok(if row.text("last")? >= first(range) { Some(format!("{kind} `{}`", row.text("name")?)) } else { None })
}

// === addresses as numbers ===

/// An address among all of both families: IPv4 ones where IPv6 maps them.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_ipv6_mapped()),
        IpAddr::V6(address) => u128::from(address),
    }
}

fn text(number: u128) -> String {
    format!("{number:032x}")
}

fn first(range: IpNet) -> String {
    text(number(range.network()))
}

fn last(range: IpNet) -> String {
    text(number(range.broadcast()))
}

/// How many bits of an address are behind a prefix of this length.
fn bits_behind(search: &Search<'_>) -> u32 {
    u32::from(search.within.max_prefix_len().saturating_sub(search.length))
}

/// The range of the wanted length that is the nth in the whole.
fn nth(search: &Search<'_>, slot: u128) -> IpNet {
    let begins = number(search.within.network()).wrapping_add(slot.wrapping_shl(bits_behind(search)));
    let address = match search.within {
        IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from(u32::try_from(begins & 0xffff_ffff).unwrap_or(0))),
        IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from(begins)),
    };
    IpNet::new(address, search.length).unwrap_or(search.within)
}

/// The first slot that begins after this address; beyond all slots if none does.
fn slot_after(search: &Search<'_>, last: &str) -> u128 {
    let last = u128::from_str_radix(last, 16).unwrap_or(u128::MAX);
    let begin = number(search.within.network());
    if last < begin { 0 } else { ((last - begin) >> bits_behind(search)) + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(within: &str, length: u8) -> Search<'static> {
        let within = within.parse().unwrap();
        Search { scope: "s", wanted: None, within, length, pick: Pick::Next }
    }

    #[test]
    fn slots_are_counted_in_both_families() {
        for (within, length, slot, range) in [
            ("10.0.0.0/8", 24, 0, "10.0.0.0/24"),
            ("10.0.0.0/8", 24, 65535, "10.255.255.0/24"),
            ("2001:db8::/40", 48, 255, "2001:db8:ff::/48"),
            ("fd00:9::/64", 128, 3, "fd00:9::3/128"),
            ("10.0.0.1/32", 32, 0, "10.0.0.1/32"),
        ] {
            let search = search(within, length);
            let found = nth(&search, slot);
            assert_eq!(found.to_string(), range);
            assert_eq!(slot_after(&search, &last(found)), slot + 1);
        }
        assert_eq!(slot_after(&search("10.0.0.0/8", 24), &first("10.0.1.9/32".parse().unwrap())), 2);
        assert_eq!(slot_after(&search("10.0.0.0/8", 24), &first("9.0.0.0/8".parse().unwrap())), 0);
        assert_eq!(ranges("2001:db8::/40".parse().unwrap(), 48), 256);
    }

    #[test]
    fn texts_sort_as_addresses_do() {
        let all = ["9.255.255.255/32", "10.0.0.0/24", "100.0.0.0/8", "2001:db8::/40", "fd00::/8"];
        let mut sorted = all.map(|range| first(range.parse().unwrap()));
        sorted.sort();
        assert_eq!(sorted, all.map(|range| first(range.parse().unwrap())));
    }
}
