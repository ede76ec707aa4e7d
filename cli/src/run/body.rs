//! The body of a create or an edit, from the flags.

use clap::ArgMatches;
use rhyzome_client::{Kind, Kinds};
use serde_json::{Map, Value, json};

use super::{Usage, text, texts};
use crate::command;
use crate::fields::{self, fields};

/// The body of a create.
pub fn create(kinds: &Kinds, kind: &Kind, leaf: &ArgMatches) -> Result<Value, Usage> {
    let mut body = common(leaf)?;
    if let Some(name) = text(leaf, "name") {
        body.insert("name".into(), name.into());
    }
    body.insert("spec".into(), Value::Object(spec(kinds, kind, leaf)?));
    Ok(Value::Object(body))
}

/// The merge patch of an edit.
pub fn edit(kinds: &Kinds, kind: &Kind, leaf: &ArgMatches) -> Result<Value, Usage> {
    let mut body = common(leaf)?;
    if let Some(name) = text(leaf, "rename") {
        body.insert("name".into(), name.into());
    }
    for key in texts(leaf, "untag") {
        let tags = body.entry("tags").or_insert_with(|| json!({}));
        tags[key] = Value::Null;
    }
    let mut spec = spec(kinds, kind, leaf)?;
    for path in texts(leaf, "unset") {
        let path = path.strip_prefix("spec.").unwrap_or(&path);
        fields::put(&mut spec, path, Value::Null).map_err(|why| Usage(format!("--unset: {why}")))?;
    }
    if !spec.is_empty() {
        body.insert("spec".into(), Value::Object(spec));
    }
    if body.is_empty() {
        let words = "nothing to change was said: give a field, --set PATH=VALUE, --tag, --rename...";
        return Err(Usage(format!("{words}\n  `rhyzome {} edit --help` lists them", kind.kind)));
    }
    Ok(Value::Object(body))
}

fn common(leaf: &ArgMatches) -> Result<Map<String, Value>, Usage> {
    let mut body = Map::new();
    let tags = texts(leaf, "tag").iter().map(|tag| pair("--tag", tag)).collect::<Result<Map<_, _>, _>>()?;
    if !tags.is_empty() {
        body.insert("tags".into(), Value::Object(tags));
    }
    if let Some(metadata) = text(leaf, "metadata") {
        let metadata = fields::json_object(&metadata).map_err(|why| Usage(format!("--metadata: {why}")))?;
        body.insert("metadata".into(), Value::Object(metadata));
    }
    if let Some(protected) = text(leaf, "protected") {
        body.insert("protected".into(), (protected == "true").into());
    }
    Ok(body)
}

/// `env=prod`
fn pair(flag: &str, text: &str) -> Result<(String, Value), Usage> {
    let (key, value) =
        text.split_once('=').ok_or_else(|| Usage(format!("{flag} {text}: must be KEY=VALUE")))?;
    Ok((key.to_owned(), value.into()))
}

/// `--spec`, then the flags, then `--set`: the later ones win.
fn spec(kinds: &Kinds, kind: &Kind, leaf: &ArgMatches) -> Result<Map<String, Value>, Usage> {
    let mut spec = match text(leaf, "spec") {
        Some(text) => fields::json_object(&text).map_err(|why| Usage(format!("--spec: {why}")))?,
        None => Map::new(),
    };
    for field in fields(kinds, &kind.spec) {
        let given = texts(leaf, &command::id(&field));
        if !given.is_empty() {
            let value =
                fields::read(field.form, &given).map_err(|why| Usage(format!("--{}: {why}", field.flag)))?;
            spec.insert(field.property, value);
        }
    }
    for assignment in texts(leaf, "set") {
        fields::set(kinds, &kind.spec, &mut spec, &assignment)
            .map_err(|why| Usage(format!("--set: {why}")))?;
    }
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(line: &str) -> Result<Value, Usage> {
        let kinds = Kinds::known();
        let words = ["rhyzome"].into_iter().chain(line.split(' '));
        let matches = command::command(&kinds).try_get_matches_from(words).unwrap();
        let (noun, rest) = matches.subcommand().unwrap();
        let (verb, leaf) = rest.subcommand().unwrap();
        let kind = kinds.get(noun).unwrap();
        if verb == "create" { create(&kinds, kind, leaf) } else { edit(&kinds, kind, leaf) }
    }

    #[test]
    fn a_create_from_flags() {
        let line = "instance create web --image tiny --memory 512MiB --ssh-key a --ssh-keys b --tag env=prod \
                    --set nics.lan.address=10.0.0.9 --stop-deadline 2m --power off --protected";
        let wanted = json!({
            "name": "web", "tags": {"env": "prod"}, "protected": true,
            "spec": {
                "image": "tiny", "memory_bytes": 536_870_912, "ssh_keys": ["a", "b"], "power": "off",
                "nics": {"lan": {"address": "10.0.0.9"}}, "stop_deadline_seconds": 120,
            },
        });
        assert_eq!(body(line).unwrap(), wanted);
        assert_eq!(body("network create --nat=false").unwrap(), json!({"spec": {"nat": false}}));
        assert_eq!(body("disk create --size 10GiB").unwrap()["spec"]["size_bytes"], 10_u64 << 30);
    }

    #[test]
    fn the_later_ones_win() {
        let line = "instance create --spec {\"image\":\"a\",\"vcpus\":1} --image b --set vcpus=3";
        assert_eq!(body(line).unwrap()["spec"], json!({"image": "b", "vcpus": 3}));
    }

    #[test]
    fn an_edit_is_a_merge_patch() {
        let line = "instance edit web --rename www --untag env --tag a=b --unset disks.data --vcpus 2";
        let wanted = json!({
            "name": "www", "tags": {"a": "b", "env": null}, "spec": {"disks": {"data": null}, "vcpus": 2},
        });
        assert_eq!(body(line).unwrap(), wanted);
        assert!(body("instance edit web").unwrap_err().0.contains("nothing to change"));
        assert!(body("instance edit web --tag x").unwrap_err().0.contains("KEY=VALUE"));
        assert!(body("disk edit d --size huge").unwrap_err().0.contains("--size"));
    }
}
