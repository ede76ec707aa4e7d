//! How things are printed: tables for people, JSON for programs.

use std::io::{self, Write as _};

use comfy_table::{Table, presets};
use jiff::Timestamp;
use rhyzome_client::{Event, Job, Resource};
use serde_json::Value;

use crate::units;

/// Writes a line to standard output: what `say!` does.
pub fn write_line(line: std::fmt::Arguments<'_>) {
    let mut out = io::stdout();
    if let Err(error) = writeln!(out, "{line}").and_then(|()| out.flush()) {
        leave(&error);
    }
}

/// Ends the process, because nobody hears it any more; that is a failure only if the reader did not go by itself.
pub fn leave(error: &io::Error) -> ! {
    if error.kind() == io::ErrorKind::BrokenPipe {
        std::process::exit(0);
    }
    eprintln!("rhyzome: standard output cannot be written to: {error}");
    std::process::exit(1);
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
    /// Names only.
    Name,
}

/// The format that `--output` says.
pub fn format(text: &str) -> Format {
    match text {
        "json" => Format::Json,
        "name" => Format::Name,
        _ => Format::Table,
    }
}

/// A table without lines.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.iter().map(|word| word.to_uppercase()));
    table.add_rows(rows);
    table.lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>().join("\n")
}

/// A list of resources.
pub fn resources(list: &[Resource], with_tenant: bool, now: Timestamp) -> String {
    if list.is_empty() {
        return "there are none".into();
    }
    let details: Vec<Vec<(String, String)>> = list.iter().map(|resource| details(resource, now)).collect();
    let mut columns: Vec<&str> = Vec::new();
    for (name, _) in details.iter().flatten() {
        if !columns.contains(&name.as_str()) && columns.len() < 5 {
            columns.push(name);
        }
    }
    let mut header = vec!["name", "phase"];
    if with_tenant {
        header.insert(0, "tenant");
    }
    header.extend(&columns);
    header.extend(["age", "id"]);
    let rows = list.iter().zip(&details).map(|(resource, details)| {
        let mut row = vec![resource.name.clone(), resource.phase.clone()];
        if with_tenant {
            let all = resource.tenant.is_empty();
            row.insert(0, if all { "(all)".to_owned() } else { resource.tenant.clone() });
        }
        let value = |column: &&str| details.iter().find(|(name, _)| name == column).map(|(_, v)| v.clone());
        row.extend(columns.iter().map(|column| value(column).unwrap_or_default()));
        row.extend([units::age(&resource.created_at, now), resource.id.clone()]);
        row
    });
    table(&header, rows)
}

/// What is worth a column: addresses, and short plain values of status and spec. Of a node first of all its agent, of what
/// WireGuard clients are whether they come.
fn details(resource: &Resource, now: Timestamp) -> Vec<(String, String)> {
    let mut details = Vec::new();
    if resource.kind == "node" {
        for (column, field) in [("agent", "agent_version"), ("skew", "version_skew")] {
            details.push((column.to_owned(), resource.status[field].as_str().unwrap_or_default().to_owned()));
        }
    }
    if matches!(resource.kind.as_str(), "vpn-network" | "wireguard-peer") {
        details.extend(tunnel(&resource.status, now));
    }
    let nics = resource.status["nics"].as_object().into_iter().flatten();
    let addresses: Vec<&str> = nics.filter_map(|(_, nic)| nic["address"].as_str()).collect();
    if !addresses.is_empty() {
        details.push(("address".to_owned(), addresses.join(" ")));
    }
    // Nobody should take it for a machine.
    if resource.status["simulated"] == true {
        details.push(("simulated".to_owned(), "yes".to_owned()));
    }
    details.extend(ending(&resource.status["certificate"]).map(|text| ("certificate".to_owned(), text)));
    for part in [&resource.spec, &resource.status] {
        for (key, value) in part.as_object().into_iter().flatten() {
            // Ids, digests and texts are for `show`.
            let text = plain(key, value);
            let long = matches!(value, Value::String(_)) && (text.len() > 24 || text.contains(['_', '\n']));
            if text.is_empty() || long || details.iter().any(|(known, _)| *known == label(key)) {
                continue;
            }
            details.push((label(key), text));
        }
    }
    details
}

/// What is to be said of a certificate that ends: of one that does not, nothing.
fn ending(certificate: &Value) -> Option<String> {
    let at = certificate["expires_at"].as_str()?.get(..16)?.replace('T', " ");
    match (&certificate["expired"], &certificate["expires_soon"]) {
        (Value::Bool(true), _) => Some(format!("ended {at}")),
        (_, Value::Bool(true)) => Some(format!("ends {at}")),
        _ => None,
    }
}

/// Where a client called from last, how long ago, and what went through.
fn tunnel(status: &Value, now: Timestamp) -> Vec<(String, String)> {
    let word = |field: &str| status[field].as_str().unwrap_or_default();
    let bytes = |field: &str| plain(field, &status[field]);
    let address = status["config"]["address"].as_str().unwrap_or_default();
    let own = if word("network").is_empty() { address } else { word("network") };
    let columns = [
        ("network", own.to_owned()),
        ("endpoint", word("endpoint").to_owned()),
        ("handshake", units::age(word("last_handshake_at"), now)),
        ("received", bytes("received_bytes")),
        ("sent", bytes("sent_bytes")),
    ];
    columns.map(|(name, value)| (name.to_owned(), value)).into()
}

/// `memory_bytes` as `memory`.
fn label(key: &str) -> String {
    key.strip_suffix("_bytes").or_else(|| key.strip_suffix("_seconds")).unwrap_or(key).replace('_', "-")
}

/// A value that is not nested, as people write it.
fn plain(key: &str, value: &Value) -> String {
    match value {
        Value::Number(number) if key.ends_with("_bytes") => {
            number.as_u64().map_or_else(|| number.to_string(), units::human_size)
        }
        Value::Number(number) if key.ends_with("_seconds") => format!("{number}s"),
        Value::Number(number) => number.to_string(),
        Value::Bool(true) => "yes".into(),
        Value::Bool(false) => "no".into(),
        Value::String(text) => text.clone(),
        _ => String::new(),
    }
}

/// One thing, line by line, nested things indented.
pub fn lines(value: &Value) -> String {
    let mut text = String::new();
    nested(value, 0, &mut text);
    text.trim_end().to_owned()
}

fn nested(value: &Value, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    let mut line = |key: &str, value: &Value| match value {
        Value::Object(map) if map.is_empty() => {}
        Value::Array(list) if list.is_empty() => {}
        Value::Null => {}
        Value::Object(_) | Value::Array(_) => {
            text.push_str(&format!("{indent}{key}:\n"));
            nested(value, depth + 1, text);
        }
        Value::String(long) if long.contains('\n') => {
            text.push_str(&format!("{indent}{key}: |\n"));
            for one in long.lines() {
                text.push_str(&format!("{indent}  {one}\n"));
            }
        }
        plain_value => text.push_str(&format!("{indent}{key}: {}\n", plain(key, plain_value))),
    };
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| line(key, value)),
        Value::Array(list) => list.iter().for_each(|value| match value {
            Value::Object(_) | Value::Array(_) => line("-", value),
            value => line("-", value),
        }),
        value => line("", value),
    }
}

/// One resource: what it is called first, then what is, then what is wanted.
pub fn resource(resource: &Resource, now: Timestamp) -> String {
    let mut text = format!("{} {} is {}\n", resource.kind, resource.name, resource.phase);
    let mut line = |key: &str, value: String| {
        if !value.is_empty() {
            text.push_str(&format!("  {key}: {value}\n"));
        }
    };
    line("id", resource.id.clone());
    line("tenant", resource.tenant.clone());
    line(
        "tags",
        resource.tags.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" "),
    );
    line("made", format!("{} ({} ago)", resource.created_at, units::age(&resource.created_at, now)));
    line("version", resource.version.to_string());
    line("protected", if resource.protected { "yes".into() } else { String::new() });
    line("job", resource.job.clone().unwrap_or_default());
    for (key, value) in
        [("status", &resource.status), ("spec", &resource.spec), ("metadata", &resource.metadata)]
    {
        let inner = lines(value);
        if !inner.is_empty() {
            text.push_str(&format!("{key}:\n"));
            inner.lines().for_each(|line| text.push_str(&format!("  {line}\n")));
        }
    }
    text.trim_end().to_owned()
}

/// A list of jobs.
pub fn jobs(list: &[Job], now: Timestamp) -> String {
    if list.is_empty() {
        return "there are none".into();
    }
    let rows = list.iter().map(|job| {
        let created = job.more.get("created_at").and_then(Value::as_str).unwrap_or_default();
        let of = if job.resource_name.is_empty() { &job.resource } else { &job.resource_name };
        vec![
            job.id.clone(),
            job.verb.clone(),
            format!("{} {of}", job.kind),
            job.state.clone(),
            units::age(created, now),
            job.problem.clone().unwrap_or_default(),
        ]
    });
    table(&["id", "verb", "of", "state", "age", "problem"], rows)
}

/// An event on a line of its own.
pub fn event(event: &Event, with_tenant: bool) -> String {
    let what =
        if event.class == "phase" { String::new() } else { format!("{} {}", event.verb, event.outcome) };
    let phase = event.phase.as_ref().map(|phase| format!("is {phase}")).unwrap_or_default();
    let of = match &event.tenant {
        Some(tenant) if with_tenant => format!("{} {tenant}/{}", event.kind, event.name),
        _ => format!("{} {}", event.kind, event.name),
    };
    let words = [of.trim(), what.trim(), &phase, &by(event), &event.detail];
    let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
    format!("{} {:>6}  {:<6} {}", event.at, event.seq, event.class, words.join("  "))
}

fn by(event: &Event) -> String {
    if event.actor.is_empty() { String::new() } else { format!("by {}", event.actor) }
}

/// The audit.
pub fn audit(list: &[Event], with_tenant: bool) -> String {
    if list.is_empty() {
        return "there is nothing".into();
    }
    let mut header = vec!["seq", "at", "actor", "source", "verb", "of", "outcome", "detail"];
    if with_tenant {
        header.insert(2, "tenant");
    }
    let rows = list.iter().map(|event| {
        let source = event.more.get("source").and_then(Value::as_str).unwrap_or_default();
        let mut row = vec![
            event.seq.to_string(),
            event.at.clone(),
            event.actor.clone(),
            source.to_owned(),
            event.verb.clone(),
            format!("{} {}", event.kind, event.name).trim().to_owned(),
            event.outcome.clone(),
            event.detail.clone(),
        ];
        if with_tenant {
            row.insert(2, event.tenant.clone().unwrap_or_default());
        }
        row
    });
    table(&header, rows)
}

/// One job with its steps.
pub fn job(job: &Job) -> String {
    let mut text =
        format!("job {}: {} {} {} is {}", job.id, job.verb, job.kind, job.resource_name, job.state);
    if let Some(problem) = &job.problem {
        text.push_str(&format!("\n  problem: {problem}"));
    }
    if let Some(due) = job.due_at.as_ref().filter(|_| job.attempts > 0) {
        text.push_str(&format!("\n  tried in vain {} times, again at {due} at the latest", job.attempts));
    }
    for left in &job.left_behind {
        text.push_str(&format!("\n  left behind: {left}"));
    }
    for step in &job.steps {
        text.push_str(&format!("\n  {:<8} {}", step.state, describe(&step.what)));
        if !step.message.is_empty() {
            text.push_str(&format!(": {}", step.message));
        }
    }
    text
}

/// A step in words: `assign disk_1`.
pub fn describe(what: &Value) -> String {
    let who = match &what["who"] {
        Value::String(this) => this.clone(),
        Value::Object(map) => map.values().filter_map(Value::as_str).collect(),
        _ => String::new(),
    };
    let verb = what["do"].as_str().unwrap_or_default().replace('_', " ");
    format!("{verb} {who}").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn web() -> Resource {
        serde_json::from_value(json!({
            "id": "inst_1", "kind": "instance", "tenant": null, "name": "web", "phase": "running",
            "created_at": "2026-11-21T03:00:00Z", "tags": {"env": "prod"},
            "spec": {"memory_bytes": 536_870_912, "image": "img_1", "user_data": "#!/bin/sh\necho hi\n"},
            "status": {"power": "running", "nics": {"lan": {"address": "10.0.0.9"}}},
        }))
        .unwrap()
    }

    #[test]
    fn a_list_is_a_table() {
        let text = resources(&[web()], false, "2026-11-21T03:01:00Z".parse().unwrap());
        let mut lines = text.lines();
        let header: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
        assert_eq!(header, ["NAME", "PHASE", "ADDRESS", "MEMORY", "POWER", "AGE", "ID"]);
        assert!(lines.next().unwrap().contains("512 MiB"), "{text}");
        assert_eq!(resources(&[], false, Timestamp::UNIX_EPOCH), "there are none");
    }

    #[test]
    fn a_list_of_nodes_shows_versions_that_are_apart() {
        let node = json!({
            "id": "node_1", "kind": "node", "tenant": null, "name": "rack1", "phase": "ready",
            "created_at": "2026-11-21T03:00:00Z", "spec": {"cordoned": false},
            "status": {"agent_version": "0.3.0", "version_skew": "older", "vcpus": 4},
        });
        let node: Resource = serde_json::from_value(node).unwrap();
        let text = resources(&[node], false, "2026-11-21T03:01:00Z".parse().unwrap());
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0][2..4], ["AGENT", "SKEW"], "{text}");
        assert_eq!(lines[1][2..4], ["0.3.0", "older"], "{text}");
    }

    #[test]
    fn a_certificate_that_ends_is_seen_in_lists() {
        let tenant = |soon: bool, over: bool| -> Resource {
            serde_json::from_value(json!({
                "id": "ten_1", "kind": "tenant", "tenant": null, "name": "acme", "phase": "ready",
                "created_at": "2026-11-21T03:00:00Z", "spec": {},
                "status": {"certificate": {"expires_at": "2026-12-04T10:00:00Z", "expires_soon": soon, "expired": over}},
            }))
            .unwrap()
        };
        let now = "2026-11-21T03:01:00Z".parse().unwrap();
        let text = |soon, over| resources(&[tenant(soon, over)], false, now);
        assert!(!text(false, false).contains("CERTIFICATE"));
        assert!(text(true, false).contains(" ends 2026-12-04 10:00 "), "{}", text(true, false));
        assert!(text(true, true).contains(" ended 2026-12-04 10:00 "), "{}", text(true, true));
        // All of it is for `show`.
        let shown = resource(&tenant(true, false), now);
        assert!(shown.contains("expires_soon") && shown.contains("2026-12-04T10:00:00Z"), "{shown}");
    }

    #[test]
    fn a_list_of_clients_shows_who_comes() {
        let one = |status: Value| -> Resource {
            serde_json::from_value(json!({
                "id": "vpnn_1", "kind": "vpn-network", "tenant": "default", "name": "laptop", "phase": "ready",
                "created_at": "2026-11-21T03:00:00Z", "spec": {"enabled": true, "keepalive_seconds": 25},
                "status": status,
            }))
            .unwrap()
        };
        let came = one(json!({
            "network": "2001:db8:1::/48", "endpoint": "192.0.2.7:4711", "received_bytes": 2048, "sent_bytes": 92,
            "last_handshake_at": "2026-11-21T03:00:40.000000Z", "config": {"address": "2001:db8:1::1/128"},
        }));
        let text = resources(&[came, one(json!({}))], false, "2026-11-21T03:01:00Z".parse().unwrap());
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0][2..7], ["NETWORK", "ENDPOINT", "HANDSHAKE", "RECEIVED", "SENT"], "{text}");
        assert_eq!(
            lines[1][2..],
            ["2001:db8:1::/48", "192.0.2.7:4711", "20s", "2", "KiB", "92", "B", "60s", "vpnn_1"]
        );
        assert_eq!(lines[2], ["laptop", "ready", "60s", "vpnn_1"], "none of it is known yet: {text}");
    }

    #[test]
    fn a_simulated_node_is_not_taken_for_a_machine() {
        let node = |simulated: bool| Resource { status: json!({"simulated": simulated}), ..web() };
        assert!(resources(&[node(true)], false, Timestamp::UNIX_EPOCH).contains(" SIMULATED "));
        let real = resources(&[node(false), node(true)], false, Timestamp::UNIX_EPOCH);
        assert!(real.lines().nth(1).unwrap().contains(" no "), "{real}");
    }

    #[test]
    fn one_is_shown_in_lines() {
        let text = resource(&web(), "2026-11-21T03:01:00Z".parse().unwrap());
        assert!(text.starts_with("instance web is running\n"), "{text}");
        assert!(text.contains("tags: env=prod"), "{text}");
        assert!(text.contains("memory_bytes: 512 MiB"), "{text}");
        assert!(text.contains("  user_data: |\n    #!/bin/sh\n"), "{text}");
    }

    #[test]
    fn steps_are_words() {
        assert_eq!(describe(&json!({"do": "assign", "who": {"id": "disk_1"}})), "assign disk_1");
        assert_eq!(describe(&json!({"do": "await_applied", "who": "this"})), "await applied this");
    }
}
