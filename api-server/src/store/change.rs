//! Changing: PATCH, restore and actions. What one request means, in one transaction.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::create::{Maker, drafted, envelope_errors, finish};
use super::db::values;
use super::jobs::Intent;
use super::plan::differing;
use super::request::Write;
use super::secrets::Stage;
use super::tx::Tx;
use super::{Context, Store, claims, drain, facts, nodes, objects, quota, secrets, suspend};
use crate::kernel::quota::amounts;
use crate::kernel::resource::Call;
use crate::kernel::secret::Plain;
use crate::kernel::{Change, Clash, Error, FieldError, Kind, Plan, Right, Stored, Verb};

/// A body of a POST.
#[derive(Clone, Debug, Default)]
pub struct NewObject {
    /// Generated if none is given.
    pub name: Option<String>,
    /// Filters look at these.
    pub tags: BTreeMap<String, String>,
    /// The customer's own JSON.
    pub metadata: Value,
    /// Refuses deletion while true.
    pub protected: bool,
    /// What is wanted.
    pub spec: Value,
}

/// The circumstances of a request, for history.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// As answered in `x-request-id`.
    pub request_id: String,
    /// Why, in the caller's words.
    pub reason: Option<String>,
    /// The address that the request came from.
    pub source: String,
}

/// What a write did.
#[derive(Clone, Debug)]
pub struct Written {
    /// The object as it is now.
    pub object: Stored,
    /// The job that makes it so; none when it is so already.
    pub job: Option<String>,
    /// False: the request asked for what was there.
    pub changed: bool,
    /// Secrets that were made because none was given, by their field: to be shown now, and never again.
    pub made: Vec<(String, Plain)>,
}

impl Store {
    /// Applies a merge patch (RFC 7396) of `name`, `tags`, `metadata`, `protected`, `spec`.
    pub async fn update(
        &self,
        right: &Right,
        kind: &'static dyn Kind,
        id: &str,
        patch: Value,
        if_match: Option<i64>,
        asked: &Asked,
    ) -> Result<Written, Error> {
        self.written(right, Write::Update { kind, id: id.to_owned(), patch, if_match }, asked).await
    }

    /// Makes name, tags, metadata and spec what they were at `version`.
    pub async fn restore(
        &self,
        right: &Right,
        kind: &'static dyn Kind,
        id: &str,
        version: i64,
        asked: &Asked,
    ) -> Result<Written, Error> {
        let write = Write::Restore { kind, id: id.to_owned(), version, if_match: None };
        self.written(right, write, asked).await
    }

    /// Carries out an action.
    #[allow(clippy::too_many_arguments)] // One for each part of the request.
    pub async fn act(
        &self,
        right: &Right,
        kind: &'static dyn Kind,
        id: &str,
        call: Call,
        supersede: bool,
        if_match: Option<i64>,
        asked: &Asked,
    ) -> Result<Written, Error> {
        self.written(right, Write::Act { kind, id: id.to_owned(), call, supersede, if_match }, asked).await
    }
}

pub(super) async fn update(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    kind: &'static dyn Kind,
    old: Stored,
    patch: &Value,
) -> Result<Written, Error> {
    let mut document = document(&old);
    json_patch::merge(&mut document, patch);
    apply(tx, context, maker, kind, old, &document).await
}

/// As `update`, with these in the place of whole parts.
pub(super) async fn replace(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    kind: &'static dyn Kind,
    old: Stored,
    parts: impl IntoIterator<Item = (&str, Value)> + Send,
) -> Result<Written, Error> {
    let mut document = document(&old);
    for (part, value) in parts {
        document[part] = value;
    }
    apply(tx, context, maker, kind, old, &document).await
}

pub(super) async fn restore(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    kind: &'static dyn Kind,
    old: Stored,
    version: i64,
) -> Result<Written, Error> {
    let sql = "SELECT name, tags, metadata, spec FROM revision WHERE resource = $1 AND version = $2";
    let row = tx.row(sql, values![&old.core.id, version]).await?.ok_or(Error::NotFound)?;
    let mut parts = vec![("name", json!(row.text("name")?))];
    for part in ["tags", "metadata", "spec"] {
        parts.push((part, row.json(part)?));
    }
    replace(tx, context, maker, kind, old, parts).await
}

pub(super) async fn act(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    kind: &'static dyn Kind,
    mut object: Stored,
    call: &Call,
    supersede: bool,
) -> Result<Written, Error> {
    suspend::touched(maker, &mut object)?;
    do_act(tx, context, maker, kind, object, call, supersede).await
}

/// As `act`, whoever may.
pub(super) async fn do_act(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    kind: &'static dyn Kind,
    mut object: Stored,
    call: &Call,
    supersede: bool,
) -> Result<Written, Error> {
    refuse_unmade(&object)?;
    let plan = kind.act(&object, call)?;
    let mut intent = Intent::new(Verb::Act(call.verb.clone()), plan.steps);
    (intent.hard, intent.supersede) = (call.hard, supersede);
    if let Some(spec) = plan.spec {
        object.spec = spec;
    }
    object.claims.extend(plan.values);
    object.core.generation += 1;
    object.core.version += 1;
    object.core.updated_at = context.env.now();
    if object.core.kind == nodes::KIND && call.verb == drain::VERB {
        intent.steps = drain::begin(tx, context, maker, &object, call).await?;
    }
    if object.core.kind == objects::TENANT {
        intent.steps = suspend::act(tx, context, maker, &mut object, call).await?;
    }
    let facts = facts::known(tx, context, kind, &object.spec).await?;
    finish(tx, context, maker, object, intent, &facts).await
}

/// The object, if it may still be changed, at the version that the caller knows.
pub(super) async fn changeable(
    tx: &mut Tx,
    right: &Right,
    kind: &'static dyn Kind,
    id: &str,
    if_match: Option<i64>,
) -> Result<Stored, Error> {
    let object = objects::find_for_write(tx, right, kind, id).await?;
    if object.core.deleted_at.is_some() {
        return Err(Clash::WrongState("it is being deleted".to_owned()).into());
    }
    match if_match {
        Some(known) if known != object.core.version => {
            Err(Error::Stale { known: known.to_string(), current: object.core.version })
        }
        _ => Ok(object),
    }
}

/// What a failed creation left behind holds its claims and nothing on any node: there is nothing to change, start
/// or stop.
fn refuse_unmade(object: &Stored) -> Result<(), Error> {
    if object.core.phase != "failed" {
        return Ok(());
    }
    let job = object.core.job.as_deref().unwrap_or_default();
    let text = format!("its creation failed: retry its job {job}, or delete it");
    Err(Clash::WrongState(text).into())
}

/// What users may change, as one document.
fn document(object: &Stored) -> Value {
    json!({
        "name": object.core.name,
        "tags": object.core.tags,
        "metadata": object.core.metadata,
        "protected": object.core.protected,
        "spec": object.spec,
    })
}

async fn apply(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    kind: &'static dyn Kind,
    old: Stored,
    document: &Value,
) -> Result<Written, Error> {
    let meta = kind.meta();
    let mut new = old.clone();
    let mut errors = read_envelope(document, &mut new);
    errors.extend(envelope_errors(meta, Some(&new.core.name), &new.core.tags));
    if meta.name == crate::kernel::NameRule::Alphanumeric && new.core.name != old.core.name {
        errors.push(FieldError::new("name", "never changes for this kind"));
    }
    let draft = drafted(tx, context, maker, kind, new, &document["spec"], Stage::Changed).await?;
    let mut new = draft.object;
    errors.extend(draft.errors);
    let spec_changed = new.spec != old.spec;
    let (mut plan, mut doing, mut exceeded) = (Plan::default(), Verb::Update, Ok(()));
    if spec_changed {
        refuse_unmade(&old)?;
        suspend::touched(maker, &mut new)?;
        errors.extend(immutable_changes(meta.fields, &old.spec, &new.spec));
        new.core.generation += 1;
        plan = kind.update(&old, &new, &draft.facts)?;
        errors.append(&mut plan.errors);
        if !new.core.tenant.is_empty() {
            let wanted = amounts(meta, &plan);
            exceeded = quota::retake(tx, context, maker.caller, &new, &wanted).await;
        }
        if let Some(verb) = kind.amounts_to(&old, &new)? {
            doing = Verb::Act(verb.to_owned());
            as_the_verb(kind, &old, &new, verb, &mut plan);
        }
        if errors.is_empty() {
            write_references(tx, &old.core.id, draft.references).await?;
        }
        match claims::resolve(tx, context, &mut new, &plan.claims).await {
            Ok(clashes) => errors.extend(clashes),
            Err(_) if exceeded.is_err() => {}
            Err(error) if errors.is_empty() => return Err(error),
            Err(_) => {}
        }
    }
    if !errors.is_empty() {
        errors.sort();
        errors.dedup();
        return Err(Error::Invalid(errors));
    }
    exceeded?;
    if !spec_changed && same_envelope(&old, &new) {
        return Ok(Written { job: None, object: old, changed: false, made: Vec::new() });
    }
    if new.core.name != old.core.name {
        rename(tx, &new).await?;
    }
    new.claims.extend(plan.values);
    new.core.version += 1;
    new.core.updated_at = context.env.now();
    objects::write_labels(tx, &new).await?;
    secrets::keep(tx, context, &new.core.id, &draft.fresh).await?;
    let written = finish(tx, context, maker, new, Intent::new(doing, plan.steps), &draft.facts).await?;
    Ok(Written { made: secrets::made(draft.fresh), ..written })
}

/// A change that is nothing but what a verb does is done as the verb does it: same steps, same outcome.
fn as_the_verb(kind: &dyn Kind, old: &Stored, new: &Stored, verb: &str, plan: &mut Plan) {
    let call = Call { verb: verb.to_owned(), ..Call::default() };
    if let Ok(said) = kind.act(old, &call)
        && said.spec.as_ref() == Some(&new.spec)
    {
        plan.steps = said.steps;
        plan.values.extend(said.values);
    }
}

/// References of the spec, and that to the tenant, which no spec names.
async fn write_references(tx: &mut Tx, id: &str, mut all: Vec<objects::Reference>) -> Result<(), Error> {
    let sql = "SELECT field, target FROM reference WHERE source = $1 AND field IN ('tenant', 'node')";
    for row in tx.rows(sql, values![id]).await? {
        let (field, target) = (row.text("field")?, row.text("target")?);
        all.push(objects::Reference { field, target, relation: crate::kernel::Relation::Uses });
    }
    objects::write_references(tx, id, &all).await
}

fn same_envelope(old: &Stored, new: &Stored) -> bool {
    let (a, b) = (&old.core, &new.core);
    a.name == b.name && a.tags == b.tags && a.metadata == b.metadata && a.protected == b.protected
}

fn read_envelope(document: &Value, into: &mut Stored) -> Vec<FieldError> {
    let mut errors = Vec::new();
    match document["name"].as_str() {
        Some(name) => into.core.name = name.to_owned(),
        None => errors.push(FieldError::new("name", "must be a text; a name cannot be taken away")),
    }
    match serde_json::from_value(document["tags"].clone()) {
        Ok(tags) => into.core.tags = tags,
        Err(_) if document["tags"].is_null() => into.core.tags.clear(),
        Err(_) => errors.push(FieldError::new("tags", "must map texts to texts")),
    }
    into.core.metadata =
        if document["metadata"].is_null() { objects::empty() } else { document["metadata"].clone() };
    match &document["protected"] {
        Value::Bool(protected) => into.core.protected = *protected,
        Value::Null => into.core.protected = false,
        _ => errors.push(FieldError::new("protected", "must be true or false")),
    }
    errors
}

async fn rename(tx: &mut Tx, object: &Stored) -> Result<(), Error> {
    let core = &object.core;
    let sql = "SELECT id FROM live WHERE kind = $1 AND tenant = $2 AND name = $3";
    if tx.row(sql, values![&core.kind, &core.tenant, &core.name]).await?.is_some() {
        return Err(Clash::NameTaken(core.name.clone()).into());
    }
    tx.run("UPDATE live SET name = $2 WHERE id = $1", values![&core.id, &core.name]).await?;
    Ok(())
}

/// An error for each immutable field that differs.
fn immutable_changes(fields: &[(&str, Change)], old: &Value, new: &Value) -> Vec<FieldError> {
    let immutable = fields.iter().filter(|(_, change)| *change == Change::Immutable);
    let mut changed = Vec::new();
    for (path, _) in immutable {
        let keys: Vec<&str> = path.split('.').collect();
        differing("spec".to_owned(), &keys, old, new, &mut changed);
    }
    let reason = |field: &str| {
        let was = old.pointer(&field.replacen("spec", "", 1).replace('.', "/")).unwrap_or(&Value::Null);
        format!("cannot be changed (it is {was}); make a new object instead")
    };
    changed.into_iter().map(|field| FieldError { reason: reason(&field), field }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn immutable_fields_are_found_by_path() {
        let fields =
            [("image", Change::Immutable), ("nics.*.mac", Change::Immutable), ("vcpus", Change::NeedsStop)];
        let old = json!({"image": "a", "vcpus": 1, "nics": {"lan": {"mac": 1}, "old": {"mac": 2}}});
        let new = json!({"vcpus": 2, "nics": {"lan": {"mac": 3}, "new": {"mac": 4}}});
        let fields: Vec<_> = immutable_changes(&fields, &old, &new).into_iter().map(|e| e.field).collect();
        assert_eq!(fields, ["spec.image", "spec.nics.lan.mac"]);
    }
}
