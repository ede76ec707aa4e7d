//! Rows of `resource`, `live`, `reference` and `label`, and the stored form of a resource.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::db::{Conn, DbError, Row, Value as Cell, row, values};
use super::tx::{Table, Tx, list, padded, places};
use super::{Bell, Context};
use crate::kernel::policy::OWNER_LABEL;
use crate::kernel::role::OWNED;
use crate::kernel::{Error, Kind, Meta, Relation, ResourceCore, Right, Scope, Stored};

/// The kind that all others belong to, and that has limits.
pub(super) const TENANT: &str = "tenant";

/// The columns of `resource`, in the form that `stored` reads.
pub(super) const COLUMNS: &str = "r.id, r.kind, r.tenant, r.name, r.tags, r.metadata, r.generation, r.version, \
     r.status_version, r.phase, r.protected, r.spec, r.claims, r.status, r.job, r.created_at, r.updated_at, \
     r.deleted_at, r.owner";

/// A resource from its row.
pub(super) fn stored(row: &Row) -> Result<Stored, DbError> {
    Ok(Stored {
        core: ResourceCore {
            id: row.text("id")?,
            kind: row.text("kind")?,
            tenant: row.text("tenant")?,
            name: row.text("name")?,
            tags: row.json("tags")?,
            metadata: row.json("metadata")?,
            generation: row.int("generation")?,
            version: row.int("version")?,
            status_version: row.int("status_version")?,
            phase: row.text("phase")?,
            protected: row.truth("protected")?,
            created_at: row.time("created_at")?,
            updated_at: row.time("updated_at")?,
            deleted_at: row.maybe_time("deleted_at")?,
            job: row.maybe_text("job")?,
            owner: row.text("owner")?,
        },
        spec: row.json("spec")?,
        claims: row.json("claims")?,
        status: row.json("status")?,
    })
}

/// The resource of this id, also one that is being deleted, but not one that has gone.
pub(super) async fn by_id(conn: &mut Conn, id: &str, lock: bool) -> Result<Option<Stored>, Error> {
    let lock = if lock { conn.for_update() } else { "" };
    let sql = format!("SELECT {COLUMNS} FROM resource r WHERE r.id = $1 AND r.gone_at IS NULL{lock}");
    Ok(conn.row(&sql, values![id]).await?.as_ref().map(stored).transpose()?)
}

/// The same, as this transaction has seen it: for what is only looked at.
pub(super) async fn seen(tx: &mut Tx, id: &str) -> Result<Option<Stored>, Error> {
    if let Some(object) = tx.seen(id) {
        return Ok(Some(object.clone()));
    }
    let found = by_id(tx, id, false).await?;
    found.iter().for_each(|object| tx.see(object));
    Ok(found)
}

/// The living resource of this kind, tenant and name.
pub(super) async fn by_name(
    conn: &mut Conn,
    kind: &str,
    tenant: &str,
    name: &str,
) -> Result<Option<Stored>, Error> {
    let sql = format!(
        "SELECT {COLUMNS} FROM live l JOIN resource r ON r.id = l.id \
         WHERE l.kind = $1 AND l.tenant = $2 AND l.name = $3"
    );
    Ok(conn.row(&sql, values![kind, tenant, name]).await?.as_ref().map(stored).transpose()?)
}

/// The tenant of this name, as this transaction has seen it.
pub(super) async fn tenant(tx: &mut Tx, name: &str) -> Result<Option<Stored>, Error> {
    let found = tx.seen_by(|core| core.kind == TENANT && core.name == name && core.deleted_at.is_none());
    if found.is_some() {
        return Ok(found.cloned());
    }
    let found = by_name(tx, TENANT, "", name).await?;
    found.iter().for_each(|object| tx.see(object));
    Ok(found)
}

/// The living resource that this name means to a tenant: its own, else the one that operators made for all.
pub(super) async fn by_name_for(
    conn: &mut Conn,
    meta: &Meta,
    tenant: &str,
    name: &str,
) -> Result<Option<Stored>, Error> {
    match meta.scope {
        Scope::Tenant | Scope::Apart => by_name(conn, meta.kind, tenant, name).await,
        Scope::Operator => by_name(conn, meta.kind, "", name).await,
        Scope::Both => {
            let sql = format!(
                "SELECT {COLUMNS} FROM live l JOIN resource r ON r.id = l.id WHERE l.kind = $1 \
                 AND l.tenant IN ($2, '') AND l.name = $3 ORDER BY l.tenant DESC LIMIT 1"
            );
            Ok(conn.row(&sql, values![meta.kind, tenant, name]).await?.as_ref().map(stored).transpose()?)
        }
    }
}

/// The resource that a right is about, by id or name. What the right does not let one see does not exist.
pub(super) async fn find(conn: &mut Conn, right: &Right, kind: &dyn Kind, id: &str) -> Result<Stored, Error> {
    let meta = kind.meta();
    let found = if id.starts_with(&format!("{}_", meta.prefix)) {
        by_id(conn, id, false).await?
    } else {
        by_name_for(conn, meta, right.tenant(), id).await?
    };
    let found = found.filter(|object| object.core.kind == meta.kind).ok_or(Error::NotFound)?;
    match right.all_tenants() || right.sees(meta.scope).contains(&found.core.tenant.as_str()) {
        true => right.judge(&found.core).map(|()| found),
        // Operators may see all of them, and are only at the wrong place.
        false if right.caller().operator => Err(Error::NotFound),
        false => Err(Error::Hidden { verb: "find".to_owned(), kind: meta.kind.to_owned() }),
    }
}

/// As `find`, but not what was only made for all: its history and its files are the operators'.
pub(super) async fn find_own(
    conn: &mut Conn,
    right: &Right,
    kind: &dyn Kind,
    id: &str,
) -> Result<Stored, Error> {
    let found = find(conn, right, kind, id).await?;
    right.may_change(&found.core)?;
    Ok(found)
}

/// As `find_own`, locked for a write.
pub(super) async fn find_for_write(
    tx: &mut Tx,
    right: &Right,
    kind: &dyn Kind,
    id: &str,
) -> Result<Stored, Error> {
    let found = find_own(tx, right, kind, id).await?;
    if !tx.is_postgres() {
        return Ok(found);
    }
    by_id(tx, &found.core.id, true).await?.ok_or(Error::NotFound)
}

/// Writes a new resource and its name. `false`: the name is taken.
pub(super) async fn insert(tx: &mut Tx, object: &Stored) -> Result<bool, Error> {
    let core = &object.core;
    tx.run(
        "INSERT INTO resource (id, kind, tenant, name, tags, metadata, generation, version, status_version, \
         phase, protected, spec, claims, status, job, created_at, updated_at, owner) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)",
        values![
            &core.id,
            &core.kind,
            &core.tenant,
            &core.name,
            text(&core.tags),
            &core.metadata,
            core.generation,
            core.version,
            core.status_version,
            &core.phase,
            core.protected,
            &object.spec,
            text(&object.claims),
            &object.status,
            core.job.clone(),
            core.created_at,
            core.updated_at,
            &core.owner,
        ],
    )
    .await?;
    let sql = "INSERT INTO live (id, kind, tenant, name) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
    let done = tx.run(sql, values![&core.id, &core.kind, &core.tenant, &core.name]).await?;
    write_labels(tx, object).await?;
    Ok(done == 1)
}

/// Writes what users may change, and what follows from it.
pub(super) async fn update(tx: &mut Tx, object: &Stored) -> Result<(), Error> {
    let core = &object.core;
    tx.run(
        "UPDATE resource SET name = $2, tags = $3, metadata = $4, generation = $5, version = $6, phase = $7, \
         protected = $8, spec = $9, claims = $10, job = $11, updated_at = $12, deleted_at = $13 WHERE id = $1",
        values![
            &core.id,
            &core.name,
            text(&core.tags),
            &core.metadata,
            core.generation,
            core.version,
            &core.phase,
            core.protected,
            &object.spec,
            text(&object.claims),
            core.job.clone(),
            core.updated_at,
            core.deleted_at,
        ],
    )
    .await?;
    tx.see(object);
    tx.ring(Bell::Resource(core.id.clone()));
    Ok(())
}

/// Writes what nodes report.
pub(super) async fn update_status(tx: &mut Tx, object: &mut Stored) -> Result<(), Error> {
    let core = &mut object.core;
    core.status_version += 1;
    tx.run(
        "UPDATE resource SET status = $2, status_version = $3, phase = $4 WHERE id = $1",
        values![&core.id, &object.status, core.status_version, &core.phase],
    )
    .await?;
    tx.ring(Bell::Resource(core.id.clone()));
    tx.see(object);
    Ok(())
}

/// The same, of many.
pub(super) async fn update_statuses(tx: &mut Tx, all: &mut [Stored]) -> Result<(), Error> {
    if all.is_empty() {
        return Ok(());
    }
    all.iter_mut().for_each(|object| object.core.status_version += 1);
    let row = |object: &Stored| {
        let core = &object.core;
        row![&core.id, &object.status, core.status_version, &core.phase]
    };
    let rows = padded(&all.iter().map(row).collect::<Vec<Vec<Cell>>>());
    let sql = format!(
        "UPDATE resource SET status = v.column2, status_version = v.column3, phase = v.column4 \
         FROM (VALUES {}) AS v WHERE resource.id = v.column1",
        places(rows.len(), 4, 1)
    );
    tx.run(&sql, &rows.concat()).await?;
    for object in all {
        tx.ring(Bell::Resource(object.core.id.clone()));
        tx.see(object);
    }
    Ok(())
}

/// Writes which job speaks for an object now.
pub(super) async fn set_job(tx: &mut Tx, id: &str, job: &str) -> Result<(), Error> {
    let sql = "UPDATE resource SET job = $2 WHERE id = $1 AND deleted_at IS NULL";
    tx.run(sql, values![id, job]).await?;
    tx.unsee(id);
    Ok(())
}

/// An object is gone; its row stays, for its history.
pub(super) async fn set_gone(tx: &mut Tx, context: &Context, id: &str) -> Result<(), Error> {
    tx.run("UPDATE resource SET gone_at = $2 WHERE id = $1", values![id, context.env.now()]).await?;
    tx.unsee(id);
    tx.ring(Bell::Resource(id.to_owned()));
    Ok(())
}

/// Writes the phases of these objects: pairs of id and phase.
pub(super) async fn set_phases(tx: &mut Tx, all: &[(String, String)]) -> Result<(), Error> {
    if all.is_empty() {
        return Ok(());
    }
    all.iter().for_each(|(id, _)| tx.unsee(id));
    let rows: Vec<Vec<Cell>> = padded(all).iter().map(|(id, phase)| row![id, phase]).collect();
    let sql = format!(
        "UPDATE resource SET phase = v.column2, status_version = status_version + 1 FROM (VALUES {}) AS v \
         WHERE resource.id = v.column1",
        places(rows.len(), 2, 1)
    );
    tx.run(&sql, &rows.concat()).await?;
    Ok(())
}

/// Those of these objects that have not gone, in the order of their ids, locked.
pub(super) async fn all_by_id(tx: &mut Tx, ids: &[String]) -> Result<Vec<Stored>, Error> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let (list, values) = list(ids);
    let lock = tx.for_update();
    let sql = format!(
        "SELECT {COLUMNS} FROM resource r WHERE r.id IN {list} AND r.gone_at IS NULL ORDER BY r.id{lock}"
    );
    Ok(tx.rows(&sql, &values).await?.iter().map(stored).collect::<Result<_, _>>()?)
}

// === references ===

/// One row of `reference`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Reference {
    pub(super) field: String,
    pub(super) target: String,
    pub(super) relation: Relation,
}

/// Replaces all references of an object, but for those to what it owns.
pub(super) async fn write_references(tx: &mut Tx, source: &str, all: &[Reference]) -> Result<(), Error> {
    tx.run("DELETE FROM reference WHERE source = $1 AND relation = 'uses'", values![source]).await?;
    all.iter().for_each(|reference| add_reference(tx, source, reference));
    Ok(())
}

const REFERENCE: Table = Table {
    name: "reference",
    columns: "source, field, target, relation",
    key: 2,
    tail: " ON CONFLICT (source, field) DO UPDATE SET target = excluded.target, relation = excluded.relation",
};

/// Adds one reference, or puts it in the place of the field's other one. The target must be living: the database
/// refuses anything else.
pub(super) fn add_reference(tx: &mut Tx, source: &str, reference: &Reference) {
    let relation = match reference.relation {
        Relation::Uses => "uses",
        Relation::Owns => "owns",
    };
    let row = row![source, &reference.field, &reference.target, relation];
    tx.later(&REFERENCE, row);
}

// === labels ===

/// Tags and scalars of metadata as filters see them: `tag.env`, `metadata.team.id`.
pub(super) fn labels(tags: &BTreeMap<String, String>, metadata: &Value) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, String> =
        tags.iter().map(|(key, value)| (format!("tag.{key}"), value.clone())).collect();
    flatten("metadata", metadata, &mut all);
    all
}

fn flatten(path: &str, value: &Value, into: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(key, value)| flatten(&format!("{path}.{key}"), value, into))
        }
        Value::String(text) => drop(into.insert(path.to_owned(), text.clone())),
        Value::Number(number) => drop(into.insert(path.to_owned(), number.to_string())),
        Value::Bool(truth) => drop(into.insert(path.to_owned(), truth.to_string())),
        Value::Null | Value::Array(_) => {}
    }
}

const LABEL: Table = Table::new("label", "resource, key, value, kind, tenant");

/// Replaces all labels of an object.
pub(super) async fn write_labels(tx: &mut Tx, object: &Stored) -> Result<(), Error> {
    let core = &object.core;
    if core.version > 1 {
        tx.run("DELETE FROM label WHERE resource = $1", values![&core.id]).await?;
    }
    for (key, value) in labels(&core.tags, &core.metadata) {
        let row = row![&core.id, key, value, &core.kind, &core.tenant];
        tx.later(&LABEL, row);
    }
    if OWNED.contains(&core.kind.as_str()) && !core.owner.is_empty() {
        tx.later(&LABEL, row![&core.id, OWNER_LABEL, &core.owner, &core.kind, &core.tenant]);
    }
    Ok(())
}

/// JSON text of something that always has one.
pub(super) fn text(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned())
}

/// An empty JSON object.
pub(super) fn empty() -> Value {
    Value::Object(Map::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_become_labels() {
        let tags = BTreeMap::from([("env".to_owned(), "prod".to_owned())]);
        let metadata = serde_json::json!({"team": {"id": 7, "list": [1]}, "on": true, "none": null});
        let all = labels(&tags, &metadata);
        let pairs: Vec<_> = all.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(pairs, ["metadata.on=true", "metadata.team.id=7", "tag.env=prod"]);
    }
}
