//! The door of metrics: off unless it is asked for, at an address of its own, and never the API's.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::operator::Client;
use super::place::Place;

/// Where a server says that it serves metrics.
fn address(log: &std::path::Path) -> Option<String> {
    let said = std::fs::read_to_string(log).unwrap();
    let line = said.lines().find(|line| line.contains("metrics are served"))?;
    let (_, url) = line.split_once("http://")?;
    Some(url.split("/metrics").next()?.to_owned())
}

fn opened(log: &std::path::Path) -> String {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(there) = address(log) {
            return there;
        }
        assert!(Instant::now() < end, "no door is opened");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn get(address: &str, token: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!(
        "GET /metrics HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn they_are_served_where_they_are_asked_for_and_nowhere_else() {
    let place = Place::sqlite();
    let log = place.path().join("log");
    let file = place.path().join("rhyzome-api.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();

    let server = place.serve_saying(&log);
    assert_eq!(Client::of(&place).call("GET", "/metrics", "").0, 404);
    server.stop();
    assert_eq!(address(&log), None);

    config["metrics"] = json!({ "listen": "127.0.0.1:0" });
    std::fs::write(&file, config.to_string()).unwrap();
    let server = place.serve_saying(&log);
    let there = opened(&log);
    Client::of(&place).call("GET", "/v1", "");
    let all = get(&there, "");
    assert!(all.starts_with("HTTP/1.1 200") && all.contains("application/openmetrics-text"), "{all}");
    assert!(all.contains("rhyzome_http_requests_total{operation=\"root\",status=\"200\"} 1"), "{all}");
    assert!(all.ends_with("# EOF\n"), "{all}");
    server.stop();

    let token = place.path().join("scrape.token");
    std::fs::write(&token, "a-token-that-is-long\n").unwrap();
    config["metrics"]["token_file"] = json!(token);
    std::fs::write(&file, config.to_string()).unwrap();
    let server = place.serve_saying(&log);
    let there = opened(&log);
    assert!(get(&there, "").starts_with("HTTP/1.1 401"));
    assert!(get(&there, "a-token-that-is-long").starts_with("HTTP/1.1 200"));
    server.stop();
}
