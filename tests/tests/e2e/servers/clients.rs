//! Clients that do not give up: each write has a key, and is asked again of another server until it is acknowledged.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rhyzome_tests::given::Dice;
use serde_json::{Value, json};
use xtask::http::{self, Reply};

/// Tries before a write is given up: more than a server's start takes.
const TRIES: usize = 400;
const AGAIN: Duration = Duration::from_millis(25);
const PATIENCE: Duration = Duration::from_secs(15);
const PATH: &str = "/v1/tenants/default";

/// A write that was acknowledged.
#[derive(Debug, Clone)]
pub struct Written {
    /// Its `Idempotency-Key`, and its request id.
    pub key: String,
    /// The object.
    pub id: String,
    /// The job that it began.
    pub job: Option<String>,
    method: &'static str,
    path: String,
    body: String,
    answer: Reply,
    /// What the object must be like, if this was the last write to it.
    last: Option<Value>,
}

/// A client of all servers.
pub struct Client<'a> {
    seed: u64,
    number: usize,
    dice: Dice,
    servers: Vec<SocketAddr>,
    token: String,
    count: &'a AtomicUsize,
    written: Vec<Written>,
    tries: usize,
}

fn request(
    server: SocketAddr,
    token: &str,
    key: &str,
    method: &str,
    path: &str,
    body: &str,
) -> Option<Reply> {
    let mut headers = vec![
        format!("Authorization: Bearer {token}"),
        format!("Idempotency-Key: {key}"),
        format!("X-Request-Id: {key}"),
    ];
    if !body.is_empty() {
        headers.push("Content-Type: application/json".into());
    }
    http::request(server, method, path, &headers, body, PATIENCE).ok()
}

impl<'a> Client<'a> {
    /// A client with a seed of its own. `count`: of the writes of all.
    pub fn new(
        seed: u64,
        number: usize,
        servers: Vec<SocketAddr>,
        token: &str,
        count: &'a AtomicUsize,
    ) -> Client<'a> {
        let dice = Dice::new(seed.wrapping_mul(1_000).wrapping_add(number as u64));
        Client { seed, number, dice, servers, token: token.into(), count, written: Vec::new(), tries: 0 }
    }

    /// So many writes; what was acknowledged, and how many took more than one try.
    pub fn run(mut self, writes: usize) -> (Vec<Written>, usize) {
        let network = format!("lan-{}", self.number);
        self.write("POST", format!("{PATH}/networks"), json!({"name": network, "spec": {}}));
        while self.written.len() < writes {
            self.life(&network, writes);
        }
        (self.written, self.tries)
    }

    /// The life of one object, or as much of it as there are writes left.
    fn life(&mut self, network: &str, writes: usize) {
        let name = format!("c{}-{}", self.number, self.written.len());
        let instance = self.dice.percent(75);
        let (plural, spec) = match instance {
            true => ("instances", json!({"image": "tiny", "nics": {"lan": {"network": network}}})),
            false => ("disks", json!({"size_bytes": 1 << 30})),
        };
        let id = self.write("POST", format!("{PATH}/{plural}"), json!({"name": name, "spec": spec}));
        let path = format!("{PATH}/{plural}/{id}");
        let mut wanted = json!({"name": name});
        let most = self.dice.below(6);
        for step in 0..most {
            if self.written.len() >= writes {
                break;
            }
            match self.dice.below(4) {
                0 | 1 if instance => {
                    let (verb, power) = if step % 2 == 0 { ("stop", "off") } else { ("start", "on") };
                    let mode = if self.dice.percent(50) && verb == "stop" { "hard" } else { "graceful" };
                    self.write("POST", format!("{path}/actions/{verb}"), json!({"mode": mode}));
                    wanted["spec"]["power"] = power.into();
                }
                2 => {
                    let (field, value) = match instance {
                        true => ("vcpus", 1 + step),
                        false => ("size_bytes", (2 + step) << 30),
                    };
                    self.write("PATCH", path.clone(), json!({"spec": {field: value}}));
                    wanted["spec"][field] = value.into();
                }
                _ => {
                    let tag = format!("{name}-{step}");
                    self.write("PATCH", path.clone(), json!({"tags": {"last": tag}}));
                    wanted["tags"]["last"] = tag.into();
                }
            }
        }
        if self.written.len() < writes && self.dice.percent(70) {
            self.write("DELETE", path, Value::Null);
            wanted = Value::Null;
        }
        if let Some(last) = self.written.last_mut() {
            last.last = Some(wanted);
        }
    }

    /// Asks one server after the other until one acknowledges; the object's id.
    fn write(&mut self, method: &'static str, path: String, body: Value) -> String {
        let key = format!("key-{}-{}-{}", self.seed, self.number, self.written.len());
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut server = usize::try_from(self.dice.below(self.servers.len() as u64)).unwrap();
        for tried in 0..TRIES {
            let reply = request(self.servers[server], &self.token, &key, method, &path, &body);
            if let Some(answer) = reply.filter(|reply| !comes_back(reply)) {
                assert!((200..300).contains(&answer.status), "{key}: {method} {path} {body}: {answer:?}");
                self.tries += tried.min(1);
                let json: Value = serde_json::from_str(&answer.body).unwrap_or_default();
                let id = id_of(&path).or(json["id"].as_str()).unwrap().to_owned();
                let job = json["job"].as_str().filter(|_| answer.status == 202).map(str::to_owned);
                self.written.push(Written {
                    key,
                    id: id.clone(),
                    job,
                    method,
                    path,
                    body,
                    answer,
                    last: None,
                });
                self.count.fetch_add(1, Ordering::SeqCst);
                return id;
            }
            server = (server + 1) % self.servers.len();
            std::thread::sleep(AGAIN);
        }
        panic!("{key}: {method} {path} was never acknowledged");
    }
}

/// The object that a path is about; none, if it makes one.
fn id_of(path: &str) -> Option<&str> {
    let (_, id) = path.strip_prefix(PATH)?.strip_prefix('/')?.split_once('/')?;
    id.split('/').next()
}

/// What a client tries again: the database or the same request is busy.
fn comes_back(reply: &Reply) -> bool {
    reply.status == 503 || reply.status == 409 && reply.body.contains("/problems/in-flight")
}

impl Written {
    /// It is still so: asked again, this server answers the same bytes; and the object is as it was left.
    pub fn stands(&self, server: SocketAddr, token: &str, seed: u64) {
        let again = request(server, token, &self.key, self.method, &self.path, &self.body);
        assert_eq!(again.as_ref(), Some(&self.answer), "seed {seed}: asked again, {self:?}");
        let Some(wanted) = &self.last else { return };
        let plural = self.path[PATH.len() + 1..].split('/').next().unwrap_or_default();
        let path = format!("{PATH}/{plural}/{}", self.id);
        let headers = [format!("Authorization: Bearer {token}")];
        let reply = http::request(server, "GET", &path, &headers, "", PATIENCE).unwrap();
        if wanted.is_null() {
            return assert_eq!(reply.status, 404, "seed {seed}: deleted, and there: {self:?}");
        }
        let object: Value = serde_json::from_str(&reply.body).unwrap();
        let mut merged = object.clone();
        merge(&mut merged, wanted);
        assert_eq!(merged, object, "seed {seed}: it is not as it was left: {self:?}");
    }
}

fn merge(into: &mut Value, more: &Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            more.iter().for_each(|(key, value)| merge(into.entry(key.clone()).or_insert(Value::Null), value));
        }
        (into, more) => *into = more.clone(),
    }
}
