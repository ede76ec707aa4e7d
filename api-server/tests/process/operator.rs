//! Verbs of operators, straight on the database.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::place::Place;

/// How many processes write at once, and how many requests the server gets meanwhile.
const AT_ONCE: usize = 8;
const EACH: usize = 12;

/// What a client on this machine knows of a server.
pub struct Client {
    address: String,
    token: String,
}

impl Client {
    pub fn of(place: &Place) -> Client {
        let told = std::fs::read_to_string(place.path().join("data/client.json")).unwrap();
        let told: Value = serde_json::from_str(&told).unwrap();
        let token = std::fs::read_to_string(told["token_file"].as_str().unwrap()).unwrap();
        let address = told["url"].as_str().unwrap().strip_prefix("http://").unwrap().to_owned();
        Client { address, token: token.trim().to_owned() }
    }

    /// Status and body of the answer.
    pub fn call(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        self.call_as(&format!("Bearer {}", self.token), method, path, body)
    }

    /// The same of somebody else.
    pub fn call_as(&self, authorization: &str, method: &str, path: &str, body: &str) -> (u16, Value) {
        let address = &self.address;
        let mut stream = TcpStream::connect(address).unwrap();
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: {authorization}\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        (status, serde_json::from_str(body).unwrap_or_else(|_| panic!("{answer}")))
    }

    fn all(&self, path: &str) -> Vec<Value> {
        let (status, body) = self.call("GET", path, "");
        assert_eq!(status, 200, "{body:#}");
        body["items"].as_array().unwrap().clone()
    }
}

fn verbs(place: &Place, name: &str) {
    let said = place.done(&["tenant", "create", name, "--tag", "a=b", "--description", "words"]);
    assert!(said.contains(&format!("tenant {name} (ten_")) && said.contains("made"), "{said}");
    assert!(place.done(&["tenant", "update", name, "--tag", "a="]).contains("changed"));
    assert!(place.done(&["tenant", "update", name, "--tag", "a="]).contains("as it was"));
    assert!(place.done(&["tenant", "list"]).contains("words"));
    assert!(place.done(&["quota", "set", name, "vcpus=7"]).contains("changed"));
    assert!(place.done(&["quota", "set", name, "vcpus=7"]).contains("as it was"));
    let of_vcpus = || {
        let shown = place.done(&["quota", "show", name]);
        shown.lines().find(|line| line.starts_with("vcpus")).unwrap_or_default().to_owned()
    };
    assert_eq!(of_vcpus().split_whitespace().collect::<Vec<_>>(), ["vcpus", "0", "7", "its", "own"]);
    assert!(place.done(&["quota", "set", name, "vcpus=default"]).contains("changed"));
    assert_eq!(of_vcpus().split_whitespace().collect::<Vec<_>>(), ["vcpus", "0", "none", "default"]);

    let taken = place.refused(&["tenant", "create", name]);
    assert!(taken.contains(&format!("the name `{name}` is taken")), "{taken}");
    let strange = place.refused(&["tenant", "delete", "nobody"]);
    assert!(strange.contains("tenant `nobody`: there is none of this name or id"), "{strange}");
    let much = place.refused(&["quota", "set", name, "vcpus=much"]);
    assert!(much.contains("`vcpus=much`: say QUANTITY=NUMBER"), "{much}");
    let colour = place.refused(&["quota", "set", name, "colour=7"]);
    assert!(colour.contains("spec.quota.colour"), "{colour}");

    assert!(place.done(&["node", "invite", name]).starts_with("rhyzome-agent join --server 127.0.0.1:"));
    let revoked = place.done(&["node", "revoke", name]);
    assert!(revoked.contains("certificates refused from now on: 0, invitations: 1"), "{revoked}");
    assert!(place.refused(&["node", "revoke", "nobody"]).contains("there is none of this name or id"));
    assert!(place.done(&["node", "cordon", name]).contains("changed"));
    let nodes = place.done(&["node", "list"]);
    assert!(nodes.lines().any(|line| line.starts_with(name) && line.ends_with("yes")), "{nodes}");
    assert!(place.done(&["node", "cordon", name, "--undo"]).contains("changed"));
    assert!(place.done(&["node", "delete", name]).contains("taken away"));
    assert!(place.done(&["tenant", "delete", name]).contains("taken away"));
    assert!(!place.done(&["tenant", "list"]).lines().any(|line| line.starts_with(name)));
}

#[test]
fn an_operator_works_without_a_server_and_beside_one() {
    for place in Place::both() {
        let said = place.refused(&["tenant", "list"]);
        assert!(said.contains("`rhyzome-api migrate`"), "{said}");
        place.done(&["migrate"]);
        verbs(&place, "before");
        let server = place.serve();
        verbs(&place, "beside");
        server.stop();
        verbs(&place, "after");
    }
}

#[test]
fn a_token_that_was_renewed_counts_at_once() {
    let place = Place::sqlite();
    let _server = place.serve();
    let old = Client::of(&place);
    assert_eq!(place.done(&["token", "show"]).trim(), old.token);
    let new = place.done(&["token", "renew"]);
    let new = Client { token: new.trim().to_owned(), address: old.address.clone() };
    assert!(new.token != old.token && place.done(&["token", "show"]).trim() == new.token);
    assert_eq!(old.call("GET", "/v1/tenants", "").0, 401);
    assert_eq!(new.call("GET", "/v1/tenants", "").0, 200);
}

#[test]
fn many_processes_write_while_a_server_does_and_all_is_audited() {
    for place in Place::both() {
        let server = place.serve();
        let client = Client::of(&place);
        std::thread::scope(|scope| {
            for one in 0..AT_ONCE {
                let (place, client) = (&place, &client);
                scope.spawn(move || {
                    for number in 0..EACH {
                        let body = format!("{{\"name\": \"rest{one}x{number}\", \"spec\": {{}}}}");
                        let (status, said) = client.call("POST", "/v1/tenants", &body);
                        assert!(matches!(status, 201 | 202), "{said:#}");
                    }
                });
                scope.spawn(move || place.done(&["tenant", "create", &format!("cli{one}")]));
            }
        });
        let there = client.all("/v1/tenants?limit=1000");
        let named = |front: &str| {
            there.iter().filter(|tenant| tenant["name"].as_str().unwrap().starts_with(front)).count()
        };
        assert_eq!((named("rest"), named("cli")), (AT_ONCE * EACH, AT_ONCE));

        // The server's own log has them, with who did it.
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let audit = client.all("/v1/audit?limit=1000");
            let of_cli = audit.iter().filter(|entry| {
                let actor = entry["actor"].as_str().unwrap_or_default();
                actor.starts_with("admin CLI as ") && entry["verb"] == "create" && entry["kind"] == "tenant"
            });
            if of_cli.count() == AT_ONCE {
                break;
            }
            assert!(Instant::now() < end, "{audit:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
        server.stop();
        let proven = place.done(&["audit", "verify"]);
        assert!(proven.contains("the log is whole"), "{proven}");
    }
}
