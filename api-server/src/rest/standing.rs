//! What is open for long ends with the rights by which it was opened: a stream is cut off within a second or two of the
//! moment in which its caller's rights are others than they were, whatever has changed. Who may still have it opens it
//! anew.

use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::response::Response;
use futures_util::StreamExt;

use super::extract::Ask;
use crate::kernel::{Caller, Error};
use crate::store::Store;

/// How often is looked; the store keeps what it takes in memory.
const LOOK: Duration = Duration::from_secs(1);

/// A caller, as long as they may do what they could when they came.
pub struct Standing {
    store: Store,
    /// As the authenticator said it.
    said: Caller,
    now: Caller,
    source: String,
}

impl Standing {
    /// Of whoever asks.
    pub fn of(ask: &Ask) -> Standing {
        let source = ask.asked().source.clone();
        let origin = ask.origin();
        Standing {
            store: ask.ctx.store.clone(),
            said: origin.said.clone(),
            now: origin.caller.clone(),
            source,
        }
    }

    /// Waits until their rights are others.
    pub async fn lost(self) {
        // Those of the server itself have no rights that could change.
        if self.now.access.is_none() {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(LOOK).await;
            match self.store.admit(self.said.clone(), &self.source).await {
                Ok(caller) if caller.access == self.now.access => {}
                // Nothing is known while the database is away; nothing new is seen then either.
                Err(refused) if matches!(refused.error, Error::Unavailable(_)) => {}
                _ => return,
            }
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
