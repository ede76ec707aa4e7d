//! What can go wrong when one calls the API.

use std::fmt;

use serde::Deserialize;
use serde_json::{Map, Value};

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server said what is wrong.
    #[error("{0}")]
    Problem(Box<Problem>),
    /// The server was not reached.
    #[error("{url} cannot be reached: {why}")]
    Unreachable {
        /// Where it should be.
        url: String,
        /// The innermost reason.
        why: String,
    },
    /// Something answered, but not as the API does.
    #[error("{url} answered {status} and not as Rhyzome does: {body}")]
    Unexpected {
        /// What was asked.
        url: String,
        /// The status.
        status: u16,
        /// The beginning of the body.
        body: String,
    },
    /// URL, token or certificate cannot be used.
    #[error("{0}")]
    Settings(String),
    /// A file, or the terminal.
    #[error("{what}: {source}")]
    Io {
        /// Which one.
        what: String,
        /// Why.
        source: std::io::Error,
    },
}

/// An `application/problem+json` (RFC 9457).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Problem {
    /// Stable; the last word says what it is: `/problems/in-use`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The same for all of this type.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// What happened here.
    pub detail: String,
    /// Under which the server's log knows it.
    pub request_id: String,
    /// All fields that are wrong.
    pub errors: Vec<FieldError>,
    /// What this type has beside: `used_by`, `nodes`, `version`, `job`.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// One wrong field.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct FieldError {
    /// Path in the body: `spec.memory_bytes`.
    pub field: String,
    /// What is wrong, and the way out.
    pub reason: String,
}

// === impl Error ===

impl Error {
    /// The problem, if the server told one.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Error::Problem(problem) => Some(problem),
            _ => None,
        }
    }

    /// True when the server says that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        self.problem().is_some_and(|problem| problem.status == 404)
    }

    /// True when the server does not know who calls, or not any more.
    pub fn is_unauthenticated(&self) -> bool {
        self.problem().is_some_and(|problem| problem.status == 401)
    }

    pub(crate) fn unreachable(url: &str, error: &dyn std::error::Error) -> Error {
        let mut innermost = error;
        while let Some(source) = innermost.source() {
            innermost = source;
        }
        Error::Unreachable { url: url.to_owned(), why: innermost.to_string() }
    }
}

// === impl Problem ===

impl Problem {
    /// The last word of the type: `in-use`.
    pub fn word(&self) -> &str {
        self.kind.rsplit('/').next().unwrap_or_default()
    }

    fn list(&self, key: &str) -> impl Iterator<Item = &Value> {
        self.more.get(key).and_then(Value::as_array).into_iter().flatten()
    }
}

impl fmt::Display for Problem {
    /// What is wrong on the first line, then each field, user and node on a line of its own.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // With a list of fields the detail only counts them; without one it says more than the title.
        let more = self.errors.is_empty() || self.title.is_empty();
        match Some(&self.detail).filter(|detail| more && !detail.is_empty()) {
            Some(detail) => f.write_str(detail)?,
            None if self.title.is_empty() => write!(f, "the server answered {}", self.status)?,
            None => f.write_str(&self.title)?,
        }
        for error in &self.errors {
            write!(f, "\n  {}: {}", error.field, error.reason)?;
        }
        let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
        for user in self.list("used_by") {
            write!(f, "\n  used by {} {} ({})", text(user, "kind"), text(user, "name"), text(user, "id"))?;
        }
        for node in self.list("nodes") {
            let reasons: Vec<&str> =
                node["reasons"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            write!(f, "\n  node {}: {}", text(node, "node"), reasons.join("; "))?;
        }
        if let Some(why) = self.more.get("why").and_then(Value::as_str) {
            write!(f, "\n  {why}")?;
        }
        if self.status >= 500 && !self.request_id.is_empty() {
            write!(f, "\n  the server's log has more under {}", self.request_id)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_error_is_on_its_own_line() {
        let problem: Problem = serde_json::from_value(serde_json::json!({
            "type": "/problems/invalid", "title": "Some fields are not valid", "status": 422, "detail": "2 fields",
            "errors": [{"field": "spec.vcpus", "reason": "must be 1 to 256"}, {"field": "name", "reason": "no"}],
        }))
        .unwrap();
        let wanted = "Some fields are not valid\n  spec.vcpus: must be 1 to 256\n  name: no";
        assert_eq!(problem.to_string(), wanted);
        assert_eq!(problem.word(), "invalid");
    }

    #[test]
    fn users_and_nodes_are_listed() {
        let problem: Problem = serde_json::from_value(serde_json::json!({
            "title": "Others use it", "detail": "in use", "used_by": [{"kind": "disk", "name": "d", "id": "disk_1"}],
            "nodes": [{"node": "n1", "reasons": ["full", "cordoned"]}], "why": "n2 is away",
        }))
        .unwrap();
        assert!(problem.to_string().contains("\n  used by disk d (disk_1)"));
        assert!(problem.to_string().contains("\n  node n1: full; cordoned"));
        assert!(problem.to_string().contains("\n  n2 is away"));
    }
}
