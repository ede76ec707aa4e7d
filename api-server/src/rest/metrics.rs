//! What a server measures of itself, for Prometheus: at a door of its own, never at the API's.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use sha2::{Digest, Sha256};

use crate::kernel::secret::Plain;
use crate::metrics::MEDIA;

#[derive(Clone)]
struct Door {
    text: Arc<dyn Fn() -> String + Send + Sync>,
    token: Option<[u8; 32]>,
}

/// `/metrics`, and nothing else. With a token, whoever asks must show it as a bearer token.
pub fn metrics_router(token: Option<&Plain>, text: Arc<dyn Fn() -> String + Send + Sync>) -> Router {
    let door = Door { text, token: token.map(|token| digest(token.reveal())) };
    Router::new().route("/metrics", get(metrics)).with_state(door)
}

async fn metrics(State(door): State<Door>, headers: HeaderMap) -> Response {
    if door.token.is_some_and(|token| shown(&headers) != Some(token)) {
        let challenge = [(WWW_AUTHENTICATE, "Bearer")];
        let detail = "show the token of `metrics.token_file`: Authorization: Bearer ...\n";
        return (StatusCode::UNAUTHORIZED, challenge, detail).into_response();
    }
    let headers = [(CONTENT_TYPE, MEDIA), (CACHE_CONTROL, "no-store"), (X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (headers, (door.text)()).into_response()
}

/// Digests are compared: how long that takes tells nothing of the token.
fn shown(headers: &HeaderMap) -> Option<[u8; 32]> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| digest(token.trim()))
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}
