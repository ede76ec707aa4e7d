//! From the schema of a spec to flags, and from their texts to JSON.

use std::io::Read as _;

use rhyzome_client::Kinds;
use serde_json::{Map, Value};

use crate::units;

/// Flags that every verb has; a field of such a name is set by `--set`.
const TAKEN: [&str; 18] = [
    "name",
    "tag",
    "untag",
    "metadata",
    "protected",
    "spec",
    "set",
    "unset",
    "wait",
    "timeout",
    "global",
    "tenant",
    "output",
    "url",
    "token",
    "ca",
    "help",
    "version",
];

/// A field of a spec that has a flag.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// `memory_bytes`
    pub property: String,
    /// `memory`
    pub flag: String,
    /// `memory-bytes`
    pub alias: Option<String>,
    /// What it takes.
    pub form: Form,
    /// For help.
    pub about: String,
    /// Words that it takes, as far as the document knows.
    pub words: Vec<String>,
    /// A text that is long: better from a file.
    pub long: bool,
    /// `immutable` or `needs-stop`; empty if it can be changed at any time.
    pub change: String,
}

/// What a field takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Text, or `@file`.
    Text,
    /// A size in bytes.
    Size,
    /// A duration.
    Seconds,
    /// A whole number.
    Integer,
    /// A number.
    Number,
    /// true or false.
    Bool,
    /// Several texts.
    Texts,
    /// Anything else: JSON.
    Json,
}

/// The fields of a spec that can be flags: everything that is not nested.
pub fn fields(kinds: &Kinds, spec: &Value) -> Vec<Field> {
    let properties = kinds.resolve(spec)["properties"].as_object().cloned().unwrap_or_default();
    let field = |(property, raw): (&String, &Value)| {
        let schema = kinds.resolve(raw);
        let form = form(kinds, property, schema);
        let flag = flag(property);
        if form == Form::Json || TAKEN.contains(&flag.as_str()) {
            return None;
        }
        let long = property.replace('_', "-");
        let alias = if long != flag {
            Some(long)
        } else {
            (form == Form::Texts)
                .then(|| long.trim_end_matches('s').to_owned())
                .filter(|short| *short != flag)
        };
        let about = [&raw["description"], &schema["description"]].into_iter().find_map(Value::as_str);
        let words = [&schema["enum"], &schema["x-extensible-enum"]].into_iter().find_map(Value::as_array);
        let words = words.into_iter().flatten().filter_map(Value::as_str);
        let longest = schema["maxLength"].as_u64().unwrap_or(0);
        Some(Field {
            property: property.clone(),
            flag,
            alias,
            form,
            about: about.unwrap_or_default().lines().next().unwrap_or_default().to_owned(),
            words: words.map(str::to_owned).collect(),
            long: longest > 1000,
            change: raw["x-rhyzome-change"]
                .as_str()
                .filter(|c| *c != "mutable")
                .unwrap_or_default()
                .to_owned(),
        })
    };
    properties.iter().filter_map(field).collect()
}

/// `memory_bytes` as `memory`, `stop_deadline_seconds` as `stop-deadline`.
fn flag(property: &str) -> String {
    let stem =
        property.strip_suffix("_bytes").or_else(|| property.strip_suffix("_seconds")).unwrap_or(property);
    stem.replace('_', "-")
}

fn form(kinds: &Kinds, property: &str, schema: &Value) -> Form {
    let types = match &schema["type"] {
        Value::Array(list) => list.iter().filter_map(Value::as_str).collect(),
        Value::String(one) => vec![one.as_str()],
        _ => Vec::new(),
    };
    match types.into_iter().find(|t| *t != "null") {
        Some("string") => Form::Text,
        Some("integer") if property.ends_with("_bytes") => Form::Size,
        Some("integer") if property.ends_with("_seconds") => Form::Seconds,
        Some("integer") => Form::Integer,
        Some("number") => Form::Number,
        Some("boolean") => Form::Bool,
        Some("array") if form(kinds, "", kinds.resolve(&schema["items"])) == Form::Text => Form::Texts,
        _ => Form::Json,
    }
}

/// What a flag's texts mean.
pub fn read(form: Form, texts: &[String]) -> Result<Value, String> {
    let text = texts.first().map(String::as_str).unwrap_or_default();
    match form {
        Form::Text => text_or_file(text).map(Value::from),
        Form::Size => units::size(text).map(Value::from),
        Form::Seconds => units::seconds(text).map(Value::from),
        Form::Integer => {
            text.parse::<i64>().map(Value::from).map_err(|_| format!("`{text}` is no whole number"))
        }
        Form::Number => text.parse::<f64>().map(Value::from).map_err(|_| format!("`{text}` is no number")),
        Form::Bool => {
            text.parse::<bool>().map(Value::from).map_err(|_| format!("`{text}` is not true or false"))
        }
        Form::Texts => texts.iter().map(|text| text_or_file(text).map(Value::from)).collect(),
        Form::Json => Ok(serde_json::from_str(text).unwrap_or_else(|_| Value::from(text))),
    }
}

/// `@file` as its content, `@-` as what comes on standard input, `@@x` as `@x`, all else as it is.
pub fn text_or_file(text: &str) -> Result<String, String> {
    let Some(path) = text.strip_prefix('@') else { return Ok(text.to_owned()) };
    if path.starts_with('@') {
        return Ok(path.to_owned());
    }
    let mut content = String::new();
    let read = match path {
        "-" => std::io::stdin().read_to_string(&mut content).map(|_| content),
        path => std::fs::read_to_string(path),
    };
    read.map_err(|e| format!("{path} cannot be read: {e}"))
}

/// An object from JSON or `@file`.
pub fn json_object(text: &str) -> Result<Map<String, Value>, String> {
    let text = text_or_file(text)?;
    serde_json::from_str(&text).map_err(|e| format!("this is no JSON object: {e}"))
}

/// Sets `nics.lan.address=10.0.0.9` in a spec; the schema says what the text means.
pub fn set(
    kinds: &Kinds,
    schema: &Value,
    spec: &mut Map<String, Value>,
    assignment: &str,
) -> Result<(), String> {
    let Some((path, text)) = assignment.split_once('=') else {
        return Err(format!("`{assignment}` must be PATH=VALUE, such as nics.lan.address=10.0.0.9"));
    };
    let path = path.strip_prefix("spec.").unwrap_or(path);
    let mut schema = kinds.resolve(schema);
    for part in path.split('.') {
        let below = [&schema["properties"][part], &schema["additionalProperties"], &schema["items"]];
        schema = below.into_iter().find(|s| s.is_object()).map_or(&Value::Null, |s| kinds.resolve(s));
    }
    let last = path.rsplit('.').next().unwrap_or_default();
    let value = match form(kinds, last, schema) {
        // One text for a list: `--set dns='["9.9.9.9"]'`, or the only one of it.
        Form::Texts if text.starts_with('[') => read(Form::Json, &[text.to_owned()]),
        form => read(form, &[text.to_owned()]),
    };
    put(spec, path, value.map_err(|why| format!("{path}: {why}"))?)
}

/// Puts a value at a dotted path, making the objects above it.
pub fn put(object: &mut Map<String, Value>, path: &str, value: Value) -> Result<(), String> {
    let Some((first, rest)) = path.split_once('.') else {
        if path.is_empty() {
            return Err("a path has an empty part".into());
        }
        object.insert(path.to_owned(), value);
        return Ok(());
    };
    let below = object.entry(first).or_insert_with(|| Value::Object(Map::new()));
    if below.is_null() {
        *below = Value::Object(Map::new());
    }
    match below.as_object_mut() {
        Some(below) => put(below, rest, value),
        None => Err(format!("`{first}` is no object: it has no `{rest}`")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(kind: &str) -> (Kinds, Value) {
        let kinds = Kinds::known();
        let spec = kinds.get(kind).unwrap().spec.clone();
        (kinds, spec)
    }

    fn flags(kind: &str) -> Vec<(String, Form)> {
        let (kinds, spec) = of(kind);
        fields(&kinds, &spec).into_iter().map(|field| (field.flag, field.form)).collect()
    }

    #[test]
    fn flags_follow_the_schema() {
        let instance = flags("instance");
        for wanted in [
            ("image", Form::Text),
            ("memory", Form::Size),
            ("vcpus", Form::Integer),
            ("stop-deadline", Form::Seconds),
            ("ssh-keys", Form::Texts),
            ("user-data", Form::Text),
            ("power", Form::Text),
        ] {
            assert!(instance.contains(&(wanted.0.to_owned(), wanted.1)), "{wanted:?} in {instance:?}");
        }
        assert!(!instance.iter().any(|(flag, _)| flag == "nics"));
        assert!(flags("network").contains(&("nat".into(), Form::Bool)));
        assert!(flags("node").contains(&("vcpu-overcommit".into(), Form::Number)));
    }

    #[test]
    fn long_names_stay_as_aliases() {
        let (kinds, spec) = of("instance");
        let fields = fields(&kinds, &spec);
        let alias = |flag: &str| fields.iter().find(|f| f.flag == flag).and_then(|f| f.alias.clone());
        assert_eq!(alias("memory").as_deref(), Some("memory-bytes"));
        assert_eq!(alias("ssh-keys").as_deref(), Some("ssh-key"));
    }

    #[test]
    fn words_and_changes_are_known() {
        let (kinds, spec) = of("instance");
        let fields = fields(&kinds, &spec);
        let field = |flag: &str| fields.iter().find(|f| f.flag == flag).unwrap();
        assert_eq!(field("power").words, ["on", "off", "paused"]);
        assert_eq!(field("image").change, "immutable");
        assert_eq!(field("memory").change, "needs-stop");
        assert!(field("user-data").long && !field("image").long);
    }

    #[test]
    fn texts_become_json() {
        let read = |form, text: &str| read(form, &[text.to_owned()]);
        assert_eq!(read(Form::Size, "512MiB"), Ok(json!(536_870_912)));
        assert_eq!(read(Form::Bool, "false"), Ok(json!(false)));
        assert_eq!(read(Form::Text, "@@home"), Ok(json!("@home")));
        assert!(read(Form::Integer, "many").is_err());
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("init.sh");
        std::fs::write(&file, "#!/bin/sh\n").unwrap();
        assert_eq!(read(Form::Text, &format!("@{}", file.display())), Ok(json!("#!/bin/sh\n")));
        assert!(read(Form::Text, "@/nowhere").unwrap_err().contains("/nowhere"));
    }

    #[test]
    fn paths_are_set_as_the_schema_says() {
        let (kinds, schema) = of("instance");
        let mut spec = Map::new();
        for assignment in [
            "nics.lan.address=10.0.0.9",
            "nics.lan.network=7",
            "root.size_bytes=2GiB",
            "spec.vcpus=2",
            "disks.data.read_only=true",
            "something.new=[1]",
        ] {
            set(&kinds, &schema, &mut spec, assignment).unwrap();
        }
        let wanted = json!({
            "nics": {"lan": {"address": "10.0.0.9", "network": "7"}}, "root": {"size_bytes": 2_147_483_648_u64},
            "vcpus": 2, "disks": {"data": {"read_only": true}}, "something": {"new": [1]},
        });
        assert_eq!(Value::Object(spec.clone()), wanted);
        assert!(set(&kinds, &schema, &mut spec, "vcpus").is_err());
        assert!(set(&kinds, &schema, &mut spec, "vcpus.x=1").is_err());
    }
}
