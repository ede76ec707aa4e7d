//! SSH keys: the smallest thing that can be made.

use std::sync::Arc;

use hyper::Method;
use serde_json::{Value, json};

use crate::clients::{Question, Questions};

/// Where they are.
const PATH: &str = "/v1/tenants/default/ssh-keys";

/// What each of them is.
pub fn spec() -> Value {
    json!({ "public_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f" })
}

/// Each question makes one; their names begin so.
pub fn made(prefix: String) -> Questions {
    let spec = spec();
    Arc::new(move |number| Question {
        method: Method::POST,
        path: PATH.to_owned(),
        body: json!({ "name": format!("{prefix}-{number}"), "spec": spec }).to_string(),
    })
}
