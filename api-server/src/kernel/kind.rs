//! The same interface without its types: what the store, the front and the channel hold of a kind.

use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};

use serde_json::{Map, Value};
use utoipa::openapi::{RefOr, Schema};

use super::adopt::Adopted;
use super::resource::{Call, Choice, Meta, Object, Resource, ResourceCore};
use super::schema::Checks;
use super::secret;
use super::{Error, Facts, FieldError, Order, Plan, Ref};

/// A resource as it is stored.
#[derive(Clone, Debug, Default)]
pub struct Stored {
    /// What every resource has.
    pub core: ResourceCore,
    /// What is wanted.
    pub spec: Value,
    /// What was given to it.
    pub claims: Map<String, Value>,
    /// What was last reported.
    pub status: Value,
}

impl Stored {
    /// True until it is written whole for the first time.
    pub fn is_new(&self) -> bool {
        self.core.phase.is_empty()
    }
}

/// Schemas of a kind, for the document and for checking bodies.
pub struct Schemas {
    /// Name and schema of the spec.
    pub spec: (String, RefOr<Schema>),
    /// Name and schema of the status.
    pub status: (String, RefOr<Schema>),
    /// What they refer to.
    pub parts: Vec<(String, RefOr<Schema>)>,
}

/// A kind, its types erased. Each method is that of `Resource`.
pub trait Kind: Send + Sync {
    /// What it says of itself.
    fn meta(&self) -> &'static Meta;
    /// What its verbs leave to whoever says them.
    fn choices(&self) -> &'static [Choice];
    /// Its schemas.
    fn schemas(&self) -> Schemas;
    /// The spec with its defaults filled in, or why it cannot be read.
    fn complete(&self, spec: &Value) -> Result<Value, FieldError>;
    /// Whom the spec names.
    fn refs(&self, spec: &Value) -> Vec<Ref>;
    /// All that is wrong.
    fn validate(&self, object: &Stored, facts: &Facts, creating: bool) -> Vec<FieldError>;
    /// What is to be done to make it.
    fn create(&self, object: &Stored, facts: &Facts) -> Result<Plan, Error>;
    /// What is to be done to change it.
    fn update(&self, old: &Stored, new: &Stored, facts: &Facts) -> Result<Plan, Error>;
    /// What is to be done to take it away.
    fn remove(&self, object: &Stored) -> Result<Plan, Error>;
    /// What an action does.
    fn act(&self, object: &Stored, call: &Call) -> Result<Plan, Error>;
    /// The action that a change amounts to.
    fn amounts_to(&self, old: &Stored, new: &Stored) -> Result<Option<&'static str>, Error>;
    /// What a node is to hold for it.
    fn order(&self, object: &Stored, facts: &Facts) -> Result<Option<Order>, Error>;
    /// How a report changes its status.
    fn observe(&self, object: &mut Stored, report: &[u8]) -> Result<(), Error>;
    /// What others have to know of it.
    fn told(&self, object: &Stored) -> Result<Option<String>, Error>;
    /// The phase when no job is at work on it.
    fn settled(&self, object: &Stored) -> &'static str;
    /// What a record is of what a node holds already.
    fn adopted(&self, id: &str, found: &[u8]) -> Result<Adopted, String>;
    /// The status as users see it.
    fn show(&self, object: &Stored) -> Value;
    /// A secret for a field that was left out, if the kind makes one.
    fn make_secret(&self, path: &str, random: [u8; 32]) -> Option<secret::Made>;
    /// Ids of the secrets whose markers stand in an order of it.
    fn sealed_in(&self, body: &[u8]) -> BTreeSet<String>;
    /// What everybody may know of a secret.
    fn known_of(&self, path: &str, secret: &str) -> Option<String>;
}

/// All kinds, by name.
#[derive(Clone)]
pub struct Registry {
    list: Vec<&'static dyn Kind>,
    by_kind: BTreeMap<&'static str, &'static dyn Kind>,
    checks: Checks,
    secrets: Arc<BTreeMap<&'static str, OnceLock<Vec<String>>>>,
}

struct Erased<R>(PhantomData<fn() -> R>);

/// A kind without its types.
pub fn erased<R: Resource>() -> &'static dyn Kind {
    Box::leak(Box::new(Erased::<R>(PhantomData)))
}

// === impl Registry ===

impl Registry {
    /// A registry of these kinds, in this order.
    pub fn new(list: Vec<&'static dyn Kind>) -> Registry {
        let by_kind = list.iter().map(|kind| (kind.meta().kind, *kind)).collect();
        let checks = Checks::of(&list);
        let secrets = Arc::new(list.iter().map(|kind| (kind.meta().kind, OnceLock::new())).collect());
        Registry { list, by_kind, checks, secrets }
    }

    pub(super) fn checks(&self) -> &Checks {
        &self.checks
    }

    /// Paths below `spec` of the fields of a kind that hold secrets.
    pub fn secrets(&self, kind: &dyn Kind) -> &[String] {
        match self.secrets.get(kind.meta().kind) {
            Some(slot) => slot.get_or_init(|| secret::paths(kind.schemas())),
            None => &[],
        }
    }

    /// All, in the order of the list.
    pub fn all(&self) -> &[&'static dyn Kind] {
        &self.list
    }

    /// The kind of this name.
    pub fn get(&self, kind: &str) -> Result<&'static dyn Kind, Error> {
        self.by_kind
            .get(kind)
            .copied()
            .ok_or_else(|| Error::Internal(format!("no kind `{kind}` in the registry")))
    }
}

// === impl Kind for Erased ===

impl<R: Resource> Kind for Erased<R> {
    fn meta(&self) -> &'static Meta {
        &R::META
    }

    fn choices(&self) -> &'static [Choice] {
        R::CHOICES
    }

    fn schemas(&self) -> Schemas {
        let mut parts = Vec::new();
        <R::Spec as utoipa::ToSchema>::schemas(&mut parts);
        <R::Status as utoipa::ToSchema>::schemas(&mut parts);
        let spec = <R::Spec as utoipa::PartialSchema>::schema();
        let status = <R::Status as utoipa::PartialSchema>::schema();
        let name = |part: String| format!("{}{part}", pascal(R::META.kind));
        Schemas { spec: (name("Spec".into()), spec), status: (name("Status".into()), status), parts }
    }

    fn complete(&self, spec: &Value) -> Result<Value, FieldError> {
        let typed: R::Spec =
            serde_json::from_value(spec.clone()).map_err(|e| FieldError::new("spec", e.to_string()))?;
        serde_json::to_value(typed).map_err(|e| FieldError::new("spec", e.to_string()))
    }

    fn refs(&self, spec: &Value) -> Vec<Ref> {
        serde_json::from_value::<R::Spec>(spec.clone()).map(|spec| R::refs(&spec)).unwrap_or_default()
    }

    fn validate(&self, object: &Stored, facts: &Facts, creating: bool) -> Vec<FieldError> {
        match R::load(object) {
            Ok(object) => R::validate(&object, facts, creating),
            Err(error) => vec![FieldError::new("spec", error.to_string())],
        }
    }

    fn create(&self, object: &Stored, facts: &Facts) -> Result<Plan, Error> {
        Ok(R::create(&loaded::<R>(object)?, facts))
    }

    fn update(&self, old: &Stored, new: &Stored, facts: &Facts) -> Result<Plan, Error> {
        Ok(R::update(&loaded::<R>(old)?, &loaded::<R>(new)?, facts))
    }

    fn remove(&self, object: &Stored) -> Result<Plan, Error> {
        Ok(R::remove(&loaded::<R>(object)?))
    }

    fn act(&self, object: &Stored, call: &Call) -> Result<Plan, Error> {
        R::act(&loaded::<R>(object)?, call)
    }

    fn amounts_to(&self, old: &Stored, new: &Stored) -> Result<Option<&'static str>, Error> {
        Ok(R::amounts_to(&loaded::<R>(old)?, &loaded::<R>(new)?))
    }

    fn order(&self, object: &Stored, facts: &Facts) -> Result<Option<Order>, Error> {
        Ok(R::order(&loaded::<R>(object)?, facts))
    }

    fn observe(&self, object: &mut Stored, report: &[u8]) -> Result<(), Error> {
        let mut typed = loaded::<R>(object)?;
        R::observe(&mut typed, report);
        object.status = serde_json::to_value(&typed.status).map_err(internal)?;
        object.claims = typed.claims.0;
        Ok(())
    }

    fn told(&self, object: &Stored) -> Result<Option<String>, Error> {
        Ok(R::told(&loaded::<R>(object)?))
    }

    fn settled(&self, object: &Stored) -> &'static str {
        loaded::<R>(object).map_or("failed", |object| R::settled(&object))
    }

    fn adopted(&self, id: &str, found: &[u8]) -> Result<Adopted, String> {
        R::adopted(id, found)
    }

    fn show(&self, object: &Stored) -> Value {
        let Ok(mut typed) = loaded::<R>(object) else { return object.status.clone() };
        R::show(&mut typed);
        serde_json::to_value(&typed.status).unwrap_or_default()
    }

    fn make_secret(&self, path: &str, random: [u8; 32]) -> Option<secret::Made> {
        R::make_secret(path, random)
    }

    fn sealed_in(&self, body: &[u8]) -> BTreeSet<String> {
        R::sealed_in(body)
    }

    fn known_of(&self, path: &str, secret: &str) -> Option<String> {
        R::known_of(path, secret)
    }
}

fn loaded<R: Resource>(stored: &Stored) -> Result<Object<R>, Error> {
    R::load(stored)
        .map_err(|e| Error::Internal(format!("{} {} cannot be read: {e}", stored.core.kind, stored.core.id)))
}

fn internal(error: serde_json::Error) -> Error {
    Error::Internal(error.to_string())
}

/// `machine-type` as `MachineType`.
pub fn pascal(kind: &str) -> String {
    kind.split('-')
        .map(|word| {
            let mut letters = word.chars();
            letters
                .next()
                .map(|first| first.to_ascii_uppercase())
                .into_iter()
                .chain(letters)
                .collect::<String>()
        })
        .collect()
}
