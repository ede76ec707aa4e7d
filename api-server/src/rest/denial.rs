//! What is remembered of a request, in case it is denied.

use super::extract::Ask;
use super::problem::Problem;
use crate::auth::RequestDetails;
use crate::kernel::Caller;
use crate::store::{Denial, Store};

/// Who asks what, until the answer is known.
pub struct Who {
    store: Store,
    denial: Denial,
}

impl Who {
    /// Of a request.
    pub fn of(ask: &Ask) -> Who {
        let asked = ask.asked();
        let denial = Denial {
            actor: ask.caller.name.clone(),
            credential: ask.caller.credential.clone(),
            source: asked.source.clone(),
            request_id: asked.request_id.clone(),
            tenant: ask.tenant().to_owned(),
            detail: format!("{} {}", ask.parts.method, ask.parts.uri.path()),
            ..Denial::default()
        };
        Who { store: ask.ctx.store.clone(), denial }
    }

    /// Keeps the denial, if the answer is one.
    pub fn was_denied(self, problem: &Problem) {
        let Some((verb, kind)) = problem.denied() else { return };
        self.store.note_denial(Denial { verb: verb.to_owned(), kind: kind.to_owned(), ..self.denial });
    }
}

/// Credentials were refused: kept if we know whose they were, else counted.
pub fn of_stranger(store: &Store, request: &RequestDetails, request_id: &str, known: Option<Caller>) {
    match known {
        None => store.note_stranger(&request.source),
        Some(caller) => store.note_denial(Denial {
            actor: caller.name,
            credential: caller.credential,
            source: request.source.clone(),
            request_id: request_id.to_owned(),
            verb: "authenticate".to_owned(),
            detail: format!("{} {}", request.method, request.path),
            ..Denial::default()
        }),
    }
}
