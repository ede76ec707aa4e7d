//! UDP ports of nodes: one object listens on each.

use super::claims;
use super::db::values;
use super::tx::Tx;
use crate::kernel::{Claim, Clash, Error, Stored};

/// Takes the wanted port of the node that the object is on, or the lowest free one; or says who has it.
pub(super) async fn take(
    tx: &mut Tx,
    object: &Stored,
    claim: &Claim,
    wanted: Option<u16>,
    from: u16,
    held: Option<String>,
) -> Result<Result<String, String>, Error> {
    // Without a node it is refused already.
    let Some(node) = object.claims.get("node").and_then(serde_json::Value::as_str) else {
        return Ok(Ok(String::new()));
    };
    let (scope, holder) = (format!("udp:{node}"), &object.core.id);
    if let Some(wanted) = wanted.map(|port| port.to_string()).or(held) {
        let got = claims::take(tx, holder, &scope, &wanted, &claim.key).await?;
        return Ok(if got { Ok(wanted) } else { Err(format!("{wanted} is in use on its node")) });
    }
    let rows = tx.rows("SELECT value FROM lease WHERE scope = $1", values![&scope]).await?;
    let used = rows.iter().map(|row| row.text("value")).collect::<Result<Vec<_>, _>>()?;
    for port in (from..=u16::MAX).map(|port| port.to_string()).filter(|port| !used.contains(port)) {
        if claims::take(tx, holder, &scope, &port, &claim.key).await? {
            return Ok(Ok(port));
        }
    }
    let text = format!("all {} UDP ports of its node from {from} on are in use", used.len());
    Err(Clash::Exhausted(text).into())
}
