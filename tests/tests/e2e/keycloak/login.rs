//! `rhyzome login`, by both of its ways, as people use it: nothing is known but where the API is.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::Story;
use super::realms::ANNA;
use crate::house::until;
use crate::people::Stream;
use crate::people::browser::{Browser, Page};
use crate::people::shell::Shell;

/// Logs anna in wherever the page leads to.
fn anna(browser: &mut Browser, url: &str) -> Page {
    let page = browser.open(url);
    browser.send(&page, &[("username", ANNA.0), ("password", ANNA.1)])
}

/// A logout means what was issued within its second, too: times in tokens are whole ones since 1970.
fn its_second_is_over() {
    let second = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let then = second();
    until("a second in which nothing ended", 30, || (second() > then).then_some(()));
}

/// By a code of a device at this issuer, and is anna.
pub fn somebody_logs_in<'a>(story: &'a Story, issuer: &str, profile: &str) -> Shell<'a> {
    let shell = Shell::new(&story.house);
    let url = format!("http://{}", story.house.world.http);
    shell.login(&["--url", &url, "--issuer", issuer, "--profile", profile], |page| {
        let mut browser = Browser::default();
        let consent = anna(&mut browser, page);
        browser.send(&consent, &[("accept", "Yes")]);
    });
    assert_eq!(shell.whoami(&["--profile", profile])["name"], json!(ANNA.0));
    shell
}

pub fn people_log_in_by_the_command_line(story: &Story) {
    let shell = Shell::new(&story.house);
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
    let issuer = story.realms.issuer("acme");
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

/// In a browser that has a session then, and no token.
pub fn people_log_in_by_a_page(story: &Story) {
    let http = story.house.world.http;
    let login = format!("http://{http}/v1/session/login?authenticator=cloud&return_to=/healthz");
    let mut browser = Browser::default();
    let end = anna(&mut browser, &login);
    assert_eq!((end.url.path(), end.url.query()), ("/healthz", None), "{end:#?}");
    let session = browser.asks(http, "GET", "/v1/session", &[]).is(200).json;
    assert_eq!((&session["name"], &session["operator"]), (&json!(ANNA.0), &json!(true)), "{session:#}");
    let me = browser.asks(http, "GET", "/v1/whoami", &[]).is(200).json;
    assert_eq!(me["credential"], "cloud/session", "{me:#}");
    let elsewhere = ["Sec-Fetch-Site: cross-site".to_owned()];
    browser.sends(http, "GET", "/v1/whoami", &elsewhere).problem(401, "unauthenticated");

    // Ended at Keycloak, it ends here, and its stream.
    let stream =
        Stream::with(&story.house, &[browser.cookie_line(), "Sec-Fetch-Site: same-origin".to_owned()]);
    let begun = Instant::now();
    story.realms.log_out("cloud", ANNA.0);
    stream.ends();
    println!("from Keycloak's logout to the end of a session's stream: {} ms", begun.elapsed().as_millis());
    browser.asks(http, "GET", "/v1/whoami", &[]).problem(401, "unauthenticated");

    // Ended here, it is ended at Keycloak where this page is opened; until then one is back without a password.
    its_second_is_over();
    anna(&mut browser, &login);
    let again = browser.open(&login);
    assert_eq!(again.url.path(), "/healthz", "{again:#?}");
    let session = browser.asks(http, "GET", "/v1/session", &[]).is(200).json;
    let headers =
        [format!("Origin: http://{http}"), format!("X-Rhyzome-CSRF: {}", session["csrf"].as_str().unwrap())];
    browser.asks(http, "DELETE", "/v1/session", &headers[..1]).problem(401, "unauthenticated");
    let ended = browser.asks(http, "DELETE", "/v1/session", &headers).is(200).json;
    browser.asks(http, "GET", "/v1/whoami", &[]).problem(401, "unauthenticated");
    browser.open(ended["end_session_url"].as_str().unwrap());
    let page = browser.open(&login);
    assert!(page.url.path().starts_with("/realms/cloud/") && page.body.contains("<form"), "{page:#?}");
    its_second_is_over();
}
