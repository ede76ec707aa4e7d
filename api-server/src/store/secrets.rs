//! Secrets: sealed in a table of their own, bound to the object and the field that they are of. Everything else in the
//! database holds their markers.
//!
//! What an object's revisions still name is kept until the object has gone, so that restoring one brings its secret
//! back.

use std::collections::BTreeMap;

use serde_json::Value;

use super::db::{Conn, Row, values};
use super::report::AssignmentRow;
use super::tx::{Tx, list};
use super::{Context, Store, authority};
use crate::kernel::secret::{self, Made, Plain};
use crate::kernel::{Change, Error, FieldError, Kind, ResourceCore, Stored};

/// The field of what an app makes codes with. No spec holds it, and it is taken away by its owner only.
pub(super) const SECOND_FACTOR: &str = "second-factor";
/// How many are sealed anew by one transaction.
const AT_ONCE: i64 = 200;

/// Seals and opens, with keys that the database does not hold.
pub trait Vault: Send + Sync {
    /// Name of the key that seals now.
    fn newest(&self) -> String;
    /// Whether it has the key of this name.
    fn knows(&self, key: &str) -> bool;
    /// Seals; `nonce` is random, and what is sealed can be opened only with the same `bound_to`.
    fn seal(&self, nonce: [u8; 12], bound_to: &[u8], plain: &[u8]) -> Result<Sealed, Error>;
    /// Opens what was sealed by the key of this name.
    fn open(&self, key: &str, bound_to: &[u8], sealed: &[u8]) -> Result<Plain, Error>;
}

/// What is kept of a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Name of the key.
    pub key: String,
    /// For whoever has it.
    pub bytes: Vec<u8>,
}

/// A secret on its way in.
pub(super) struct Fresh {
    id: String,
    /// `spec.peers.a.key`
    field: String,
    plain: Plain,
    from: From,
}

/// Where a secret on its way in is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    /// Whoever asks has it.
    Caller,
    /// Nobody gave it, and whoever asks has to be told.
    MadeToShow,
    /// Nobody gave it, and nobody is told.
    MadeToKeep,
    /// What it is made from is kept already.
    Rowless,
}

/// What is done with the object that a spec is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It is made.
    New,
    /// It is there already, on a node: its record is made.
    Found,
    /// It is changed.
    Changed,
}

impl Stage {
    /// Whether a secret that was left out is made now. What was made without one that never changes stays without it.
    fn makes(self, kind: &dyn Kind, path: &str) -> bool {
        let never_changes = || kind.meta().fields.contains(&(path, Change::Immutable));
        self == Stage::New || (self == Stage::Changed && !never_changes())
    }
}

impl Store {
    /// The secret of an object in this field (`spec.secret`), for what the server itself does with it; `None` if there
    /// is none. No answer to any caller may hold it.
    pub async fn secret(&self, object: &Stored, field: &str) -> Result<Option<Plain>, Error> {
        let pointer = field.replacen("spec", "", 1).replace('.', "/");
        let Some(id) = object.spec.pointer(&pointer).and_then(|text| secret::id_of(text.as_str()?)) else {
            return Ok(None);
        };
        open(&mut self.read().await?, &self.context, &object.core.id, field, id).await.map(Some)
    }

    /// How many secrets each key seals, by the key's name.
    pub async fn sealed_by(&self) -> Result<BTreeMap<String, i64>, Error> {
        let sql = "SELECT key, count(*) AS many FROM secret GROUP BY key";
        let mut all = BTreeMap::new();
        for row in self.read().await?.rows(sql, &[]).await? {
            all.insert(row.text("key")?, row.int("many")?);
        }
        Ok(all)
    }

    /// Seals with the newest key what an older one sealed, a few: how many. 0: nothing is left to do.
    pub async fn seal_anew(&self) -> Result<usize, Error> {
        let newest = self.context.vault()?.newest();
        if sealed_otherwise(&mut self.read().await?, &newest, "").await?.is_empty() {
            return Ok(0);
        }
        self.write(newest, |tx, context, newest| {
            Box::pin(async move { seal_anew(tx, &context, &newest).await })
        })
        .await
    }
}

impl Context {
    fn vault(&self) -> Result<&dyn Vault, Error> {
        let vault = self.vault.get().map(|vault| &**vault);
        vault.ok_or_else(|| Error::Internal("no key was given to seal secrets with".to_owned()))
    }
}

/// Takes the secrets out of a spec and leaves their markers; makes those that a kind makes itself.
pub(super) async fn take(
    tx: &mut Tx,
    context: &Context,
    kind: &'static dyn Kind,
    holder: &ResourceCore,
    spec: &mut Value,
    stage: Stage,
    errors: &mut Vec<FieldError>,
) -> Result<Vec<Fresh>, Error> {
    let (mut fresh, mut markers) = (Vec::new(), Vec::new());
    for path in context.registry.secrets(kind) {
        for (field, text) in secret::texts(spec, path) {
            if let Some(id) = secret::id_of(text) {
                markers.push((field, id.to_owned()));
                continue;
            }
            let id = context.env.id(secret::PREFIX);
            let plain = Plain::new(std::mem::replace(text, secret::marker(&id)));
            fresh.push(Fresh { id, field, plain, from: From::Caller });
        }
        if let Some(map) = spec.as_object_mut()
            && map.get(path).is_none_or(Value::is_null)
            && stage.makes(kind, path)
            && let Some(made) = kind.make_secret(path, context.env.bytes())
        {
            let (id, plain, from) = match made {
                Made::Shown(plain) => (context.env.id(secret::PREFIX), plain, From::MadeToShow),
                Made::Kept(plain) => (context.env.id(secret::PREFIX), plain, From::MadeToKeep),
                Made::HostKey => {
                    let plain = authority::of(tx, context, &holder.tenant).await?.host_key(&holder.id)?;
                    (secret::rowless(&holder.id), plain, From::Rowless)
                }
            };
            map.insert(path.clone(), secret::marker(&id).into());
            fresh.push(Fresh { id, field: format!("spec.{path}"), plain, from });
        }
    }
    let holder = &holder.id;
    for (field, id) in markers {
        let path = field.trim_start_matches("spec.");
        if id == secret::rowless(holder) && kind.make_secret(path, [0; 32]) == Some(Made::HostKey) {
            continue;
        }
        let sql = "SELECT 1 AS one FROM secret WHERE id = $1 AND holder = $2 AND field = $3";
        if tx.row(sql, values![id, holder, &field]).await?.is_none() {
            let reason = "is the marker of a secret that is not this object's: send the secret itself";
            errors.push(FieldError::new(field, reason));
        }
    }
    Ok(fresh)
}

/// What everybody may know of these secrets, for the claims.
pub(super) fn known(kind: &dyn Kind, fresh: &[Fresh]) -> Vec<(String, Value)> {
    let known = |one: &Fresh| {
        let path = one.field.strip_prefix("spec.")?;
        let known = kind.known_of(path, one.plain.reveal())?;
        Some((secret::known_key(&secret::marker(&one.id)), Value::from(known)))
    };
    fresh.iter().filter_map(known).collect()
}

/// The object with its fresh secrets in it, for its kind to judge; `None` if there are none.
pub(super) fn given(object: &Stored, fresh: &[Fresh]) -> Option<Stored> {
    if fresh.is_empty() {
        return None;
    }
    let mut given = object.clone();
    for one in fresh {
        let pointer = one.field.replacen("spec", "", 1).replace('.', "/");
        if let Some(slot) = given.spec.pointer_mut(&pointer) {
            *slot = one.plain.reveal().into();
        }
    }
    Some(given)
}

/// Seals what is fresh, and writes it.
pub(super) async fn keep(tx: &mut Tx, context: &Context, holder: &str, fresh: &[Fresh]) -> Result<(), Error> {
    for one in fresh.iter().filter(|one| one.from != From::Rowless) {
        keep_one(tx, context, holder, (one.id.as_str(), one.field.as_str()), &one.plain).await?;
    }
    Ok(())
}

/// Seals one, and writes it under this id, as of this field.
pub(super) async fn keep_one(
    tx: &mut Tx,
    context: &Context,
    holder: &str,
    (id, field): (&str, &str),
    plain: &Plain,
) -> Result<(), Error> {
    let bound_to = bound_to(id, holder, field);
    let sealed = context.vault()?.seal(context.env.bytes(), &bound_to, plain.reveal().as_bytes())?;
    let sql =
        "INSERT INTO secret (id, holder, field, key, sealed, created_at) VALUES ($1, $2, $3, $4, $5, $6)";
    tx.run(sql, values![id, holder, field, sealed.key, sealed.bytes, context.env.now()]).await?;
    Ok(())
}

/// Opens the one of this id and field.
pub(super) async fn open_one(
    tx: &mut Tx,
    context: &Context,
    holder: &str,
    (id, field): (&str, &str),
) -> Result<Plain, Error> {
    let sql = "SELECT key, sealed FROM secret WHERE id = $1 AND holder = $2 AND field = $3";
    let row = tx.row(sql, values![id, holder, field]).await?;
    let row = row.ok_or_else(|| Error::Internal(format!("the secret {id} of {holder} is not there")))?;
    context.vault()?.open(&row.text("key")?, &bound_to(id, holder, field), &row.bytes("sealed")?)
}

/// Those that nobody gave, by their field.
pub(super) fn made(fresh: Vec<Fresh>) -> Vec<(String, Plain)> {
    fresh.into_iter().filter(|one| one.from == From::MadeToShow).map(|one| (one.field, one.plain)).collect()
}

/// Opens, for each of these orders, what the markers in its body stand for: secrets of the ordered object itself, and no
/// other's. What cannot be opened is told of that order alone.
pub(super) async fn open_for(
    conn: &mut Conn,
    context: &Context,
    orders: &mut [AssignmentRow],
) -> Result<(), Error> {
    let mut within: Vec<(usize, String)> = Vec::new();
    for (place, order) in orders.iter().enumerate().filter(|(_, order)| !order.remove) {
        let kind = context.registry.get(&order.kind)?;
        if !context.registry.secrets(kind).is_empty() {
            within.extend(kind.sealed_in(&order.body).into_iter().map(|id| (place, id)));
        }
    }
    if within.is_empty() {
        return Ok(());
    }
    let (rowless, kept): (Vec<_>, Vec<_>) =
        within.into_iter().partition(|(place, id)| *id == secret::rowless(&orders[*place].object_id));
    let tenants = rowless.iter().map(|(place, _)| orders[*place].tenant.clone()).collect();
    let authorities = authority::of_all(conn, context, tenants).await?;
    let rows = rows(conn, &kept).await?;
    for (place, id) in rowless.into_iter().chain(kept) {
        let order = &mut orders[place];
        let opened = match rows.get(&(id.clone(), order.object_id.clone())) {
            Some(row) => opened(context, row),
            None if id == secret::rowless(&order.object_id) => match authorities.get(&order.tenant) {
                Some(both) => both.host_key(&order.object_id),
                None => {
                    Err(Error::Internal(format!("the SSH authorities of {} are not there", order.tenant)))
                }
            },
            None => Err(Error::Internal(format!("the secret {id} is none of this object's"))),
        };
        match (opened, &mut order.secrets) {
            (Ok(plain), Ok(all)) => all.push((secret::marker(&id), plain)),
            (Err(error), Ok(_)) => order.secrets = Err(error.to_string()),
            (_, Err(_)) => {}
        }
    }
    Ok(())
}

/// The rows of these secrets, by their ids and holders.
async fn rows(conn: &mut Conn, which: &[(usize, String)]) -> Result<BTreeMap<(String, String), Row>, Error> {
    let mut rows = BTreeMap::new();
    if which.is_empty() {
        return Ok(rows);
    }
    let ids: Vec<String> = which.iter().map(|(_, id)| id.clone()).collect();
    let (list, ids) = list(&ids);
    let sql = format!("SELECT id, holder, field, key, sealed FROM secret WHERE id IN {list}");
    for row in conn.rows(&sql, &ids).await? {
        rows.insert((row.text("id")?, row.text("holder")?), row);
    }
    Ok(rows)
}

/// What a row of `secret` (all but the time of it) holds.
pub(super) fn opened(context: &Context, row: &Row) -> Result<Plain, Error> {
    let bound_to = bound_to(&row.text("id")?, &row.text("holder")?, &row.text("field")?);
    context.vault()?.open(&row.text("key")?, &bound_to, &row.bytes("sealed")?)
}

async fn open(
    conn: &mut Conn,
    context: &Context,
    holder: &str,
    field: &str,
    id: &str,
) -> Result<Plain, Error> {
    let sql = "SELECT key, sealed FROM secret WHERE id = $1 AND holder = $2 AND field = $3";
    let row = conn.row(sql, values![id, holder, field]).await?;
    let row = row.ok_or_else(|| Error::Internal(format!("the secret {id} of {holder} is not there")))?;
    context.vault()?.open(&row.text("key")?, &bound_to(id, holder, field), &row.bytes("sealed")?)
}

/// What a sealed value cannot be moved away from.
fn bound_to(id: &str, holder: &str, field: &str) -> Vec<u8> {
    let mut bound = b"rhyzome-secret-1".to_vec();
    for part in [id, holder, field] {
        bound.extend((part.len() as u64).to_be_bytes());
        bound.extend(part.as_bytes());
    }
    bound
}

/// Secrets that another key than the newest sealed, the first few. Two ranges of one index: what is sealed well
/// already costs nothing.
async fn sealed_otherwise(conn: &mut Conn, newest: &str, lock: &str) -> Result<Vec<Row>, Error> {
    let mut rows = Vec::new();
    for beside in ["<", ">"] {
        let sql = format!(
            "SELECT id, holder, field, key, sealed FROM secret WHERE key {beside} $1 ORDER BY key, id LIMIT $2{lock}"
        );
        rows.extend(conn.rows(&sql, values![newest, AT_ONCE]).await?);
    }
    Ok(rows)
}

async fn seal_anew(tx: &mut Tx, context: &Context, newest: &str) -> Result<usize, Error> {
    let lock = tx.for_update();
    let rows = sealed_otherwise(tx, newest, lock).await?;
    for row in &rows {
        let (id, key) = (row.text("id")?, row.text("key")?);
        let bound_to = bound_to(&id, &row.text("holder")?, &row.text("field")?);
        let plain = context.vault()?.open(&key, &bound_to, &row.bytes("sealed")?)?;
        let sealed = context.vault()?.seal(context.env.bytes(), &bound_to, plain.reveal().as_bytes())?;
        let sql = "UPDATE secret SET key = $3, sealed = $4 WHERE id = $1 AND key = $2";
        tx.run(sql, values![id, key, sealed.key, sealed.bytes]).await?;
    }
    Ok(rows.len())
}
