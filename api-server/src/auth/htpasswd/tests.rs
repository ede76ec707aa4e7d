//! Who gets in by a password, and who does not any more.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

use super::super::Authenticators;
use super::super::guesses::TRIES;
use super::super::testing::{Watch, env};
use super::*;
use crate::auth::{Authenticator, RequestDetails};

fn line(user: &str, password: &str) -> String {
    let hash = bcrypt::hash_with_result(password, 4).unwrap().format_for_version(bcrypt::Version::TwoY);
    format!("{user}:{hash}\n")
}

/// Written beside and moved there, so that it is another file each time, however quickly one follows the other.
fn write(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).unwrap();
    std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o640)).unwrap();
    std::fs::rename(beside, path).unwrap();
}

struct World {
    folder: tempfile::TempDir,
    watch: Watch,
    htpasswd: Htpasswd,
}

impl World {
    fn new(passwords: &str, groups: &str) -> World {
        let (folder, watch) = (tempfile::tempdir().unwrap(), Watch::default());
        write(&folder.path().join("passwords"), passwords);
        write(&folder.path().join("groups"), groups);
        let settings = json!({
            "file": folder.path().join("passwords"), "groups_file": folder.path().join("groups"),
        });
        let terms = Terms { authenticator: "staff".into(), ..Terms::default() };
        let settings = serde_json::from_value(settings).unwrap();
        let htpasswd = Htpasswd::new(terms, settings, &env(&watch)).unwrap();
        World { folder, watch, htpasswd }
    }

    fn passwords(&self, text: &str) {
        write(&self.folder.path().join("passwords"), text);
    }

    async fn ask(&self, user: &str, password: &str) -> Verdict {
        self.ask_from(user, password, "192.0.2.1").await
    }

    async fn ask_from(&self, user: &str, password: &str, source: &str) -> Verdict {
        let header = format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")));
        let request = RequestDetails { source: source.into(), ..RequestDetails::default() };
        self.htpasswd.authenticate(Some(&header), &request).await
    }
}

fn is_wrong(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Wrong(_))
}

#[tokio::test]
async fn of_two_who_ask_for_passwords_neither_shuts_out_the_people_of_the_other() {
    let first = World::new(&line("anna", "secret"), "");
    let people: Vec<String> = (0..3 * TRIES.0).map(|number| format!("bert{number}")).collect();
    let second = World::new(&people.iter().map(|name| line(name, "other")).collect::<String>(), "");
    let list: Vec<Arc<dyn Authenticator>> = vec![Arc::new(first.htpasswd), Arc::new(second.htpasswd)];
    let both = Authenticators::new(list);
    let ask = async |user: &str, password: &str| {
        let header = format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")));
        let request = RequestDetails { source: "192.0.2.1".into(), ..RequestDetails::default() };
        both.authenticate(Some(&header), &request).await.map(|caller| caller.name)
    };
    for name in &people {
        assert_eq!(ask(name, "other").await.as_ref(), Ok(name));
    }
    assert_eq!(ask("anna", "secret").await.as_deref(), Ok("anna"), "they were no guesses");
    for _ in 0..TRIES.0 {
        assert!(!ask("anna", "guess").await.unwrap_err().reason.contains("too many"));
    }
    assert!(ask("anna", "guess").await.unwrap_err().reason.contains("too many"));
    assert_eq!(ask("bert0", "other").await.as_deref(), Ok("bert0"), "whoever is known is asked for no guess");
}

#[tokio::test]
async fn a_password_lets_in_and_another_does_not() {
    let world = World::new(&(line("anna", "secret") + &line("bert", "other")), "ops: anna\ndev: anna bert\n");
    let Verdict::Caller(anna) = world.ask("anna", "secret").await else { panic!() };
    assert_eq!((anna.name.as_str(), anna.credential.as_str()), ("anna", "staff/password"));
    assert_eq!(anna.groups, ["dev", "ops"]);
    assert!(!anna.operator);
    for (user, password) in [("anna", "other"), ("anna", ""), ("bert", "secret"), ("carl", "secret")] {
        assert!(is_wrong(&world.ask(user, password).await), "{user}");
    }
    let none = RequestDetails::default();
    assert_eq!(world.htpasswd.authenticate(Some("Bearer x"), &none).await, Verdict::NotMine);
    assert_eq!(world.htpasswd.authenticate(None, &none).await, Verdict::NotMine);
    assert!(matches!(world.htpasswd.authenticate(Some("Basic x"), &none).await, Verdict::Refused(_)));
}

#[tokio::test]
async fn what_is_changed_in_the_file_counts_at_once() {
    let world = World::new(&line("anna", "secret"), "");
    assert!(matches!(world.ask("anna", "secret").await, Verdict::Caller(_)));
    world.passwords(&line("anna", "newer"));
    assert!(is_wrong(&world.ask("anna", "secret").await));
    assert!(matches!(world.ask("anna", "newer").await, Verdict::Caller(_)));
    world.passwords(&line("bert", "newer"));
    assert!(is_wrong(&world.ask("anna", "newer").await));
    world.passwords("anna:plain\n");
    assert!(matches!(world.ask("bert", "newer").await, Verdict::Unavailable(_)));
    std::fs::remove_file(world.folder.path().join("passwords")).unwrap();
    assert!(matches!(world.ask("bert", "newer").await, Verdict::Unavailable(_)));
}

#[tokio::test]
async fn a_source_that_guesses_is_stopped_and_others_are_not() {
    let world = World::new(&line("anna", "secret"), "");
    for guess in 0..TRIES.0 {
        assert!(is_wrong(&world.ask("anna", &guess.to_string()).await));
    }
    let Verdict::Wrong(why) = world.ask("anna", "secret").await else { panic!() };
    assert!(why.contains("too many wrong passwords: try again in"), "{why}");
    assert!(matches!(world.ask_from("anna", "secret", "192.0.2.2").await, Verdict::Caller(_)));
    // What was right there is known here: it is no guess.
    assert!(matches!(world.ask("anna", "secret").await, Verdict::Caller(_)));
    world.watch.pass(i64::from(TRIES.0) * 6 + 60);
    assert!(matches!(world.ask("anna", "secret").await, Verdict::Caller(_)));
}

#[tokio::test]
async fn an_unknown_user_costs_a_hash_as_a_known_one_does() {
    let world = World::new(&(line("anna", "secret") + &line("bert", "other")), "");
    let known = world.htpasswd.known().unwrap();
    for name in ["carl", "dora", "emil"] {
        let instead = world.htpasswd.instead(&known, name).unwrap();
        assert_eq!(world.htpasswd.instead(&known, name), Some(instead));
        // The password of the one whose hash it is does not let anybody else in.
        for password in ["secret", "other"] {
            assert!(is_wrong(&world.ask(name, password).await));
        }
    }
    let empty = World::new("", "");
    assert!(is_wrong(&empty.ask("anna", "secret").await));
}

#[test]
fn a_file_that_everybody_reads_is_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("passwords");
    write(&path, &line("anna", "secret"));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let settings: Settings = serde_json::from_value(json!({ "file": path })).unwrap();
    let made = Htpasswd::new(Terms::default(), settings, &env(&Watch::default()));
    let error = made.err().unwrap();
    assert!(error.contains("can be read by everybody"), "{error}");
}
