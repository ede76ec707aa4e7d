//! Whom a spec names, and what the front found out about them.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// A spec names another object.
#[derive(Clone, Debug, PartialEq)]
pub struct Ref {
    /// Path of the field that names it, `spec.network`. The front writes the id that it found there.
    pub field: String,
    /// Kind of the object named.
    pub kind: &'static str,
    /// Name or id, or how to choose one.
    pub target: Target,
    /// What it means for the other.
    pub relation: Relation,
    /// If nothing of this name is there: make it, with this spec, in the same transaction.
    pub or_make: Option<Value>,
}

/// Which object is meant.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// The one of this name or id: the tenant's own first, then the global one.
    Named(String),
    /// Nothing was said: the one whose spec has the least value at this key, or the oldest without a key.
    Default(Option<&'static str>),
    /// Nothing was said: the oldest of whose `prefix` a range of `network_size` is free, in the scope of its id; only
    /// those whose `network_size` is this, if it is said.
    WithRange(Option<u8>),
}

/// What a reference means for the object that it points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// The other cannot be deleted while this one is there.
    Uses,
    /// The other was made for this one and leaves with it.
    Owns,
}

/// What is known of an object that the spec names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fact {
    /// Its id.
    pub id: String,
    /// Its kind.
    pub kind: String,
    /// Its tenant; empty for operators' objects.
    pub tenant: String,
    /// Its name.
    pub name: String,
    /// Its phase when the transaction looked.
    pub phase: String,
    /// The generation of its spec.
    pub generation: i64,
    /// Its spec.
    pub spec: Value,
    /// Its claims.
    pub claims: Map<String, Value>,
    /// Its status.
    pub status: Value,
    /// Ids of the nodes that hold it, or were ordered to.
    pub held_on: Vec<String>,
}

/// All facts of one spec, by the field that names the object (`spec.nics.lan.network`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts(pub BTreeMap<String, Fact>);

// === impl Ref ===

impl Ref {
    /// `field` uses the `kind` called `target`.
    pub fn uses(field: impl Into<String>, kind: &'static str, target: &str) -> Ref {
        Ref {
            field: field.into(),
            kind,
            target: Target::Named(target.to_owned()),
            relation: Relation::Uses,
            or_make: None,
        }
    }

    /// As `uses`, but an absent `target` means the one with the least `by` (or the oldest).
    pub fn uses_or_default(
        field: impl Into<String>,
        kind: &'static str,
        target: Option<&str>,
        by: Option<&'static str>,
    ) -> Ref {
        let target = target.map_or(Target::Default(by), |name| Target::Named(name.to_owned()));
        Ref { field: field.into(), kind, target, relation: Relation::Uses, or_make: None }
    }

    /// Made with this spec when it is not there.
    pub fn or_make(mut self, spec: Value) -> Ref {
        self.or_make = Some(spec);
        self
    }
}

// === impl Fact ===

impl Fact {
    /// The value at a JSON pointer of the spec (`/memory_bytes`), if it is there and of this type.
    pub fn spec<T: DeserializeOwned>(&self, pointer: &str) -> Option<T> {
        self.spec.pointer(pointer).and_then(|value| T::deserialize(value).ok())
    }

    /// The value at a JSON pointer of the status.
    pub fn status<T: DeserializeOwned>(&self, pointer: &str) -> Option<T> {
        self.status.pointer(pointer).and_then(|value| T::deserialize(value).ok())
    }
}

// === impl Facts ===

impl Facts {
    /// What the object named by this field is like; `None` if it was not found (the front tells so itself).
    pub fn get(&self, field: &str) -> Option<&Fact> {
        self.0.get(field)
    }
}
