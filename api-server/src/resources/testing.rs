//! What the tests of kinds share.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::kernel::{Claim, Fact, Facts, FieldError, Object, Resource, ResourceCore, Stored, erased};

/// An object called `web` with this spec, its defaults filled in.
pub fn object<R: Resource>(spec: Value) -> Object<R> {
    stored_as(spec, json!({}), json!(null))
}

/// As `object`, with claims and status.
pub fn stored_as<R: Resource>(spec: Value, claims: Value, status: Value) -> Object<R> {
    let spec = erased::<R>().complete(&spec).unwrap();
    let core = ResourceCore {
        id: format!("{}_1", R::META.prefix),
        kind: R::META.kind.into(),
        tenant: "acme".into(),
        name: "web".into(),
        generation: 1,
        ..ResourceCore::default()
    };
    let claims = claims.as_object().unwrap().clone();
    R::load(&Stored { core, spec, claims, status }).unwrap()
}

/// Facts by field.
pub fn facts(list: impl IntoIterator<Item = (&'static str, Fact)>) -> Facts {
    Facts(list.into_iter().map(|(field, fact)| (field.to_owned(), fact)).collect::<BTreeMap<_, _>>())
}

/// A fact with this id.
pub fn fact(id: &str, spec: Value, claims: Value, status: Value) -> Fact {
    let claims = claims.as_object().unwrap().clone();
    Fact { id: id.into(), name: id.into(), spec, claims, status, ..Fact::default() }
}

/// Which fields are complained about, in order.
pub fn fields(errors: &[FieldError]) -> Vec<&str> {
    errors.iter().map(|error| error.field.as_str()).collect()
}

/// Keys of claims, in order.
pub fn keys(claims: &[Claim]) -> Vec<&str> {
    claims.iter().map(|claim| claim.key.as_str()).collect()
}

/// Complaints about a spec while it is created.
pub fn complaints<R: Resource>(spec: Value, facts: &Facts) -> Vec<FieldError> {
    R::validate(&object::<R>(spec), facts, true)
}
