//! Certificates that were given for domains of tenants: nobody renews them but whoever brought them, who is told in time.
//! Two leases of each find them by an index: when it ends, and when there is something to tell of that.

use serde_json::Value;

use super::db::{Conn, values};
use super::history::{self, Entry};
use super::report::set_status;
use super::tx::Tx;
use super::{Context, Store, expiry, objects};
use crate::kernel::certificate::{GIVEN, Given, Stage};
use crate::kernel::plan::{moment, moment_of};
use crate::kernel::{Error, Stored, Timestamp};

/// The scope of their ends, and the claim.
const ENDS: &str = "certificate-ends";
/// The scope of the moments at which there is something to tell, and the claim.
const TELL: &str = "certificate-tell";

impl Store {
    /// Tells of a few certificates that they end soon, or have ended; how many. 0: nothing is left to tell.
    pub async fn tell_of_certificates(&self) -> Result<usize, Error> {
        let due = expiry::due(self, TELL).await?;
        if due.is_empty() {
            return Ok(0);
        }
        self.write(due, |tx, context, due| {
            Box::pin(async move {
                for (value, holder) in &due {
                    let Some(tenant) = objects::by_id(tx, holder, true).await? else { continue };
                    // Another server may have told it, or another certificate may have been given meanwhile.
                    if tenant.claims.get(TELL).and_then(Value::as_str) == Some(value) {
                        tell(tx, &context, tenant).await?;
                    }
                }
                Ok(due.len())
            })
        })
        .await
    }
}

/// When, of all certificates that were given, the first one ends.
pub(super) async fn first_end(conn: &mut Conn) -> Result<Option<Timestamp>, Error> {
    let sql = "SELECT value FROM lease WHERE scope = $1 ORDER BY value LIMIT 1";
    let row = conn.row(sql, values![ENDS]).await?;
    Ok(row.map(|row| row.text("value")).transpose()?.as_deref().and_then(moment_of))
}

async fn tell(tx: &mut Tx, context: &Context, mut tenant: Stored) -> Result<(), Error> {
    let now = context.env.now();
    let Some(given) = Given::kept(&tenant.claims) else { return Ok(()) };
    let now_told = Given { told: Stage::at(now, given.until), ..given };
    hold(tx, &mut tenant, now_told).await?;
    objects::update(tx, &tenant).await?;
    let status = if tenant.status.is_object() { tenant.status.clone() } else { objects::empty() };
    set_status(tx, context, &mut tenant, status).await?;
    let domain = tenant.spec["api"]["domain"].as_str().unwrap_or_default();
    let (verb, detail) = match now_told.told {
        // A clock was put back.
        Stage::Good => return Ok(()),
        Stage::Soon | Stage::VerySoon => {
            let hours = (given.until.0 - now.0) / 3_600_000_000;
            let left = format!("{} days and {} hours", hours / 24, hours % 24);
            let way_out = "bring another one: spec.api.certificate and spec.api.key";
            (
                "certificate-ends-soon",
                format!("that of {domain} ends at {}, in {left}: {way_out}", given.until),
            )
        }
        Stage::Over => ("certificate-ended", format!("that of {domain} ended at {}", given.until)),
    };
    let core = &tenant.core;
    let entry = Entry {
        class: "write",
        // Its own people, and their webhooks, are to hear it.
        tenant: &core.name,
        kind: &core.kind,
        resource: &core.id,
        name: &core.name,
        verb,
        outcome: "done",
        phase: &core.phase,
        version: core.version,
        actor: "system",
        credential: "none",
        detail: &detail,
        ..Entry::default()
    };
    history::add(tx, context, entry);
    Ok(())
}

/// A tenant is written: the claims say which certificate it has, and what there is to tell of it. What is not claimed any
/// more is given back by `claims::drop_stale`.
pub(super) async fn wrote(tx: &mut Tx, tenant: &mut Stored) -> Result<(), Error> {
    let until = tenant.spec["api"]["certificate"].as_str().and_then(end_of);
    let before = Given::kept(&tenant.claims);
    match until {
        Some(until) if before.is_none_or(|before| before.until != until) => {
            hold(tx, tenant, Given { until, told: Stage::Good }).await
        }
        Some(_) => Ok(()),
        None => {
            [GIVEN, ENDS, TELL].iter().for_each(|key| drop(tenant.claims.remove(*key)));
            Ok(())
        }
    }
}

/// Its claims and leases.
async fn hold(tx: &mut Tx, tenant: &mut Stored, given: Given) -> Result<(), Error> {
    given.keep(&mut tenant.claims);
    let id = tenant.core.id.clone();
    for (scope, at) in [(ENDS, Some(given.until)), (TELL, given.next())] {
        let value = at.map(|at| moment(at, &id));
        let sql = "DELETE FROM lease WHERE holder = $1 AND scope = $2";
        tx.run(sql, values![&id, scope]).await?;
        match value {
            Some(value) => {
                let sql = "INSERT INTO lease (scope, value, holder, key) VALUES ($1, $2, $3, $4)";
                tx.run(sql, values![scope, &value, &id, scope]).await?;
                tenant.claims.insert(scope.to_owned(), value.into());
            }
            None => drop(tenant.claims.remove(scope)),
        }
    }
    Ok(())
}

/// When a certificate ends. What cannot be read was refused when it was given.
pub(super) fn end_of(pem: &str) -> Option<Timestamp> {
    let first = rhyzome_pki::first_certificate(pem).ok()?;
    Some(rhyzome_pki::certificate_times(&first).ok()?.not_after.into())
}
