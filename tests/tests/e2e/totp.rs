//! A second factor as people use it: a file of passwords, `rhyzome totp`, an app, and a token that needs no code.

use std::fs;
use std::time::SystemTime;

use rhyzome_api::kernel::{Timestamp, totp};
use serde_json::json;
use url::Url;

use crate::house::{self, House};

/// `secret`, as `htpasswd -nbB -C 4 anna secret` writes it.
const LINE: &str = "anna:$2y$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n";

struct Story {
    house: House,
    folder: tempfile::TempDir,
}

impl Story {
    fn new() -> Story {
        let folder = house::folder();
        let write = |name: &str, text: &str| {
            let file = folder.path().join(name);
            fs::write(&file, text).unwrap();
            house::own(&file);
            file
        };
        let file = write("htpasswd", LINE);
        write("password", "secret\n");
        let entry = json!({ "type": "htpasswd", "name": "staff", "file": file, "second_factor": "required" });
        let house = House::with(house::shared(), |options| {
            options.nodes.clear();
            options.config = json!({ "auth": { "authenticators": [entry] } });
        });
        Story { house, folder }
    }

    fn words<'a>(&self, file: &'a str, words: &[&'a str]) -> Vec<&'a str> {
        [&["--as", "anna", "--password-file", file], words].concat()
    }

    fn said(&self, words: &[&str]) -> String {
        let file = self.folder.path().join("password").display().to_string();
        self.house.world.said(&self.words(&file, words)).unwrap()
    }

    fn refused(&self, words: &[&str]) -> String {
        let file = self.folder.path().join("password").display().to_string();
        self.house.world.said(&self.words(&file, words)).unwrap_err().to_string()
    }
}

/// The code that an app shows so many steps from now.
fn code(key: &[u8], ahead: i64) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    totp::code(key, totp::step(Timestamp(i64::try_from(now.as_micros()).unwrap())) + ahead)
}

/// What an app reads from the QR code.
fn key_of(uri: &str) -> Vec<u8> {
    let url: Url = uri.parse().unwrap();
    assert_eq!((url.scheme(), url.host_str()), ("otpauth", Some("totp")));
    let secret = url.query_pairs().find(|(key, _)| key == "secret").unwrap().1.into_owned();
    let mut bits = String::new();
    for letter in secret.chars() {
        let value = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567".find(letter).unwrap();
        bits.push_str(&format!("{value:05b}"));
    }
    bits.as_bytes()
        .chunks_exact(8)
        .map(|eight| u8::from_str_radix(std::str::from_utf8(eight).unwrap(), 2).unwrap())
        .collect()
}

#[test]
fn a_password_an_app_and_a_token() {
    let story = Story::new();
    let refused = story.refused(&["token", "list"]);
    assert!(refused.contains("rhyzome totp enrol"), "{refused}");

    let shown = story.said(&["totp", "enrol"]);
    // A picture, and what is in it.
    assert!(shown.contains('\u{2588}') && shown.contains("totp confirm CODE"), "{shown}");
    let key = key_of(shown.lines().find(|line| line.starts_with("otpauth://")).unwrap());
    let refused = story.refused(&["totp", "confirm", "12345"]);
    assert!(refused.contains("six digits"), "{refused}");
    let confirmed = story.said(&["totp", "confirm", &code(&key, 0)]);
    let recovery: Vec<&str> = confirmed.lines().filter_map(|line| line.strip_prefix("  ")).collect();
    assert_eq!(recovery.len(), 10, "{confirmed}");

    let refused = story.refused(&["whoami"]);
    assert!(refused.contains("--otp"), "{refused}");
    // The step to come is taken already; then the first code for when the app is gone.
    let made = story.said(&["--otp", &code(&key, 1), "token", "create", "laptop", "-o", "json"]);
    let made: serde_json::Value = serde_json::from_str(&made).unwrap();
    let token = made["secrets"]["token"].as_str().unwrap();
    let me = story.house.world.json(&["--token", token, "whoami"]).unwrap();
    assert_eq!((&me["name"], &me["credential"]), (&json!("anna"), &json!("token laptop")));
    let shown = story.said(&["--otp", recovery[0], "totp", "show"]);
    assert!(shown.lines().last().unwrap().starts_with("yes") && shown.trim().ends_with('9'), "{shown}");
    let refused = story.refused(&["--otp", recovery[0], "totp", "show"]);
    assert!(refused.contains("each counts once"), "{refused}");

    // The operator, for somebody who has lost everything.
    story.house.world.said(&["totp", "reset", "anna"]).unwrap();
    let shown = story.said(&["totp", "show"]);
    assert!(shown.lines().last().unwrap().starts_with("no"), "{shown}");
}
