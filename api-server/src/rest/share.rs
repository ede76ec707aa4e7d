//! Whose share of the server a request takes, and what is told when it is used up.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::header::{CONNECTION, RETRY_AFTER};
use axum::http::request::Parts;
use axum::http::{Extensions, Version, header};
use axum::response::Response;
use http_body::{Frame, SizeHint};
use serde_json::json;

use super::RestContext;
use super::cookie::{self, Which};
use super::line::{Line, OnLine};
use super::problem::Problem;
use super::shown::Shown;
use crate::auth::Cache;
use crate::kernel::{Caller, Env};
use crate::limits::{Pass, Refused, Who};
use crate::metrics::Metrics;

/// For how long credentials that were good are looked at although others from there were not.
const REMEMBERED: Duration = Duration::from_secs(600);
/// As much of an answer is handed over at once: of less than that nobody sees whether it is taken.
const PIECE: usize = 16 << 10;

/// Whose share it is. Who names a tenant that is none of theirs takes nothing of it.
pub fn who(caller: &Caller, tenant: &str) -> Who {
    if caller.operator {
        return Who::Operator;
    }
    let access = caller.access.as_ref();
    let own = || access.and_then(|access| access.tenants().first().map(|tenant| (*tenant).to_owned()));
    let named = (!tenant.is_empty() && caller.knows(tenant)).then(|| tenant.to_owned());
    Who::Caller { id: caller.identity().to_owned(), tenant: named.or_else(own) }
}

/// What is told, and counted.
pub fn refused(metrics: &Metrics, refused: &Refused, version: Version, line: Option<&Line>) -> Problem {
    let Refused { limit, most, after, tenant, flood } = refused;
    metrics.refused(limit, tenant);
    let way_out = match *limit {
        "caller-rate" => format!("you may ask {most} times a second"),
        "tenant-rate" => format!("all who ask for this tenant may together ask {most} times a second"),
        "caller-requests" => format!("you may ask {most} things at the same time"),
        "tenant-requests" => {
            format!("all who ask for this tenant may together ask {most} things at the same time")
        }
        "caller-streams" => {
            format!("you may have {most} streams, consoles, logs, uploads and waits open: close some")
        }
        "tenant-streams" => {
            format!("this tenant may have {most} streams, consoles, logs, uploads and waits open: close some")
        }
        "stranger-rate" => {
            format!("{most} times a second somebody may come from there without good credentials")
        }
        _ => "the server has more to do than it can: nothing was begun".to_owned(),
    };
    let word = if *limit == "server-working" { "unavailable" } else { "too-many" };
    let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
    let seconds = seconds.max(1);
    let mut problem = Problem::new(word, format!("{way_out}; come again in {seconds} s"))
        .with("limit", json!(limit))
        .with("most", json!(most))
        .header(RETRY_AFTER, &seconds.to_string());
    if *flood {
        // Whoever goes on is cut off.
        line.into_iter().for_each(Line::bothers);
        if version < Version::HTTP_2 {
            problem = problem.header(CONNECTION, "close");
        }
    }
    problem
}

/// A body that is too much.
pub fn too_much(
    ctx: &RestContext,
    word: &'static str,
    limit: &'static str,
    most: usize,
    text: String,
) -> Problem {
    ctx.metrics.refused(limit, "");
    Problem::new(word, text).with("limit", json!(limit)).with("most", json!(most))
}

/// Where a request comes from; empty: that is not known.
pub fn source(with: &Extensions) -> String {
    with.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip().to_string()).unwrap_or_default()
}

// === strangers ===

/// Which credentials were good lately: they are looked at even where a flood of others comes from.
pub struct Regulars(Cache<()>);

impl Regulars {
    /// None yet.
    pub fn new(env: &Env) -> Regulars {
        Regulars(Cache::new(env))
    }

    fn mark(&self, parts: &Parts) -> Option<[u8; 32]> {
        let authorization = parts.headers.get(header::AUTHORIZATION).map(header::HeaderValue::as_bytes);
        let shown = parts.extensions.get::<Shown>().and_then(|shown| shown.0.first());
        let cookie = cookie::secret(parts, Which::Session).ok().flatten().filter(|_| authorization.is_none());
        if authorization.is_none() && shown.is_none() && cookie.is_none() {
            return None;
        }
        let shown = shown.map(AsRef::as_ref).unwrap_or_default();
        let cookie = cookie.unwrap_or_default().as_bytes();
        Some(self.0.fingerprint(&[authorization.unwrap_or_default(), shown, cookie]))
    }

    /// Refuses who comes without any that were good, from where too many did.
    pub async fn judge(&self, ctx: &RestContext, parts: &Parts, source: &str) -> Result<(), Problem> {
        let Some(wait) = ctx.gate.stranger_waits(source) else { return Ok(()) };
        if self.mark(parts).is_some_and(|mark| self.0.get(&mark).is_some()) {
            return Ok(());
        }
        Err(turned_away(ctx, parts, source, wait).await)
    }

    /// These were good.
    pub fn were_good(&self, parts: &Parts) {
        if let Some(mark) = self.mark(parts) {
            self.0.put(mark, (), REMEMBERED);
        }
    }
}

async fn turned_away(ctx: &RestContext, parts: &Parts, source: &str, wait: Duration) -> Problem {
    let told = ctx.gate.turn_away(source, wait).await;
    refused(&ctx.metrics, &told, parts.version, parts.extensions.get())
}

/// A request for which nobody has to say who they are.
pub struct Open;

impl FromRequestParts<Arc<RestContext>> for Open {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, ctx: &Arc<RestContext>) -> Result<Open, Problem> {
        let source = source(&parts.extensions);
        if let Some(wait) = ctx.gate.stranger_waits(&source) {
            return Err(turned_away(ctx, parts, &source, wait).await);
        }
        ctx.gate.stranger(&source);
        Ok(Open)
    }
}

// === answers ===

/// An answer that holds its places until it was handed over, in pieces: who does not take the next one has not been
/// given it.
struct Handed {
    body: Body,
    rest: Bytes,
    on_line: Option<OnLine>,
    _pass: Option<Arc<Pass>>,
}

/// The work is done; the place is kept until the answer was taken.
pub fn worked(pass: Arc<Pass>, mut response: Response) -> Response {
    pass.worked();
    response.extensions_mut().insert(pass);
    response
}

/// The answer, with what it holds.
pub fn handed_over(mut response: Response, on_line: Option<OnLine>) -> Response {
    let pass = response.extensions_mut().remove::<Arc<Pass>>();
    if pass.is_none() && on_line.is_none() {
        return response;
    }
    response.map(|body| {
        let mut handed = Handed { body, rest: Bytes::new(), on_line, _pass: pass };
        handed.look();
        Body::new(handed)
    })
}

impl Handed {
    /// Nobody is told when an answer is over that ends with its last piece.
    fn look(&mut self) {
        if self.is_end_stream() {
            self.on_line.iter_mut().for_each(OnLine::answered);
        }
    }
}

impl HttpBody for Handed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.on_line.iter().for_each(OnLine::taken);
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                None => {
                    self.on_line.iter_mut().for_each(OnLine::answered);
                    return Poll::Ready(None);
                }
                broken => return Poll::Ready(broken),
            }
        }
        let piece = self.rest.len().min(PIECE);
        let piece = self.rest.split_to(piece);
        self.on_line.iter().for_each(OnLine::offered);
        self.look();
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (left, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut all = SizeHint::new();
        all.set_lower(left.lower() + rest);
        if let Some(upper) = left.upper() {
            all.set_upper(upper + rest);
        }
        all
    }
}
