//! `GET /v1/login`: where people log in. `POST /v1/login/{authenticator}/ended`: their provider tells that a login has
//! ended (OpenID Connect Back-Channel Logout). Both are asked by somebody who is nobody here yet, or not any more.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header::CACHE_CONTROL;
use axum::http::{HeaderValue, StatusCode};
use axum::response::IntoResponse;
use serde_json::{Value, json};
use url::form_urlencoded;

use super::RestContext;
use super::domain::Domain;
use super::problem::{Answer, Problem};
use super::share::Open;
use crate::auth::Login;

/// The largest body that tells of an end.
const LARGEST: usize = 64 << 10;

/// Those whose people are known everywhere; on a tenant's domain, its own.
pub async fn logins(_: Open, State(ctx): State<Arc<RestContext>>, domain: Domain) -> Answer {
    let logins = ctx.authenticators.logins(domain.tenant());
    let items: Vec<Value> = logins
        .into_iter()
        .map(|Login { name, issuer, client, .. }| json!({ "name": name, "issuer": issuer, "client_id": client }))
        .collect();
    Ok(Json(json!({ "items": items })).into_response())
}

/// Ends it: from then on none of its tokens counts, at no server.
pub async fn ended(
    _: Open,
    State(ctx): State<Arc<RestContext>>,
    domain: Domain,
    Path(name): Path<String>,
    body: Body,
) -> Answer {
    let malformed = |detail: String| Problem::new("malformed", detail).header(CACHE_CONTROL, "no-store");
    let bytes = tokio::time::timeout(ctx.gate.config().body.time, axum::body::to_bytes(body, LARGEST));
    let bytes = bytes
        .await
        .map_err(|_| Problem::new("too-slow", "the body did not come in time"))?
        .map_err(|_| Problem::new("too-large", format!("a body may have at most {LARGEST} bytes")))?;
    let token = form_urlencoded::parse(&bytes).find(|(key, _)| key == "logout_token").map(|(_, token)| token);
    let token = token.ok_or_else(|| malformed("send `logout_token` as a form".into()))?;
    let ended =
        ctx.authenticators.logout(domain.tenant(), &name, &token).await.ok_or_else(Problem::not_found)?;
    let ended = ended.map_err(malformed)?;
    tracing::info!(authenticator = ended.authenticator, "a login has ended, says its provider");
    ctx.store.end_session(ended).await?;
    let mut response = StatusCode::OK.into_response();
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}
