//! What people do who log in somewhere else, and what comes of it: the same with all providers.

pub mod browser;
pub mod shell;

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::Value;
use url::{Url, form_urlencoded};
use xtask::http::{self, Reply};

use crate::house::{Answer, House};

/// How long a provider and the API may take for an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// A verifier and its challenge, as in RFC 7636, appendix B.
pub const PKCE: (&str, &str) =
    ("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk", "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");

/// One request with this token.
pub fn ask(house: &House, token: &str, path: &str) -> Answer {
    let headers = [format!("Authorization: Bearer {token}")];
    Answer::of(http::request(house.world.http, "GET", path, &headers, "", PATIENCE).unwrap())
}

/// One form for an endpoint of a provider.
pub fn form(provider: SocketAddr, path: &str, fields: &[(&str, &str)]) -> Reply {
    let mut body = form_urlencoded::Serializer::new(String::new());
    for (name, value) in fields {
        body.append_pair(name, value);
    }
    let headers = ["Content-Type: application/x-www-form-urlencoded".to_owned()];
    http::request(provider, "POST", path, &headers, &body.finish(), PATIENCE).unwrap()
}

/// A value of a URL's query.
pub fn query(url: &Url, name: &str) -> String {
    let found = url.query_pairs().find(|(key, _)| key == name);
    found.unwrap_or_else(|| panic!("no {name} in {url}")).1.into_owned()
}

/// A text of an answer.
pub fn text<'a>(tokens: &'a Value, name: &str) -> &'a str {
    tokens[name].as_str().unwrap()
}

/// A part of a signed token.
pub fn part(token: &str, index: usize) -> Value {
    let part = token.split('.').nth(index).unwrap();
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

/// A stream of events that goes on.
pub struct Stream(Lines<BufReader<TcpStream>>);

impl Stream {
    /// With this token.
    pub fn open(house: &House, token: &str) -> Stream {
        Stream::with(house, &[format!("Authorization: Bearer {token}")])
    }

    /// With these headers.
    pub fn with(house: &House, headers: &[String]) -> Stream {
        let mut stream = TcpStream::connect(house.world.http).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let (host, lines) = (house.world.http, headers.join("\r\n"));
        write!(stream, "GET /v1/events HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n\r\n").unwrap();
        let mut lines = BufReader::new(stream).lines();
        assert!(lines.next().unwrap().unwrap().contains("200"));
        Stream(lines)
    }

    /// Waits for its end: that of a chunked answer, not of a broken one.
    pub fn ends(self) {
        let rest: Vec<String> = self.0.map(Result::unwrap).take_while(|line| line != "0").collect();
        assert!(rest.iter().any(|line| line.contains("text/event-stream")), "{rest:#?}");
    }
}
