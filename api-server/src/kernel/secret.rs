//! Secrets in specs: a kind marks a field `writeOnly` in its schema, and that is all it does. What is given there
//! is sealed; in its place, in the spec and in everything that is made of it, stands a marker.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::kind::Schemas;

/// The prefix of a secret's id.
pub const PREFIX: &str = "sec";
/// What a marker looks like, as a schema says it.
pub const MARKER_PATTERN: &str = "^sealed:sec_[0-9a-z]{26}$";

const MARK: &str = "sealed:";
const ID_LENGTH: usize = PREFIX.len() + 1 + 26;

/// A secret as it was given. Never printed, and wiped when it is not needed any more.
#[derive(Clone, PartialEq, Eq)]
pub struct Plain(Zeroizing<String>);

impl Plain {
    /// This text.
    pub fn new(text: String) -> Plain {
        Plain(Zeroizing::new(text))
    }

    /// The text itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

/// A secret that a kind makes where none was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Made {
    /// Shown once, to whoever asked: it is of no use to anybody else.
    Shown(Plain),
    /// Shown to nobody, ever.
    Kept(Plain),
    /// Shown to nobody either, and kept nowhere: whoever has the tenant's SSH authority for hosts makes it again.
    HostKey,
}

/// Under which key of the claims stands what everybody may know of the secret behind a marker: the public half of a
/// private key.
pub fn known_key(marker: &str) -> String {
    format!("known:{}", id_of(marker).unwrap_or_default())
}

impl fmt::Debug for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// What stands in a spec for the secret of this id.
pub fn marker(id: &str) -> String {
    format!("{MARK}{id}")
}

/// The id of the one secret that an object of this id has without a row: the same digits. No row has it, as no two ids
/// of anything have the same.
pub fn rowless(holder: &str) -> String {
    format!("{PREFIX}_{}", holder.rsplit('_').next().unwrap_or_default())
}

/// The id of the secret that a text stands for; `None` if it is no marker.
pub fn id_of(text: &str) -> Option<&str> {
    let id = text.strip_prefix(MARK)?;
    let digits = id.strip_prefix(PREFIX)?.strip_prefix('_')?;
    let good = digits.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase());
    (id.len() == ID_LENGTH && good).then_some(id)
}

/// Ids of all secrets whose markers stand in an encoded body, each once.
pub fn ids_within(body: &[u8]) -> BTreeSet<String> {
    let begins = |(at, bytes): (usize, &[u8])| (bytes == MARK.as_bytes()).then_some(at + MARK.len());
    let places = body.windows(MARK.len()).enumerate().filter_map(begins);
    let texts = places.filter_map(|at| std::str::from_utf8(body.get(at - MARK.len()..at + ID_LENGTH)?).ok());
    texts.filter_map(id_of).map(str::to_owned).collect()
}

/// Paths below `spec` of all fields that hold secrets; `*` stands for a map's key.
pub fn paths(schemas: Schemas) -> Vec<String> {
    let value = |schema| serde_json::to_value(schema).unwrap_or_default();
    let parts: Map<String, Value> =
        schemas.parts.into_iter().map(|(name, schema)| (name, value(schema))).collect();
    let mut found = Vec::new();
    find(&value(schemas.spec.1), &parts, String::new(), 0, &mut found);
    found.sort();
    found.dedup();
    found
}

fn find(schema: &Value, parts: &Map<String, Value>, path: String, deep: usize, found: &mut Vec<String>) {
    // A schema may refer to itself; no secret is deeper than this.
    if deep > 8 {
        return;
    }
    if schema["writeOnly"] == Value::Bool(true) {
        return found.push(path);
    }
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    let part = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next());
    if let Some(part) = part.and_then(|name| parts.get(name)) {
        find(part, parts, path.clone(), deep + 1, found);
    }
    for (key, property) in schema["properties"].as_object().into_iter().flatten() {
        find(property, parts, below(key), deep + 1, found);
    }
    if schema["additionalProperties"].is_object() {
        find(&schema["additionalProperties"], parts, below("*"), deep + 1, found);
    }
    for key in ["oneOf", "anyOf", "allOf"] {
        for variant in schema[key].as_array().into_iter().flatten() {
            find(variant, parts, path.clone(), deep + 1, found);
        }
    }
}

/// Every text in a spec at a path, under its own name: `spec.peers.a.key`.
pub fn texts<'a>(spec: &'a mut Value, path: &str) -> Vec<(String, &'a mut String)> {
    let keys: Vec<&str> = path.split('.').collect();
    let mut found = Vec::new();
    walk(spec, &keys, "spec".to_owned(), &mut found);
    found
}

fn walk<'a>(value: &'a mut Value, path: &[&str], at: String, found: &mut Vec<(String, &'a mut String)>) {
    match (path, value) {
        ([], Value::String(text)) => found.push((at, text)),
        (["*", rest @ ..], Value::Object(map)) => {
            for (key, value) in map {
                walk(value, rest, format!("{at}.{key}"), found);
            }
        }
        ([key, rest @ ..], Value::Object(map)) => {
            if let Some(value) = map.get_mut(*key) {
                walk(value, rest, format!("{at}.{key}"), found);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_marker_is_known_and_nothing_else_is_one() {
        let id = format!("sec_{}", "0".repeat(26));
        assert_eq!(id_of(&marker(&id)), Some(id.as_str()));
        for text in ["sealed:", "sealed:sec_1", &id, "sealed:inst_00000000000000000000000000", "whsec_abc"] {
            assert_eq!(id_of(text), None, "{text}");
        }
    }

    #[test]
    fn markers_are_found_in_whatever_bytes() {
        let id = |digit: char| format!("sec_{}", digit.to_string().repeat(26));
        let body = format!("\u{0}{}\u{2}sealed:{}{}sealed:sec_", marker(&id('1')), marker(&id('2')), id('3'));
        let found: Vec<String> = ids_within(body.as_bytes()).into_iter().collect();
        assert_eq!(found, [id('1'), id('2')]);
        assert!(ids_within(b"").is_empty());
    }

    #[test]
    fn fields_are_found_by_their_mark_and_filled_by_their_path() {
        let peer = json!({ "properties": { "key": { "type": "string", "writeOnly": true }, "note": {} } });
        let parts = json!({ "Peer": peer }).as_object().unwrap().clone();
        let spec = json!({ "properties": {
            "pin": { "type": ["string", "null"], "writeOnly": true },
            "peers": { "additionalProperties": { "$ref": "#/components/schemas/Peer" } },
        }});
        let mut found = Vec::new();
        find(&spec, &parts, String::new(), 0, &mut found);
        assert_eq!(found, ["peers.*.key", "pin"]);
        let mut spec = json!({ "pin": null, "peers": { "a": { "key": "k", "note": "n" }, "b": {} } });
        assert!(texts(&mut spec, "pin").is_empty());
        let fields: Vec<String> = texts(&mut spec, "peers.*.key").into_iter().map(|(at, _)| at).collect();
        assert_eq!(fields, ["spec.peers.a.key"]);
    }

    #[test]
    fn a_secret_is_never_printed() {
        assert_eq!(format!("{:?}", Plain::new("hush".into())), "(secret)");
    }
}
