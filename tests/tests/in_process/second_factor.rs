//! A code besides a password: demanded from whoever has set it up, taken once, at whichever server; and what there is for
//! whoever has lost their app.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::future::{BoxFuture, join_all};
use rhyzome_api::auth::{Authenticator, RequestDetails, Verdict};
use rhyzome_api::kernel::caller::SecondFactor;
use rhyzome_api::kernel::{Caller, totp};
use rhyzome_tests::face::{Face, Reply};
use rhyzome_tests::given::Time;
use rhyzome_tests::people::{base32, known_beside};
use rhyzome_tests::world::{Engine, World};
use serde_json::{Value, json};

/// `Pass anna` has shown a password, `Must anna` where a code is required, `Root anna` is an operator by configuration.
struct Passwords;

impl Authenticator for Passwords {
    fn authenticate<'a>(&'a self, header: Option<&'a str>, _: &'a RequestDetails) -> BoxFuture<'a, Verdict> {
        let verdict = match header.and_then(|header| header.split_once(' ')) {
            Some((policy @ ("Pass" | "Must" | "Root"), name)) => Verdict::Caller(Caller {
                name: name.to_owned(),
                credential: "corp/password".to_owned(),
                authenticator: "corp".to_owned(),
                subject: format!("subject of {name}"),
                operator: policy == "Root",
                second_factor: Some(match policy {
                    "Must" => SecondFactor::Required,
                    _ => SecondFactor::IfEnrolled,
                }),
                ..Caller::default()
            }),
            _ => Verdict::NotMine,
        };
        Box::pin(std::future::ready(verdict))
    }
}

struct Story {
    world: World,
    time: Time,
    face: Face,
}

const ME: &str = "/v1/whoami";
const FACTOR: &str = "/v1/second-factor";
const CONFIRM: &str = "/v1/second-factor/confirm";

impl Story {
    async fn new(engine: Engine) -> Story {
        let time = Time::begin();
        let world = World::with_time(engine, &time, 7).await;
        let face = Face::letting_in(&world, known_beside(Passwords));
        Story { world, time, face }
    }

    async fn ask(&self, who: &str, code: &str, method: &str, path: &str, body: Value) -> Reply {
        let mut headers = vec![("authorization", who)];
        if !code.is_empty() {
            headers.push(("x-rhyzome-otp", code));
        }
        if body.is_null() {
            return self.face.raw(method, path, &headers, "").await;
        }
        headers.push(("content-type", "application/json"));
        self.face.raw(method, path, &headers, body.to_string()).await
    }

    async fn me(&self, who: &str, code: &str) -> Reply {
        self.ask(who, code, "GET", ME, Value::Null).await
    }

    /// The code that an app with this key shows so many steps from now.
    fn code(&self, key: &[u8], ahead: i64) -> String {
        totp::code(key, totp::step(self.time.now()) + ahead)
    }

    /// A key that is not confirmed yet. `code`: of the one before.
    async fn made(&self, who: &str, code: &str) -> Vec<u8> {
        let made = self.ask(who, code, "POST", FACTOR, Value::Null).await.is(201).json;
        let key = base32(made["secret"].as_str().unwrap());
        assert_eq!(key.len(), 20);
        assert!(made["uri"].as_str().unwrap().contains(made["secret"].as_str().unwrap()), "{made:#}");
        key
    }

    /// A key that counts, and the codes for when it is lost.
    async fn enrolled(&self, who: &str) -> (Vec<u8>, Vec<String>) {
        let key = self.made(who, "").await;
        let code = json!({ "code": self.code(&key, 0) });
        let done = self.ask(who, "", "POST", CONFIRM, code).await.is(200).json;
        let codes = done["recovery_codes"].as_array().unwrap().iter();
        self.time.pass(totp::STEP_SECONDS);
        (key, codes.map(|code| code.as_str().unwrap().to_owned()).collect())
    }
}

macro_rules! stories {
    ($($name:ident),* $(,)?) => {
        mod sqlite { $(#[tokio::test(flavor = "multi_thread")] async fn $name() {
            super::$name(super::Story::new(super::Engine::Sqlite).await).await;
        })* }
        mod postgres { $(#[tokio::test(flavor = "multi_thread")] async fn $name() {
            super::$name(super::Story::new(super::Engine::Postgres).await).await;
        })* }
    };
}

stories!(
    a_code_counts_once,
    a_code_is_guessed_a_few_times_only,
    codes_for_when_the_app_is_gone,
    where_it_is_required,
    what_is_kept_tells_nothing,
    an_operator_takes_it_away,
);

async fn a_code_counts_once(story: Story) {
    let anna = "Pass anna";
    story.me(anna, "").await.is(200);
    let state = story.ask(anna, "", "GET", FACTOR, Value::Null).await.is(200).json;
    assert_eq!((&state["enrolled"], &state["required"]), (&json!(false), &json!(false)));
    let key = story.made(anna, "").await;
    // Nothing is demanded before the app has shown that it has the key.
    story.me(anna, "").await.is(200);
    let wrong = json!({ "code": story.code(&key, 5) });
    story.ask(anna, "", "POST", CONFIRM, wrong).await.is_problem(422, "invalid");
    let body = json!({ "code": story.code(&key, 0) });
    story.ask(anna, "", "POST", CONFIRM, body.clone()).await.is(200);

    let refused = story.me(anna, "").await.is_problem(401, "second-factor");
    assert!(refused.header("www-authenticate").contains("X-Rhyzome-OTP"), "{:?}", refused.headers);
    assert_eq!(refused.json["missing"], "code");
    // The one that has confirmed it was used by that.
    story.me(anna, &story.code(&key, 0)).await.is_problem(401, "second-factor");
    // A clock that is one step ahead, many requests at once: one of them.
    let code = story.code(&key, 1);
    let all = join_all((0..8).map(|_| story.me(anna, &code))).await;
    let mut statuses: Vec<u16> = all.iter().map(|reply| reply.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 401, 401, 401, 401, 401, 401, 401]);
    // Nobody else's password needs it, and nobody else's code helps.
    story.me("Pass bert", "").await.is(200);
    // With another app: confirmed with codes of both.
    story.time.pass(3600);
    let newer = story.made(anna, &story.code(&key, 0)).await;
    story.time.pass(totp::STEP_SECONDS);
    let body = json!({ "code": story.code(&newer, 0) });
    story.ask(anna, &story.code(&key, 0), "POST", CONFIRM, body).await.is(200);
    story.time.pass(totp::STEP_SECONDS);
    story.me(anna, &story.code(&key, 0)).await.is_problem(401, "second-factor");
    story.me(anna, &story.code(&newer, 0)).await.is(200);
    // And without one again.
    story.time.pass(totp::STEP_SECONDS);
    story.ask(anna, &story.code(&newer, 0), "DELETE", FACTOR, Value::Null).await.is(204);
    story.me(anna, "").await.is(200);
}

async fn a_code_is_guessed_a_few_times_only(story: Story) {
    let (key, recovery) = story.enrolled("Pass anna").await;
    let wrong = story.code(&key, 40);
    let mut waited = Vec::new();
    for _ in 0..6 {
        let refused = story.me("Pass anna", &wrong).await.is_problem(401, "second-factor");
        waited.push(!refused.header("retry-after").is_empty());
    }
    assert_eq!(waited, [false, false, false, false, false, true]);
    // Not even the right one, for a while.
    story.me("Pass anna", &story.code(&key, 0)).await.is_problem(401, "second-factor");
    // But one that nobody guesses: who guesses does not shut out its owner.
    story.me("Pass anna", &recovery[0]).await.is(200);
    story.me("Pass anna", &recovery[0]).await.is_problem(401, "second-factor");
    story.time.pass(301);
    story.me("Pass anna", &story.code(&key, 0)).await.is(200);
    story.world.store.flush_denials().await.unwrap();
    let sql = "SELECT DISTINCT actor, credential FROM event WHERE class = 'denied' AND verb = 'authenticate'";
    assert_eq!(story.world.ask(sql).await, [["anna", "corp/password"]]);
}

async fn codes_for_when_the_app_is_gone(story: Story) {
    let anna = "Pass anna";
    let (key, codes) = story.enrolled(anna).await;
    assert_eq!(codes.len(), 10);
    story.me(anna, &codes[0]).await.is(200);
    story.me(anna, &codes[0]).await.is_problem(401, "second-factor");
    story.me(anna, &codes[1].to_uppercase().replace('-', " ")).await.is(200);
    let left = story.ask(anna, &story.code(&key, 0), "GET", FACTOR, Value::Null).await.is(200).json;
    assert_eq!((&left["recovery_codes"], &left["enrolled"]), (&json!(8), &json!(true)));
    // New ones come with a new app, and the old ones go.
    let newer = story.made(anna, &codes[2]).await;
    let body = json!({ "code": story.code(&newer, 0) });
    story.ask(anna, &codes[3], "POST", CONFIRM, body).await.is(200);
    story.me(anna, &codes[4]).await.is_problem(401, "second-factor");
}

async fn where_it_is_required(story: Story) {
    let anna = "Must anna";
    let refused =
        story.ask(anna, "", "GET", "/v1/tokens", Value::Null).await.is_problem(401, "second-factor");
    assert_eq!(refused.json["missing"], "enrol");
    for (method, path) in
        [("DELETE", FACTOR), ("PUT", FACTOR), ("POST", ME), ("GET", CONFIRM), ("POST", "/v1/tokens")]
    {
        let reply = story.ask(anna, "", method, path, Value::Null).await;
        assert!(matches!(reply.status, 401 | 405), "{method} {path}: {}", reply.json);
    }
    story.me(anna, "").await.is(200);
    let state = story.ask(anna, "", "GET", FACTOR, Value::Null).await.is(200).json;
    assert_eq!(state["required"], true);
    let (key, _) = story.enrolled(anna).await;
    story.me(anna, "").await.is_problem(401, "second-factor");
    story.ask(anna, &story.code(&key, 0), "GET", "/v1/tokens", Value::Null).await.is(200);
    // With a token that was made so no code is needed, and no token makes a second factor.
    story.time.pass(totp::STEP_SECONDS);
    let made =
        story.ask(anna, &story.code(&key, 0), "POST", "/v1/tokens", json!({ "spec": {} })).await.is(201);
    let token = format!("Bearer {}", made.json["secrets"]["token"].as_str().unwrap());
    story.me(&token, "").await.is(200);
    for (method, path) in [("POST", FACTOR), ("DELETE", FACTOR)] {
        story.ask(&token, "", method, path, Value::Null).await.is_problem(409, "wrong-state");
    }
    // Operators of the configuration are no exception.
    let (key, _) = story.enrolled("Root root").await;
    story.me("Root root", "").await.is_problem(401, "second-factor");
    let me = story.me("Root root", &story.code(&key, 0)).await.is(200).json;
    assert_eq!(me["operator"], true);
}

async fn what_is_kept_tells_nothing(story: Story) {
    let (key, codes) = story.enrolled("Pass anna").await;
    let written = story.world.written().await;
    let found = |bytes: &[u8]| written.windows(bytes.len()).any(|part| part == bytes);
    assert!(!found(&key) && !found(totp::base32(&key).as_bytes()));
    // As it is before it is sealed.
    assert!(!found(BASE64_STANDARD.encode(&key).as_bytes()));
    assert!(!found(codes[0].as_bytes()) && !found(codes[0].replace('-', "").as_bytes()));
    let state = story.ask("Pass anna", &story.code(&key, 0), "GET", FACTOR, Value::Null).await.is(200);
    assert!(!state.json.to_string().contains(&totp::base32(&key)));
    // A key that was never confirmed is not left behind, nor what a newer one has replaced.
    story.made("Pass bert", "").await;
    story.made("Pass bert", "").await;
    let sql = "SELECT count(*) FROM secret WHERE field = 'second-factor'";
    assert_eq!(story.world.ask(sql).await, [["2"]]);
}

async fn an_operator_takes_it_away(story: Story) {
    story.enrolled("Pass anna").await;
    let me = story.me("Pass bert", "").await.is(200).json["user"].clone();
    let sql = "SELECT holder FROM identity WHERE username = 'anna'";
    let anna = story.world.ask(sql).await.remove(0).remove(0);
    let path = format!("/v1/users/{anna}/second-factor");
    for who in ["Pass bert", "Pass carl"] {
        story.ask(who, "", "DELETE", &path, Value::Null).await.is_problem(404, "not-found");
    }
    story.me("Pass anna", "").await.is_problem(401, "second-factor");
    story.face.call("DELETE", &path, Value::Null).await.is(204);
    story.me("Pass anna", "").await.is(200);
    // Whoever has none loses nothing.
    story
        .face
        .call("DELETE", &format!("/v1/users/{}/second-factor", me.as_str().unwrap()), Value::Null)
        .await
        .is(204);
    let sql = "SELECT actor, verb FROM event WHERE verb LIKE 'second-factor-%' ORDER BY verb";
    assert_eq!(
        story.world.ask(sql).await,
        [
            ["anna", "second-factor-confirm"],
            ["operator", "second-factor-drop"],
            ["anna", "second-factor-enrol"]
        ]
    );
    // With the user everything of it goes.
    story.enrolled("Pass anna").await;
    story.face.call("DELETE", &format!("/v1/users/{anna}"), Value::Null).await.is(202);
    for table in ["second_factor", "recovery_code"] {
        assert_eq!(story.world.ask(&format!("SELECT count(*) FROM {table}")).await, [["0"]]);
    }
}
