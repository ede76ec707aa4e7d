//! Schemas of the document: those of each kind, decorated, and those that all kinds share.

use serde_json::{Map, Value, json};

use crate::kernel::kind::pascal;
use crate::kernel::{Change, Kind, Meta, name, secret};

/// A reference to a schema of the document.
pub fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// A page of these.
pub fn page_of(item: &Value) -> Value {
    json!({
        "type": "object",
        "required": ["items", "next"],
        "properties": {
            "items": { "type": "array", "items": item },
            "next": {
                "type": ["string", "null"],
                "description": "Send it as `page` to get the next page; null at the end. A page may be short and still have a next.",
            },
        },
    })
}

/// Adds all schemas of a kind, and answers an example of its spec.
pub fn add_kind(kind: &dyn Kind, into: &mut Map<String, Value>) -> Option<Value> {
    let meta = kind.meta();
    let schemas = kind.schemas();
    let value = |schema| serde_json::to_value(schema).unwrap_or_default();
    let (spec_name, status_name) = (schemas.spec.0.clone(), schemas.status.0.clone());
    let mut parts: Map<String, Value> =
        schemas.parts.into_iter().map(|(name, part)| (name, value(part))).collect();
    parts.insert(spec_name.clone(), value(schemas.spec.1));
    parts.insert(status_name.clone(), value(schemas.status.1));
    mark_changes(meta, &spec_name, &mut parts);
    parts.values_mut().for_each(open_enums);
    parts.values_mut().for_each(tell_secrets);
    let example = parts[&spec_name].get("example").cloned();
    into.extend(parts);

    let makes_secrets =
        secret::paths(kind.schemas()).iter().any(|path| kind.make_secret(path, [0; 32]).is_some())
            || meta.kind == "token";
    let name = pascal(meta.kind);
    into.insert(name.clone(), object(meta, &spec_name, &status_name, makes_secrets));
    into.insert(format!("{name}Create"), create_body(meta, &spec_name));
    into.insert(format!("{name}Patch"), patch_body(meta, &spec_name));
    into.insert(format!("{name}Page"), page_of(&reference(&name)));
    example
}

fn object(meta: &Meta, spec: &str, status: &str, makes_secrets: bool) -> Value {
    let text = |about: &str| json!({ "type": "string", "description": about });
    let number = |about: &str| json!({ "type": "integer", "format": "int64", "description": about });
    let time = |about: &str| json!({ "type": "string", "format": "date-time", "description": about });
    let perhaps = |about: &str| json!({ "type": ["string", "null"], "description": about });
    let properties = json!({
        "id": text(&format!("`{}_...`: unique, never changes, sorts by time of creation.", meta.prefix)),
        "kind": text(&format!("`{}`.", meta.kind)),
        "tenant": perhaps("Whose it is; null for what operators own."),
        "name": text("Unique among the living of its kind and tenant."),
        "tags": { "type": "object", "additionalProperties": { "type": "string" }, "description": "Filters look at these." },
        "metadata": { "type": "object", "additionalProperties": true, "description": "Your own JSON; never interpreted." },
        "generation": number("Rises with each change of `spec`."),
        "version": number("Rises with each write by a user; the first part of the ETag."),
        "phase": text("Where it is in its life. Take words that you do not know: there will be more."),
        "protected": { "type": "boolean", "description": "Refuses deletion while true." },
        "created_at": time("When it was made."),
        "updated_at": time("When a user last wrote it."),
        "deleted_at": { "type": ["string", "null"], "format": "date-time", "description": "When its deletion was acknowledged." },
        "spec": reference(spec),
        "status": reference(status),
        "job": perhaps("The last job on it."),
    });
    let required: Vec<String> = properties.as_object().into_iter().flat_map(Map::keys).cloned().collect();
    let mut properties = properties;
    if makes_secrets {
        properties["secrets"] = made_secrets();
    }
    json!({ "type": "object", "description": format!("{}.", meta.about), "required": required, "properties": properties })
}

/// Secrets in the answer that made them.
pub fn made_secrets() -> Value {
    json!({
        "type": "object", "additionalProperties": { "type": "string" }, "readOnly": true,
        "description": "Secrets that the server made because none was given, by field: in the one answer that made them.",
    })
}

fn envelope(meta: &Meta, spec: Value, nullable: bool) -> Value {
    let kind = |kind: &str| if nullable { json!([kind, "null"]) } else { json!(kind) };
    let tag = json!({ "type": kind("string"), "maxLength": 1024 });
    let keys = json!({ "minLength": 1, "maxLength": 128 });
    json!({
        "name": { "type": "string", "pattern": name::pattern(meta.name), "description": "Generated if none is given." },
        "tags": { "type": kind("object"), "propertyNames": keys, "additionalProperties": tag, "description": "Filters look at these." },
        "metadata": { "type": kind("object"), "additionalProperties": true, "description": "Your own JSON; never interpreted." },
        "protected": { "type": kind("boolean"), "description": "Refuses deletion while true." },
        "spec": spec,
    })
}

fn create_body(meta: &Meta, spec: &str) -> Value {
    json!({
        "type": "object",
        "description": format!("A new {}. Only what cannot be guessed is required.", meta.kind.replace('-', " ")),
        "additionalProperties": false,
        "properties": envelope(meta, reference(spec), false),
    })
}

fn patch_body(meta: &Meta, spec: &str) -> Value {
    let about = format!("A merge patch of `{spec}`: what is absent stays, null takes away.");
    json!({
        "type": "object",
        "description": "A JSON merge patch (RFC 7396).",
        "additionalProperties": false,
        "properties": envelope(meta, json!({ "type": "object", "additionalProperties": true, "description": about }), true),
    })
}

/// Writes `x-rhyzome-change` at every field below `spec`; what is below a field inherits from it.
fn mark_changes(meta: &Meta, spec: &str, parts: &mut Map<String, Value>) {
    let Some(mut schema) = parts.get(spec).cloned() else { return };
    mark(meta, "", Change::Mutable, &mut schema, parts, 0);
    parts.insert(spec.to_owned(), schema);
}

fn mark(
    meta: &Meta,
    path: &str,
    inherited: Change,
    schema: &mut Value,
    parts: &mut Map<String, Value>,
    deep: usize,
) {
    // A schema may refer to itself; nobody reads what is deeper than this.
    if deep > 8 {
        return;
    }
    let part = schema
        .get("$ref")
        .and_then(Value::as_str)
        .and_then(|path| path.rsplit('/').next())
        .map(str::to_owned);
    if let Some(part) = part
        && let Some(mut inner) = parts.get(&part).cloned()
    {
        mark(meta, path, inherited, &mut inner, parts, deep + 1);
        parts.insert(part, inner);
    }
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    let change_at =
        |path: &str| meta.fields.iter().find(|(field, _)| *field == path).map_or(inherited, |(_, c)| *c);
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        for (key, property) in properties {
            let path = below(key);
            let change = change_at(&path);
            mark(meta, &path, change, property, parts, deep + 1);
            if let Value::Object(property) = property {
                property.insert("x-rhyzome-change".into(), json!(change));
            }
        }
    }
    if let Some(entry @ Value::Object(_)) = schema.get_mut("additionalProperties") {
        let path = below("*");
        let change = change_at(&path);
        mark(meta, &path, change, entry, parts, deep + 1);
    }
    for key in ["oneOf", "anyOf", "allOf"] {
        for variant in schema.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten() {
            mark(meta, path, inherited, variant, parts, deep + 1);
        }
    }
}

/// What is written there is never shown, but a marker stands in its place.
fn tell_secrets(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            // `writeOnly` would say that nothing is answered.
            if map.remove("writeOnly").is_some() {
                map.insert("format".to_owned(), json!("password"));
                map.insert("x-rhyzome-secret".to_owned(), json!(true));
            }
            map.values_mut().for_each(tell_secrets);
        }
        Value::Array(list) => list.iter_mut().for_each(tell_secrets),
        _ => {}
    }
}

/// Clients must take words that they do not know: a list of words is a hint, never a wall. (What a request
/// may hold is checked by the server.) A single word tells variants apart and stays.
fn open_enums(schema: &mut Value) {
    match schema {
        Value::Array(list) => list.iter_mut().for_each(open_enums),
        Value::Object(map) => {
            map.values_mut().for_each(open_enums);
            if map.get("enum").and_then(Value::as_array).is_some_and(|words| words.len() > 1)
                && let Some(words) = map.remove("enum")
            {
                map.insert("x-extensible-enum".into(), words);
            }
        }
        _ => {}
    }
}

/// Schemas that belong to no kind.
pub fn shared() -> Map<String, Value> {
    let schemas = json!({
        "FieldError": {
            "type": "object",
            "required": ["field", "reason"],
            "properties": {
                "field": { "type": "string", "description": "Path in the body, `spec.memory_bytes`; `?name` for a parameter." },
                "reason": { "type": "string", "description": "What is wrong, and the way out." },
            },
        },
        "Problem": {
            "type": "object",
            "description": "RFC 9457. Some types add members: `used_by`, `nodes`, `version`, `job`.",
            "required": ["type", "title", "status", "detail", "request_id", "errors"],
            "additionalProperties": true,
            "properties": {
                "type": { "type": "string", "x-extensible-enum": problem_types(), "description": "Stable; decide by this." },
                "title": { "type": "string" },
                "status": { "type": "integer", "format": "int32" },
                "detail": { "type": "string", "description": "For people." },
                "request_id": { "type": "string" },
                "errors": { "type": "array", "items": reference("FieldError") },
            },
        },
        "Plan": super::plan::schema(),
        "Job": job(),
        "JobStep": job_step(),
        "JobPage": page_of(&reference("Job")),
        "Revision": revision(),
        "RevisionPage": page_of(&reference("Revision")),
        "Event": event(),
        "AuditEntry": audit_entry(),
        "AuditPage": page_of(&reference("AuditEntry")),
        "WebhookDelivery": super::webhook::schema(),
        "WebhookDeliveryPage": page_of(&reference("WebhookDelivery")),
    });
    let mut all = schemas.as_object().cloned().unwrap_or_default();
    all.extend(super::quota::schemas().map(|(name, schema)| (name.to_owned(), schema)));
    all.extend(super::ssh::schemas().map(|(name, schema)| (name.to_owned(), schema)));
    all.extend(super::node::schemas().map(|(name, schema)| (name.to_owned(), schema)));
    all.extend(super::bulk::schemas().map(|(name, schema)| (name.to_owned(), schema)));
    all
}

fn problem_types() -> Vec<String> {
    super::problem::TYPES.iter().map(|(word, ..)| format!("/problems/{word}")).collect()
}

fn all_required(properties: Value, about: &str) -> Value {
    let required: Vec<String> = properties.as_object().into_iter().flat_map(Map::keys).cloned().collect();
    json!({ "type": "object", "description": about, "required": required, "properties": properties })
}

fn job() -> Value {
    let text = json!({ "type": "string" });
    let number = json!({ "type": "integer", "format": "int64" });
    let perhaps = json!({ "type": ["string", "null"] });
    let time = json!({ "type": ["string", "null"], "format": "date-time" });
    let states = ["waiting", "running", "undoing", "done", "failed", "cancelled"];
    all_required(
        json!({
            "id": text, "tenant": text, "kind": text, "resource": text, "resource_name": text,
            "verb": { "type": "string", "description": "`create`, `update`, `remove`, or an action." },
            "state": { "type": "string", "x-extensible-enum": states, "description": "The last three are final." },
            "generation": number,
            "step": { "type": "integer", "format": "int64", "description": "Index of the present step." },
            "steps": { "type": "array", "items": reference("JobStep"), "description": "Empty in lists." },
            "actor": text, "credential": text, "reason": perhaps, "request_id": text,
            "created_at": { "type": "string", "format": "date-time" },
            "started_at": time, "finished_at": time,
            "attempts": { "type": "integer", "format": "int64", "description": "How often it could not be taken further and was put off; its step says why." },
            "due_at": { "type": ["string", "null"], "format": "date-time", "description": "When it is looked at again at the latest; null once it has ended." },
            "problem": { "type": ["string", "null"], "description": "Why it failed or was cancelled." },
            "left_behind": { "type": "array", "items": text, "description": "What it could not take back." },
        }),
        "An intent on one object.",
    )
}

fn job_step() -> Value {
    let time = json!({ "type": ["string", "null"], "format": "date-time" });
    all_required(
        json!({
            "index": { "type": "integer", "format": "int64" },
            "what": { "type": "object", "additionalProperties": true, "description": "What it does; `do` names it." },
            "state": { "type": "string" },
            "message": { "type": "string", "description": "How far, or why not." },
            "progress": { "type": "integer", "format": "int64", "minimum": 0, "maximum": 100 },
            "started_at": time, "finished_at": time,
        }),
        "One step of a job.",
    )
}

fn event_fields() -> Value {
    let text = |about: &str| json!({ "type": "string", "description": about });
    let perhaps = |about: &str| json!({ "type": ["string", "null"], "description": about });
    let classes = ["write", "job", "phase", "denied", "anonymous", "system"];
    json!({
        "seq": { "type": "integer", "format": "int64", "description": "Its number in the log: without gaps." },
        "at": { "type": "string", "format": "date-time", "description": "When it happened." },
        "recorded_at": { "type": "string", "format": "date-time", "description": "When it got its number." },
        "class": { "type": "string", "x-extensible-enum": classes, "description": "A user wrote; a job ended; an object came into another phase." },
        "tenant": perhaps("Whose it is; null for what operators own."),
        "kind": text("Kind of the object."),
        "resource": text("Its id."),
        "name": text("Its name then."),
        "verb": text("What was done."),
        "outcome": text("`accepted` (a job does it), `done`, `failed`, `cancelled`, `denied`; empty for a phase."),
        "phase": perhaps("The phase that the object came into."),
        "version": { "type": "integer", "format": "int64", "description": "Of the object; 0 where it means nothing." },
        "job": perhaps("The job."),
        "actor": text("Who, or whose job."),
        "detail": text("The caller's reason, why a job failed, or how often."),
    })
}

fn event() -> Value {
    all_required(event_fields(), "Something that happened.")
}

fn audit_entry() -> Value {
    let mut fields = event_fields();
    fields["credential"] = json!({ "type": "string", "description": "With which credential." });
    fields["source"] = json!({ "type": "string", "description": "From which address." });
    fields["request_id"] = json!({ "type": "string", "description": "Of the request." });
    fields["erased"] = json!({ "type": "boolean", "description": "What it said was erased." });
    all_required(fields, "Who did what, or was denied it.")
}

fn revision() -> Value {
    let number = json!({ "type": "integer", "format": "int64" });
    let map = json!({ "type": "object", "additionalProperties": true });
    all_required(
        json!({
            "version": number, "generation": number, "name": { "type": "string" },
            "tags": { "type": "object", "additionalProperties": { "type": "string" } },
            "metadata": map, "spec": map, "actor": { "type": "string" },
            "at": { "type": "string", "format": "date-time" },
        }),
        "What an object was at one version.",
    )
}
