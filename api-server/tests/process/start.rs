//! A process that cannot start: one line that names what is wrong, and exit code 2.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use nix::unistd::geteuid;
use serde_json::json;

use super::place::{Place, folder, good, refusal};

#[test]
fn a_bad_configuration_is_one_line_that_names_it() {
    let cases = [
        (json!({"colour": "red"}), "unknown field `colour`"),
        (json!({"http": {"listn": "127.0.0.1:1"}}), "key `http`: unknown field `listn`"),
        (json!({"http": {"listen": "here"}}), "`http.listen`: `here` is not ADDRESS:PORT"),
        (json!({"grpc": {"listen": "127.0.0.1:99999"}}), "`grpc.listen`: `127.0.0.1:99999`"),
        (json!({"images": {"max_bytes": "much"}}), "key `images`"),
        (json!({"pki": {"leaf_seconds": 1}}), "`pki.leaf_seconds` must be at least 60"),
        (json!({"images": {"folder": "/nowhere/at/all"}}), "`images.folder`: /nowhere/at/all cannot be read"),
        (
            json!({"http": {"cert": "/nowhere.pem", "key": "/nowhere.key"}}),
            "`http.cert`: /nowhere.pem cannot",
        ),
        (json!({"http": {"cert": "/etc/hostname"}}), "`http.cert` needs `http.key`"),
        (json!({"pki": {"ca": "/etc/hostname"}}), "`pki.ca`, `pki.cert` and `pki.key` belong together"),
        (json!({"db": "some words"}), "key `db`: `some words` names no database"),
        (json!({"db": "postgres://[nowhere"}), "key `db`: not a PostgreSQL URL"),
        (json!({"db": "dbname=x colour=red"}), "key `db`: `colour` in the libpq string"),
        (json!({"db": "sqlite:"}), "key `db`: `sqlite:` needs a path"),
        (json!(["db"]), "must hold an object"),
    ];
    for (config, wanted) in cases {
        let folder = folder();
        std::fs::write(folder.path().join("rhyzome-api.json"), config.to_string()).unwrap();
        let said = refusal(folder.path(), &[], &[]);
        assert!(said.contains(wanted), "{config}: {said}");
        assert!(!folder.path().join("var").exists(), "{config}: something was made");
    }
}

#[test]
fn a_missing_file_a_broken_one_and_a_strange_variable_are_named() {
    let folder = folder();
    let said = refusal(folder.path(), &["--config", "/nowhere/rhyzome-api.json"], &[]);
    assert!(said.contains("/nowhere/rhyzome-api.json cannot be read"), "{said}");
    std::fs::write(folder.path().join("half.json"), "{\"db\": ").unwrap();
    let said = refusal(folder.path(), &["--config", "half.json"], &[]);
    assert!(said.contains("half.json is not JSON"), "{said}");
    let said = refusal(folder.path(), &[], &[("RHYZOME_DBB", "x")]);
    assert!(said.contains("RHYZOME_DBB is not known"), "{said}");
    let said = refusal(folder.path(), &[], &[("RHYZOME_IMAGES_MAX_BYTES", "much")]);
    assert!(said.contains("RHYZOME_IMAGES_MAX_BYTES must be a number"), "{said}");
}

#[test]
fn what_is_not_there_or_does_not_go_together_is_named() {
    let folder = folder();
    let mut config = good(folder.path());
    let file = folder.path().join("rhyzome-api.json");
    std::fs::write(&file, config.to_string()).unwrap();
    for word in ["http", "grpc"] {
        let said = refusal(folder.path(), &[word], &[]);
        assert!(said.contains("on SQLite there is one process"), "{said}");
    }
    config["db"] = json!("dbname=rhyzome host=/nowhere/at/all");
    std::fs::write(&file, config.to_string()).unwrap();
    let said = refusal(folder.path(), &[], &[]);
    assert!(said.contains("database"), "{said}");
}

#[test]
fn of_two_on_one_folder_the_second_says_that_there_is_one() {
    let place = Place::sqlite();
    let _first = place.serve();
    let said = place.refused(&[]);
    assert!(said.contains("another rhyzome-api works on"), "{said}");
}

#[test]
fn whoever_it_becomes_reaches_the_folder_of_data_or_hears_why_not() {
    let place = Place::sqlite();
    let (var, data) = (place.path().join("var"), place.path().join("var/of/data"));
    let mut config = good(place.path());
    config["data"] = json!(data);
    std::fs::write(place.path().join("rhyzome-api.json"), config.to_string()).unwrap();
    place.done(&["migrate"]);
    let mode = |of: &Path| std::fs::metadata(of).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&data), 0o700);
    assert!(data.join("rhyzome.db").exists());
    std::fs::set_permissions(&var, Permissions::from_mode(0o600)).unwrap();
    let said = place.refused(&["migrate"]);
    std::fs::set_permissions(&var, Permissions::from_mode(0o755)).unwrap();
    let wanted = if geteuid().is_root() { "cannot be reached by `nobody`" } else { "cannot be made" };
    assert!(said.contains(wanted), "{said}");
}
