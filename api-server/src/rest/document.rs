//! The OpenAPI document: grown by `mount`, route by route; locked in `openapi/openapi.json`.

use serde_json::{Map, Value, json};

use super::operation::Operation;
use super::problem::TYPES;
use super::{cookie, mount, schemas};
use crate::kernel::Registry;

/// What greets a newcomer.
const GREETING: &str = "Rhyzome turns a few Linux machines into a small cloud.\n\n\
One grammar for every kind: whoever knows one knows all. `POST` makes an object and answers 202 with the \
object and its job's id; `Prefer: wait=30` waits for the job. `PATCH` is a JSON merge patch; send the `ETag` \
back as `If-Match` and nobody's change is lost. `DELETE` frees the name at once. Every error is a problem \
(RFC 9457) with *all* field errors and a stable `type`.\n\n\
Start here: put your token in, then\n\n\
```\ncurl -H \"Authorization: Bearer $TOKEN\" $URL/v1\n\
curl -H \"Authorization: Bearer $TOKEN\" $URL/v1/tenants/default/instances\n\
curl -H \"Authorization: Bearer $TOKEN\" -H 'Content-Type: application/json' -H 'Prefer: wait=60' \\\n  \
$URL/v1/tenants/default/instances -d '{\"spec\":{\"image\":\"debian\"}}'\n```\n\n\
`{id}` takes an id or a name. Sizes are in bytes, durations in seconds, times in UTC. Take words in answers \
that you do not know: there will be more. Within /v1 fields are only added.";

/// The growing document.
#[derive(Default)]
pub struct Document {
    /// Paths with their operations.
    pub paths: Map<String, Value>,
    /// All named schemas.
    pub schemas: Map<String, Value>,
    /// Tags, in the order of the registry.
    pub tags: Vec<Value>,
}

// === impl Document ===

impl Document {
    /// One more operation.
    pub fn add(&mut self, method: &axum::http::Method, path: &str, operation: Operation) {
        let entry = self.paths.entry(path.to_owned()).or_insert_with(|| json!({}));
        entry[method.as_str().to_ascii_lowercase()] = operation.render(method, path);
    }
}

/// The whole document of a registry, as it is locked in the repository.
pub fn document(registry: &Registry) -> String {
    render(&mount::all(registry).document)
}

/// The text of a document.
pub fn render(document: &Document) -> String {
    let mut responses = Map::new();
    for (_, status, _) in TYPES {
        responses.insert(format!("Problem{status}"), problem(*status));
    }
    let whole = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Rhyzome",
            "version": "1",
            "summary": "Instances, disks and networks on your own machines",
            "description": GREETING,
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "security": [{ "bearer": [] }, { "session": [] }],
        "tags": document.tags,
        "paths": document.paths,
        "components": {
            "securitySchemes": {
                "bearer": {
                    "type": "http", "scheme": "bearer",
                    "description": "The operator's token: the server's first start writes it to a file and names it.",
                },
                "session": {
                    "type": "apiKey", "in": "cookie", "name": cookie::SECURE,
                    "description": "A person's session in a browser: `POST /v1/session` or `GET /v1/session/login` sets it. It counts for requests of the same origin's pages; what changes something must have `X-Rhyzome-CSRF`.",
                },
            },
            "responses": responses,
            "schemas": document.schemas,
        },
    });
    let mut text = serde_json::to_string_pretty(&whole).unwrap_or_default();
    text.push('\n');
    text
}

fn problem(status: u16) -> Value {
    let of_status = TYPES.iter().filter(|(_, s, _)| *s == status);
    let lines: Vec<String> =
        of_status.map(|(word, _, title)| format!("`/problems/{word}`: {title}")).collect();
    let mut response = json!({
        "description": lines.join("; "),
        "content": { "application/problem+json": { "schema": schemas::reference("Problem") } },
    });
    if status == 429 {
        let seconds = json!({ "type": "integer" });
        let about = "In how many seconds to come again.";
        response["headers"] = json!({ "Retry-After": { "description": about, "schema": seconds } });
    }
    if status == 401 {
        response["headers"] = json!({ "WWW-Authenticate": { "schema": { "type": "string" } } });
    }
    response
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::resources::registry;

    fn parsed() -> Value {
        serde_json::from_str(&document(&registry())).unwrap()
    }

    #[test]
    fn the_locked_document_is_the_one_that_is_served() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../openapi/openapi.json");
        let now = document(&registry());
        if std::env::var_os("RHYZOME_ACCEPT_OPENAPI").is_some() {
            std::fs::write(path, &now).unwrap();
        }
        let locked = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            locked == now,
            "the API has changed. Look at the change, then accept it: \
             `RHYZOME_ACCEPT_OPENAPI=1 cargo test -p rhyzome-api the_locked_document`, and commit the diff"
        );
    }

    /// What the outermost layer answers (`domain.rs`), to whoever asks for whatever.
    #[test]
    fn a_connection_for_another_name_is_told_of_at_every_operation() {
        let document = parsed();
        let paths =
            document["paths"].as_object().unwrap().values().flat_map(|path| path.as_object().unwrap());
        let operations: Vec<_> =
            paths.filter(|(_, operation)| operation["operationId"].is_string()).collect();
        assert!(operations.len() > 300, "{}", operations.len());
        for (method, operation) in operations {
            for status in [400, 421] {
                let answer = &operation["responses"][status.to_string()]["$ref"];
                let problem = format!("#/components/responses/Problem{status}");
                assert_eq!(answer, &json!(problem), "{method} {}", operation["operationId"]);
            }
        }
        assert!(document["components"]["responses"]["Problem421"].is_object());
    }

    #[test]
    fn every_reference_points_somewhere() {
        let document = parsed();
        let mut stack = vec![&document];
        while let Some(value) = stack.pop() {
            match value {
                Value::Array(list) => stack.extend(list),
                Value::Object(map) => {
                    if let Some(Value::String(to)) = map.get("$ref") {
                        let there = document.pointer(to.trim_start_matches('#')).is_some();
                        assert!(there, "{to} is nowhere");
                    }
                    stack.extend(map.values());
                }
                _ => {}
            }
        }
    }

    #[test]
    fn operations_have_ids_of_their_own_and_tags_that_exist() {
        let document = parsed();
        let known: BTreeSet<&str> =
            document["tags"].as_array().unwrap().iter().filter_map(|tag| tag["name"].as_str()).collect();
        let mut ids = BTreeSet::new();
        for (path, operations) in document["paths"].as_object().unwrap() {
            for (method, operation) in operations.as_object().unwrap() {
                let id = operation["operationId"].as_str().unwrap();
                assert!(ids.insert(id), "{id} is there twice ({method} {path})");
                assert!(known.contains(operation["tags"][0].as_str().unwrap()), "{id}");
                assert!(operation["summary"].as_str().is_some_and(|text| !text.is_empty()), "{id}");
            }
        }
        for wanted in
            ["instance_create", "instance_stop", "node_invite", "image_content_put", "job_wait", "whoami"]
        {
            assert!(ids.contains(wanted), "{wanted} is missing in {ids:?}");
        }
    }

    #[test]
    fn fields_tell_when_a_change_takes_effect() {
        let document = parsed();
        let disk = &document["components"]["schemas"]["DiskSpec"]["properties"];
        assert_eq!(disk["image"]["x-rhyzome-change"], "immutable");
        assert_eq!(disk["size_bytes"]["x-rhyzome-change"], "mutable");
    }
}
