//! What is remembered of a request, in case it is denied.

use std::sync::Arc;

use axum::http::{Method, Uri};

use super::RestContext;
use super::extract::{Ask, Origin};
use super::problem::Problem;
use crate::auth::RequestDetails;
use crate::kernel::Caller;
use crate::store::{Denial, Store};

/// Who asks what, until the answer is known.
pub struct Who {
    ctx: Arc<RestContext>,
    origin: Arc<Origin>,
    method: Method,
    uri: Uri,
}

impl Who {
    /// Of a request.
    pub fn of(ask: &Ask) -> Who {
        let (method, uri) = (ask.parts.method.clone(), ask.parts.uri.clone());
        Who { ctx: ask.ctx.clone(), origin: ask.origin().clone(), method, uri }
    }

    /// Keeps the denial, if the answer is one.
    pub fn was_denied(self, problem: &Problem) {
        let Some((verb, kind)) = problem.denied() else { return };
        let Origin { caller, asked, .. } = &*self.origin;
        self.ctx.store.note_denial(Denial {
            actor: caller.name.clone(),
            credential: caller.credential.clone(),
            source: asked.source.clone(),
            request_id: asked.request_id.clone(),
            tenant: self.origin.tenant().to_owned(),
            kind: kind.to_owned(),
            verb: verb.to_owned(),
            detail: format!("{} {}", self.method, self.uri.path()),
        });
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
