//! The kinds that the document speaks of: found by their paths, so that a new kind needs no line here.

use std::collections::BTreeMap;

use serde_json::Value;

const TENANTS: &str = "/v1/tenants/{tenant}/";
const OPERATORS: &str = "/v1/";

/// All kinds of a document.
#[derive(Clone, Debug)]
pub struct Kinds {
    document: Value,
    list: Vec<Kind>,
}

/// One kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Kind {
    /// `machine-type`
    pub kind: String,
    /// `machine-types`
    pub plural: String,
    /// One line about it.
    pub about: String,
    /// It is under `/v1/tenants/{tenant}/`.
    pub of_tenants: bool,
    /// It is under `/v1/`.
    pub of_operators: bool,
    /// Its actions.
    pub actions: Vec<Verb>,
    /// The last words of its further paths: `content`, `console`, `revisions`.
    pub more: Vec<String>,
    /// Its spec's schema.
    pub spec: Value,
}

/// An action.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verb {
    /// `stop`
    pub verb: String,
    /// One line about it.
    pub about: String,
    /// What it leaves to whoever says it.
    pub choices: Vec<Choice>,
}

/// Something that can be chosen with an action.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choice {
    /// The field of the body: `instances`.
    pub field: String,
    /// One line about it.
    pub about: String,
    /// What it may be; the first if nothing is said.
    pub words: Vec<String>,
}

// === impl Kinds ===

impl Kinds {
    /// The kinds of the locked document.
    pub fn known() -> Kinds {
        Kinds::of(serde_json::from_str(super::DOCUMENT).unwrap_or_default())
    }

    /// The kinds of a document.
    pub fn of(document: Value) -> Kinds {
        let mut kinds: BTreeMap<String, Kind> = BTreeMap::new();
        let mut order = Vec::new();
        let paths: Vec<(&String, &Value)> = document["paths"].as_object().into_iter().flatten().collect();
        for (path, item) in &paths {
            let Some((plural, of_tenants)) = collection(path) else { continue };
            let Some((name, spec)) = spec(&document, item) else { continue };
            let kind = kinds.entry(plural.to_owned()).or_insert_with(|| {
                order.push(plural.to_owned());
                Kind { kind: kebab(name), plural: plural.to_owned(), spec, ..Kind::default() }
            });
            if let Some(about) = about(&document, &kind.kind, item) {
                kind.about = about;
            }
            kind.of_tenants |= of_tenants;
            kind.of_operators |= !of_tenants;
        }
        for (path, item) in &paths {
            let Some((plural, _)) = path.split_once("/{id}/").and_then(|(root, _)| collection(root)) else {
                continue;
            };
            let Some(kind) = kinds.get_mut(plural) else { continue };
            let rest = path.split_once("/{id}/").map_or("", |(_, rest)| rest);
            add_path(kind, &document, rest, item);
        }
        let mut list: Vec<Kind> = order.into_iter().filter_map(|plural| kinds.remove(&plural)).collect();
        // Tags have an order that is meant, paths are sorted.
        let tags: Vec<&Value> =
            document["tags"].as_array().into_iter().flatten().map(|tag| &tag["name"]).collect();
        list.sort_by_key(|kind| tags.iter().position(|tag| **tag == kind.plural).unwrap_or(usize::MAX));
        Kinds { document, list }
    }

    /// All, in the document's order.
    pub fn all(&self) -> &[Kind] {
        &self.list
    }

    /// The kind of this name.
    pub fn get(&self, kind: &str) -> Option<&Kind> {
        self.list.iter().find(|known| known.kind == kind)
    }

    /// A schema with its references followed and `null or X` read as X.
    pub fn resolve<'a>(&'a self, schema: &'a Value) -> &'a Value {
        resolve(&self.document, schema, 0)
    }
}

// === impl Kind ===

impl Kind {
    /// Where its objects are: of this tenant, or of operators.
    pub fn path(&self, tenant: &str, global: bool) -> String {
        if self.of_tenants && !(global && self.of_operators) {
            format!("/v1/tenants/{tenant}/{}", self.plural)
        } else {
            format!("/v1/{}", self.plural)
        }
    }
}

fn add_path(kind: &mut Kind, document: &Value, rest: &str, item: &Value) {
    match rest.strip_prefix("actions/") {
        Some(verb) if verb.starts_with('{') => {
            // One path for all verbs: they are the values of its parameter.
            let parameters = [&item["parameters"], &item["post"]["parameters"]];
            let parameters = parameters.into_iter().filter_map(Value::as_array).flatten();
            let words =
                parameters.filter_map(|p| resolve(document, &p["schema"], 0)["enum"].as_array()).flatten();
            for verb in words.filter_map(Value::as_str) {
                add_verb(kind, verb, "", Vec::new());
            }
        }
        Some(verb) => {
            let body = &item["post"]["requestBody"]["content"]["application/json"]["schema"];
            let about = item["post"]["summary"].as_str().unwrap_or_default();
            add_verb(kind, verb, about, choices(resolve(document, body, 0)));
        }
        None if !rest.is_empty() && !kind.more.iter().any(|known| known == rest) => {
            kind.more.push(rest.to_owned());
        }
        None => {}
    }
}

fn add_verb(kind: &mut Kind, verb: &str, about: &str, choices: Vec<Choice>) {
    if !kind.actions.iter().any(|known| known.verb == verb) {
        kind.actions.push(Verb { verb: verb.to_owned(), about: about.to_owned(), choices });
    }
}

/// The fields of an action's body that are one of a few words, but for that which all actions have.
fn choices(body: &Value) -> Vec<Choice> {
    let fields = body["properties"].as_object().into_iter().flatten();
    let one = |(field, schema): (&String, &Value)| {
        let words = schema["enum"].as_array()?.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        let about = schema["description"].as_str().unwrap_or_default().trim_end_matches('.').to_owned();
        (field != "mode").then(|| Choice { field: field.clone(), about, words })
    };
    fields.filter_map(one).collect()
}

/// The plural of a path that lists a kind, and whether tenants own it.
fn collection(path: &str) -> Option<(&str, bool)> {
    let (rest, of_tenants) = match path.strip_prefix(TENANTS) {
        Some(rest) => (rest, true),
        None => (path.strip_prefix(OPERATORS)?, false),
    };
    let plain = !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
    plain.then_some((rest, of_tenants))
}

/// Name (`MachineType`) and schema of the spec that a path's POST takes.
fn spec<'a>(document: &'a Value, item: &'a Value) -> Option<(&'a str, Value)> {
    let body = &item["post"]["requestBody"]["content"]["application/json"]["schema"];
    let mut spec = &resolve(document, body, 0)["properties"]["spec"];
    if let Some(list) = spec["oneOf"].as_array().or_else(|| spec["allOf"].as_array()) {
        spec = list.iter().find(|schema| schema["$ref"].is_string())?;
    }
    let name = spec["$ref"].as_str()?.rsplit('/').next()?.strip_suffix("Spec")?;
    Some((name, resolve(document, spec, 0).clone()))
}

/// One line about a kind: that of its tag, or of its POST.
fn about(document: &Value, kind: &str, item: &Value) -> Option<String> {
    let named = |tag: &&Value| {
        tag["name"].as_str().is_some_and(|name| name == kind || item["post"]["tags"][0] == name)
    };
    let tag = document["tags"].as_array().into_iter().flatten().find(named);
    let text =
        tag.and_then(|tag| tag["description"].as_str()).or_else(|| item["post"]["summary"].as_str())?;
    Some(text.lines().next().unwrap_or_default().to_owned())
}

fn resolve<'a>(document: &'a Value, schema: &'a Value, depth: usize) -> &'a Value {
    if depth > 16 {
        return schema;
    }
    if let Some(pointer) = schema["$ref"].as_str().and_then(|reference| reference.strip_prefix('#')) {
        return document.pointer(pointer).map_or(schema, |found| resolve(document, found, depth + 1));
    }
    let choices = ["oneOf", "anyOf", "allOf"].into_iter().filter_map(|key| schema[key].as_array()).flatten();
    let mut real = choices.filter(|choice| choice["type"] != "null");
    match (real.next(), real.next()) {
        (Some(only), None) if schema["properties"].is_null() => resolve(document, only, depth + 1),
        _ => schema,
    }
}

/// `MachineType` as `machine-type`.
fn kebab(pascal: &str) -> String {
    let mut text = String::new();
    for letter in pascal.chars() {
        if letter.is_ascii_uppercase() && !text.is_empty() {
            text.push('-');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_locked_document_has_the_kinds() {
        let kinds = Kinds::known();
        let instance = kinds.get("instance").unwrap();
        assert!(instance.of_tenants && !instance.of_operators);
        assert!(instance.actions.iter().any(|action| action.verb == "stop"));
        let suspend = kinds.get("tenant").unwrap().actions.iter().find(|one| one.verb == "suspend").unwrap();
        assert_eq!(suspend.choices[0].field, "instances");
        assert_eq!(suspend.choices[0].words, ["stop", "keep"]);
        assert!(kinds.resolve(&instance.spec)["properties"]["image"].is_object());
        let image = kinds.get("image").unwrap();
        assert!(image.of_tenants && image.of_operators);
        assert_eq!(image.path("acme", false), "/v1/tenants/acme/images");
        assert_eq!(image.path("acme", true), "/v1/images");
        assert_eq!(kinds.get("machine-type").unwrap().path("acme", false), "/v1/machine-types");
        assert!(kinds.get("job").is_none());
    }

    #[test]
    fn references_and_nullables_are_followed() {
        let document = serde_json::json!({"components": {"schemas": {"A": {"type": "string"}}}});
        let kinds = Kinds::of(document);
        let nullable = serde_json::json!({"oneOf": [{"type": "null"}, {"$ref": "#/components/schemas/A"}]});
        assert_eq!(kinds.resolve(&nullable)["type"], "string");
    }
}
