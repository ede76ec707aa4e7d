//! What can go wrong, in words that know neither HTTP nor SQL. `rest/problem.rs` turns each into a
//! response once; nobody else does.

use serde::{Deserialize, Serialize};

/// Something is wrong with one field; `field` is its path in the body (`spec.disks.data.size_bytes`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FieldError {
    /// Path in the body.
    pub field: String,
    /// What is wrong, and the way out.
    pub reason: String,
}

/// Why a call was not carried out. Nothing has changed when one of these comes back.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The body cannot be read at all.
    #[error("{0}")]
    Malformed(String),
    /// Understood, but wrong: *all* field errors.
    #[error("{} field(s) are not valid", .0.len())]
    Invalid(Vec<FieldError>),
    /// Does not exist, or the caller may not know that it does.
    #[error("there is no such object")]
    NotFound,
    /// The caller may not know whether it exists: told as `NotFound`, kept as a denial. What was to be done
    /// with which kind.
    #[error("there is no such object")]
    Hidden {
        /// What.
        verb: String,
        /// With which kind.
        kind: String,
    },
    /// The caller is unknown.
    #[error("{0}")]
    Unauthenticated(String),
    /// The caller may see it, but not do this.
    #[error("{0}")]
    Denied(String),
    /// The tenant stands still: it may be looked at, and nothing is changed in it but by operators. Its name.
    #[error(
        "the tenant `{0}` is suspended: you may look at what it has, and only operators change anything; ask them"
    )]
    Suspended(String),
    /// Something is in the way.
    #[error("{0}")]
    Clash(#[from] Clash),
    /// `If-Match` named another version than the present one.
    #[error("the object has changed: you know version {known}, it is at version {current}")]
    Stale {
        /// What the caller named.
        known: String,
        /// What is there.
        current: i64,
    },
    /// The `Idempotency-Key` was used for another request before.
    #[error("this Idempotency-Key was used for another request; take a new key for a new request")]
    KeyReused,
    /// The database, or something else that is needed, is not there now.
    #[error("{0}")]
    Unavailable(String),
    /// The node, which is needed at once, cannot be asked now. Why is for operators: it names servers and addresses.
    #[error("{0}")]
    NodeAway(String),
    /// A fault of ours. The text goes to the log, never to the caller.
    #[error("{0}")]
    Internal(String),
}

/// What is in the way, each with its own `type` in the API.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Clash {
    /// Another object of this kind has this name.
    #[error("the name `{0}` is taken")]
    NameTaken(String),
    /// Others refer to it.
    #[error("{}", in_use(.0.len()))]
    InUse(Vec<UsedBy>),
    /// `protected` is true.
    #[error("it is protected: PATCH `protected` to false first")]
    Protected,
    /// It is true of something that would go along.
    #[error("{} of what it has are protected: PATCH `protected` of each to false first", .0.len())]
    ProtectedWithin(Vec<UsedBy>),
    /// No node has room. The table is for operators.
    #[error("no node has room for it")]
    NoCapacity(Vec<WhyNot>),
    /// The tenant may not use more.
    #[error("{}", super::quota::words(.0))]
    QuotaExceeded(Vec<super::quota::Exceeded>),
    /// A range has nothing left to give.
    #[error("{0}")]
    Exhausted(String),
    /// The object is in a state in which this makes no sense.
    #[error("{0}")]
    WrongState(String),
    /// A request under the same `Idempotency-Key` has not come to its end.
    #[error("a request under the same Idempotency-Key is still at work; ask again in a moment")]
    InFlight,
}

fn in_use(many: usize) -> String {
    match many {
        0 => "it is in use by what you may not see: ask somebody who may see more".to_owned(),
        many => format!("it is in use by {many} other object(s); remove those first"),
    }
}

/// Someone who refers to an object.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct UsedBy {
    /// Kind of the user.
    pub kind: String,
    /// Id of the user.
    pub id: String,
    /// Name of the user.
    pub name: String,
    /// Tenant of the user; empty for operators' objects.
    pub tenant: String,
}

/// Why one node was not chosen.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WhyNot {
    /// Name of the node.
    pub node: String,
    /// Every reason, with figures.
    pub reasons: Vec<String>,
    /// Every reason in a word, for those who may not see nodes: they are told how many say it.
    #[serde(skip)]
    pub words: Vec<&'static str>,
}

impl FieldError {
    /// An error of this field.
    pub fn new(field: impl Into<String>, reason: impl Into<String>) -> FieldError {
        FieldError { field: field.into(), reason: reason.into() }
    }
}

impl Error {
    /// One field error.
    pub fn field(field: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Invalid(vec![FieldError::new(field, reason)])
    }
}
