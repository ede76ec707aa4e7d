//! An object as users see it.

use std::borrow::Cow;
use std::collections::BTreeMap;

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, ETAG};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use serde::Serialize;
use serde_json::{Value, json};

use crate::kernel::{Caller, Kind, Stored, Timestamp};
use crate::store::KeptAnswer;

/// What stands in the place of a value that is shown only to those who may change it.
const MASK: &str = "(not shown)";

/// An object in the form in which it is answered: what does not differ is lent, not copied.
#[derive(Serialize)]
struct Shown<'a> {
    id: &'a str,
    kind: &'a str,
    tenant: Option<&'a str>,
    name: &'a str,
    tags: &'a BTreeMap<String, String>,
    metadata: &'a Value,
    generation: i64,
    version: i64,
    phase: &'a str,
    protected: bool,
    created_at: Timestamp,
    updated_at: Timestamp,
    deleted_at: Option<Timestamp>,
    spec: Cow<'a, Value>,
    status: Value,
    job: Option<&'a str>,
}

impl<'a> Shown<'a> {
    fn of(kind: &dyn Kind, object: &'a Stored, caller: &Caller) -> Shown<'a> {
        let core = &object.core;
        let mut spec = Cow::Borrowed(&object.spec);
        let private = kind.meta().private;
        if !private.is_empty() && !caller.lets("update", core, &core.tenant) {
            for path in private {
                let keys: Vec<&str> = path.split('.').collect();
                mask(spec.to_mut(), &keys);
            }
        }
        Shown {
            id: &core.id,
            kind: &core.kind,
            tenant: (!core.tenant.is_empty()).then_some(&core.tenant),
            name: &core.name,
            tags: &core.tags,
            metadata: &core.metadata,
            generation: core.generation,
            version: core.version,
            phase: &core.phase,
            protected: core.protected,
            created_at: core.created_at,
            updated_at: core.updated_at,
            deleted_at: core.deleted_at,
            spec,
            status: kind.show(object),
            job: core.job.as_deref(),
        }
    }
}

/// The whole of an object, as `caller` sees it.
pub fn shown(kind: &dyn Kind, object: &Stored, caller: &Caller) -> Value {
    json!(Shown::of(kind, object, caller))
}

/// Its ETag.
pub fn etag(object: &Stored) -> String {
    format!("\"v{}-s{}\"", object.core.version, object.core.status_version)
}

/// An answer that is one object, in the form in which it can be kept.
pub fn rendered(status: StatusCode, kind: &dyn Kind, object: &Stored, caller: &Caller) -> KeptAnswer {
    let headers =
        [(CONTENT_TYPE.to_string(), "application/json".to_owned()), (ETAG.to_string(), etag(object))];
    KeptAnswer {
        status: status.as_u16(),
        headers: headers.into(),
        // What consists of texts, numbers and maps with texts as keys can always be written.
        body: serde_json::to_vec(&Shown::of(kind, object, caller)).unwrap_or_default(),
    }
}

/// An answer that is one object.
pub fn answer(status: StatusCode, kind: &dyn Kind, object: &Stored, caller: &Caller) -> Response {
    respond(rendered(status, kind, object, caller), false)
}

/// Marks a response that is whole: nobody puts a problem of their own in its place.
#[derive(Clone, Copy)]
pub struct Whole;

/// The response of an answer. `before`: it was given before, under the same key.
pub fn respond(answer: KeptAnswer, before: bool) -> Response {
    let mut response = Response::new(Body::from(answer.body));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in answer.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            response.headers_mut().insert(name, value);
        }
    }
    if before {
        response.headers_mut().insert("idempotency-replayed", HeaderValue::from_static("true"));
    }
    response.extensions_mut().insert(Whole);
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
