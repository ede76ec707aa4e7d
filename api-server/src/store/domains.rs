//! What tenants are called elsewhere: the domains by which each of them is served, and what is shown there. Servers
//! hold it in memory; a change has a name of its own, so that looking whether there was one costs one row.

use std::collections::BTreeSet;

use rhyzome_pki::Identity;

use super::db::values;
use super::tx::Tx;
use super::{Bell, Context, Store, given, objects};
use crate::kernel::secret::{self, Plain};
use crate::kernel::{Error, FieldError, Stored};

/// What the scopes of all leases on the names of tenants begin with.
pub(super) const TENANTS: &str = "tenant-";
/// The scope of the leases on domains of the API.
const API: &str = "tenant-api";
/// Under which the present state of all of it has its name: another with each change.
const EPOCH: &str = "domains_epoch";

/// A domain by which a tenant is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiDomain {
    /// In small letters.
    pub domain: String,
    /// The tenant's name.
    pub tenant: String,
    /// Its id.
    pub id: String,
    /// Another one may show something else.
    pub generation: i64,
}

impl Store {
    /// The name of the present state of all domains.
    pub async fn domains_epoch(&self) -> Result<String, Error> {
        let row = self.read().await?.row("SELECT value FROM meta WHERE key = $1", values![EPOCH]).await?;
        Ok(row.map(|row| row.text("value")).transpose()?.unwrap_or_default())
    }

    /// All domains by which tenants are served.
    pub async fn api_domains(&self) -> Result<Vec<ApiDomain>, Error> {
        let sql = "SELECT l.value, r.name, r.id, r.generation FROM lease l JOIN resource r ON r.id = l.holder \
                   WHERE l.scope = $1 ORDER BY l.value";
        let rows = self.read().await?.rows(sql, values![API]).await?;
        rows.iter()
            .map(|row| {
                let (domain, tenant) = (row.text("value")?, row.text("name")?);
                Ok(ApiDomain { domain, tenant, id: row.text("id")?, generation: row.int("generation")? })
            })
            .collect()
    }

    /// The certificate that was given for a tenant's domain, and its key; `None`: none was.
    pub async fn api_certificate(&self, id: &str) -> Result<Option<(String, Plain)>, Error> {
        let tenant = objects::by_id(&mut self.read().await?, id, false).await?.ok_or(Error::NotFound)?;
        let Some(certificate) = tenant.spec["api"]["certificate"].as_str() else { return Ok(None) };
        let key = self.secret(&tenant, "spec.api.key").await?;
        Ok(key.map(|key| (certificate.to_owned(), key)))
    }

    /// By which names the server itself is served: no tenant has one of them.
    pub fn called(&self, names: impl IntoIterator<Item = String>) {
        let _ = self
            .context
            .own_names
            .set(names.into_iter().map(|name| name.to_ascii_lowercase()).collect::<BTreeSet<_>>());
    }
}

/// What was known of them is not true any more, on any server.
pub(super) async fn changed(tx: &mut Tx, context: &Context) -> Result<(), Error> {
    let sql = "INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
    tx.run(sql, values![EPOCH, context.env.id("epoch")]).await?;
    tx.ring(Bell::Domains);
    Ok(())
}

/// A tenant was written: others must look, if it had a domain or has one.
pub(super) async fn wrote(tx: &mut Tx, context: &Context, tenant: &Stored) -> Result<(), Error> {
    let sql = "SELECT 1 AS one FROM lease WHERE holder = $1 LIMIT 1";
    if tx.row(sql, values![&tenant.core.id]).await?.is_none() {
        return Ok(());
    }
    changed(tx, context).await
}

/// What is wrong with the domain of a tenant, its secrets as they were given.
pub(super) fn judged(context: &Context, tenant: &Stored) -> Option<FieldError> {
    if tenant.core.kind != objects::TENANT {
        return None;
    }
    let api = &tenant.spec["api"];
    let domain = api["domain"].as_str()?;
    let error = |field: &str, reason: String| Some(FieldError::new(format!("spec.api.{field}"), reason));
    if context.own_names.get().is_some_and(|names| names.contains(domain)) {
        return error("domain", "is a name of the server itself, by which all are served".to_owned());
    }
    let (certificate, key) = (api["certificate"].as_str()?, api["key"].as_str()?);
    if secret::id_of(key).is_some() {
        // It was looked at when it was given, with this certificate.
        return None;
    }
    match Identity::from_pem(certificate, key) {
        Ok(identity) if !identity.is_for(domain) => {
            error("certificate", format!("is not for `{domain}`: it must be among its names"))
        }
        Ok(_) => given::end_of(certificate)
            .filter(|end| *end <= context.env.now())
            .and_then(|end| error("certificate", format!("ended at {end}: bring a newer one"))),
        Err(why) => error("certificate", why.to_string()),
    }
}
