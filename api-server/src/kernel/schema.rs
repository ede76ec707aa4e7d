//! Checks a spec against its kind's own JSON Schema, before anything is typed: so that *all* that is wrong
//! is told at once, unknown fields among it. (A typed parser stops at the first.)

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use jsonschema::error::{TypeKind, ValidationErrorKind};
use jsonschema::{ValidationError, Validator};
use serde_json::{Map, Value, json};

use super::{FieldError, Kind, Registry, secret};

/// How many reasons one answer holds at most; a body made to be wrong everywhere must not cost more.
const MOST_ERRORS: usize = 100;

/// The compiled schemas of a registry, each made when it is first asked for.
#[derive(Clone, Default)]
pub struct Checks(Arc<BTreeMap<&'static str, OnceLock<Result<Validator, String>>>>);

// === impl Checks ===

impl Checks {
    /// Room for these kinds.
    pub fn of(kinds: &[&'static dyn Kind]) -> Checks {
        Checks(Arc::new(kinds.iter().map(|kind| (kind.meta().kind, OnceLock::new())).collect()))
    }
}

// === impl Registry ===

impl Registry {
    /// All that is wrong with a spec as far as its kind's schema can tell; `field` begins with `spec`.
    ///
    /// A kind whose schema does not compile refuses everything; a test over the registry sees that first.
    pub fn check_spec(&self, kind: &str, spec: &Value) -> Vec<FieldError> {
        let Ok(known) = self.get(kind) else { return vec![FieldError::new("spec", "is of no known kind")] };
        match self.checks().0.get(known.meta().kind).map(|slot| slot.get_or_init(|| compile(known))) {
            Some(Ok(validator)) => check(validator, "spec", spec),
            _ => vec![FieldError::new("spec", "cannot be checked: the schema of its kind does not compile")],
        }
    }
}

/// All that is wrong with `value`, told under `root`.
pub fn check(validator: &Validator, root: &str, value: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for error in validator.iter_errors(value).take(MOST_ERRORS) {
        tell(root, &error, &mut errors);
    }
    errors.sort();
    errors.dedup();
    errors
}

/// A validator for a schema whose references point to `#/components/schemas/...` of `parts`.
pub fn compile_schema(schema: Value, parts: Map<String, Value>) -> Result<Validator, String> {
    let mut root = schema;
    if let Value::Object(root) = &mut root {
        root.insert("components".into(), json!({ "schemas": parts }));
    }
    tighten(&mut root);
    jsonschema::draft202012::new(&root).map_err(|error| error.to_string())
}

fn compile(kind: &'static dyn Kind) -> Result<Validator, String> {
    let schemas = kind.schemas();
    let value = |schema| serde_json::to_value(schema).map_err(|error| error.to_string());
    let mut parts = Map::new();
    for (name, schema) in schemas.parts {
        parts.insert(name, value(schema)?);
    }
    compile_schema(value(schemas.spec.1)?, parts)
}

/// Rewrites what the document says loosely, so that errors point at the field and not at a `oneOf` above it:
/// `null or X`, and objects told apart by the value of one property; and bounds for the machine's integers.
fn tighten(schema: &mut Value) {
    match schema {
        Value::Array(list) => list.iter_mut().for_each(tighten),
        Value::Object(map) => {
            map.values_mut().for_each(tighten);
            nullable(map);
            tagged(map);
            bounds(map);
            sealable(map);
        }
        _ => {}
    }
}

fn nullable(map: &mut Map<String, Value>) {
    let null = json!({ "type": "null" });
    let Some(Value::Array(list)) = map.get("oneOf") else { return };
    if list.len() != 2 || !list.contains(&null) {
        return;
    }
    let Some(other) = list.iter().find(|item| **item != null).cloned() else { return };
    map.remove("oneOf");
    map.insert("if".into(), null);
    map.insert("then".into(), Value::Bool(true));
    map.insert("else".into(), other);
}

fn tagged(map: &mut Map<String, Value>) {
    let Some(Value::Array(list)) = map.get("oneOf") else { return };
    let Some(tag) = list.first().and_then(tag_of).map(|(tag, _)| tag) else { return };
    let words: Vec<Value> =
        list.iter().filter_map(tag_of).filter(|(t, _)| *t == tag).map(|(_, w)| w).collect();
    if words.len() != list.len() {
        return;
    }
    let mut all =
        vec![json!({ "type": "object", "required": [tag], "properties": { &tag: { "enum": words } } })];
    for (word, variant) in words.iter().zip(list) {
        all.push(json!({
            "if": { "required": [tag], "properties": { &tag: { "const": word } } },
            "then": variant,
        }));
    }
    map.remove("oneOf");
    map.insert("allOf".into(), Value::Array(all));
}

/// The one required property of an object that can only have one value, and that value.
fn tag_of(variant: &Value) -> Option<(String, Value)> {
    let properties = variant.get("properties")?.as_object()?;
    properties.iter().find_map(|(name, schema)| {
        let words = schema.get("enum")?.as_array()?;
        (words.len() == 1).then(|| (name.clone(), words[0].clone()))
    })
}

/// Where a secret may be given, the marker of a sealed one may stand too.
fn sealable(map: &mut Map<String, Value>) {
    if map.get("writeOnly") != Some(&Value::Bool(true)) {
        return;
    }
    let given = Value::Object(std::mem::take(map));
    map.insert("if".into(), json!({ "type": "string", "pattern": secret::MARKER_PATTERN }));
    map.insert("then".into(), Value::Bool(true));
    map.insert("else".into(), given);
}

fn bounds(map: &mut Map<String, Value>) {
    let natural = map.get("minimum").and_then(Value::as_f64).is_some_and(|least| least >= 0.0);
    let (least, most) = match (map.get("format").and_then(Value::as_str), natural) {
        (Some("int32"), true) => (json!(0), json!(u32::MAX)),
        (Some("int32"), false) => (json!(i32::MIN), json!(i32::MAX)),
        (Some("int64"), true) => (json!(0), json!(u64::MAX)),
        (Some("int64"), false) => (json!(i64::MIN), json!(i64::MAX)),
        _ => return,
    };
    map.entry("minimum").or_insert(least);
    map.entry("maximum").or_insert(most);
}

fn tell(root: &str, error: &ValidationError<'_>, into: &mut Vec<FieldError>) {
    let path = dotted(root, error.instance_path().as_str());
    let below = |name: &str| format!("{path}.{name}");
    let reason = match error.kind() {
        ValidationErrorKind::AdditionalProperties { unexpected }
        | ValidationErrorKind::UnevaluatedProperties { unexpected } => {
            into.extend(unexpected.iter().map(|name| FieldError::new(below(name), "there is no such field")));
            return;
        }
        ValidationErrorKind::Required { property } => {
            let name = property.as_str().unwrap_or_default();
            into.push(FieldError::new(below(name), "is required"));
            return;
        }
        ValidationErrorKind::PropertyNames { error } => {
            let name = error.instance().as_str().unwrap_or_default();
            into.push(FieldError::new(below(name), format!("cannot be called this: {}", reason(error))));
            return;
        }
        _ => reason(error),
    };
    into.push(FieldError::new(path, reason));
}

fn reason(error: &ValidationError<'_>) -> String {
    match error.kind() {
        ValidationErrorKind::Type { kind } => format!("must be {}", types(kind)),
        ValidationErrorKind::Minimum { limit } => format!("must be at least {limit}"),
        ValidationErrorKind::ExclusiveMinimum { limit } => format!("must be more than {limit}"),
        ValidationErrorKind::Maximum { limit } => format!("must be at most {limit}"),
        ValidationErrorKind::ExclusiveMaximum { limit } => format!("must be less than {limit}"),
        ValidationErrorKind::MultipleOf { multiple_of } => format!("must be a multiple of {multiple_of}"),
        ValidationErrorKind::MinLength { limit } => format!("must have at least {limit} character(s)"),
        ValidationErrorKind::MaxLength { limit } => format!("must have at most {limit} character(s)"),
        ValidationErrorKind::MinItems { limit } => format!("must have at least {limit} item(s)"),
        ValidationErrorKind::MaxItems { limit } => format!("must have at most {limit} item(s)"),
        ValidationErrorKind::MinProperties { limit } => format!("must have at least {limit} entry(s)"),
        ValidationErrorKind::MaxProperties { limit } => format!("must have at most {limit} entry(s)"),
        ValidationErrorKind::Pattern { pattern } => format!("must match `{pattern}`"),
        ValidationErrorKind::Format { format } => format!("must be a {format}"),
        ValidationErrorKind::UniqueItems => "must not have the same item twice".into(),
        ValidationErrorKind::Constant { expected_value } => format!("must be {expected_value}"),
        ValidationErrorKind::Enum { options } => format!("must be one of {}", words(options)),
        ValidationErrorKind::FalseSchema => "must not be there".into(),
        _ => "does not have any of the shapes that it may have; see the API's document".into(),
    }
}

fn words(options: &Value) -> String {
    let list: Vec<String> = options.as_array().into_iter().flatten().map(Value::to_string).collect();
    list.join(", ")
}

fn types(kind: &TypeKind) -> String {
    let article = |name: String| match name.as_str() {
        "null" => name,
        "array" => "a list".into(),
        "integer" | "object" => format!("an {name}"),
        _ => format!("a {name}"),
    };
    match kind {
        TypeKind::Single(one) => article(one.to_string()),
        TypeKind::Multiple(set) => {
            let list: Vec<String> = set.iter().map(|one| article(one.to_string())).collect();
            list.join(" or ")
        }
    }
}

/// `/disks/data/size_bytes` below `spec` as `spec.disks.data.size_bytes`.
fn dotted(root: &str, pointer: &str) -> String {
    let mut path = root.to_owned();
    for part in pointer.split('/').skip(1) {
        path.push('.');
        path.push_str(&part.replace("~1", "/").replace("~0", "~"));
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(value: &Value) -> Vec<(String, String)> {
        let disk = json!({
            "type": "object", "additionalProperties": false, "required": ["size_bytes"],
            "properties": { "size_bytes": { "type": "integer", "format": "int64", "minimum": 1 } },
        });
        let source = json!({ "oneOf": [
            { "type": "object", "required": ["from", "url"],
              "properties": { "from": { "type": "string", "enum": ["url"] }, "url": { "type": "string" } } },
            { "type": "object", "required": ["from"],
              "properties": { "from": { "type": "string", "enum": ["upload"] } } },
        ]});
        let root = json!({
            "type": "object", "additionalProperties": false, "required": ["image"],
            "properties": {
                "image": { "type": "string" },
                "vcpus": { "type": ["integer", "null"], "format": "int32", "minimum": 0 },
                "source": { "$ref": "#/components/schemas/Source" },
                "root": { "oneOf": [{ "type": "null" }, { "$ref": "#/components/schemas/Disk" }] },
                "disks": { "type": "object", "additionalProperties": { "$ref": "#/components/schemas/Disk" } },
            },
        });
        let parts = json!({ "Disk": disk, "Source": source }).as_object().unwrap().clone();
        let validator = compile_schema(root, parts).unwrap();
        check(&validator, "spec", value).into_iter().map(|e| (e.field, e.reason)).collect()
    }

    #[test]
    fn all_is_told_at_once_and_each_under_its_own_path() {
        let errors = told(&json!({
            "vcpus": "two", "colour": 1, "root": { "size": 1 },
            "disks": { "data": { "size_bytes": 0 }, "a/b": 7 },
        }));
        let fields: Vec<&str> = errors.iter().map(|(field, _)| field.as_str()).collect();
        let expected = [
            "spec.colour",
            "spec.disks.a/b",
            "spec.disks.data.size_bytes",
            "spec.image",
            "spec.root.size",
            "spec.root.size_bytes",
            "spec.vcpus",
        ];
        assert_eq!(fields, expected);
        let reason = |field: &str| errors.iter().find(|(f, _)| f == field).unwrap().1.clone();
        assert_eq!(reason("spec.colour"), "there is no such field");
        assert_eq!(reason("spec.image"), "is required");
        assert_eq!(reason("spec.disks.data.size_bytes"), "must be at least 1");
        assert!(reason("spec.vcpus").contains("an integer"), "{}", reason("spec.vcpus"));
    }

    #[test]
    fn what_is_right_is_right_and_null_is_absent() {
        let good =
            json!({ "image": "debian", "root": null, "vcpus": null, "disks": { "d": { "size_bytes": 1 } } });
        assert_eq!(told(&good), []);
        assert_eq!(told(&json!([]))[0].1, "must be an object");
    }

    #[test]
    fn integers_have_the_machines_bounds() {
        let errors = told(&json!({ "image": "x", "vcpus": 4_294_967_296_u64 }));
        assert_eq!(errors, [("spec.vcpus".into(), "must be at most 4294967295".into())]);
    }

    #[test]
    fn variants_are_told_apart_by_their_tag() {
        let errors = told(&json!({ "image": "x", "source": { "from": "url" } }));
        assert_eq!(errors, [("spec.source.url".into(), "is required".into())]);
        let errors = told(&json!({ "image": "x", "source": { "from": "moon" } }));
        assert_eq!(errors, [("spec.source.from".into(), "must be one of \"url\", \"upload\"".into())]);
    }
}
