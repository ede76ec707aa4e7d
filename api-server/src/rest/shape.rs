//! An object as users see it.

use axum::Json;
use axum::http::header::{ETAG, LOCATION};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::extract::path_of;
use crate::kernel::{Caller, Kind, Stored};

/// What stands in the place of a value that is shown only to those who may change it.
const MASK: &str = "(not shown)";

/// The whole of an object, as `caller` sees it.
pub fn shown(kind: &dyn Kind, object: &Stored, caller: &Caller) -> Value {
    let core = &object.core;
    let mut spec = object.spec.clone();
    if !caller.operator {
        for path in kind.meta().private {
            let keys: Vec<&str> = path.split('.').collect();
            mask(&mut spec, &keys);
        }
    }
    let tenant = (!core.tenant.is_empty()).then_some(&core.tenant);
    json!({
        "id": core.id,
        "kind": core.kind,
        "tenant": tenant,
        "name": core.name,
        "tags": core.tags,
        "metadata": core.metadata,
        "generation": core.generation,
        "version": core.version,
        "phase": core.phase,
        "protected": core.protected,
        "created_at": core.created_at,
        "updated_at": core.updated_at,
        "deleted_at": core.deleted_at,
        "spec": spec,
        "status": kind.show(object),
        "job": core.job,
    })
}

/// Its ETag.
pub fn etag(object: &Stored) -> String {
    format!("\"v{}-s{}\"", object.core.version, object.core.status_version)
}

/// Its own path.
pub fn location(kind: &dyn Kind, object: &Stored) -> String {
    format!("{}/{}", path_of(kind.meta(), &object.core.tenant), object.core.id)
}

/// An answer that is one object.
pub fn answer(status: StatusCode, kind: &dyn Kind, object: &Stored, caller: &Caller) -> Response {
    let mut headers = HeaderMap::new();
    if let Ok(etag) = HeaderValue::from_str(&etag(object)) {
        headers.insert(ETAG, etag);
    }
    (status, headers, Json(shown(kind, object, caller))).into_response()
}

/// The same answer, naming where the object is.
pub fn at(mut response: Response, location: &str) -> Response {
    if let Ok(location) = HeaderValue::from_str(location) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

fn mask(value: &mut Value, path: &[&str]) {
    match (path, value) {
        ([], value) if !value.is_null() => *value = json!(MASK),
        (["*", rest @ ..], Value::Object(map)) => map.values_mut().for_each(|value| mask(value, rest)),
        ([key, rest @ ..], Value::Object(map)) => {
            if let Some(value) = map.get_mut(*key) {
                mask(value, rest);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_what_is_private_and_nothing_else() {
        let mut spec = json!({"user_data": "x", "keys": {"a": {"secret": 1, "name": "k"}}, "none": null});
        for path in [&["user_data"][..], &["keys", "*", "secret"], &["none"], &["absent", "x"]] {
            mask(&mut spec, path);
        }
        let keys = json!({"a": {"secret": MASK, "name": "k"}});
        assert_eq!(spec, json!({"user_data": MASK, "keys": keys, "none": null}));
    }
}
