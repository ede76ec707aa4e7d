//! Creating: everything that one POST means, in one transaction.

use std::collections::BTreeMap;

use serde_json::Value;

use super::change::{Asked, NewObject, Written};
use super::db::RETRY_MARK;
use super::jobs::{self, Intent};
use super::objects::Reference;
use super::phases::{self, Last};
use super::request::Write;
use super::secrets::{self, Fresh, Stage};
use super::tx::{Tx, apart};
use super::{
    Context, Store, claims, domains, facts, given, grants, history, nodes, objects, quota, realms, users,
    webhooks,
};
use crate::kernel::adopt::Adopted;
use crate::kernel::quota::{Exceeded, amounts};
use crate::kernel::webhook;
use crate::kernel::{
    Caller, Child, Clash, Error, Facts, FieldError, JobState, Kind, Meta, NameRule, Relation, ResourceCore,
    Right, Scope, Stored, Verb, name,
};

/// For whom something is made.
pub(super) struct Maker<'a> {
    pub(super) caller: &'a Caller,
    pub(super) tenant: &'a str,
    pub(super) asked: &'a Asked,
}

impl<'a> Maker<'a> {
    pub(super) fn of(right: &'a Right, asked: &'a Asked) -> Maker<'a> {
        Maker { caller: right.caller(), tenant: right.tenant(), asked }
    }
}

impl Store {
    /// Makes an object. The answer carries the addresses that it was given.
    pub async fn create(
        &self,
        right: &Right,
        kind: &'static dyn Kind,
        body: NewObject,
        asked: &Asked,
    ) -> Result<Written, Error> {
        self.written(right, Write::Create { kind, body }, asked).await
    }
}

/// What was found out about a draft, and what is wrong with it.
pub(super) struct Draft {
    pub(super) object: Stored,
    pub(super) facts: Facts,
    pub(super) references: Vec<Reference>,
    /// What is to be sealed, once nothing is wrong.
    pub(super) fresh: Vec<Fresh>,
    pub(super) errors: Vec<FieldError>,
}

pub(super) async fn create(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    kind: &'static dyn Kind,
    body: NewObject,
) -> Result<Written, Error> {
    create_as(tx, context, maker, kind, body, None).await
}

/// As `create`; or a record of what a node holds already: under its own id, with what it has, and nothing to be done.
pub(super) async fn create_as(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    kind: &'static dyn Kind,
    body: NewObject,
    there: Option<&Adopted>,
) -> Result<Written, Error> {
    let meta = kind.meta();
    let tenant = tenant_of(tx, meta, maker.tenant).await?;
    let mut errors = envelope_errors(meta, body.name.as_deref(), &body.tags);
    let name = body.name.clone().unwrap_or_else(|| name::generate(&context.env, meta.kind, meta.name));
    let mut object = new_object(context, meta, maker, name, body);
    if let Some(there) = there {
        as_it_is(&mut object, there);
    }
    let spec = std::mem::replace(&mut object.spec, objects::empty());
    let stage = if there.is_some() { Stage::Found } else { Stage::New };
    let mut draft = drafted(tx, context, maker, kind, object, &spec, stage).await?;
    errors.append(&mut draft.errors);
    object = draft.object;
    let mut plan = kind.create(&object, &draft.facts)?;
    if let Some(there) = there {
        plan.steps.clear();
        plan.values.extend(there.values.clone());
    }
    errors.extend(plan.errors.iter().cloned());
    let free = insert(tx, context, &object, !plan.steps.is_empty(), errors.is_empty()).await?;
    let mut exceeded = Vec::new();
    if let Some(tenant) = &tenant {
        let wanted = amounts(meta, &plan);
        let whose = (tenant.target.as_str(), &object);
        gathered(quota::take(tx, context, maker.caller, whose, &wanted).await, &mut exceeded)?;
    }
    if free {
        draft.references.extend(tenant);
        draft.references.iter().for_each(|one| objects::add_reference(tx, &object.core.id, one));
    }
    let claimed = claims::resolve(tx, context, &mut object, &plan.claims).await;
    let children =
        make_children(tx, context, maker, (&object, there), &plan.children, &mut errors, &mut exceeded)
            .await?;
    match claimed {
        Ok(clashes) => errors.extend(clashes),
        Err(_) if !exceeded.is_empty() => {}
        Err(error) if errors.is_empty() => return Err(error),
        Err(_) => {}
    }
    if !errors.is_empty() {
        errors.sort();
        errors.dedup();
        return Err(Error::Invalid(errors));
    }
    if !free {
        return Err(Clash::NameTaken(object.core.name).into());
    }
    if !exceeded.is_empty() {
        return Err(Clash::QuotaExceeded(exceeded).into());
    }
    for (child, id) in children {
        let reference =
            Reference { field: format!("child.{}", child.key), target: id.clone(), relation: Relation::Owns };
        objects::add_reference(tx, &object.core.id, &reference);
        object.claims.insert(child.key, Value::String(id));
    }
    object.claims.extend(plan.values);
    if meta.kind == nodes::KIND {
        nodes::made(tx, &object.core.id).await?;
    }
    secrets::keep(tx, context, &object.core.id, &draft.fresh).await?;
    let mut made = secrets::made(draft.fresh);
    if meta.kind == "token" {
        made.push(("token".to_owned(), users::new_secret(tx, context, &object).await?));
    }
    let intent = Intent::new(Verb::Create, plan.steps);
    let written = finish(tx, context, maker, object, intent, &draft.facts).await?;
    Ok(Written { made, ..written })
}

/// It is what it is on its node, and its orders count there because their numbers are higher.
fn as_it_is(object: &mut Stored, there: &Adopted) {
    object.core.id.clone_from(&there.id);
    object.core.generation = there.generation + 1;
    object.claims.clone_from(&there.claims);
    object.claims.insert("placement_epoch".into(), (there.placement_epoch + 1).into());
}

/// The row is there before what it claims refers to it, as it most likely stays. All of it goes if anything is wrong:
/// then its spec, of which nobody knows what it holds, is in none of the database's files.
async fn insert(
    tx: &mut Tx,
    context: &Context,
    object: &Stored,
    has_steps: bool,
    good: bool,
) -> Result<bool, Error> {
    let mut row = object.clone();
    if good {
        let last = has_steps.then_some((&Verb::Create, JobState::Running));
        row.core.phase = phases::now(context, object, last)?;
    } else {
        row.spec = objects::empty();
    }
    objects::insert(tx, &row).await
}

/// Limits that were met are gathered, so that all of them are told at once.
fn gathered(outcome: Result<(), Error>, exceeded: &mut Vec<Exceeded>) -> Result<(), Error> {
    match outcome {
        Err(Error::Clash(Clash::QuotaExceeded(list))) => exceeded.extend(list),
        other => return other,
    }
    Ok(())
}

/// The end of every write: history, job, phase, the row.
pub(super) async fn finish(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    mut object: Stored,
    intent: Intent,
    facts: &Facts,
) -> Result<Written, Error> {
    let verb = intent.verb.clone();
    if object.core.kind == objects::TENANT && verb != Verb::Remove {
        quota::set_limits(tx, &object.core.id, &object.spec["quota"]).await?;
    }
    if object.core.kind == objects::TENANT {
        domains::wrote(tx, context, &object).await?;
        given::wrote(tx, &mut object).await?;
    }
    if object.core.kind == webhook::KIND {
        webhooks::wrote(tx, context, &mut object, &verb).await?;
    }
    grants::wrote(tx, context, maker, &object, &verb).await?;
    let job = if intent.steps.is_empty() {
        let last = phases::last(tx, &object).await?;
        object.core.phase = phases::now(context, &object, last.as_ref().map(Last::place))?;
        None
    } else {
        let (job, state) = apart(tx, |tx| jobs::submit(tx, context, maker, &object, intent, facts)).await?;
        object.core.phase = phases::now(context, &object, Some((&verb, state)))?;
        object.core.job = Some(job.clone());
        Some(job)
    };
    objects::update(tx, &object).await?;
    if object.core.kind == objects::TENANT && verb == Verb::Update {
        // No job will do it.
        claims::drop_stale(tx, std::slice::from_ref(&object.core.id)).await?;
    }
    history::record(tx, context, maker, &object, &verb, job.as_deref());
    Ok(Written { object, job, changed: true, made: Vec::new() })
}

/// Checks a spec, finds whom it names, fills in its defaults, and gathers all that is wrong.
pub(super) async fn drafted(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    kind: &'static dyn Kind,
    mut object: Stored,
    spec: &Value,
    stage: Stage,
) -> Result<Draft, Error> {
    let mut errors = context.registry.check_spec(kind.meta().kind, spec);
    let mut readable = if errors.is_empty() { spec.clone() } else { without(spec, &errors) };
    let fresh = secrets::take(tx, context, kind, &object.core, &mut readable, stage, &mut errors).await?;
    let complete = match kind.complete(&readable) {
        Ok(complete) => complete,
        Err(error) => {
            // The schema has said it better already, if it said anything.
            if errors.is_empty() {
                errors.push(error);
            }
            errors.sort();
            return Err(Error::Invalid(errors));
        }
    };
    object.spec = complete;
    object.claims.extend(secrets::known(kind, &fresh));
    let found = facts::resolve(tx, context, maker, kind, &mut object.spec).await?;
    errors.extend(found.errors);
    // A kind judges a secret as it was given; what it answers is about fields, and never holds their values.
    let given = secrets::given(&object, &fresh);
    errors.extend(kind.validate(given.as_ref().unwrap_or(&object), &found.facts, stage != Stage::Changed));
    if errors.is_empty() {
        errors.extend(webhooks::judged(context, &object));
        errors.extend(domains::judged(context, given.as_ref().unwrap_or(&object)));
        errors.extend(realms::judged(context, &object));
    }
    Ok(Draft { object, facts: found.facts, references: found.references, fresh, errors })
}

/// The spec without the fields that its schema refuses, so that what else is wrong can be told too.
fn without(spec: &Value, errors: &[FieldError]) -> Value {
    let mut rest = spec.clone();
    for error in errors {
        let pointer = error.field.replacen("spec", "", 1).replace('.', "/");
        let Some((parent, key)) = pointer.rsplit_once('/') else { continue };
        match rest.pointer_mut(parent) {
            Some(Value::Object(map)) => drop(map.remove(key)),
            Some(Value::Array(list)) => list.clear(),
            _ => {}
        }
    }
    rest
}

async fn make_children(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    (object, there): (&Stored, Option<&Adopted>),
    children: &[Child],
    errors: &mut Vec<FieldError>,
    exceeded: &mut Vec<Exceeded>,
) -> Result<Vec<(Child, String)>, Error> {
    let mut made = Vec::new();
    for child in children {
        let kind = context.registry.get(child.kind)?;
        let mut wanted = child.name.clone();
        wanted.truncate(63);
        if objects::by_name(tx, child.kind, &object.core.tenant, &wanted).await?.is_some() {
            wanted.truncate(50);
            wanted = format!("{wanted}-{}", context.env.below(1 << 32));
        }
        let body = NewObject { name: Some(wanted.clone()), spec: child.spec.clone(), ..NewObject::default() };
        let there = there.and_then(|there| there.children.get(&child.key));
        let made_one = Box::pin(create_as(tx, context, maker, kind, body, there)).await;
        match made_one.map_err(|e| not_the_callers(e, &wanted)) {
            Ok(written) => made.push((child.clone(), written.object.core.id)),
            Err(Error::Invalid(list)) => {
                errors.extend(list.into_iter().map(|error| FieldError {
                    field: error.field.replacen("spec", &child.field, 1),
                    ..error
                }))
            }
            Err(error) => gathered(Err(error), exceeded)?,
        }
    }
    Ok(made)
}

/// Somebody else has just taken the name of what is made beside an object: nothing that the caller could mend. The write
/// is done again, and finds what is there.
pub(super) fn not_the_callers(error: Error, name: &str) -> Error {
    match error {
        Error::Clash(Clash::NameTaken(taken)) if taken == name => {
            Error::Unavailable(format!("{RETRY_MARK}somebody else has just made `{taken}`"))
        }
        error => error,
    }
}

/// The reference to the tenant that every object of one has; an error if there is no such tenant.
async fn tenant_of(tx: &mut Tx, meta: &Meta, tenant: &str) -> Result<Option<Reference>, Error> {
    if tenant.is_empty() {
        return if meta.scope == Scope::Tenant { Err(Error::NotFound) } else { Ok(None) };
    }
    let found = objects::tenant(tx, tenant).await?.ok_or(Error::NotFound)?;
    if found.core.deleted_at.is_some() {
        return Err(Clash::WrongState(format!("the tenant `{tenant}` is being deleted")).into());
    }
    let reference = Reference { field: "tenant".into(), target: found.core.id, relation: Relation::Uses };
    Ok(Some(reference))
}

fn new_object(context: &Context, meta: &Meta, maker: &Maker<'_>, name: String, body: NewObject) -> Stored {
    let now = context.env.now();
    Stored {
        core: ResourceCore {
            id: context.env.id(meta.prefix),
            kind: meta.kind.to_owned(),
            tenant: maker.tenant.to_owned(),
            name,
            tags: body.tags,
            metadata: if body.metadata.is_null() { objects::empty() } else { body.metadata },
            generation: 1,
            version: 1,
            status_version: 0,
            phase: String::new(),
            protected: body.protected,
            created_at: now,
            updated_at: now,
            deleted_at: None,
            job: None,
            owner: maker.caller.user.clone(),
        },
        spec: body.spec,
        claims: serde_json::Map::new(),
        status: Value::Null,
    }
}

/// What is wrong with a name and tags.
pub(super) fn envelope_errors(
    meta: &Meta,
    name: Option<&str>,
    tags: &BTreeMap<String, String>,
) -> Vec<FieldError> {
    let mut errors = Vec::new();
    match name {
        Some(name) => {
            errors.extend(name::refuse(name, meta.name).map(|reason| FieldError::new("name", reason)))
        }
        None if meta.name == NameRule::Alphanumeric => {
            errors.push(FieldError::new("name", format!("a {} needs a name", meta.kind)));
        }
        None => {}
    }
    for (key, value) in tags {
        if key.is_empty() || key.len() > 128 || value.len() > 1024 {
            errors.push(FieldError::new(
                format!("tags.{key}"),
                "keys have 1 to 128 bytes, values at most 1,024; put more into metadata",
            ));
        }
    }
    errors
}
