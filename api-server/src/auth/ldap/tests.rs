//! What is decided before a directory is asked, and when none answers. A real one is asked in the stories of `tests`.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;
use tokio::net::TcpListener;

use super::super::testing::{Watch, env, outbound};
use super::*;
use crate::auth::{Authenticator, RequestDetails};

fn made(port: u16, watch: &Watch) -> Directories {
    let settings = json!({
        "url": format!("ldap://127.0.0.1:{port}"), "plain": true, "base": "o=x", "timeout_seconds": 1,
    });
    let terms = Terms { authenticator: "corp".into(), ..Terms::default() };
    let settings = serde_json::from_value(settings).unwrap();
    Directories::new(terms, settings, outbound(), None, &env(watch)).unwrap()
}

async fn ask(directories: &Directories, pair: &str) -> Verdict {
    let header = format!("Basic {}", BASE64_STANDARD.encode(pair));
    let request = RequestDetails { source: "192.0.2.1".into(), ..RequestDetails::default() };
    directories.authenticate(Some(&header), &request).await
}

#[tokio::test]
async fn nothing_is_asked_for_an_empty_password_or_an_endless_name() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let directories = made(listener.local_addr().unwrap().port(), &Watch::default());
    assert!(matches!(ask(&directories, "anna:").await, Verdict::Wrong(_)));
    assert!(matches!(ask(&directories, &format!("{}:x", "a".repeat(300))).await, Verdict::Wrong(_)));
    let none = RequestDetails::default();
    assert_eq!(directories.authenticate(Some("Bearer x"), &none).await, Verdict::NotMine);
    assert_eq!(directories.authenticate(None, &none).await, Verdict::NotMine);
    assert!(matches!(directories.authenticate(Some("Basic x"), &none).await, Verdict::Refused(_)));
    // Nobody has called: the listener has nobody to accept.
    let called = tokio::select! {
        biased;
        called = listener.accept() => called.is_ok(),
        () = std::future::ready(()) => false,
    };
    assert!(!called);
}

#[tokio::test]
async fn one_that_is_away_lets_nobody_in_and_is_left_in_peace() {
    let (watch, listener) = (Watch::default(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let directories = made(port, &watch);
    for _ in 0..20 {
        // More often than one may be wrong: that it is away is nobody's fault.
        assert!(matches!(ask(&directories, "anna:secret").await, Verdict::Unavailable(_)));
    }
    // It is back, and takes calls without a word: it is not called until the pause is over.
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    assert!(matches!(ask(&directories, "anna:secret").await, Verdict::Unavailable(_)));
    watch.pass(10);
    let asked = tokio::join!(ask(&directories, "anna:secret"), listener.accept());
    assert!(matches!(asked.0, Verdict::Unavailable(_)) && asked.1.is_ok());
}

#[test]
fn a_range_that_nobody_allowed_is_not_called() {
    let settings = json!({ "url": "ldap://10.0.0.1", "plain": true, "base": "o=x" });
    let settings = serde_json::from_value(settings).unwrap();
    let made = Directories::new(Terms::default(), settings, outbound(), None, &env(&Watch::default()));
    assert!(made.err().unwrap().contains("a private range"));
}
