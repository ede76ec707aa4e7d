//! What every body has around its spec: name, tags, metadata, protected.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::problem::Problem;
use crate::kernel::{Error, FieldError, Kind, Registry, Stored, name};
use crate::store::NewObject;

/// All that a body may hold.
const FIELDS: &[&str] = &["name", "tags", "metadata", "protected", "spec"];

/// What a POST makes. If anything is wrong with the envelope, what is wrong with the spec is told with it.
pub fn new_object(registry: &Registry, kind: &'static dyn Kind, body: Value) -> Result<NewObject, Problem> {
    let mut errors = unknown(&body);
    let name = body.get("name").filter(|name| !name.is_null());
    if name.is_some_and(|name| !name.is_string()) {
        errors.push(FieldError::new("name", "must be a string"));
    }
    let tags = tags(&body, false, &mut errors);
    metadata(&body, &mut errors);
    protected(&body, &mut errors);
    let object = NewObject {
        name: name.and_then(Value::as_str).map(str::to_owned),
        tags,
        metadata: body.get("metadata").filter(|m| m.is_object()).cloned().unwrap_or_else(empty),
        protected: body.get("protected").and_then(Value::as_bool).unwrap_or(false),
        spec: body.get("spec").cloned().unwrap_or_else(empty),
    };
    if errors.is_empty() {
        return Ok(object);
    }
    let refused = object.name.as_deref().and_then(|name| name::refuse(name, kind.meta().name));
    errors.extend(refused.map(|reason| FieldError::new("name", reason)));
    errors.extend(registry.check_spec(kind.meta().kind, &object.spec));
    Err(invalid(errors))
}

/// All that is wrong with the envelope of a PATCH.
pub fn patch_errors(body: &Value) -> Vec<FieldError> {
    let mut errors = unknown(body);
    match body.get("name") {
        None | Some(Value::String(_)) => {}
        Some(Value::Null) => errors.push(FieldError::new("name", "cannot be taken away, only changed")),
        Some(_) => errors.push(FieldError::new("name", "must be a string")),
    }
    if !body.get("tags").is_some_and(Value::is_null) {
        tags(body, true, &mut errors);
    }
    metadata(body, &mut errors);
    protected(body, &mut errors);
    if body.get("spec").is_some_and(|spec| !spec.is_object()) {
        errors.push(FieldError::new("spec", "must be an object"));
    }
    errors
}

/// These errors, and those of the spec as the patch would leave it.
pub fn with_spec_errors(
    registry: &Registry,
    kind: &'static dyn Kind,
    present: &Stored,
    body: &Value,
    mut errors: Vec<FieldError>,
) -> Problem {
    if let Some(patch) = body.get("spec").filter(|patch| patch.is_object()) {
        let mut spec = present.spec.clone();
        json_patch::merge(&mut spec, patch);
        errors.extend(registry.check_spec(kind.meta().kind, &spec));
    }
    if let Some(wanted) = body.get("name").and_then(Value::as_str) {
        errors.extend(name::refuse(wanted, kind.meta().name).map(|reason| FieldError::new("name", reason)));
    }
    invalid(errors)
}

fn invalid(mut errors: Vec<FieldError>) -> Problem {
    errors.sort();
    errors.dedup();
    Error::Invalid(errors).into()
}

fn unknown(body: &Value) -> Vec<FieldError> {
    let keys = body.as_object().into_iter().flat_map(Map::keys);
    keys.filter(|key| !FIELDS.contains(&key.as_str()))
        .map(|key| FieldError::new(key, "there is no such field; what is wanted belongs below `spec`"))
        .collect()
}

fn tags(body: &Value, patch: bool, errors: &mut Vec<FieldError>) -> BTreeMap<String, String> {
    let mut tags = BTreeMap::new();
    let map = match body.get("tags") {
        None | Some(Value::Null) => return tags,
        Some(Value::Object(map)) => map,
        Some(_) => {
            errors.push(FieldError::new("tags", "must be an object of strings"));
            return tags;
        }
    };
    for (key, value) in map {
        match value {
            Value::String(text) => drop(tags.insert(key.clone(), text.clone())),
            Value::Null if patch => {}
            _ => errors.push(FieldError::new(format!("tags.{key}"), "must be a string")),
        }
    }
    tags
}

fn metadata(body: &Value, errors: &mut Vec<FieldError>) {
    if body.get("metadata").is_some_and(|value| !value.is_object() && !value.is_null()) {
        errors.push(FieldError::new("metadata", "must be an object"));
    }
}

fn protected(body: &Value, errors: &mut Vec<FieldError>) {
    if body.get("protected").is_some_and(|value| !value.is_boolean() && !value.is_null()) {
        errors.push(FieldError::new("protected", "must be true or false"));
    }
}

fn empty() -> Value {
    Value::Object(Map::new())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(errors: Vec<FieldError>) -> Vec<String> {
        errors.into_iter().map(|error| error.field).collect()
    }

    #[test]
    fn a_patch_may_hold_these_and_nothing_else() {
        let good = json!({"name": "a", "tags": {"x": null, "y": "1"}, "metadata": null, "protected": true, "spec": {}});
        assert_eq!(patch_errors(&good), []);
        let bad = json!({"name": null, "tags": {"x": 1}, "metadata": 1, "protected": "no", "spec": [], "phase": "x"});
        let mut told = fields(patch_errors(&bad));
        told.sort();
        assert_eq!(told, ["metadata", "name", "phase", "protected", "spec", "tags.x"]);
    }
}
