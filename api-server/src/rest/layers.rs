//! What surrounds every request: its id, one line in the log, a problem for whatever goes wrong anywhere
//! (a panic too), and headers that keep browsers from guessing.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{HeaderName, HeaderValue, StatusCode, Version};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use tower_http::catch_panic::CatchPanicLayer;

use super::domain;
use super::line::Line;
use super::operations::Operations;
use super::problem::Problem;
use super::shape::Whole;
use super::share::{self, handed_over, source};
use crate::auth::Domains;
use crate::kernel::Env;
use crate::limits::Gate;
use crate::metrics::Metrics;

/// The id of a request, as answered in `x-request-id`.
#[derive(Clone, Debug)]
pub struct RequestId(pub String);

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What the layers need.
#[derive(Clone)]
pub struct Around {
    /// Makes ids.
    pub env: Env,
    /// What strangers may have.
    pub gate: Gate,
    /// Where requests are counted.
    pub metrics: Metrics,
    /// By which names.
    pub operations: Operations,
    /// Those of tenants.
    pub domains: Arc<Domains>,
}

/// All layers around a router, in their order.
pub fn around(router: Router, around: Around) -> Router {
    router
        .fallback(async || Problem::not_found())
        .method_not_allowed_fallback(async || Problem::of_status(StatusCode::METHOD_NOT_ALLOWED))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(around, outermost))
}

fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without words");
    Problem::internal(text).into_response()
}

async fn outermost(State(around): State<Around>, mut request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let id = request
        .headers()
        .get(&REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .filter(|text| fit_for_an_id(text))
        .map_or_else(|| around.env.id("req"), str::to_owned);
    request.extensions_mut().insert(RequestId(id.clone()));
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let matched = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let operation = around.operations.name(matched, &method).clone();
    let nowhere = matched.is_none();

    let (version, source) = (request.version(), source(request.extensions()));
    let line = request.extensions().get::<Line>().cloned();
    let on_line = line.as_ref().map(|line| line.begin(version < Version::HTTP_2));
    let turned_away = match domain::of(&request, &around.domains) {
        Err(problem) => Some(problem),
        Ok(domain) => {
            request.extensions_mut().insert(domain);
            if nowhere { lost(&around, source, version, line).await } else { None }
        }
    };
    let answer = match turned_away {
        Some(problem) => problem.into_response(),
        None => next.run(request).await,
    };
    let response = handed_over(settled(answer, &id), on_line);
    let status = response.status().as_u16();
    let took = begun.elapsed();
    around.metrics.answered(&operation, status, took);
    // The query may hold what is nobody's business: it stays out of the log.
    tracing::info!(%method, path, status, millis = took.as_millis() as u64, request_id = id, "request");
    with_headers(response, &id)
}

/// Whoever asks for what is nowhere is counted as a stranger: nobody else looks at who they are.
async fn lost(around: &Around, source: String, version: Version, line: Option<Line>) -> Option<Problem> {
    let gate = &around.gate;
    let Some(wait) = gate.stranger_waits(&source) else {
        gate.stranger(&source);
        return None;
    };
    let refused = gate.turn_away(&source, wait).await;
    Some(share::refused(&around.metrics, &refused, version, line.as_ref()))
}

/// Any answer that is an error, as a problem that names its request.
fn settled(mut response: Response, id: &str) -> Response {
    let status = response.status();
    let whole = response.extensions_mut().remove::<Whole>().is_some();
    if whole || !status.is_client_error() && !status.is_server_error() {
        return response;
    }
    let problem = response.extensions_mut().remove::<Problem>().unwrap_or_else(|| Problem::of_status(status));
    if let Some(text) = problem.log() {
        tracing::error!(request_id = id, "{text}");
    }
    let mut settled = problem.render(id);
    // Only the router knows which methods a path takes.
    if let Some(allow) = response.headers_mut().remove(ALLOW) {
        settled.headers_mut().insert(ALLOW, allow);
    }
    settled
}

fn with_headers(mut response: Response, id: &str) -> Response {
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert(REQUEST_ID, id);
    }
    let fixed = [
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
        (CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    ];
    for (name, value) in fixed {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

fn fit_for_an_id(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}
