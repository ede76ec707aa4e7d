//! `rhyzome login`, by both of its ways, as people use it: nothing is known but where the API is.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::Story;
use super::browser::{Browser, Page};
use super::realms::ANNA;

/// A person's home.
struct Shell<'a> {
    story: &'a Story,
    home: tempfile::TempDir,
}

impl Shell<'_> {
    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.story.house.world.command(words);
        command
            .env_remove("RHYZOME_HOME")
            .env("XDG_CONFIG_HOME", self.home.path())
            .current_dir(self.home.path());
        command
    }

    fn said(&self, words: &[&str]) -> String {
        let output = self.command(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn refused(&self, words: &[&str]) -> String {
        let output = self.command(words).output().unwrap();
        assert!(!output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).unwrap()
    }

    fn whoami(&self, more: &[&str]) -> Value {
        let said = self.said(&[&["whoami", "--output", "json"], more].concat());
        serde_json::from_str(&said).unwrap()
    }

    /// Runs `rhyzome login`, and does in a browser what it says.
    fn login(&self, words: &[&str], person: impl FnOnce(&str)) -> String {
        let mut command = self.command(&[&["login"], words].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        let url = line.strip_prefix("open ").unwrap_or_else(|| panic!("{line}")).trim().to_owned();
        person(&url);
        let output = child.wait_with_output().unwrap();
        stderr.read_to_string(&mut line).unwrap();
        assert!(output.status.success(), "{words:?}: {line}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn file(&self, profile: &str) -> PathBuf {
        self.home.path().join(format!("rhyzome/profiles/{profile}.json"))
    }

    fn kept(&self, profile: &str) -> Value {
        serde_json::from_str(&std::fs::read_to_string(self.file(profile)).unwrap()).unwrap()
    }
}

/// Logs anna in wherever the page leads to.
fn anna(browser: &mut Browser, url: &str) -> Page {
    let page = browser.open(url);
    browser.send(&page, &[("username", ANNA.0), ("password", ANNA.1)])
}

/// By a code of a device at this issuer, and is anna.
pub fn somebody_logs_in(story: &Story, issuer: &str, profile: &str) {
    let shell = Shell { story, home: tempfile::tempdir().unwrap() };
    let url = format!("http://{}", story.house.world.http);
    shell.login(&["--url", &url, "--issuer", issuer, "--profile", profile], |page| {
        let mut browser = Browser::default();
        let consent = anna(&mut browser, page);
        browser.send(&consent, &[("accept", "Yes")]);
    });
    assert_eq!(shell.whoami(&["--profile", profile])["name"], json!(ANNA.0));
}

pub fn people_log_in_by_the_command_line(story: &Story) {
    let shell = Shell { story, home: tempfile::tempdir().unwrap() };
    let url = format!("http://{}", story.house.world.http);

    // With a code, in any browser.
    let said = shell.login(&["--url", &url], |page| {
        let mut browser = Browser::default();
        let consent = anna(&mut browser, page);
        browser.send(&consent, &[("accept", "Yes")]);
    });
    assert!(said.contains("anna at http://") && said.contains("kept as profile `default`"), "{said}");
    let me = shell.whoami(&[]);
    assert_eq!((&me["name"], &me["operator"]), (&json!(ANNA.0), &json!(true)), "{me:#}");

    // Renewed without a word, when it does not last.
    let mut kept = shell.kept("default");
    (kept["access_token"], kept["expires_at"]) = (json!("worth nothing"), json!(0));
    std::fs::write(shell.file("default"), kept.to_string()).unwrap();
    assert_eq!(shell.whoami(&[])["name"], json!(ANNA.0));
    assert!(shell.kept("default")["expires_at"].as_i64() > Some(0));

    // In a browser on this machine, at a tenant's own realm; both logins are kept.
    let issuer = story.realms.keycloak.issuer("acme");
    let words = ["--url", &url, "--browser", "--issuer", &issuer, "--profile", "acme"];
    shell.login(&words, |page| {
        let end = anna(&mut Browser::default(), page);
        assert!(end.body.contains("You are logged in"), "{end:#?}");
    });
    assert_eq!(shell.whoami(&["--profile", "acme"])["operator"], json!(false));
    assert_eq!(shell.whoami(&[])["operator"], json!(true));

    // Given back: nobody renews it any more.
    let kept = shell.kept("default");
    assert!(shell.said(&["logout"]).contains("logged out of"));
    assert!(!shell.file("default").exists());
    let fields = [
        ("grant_type", "refresh_token"),
        ("client_id", "rhyzome-cli"),
        ("refresh_token", kept["refresh_token"].as_str().unwrap()),
    ];
    let reply = story.realms.form("cloud", "token", &fields);
    assert_eq!(reply.status, 400, "{}", reply.body);
    let said = shell.refused(&["whoami"]);
    assert!(said.contains("no server is known: `rhyzome login --url URL`"), "{said}");
}
