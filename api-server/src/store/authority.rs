//! SSH authorities: two keys of each tenant, one that signs for hosts and one that signs for users, made when first
//! needed and sealed like all secrets. No spec holds them; they go with their tenant.
//!
//! The tenant's row, which every write in it reads anyway, names both; so what they are is known without asking the
//! database again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use super::db::{Conn, values};
use super::tx::{Tx, list};
use super::{Context, objects, secrets};
use crate::kernel::secret::{self, Plain};
use crate::kernel::ssh::{self, Authority};
use crate::kernel::{Error, Stored};

/// The fields of their secrets, and under which the claims of their tenant name them.
const HOSTS: &str = "ssh-hosts";
const USERS: &str = "ssh-users";
/// So many are known at most.
const MOST: usize = 20_000;

/// The authorities of a tenant.
#[derive(Clone)]
pub(super) struct Authorities {
    /// Signs for instances.
    pub(super) hosts: Arc<Authority>,
    /// Signs for people and programs that log in to them.
    pub(super) users: Arc<Authority>,
}

/// Authorities by the ids of their secrets. What is under an id never changes, and an id whose secret was rolled back
/// is in no row: nothing here has to be taken away when something happens.
#[derive(Default)]
pub(crate) struct Opened(Mutex<HashMap<String, Arc<Authority>>>);

// === impl Authorities ===

impl Authorities {
    /// The private key of an instance's SSH server, if nobody brought one.
    pub(super) fn host_key(&self, instance: &str) -> Result<Plain, Error> {
        let key = self.hosts.host_key(instance);
        key.ok_or_else(|| Error::Internal(format!("no SSH key could be made for {instance}")))
    }
}

// === impl Opened ===

impl Opened {
    fn get(&self, id: &str) -> Option<Arc<Authority>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    fn put(&self, id: String, authority: Arc<Authority>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MOST
            && let Some(any) = all.keys().next().cloned()
        {
            all.remove(&any);
        }
        all.insert(id, authority);
    }
}

/// Those of the tenant of this name; made if there are none yet.
pub(super) async fn of(tx: &mut Tx, context: &Context, tenant: &str) -> Result<Authorities, Error> {
    let tenant = objects::tenant(tx, tenant).await?.ok_or(Error::NotFound)?;
    if let Some(both) = named(tx, context, &tenant).await? {
        return Ok(both);
    }
    // Two that find none at once make one.
    let mut tenant = objects::by_id(tx, &tenant.core.id, true).await?.ok_or(Error::NotFound)?;
    if let Some(both) = named(tx, context, &tenant).await? {
        tx.see(&tenant);
        return Ok(both);
    }
    for field in [HOSTS, USERS] {
        let id = named_or_made(tx, context, &tenant, field).await?;
        tenant.claims.insert(field.to_owned(), id.into());
    }
    let sql = "UPDATE resource SET claims = $2 WHERE id = $1";
    tx.run(sql, values![&tenant.core.id, objects::text(&tenant.claims)]).await?;
    tx.see(&tenant);
    let made = there(tx, context, &tenant).await?;
    made.ok_or_else(|| Error::Internal("an SSH authority that was just made is not there".to_owned()))
}

/// Those of the tenants of these names, by their names, where there are any.
pub(super) async fn of_all(
    conn: &mut Conn,
    context: &Context,
    tenants: BTreeSet<String>,
) -> Result<BTreeMap<String, Authorities>, Error> {
    let mut all = BTreeMap::new();
    if tenants.is_empty() {
        return Ok(all);
    }
    let (list, names) = list(&tenants.into_iter().collect::<Vec<_>>());
    let sql = format!(
        "SELECT {} FROM live l JOIN resource r ON r.id = l.id \
         WHERE l.kind = 'tenant' AND l.tenant = '' AND l.name IN {list}",
        objects::COLUMNS
    );
    for row in conn.rows(&sql, &names).await? {
        let tenant = objects::stored(&row)?;
        if let Some(both) = there(conn, context, &tenant).await? {
            all.insert(tenant.core.name, both);
        }
    }
    Ok(all)
}

/// Those that a tenant names.
async fn named(conn: &mut Conn, context: &Context, tenant: &Stored) -> Result<Option<Authorities>, Error> {
    match [HOSTS, USERS].iter().all(|field| tenant.claims.contains_key(*field)) {
        true => there(conn, context, tenant).await,
        false => Ok(None),
    }
}

/// Those of a tenant.
async fn there(conn: &mut Conn, context: &Context, tenant: &Stored) -> Result<Option<Authorities>, Error> {
    let named = |field: &str| tenant.claims.get(field).and_then(|id| id.as_str());
    let known = |field: &str| named(field).and_then(|id| context.authorities.get(id));
    if let (Some(hosts), Some(users)) = (known(HOSTS), known(USERS)) {
        return Ok(Some(Authorities { hosts, users }));
    }
    let sql = "SELECT id, holder, field, key, sealed FROM secret WHERE holder = $1 AND field IN ($2, $3)";
    let mut found = BTreeMap::new();
    for row in conn.rows(sql, values![&tenant.core.id, HOSTS, USERS]).await? {
        let (id, field) = (row.text("id")?, row.text("field")?);
        if named(&field).is_none_or(|name| name == id) {
            let authority = Arc::new(Authority::from_private(&secrets::opened(context, &row)?)?);
            context.authorities.put(id, authority.clone());
            found.insert(field, authority);
        }
    }
    let both = found.remove(HOSTS).zip(found.remove(USERS));
    Ok(both.map(|(hosts, users)| Authorities { hosts, users }))
}

/// The id of one that is there, or that is made now.
async fn named_or_made(
    tx: &mut Tx,
    context: &Context,
    tenant: &Stored,
    field: &str,
) -> Result<String, Error> {
    if let Some(named) = tenant.claims.get(field).and_then(|id| id.as_str()) {
        return Ok(named.to_owned());
    }
    // It may be older than the names.
    let sql = "SELECT id FROM secret WHERE holder = $1 AND field = $2";
    if let Some(row) = tx.row(sql, values![&tenant.core.id, field]).await? {
        return Ok(row.text("id")?);
    }
    let plain = ssh::private_key(context.env.bytes());
    let plain =
        plain.ok_or_else(|| Error::Internal("no key of an SSH authority could be made".to_owned()))?;
    let id = context.env.id(secret::PREFIX);
    secrets::keep_one(tx, context, &tenant.core.id, (id.as_str(), field), &plain).await?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_are_known_than_there_is_room_for() {
        let one = Arc::new(Authority::from_private(&ssh::private_key([1; 32]).unwrap()).unwrap());
        let opened = Opened::default();
        for number in 0..MOST + 10 {
            opened.put(format!("sec_{number}"), one.clone());
        }
        assert_eq!(opened.0.lock().unwrap().len(), MOST);
        assert!(opened.get(&format!("sec_{}", MOST + 9)).is_some(), "the last one is known");
    }
}
