//! People and robots of a real Keycloak, with a realm that may have operators and a realm of one tenant.

mod login;
mod made;
mod realms;

use std::net::TcpListener;

use serde_json::{Value, json};

use self::realms::{ANNA, ROBOT, Realms};
use crate::house::{self, Answer, House, until};
use crate::people::browser::Browser;
use crate::people::{self, PKCE, Stream, part, query, text};

struct Story {
    house: House,
    realms: Realms,
    _secrets: tempfile::TempDir,
}

impl Story {
    fn new() -> Story {
        let realms = Realms::start();
        let one = |name: &str, more: Value| {
            let mut entry = json!({
                "type": "oidc", "name": name, "issuer": realms.issuer(name), "audiences": ["rhyzome"],
                "login_client": "rhyzome-cli", "http": true,
            });
            entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            entry
        };
        let authenticators = json!([
            one(
                "cloud",
                json!({ "operators": { "groups": ["staff"] }, "groups": { "cloud-admin": "staff" } })
            ),
            one("acme", json!({ "tenant": "acme" })),
        ]);
        // Keycloak is told where the API is before that begins.
        let http = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let secrets = house::folder();
        let keycloak = made::config(&realms, secrets.path(), &format!("http://{http}"));
        let house = House::with(house::shared(), |options| {
            options.nodes.clear();
            options.http = Some(http);
            options.config = json!({
                "auth": { "allow": ["127.0.0.1/32"], "authenticators": authenticators }, "keycloak": keycloak,
            });
        });
        for realm in ["cloud", "acme"] {
            realms.make(realm, &format!("http://{}/v1/login/{realm}/ended", house.world.http));
        }
        Story { house, realms, _secrets: secrets }
    }

    /// One request with this token.
    fn ask(&self, token: &str, path: &str) -> Answer {
        people::ask(&self.house, token, path)
    }

    /// Logs anna in by a code with PKCE, as a browser and a client would together; all tokens.
    fn anna(&self, realm: &str) -> Value {
        let (verifier, challenge) = PKCE;
        let url = format!(
            "{}/protocol/openid-connect/auth?response_type=code&client_id=rhyzome-cli&scope=openid&state=s\
             &redirect_uri=http://{}/healthz&code_challenge={challenge}&code_challenge_method=S256",
            self.realms.issuer(realm),
            self.house.world.http,
        );
        let mut browser = Browser::default();
        let page = browser.open(&url);
        let end = browser.send(&page, &[("username", ANNA.0), ("password", ANNA.1)]);
        let code = query(&end.url, "code");
        let redirect = format!("http://{}/healthz", self.house.world.http);
        let with = |verifier: &str| {
            let fields = [
                ("grant_type", "authorization_code"),
                ("client_id", "rhyzome-cli"),
                ("code", &code),
                ("redirect_uri", &redirect),
                ("code_verifier", verifier),
            ];
            self.realms.form(realm, "token", &fields)
        };
        let reply = with(verifier);
        assert_eq!(reply.status, 200, "{}", reply.body);
        serde_json::from_str(&reply.body).unwrap()
    }
}

#[test]
fn people_and_robots_of_a_real_keycloak() {
    let story = Story::new();
    people_log_in_by_a_code(&story);
    robots_show_who_they_are(&story);
    keys_change(&story);
    login::people_log_in_by_the_command_line(&story);
    login::people_log_in_by_a_page(&story);
    a_logout_ends_tokens_and_streams(&story);
    made::realms_are_made_for_tenants(&story);
    made::what_is_not_ours_stays(&story);
    story.realms.keycloak.stop().unwrap();
}

fn people_log_in_by_a_code(story: &Story) {
    let tokens = story.anna("cloud");
    let me = story.ask(text(&tokens, "access_token"), "/v1/whoami").is(200).json;
    assert_eq!((&me["name"], &me["operator"]), (&json!(ANNA.0), &json!(true)), "{me:#}");
    assert_eq!(me["credential"], "cloud/token");
    story.ask(text(&tokens, "access_token"), "/v1/nodes").is(200);
    // What else Keycloak gives with it is not to be shown to an API.
    for other in ["id_token", "refresh_token"] {
        story.ask(text(&tokens, other), "/v1/whoami").problem(401, "unauthenticated");
    }
    let changed = format!("{}x", text(&tokens, "access_token"));
    story.ask(&changed, "/v1/whoami").problem(401, "unauthenticated");

    // The same role makes nobody an operator who is known in one tenant only.
    let tokens = story.anna("acme");
    let me = story.ask(text(&tokens, "access_token"), "/v1/whoami").is(200).json;
    assert_eq!((&me["name"], &me["operator"]), (&json!(ANNA.0), &json!(false)), "{me:#}");
    story.ask(text(&tokens, "access_token"), "/v1/nodes").problem(404, "not-found");
}

fn robots_show_who_they_are(story: &Story) {
    let me = story.ask(&story.realms.robot(ROBOT.0), "/v1/whoami").is(200).json;
    assert_eq!((&me["name"], &me["operator"]), (&json!("service-account-robot"), &json!(false)), "{me:#}");
    // Its tokens are good, and for somebody else.
    let refused = story.ask(&story.realms.robot("stranger"), "/v1/whoami").problem(401, "unauthenticated");
    assert!(text(&refused.json, "detail").contains("`aud`"), "{:#}", refused.json);
}

fn keys_change(story: &Story) {
    let before = story.realms.robot(ROBOT.0);
    story.realms.rotate("cloud");
    let after = story.realms.robot(ROBOT.0);
    assert_ne!(part(&before, 0)["kid"], part(&after, 0)["kid"]);
    // At most so often is Keycloak asked for its keys.
    until("the new key to be known", 30, || {
        (story.ask(&after, "/v1/whoami").one_of(&[200, 401]).status == 200).then_some(())
    });
    story.ask(&before, "/v1/whoami").is(200);
}

fn a_logout_ends_tokens_and_streams(story: &Story) {
    let (mine, robot) = (story.anna("cloud"), story.realms.robot(ROBOT.0));
    let token = text(&mine, "access_token");
    let stream = Stream::open(&story.house, token);
    story.realms.log_out("cloud", ANNA.0);
    stream.ends();
    let refused = story.ask(token, "/v1/whoami").problem(401, "unauthenticated");
    assert!(text(&refused.json, "detail").contains("this login has ended"), "{:#}", refused.json);
    story.ask(&robot, "/v1/whoami").is(200);
    // Whoever logs in again is somebody again.
    until("a second in which nothing ended", 30, || {
        let tokens = story.anna("cloud");
        (story.ask(text(&tokens, "access_token"), "/v1/whoami").one_of(&[200, 401]).status == 200)
            .then_some(())
    });
}
