//! Who has sessions in browsers: somebody whom an authenticator still knows when they have shown nothing again.

use std::sync::Arc;

use super::{Authenticator, REALM, Refusal};
use crate::kernel::Caller;

/// Somebody as they are now, and what must stay the same for as long as a session of theirs goes on; or why there is
/// nobody.
pub type Now = Result<(Caller, String), Refusal>;

/// The one of this configured name, among these and those of tenants' realms.
pub fn named(all: &[Arc<dyn Authenticator>], name: &str) -> Option<Arc<dyn Authenticator>> {
    let own = name.strip_prefix(REALM).and_then(|tenant| all.iter().find_map(|one| one.of_tenant(tenant)));
    own.or_else(|| all.iter().find(|one| one.name() == name).cloned())
}

/// Who this is now; `None`: nobody has sessions by how they came.
pub fn now(all: &[Arc<dyn Authenticator>], caller: &Caller) -> Option<Now> {
    if caller.token.is_some() {
        return None;
    }
    if caller.authenticator.is_empty() {
        return all.iter().find_map(|one| one.now(caller));
    }
    named(all, &caller.authenticator)?.now(caller)
}
