//! People at the door of a `Face`: `Is anna` is somebody whom the authenticator `corp` knows, `Is anna ops,dev` is in
//! groups, `Is anna - beta` is known in one tenant only; anything else is a token.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use rhyzome_api::auth::{
    ApiTokens, Authenticator, Authenticators, Domains, OperatorToken, RequestDetails, Verdict,
};
use rhyzome_api::kernel::Caller;
use serde_json::Value;

use crate::face::{Face, Reply, TOKEN};
use crate::world::World;

/// The authenticator's name.
pub const AUTHENTICATOR: &str = "corp";

/// Believes everybody.
pub struct People;

impl Authenticator for People {
    fn authenticate<'a>(&'a self, header: Option<&'a str>, _: &'a RequestDetails) -> BoxFuture<'a, Verdict> {
        let verdict = match header.and_then(|header| header.strip_prefix("Is ")) {
            None => Verdict::NotMine,
            Some(said) => Verdict::Caller(person(said)),
        };
        Box::pin(std::future::ready(verdict))
    }
}

/// Somebody as the authenticator says it.
pub fn person(said: &str) -> Caller {
    let words: Vec<&str> = said.split(' ').collect();
    let groups = words.get(1).filter(|groups| **groups != "-").map(|groups| groups.split(','));
    Caller {
        name: words[0].to_owned(),
        credential: "password".to_owned(),
        authenticator: AUTHENTICATOR.to_owned(),
        subject: format!("subject of {}", words[0]),
        groups: groups.into_iter().flatten().map(str::to_owned).collect(),
        only_in: words.get(2).map(|tenant| (*tenant).to_owned()),
        ..Caller::default()
    }
}

/// The API over a world, for people, tokens and the operator.
pub fn face(world: &World) -> Face {
    knowing(world, Arc::default())
}

/// The same, with domains of tenants.
pub fn knowing(world: &World, domains: Arc<Domains>) -> Face {
    Face::knowing(world, Authenticators::new(known()).with_domains(domains))
}

/// The operator, tokens and people.
pub fn known() -> Vec<Arc<dyn Authenticator>> {
    known_beside(People)
}

/// The operator, tokens, and whom this one knows.
pub fn known_beside(who: impl Authenticator + 'static) -> Vec<Arc<dyn Authenticator>> {
    vec![Arc::new(OperatorToken::new(TOKEN)), Arc::new(ApiTokens), Arc::new(who)]
}

impl Face {
    /// One request of somebody: `anna ops`, or a token; `operator` is the operator.
    pub async fn by(&self, who: &str, method: &str, path: &str, body: Value) -> Reply {
        let who = match who {
            "operator" => format!("Bearer {TOKEN}"),
            token if token.starts_with("rz") => format!("Bearer {token}"),
            person => format!("Is {person}"),
        };
        let headers = [("authorization", who.as_str()), ("content-type", "application/json")];
        match body {
            Value::Null => self.raw(method, path, &headers[..1], "").await,
            body => self.raw(method, path, &headers, body.to_string()).await,
        }
    }

    /// A GET of somebody.
    pub async fn seen_by(&self, who: &str, path: &str) -> Reply {
        self.by(who, "GET", path, Value::Null).await
    }

    /// The id of somebody's user, who logs in now.
    pub async fn user(&self, who: &str) -> String {
        self.seen_by(who, "/v1/whoami").await.is(200).json["user"].as_str().unwrap().to_owned()
    }

    /// Makes somebody a member of a tenant.
    pub async fn member(&self, tenant: &str, who: &str, role: &str) -> String {
        let spec = serde_json::json!({ "user": self.user(who).await, "role": role });
        let path = format!("/v1/tenants/{tenant}/members");
        let made = self.call("POST", &path, serde_json::json!({ "spec": spec })).await.is(201);
        made.json["id"].as_str().unwrap().to_owned()
    }
}

/// The bytes of base32, as an app for codes reads it.
pub fn base32(text: &str) -> Vec<u8> {
    let value = |byte: u8| match byte {
        b'A'..=b'Z' => u32::from(byte - b'A'),
        b'2'..=b'7' => u32::from(byte - b'2') + 26,
        other => panic!("{other}"),
    };
    let (mut held, mut bits, mut bytes) = (0, 0, Vec::new());
    for byte in text.bytes() {
        held = (held << 5 | value(byte)) & 0xfff;
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits & 0xff) as u8);
        }
    }
    bytes
}
