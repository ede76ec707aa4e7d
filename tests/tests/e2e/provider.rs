//! People and robots of a provider that is not Keycloak, and says everything otherwise: tokens by RFC 9068, names by their
//! address, groups by teams, clients by `client_id`.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use xtask::http;
use xtask::world::{Answering, free_address};

use crate::house::{self, Answer, House, until};
use crate::people::browser::{Browser, Page};
use crate::people::shell::Shell;
use crate::people::{self, PKCE, Stream, part, query, text};

/// What robots show.
const SECRET: &str = "robot-of-a-test";
const ANNA: &str = "anna@acme.example";

struct Story {
    house: House,
    provider: Answering,
    /// Where its log is.
    _folder: TempDir,
}

impl Story {
    fn new() -> Story {
        let home = xtask::provider::prepared(false).unwrap();
        let address = free_address().unwrap();
        let house = House::with(house::shared(), |options| {
            options.nodes.clear();
            options.config = json!({ "auth": { "allow": ["127.0.0.1/32"], "authenticators": [{
                "type": "oidc", "name": "people", "issuer": format!("http://{address}"), "audiences": ["rhyzome"],
                "clients": ["rhyzome-cli", "robot"], "login_client": "rhyzome-cli", "http": true,
                "algorithms": ["ES256"], "name_claim": "email", "group_claims": ["teams"],
                "groups": { "platform": "staff" }, "operators": { "groups": ["staff"] },
            }] } });
        });
        let folder = tempfile::tempdir().unwrap();
        let ended = format!("http://{}/v1/login/people/ended", house.world.http);
        let provider = xtask::provider::start(&home, folder.path(), address, &ended).unwrap();
        Story { house, provider, _folder: folder }
    }

    fn address(&self) -> SocketAddr {
        self.provider.address
    }

    fn ask(&self, token: &str, path: &str) -> Answer {
        people::ask(&self.house, token, path)
    }

    /// Logs somebody in by a code with PKCE; all tokens.
    fn login(&self, browser: &mut Browser, who: &str) -> Value {
        let redirect = format!("http://{}/healthz", self.house.world.http);
        let url = format!(
            "http://{}/auth?response_type=code&client_id=rhyzome-cli&scope=openid&state=s&redirect_uri={redirect}\
             &code_challenge={}&code_challenge_method=S256",
            self.address(),
            PKCE.1,
        );
        let end = through(browser, &url, who);
        assert_eq!(query(&end.url, "iss"), format!("http://{}", self.address()));
        let with = |code: &str, verifier: &str| {
            let fields = [
                ("grant_type", "authorization_code"),
                ("client_id", "rhyzome-cli"),
                ("code", code),
                ("redirect_uri", &redirect),
                ("code_verifier", verifier),
            ];
            people::form(self.address(), "/token", &fields)
        };
        let reply = with(&query(&end.url, "code"), PKCE.0);
        assert_eq!(reply.status, 200, "{}", reply.body);
        serde_json::from_str(&reply.body).unwrap()
    }

    fn robot(&self, client: &str) -> String {
        let fields = [("grant_type", "client_credentials"), ("client_id", client), ("client_secret", SECRET)];
        let reply = people::form(self.address(), "/token", &fields);
        assert_eq!(reply.status, 200, "{}", reply.body);
        let tokens: Value = serde_json::from_str(&reply.body).unwrap();
        text(&tokens, "access_token").to_owned()
    }
}

/// Says who one is, and yes to everything else that is asked.
fn through(browser: &mut Browser, url: &str, who: &str) -> Page {
    let mut page = browser.open(url);
    while page.body.contains("<form") {
        let login = page.body.contains("name=\"login\"");
        let fields: &[(&str, &str)] = if login { &[("login", who), ("password", "x")] } else { &[] };
        page = browser.send(&page, fields);
    }
    page
}

#[test]
fn another_provider_that_is_not_keycloak() {
    let story = Story::new();
    people_are_what_their_teams_are(&story);
    robots_show_who_they_are(&story);
    people_log_in_by_the_command_line(&story);
    keys_change(&story);
    a_logout_in_the_browser_ends_tokens_and_streams(&story);
    story.provider.stop().unwrap();
}

fn people_are_what_their_teams_are(story: &Story) {
    let tokens = story.login(&mut Browser::default(), "anna");
    let token = text(&tokens, "access_token");
    assert_eq!((&part(token, 0)["typ"], &part(token, 1)["azp"]), (&json!("at+jwt"), &Value::Null));
    let me = story.ask(token, "/v1/whoami").is(200).json;
    assert_eq!((&me["name"], &me["operator"]), (&json!(ANNA), &json!(true)), "{me:#}");
    story.ask(token, "/v1/nodes").is(200);
    for other in [text(&tokens, "id_token"), &format!("{token}x")] {
        story.ask(other, "/v1/whoami").problem(401, "unauthenticated");
    }
    // Nobody, until somebody says what the team may.
    let bert = story.login(&mut Browser::default(), "bert");
    let bert = text(&bert, "access_token");
    assert_eq!(story.ask(bert, "/v1/whoami").is(200).json["operator"], json!(false));
    story.ask(bert, "/v1/nodes").problem(404, "not-found");
    story.ask(bert, "/v1/tenants/default/instances").problem(404, "not-found");
    let spec =
        json!({ "subjects": { "dev": { "group": "dev", "authenticator": "people" } }, "role": "viewer" });
    story.house.make("/v1/tenants/default/bindings", json!({ "spec": spec }));
    until("the team's role to count", 30, || {
        let asked = story.ask(bert, "/v1/tenants/default/instances").one_of(&[200, 404]);
        (asked.status == 200).then_some(())
    });
}

fn robots_show_who_they_are(story: &Story) {
    let me = story.ask(&story.robot("robot"), "/v1/whoami").is(200).json;
    assert_eq!((&me["name"], &me["operator"]), (&json!("robot"), &json!(false)), "{me:#}");
    let refused = story.ask(&story.robot("stranger"), "/v1/whoami").problem(401, "unauthenticated");
    assert!(text(&refused.json, "detail").contains("`aud`"), "{:#}", refused.json);
}

fn people_log_in_by_the_command_line(story: &Story) {
    let shell = Shell::new(&story.house);
    let url = format!("http://{}", story.house.world.http);
    // By the device flow, in any browser.
    let said = shell.login(&["--url", &url], |page| drop(through(&mut Browser::default(), page, "anna")));
    assert!(said.contains(&format!("{ANNA} at http://")), "{said}");
    assert_eq!(shell.whoami(&[])["operator"], json!(true));
    // Renewed without a word, when it does not last.
    let mut kept = shell.kept("default");
    (kept["access_token"], kept["expires_at"]) = (json!("worth nothing"), json!(0));
    std::fs::write(shell.file("default"), kept.to_string()).unwrap();
    assert_eq!(shell.whoami(&[])["name"], json!(ANNA));
    // In a browser on this machine.
    shell.login(&["--url", &url, "--browser", "--profile", "dev"], |page| {
        let end = through(&mut Browser::default(), page, "bert");
        assert!(end.body.contains("You are logged in"), "{end:#?}");
    });
    assert_eq!(shell.whoami(&["--profile", "dev"])["operator"], json!(false));
    assert!(shell.said(&["logout"]).contains("logged out of"));
    assert!(!shell.file("default").exists());
}

fn keys_change(story: &Story) {
    let before = story.robot("robot");
    let rotated =
        http::request(story.address(), "POST", "/rotate", &[], "", Duration::from_secs(60)).unwrap();
    assert_eq!(rotated.status, 200);
    let after = story.robot("robot");
    assert_ne!(part(&before, 0)["kid"], part(&after, 0)["kid"]);
    until("the new key to be known", 30, || {
        (story.ask(&after, "/v1/whoami").one_of(&[200, 401]).status == 200).then_some(())
    });
    story.ask(&before, "/v1/whoami").is(200);
}

fn a_logout_in_the_browser_ends_tokens_and_streams(story: &Story) {
    let (mut mine, robot) = (Browser::default(), story.robot("robot"));
    let tokens = story.login(&mut mine, "anna");
    let other = story.login(&mut Browser::default(), "anna");
    let token = text(&tokens, "access_token");
    let stream = Stream::open(&story.house, token);
    let page = mine.open(&format!("http://{}/session/end?client_id=rhyzome-cli", story.address()));
    let begun = Instant::now();
    mine.send(&page, &[("logout", "yes")]);
    stream.ends();
    let refused = story.ask(token, "/v1/whoami").problem(401, "unauthenticated");
    println!("from the click to the end of token and stream: {} ms", begun.elapsed().as_millis());
    assert!(text(&refused.json, "detail").contains("this login has ended"), "{:#}", refused.json);
    // This login, and no other.
    story.ask(text(&other, "access_token"), "/v1/whoami").is(200);
    story.ask(&robot, "/v1/whoami").is(200);
}
