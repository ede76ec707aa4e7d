//! Errors as users see them: RFC 9457. The one place where an error of the kernel becomes a response.

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, Response, StatusCode};
use axum::response::IntoResponse;
use serde_json::{Map, Value, json};

use crate::kernel::place::counts;
use crate::kernel::{Clash, Error, FieldError};
use crate::store::KeptAnswer;

/// Every `type` that there is: its last word, status and title. The document lists them, clients rely on them.
pub const TYPES: &[(&str, u16, &str)] = &[
    ("malformed", 400, "The request cannot be understood"),
    ("filter-required", 400, "Say which ones"),
    ("not-supported", 400, "This server does not offer that"),
    ("unauthenticated", 401, "Who are you?"),
    ("second-factor", 401, "A password is not enough"),
    ("denied", 403, "You may not do this"),
    ("tenant-suspended", 403, "The tenant is suspended"),
    ("not-found", 404, "There is no such thing"),
    ("too-slow", 408, "The body did not come in time"),
    ("gone", 410, "It is not kept any more"),
    ("method-not-allowed", 405, "This path does not take this method"),
    ("name-taken", 409, "The name is taken"),
    ("in-use", 409, "Others use it"),
    ("protected", 409, "It is protected"),
    ("no-capacity", 409, "No node has room"),
    ("quota-exceeded", 409, "The tenant's quota is used up"),
    ("exhausted", 409, "Nothing is left to give"),
    ("wrong-state", 409, "Not in this state"),
    ("in-flight", 409, "The same request is at work"),
    ("job-failed", 409, "The job did not succeed"),
    ("stale", 412, "It has changed meanwhile"),
    ("too-large", 413, "The body is too large"),
    ("unsupported-media-type", 415, "The body is of a type that is not taken here"),
    ("range", 416, "There are no such bytes"),
    ("misdirected", 421, "This connection is not for that name"),
    ("invalid", 422, "Some fields are not valid"),
    ("key-reused", 422, "The Idempotency-Key stands for another request"),
    ("upgrade-required", 426, "This is a websocket"),
    ("too-many", 429, "Slow down"),
    ("internal", 500, "A fault of ours"),
    ("unavailable", 503, "Not available now"),
];

/// What a handler answers when it does not answer what was wanted. The outermost layer writes the body, when
/// it knows the request's id.
#[derive(Clone, Debug)]
pub struct Problem(Box<Told>);

#[derive(Clone, Debug)]
struct Told {
    word: &'static str,
    detail: String,
    errors: Vec<FieldError>,
    more: Map<String, Value>,
    for_operators: Map<String, Value>,
    headers: Vec<(HeaderName, HeaderValue)>,
    log: Option<String>,
    denied: Option<(String, String)>,
}

/// What handlers answer.
pub type Answer = Result<axum::response::Response, Problem>;

// === impl Problem ===

impl Problem {
    /// A problem of one of the `TYPES`.
    pub fn new(word: &'static str, detail: impl Into<String>) -> Problem {
        Problem(Box::new(Told {
            word,
            detail: detail.into(),
            errors: Vec::new(),
            more: Map::new(),
            for_operators: Map::new(),
            headers: Vec::new(),
            log: None,
            denied: None,
        }))
    }

    /// The same as for everything that may not be seen.
    pub fn not_found() -> Problem {
        Error::NotFound.into()
    }

    /// A fault of ours; the text goes to the log only.
    pub fn internal(log: impl ToString) -> Problem {
        Error::Internal(log.to_string()).into()
    }

    /// With field errors.
    pub fn errors(mut self, errors: Vec<FieldError>) -> Problem {
        self.0.errors = errors;
        self
    }

    /// With one more member.
    pub fn with(mut self, key: &str, value: Value) -> Problem {
        self.0.more.insert(key.to_owned(), value);
        self
    }

    /// With one more member, which only operators see.
    pub fn with_for_operators(mut self, key: &str, value: Value) -> Problem {
        self.0.for_operators.insert(key.to_owned(), value);
        self
    }

    /// With one more header.
    pub fn header(mut self, name: HeaderName, value: &str) -> Problem {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.0.headers.push((name, value));
        }
        self
    }

    /// With a line for the log, which no caller sees.
    fn logged(mut self, text: String) -> Problem {
        self.0.log = Some(text);
        self
    }

    /// A denial: of what, with which kind. The audit keeps it; the answer does not tell.
    fn denying(mut self, verb: &str, kind: &str) -> Problem {
        self.0.denied = Some((verb.to_owned(), kind.to_owned()));
        self
    }

    /// What was denied, if this is a denial.
    pub fn denied(&self) -> Option<(&str, &str)> {
        self.0.denied.as_ref().map(|(verb, kind)| (verb.as_str(), kind.as_str()))
    }

    /// Settles what this caller may see of it.
    pub fn seen_by(mut self, operator: bool) -> Problem {
        let hidden = std::mem::take(&mut self.0.for_operators);
        if operator {
            self.0.more.extend(hidden);
        }
        self
    }

    /// What the log should hold and no caller.
    pub fn log(&self) -> Option<&str> {
        self.0.log.as_deref()
    }

    /// The problem for a bare status, as axum itself and the layers answer.
    pub fn of_status(status: StatusCode) -> Problem {
        let (word, detail) = match status.as_u16() {
            404 => return Problem::not_found(),
            405 => ("method-not-allowed", "the `Allow` header lists what it takes"),
            413 => ("too-large", "send less"),
            415 => ("unsupported-media-type", "send JSON as `application/json`"),
            426 => ("upgrade-required", "connect with a websocket client"),
            503 => ("unavailable", "try again"),
            code if code >= 500 => ("internal", "it is in our log under the request's id; try again"),
            _ => ("malformed", "see the API's document at /docs"),
        };
        Problem::new(word, detail)
    }

    /// Its status.
    pub fn status(&self) -> StatusCode {
        let known = TYPES.iter().find(|(word, ..)| *word == self.0.word);
        known.and_then(|(_, status, _)| StatusCode::from_u16(*status).ok()).unwrap_or(StatusCode::BAD_REQUEST)
    }

    /// The body.
    pub fn body(&self, request_id: &str) -> Value {
        let title = TYPES.iter().find(|(word, ..)| *word == self.0.word).map_or("", |(.., title)| title);
        let mut body = Map::new();
        body.insert("type".into(), json!(format!("/problems/{}", self.0.word)));
        body.insert("title".into(), json!(title));
        body.insert("status".into(), json!(self.status().as_u16()));
        body.insert("detail".into(), json!(self.0.detail));
        body.insert("request_id".into(), json!(request_id));
        body.insert("errors".into(), json!(self.0.errors));
        body.extend(self.0.more.clone());
        Value::Object(body)
    }

    /// As it is kept under an `Idempotency-Key`.
    pub fn kept(&self, request_id: &str) -> KeptAnswer {
        let more = self.0.headers.iter();
        let more = more.filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned())));
        let media = (CONTENT_TYPE.to_string(), "application/problem+json".to_owned());
        KeptAnswer {
            status: self.status().as_u16(),
            headers: [media].into_iter().chain(more).collect(),
            body: self.body(request_id).to_string().into_bytes(),
        }
    }

    /// The whole response.
    pub fn render(&self, request_id: &str) -> axum::response::Response {
        let mut response = Response::new(Body::from(self.body(request_id).to_string()));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        for (name, value) in &self.0.headers {
            headers.insert(name.clone(), value.clone());
        }
        response
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> axum::response::Response {
        let mut response = self.render("");
        response.extensions_mut().insert(self);
        response
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Problem {
        let text = error.to_string();
        match error {
            Error::Malformed(_) => Problem::new("malformed", text),
            Error::Invalid(errors) => Problem::new("invalid", text).errors(errors),
            Error::NotFound => Problem::new("not-found", text),
            Error::Hidden { verb, kind } => Problem::new("not-found", text).denying(&verb, &kind),
            Error::Unauthenticated(_) => {
                Problem::new("unauthenticated", text).header(WWW_AUTHENTICATE, "Bearer realm=\"rhyzome\"")
            }
            Error::Denied(_) => Problem::new("denied", text).denying("", ""),
            Error::Suspended(tenant) => {
                Problem::new("tenant-suspended", text).with("tenant", json!(tenant)).denying("", "")
            }
            Error::Clash(clash) => of_clash(clash, text),
            Error::Stale { current, .. } => Problem::new("stale", text).with("version", json!(current)),
            Error::KeyReused => Problem::new("key-reused", text),
            Error::Unavailable(_) => Problem::new(
                "unavailable",
                "what this needs (the database, or a node) is not there now; try again",
            )
            .header(RETRY_AFTER, "2")
            .logged(text),
            Error::NodeAway(_) => {
                Problem::new("unavailable", "its node cannot be asked now; try again in a moment")
                    .with_for_operators("why", json!(text))
                    .header(RETRY_AFTER, "2")
                    .logged(text)
            }
            Error::Internal(_) => Problem::of_status(StatusCode::INTERNAL_SERVER_ERROR).logged(text),
        }
    }
}

fn of_clash(clash: Clash, text: String) -> Problem {
    match clash {
        Clash::NameTaken(_) => {
            let errors = vec![FieldError::new("name", "is taken by another object of this kind")];
            Problem::new("name-taken", text).errors(errors)
        }
        Clash::InUse(users) => Problem::new("in-use", text).with("used_by", json!(users)),
        Clash::Protected => Problem::new("protected", text),
        Clash::ProtectedWithin(list) => Problem::new("protected", text).with("protected", json!(list)),
        Clash::NoCapacity(table) => {
            let counts = json!(counts(&table));
            Problem::new("no-capacity", text)
                .with("reasons", counts)
                .with_for_operators("nodes", json!(table))
        }
        Clash::QuotaExceeded(list) => Problem::new("quota-exceeded", text).with("quota", json!(list)),
        Clash::Exhausted(_) => Problem::new("exhausted", text),
        Clash::WrongState(_) => Problem::new("wrong-state", text),
        Clash::InFlight => Problem::new("in-flight", text).header(RETRY_AFTER, "1"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::error::WhyNot;

    #[test]
    fn faults_of_ours_say_nothing() {
        let problem = Problem::from(Error::Internal("SELECT secret FROM /etc".into()));
        let body = problem.body("req_1");
        assert_eq!(body["status"], 500);
        assert!(!body.to_string().contains("secret"), "{body}");
        assert_eq!(problem.log(), Some("SELECT secret FROM /etc"));
    }

    #[test]
    fn the_table_of_nodes_is_for_operators() {
        let table = vec![WhyNot { node: "n1".into(), reasons: vec!["full".into()], words: vec!["full"] }];
        let problem = || Problem::from(Error::from(Clash::NoCapacity(table.clone())));
        assert_eq!(problem().seen_by(true).body("r")["nodes"][0]["node"], "n1");
        assert_eq!(problem().seen_by(false).body("r").get("nodes"), None);
    }

    #[test]
    fn where_servers_are_is_for_operators() {
        let problem = || Problem::from(Error::NodeAway("srv_1 cannot be reached at 10.0.0.1:8441".into()));
        let told = problem().seen_by(true).body("r");
        assert_eq!(
            (&told["status"], &told["why"]),
            (&json!(503), &json!("srv_1 cannot be reached at 10.0.0.1:8441"))
        );
        assert!(!problem().seen_by(false).body("r").to_string().contains("10.0.0.1"));
    }

    #[test]
    fn every_word_is_in_the_list() {
        for status in [400, 404, 405, 413, 415, 426, 500, 502, 503] {
            let problem = Problem::of_status(StatusCode::from_u16(status).unwrap());
            assert!(TYPES.iter().any(|(word, ..)| *word == problem.0.word), "{status}");
        }
    }
}
