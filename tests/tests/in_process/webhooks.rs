//! Webhooks, with a receiver that really listens: signed, in order, none missed, and nobody called who must not be.
//! On both databases. Signatures are checked here by code of our own.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::BoxFuture;
use rhyzome_api::auth::OperatorToken;
use rhyzome_api::kernel::webhook::Pace;
use rhyzome_api::log::{self, LogDuty};
use rhyzome_api::outbound::{Courier, Limits, Names, Rules};
use rhyzome_api::store::{HookState, Keep};
use rhyzome_api::webhooks::{self, Deliveries};
use rhyzome_tests::face::{Face, TOKEN};
use rhyzome_tests::wait::until;
use rhyzome_tests::world::World;
use ring::hmac;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::log::TestSeal;

rhyzome_tests::on_both!(
    messages_are_signed_and_in_order,
    who_was_away_misses_nothing,
    who_dies_before_it_wrote_sends_again_under_the_same_id,
    a_slow_receiver_delays_nobody_else,
    nobody_is_called_who_must_not_be,
    given_up_disabled_and_begun_anew,
    each_is_told_of_its_own,
    tested_and_sent_once_more,
);

const HOOKS: &str = "/v1/tenants/default/webhooks";
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// What a receiver got.
#[derive(Clone, Debug)]
struct Got {
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
    json: Value,
}

impl Got {
    fn id(&self) -> &str {
        &self.headers["webhook-id"]
    }

    fn name(&self) -> &str {
        self.json["data"]["name"].as_str().unwrap_or_default()
    }

    /// As the specification of Standard Webhooks has it.
    fn is_signed_by(&self, secret: &str) -> bool {
        let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
        let mut text = format!("{}.{}.", self.id(), self.headers["webhook-timestamp"]).into_bytes();
        text.extend(&self.body);
        let Some(signature) = self.headers["webhook-signature"].strip_prefix("v1,") else { return false };
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        hmac::verify(&key, &text, &STANDARD.decode(signature).unwrap()).is_ok()
    }
}

/// Somebody who listens on this machine.
#[derive(Clone)]
struct Receiver {
    url: String,
    got: Arc<Mutex<Vec<Got>>>,
    /// What it answers: status and further headers; after this long.
    answer: Arc<Mutex<(String, Duration)>>,
    connections: Arc<Mutex<usize>>,
}

impl Receiver {
    async fn on(address: &str) -> Receiver {
        let listener = TcpListener::bind(address).await.unwrap();
        let receiver = Receiver {
            url: format!("http://{}/hook", listener.local_addr().unwrap()),
            got: Arc::default(),
            answer: Arc::new(Mutex::new(("204 No Content\r\n".into(), Duration::ZERO))),
            connections: Arc::default(),
        };
        let own = receiver.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                *own.connections.lock().unwrap() += 1;
                tokio::spawn(own.clone().serve(stream));
            }
        });
        receiver
    }

    fn answers(&self, status: &str) {
        self.answer.lock().unwrap().0 = format!("{status}\r\n");
    }

    async fn serve(self, mut stream: tokio::net::TcpStream) {
        let (mut bytes, mut chunk) = (Vec::new(), [0; 4096]);
        let (head, rest) = loop {
            let read = stream.read(&mut chunk).await.unwrap_or(0);
            if read == 0 {
                return;
            }
            bytes.extend(&chunk[..read]);
            if let Some(at) = bytes.windows(4).position(|end| end == b"\r\n\r\n") {
                break (String::from_utf8(bytes[..at].to_vec()).unwrap(), bytes[at + 4..].to_vec());
            }
        };
        let headers: BTreeMap<String, String> = head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let length: usize = headers["content-length"].parse().unwrap();
        let mut body = rest;
        while body.len() < length {
            let read = stream.read(&mut chunk).await.unwrap();
            body.extend(&chunk[..read]);
        }
        let (answer, wait) = self.answer.lock().unwrap().clone();
        let json = serde_json::from_slice(&body).unwrap();
        self.got.lock().unwrap().push(Got { headers, body, json });
        tokio::time::sleep(wait).await;
        let answer = format!("HTTP/1.1 {answer}connection: close\r\ncontent-length: 0\r\n\r\n");
        // Who asked may have given up.
        let _ = stream.write_all(answer.as_bytes()).await;
    }

    fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }

    fn connections(&self) -> usize {
        *self.connections.lock().unwrap()
    }

    /// What it got, when something of this name is among it.
    async fn until(&self, name: &str) -> Vec<Got> {
        until(&format!("{name} at {}", self.url), 60, async || {
            let got = self.got();
            got.iter().any(|one| one.name() == name).then_some(got)
        })
        .await
    }
}

/// Names with scripted answers, one after the other; the last stays.
#[derive(Default)]
struct Scripted(Mutex<BTreeMap<String, Vec<IpAddr>>>);

impl Names for Scripted {
    fn addresses<'a>(&'a self, name: &'a str) -> BoxFuture<'a, std::io::Result<Vec<IpAddr>>> {
        let mut all = self.0.lock().unwrap();
        let answer = match all.get_mut(name) {
            Some(list) if list.len() > 1 => Ok(vec![list.remove(0)]),
            Some(list) => Ok(list.clone()),
            None => Err(std::io::ErrorKind::NotFound.into()),
        };
        Box::pin(std::future::ready(answer))
    }
}

/// A server as far as webhooks go: it leads the log and delivers, until it is dropped.
struct Server {
    _stop: DropGuard,
    face: Face,
}

const QUICK: Pace =
    Pace { first_millis: 20, most_millis: 50, give_up_millis: 600_000, disable_millis: 600_000 };

fn courier(limits: Limits, names: &[(&str, &[&str])]) -> Arc<Courier> {
    let addresses = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
    let names = names.iter().map(|(name, list)| ((*name).to_owned(), addresses(list))).collect();
    // One address of this machine may be called, no other.
    let rules = Rules { allow: vec!["127.0.0.2/32".parse().unwrap()], own: Vec::new() };
    Arc::new(Courier::new(rules, limits, Arc::new(Scripted(Mutex::new(names))), true))
}

impl Server {
    async fn of(world: &World, pace: Pace) -> Server {
        Server::with(world, pace, courier(Limits::default(), &[])).await
    }

    async fn with(world: &World, pace: Pace, courier: Arc<Courier>) -> Server {
        let stop = CancellationToken::new();
        world.store.server_heartbeat("one").await.unwrap();
        let duty = LogDuty {
            server: "one".into(),
            alone: true,
            seal: Arc::new(TestSeal("ours")),
            keep: Keep::default(),
        };
        tokio::spawn(log::run(world.store.clone(), duty, stop.clone()));
        let deliveries = Deliveries { pace, ..Deliveries::new(world.store.clone(), courier.clone(), "one") };
        tokio::spawn(webhooks::run(deliveries, stop.clone()));
        let judge = courier.clone();
        world.store.judge_urls(Box::new(move |url| judge.judge(url)));
        let face = Face::calling(world, vec![Arc::new(OperatorToken::new(TOKEN))], courier);
        Server { _stop: stop.drop_guard(), face }
    }

    /// A webhook that is told of networks.
    async fn hook(&self, name: &str, url: &str) -> Value {
        let spec =
            json!({ "url": url, "secret": SECRET, "events": { "kinds": ["network"], "verbs": ["create"] } });
        let made = self.face.call("POST", HOOKS, json!({ "name": name, "spec": spec })).await.is(201).json;
        assert_eq!(made["kind"], "webhook");
        made
    }

    async fn get(&self, name: &str) -> Value {
        self.face.get(&format!("{HOOKS}/{name}")).await.is(200).json
    }

    async fn until_phase(&self, name: &str, phase: &str) -> Value {
        until(&format!("{name} is {phase}"), 60, async || {
            let hook = self.get(name).await;
            (hook["phase"] == phase).then_some(hook)
        })
        .await
    }
}

async fn networks(world: &World, prefix: &str, count: usize) -> Vec<String> {
    let names: Vec<String> = (0..count).map(|number| format!("{prefix}{number}")).collect();
    for name in &names {
        world.make("default", "network", name, json!({})).await;
    }
    names
}

fn names(got: &[Got]) -> Vec<&str> {
    got.iter().map(Got::name).collect()
}

async fn messages_are_signed_and_in_order(world: World) {
    let receiver = Receiver::on("127.0.0.2:0").await;
    let server = Server::of(&world, QUICK).await;
    let hook = server.hook("hook", &receiver.url).await;
    assert!(hook["spec"]["secret"].as_str().unwrap().starts_with("sealed:"), "{hook:#}");
    let made = networks(&world, "n", 30).await;
    let got = receiver.until("n29").await;
    assert_eq!(names(&got), made);
    for one in &got {
        assert!(one.is_signed_by(SECRET), "{one:?}");
        assert!(!one.is_signed_by("whsec_c29tZWJvZHkgZWxzZSdzIHNlY3JldCwgb2Ygd2hhdCBsZW5ndGg="));
        assert_eq!(one.headers["content-type"], "application/json");
        assert_eq!(one.json["type"], "network.create");
        assert_eq!(one.json["timestamp"], one.json["data"]["at"]);
        let seconds: i64 = one.headers["webhook-timestamp"].parse().unwrap();
        assert!((world.store.env().now().0 / 1_000_000 - seconds).abs() < 120, "{seconds}");
    }
    let mut ids: Vec<&str> = got.iter().map(Got::id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 30, "each message has an id of its own");
    // A new secret signs from then on.
    let path = format!("{HOOKS}/hook");
    let changed = server.face.call("PATCH", &path, json!({ "spec": { "secret": null } })).await.is(200).json;
    let new = changed["secrets"]["spec.secret"].as_str().unwrap().to_owned();
    networks(&world, "later", 1).await;
    let last = receiver.until("later0").await.pop().unwrap();
    assert!(last.is_signed_by(&new) && !last.is_signed_by(SECRET));
}

async fn who_was_away_misses_nothing(world: World) {
    let receiver = Receiver::on("127.0.0.2:0").await;
    receiver.answers("503 Service Unavailable");
    let server = Server::of(&world, QUICK).await;
    server.hook("hook", &receiver.url).await;
    let mut made = networks(&world, "n", 20).await;
    let failing = server.until_phase("hook", "failing").await;
    assert_eq!(failing["status"]["last_error"], "it answered 503", "{failing:#}");
    assert!(failing["status"]["failing_since"].is_string(), "{failing:#}");
    until("it was tried again", 60, async || (receiver.got().len() > 3).then_some(())).await;
    // All that time one message and no other: the order is kept.
    let before = receiver.got();
    assert!(
        before.iter().all(|one| one.id() == before[0].id() && one.name() == "n0"),
        "{:?}",
        names(&before)
    );
    receiver.got.lock().unwrap().clear();
    receiver.answers("200 OK");
    made.extend(networks(&world, "m", 5).await);
    let got = receiver.until("m4").await;
    let mut taken = names(&got);
    // The one that was on its way when the answer changed may be among them, refused.
    taken.dedup();
    assert_eq!(taken, made);
    let ready = server.until_phase("hook", "ready").await;
    assert!(
        ready["status"]["last_error"].is_null() && ready["status"]["delivered_at"].is_string(),
        "{ready:#}"
    );
    let list = server.face.get(&format!("{HOOKS}/hook/deliveries?limit=1000")).await.is(200).json;
    let list = list["items"].as_array().unwrap();
    assert!(list.len() <= 100 && list[0]["outcome"] == "delivered", "{list:?}");
    assert!(list.iter().any(|one| one["outcome"] == "failed" && one["status"] == 503), "{list:?}");
}

async fn who_dies_before_it_wrote_sends_again_under_the_same_id(world: World) {
    let receiver = Receiver::on("127.0.0.2:0").await;
    let first = {
        let server = Server::of(&world, QUICK).await;
        server.hook("hook", &receiver.url).await;
        networks(&world, "n", 3).await;
        receiver.until("n2").await
    };
    // As if it had been killed when the last one was taken, and before it could write that down.
    until("it has stopped", 60, async || {
        let mine = world.store.my_webhooks("one").await.unwrap();
        mine.first().is_none_or(|hook| hook.at.failures == 0).then_some(())
    })
    .await;
    let seq = first[1].json["data"]["seq"].as_i64().unwrap();
    world.sql(&format!("UPDATE webhook_state SET seq = {seq}, holder = 'a server that was killed'")).await;
    receiver.got.lock().unwrap().clear();
    let _server = Server::of(&world, QUICK).await;
    networks(&world, "m", 1).await;
    let again = receiver.until("m0").await;
    assert_eq!(names(&again), ["n2", "m0"]);
    assert_eq!(again[0].id(), first[2].id());
    assert_eq!(again[0].body, first[2].body);
    // Who was taken over writes nothing any more.
    let mut stale = world.store.my_webhooks("one").await.unwrap().remove(0);
    stale.epoch -= 1;
    assert!(
        !world
            .store
            .passed_over(&stale, HookState { seq: 1_000_000, ..HookState::default() }, None)
            .await
            .unwrap()
    );
}

async fn a_slow_receiver_delays_nobody_else(world: World) {
    let (slow, quick) = (Receiver::on("127.0.0.2:0").await, Receiver::on("127.0.0.2:0").await);
    // It takes connections and answers when nobody waits any more.
    slow.answer.lock().unwrap().1 = Duration::from_secs(3600);
    let limits = Limits { time: Duration::from_secs(120), ..Limits::default() };
    let server = Server::with(&world, QUICK, courier(limits, &[])).await;
    for number in 0..20 {
        server.hook(&format!("slow{number}"), &slow.url).await;
    }
    server.hook("quick", &quick.url).await;
    let made = networks(&world, "n", 25).await;
    let got = quick.until("n24").await;
    assert_eq!(names(&got), made);
    // Each slow one has had its first message, and waits: one at a time.
    until("all slow ones were called", 60, async || (slow.got().len() == 20).then_some(())).await;
    assert!(slow.got().iter().all(|one| one.name() == "n0"));
}

async fn nobody_is_called_who_must_not_be(world: World) {
    let (canary, receiver) = (Receiver::on("127.0.0.1:0").await, Receiver::on("127.0.0.2:0").await);
    let port = canary.url.split(':').nth(2).unwrap().trim_end_matches("/hook").to_owned();
    let rebinding: &[&str] = &["127.0.0.2", "127.0.0.1"];
    let names = [
        ("inside.example", &["127.0.0.1"][..]),
        ("rebinding.example", rebinding),
        ("link.example", &["169.254.169.254"]),
    ];
    let server = Server::with(&world, QUICK, courier(Limits::default(), &names)).await;
    let refused = async |url: String| {
        let body = json!({ "spec": { "url": url, "secret": SECRET } });
        let told = server.face.call("POST", HOOKS, body).await.is_problem(422, "invalid");
        assert_eq!(told.fields(), ["spec.url"], "{url}");
        told.json["errors"][0]["reason"].as_str().unwrap().to_owned()
    };
    // What can be told from the URL alone is told at once.
    for host in [
        "127.0.0.1",
        "2130706433",
        "0x7f.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "10.0.0.1",
        "169.254.169.254",
        "0.0.0.0",
    ] {
        let why = refused(format!("http://{host}:{port}/")).await;
        assert!(why.contains("is not called"), "{host}: {why}");
    }
    for url in
        [format!("http://u:p@127.0.0.2:{port}/"), "ftp://127.0.0.2/".into(), "gopher://127.0.0.1/_x".into()]
    {
        refused(url).await;
    }
    let strict = Courier::new(Rules::default(), Limits::default(), Arc::new(Scripted::default()), false);
    assert!(strict.judge("http://hooks.example.com/").unwrap_err().contains("https://"));
    assert!(strict.judge("https://hooks.example.com/").is_ok());

    // What only its name tells, or a redirect, is told by the status.
    server.hook("inside", &format!("http://inside.example:{port}/")).await;
    server.hook("link", &format!("http://link.example:{port}/")).await;
    server.hook("moved", &receiver.url).await;
    receiver.answers(&format!("302 Found\r\nlocation: http://127.0.0.1:{port}/"));
    networks(&world, "n", 1).await;
    for (name, why) in
        [("inside", "this machine"), ("link", "the local link"), ("moved", "redirects are not followed")]
    {
        let hook = server.until_phase(name, "failing").await;
        let said = hook["status"]["last_error"].as_str().unwrap().to_owned();
        assert!(said.contains(why), "{name}: {said}");
    }
    // A name is judged by the very answer that the connection uses.
    let own = receiver.url.split(':').nth(2).unwrap().trim_end_matches("/hook").to_owned();
    receiver.answers("200 OK");
    let hook = server.hook("rebinding", &format!("http://rebinding.example:{own}/")).await;
    let test = format!("{HOOKS}/{}/actions/test", hook["id"].as_str().unwrap());
    let first = server.face.call("POST", &test, Value::Null).await.is(200).json;
    assert_eq!((&first["outcome"], &first["status"]), (&json!("delivered"), &json!(200)));
    let second = server.face.call("POST", &test, Value::Null).await.is(200).json;
    assert!(second["detail"].as_str().unwrap().contains("this machine"), "{second:#}");
    assert_eq!(canary.connections(), 0, "nobody connected");
}

async fn given_up_disabled_and_begun_anew(world: World) {
    let (receiver, done) = (Receiver::on("127.0.0.2:0").await, Receiver::on("127.0.0.2:0").await);
    receiver.answers("500 Oh");
    let server = Server::of(&world, Pace { give_up_millis: 300, disable_millis: 1500, ..QUICK }).await;
    server.hook("hook", &receiver.url).await;
    networks(&world, "n", 12).await;
    let disabled = server.until_phase("hook", "disabled").await;
    assert_eq!(disabled["spec"]["enabled"], false);
    assert!(
        disabled["status"]["disabled"].as_str().unwrap().contains("has taken nothing since"),
        "{disabled:#}"
    );
    let tried = server.face.get(&format!("{HOOKS}/hook/deliveries?limit=1000")).await.is(200).json;
    let outcomes: Vec<&Value> =
        tried["items"].as_array().unwrap().iter().map(|one| &one["outcome"]).collect();
    assert!(outcomes.contains(&&json!("given-up")), "{tried:#}");
    let mut turns = receiver.got().iter().map(|one| one.name().to_owned()).collect::<Vec<_>>();
    turns.dedup();
    assert!(
        turns.len() > 1 && turns.iter().enumerate().all(|(at, name)| *name == format!("n{at}")),
        "{turns:?}"
    );
    until("the event is in the log", 60, async || {
        let audit = server.face.get("/v1/tenants/default/audit?kind=webhook&verb=update").await.is(200).json;
        let said = audit["items"][0]["detail"].as_str().unwrap_or_default().to_owned();
        (audit["items"][0]["actor"] == "system" && said.contains("has taken nothing")).then_some(())
    })
    .await;
    // Nothing is kept for one that is disabled.
    networks(&world, "unseen", 3).await;
    let before = receiver.got().len();
    receiver.answers("200 OK");
    until("the log has them all", 60, async || {
        let log = world.store.log_after(0, 10_000).await.unwrap();
        log.iter().any(|event| event.name == "unseen2").then_some(())
    })
    .await;
    let on = json!({ "spec": { "enabled": true } });
    let on = server.face.call("PATCH", &format!("{HOOKS}/hook"), on).await.is(200).json;
    assert_eq!((&on["phase"], &on["status"]["disabled"]), (&json!("ready"), &Value::Null), "{on:#}");
    networks(&world, "seen", 1).await;
    let got = receiver.until("seen0").await;
    assert_eq!(names(&got[before..]), ["seen0"]);
    // Who answers 410 wants nothing any more.
    done.answers("410 Gone");
    server.hook("done", &done.url).await;
    networks(&world, "last", 1).await;
    let disabled = server.until_phase("done", "disabled").await;
    assert!(disabled["status"]["disabled"].as_str().unwrap().contains("410"), "{disabled:#}");
    assert_eq!(done.got().len(), 1);
}

async fn each_is_told_of_its_own(world: World) {
    let (theirs, all, tagged) = (
        Receiver::on("127.0.0.2:0").await,
        Receiver::on("127.0.0.2:0").await,
        Receiver::on("127.0.0.2:0").await,
    );
    let server = Server::of(&world, QUICK).await;
    world.make("", "tenant", "other", json!({})).await;
    let make = async |base: &str, name: &str, url: &str, events: Value| {
        let spec = json!({ "url": url, "events": events });
        let made = server.face.call("POST", base, json!({ "name": name, "spec": spec })).await.is(201).json;
        assert!(made["secrets"]["spec.secret"].as_str().unwrap().starts_with("whsec_"), "{made:#}");
    };
    let networks_only = json!({ "kinds": ["network"] });
    make("/v1/tenants/other/webhooks", "theirs", &theirs.url, networks_only.clone()).await;
    make("/v1/webhooks", "all", &all.url, networks_only).await;
    make(HOOKS, "tagged", &tagged.url, json!({ "kinds": ["network"], "tags": { "env": "prod" } })).await;
    // A tenant sees neither another's nor the operators'.
    for list in ["/v1/tenants/default/webhooks", "/v1/tenants/other/webhooks", "/v1/webhooks"] {
        assert_eq!(server.face.get(list).await.is(200).json["items"].as_array().unwrap().len(), 1, "{list}");
    }
    server.face.get("/v1/tenants/default/webhooks/all").await.is_problem(404, "not-found");
    for (tenant, env) in [("default", "prod"), ("default", "test"), ("other", "prod")] {
        let body = json!({ "name": format!("{tenant}-{env}"), "tags": { "env": env }, "spec": {} });
        server.face.call("POST", &format!("/v1/tenants/{tenant}/networks"), body).await.is(201);
    }
    all.until("other-prod").await;
    theirs.until("other-prod").await;
    tagged.until("default-prod").await;
    assert_eq!(names(&all.got()), ["default-prod", "default-test", "other-prod"]);
    assert_eq!(names(&theirs.got()), ["other-prod"]);
    server.face.call("DELETE", "/v1/tenants/default/networks/default-test", Value::Null).await;
    let gone = server.face.call("DELETE", "/v1/tenants/default/networks/default-prod", Value::Null).await;
    assert!(matches!(gone.status, 202 | 204), "{gone:?}");
    until("its end was told", 60, async || {
        tagged.got().iter().any(|one| one.json["type"] == "network.remove.done").then_some(())
    })
    .await;
    assert!(tagged.got().iter().all(|one| one.name() == "default-prod"), "{:?}", names(&tagged.got()));
}

async fn tested_and_sent_once_more(world: World) {
    let receiver = Receiver::on("127.0.0.2:0").await;
    let server = Server::of(&world, QUICK).await;
    server.hook("hook", &receiver.url).await;
    let path = format!("{HOOKS}/hook");
    let test = server.face.call("POST", &format!("{path}/actions/test"), json!({})).await.is(200).json;
    assert_eq!(
        (&test["outcome"], &test["status"], &test["seq"]),
        (&json!("delivered"), &json!(204), &json!(0))
    );
    let got = receiver.got().pop().unwrap();
    assert!(got.is_signed_by(SECRET) && got.json["type"] == "webhook.test", "{got:?}");
    receiver.answers("418 Teapot");
    let test = server.face.call("POST", &format!("{path}/actions/test"), Value::Null).await.is(200).json;
    assert_eq!((&test["outcome"], &test["status"]), (&json!("failed"), &json!(418)));
    assert_eq!(server.get("hook").await["phase"], "ready", "a test changes nothing");
    receiver.answers("200 OK");
    networks(&world, "n", 1).await;
    let sent = receiver.until("n0").await.pop().unwrap();
    let last = until("it is in the list", 60, async || {
        let list = server.face.get(&format!("{path}/deliveries?limit=1")).await.is(200).json;
        let last = list["items"][0].clone();
        (last["type"] == "network.create").then_some(last)
    })
    .await;
    assert_eq!(last["message"], sent.id());
    let again = format!("{path}/deliveries/{}/redeliver", last["number"]);
    let again = server.face.call("POST", &again, Value::Null).await.is(200).json;
    assert_eq!((&again["message"], &again["outcome"]), (&last["message"], &json!("delivered")));
    let twice = receiver.got().pop().unwrap();
    assert_eq!((twice.id(), &twice.body), (sent.id(), &sent.body));
    for (method, path) in [
        ("POST", format!("{path}/deliveries/999/redeliver")),
        ("POST", format!("{HOOKS}/nobody/actions/test")),
        ("GET", format!("{HOOKS}/nobody/deliveries")),
    ] {
        server.face.call(method, &path, Value::Null).await.is_problem(404, "not-found");
    }
    let pages = server.face.get(&format!("{path}/deliveries?limit=2")).await.is(200).json;
    let next = pages["next"].as_str().unwrap();
    let older = server.face.get(&format!("{path}/deliveries?limit=2&page={next}")).await.is(200).json;
    assert_eq!(older["items"][1]["number"], 1, "{older:#}");
    // It goes with its deliveries and its secret.
    server.face.call("DELETE", &path, Value::Null).await;
    assert_eq!(world.store.sealed_by().await.unwrap().len(), 0);
    assert!(world.store.my_webhooks("one").await.unwrap().is_empty());
}
