//! What the API answers, as far as it is the same for every kind.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A resource of any kind.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Resource {
    /// `inst_...`
    pub id: String,
    /// `instance`
    pub kind: String,
    /// Whose it is; empty for what operators own.
    #[serde(deserialize_with = "or_empty")]
    pub tenant: String,
    /// Its name.
    pub name: String,
    /// Filters look at these.
    pub tags: BTreeMap<String, String>,
    /// The customer's own.
    pub metadata: Value,
    /// Rises with each change of spec.
    pub generation: i64,
    /// Rises with each write by a user.
    pub version: i64,
    /// Open: new words may come.
    pub phase: String,
    /// Refuses deletion while true.
    pub protected: bool,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub updated_at: String,
    /// What is wanted.
    pub spec: Value,
    /// What is.
    pub status: Value,
    /// The last job on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// What newer servers say beside.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// What a write did.
#[derive(Clone, Debug)]
pub struct Written {
    /// The object as it is now.
    pub object: Resource,
    /// The job that this write began; none if it is done already.
    pub job: Option<String>,
}

/// What became of one object of many.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Outcome {
    /// Which one.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What the call on it alone would be answered with.
    pub status: Option<u16>,
    /// The job at work on it.
    pub job: Option<String>,
    /// Why it was not done.
    pub problem: Option<Value>,
    /// What newer servers say beside.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// A page of a list.
#[derive(Clone, Debug, Deserialize)]
pub struct Page<T> {
    /// What is on it.
    pub items: Vec<T>,
    /// How to ask for the next one.
    #[serde(default)]
    pub next: Option<String>,
}

/// A job.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Job {
    /// `job_...`
    pub id: String,
    /// Of which tenant.
    #[serde(deserialize_with = "or_empty")]
    pub tenant: String,
    /// Kind of the resource.
    pub kind: String,
    /// Id of the resource.
    pub resource: String,
    /// Name of the resource.
    #[serde(deserialize_with = "or_empty")]
    pub resource_name: String,
    /// `create`, `update`, `remove`, or an action.
    pub verb: String,
    /// `waiting`, `running`, `undoing`, `done`, `failed`, `cancelled`; open.
    pub state: String,
    /// Its steps.
    pub steps: Vec<JobStep>,
    /// How often it could not be taken further and was put off.
    pub attempts: i64,
    /// When it is looked at again at the latest; nothing once it has ended.
    pub due_at: Option<String>,
    /// Why it failed.
    pub problem: Option<String>,
    /// What it could not take back.
    pub left_behind: Vec<String>,
    /// What else is said of it.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// One step of a job.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct JobStep {
    /// What is done.
    pub what: Value,
    /// Where it is.
    pub state: String,
    /// The last thing said of it.
    #[serde(deserialize_with = "or_empty")]
    pub message: String,
    /// 0 to 100.
    pub progress: Option<f64>,
    /// What else is said of it.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

impl Job {
    /// True when nothing more will happen.
    pub fn is_final(&self) -> bool {
        matches!(self.state.as_str(), "done" | "failed" | "cancelled")
    }
}

fn or_empty<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.unwrap_or_default())
}
