//! Who the spec names: found in the same transaction, handed to the kind as small facts, and written into
//! the spec as ids.

use serde_json::Value;

use super::create::{self, Maker};
use super::db::{Conn, values};
use super::objects::{self, Reference, by_name_for};
use super::tx::Tx;
use super::{Context, NewObject, assign, prefixes};
use crate::kernel::kind::Registry;
use crate::kernel::plan;
use crate::kernel::role::STAFF;
use crate::kernel::{Clash, Error, Fact, Facts, FieldError, Held, Kind, Ref, Stored, Target};

/// What was found out about a spec.
#[derive(Default)]
pub(super) struct Found {
    pub(super) facts: Facts,
    pub(super) references: Vec<Reference>,
    pub(super) errors: Vec<FieldError>,
}

/// Finds everyone whom `spec` names and puts their ids into it. What is not there but may be made is made.
pub(super) async fn resolve(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    kind: &dyn Kind,
    spec: &mut Value,
) -> Result<Found, Error> {
    let mut found = Found::default();
    for reference in kind.refs(spec) {
        let object = match search(tx, &context.registry, maker.tenant, &reference).await? {
            Some(object) => {
                tx.see(&object);
                Some(object).filter(|object| may_name(maker, &reference, object))
            }
            None => make(tx, context, maker, &reference).await?,
        };
        let Some(object) = object else {
            found.errors.push(FieldError::new(&reference.field, nobody(&reference)));
            continue;
        };
        set(spec, &reference.field, &object.core.id);
        found.references.push(Reference {
            field: reference.field.clone(),
            target: object.core.id.clone(),
            relation: reference.relation,
        });
        found.facts.0.insert(reference.field, fact(tx, context, object).await?);
    }
    Ok(found)
}

/// The facts of an object whose spec was resolved before.
pub(super) async fn known(
    tx: &mut Tx,
    context: &Context,
    kind: &dyn Kind,
    spec: &Value,
) -> Result<Facts, Error> {
    let mut facts = Facts::default();
    for reference in kind.refs(spec) {
        if let Target::Named(id) = &reference.target
            && let Some(object) = objects::seen(tx, id).await?
        {
            facts.0.insert(reference.field, fact(tx, context, object).await?);
        }
    }
    Ok(facts)
}

async fn fact(tx: &mut Tx, context: &Context, object: Stored) -> Result<Fact, Error> {
    // Where the others are held concerns nobody: any node may hold them.
    let alone = context.registry.get(&object.core.kind)?.meta().held == Held::Alone;
    let held_on = if alone { assign::holders(tx, &object.core.id).await? } else { Vec::new() };
    Ok(Fact {
        id: object.core.id,
        kind: object.core.kind,
        tenant: object.core.tenant,
        name: object.core.name,
        phase: object.core.phase,
        generation: object.core.generation,
        spec: object.spec,
        claims: object.claims,
        status: object.status,
        held_on,
    })
}

/// What somebody may not see is not there to be named either. What operators made for all is for all.
fn may_name(maker: &Maker<'_>, reference: &Ref, object: &Stored) -> bool {
    let (caller, core) = (maker.caller, &object.core);
    let by_id = matches!(&reference.target, Target::Named(name) if *name == core.id);
    match core.kind.as_str() {
        _ if caller.operator => true,
        // An id cannot be guessed: who knows it was told it. Nobody finds out who else is known here by trying names.
        "user" => {
            let home = object.spec["only_in"].as_str();
            (by_id || core.id == caller.user) && home.is_none_or(|home| home == maker.tenant)
        }
        kind if core.tenant.is_empty() => !STAFF.contains(&kind) || caller.lets("get", core, ""),
        _ => caller.lets("get", core, maker.tenant),
    }
}

async fn search(
    tx: &mut Tx,
    registry: &Registry,
    tenant: &str,
    reference: &Ref,
) -> Result<Option<Stored>, Error> {
    let meta = registry.get(reference.kind)?.meta();
    match &reference.target {
        Target::Named(name) if name.starts_with(&format!("{}_", meta.prefix)) => {
            let object = objects::seen(tx, name).await?;
            // Whatever another tenant owns does not exist here; nor does what is being deleted.
            Ok(object.filter(|o| {
                let own = o.core.tenant == tenant || o.core.tenant.is_empty();
                o.core.kind == reference.kind && own && o.core.deleted_at.is_none()
            }))
        }
        Target::Named(name) => by_name_for(tx, meta, tenant, name).await,
        Target::Default(by) => preferred(tx, reference.kind, tenant, *by).await,
        Target::WithRange(size) => with_range(tx, reference.kind, *size).await,
    }
}

/// The oldest of what operators keep that has a range left to hand out; an error with figures if all are given.
async fn with_range(tx: &mut Tx, kind: &str, size: Option<u8>) -> Result<Option<Stored>, Error> {
    let (mut all, mut names) = (0_u128, Vec::new());
    for object in all_of(tx, kind, "").await? {
        let length = object.spec["network_size"].as_u64().and_then(|length| u8::try_from(length).ok());
        let prefix = object.spec["prefix"].as_str().and_then(|prefix| prefix.parse().ok());
        let (Some(length), Some(prefix)) = (length, prefix) else { continue };
        if size.is_some_and(|size| size != length) || object.core.phase == "failed" {
            continue;
        }
        let ranges = plan::ranges(prefix, length);
        if u128::try_from(prefixes::count(tx, &object.core.id).await?).unwrap_or(0) < ranges {
            return Ok(Some(object));
        }
        all = all.saturating_add(ranges);
        names.push(format!("`{}`", object.core.name));
    }
    match (names.is_empty(), size) {
        (true, _) => Ok(None),
        (false, Some(size)) => Err(exhausted(all, &format!("ranges of /{size}"), &names)),
        (false, None) => Err(exhausted(all, "ranges", &names)),
    }
}

fn exhausted(all: u128, what: &str, names: &[String]) -> Error {
    let text =
        format!("all {all} {what} in {} are in use; an operator has to make another pool", names.join(", "));
    Clash::Exhausted(text).into()
}

/// Nothing was said: the one with the least value, or the oldest. Only for kinds that operators keep few of.
async fn preferred(
    conn: &mut Conn,
    kind: &str,
    tenant: &str,
    by: Option<&'static str>,
) -> Result<Option<Stored>, Error> {
    let mut all = all_of(conn, kind, tenant).await?;
    if let Some(key) = by {
        // A stable sort: among equals the oldest stays first.
        all.sort_by(|a, b| number(&a.spec, key).total_cmp(&number(&b.spec, key)));
    }
    Ok(all.into_iter().next())
}

/// The tenant's own and those that are there for all, the oldest first.
async fn all_of(conn: &mut Conn, kind: &str, tenant: &str) -> Result<Vec<Stored>, Error> {
    let sql = format!(
        "SELECT {} FROM live l JOIN resource r ON r.id = l.id WHERE l.kind = $1 AND l.tenant IN ($2, '') \
         ORDER BY r.id LIMIT 1000",
        objects::COLUMNS
    );
    let rows = conn.rows(&sql, values![kind, tenant]).await?;
    Ok(rows.iter().map(objects::stored).collect::<Result<Vec<_>, _>>()?)
}

fn number(spec: &Value, key: &str) -> f64 {
    spec.get(key).and_then(Value::as_f64).unwrap_or(f64::MAX)
}

async fn make(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    reference: &Ref,
) -> Result<Option<Stored>, Error> {
    let (Some(spec), Target::Named(name)) = (&reference.or_make, &reference.target) else { return Ok(None) };
    if maker.caller.may("create", reference.kind, maker.tenant).is_err() {
        return Ok(None);
    }
    let kind = context.registry.get(reference.kind)?;
    let body = NewObject { name: Some(name.clone()), spec: spec.clone(), ..NewObject::default() };
    // Two first instances at once: one makes it, the other finds it made when it tries again.
    let written = Box::pin(create::create(tx, context, maker, kind, body)).await;
    Ok(Some(written.map_err(|error| create::not_the_callers(error, name))?.object))
}

fn nobody(reference: &Ref) -> String {
    let kind = reference.kind.replace('-', " ");
    match &reference.target {
        Target::Named(name) => format!("there is no {kind} `{name}`"),
        Target::WithRange(Some(size)) => {
            format!(
                "there is no {kind} that hands out ranges of /{size}; say another size, or ask an operator for one"
            )
        }
        Target::Default(_) | Target::WithRange(None) => {
            format!("there is no {kind} to choose from; an operator has to make one")
        }
    }
}

/// Puts `value` at a dotted path (`spec.nics.lan.network`) below a spec; a number is the index of a list.
pub(super) fn set(spec: &mut Value, field: &str, value: &str) {
    let mut at = spec;
    for key in field.split('.').skip(1) {
        at = match at {
            Value::Array(list) => match key.parse::<usize>().ok().and_then(|index| list.get_mut(index)) {
                Some(item) => item,
                None => return,
            },
            Value::Object(map) => map.entry(key.to_owned()).or_insert(Value::Null),
            other => {
                *other = objects::empty();
                match other.as_object_mut() {
                    Some(map) => map.entry(key.to_owned()).or_insert(Value::Null),
                    None => return,
                }
            }
        };
    }
    *at = Value::String(value.to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_written_where_names_stood() {
        let mut spec =
            serde_json::json!({"nics": {"lan": {"network": "a"}}, "ssh_keys": ["k"], "root": null});
        set(&mut spec, "spec.nics.lan.network", "net_1");
        set(&mut spec, "spec.ssh_keys.0", "key_1");
        set(&mut spec, "spec.root.image", "img_1");
        set(&mut spec, "spec.pool", "pool_1");
        let wanted = serde_json::json!({
            "nics": {"lan": {"network": "net_1"}}, "ssh_keys": ["key_1"], "root": {"image": "img_1"}, "pool": "pool_1"
        });
        assert_eq!(spec, wanted);
    }
}
