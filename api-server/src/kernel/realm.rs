//! What a tenant's claims say of its realm at the identity provider.

use serde_json::Value;

use super::{Claims, Step};

/// It is to be made by us: it counts when it was, and not before.
pub const MAKING: &str = "realm_making";
/// The name of the one that we have made.
pub const MADE: &str = "realm_made";
/// It goes with the tenant.
pub const GOES: &str = "realm_goes";

/// How long a job waits for the identity provider, in seconds.
const PATIENCE: u32 = 600;

/// The step that makes it.
pub fn make(name: &str) -> Step {
    Step::Realm { name: name.to_owned(), gone: false, deadline_seconds: PATIENCE }
}

/// The step that deletes it, if that was asked for and it is ours.
pub fn goes(claims: &serde_json::Map<String, Value>) -> Option<Step> {
    let name = claims.get(MADE)?.as_str()?;
    let step = Step::Realm { name: name.to_owned(), gone: true, deadline_seconds: PATIENCE };
    (claims.get(GOES) == Some(&Value::Bool(true))).then_some(step)
}

/// Whether we have made this one.
pub fn is_made(claims: &Claims, name: &str) -> bool {
    claims.text(MADE) == Some(name)
}
