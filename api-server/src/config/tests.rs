//! What a file, the environment and the command line make of each other, and one clear line for each mistake.

use super::*;

fn load(json: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.json");
    std::fs::write(&path, json).unwrap();
    let environment = environment.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned()));
    Config::load(Some(&path), environment).map_err(|e| e.to_string())
}

#[test]
fn nothing_is_needed() {
    let config = load("{}", &[]).unwrap();
    assert_eq!(config.db, "sqlite:var/rhyzome/rhyzome.db");
    assert!(config.http.ip().is_loopback() && config.grpc.ip().is_loopback());
}

#[test]
fn the_environment_stands_over_the_file() {
    let json = r#"{"db": "sqlite:/a.db", "http": {"listen": "127.0.0.1:1"}}"#;
    let config =
        load(json, &[("RHYZOME_DB", "dbname=rhyzome host=/run/pg"), ("RHYZOME_TOKEN", "x")]).unwrap();
    assert_eq!(config.db, "dbname=rhyzome host=/run/pg");
    assert_eq!(config.http.port(), 1);
}

/// File, environment, and what the line must say.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str);

#[test]
fn one_clear_line_names_the_key() {
    let cases: [Case; 22] = [
        (r#"{"grpc": {"heartbeat_seconds": 0}}"#, &[], "`grpc.heartbeat_seconds` must be 1 to 300"),
        (r#"{"quota": {"vcpus": "many"}}"#, &[], "key `quota`: invalid type"),
        (r#"{"quota": {"cars": 1}}"#, &[], "`quota.cars` is not known; known are addresses"),
        (r#"{"events": {"keep_days": 0}}"#, &[], "`events.keep_days` must be at least 1"),
        (r#"{"history": {"job_days": 0}}"#, &[], "`history.job_days` must be at least 1"),
        ("{}", &[("RHYZOME_HISTORY_ANSWER_HOURS", "0")], "`history.answer_hours` must be at least 1"),
        (r#"{"colour": 1}"#, &[], "unknown field `colour`"),
        (r#"{"http": {"listn": "x"}}"#, &[], "key `http`: unknown field `listn`"),
        (r#"{"db": "rhyzome"}"#, &[], "key `db`: `rhyzome` names no database"),
        (r#"{"http": {"listen": "here"}}"#, &[], "`http.listen`: `here` is not ADDRESS:PORT"),
        (r#"{"grpc": {"advertise": "api1"}}"#, &[], "`grpc.advertise`: `api1` is not HOST:PORT"),
        ("{}", &[("RHYZOME_GRPC_ADVERTISE", "fe80::1:8441")], "is not HOST:PORT"),
        (r#"{"pki": {"ca": "/nowhere"}}"#, &[], "belong together"),
        (
            r#"{"images": {"folder": "/nowhere/at/all"}}"#,
            &[],
            "`images.folder`: /nowhere/at/all cannot be read",
        ),
        (r#"{"auth": {"authenticators": {}}}"#, &[], "key `auth`: invalid type"),
        (r#"{"auth": {"authenticators": [{"type": "x"}]}}"#, &[], "key `auth.authenticators[0]`: `type`"),
        (r#"{"metrics": {"listen": "0.0.0.0:8442"}}"#, &[], "so `metrics.token_file` must name a file"),
        (r#"{"metrics": {"port": 1}}"#, &[], "key `metrics`: unknown field `port`"),
        (r#"{"limits": {"tenant": {"rate": 0}}}"#, &[], "`limits.tenant.rate` must be at least 1"),
        (r#"{"limits": {"tenants": {}}}"#, &[], "key `limits`: unknown field `tenants`"),
        ("{", &[], "is not JSON"),
        ("{}", &[("RHYZOME_DBB", "x")], "RHYZOME_DBB is not known"),
    ];
    for (json, environment, wanted) in cases {
        let error = load(json, environment).unwrap_err();
        assert!(error.contains(wanted), "{json}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
    let error = Config::load(Some(Path::new("/nowhere.json")), []).unwrap_err().to_string();
    assert!(error.contains("/nowhere.json cannot be read"), "{error}");
}
