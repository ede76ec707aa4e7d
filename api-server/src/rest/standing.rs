//! What is open for long ends with the rights by which it was opened: a stream is cut off within a second or two of the
//! moment in which its caller's rights are others than they were, whatever has changed: theirs, the certificate or the session
//! by which they came, or that a second factor is asked of them now. Who may still have it opens it anew.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::response::Response;
use futures_util::StreamExt;

use super::RestContext;
use super::extract::{Ask, Origin};
use crate::kernel::Error;
use crate::store::Owed;

/// How often is looked; the store keeps what it takes in memory.
const LOOK: Duration = Duration::from_secs(1);

/// A caller, as long as they may do what they could when they came.
pub struct Standing {
    ctx: Arc<RestContext>,
    origin: Arc<Origin>,
}

impl Standing {
    /// Of whoever asks.
    pub fn of(ask: &Ask) -> Standing {
        Standing { ctx: ask.ctx.clone(), origin: ask.origin().clone() }
    }

    /// Waits until their rights are others.
    pub async fn lost(self) {
        let Origin { caller, said, shown, .. } = &*self.origin;
        // Those of the server itself have no rights that could change.
        if caller.access.is_none() && shown.is_none() && said.second_factor.is_none() {
            return std::future::pending().await;
        }
        let owed_nothing = matches!(self.ctx.store.owed(said).await, Ok(Owed::Nothing));
        loop {
            tokio::time::sleep(LOOK).await;
            if !(self.is_still_shown().await
                && self.is_still_enough(owed_nothing).await
                && self.may_still().await)
            {
                return;
            }
        }
    }

    /// The certificate, or the session, still counts. Nothing is known while it cannot be looked at.
    async fn is_still_shown(&self) -> bool {
        let Some(details) = &self.origin.shown else { return true };
        self.ctx.authenticators.authenticate(None, details).await.map_or_else(|no| no.later, |_| true)
    }

    /// No second factor is asked for that was not asked for at the beginning.
    async fn is_still_enough(&self, owed_nothing: bool) -> bool {
        !owed_nothing || matches!(self.ctx.store.owed(&self.origin.said).await, Ok(Owed::Nothing) | Err(_))
    }

    async fn may_still(&self) -> bool {
        let Origin { caller, said, asked, .. } = &*self.origin;
        if caller.access.is_none() {
            return true;
        }
        match self.ctx.store.admit(said.clone(), &asked.source).await {
            Ok(now) => now.access == caller.access,
            // Nothing is known while the database is away; nothing new is seen then either.
            Err(refused) => matches!(refused.error, Error::Unavailable(_)),
        }
    }

    /// A response whose end is not known yet ends with the rights.
    pub fn around(self, response: Response) -> Response {
        if response.body().size_hint().exact().is_some() {
            return response;
        }
        response.map(|body| Body::from_stream(body.into_data_stream().take_until(Box::pin(self.lost()))))
    }
}
