//! Sessions of people in browsers: how they begin and end, at all servers, and for which requests their cookie counts.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use rhyzome_api::auth::{
    ApiTokens, AuthFile, Authenticator, Authenticators, Domains, Ended, Now, OperatorToken, RequestDetails,
    Sessions, Verdict,
};
use rhyzome_api::kernel::caller::SecondFactor;
use rhyzome_api::kernel::{Caller, Timestamp, totp};
use rhyzome_api::outbound::{Limits, Outbound, Rules, SystemNames};
use rhyzome_tests::face::{Face, Reply, TOKEN};
use rhyzome_tests::given::Time;
use rhyzome_tests::people::base32;
use rhyzome_tests::wait::until;
use rhyzome_tests::world::{Engine, World};
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

const PATIENCE: u64 = 30;
/// A stream ends with its session within so long.
const ENDED_WITHIN: Duration = Duration::from_secs(2);

const HOST: &str = "api.example";
const ORIGIN: &str = "https://api.example";
const SESSION: &str = "/v1/session";
const ME: &str = "/v1/whoami";

/// `secret`, `other`, `secret`.
const ANNA: &str = "anna:$2y$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n";
const ANNA_LATER: &str = "anna:$2y$04$bbcdefghijklmnopqrstuuupv.jj9tTJr.O4LVP1oPWgAPVtUQHqa\n";
const BERT: &str = "bert:$2y$04$cbcdefghijklmnopqrstuuIPt738vbUX4vLjLS7EHHoRSq6TszM6a\n";

/// Knows `Pass NAME.LOGIN`, whose login may end, as a provider's does.
struct Provider;

fn caller_of(text: &str) -> Option<Caller> {
    let (name, login) = text.split_once('.')?;
    Some(Caller {
        name: name.to_owned(),
        credential: "provider/password".to_owned(),
        authenticator: "provider".to_owned(),
        subject: name.to_owned(),
        session: Some(login.to_owned()),
        second_factor: Some(SecondFactor::IfEnrolled),
        ..Caller::default()
    })
}

impl Authenticator for Provider {
    fn authenticate<'a>(&'a self, header: Option<&'a str>, _: &'a RequestDetails) -> BoxFuture<'a, Verdict> {
        let caller = header.and_then(|header| caller_of(header.strip_prefix("Pass ")?));
        Box::pin(std::future::ready(caller.map_or(Verdict::NotMine, Verdict::Caller)))
    }

    fn name(&self) -> &str {
        "provider"
    }

    fn now(&self, kept: &Caller) -> Option<Now> {
        Some(Ok((kept.clone(), String::new())))
    }

    fn logout<'a>(&'a self, token: &'a str) -> Option<BoxFuture<'a, Result<Ended, String>>> {
        let caller = caller_of(token).unwrap();
        let (authenticator, until) = ("provider".to_owned(), Timestamp(i64::MAX));
        let ended = match caller.session.as_deref() {
            Some("*") => {
                Ended { authenticator, subject: caller.subject, at: until, until, ..Ended::default() }
            }
            login => Ended {
                authenticator,
                session: login.unwrap().to_owned(),
                at: until,
                until,
                ..Ended::default()
            },
        };
        Some(Box::pin(std::future::ready(Ok(ended))))
    }
}

/// One of several servers on one database.
struct Server {
    face: Face,
    domains: Arc<Domains>,
    _following: DropGuard,
}

/// What a browser has of a session.
struct Tab {
    host: &'static str,
    cookie: String,
    csrf: String,
}

struct Story {
    world: World,
    time: Time,
    folder: tempfile::TempDir,
}

impl Story {
    async fn new(engine: Engine) -> Story {
        let time = Time::begin();
        let world = World::with_time(engine, &time, 7).await;
        let folder = tempfile::tempdir().unwrap();
        let story = Story { world, time, folder };
        story.passwords(&format!("{ANNA}{BERT}"));
        story.groups("");
        story
    }

    fn passwords(&self, text: &str) {
        write(&self.folder.path().join("passwords"), text);
    }

    fn groups(&self, text: &str) {
        write(&self.folder.path().join("groups"), text);
    }

    /// All whom this one knows may look.
    async fn all_look(&self, authenticator: &str) {
        let spec = json!({ "subjects": { "all": { "authenticator": authenticator } }, "role": "viewer" });
        self.world.make("default", "binding", "all", spec).await;
    }

    async fn server(&self) -> Server {
        let (world, stop) = (&self.world, CancellationToken::new());
        let path = |name: &str| self.folder.path().join(name);
        let (file, groups) = (path("passwords"), path("groups"));
        let staff = json!({
            "type": "htpasswd", "name": "staff", "file": file, "groups_file": groups, "operators": { "groups": ["ops"] },
        });
        let acme = json!({ "type": "htpasswd", "name": "acme", "file": file, "tenant": "acme" });
        let config: AuthFile = serde_json::from_value(json!({ "authenticators": [staff, acme] })).unwrap();
        let (sessions, domains) = (Arc::new(Sessions::default()), Arc::new(Domains::default()));
        let outbound =
            Arc::new(Outbound::new(Rules::default(), Limits::default(), Arc::new(SystemNames)).unwrap());
        let made = config.resolve().unwrap().make(world.store.env(), &outbound, &sessions).unwrap();
        let own: Vec<Arc<dyn Authenticator>> =
            vec![Arc::new(OperatorToken::new(TOKEN)), Arc::new(ApiTokens), Arc::new(Provider)];
        sessions.read(&world.store).await.unwrap();
        tokio::spawn(sessions.clone().follow(world.store.clone(), stop.clone()));
        tokio::spawn(domains.clone().follow(world.store.clone(), stop.clone()));
        let who = Authenticators::new(own.into_iter().chain(made).collect());
        let who = who.with_sessions(sessions).with_domains(domains.clone());
        Server { face: Face::knowing(world, who), domains, _following: stop.drop_guard() }
    }
}

/// Written beside and moved there, so that it is another file each time.
fn write(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).unwrap();
    std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o640)).unwrap();
    std::fs::rename(beside, path).unwrap();
}

fn basic(name: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{name}:{password}")))
}

impl Server {
    /// What whoever shows this is answered, by a page of this host.
    async fn asked_to_begin(&self, host: &str, authorization: &str, more: &[(&str, &str)]) -> Reply {
        let origin = format!("https://{host}");
        let headers = [
            ("host", host),
            ("origin", &origin),
            ("sec-fetch-site", "same-origin"),
            ("authorization", authorization),
        ];
        self.face.raw("POST", SESSION, &[&headers[..], more].concat(), "").await
    }

    async fn begin_at(&self, host: &'static str, authorization: &str, more: &[(&str, &str)]) -> Tab {
        let begun = self.asked_to_begin(host, authorization, more).await.is(201);
        let set = begun.header("set-cookie");
        let (cookie, rest) = set.split_once(';').unwrap();
        assert!(cookie.starts_with("__Host-rhyzome=rzs_"), "{set}");
        assert_eq!(rest, " Path=/; HttpOnly; SameSite=Strict; Secure");
        assert_eq!(begun.header("cache-control"), "no-store");
        let csrf = begun.json["csrf"].as_str().unwrap().to_owned();
        assert!(!begun.json.to_string().contains(cookie.split_once('=').unwrap().1));
        Tab { host, cookie: cookie.to_owned(), csrf }
    }

    async fn begin(&self, authorization: &str) -> Tab {
        self.begin_at(HOST, authorization, &[]).await
    }

    /// As a page of the same origin asks.
    async fn ask(&self, tab: &Tab, method: &str, path: &str, body: Value) -> Reply {
        let origin = format!("https://{}", tab.host);
        let mut headers =
            vec![("host", tab.host), ("cookie", &tab.cookie), ("sec-fetch-site", "same-origin")];
        if method != "GET" {
            headers.extend([("origin", origin.as_str()), ("x-rhyzome-csrf", &tab.csrf)]);
        }
        if body.is_null() {
            return self.face.raw(method, path, &headers, "").await;
        }
        headers.push(("content-type", "application/json"));
        self.face.raw(method, path, &headers, body.to_string()).await
    }

    async fn get(&self, tab: &Tab, path: &str) -> Reply {
        self.ask(tab, "GET", path, Value::Null).await
    }

    async fn lets_in(&self, tab: &Tab) -> bool {
        let reply = self.get(tab, ME).await;
        assert!([200, 401].contains(&reply.status), "{}", reply.json);
        reply.status == 200
    }

    async fn ends(&self, tab: &Tab) {
        until("the session to have ended", PATIENCE, async || (!self.lets_in(tab).await).then_some(())).await;
    }

    async fn stream(&self, tab: &Tab) -> axum::body::BodyDataStream {
        let headers =
            [("host", tab.host), ("cookie", tab.cookie.as_str()), ("sec-fetch-site", "same-origin")];
        self.face.streamed("/v1/tenants/default/events", &headers).await
    }

    async fn logged_out_by_provider(&self, token: &str) {
        let form = format!("logout_token={token}");
        self.face.raw("POST", "/v1/login/provider/ended", &[], form).await.is(200);
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
    it_begins_with_a_password_and_ends_by_ones_own_word,
    a_page_of_another_site_has_no_session,
    it_ends_when_nobody_uses_it_and_in_the_end,
    what_begins_one_and_what_does_not,
    a_code_is_shown_once_for_all_of_it,
    it_ends_with_whoever_has_it,
    it_ends_with_the_login_at_the_provider,
    it_is_one_of_the_domain_where_it_began,
    what_is_kept_tells_nothing,
    nobody_has_hundreds,
);

async fn it_begins_with_a_password_and_ends_by_ones_own_word(story: Story) {
    let (one, other) = (story.server().await, story.server().await);
    let tab = one.begin(&basic("anna", "secret")).await;
    for server in [&one, &other] {
        let me = server.get(&tab, ME).await.is(200).json;
        assert_eq!((&me["name"], &me["credential"]), (&json!("anna"), &json!("staff/session")), "{me:#}");
        let session = server.get(&tab, SESSION).await.is(200).json;
        assert_eq!((&session["name"], &session["csrf"]), (&json!("anna"), &json!(tab.csrf)));
        assert_eq!(session["authenticator"], "staff");
    }
    // A header says more than what a browser sends by itself, whichever of the two is good.
    let both = [("host", HOST), ("cookie", tab.cookie.as_str()), ("sec-fetch-site", "same-origin")];
    let bert = basic("bert", "secret");
    let as_bert = [&both[..], &[("authorization", bert.as_str())]].concat();
    assert_eq!(one.face.raw("GET", ME, &as_bert, "").await.is(200).json["name"], "bert");
    let as_nobody = [&both[..], &[("authorization", "Bearer nothing")]].concat();
    one.face.raw("GET", ME, &as_nobody, "").await.is_problem(401, "unauthenticated");
    // What the same browser begins is another one, and the one that it had is over: no secret of before counts after it.
    let newer = other.begin_at(HOST, &basic("bert", "secret"), &[("cookie", &tab.cookie)]).await;
    assert_ne!(newer.cookie, tab.cookie);
    assert!(!other.lets_in(&tab).await);
    one.ends(&tab).await;
    // Its end is its owner's word.
    let ended = one.ask(&newer, "DELETE", SESSION, Value::Null).await.is(204);
    assert_eq!(
        ended.header("set-cookie"),
        "__Host-rhyzome=; Path=/; HttpOnly; SameSite=Strict; Secure; Max-Age=0"
    );
    let refused = one.get(&newer, ME).await.is_problem(401, "unauthenticated");
    assert_eq!(refused.json["detail"], "this session has ended: log in again");
    other.ends(&newer).await;
    // A server that comes later knows none of them.
    let later = story.server().await;
    assert!(!later.lets_in(&tab).await && !later.lets_in(&newer).await);
    let sql = "SELECT actor, verb, credential FROM event WHERE verb LIKE 'session-%' ORDER BY actor, verb";
    assert_eq!(
        story.world.ask(sql).await,
        [
            ["anna", "session-begin", "staff/password"],
            ["bert", "session-begin", "staff/password"],
            ["bert", "session-end", "staff/session"],
        ]
    );
}

async fn a_page_of_another_site_has_no_session(story: Story) {
    let server = story.server().await;
    let tab = server.begin(&basic("anna", "secret")).await;
    let console = "/v1/tenants/default/instances/none/console";
    let requests = [
        ("GET", ME, false),
        ("HEAD", ME, false),
        ("GET", console, true),
        ("POST", "/v1/tokens", false),
        ("PATCH", "/v1/tokens/none", false),
        ("PUT", "/v1/images/none/content", false),
        ("DELETE", "/v1/tokens/none", false),
    ];
    let origins =
        [None, Some(ORIGIN), Some("http://api.example"), Some("https://evil.example"), Some("null")];
    let sites = [None, Some("same-origin"), Some("same-site"), Some("cross-site"), Some("none")];
    let tokens = [None, Some(tab.csrf.as_str()), Some("wrong")];
    let (mut asked, mut let_in) = (0, 0);
    for (method, path, is_websocket) in requests {
        for origin in origins {
            for site in sites {
                for token in tokens {
                    let mut headers = vec![("host", HOST), ("cookie", tab.cookie.as_str())];
                    headers.extend(origin.map(|origin| ("origin", origin)));
                    headers.extend(site.map(|site| ("sec-fetch-site", site)));
                    headers.extend(token.map(|token| ("x-rhyzome-csrf", token)));
                    if is_websocket {
                        headers.extend([("connection", "upgrade"), ("upgrade", "websocket")]);
                    }
                    let changes = !matches!(method, "GET" | "HEAD");
                    let right = match (site, origin) {
                        (Some("same-origin"), None) => !changes && !is_websocket,
                        (Some("same-origin") | None, Some(ORIGIN)) => !changes || token == Some(&tab.csrf),
                        _ => false,
                    };
                    let reply = server.face.raw(method, path, &headers, "").await;
                    assert_eq!(reply.status != 401, right, "{method} {headers:?}: {:#}", reply.json);
                    (asked, let_in) = (asked + 1, let_in + usize::from(right));
                }
            }
        }
    }
    println!("{asked} requests, of which {let_in} count");
    assert_eq!((asked, let_in), (7 * 5 * 5 * 3, 2 * 9 + 6 + 4 * 2));
    // Nobody is logged in by another site, and nobody's preflight is answered.
    for elsewhere in [("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")] {
        let headers = [("host", HOST), ("authorization", &basic("anna", "secret")), elsewhere];
        server.face.raw("POST", SESSION, &headers, "").await.is_problem(403, "denied");
    }
    let headers = [("host", HOST), ("origin", ORIGIN), ("access-control-request-method", "POST")];
    let preflight = server.face.raw("OPTIONS", ME, &headers, "").await;
    assert!(preflight.headers.keys().all(|name| !name.as_str().starts_with("access-control")));
    // Another cookie of the name is none of ours, and two are none.
    let two = format!("{}; {}", tab.cookie, tab.cookie);
    for cookie in [two.as_str(), "__Host-rhyzome=rzs_guessed", "__Host-rhyzome=", "rhyzome=rzs_guessed"] {
        let headers = [("host", HOST), ("cookie", cookie), ("sec-fetch-site", "same-origin")];
        server.face.raw("GET", ME, &headers, "").await.is_problem(401, "unauthenticated");
    }
    assert!(server.lets_in(&tab).await);
}

async fn it_ends_when_nobody_uses_it_and_in_the_end(story: Story) {
    let (one, other) = (story.server().await, story.server().await);
    let idle = one.begin(&basic("anna", "secret")).await;
    assert!(one.lets_in(&idle).await && other.lets_in(&idle).await);
    story.time.pass(29 * 60);
    // Used at one server, it is not idle at the other.
    assert!(one.lets_in(&idle).await);
    let sql = "SELECT seen_at > made_at FROM browser_session";
    until("the use to be written", PATIENCE, async || {
        let seen = story.world.ask(sql).await.concat().concat();
        ["1", "t", "true"].contains(&seen.as_str()).then_some(())
    })
    .await;
    story.time.pass(29 * 60);
    assert!(other.lets_in(&idle).await);
    story.time.pass(31 * 60);
    assert!(!one.lets_in(&idle).await && !other.lets_in(&idle).await);
    // A stream that is open is no use, and ends with it.
    story.all_look("staff").await;
    let busy = one.begin(&basic("anna", "secret")).await;
    let mut stream = one.stream(&busy).await;
    story.time.pass(31 * 60);
    let end = async { while stream.next().await.is_some() {} };
    tokio::time::timeout(Duration::from_secs(PATIENCE), end).await.expect("the stream goes on");
    assert!(!one.lets_in(&busy).await);
    // However busy somebody is.
    let busy = one.begin(&basic("anna", "secret")).await;
    for _ in 0..12 * 4 - 1 {
        story.time.pass(15 * 60);
        assert!(one.lets_in(&busy).await);
    }
    story.time.pass(15 * 60);
    assert!(!one.lets_in(&busy).await && !other.lets_in(&busy).await);
    // What is over is swept with the next one.
    story.time.pass(1);
    one.begin(&basic("anna", "secret")).await;
    assert_eq!(story.world.ask("SELECT count(*) FROM browser_session").await, [["1"]]);
}

async fn what_begins_one_and_what_does_not(story: Story) {
    let server = story.server().await;
    let operator = format!("Bearer {TOKEN}");
    let tab = server.begin(&operator).await;
    let me = server.get(&tab, ME).await.is(200).json;
    assert_eq!(
        (&me["operator"], &me["credential"]),
        (&json!(true), &json!("operator-token/session")),
        "{me:#}"
    );
    let spec = json!({ "name": "ci", "spec": {} });
    let token = server.ask(&tab, "POST", "/v1/tokens", spec).await.is(201).json["secrets"]["token"].clone();
    let token = format!("Bearer {}", token.as_str().unwrap());
    server.asked_to_begin(HOST, &token, &[]).await.is_problem(409, "wrong-state");
    server.asked_to_begin(HOST, &basic("anna", "guess"), &[]).await.is_problem(401, "unauthenticated");
    // A session makes none that lasts longer.
    server.ask(&tab, "POST", SESSION, Value::Null).await.is_problem(409, "wrong-state");
    // Who has none is told so.
    for method in ["GET", "DELETE"] {
        server.face.call(method, SESSION, Value::Null).await.is_problem(409, "wrong-state");
    }
}

async fn a_code_is_shown_once_for_all_of_it(story: Story) {
    let server = story.server().await;
    let pass = "Pass anna.s1";
    let with = async |method: &str, path: &str, body: Value| {
        let headers = [("authorization", pass), ("content-type", "application/json")];
        let body = if body.is_null() { String::new() } else { body.to_string() };
        server.face.raw(method, path, &headers, body).await
    };
    let key = with("POST", "/v1/second-factor", Value::Null).await.is(201).json["secret"].clone();
    let key = base32(key.as_str().unwrap());
    let code = |ahead: i64| totp::code(&key, totp::step(story.time.now()) + ahead);
    with("POST", "/v1/second-factor/confirm", json!({ "code": code(0) })).await.is(200);
    server.asked_to_begin(HOST, pass, &[]).await.is_problem(401, "second-factor");
    story.time.pass(totp::STEP_SECONDS);
    let tab = server.begin_at(HOST, pass, &[("x-rhyzome-otp", &code(0))]).await;
    assert!(server.lets_in(&tab).await && server.lets_in(&tab).await);
    // But what protects the account asks for the password again.
    server.ask(&tab, "DELETE", "/v1/second-factor", Value::Null).await.is_problem(409, "wrong-state");
}

async fn it_ends_with_whoever_has_it(story: Story) {
    let (one, other) = (story.server().await, story.server().await);
    // With the password.
    story.groups("ops: anna\n");
    let (anna, bert) = (one.begin(&basic("anna", "secret")).await, one.begin(&basic("bert", "secret")).await);
    assert_eq!(other.get(&anna, ME).await.is(200).json["operator"], true);
    // What is said of somebody counts at once.
    story.groups("ops: bert\n");
    assert_eq!(other.get(&anna, ME).await.is(200).json["operator"], false);
    story.groups("");
    story.passwords(&format!("{ANNA_LATER}{BERT}"));
    assert!(!one.lets_in(&anna).await && !other.lets_in(&anna).await);
    assert!(one.lets_in(&bert).await && other.lets_in(&bert).await);
    // With the line of the file.
    let later = one.begin(&basic("anna", "other")).await;
    story.passwords(ANNA_LATER);
    assert!(!one.lets_in(&bert).await && one.lets_in(&later).await);
    // With the user: suspended, and gone.
    for (method, body) in [("PATCH", json!({ "spec": { "disabled": true } })), ("DELETE", Value::Null)] {
        let tab = one.begin(&basic("anna", "other")).await;
        assert!(other.lets_in(&tab).await);
        let sql = "SELECT holder FROM identity WHERE username = 'anna'";
        let user = format!("/v1/users/{}", story.world.ask(sql).await.concat().concat());
        let done = one.face.call(method, &user, body).await;
        assert!([200, 202].contains(&done.status), "{:#}", done.json);
        one.ends(&tab).await;
        other.ends(&tab).await;
        if method == "PATCH" {
            one.face.call("PATCH", &user, json!({ "spec": { "disabled": false } })).await;
        }
        // Let in again, somebody begins a new one: that the old one has ended is heard in a moment, if it was not yet.
        one.ends(&tab).await;
        other.ends(&tab).await;
    }
    assert!(!one.lets_in(&later).await);
}

async fn it_ends_with_the_login_at_the_provider(story: Story) {
    let (one, other) = (story.server().await, story.server().await);
    story.all_look("provider").await;
    for word in ["anna.s1", "anna.*"] {
        let login = if word == "anna.*" { "Pass anna.s3" } else { "Pass anna.s1" };
        let (mine, berts) = (one.begin(login).await, one.begin("Pass bert.s2").await);
        assert!(other.lets_in(&mine).await && other.lets_in(&berts).await);
        let mut stream = other.stream(&mine).await;
        let mut goes_on = other.stream(&berts).await;
        let begun = Instant::now();
        one.logged_out_by_provider(word).await;
        let end = async { while stream.next().await.is_some() {} };
        tokio::time::timeout(Duration::from_secs(PATIENCE), end).await.expect("the stream goes on");
        println!("a stream at the other server ends after {} ms", begun.elapsed().as_millis());
        assert!(begun.elapsed() <= ENDED_WITHIN, "{:?}", begun.elapsed());
        one.ends(&mine).await;
        other.ends(&mine).await;
        assert!(one.lets_in(&berts).await && other.lets_in(&berts).await);
        let more = tokio::time::timeout(Duration::from_millis(100), goes_on.next()).await;
        assert!(!matches!(more, Ok(None)), "the stream of somebody else has ended");
        let sql = "SELECT count(*) FROM browser_session WHERE subject = 'anna'";
        assert_eq!(story.world.ask(sql).await, [["0"]]);
        // By one's own word, too.
        let mut stream = other.stream(&berts).await;
        let begun = Instant::now();
        one.ask(&berts, "DELETE", SESSION, Value::Null).await.is(204);
        let end = async { while stream.next().await.is_some() {} };
        tokio::time::timeout(Duration::from_secs(PATIENCE), end).await.expect("the stream goes on");
        assert!(begun.elapsed() <= ENDED_WITHIN, "{:?}", begun.elapsed());
    }
}

async fn it_is_one_of_the_domain_where_it_began(story: Story) {
    let server = story.server().await;
    let spec = json!({ "api": { "domain": "api.acme.example" } });
    server.face.call("POST", "/v1/tenants", json!({ "name": "acme", "spec": spec })).await.is(201);
    until("the domain to be known", PATIENCE, async || server.domains.of("api.acme.example").map(drop)).await;
    let mut there = server.begin_at("api.acme.example", &basic("anna", "secret"), &[]).await;
    let mut here = server.begin(&basic("anna", "secret")).await;
    let me = server.get(&there, ME).await.is(200).json;
    assert_eq!(me["credential"], "acme/session", "{me:#}");
    assert!(server.lets_in(&here).await);
    // No browser would do this: a cookie is of its host.
    (there.host, here.host) = (HOST, "api.acme.example");
    assert!(!server.lets_in(&there).await && !server.lets_in(&here).await);
    // The operator's token is none of the tenant's.
    server
        .asked_to_begin("api.acme.example", &format!("Bearer {TOKEN}"), &[])
        .await
        .is_problem(401, "unauthenticated");
}

async fn what_is_kept_tells_nothing(story: Story) {
    let server = story.server().await;
    let tab = server.begin(&basic("anna", "secret")).await;
    assert!(server.lets_in(&tab).await);
    let secret = tab.cookie.split_once('=').unwrap().1;
    let written = story.world.written().await;
    for kept in [secret, &tab.csrf, ANNA.trim().split_once(':').unwrap().1] {
        assert!(!written.windows(kept.len()).any(|part| part == kept.as_bytes()), "{kept} is written");
    }
    // What is written opens nothing.
    let hash = story.world.ask("SELECT hash FROM browser_session").await.concat().concat();
    let stolen = Tab { host: HOST, cookie: format!("__Host-rhyzome={hash}"), csrf: tab.csrf };
    assert!(!server.lets_in(&stolen).await);
}

async fn nobody_has_hundreds(story: Story) {
    let server = story.server().await;
    let mut tabs = Vec::new();
    for _ in 0..22 {
        story.time.pass(1);
        tabs.push(server.begin(&basic("anna", "secret")).await);
    }
    let mut good = Vec::new();
    for tab in &tabs {
        good.push(server.lets_in(tab).await);
    }
    assert_eq!(good, [vec![false; 2], vec![true; 20]].concat());
}
