//! What a checker says, and what happens while it says nothing.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicU16, Ordering};

use serde_json::Value;

use super::super::testing::{Served, Watch, env, outbound};
use super::*;

async fn checker() -> Served {
    Served::new(|question| {
        let asked: Value = serde_json::from_str(&question.body).unwrap();
        let answer = match asked["authorization"].as_str().unwrap() {
            "Bearer ext_anna" => json!({
                "verdict": "allow", "caller": { "name": "anna", "subject": "7", "groups": ["ops"] },
            }),
            "Bearer ext_read" if asked["method"] == "GET" => json!({ "verdict": "allow" }),
            "Bearer ext_other" => json!({ "verdict": "not-mine" }),
            "Bearer ext_odd" => json!({ "verdict": "perhaps" }),
            _ => json!({ "verdict": "deny", "reason": "no such card" }),
        };
        (200, answer.to_string())
    })
    .await
}

fn make(url: &str, more: Value, watch: &Watch) -> Result<External, String> {
    let mut settings = json!({ "url": url, "prefix": "Bearer ext_" });
    settings.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let terms = Terms { authenticator: "cards".into(), ..Terms::default() };
    External::new(terms, serde_json::from_value(settings).unwrap(), outbound(), &env(watch))
}

async fn ask(external: &External, header: &str, method: &str) -> Verdict {
    let request = RequestDetails {
        method: method.into(),
        path: "/v1".into(),
        source: "192.0.2.1".into(),
        ..RequestDetails::default()
    };
    external.authenticate(Some(header), &request).await
}

#[tokio::test]
async fn it_is_told_all_and_says_who() {
    let (served, watch) = (checker().await, Watch::default());
    let external =
        make(&served.url, json!({ "allow_as": { "name": "reader" }, "cache_seconds": 10 }), &watch);
    let external = external.unwrap();
    let external = &external;
    let Verdict::Caller(anna) = ask(external, "Bearer ext_anna", "GET").await else { panic!() };
    assert_eq!((anna.name.as_str(), anna.subject.as_str()), ("anna", "7"));
    assert_eq!(anna.groups, ["ops"]);
    let no = Verdict::Refused("no such card".into());
    // The header is shown as it stands: this checker takes the scheme literally.
    assert_eq!(ask(external, "bearer ext_anna", "GET").await, no);
    assert_eq!(ask(external, "Bearer ext_", "GET").await, no);
    assert!(
        matches!(ask(external, "Bearer ext_read", "GET").await, Verdict::Caller(c) if c.name == "reader")
    );
    assert!(matches!(ask(external, "Bearer ext_read", "POST").await, Verdict::Refused(_)));
    assert_eq!(ask(external, "Bearer ext_other", "GET").await, Verdict::NotMine);
    assert!(matches!(ask(external, "Bearer ext_odd", "GET").await, Verdict::Unavailable(_)));
    let before = served.asked().len();
    assert_eq!(ask(external, "Basic eDp5", "GET").await, Verdict::NotMine);
    assert_eq!(ask(external, "Bearer rzo1.x", "GET").await, Verdict::NotMine);
    assert!(matches!(ask(external, "Bearer ext_anna", "GET").await, Verdict::Caller(_)));
    assert_eq!(served.asked().len(), before, "others' headers are not shown, and answers are remembered");
    watch.pass(10);
    assert!(matches!(ask(external, "Bearer ext_anna", "GET").await, Verdict::Caller(_)));
    assert_eq!(served.asked().len(), before + 1);
}

#[tokio::test]
async fn in_doubt_it_is_nobody_and_the_checker_is_left_in_peace() {
    let status = Arc::new(AtomicU16::new(500));
    let told = status.clone();
    let served = Served::new(move |_| {
        (told.load(Ordering::SeqCst), json!({ "verdict": "allow", "caller": { "name": "anna" } }).to_string())
    })
    .await;
    let watch = Watch::default();
    let external = make(&served.url, json!({}), &watch).unwrap();
    for number in 0..20 {
        let header = format!("Bearer ext_{number}");
        assert!(matches!(ask(&external, &header, "GET").await, Verdict::Unavailable(_)));
    }
    assert_eq!(served.asked().len(), 5);
    status.store(200, Ordering::SeqCst);
    assert!(matches!(ask(&external, "Bearer ext_a", "GET").await, Verdict::Unavailable(_)));
    watch.pass(10);
    assert!(matches!(ask(&external, "Bearer ext_a", "GET").await, Verdict::Caller(_)));
    assert!(matches!(ask(&external, "Bearer ext_b", "GET").await, Verdict::Caller(_)));
}

#[tokio::test]
async fn it_is_shown_who_asks_and_is_not_called_where_nobody_may() {
    let (served, watch) = (checker().await, Watch::default());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "ours\n").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let external = make(&served.url, json!({ "token_file": file }), &watch).unwrap();
    assert!(matches!(ask(&external, "Bearer ext_anna", "GET").await, Verdict::Caller(_)));
    assert!(served.asked()[0].headers.contains("authorization: bearer ours"));

    for (url, wanted) in [("http://10.0.0.1/x", "a private range"), ("file:///etc/passwd", "is not called")] {
        let error = make(url, json!({}), &watch).err().unwrap();
        assert!(error.starts_with("`url`: ") && error.contains(wanted), "{error}");
    }
    let error = make(&served.url, json!({ "cache_seconds": 3600 }), &watch).err().unwrap();
    assert!(error.contains("`cache_seconds` must be at most 300"), "{error}");
}
