//! `rhyzome-api user bootstrap`: the first who may do everything, without being the operator's token.

use std::os::unix::fs::PermissionsExt as _;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::operator::Client;
use super::place::Place;

/// `secret`, as `htpasswd -nbB -C 4 NAME secret` writes it.
const HASH: &str = "$2y$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW";

/// Two authenticators that know the same two people.
fn with_people(place: &Place) {
    let file = place.path().join("rhyzome-api.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let passwords = place.path().join("htpasswd");
    std::fs::write(&passwords, format!("anna:{HASH}\nbert:{HASH}\n")).unwrap();
    std::fs::set_permissions(&passwords, std::fs::Permissions::from_mode(0o640)).unwrap();
    if let (true, Some(user)) =
        (nix::unistd::geteuid().is_root(), nix::unistd::User::from_name("nobody").unwrap())
    {
        nix::unistd::chown(&passwords, Some(user.uid), Some(user.gid)).unwrap();
    }
    config["auth"] =
        json!({ "authenticators": [{ "type": "htpasswd", "name": "staff", "file": passwords }] });
    std::fs::write(&file, config.to_string()).unwrap();
}

fn who(client: &Client, name: &str) -> Value {
    let pair = BASE64_STANDARD.encode(format!("{name}:secret"));
    let (status, me) = client.call_as(&format!("Basic {pair}"), "GET", "/v1/whoami", "");
    assert_eq!(status, 200, "{me:#}");
    me
}

#[test]
fn the_first_administrator_is_made_before_they_come_or_after() {
    for place in Place::both() {
        with_people(&place);
        place.done(&["migrate"]);
        let unknown = place.refused(&["user", "bootstrap", "--username", "anna"]);
        assert!(unknown.contains("nobody called `anna` has logged in yet"), "{unknown}");
        // Before: they are awaited.
        let awaited = place.done(&["user", "bootstrap", "--username", "anna", "--authenticator", "staff"]);
        assert!(
            awaited.contains("anna is awaited") && awaited.contains("may do everything: binding"),
            "{awaited}"
        );
        let server = place.serve();
        let client = Client::of(&place);
        let (anna, bert) = (who(&client, "anna"), who(&client, "bert"));
        assert_eq!(
            (&anna["operator"], &bert["operator"]),
            (&json!(true), &json!(false)),
            "{anna:#} {bert:#}"
        );
        assert!(awaited.contains(anna["user"].as_str().unwrap()), "{awaited}: {anna:#}");
        // After, beside a server that is at work.
        let known = place.done(&["user", "bootstrap", "--username", "bert"]);
        assert!(known.contains("may do everything: binding") && !known.contains("awaited"), "{known}");
        let again = place.done(&["user", "bootstrap", "--username", "bert"]);
        assert!(again.contains("may do everything already"), "{again}");
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while who(&client, "bert")["operator"] != true {
            assert!(std::time::Instant::now() < end, "it does not count");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        // Of several who are called so, one is meant.
        place.done(&["user", "bootstrap", "--username", "anna", "--authenticator", "other"]);
        let several = place.refused(&["user", "bootstrap", "--username", "anna"]);
        assert!(
            several.contains("there are several called `anna`") && several.contains("staff"),
            "{several}"
        );
        server.stop();
    }
}
