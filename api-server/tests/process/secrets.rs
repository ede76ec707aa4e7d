//! A thousand secrets are planted by REST, and looked for wherever a server leaves anything: files, the database and its
//! logs, what it says, what the system tells of the process, backups, a crash.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use serde_json::json;

use super::operator::Client;
use super::place::Place;

/// Two for each webhook: the one that it was made with, and another.
const WEBHOOKS: usize = 500;
const ALL: &str = "/v1/tenants/default/webhooks";
/// In the spec of each, for all to see.
const CANARY: &str = "canary-in-the-open";

/// What is planted, before it is written as a webhook's secret is.
fn plain(number: usize) -> String {
    format!("planted-{number:04}-{:016x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn secret(number: usize) -> String {
    format!("whsec_{}", BASE64_STANDARD.encode(plain(number)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// All forms that a secret could lie about in: as it was sent, as bytes, and as dumps show either.
fn forms() -> BTreeSet<Vec<u8>> {
    let forms = |number: usize| {
        let (plain, sent) = (plain(number), BASE64_STANDARD.encode(plain(number)));
        [hex(plain.as_bytes()), hex(sent.as_bytes()), plain, sent].map(String::into_bytes)
    };
    (0..2 * WEBHOOKS).flat_map(forms).collect()
}

/// All files below a folder but the keys themselves.
fn files(folder: &Path, into: &mut Vec<u8>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files(&path, into);
        } else if path.file_name().is_some_and(|name| name != "sealing.keys") {
            into.extend(std::fs::read(&path).unwrap());
        }
    }
}

/// Where all forms begin alike: one look through the bytes finds all of them.
fn found(bytes: &[u8]) -> usize {
    let forms = forms();
    let heads: BTreeSet<&[u8]> = forms.iter().map(|form| &form[..8]).collect();
    let mut found = 0;
    for (at, window) in bytes.windows(8).enumerate() {
        if heads.contains(window) {
            found += forms.iter().filter(|form| bytes[at..].starts_with(form)).count();
        }
    }
    found
}

fn plant(client: &Client) {
    for number in 0..WEBHOOKS {
        // Some are opened, to sign what is sent; nobody is there.
        let enabled = number.is_multiple_of(100);
        let spec = json!({"url": "https://nobody.invalid/x", "secret": secret(2 * number), "enabled": enabled, "description": CANARY});
        let body = json!({"name": format!("h{number}"), "spec": spec}).to_string();
        assert_eq!(client.call("POST", ALL, &body).0, 201);
        let other = json!({"spec": {"secret": secret(2 * number + 1)}}).to_string();
        assert_eq!(client.call("PATCH", &format!("{ALL}/h{number}"), &other).0, 200);
        // What is wrong is told, and logged, without what was said.
        let wrong = json!({"spec": {"secret": secret(2 * number).repeat(9), "url": 1}}).to_string();
        assert_eq!(client.call("PATCH", &format!("{ALL}/h{number}"), &wrong).0, 422);
    }
}

#[test]
fn the_search_finds_each_form() {
    for form in forms().iter().step_by(97) {
        let hay = [b"before ", form.as_slice(), b" after"].concat();
        assert_eq!(found(&hay), 1, "{}", String::from_utf8_lossy(form));
    }
}

#[test]
fn a_thousand_secrets_are_found_nowhere_that_a_server_leaves_anything() {
    // A crash of anything else here would leave one; the server forbids itself.
    let (_, most) = getrlimit(Resource::RLIMIT_CORE).unwrap();
    setrlimit(Resource::RLIMIT_CORE, most, most).unwrap();
    for place in Place::both() {
        let log = place.path().join("log");
        let server = place.serve_saying(&log);
        let client = Client::of(&place);
        plant(&client);
        // Sealed anew while it runs, and a backup of that.
        place.done(&["secret", "rotate"]);
        let backup = place.path().join("backup.jsonl");
        let said = place.done(&["backup", &backup.display().to_string()]);

        let pid = server.pid();
        let proc = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).unwrap();
        let (command, limits) = (proc("cmdline"), String::from_utf8(proc("limits")).unwrap());
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().collect::<Vec<_>>()[4..6], ["0", "0"], "{core}");
        let mut all = [command, proc("environ"), said.into_bytes()].concat();
        let status = server.crash(Signal::SIGABRT);
        assert!(status.signal() == Some(Signal::SIGABRT as i32) && !status.core_dumped(), "{status}");
        let dumps = std::fs::read_dir(place.path()).unwrap().flatten();
        let dumps = dumps.filter(|entry| entry.file_name().to_string_lossy().starts_with("core"));
        assert_eq!(dumps.count(), 0, "a core dump is left");

        files(place.path(), &mut all);
        all.extend(place.written());
        let text = String::from_utf8_lossy(&all);
        let log = std::fs::read_to_string(&log).unwrap();
        assert!(
            text.matches(CANARY).count() >= WEBHOOKS && text.contains("sealed:sec_"),
            "it looks at what is there"
        );
        assert!(log.lines().count() > WEBHOOKS, "the log is on: {log}");
        assert!(std::fs::read_to_string(&backup).unwrap().contains("sealed:sec_"));
        assert_eq!(found(&all), 0);
    }
}
