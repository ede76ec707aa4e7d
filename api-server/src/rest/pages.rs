//! What is served without asking who it is for: the document, its page (which needs no internet), health.

use std::sync::Arc;

use axum::Router;
use axum::extract::Path;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use utoipa_swagger_ui::Config;

use super::problem::{Answer, Problem};

/// The page runs its own scripts and asks this server, nobody else.
const PAGE_POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
     frame-ancestors 'none'; base-uri 'none'";

/// The document at `/openapi.json`, and the page at `/docs/` that shows it.
pub fn router(document: String) -> Router {
    let document: Arc<str> = document.into();
    let config = Arc::new(Config::from("/openapi.json").persist_authorization(false));
    Router::new()
        .route("/", get(async || Redirect::temporary("/docs/")))
        .route("/docs", get(async || Redirect::temporary("/docs/")))
        .route(
            "/docs/",
            get({
                let config = config.clone();
                async move || file("", config)
            }),
        )
        .route("/docs/{*path}", get(async move |Path(path): Path<String>| file(&path, config)))
        .route(
            "/openapi.json",
            get(async move || ([(CONTENT_TYPE, "application/json")], document.to_string())),
        )
}

fn file(path: &str, config: Arc<Config<'static>>) -> Answer {
    let found = utoipa_swagger_ui::serve(path, config).map_err(Problem::internal)?;
    let file = found.ok_or_else(Problem::not_found)?;
    let headers = [
        (CONTENT_TYPE, file.content_type),
        (CONTENT_SECURITY_POLICY, PAGE_POLICY.to_owned()),
        (CACHE_CONTROL, "public, max-age=3600".to_owned()),
    ];
    let response: Response = (headers, file.bytes.into_owned()).into_response();
    Ok(response)
}
