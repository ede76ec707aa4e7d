//! What a request asks, taken apart: who, for which path and query, under which conditions, with which body.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Query, RawPathParams, Request};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, IF_MATCH, IF_NONE_MATCH};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method};
use futures_util::{FutureExt as _, StreamExt as _};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::entry::{self, Known};
use super::layers::RequestId;
use super::problem::Problem;
use super::{RestContext, json, page, share};
use crate::auth::RequestDetails;
use crate::kernel::{Caller, FieldError, Meta, Right, Scope};
use crate::limits::{BodyLimits, Pass, Refused};
use crate::store::{Asked, Key};

/// The longest that `Prefer: wait` and `/wait` wait.
pub const LONGEST_WAIT: u64 = 600;

const IDEMPOTENCY_KEY: &str = "idempotency-key";
const MOST_OF_A_KEY: usize = 255;

/// How long, and how much, of a body that is too large is read on, so that its sender hears why.
const LINGER: (Duration, usize) = (Duration::from_secs(10), 512 << 20);

/// One request of a known caller.
pub struct Ask {
    /// What handlers need.
    pub ctx: Arc<RestContext>,
    /// Its method and headers.
    pub parts: Parts,
    origin: Arc<Origin>,
    query: BTreeMap<String, String>,
    /// Behind a lock only so that an `Ask` may be shared; nobody ever waits for it.
    body: Mutex<Body>,
    /// The body, once it was read.
    bytes: Bytes,
}

/// Who asks for what, as a denial of it is remembered too.
pub struct Origin {
    /// Who asks.
    pub caller: Caller,
    /// The same, as an authenticator said it.
    pub said: Caller,
    /// What they came by, if it was a certificate or a cookie.
    pub shown: Option<Box<RequestDetails>>,
    /// The circumstances.
    pub asked: Asked,
    params: RawPathParams,
    pass: Arc<Pass>,
}

impl Origin {
    /// A parameter of the path.
    fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(key, _)| *key == name).map(|(_, value)| value)
    }

    /// The tenant in the path; empty for operators' paths.
    pub fn tenant(&self) -> &str {
        self.param("tenant").unwrap_or_default()
    }
}

impl FromRequest<Arc<RestContext>> for Ask {
    type Rejection = Problem;

    async fn from_request(request: Request, ctx: &Arc<RestContext>) -> Result<Ask, Problem> {
        let (mut parts, body) = request.into_parts();
        let request_id = parts.extensions.get::<RequestId>().map(|id| id.0.clone()).unwrap_or_default();
        let Known { caller, said, shown, source } = entry::known(ctx, &parts, &request_id).await?;
        let params = RawPathParams::from_request_parts(&mut parts, &())
            .await
            .map_err(|_| Problem::new("malformed", "the path is not UTF-8"))?;
        let tenant = params.iter().find(|(key, _)| *key == "tenant").map_or("", |(_, value)| value);
        let who = share::who(&caller, tenant);
        let entered = ctx.gate.enter(who).await;
        let told = |no: Refused| share::refused(&ctx.metrics, &no, parts.version, parts.extensions.get());
        let pass = entered.map_err(told)?;
        let query = query(&parts)?;
        let asked = Asked { request_id, reason: reason(&parts.headers)?, source };
        Ok(Ask {
            ctx: ctx.clone(),
            origin: Arc::new(Origin { caller, said, shown, asked, params, pass: Arc::new(pass) }),
            query,
            parts,
            body: Mutex::new(body),
            bytes: Bytes::new(),
        })
    }
}

impl Ask {
    /// The id or name in the path; what can be no name is not there.
    pub fn id(&self) -> Result<&str, Problem> {
        self.param("id")
    }

    /// A parameter of the path.
    pub fn param(&self, name: &str) -> Result<&str, Problem> {
        let value = self.origin.param(name);
        value.filter(|value| !value.contains('\0')).ok_or_else(Problem::not_found)
    }

    /// The tenant in the path; empty for operators' paths.
    pub fn tenant(&self) -> &str {
        self.origin.tenant()
    }

    /// The right to do `verb` with `kind` in the path's tenant.
    pub fn right(&self, verb: &str, kind: &str) -> Result<Right, Problem> {
        Ok(self.caller().may(verb, kind, self.tenant())?)
    }

    /// As `right`, but everywhere when the path names no tenant.
    pub fn right_everywhere(&self, verb: &str, kind: &str) -> Result<Right, Problem> {
        if self.origin.param("tenant").is_some() {
            return self.right(verb, kind);
        }
        Ok(self.caller().may_everywhere(verb, kind)?)
    }

    /// What it holds of the server.
    pub fn pass(&self) -> &Arc<Pass> {
        &self.origin.pass
    }

    /// It takes long from here on: it is counted as a stream, of which there may be more than of requests.
    pub fn takes_long(&self) -> Result<(), Problem> {
        self.pass().stream().map_err(|refused| self.refused(&refused))
    }

    fn refused(&self, refused: &Refused) -> Problem {
        share::refused(&self.ctx.metrics, refused, self.parts.version, self.parts.extensions.get())
    }

    /// Who asks.
    pub fn caller(&self) -> &Caller {
        &self.origin.caller
    }

    /// Waits until the caller's login has ended: a stream ends with it.
    pub fn over(&self) -> impl Future<Output = ()> + Send + 'static {
        self.ctx.authenticators.over(self.caller())
    }

    /// Who asks for what.
    pub fn origin(&self) -> &Arc<Origin> {
        &self.origin
    }

    /// The circumstances, for history.
    pub fn asked(&self) -> &Asked {
        &self.origin.asked
    }

    /// The query, if it has none but these parameters; a name that ends with a dot stands for all that begin so.
    pub fn query(&self, known: &[&str]) -> Result<&BTreeMap<String, String>, Problem> {
        let allowed = |key: &str| {
            known.iter().any(|name| match name.strip_suffix('.') {
                None => *name == key,
                Some(_) => key.len() > name.len() && key.starts_with(name),
            })
        };
        let strange: Vec<FieldError> = self
            .query
            .keys()
            .filter(|key| !allowed(key))
            .map(|key| FieldError::new(format!("?{key}"), "is no parameter here; nothing was done"))
            .collect();
        if strange.is_empty() {
            return Ok(&self.query);
        }
        Err(Problem::new("malformed", "the query has parameters that mean nothing here").errors(strange))
    }

    /// One parameter of the query, which `query` has let pass.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str)
    }

    /// All parameters of the query.
    pub fn parameters(&self) -> impl Iterator<Item = (&String, &String)> {
        self.query.iter()
    }

    /// No query at all.
    pub fn no_query(&self) -> Result<(), Problem> {
        self.query(&[]).map(|_| ())
    }

    /// Nothing in the query but whether this is a plan.
    pub fn only_plan(&self) -> Result<(), Problem> {
        self.query(&["plan"])?;
        self.plan().map(|_| ())
    }

    /// True for `?plan=true`.
    pub fn plan(&self) -> Result<bool, Problem> {
        match self.parameter("plan") {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(page::bad("plan", "must be `true` or `false`")),
        }
    }

    /// What `Idempotency-Key` says: under which key, and what is asked. To be called when the body was read.
    pub fn key(&self) -> Result<Option<Key>, Problem> {
        let Some(value) = self.parts.headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
        let key = value.to_str().unwrap_or_default();
        if !(1..=MOST_OF_A_KEY).contains(&key.len()) {
            let detail = format!("`Idempotency-Key` must be 1 to {MOST_OF_A_KEY} characters of ASCII");
            return Err(Problem::new("malformed", detail));
        }
        let if_match = self.parts.headers.get(IF_MATCH).map_or(&b""[..], HeaderValue::as_bytes);
        let mut request = Vec::new();
        for part in [self.parts.uri.query().unwrap_or_default().as_bytes(), if_match, &self.bytes] {
            request.extend((part.len() as u64).to_be_bytes());
            request.extend(part);
        }
        let route = format!("{} {}", self.parts.method, self.parts.uri.path());
        Ok(Some(Key { route, key: key.to_owned(), part: String::new(), request }))
    }

    /// Refuses `Idempotency-Key` where no answer is kept, and says why.
    pub fn no_key(&self, why: &str) -> Result<(), Problem> {
        if self.parts.headers.contains_key(IDEMPOTENCY_KEY) {
            return Err(Problem::new("not-supported", format!("`Idempotency-Key` is not taken here: {why}")));
        }
        Ok(())
    }

    /// The version that `If-Match` demands.
    pub fn if_match(&self) -> Result<Option<i64>, Problem> {
        let Some(value) = self.parts.headers.get(IF_MATCH) else { return Ok(None) };
        let text = value.to_str().unwrap_or_default().trim();
        if text == "*" {
            return Ok(None);
        }
        version_of(text).map(Some).ok_or_else(|| {
            Problem::new(
                "stale",
                "`If-Match` holds no ETag of this object; GET it and send the ETag of the answer",
            )
        })
    }

    /// True if `If-None-Match` names this ETag.
    pub fn knows(&self, etag: &str) -> bool {
        let values = self.parts.headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|tag| {
            let tag = tag.trim();
            tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag
        })
    }

    /// How long `Prefer: wait=N` wants to wait.
    pub fn prefer_wait(&self) -> Result<Option<Duration>, Problem> {
        let values = self.parts.headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
        for preference in values.flat_map(|value| value.split([',', ';'])) {
            let Some((name, value)) = preference.split_once('=') else { continue };
            if name.trim().eq_ignore_ascii_case("wait") {
                return seconds(value.trim().trim_matches('"'), "Prefer: wait").map(Some);
            }
        }
        Ok(None)
    }

    /// The body as a JSON object. `empty`: no body means `{}`.
    pub async fn json(&mut self, empty: bool) -> Result<Value, Problem> {
        let bytes = self.bytes().await?;
        if bytes.is_empty() && empty {
            return Ok(Value::Object(serde_json::Map::new()));
        }
        let patch = self.parts.method == Method::PATCH;
        let media =
            self.parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let media = media.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match media.as_str() {
            "application/json" => {}
            "application/merge-patch+json" if patch => {}
            _ if patch => {
                let detail = "send JSON as `application/merge-patch+json` or `application/json`";
                return Err(Problem::new("unsupported-media-type", detail));
            }
            _ => return Err(Problem::new("unsupported-media-type", "send JSON as `application/json`")),
        }
        let value = self.read(&bytes)?;
        if !value.is_object() {
            return Err(Problem::new("malformed", "the body must be a JSON object"));
        }
        Ok(value)
    }

    fn read(&self, bytes: &[u8]) -> Result<Value, Problem> {
        let most = self.ctx.gate.config().body.json_depth;
        json::read(bytes, most).map_err(|error| {
            let text = format!("the body is not good JSON: {error}");
            match error {
                json::Bad::TooDeep(_) => share::too_much(&self.ctx, "malformed", "body-depth", most, text),
                json::Bad::Other(_) => Problem::new("malformed", text),
            }
        })
    }

    /// Refuses any body.
    pub async fn no_body(&mut self) -> Result<(), Problem> {
        if self.bytes().await?.is_empty() {
            return Ok(());
        }
        Err(Problem::new("malformed", "this call takes no body"))
    }

    /// The body as it comes, for content.
    pub fn take_body(&mut self) -> Body {
        self.body.get_mut().map(std::mem::take).unwrap_or_default()
    }

    /// What `Content-Length` says.
    pub fn content_length(&self) -> Option<u64> {
        self.parts.headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
    }

    /// The body, at most as large as JSON may be.
    async fn bytes(&mut self) -> Result<Bytes, Problem> {
        let BodyLimits { json_bytes: most, time, .. } = self.ctx.gate.config().body;
        let mut stream = self.take_body().into_data_stream();
        let (mut all, end) = (Vec::new(), Instant::now() + time);
        loop {
            let chunk = match stream.next().now_or_never() {
                Some(chunk) => chunk,
                None => {
                    // Somebody else may work as long as nothing is there to work on.
                    self.pass().worked();
                    timeout_at(end, stream.next()).await.map_err(|_| self.too_slow(time))?
                }
            };
            let Some(chunk) = chunk else { break };
            let chunk = chunk.map_err(|_| Problem::new("malformed", "the body broke off"))?;
            if all.len() + chunk.len() > most {
                self.pass().worked();
                linger(stream).await;
                let text = format!("a body may have at most {most} bytes");
                return Err(share::too_much(&self.ctx, "too-large", "body-bytes", most, text));
            }
            all.extend_from_slice(&chunk);
        }
        self.pass().work().await.map_err(|refused| self.refused(&refused))?;
        self.bytes = all.into();
        Ok(self.bytes.clone())
    }

    /// The body did not come in time. Whoever sends so slowly is not listened to any longer.
    pub fn too_slow(&self, time: Duration) -> Problem {
        let seconds = time.as_secs();
        let text = format!("nothing came for too long: a body has {seconds} s to arrive");
        let most = usize::try_from(seconds).unwrap_or(usize::MAX);
        share::too_much(&self.ctx, "too-slow", "body-seconds", most, text)
    }
}

/// Reads on for a while and forgets it: a client that is still sending does not listen yet.
pub async fn linger(mut stream: axum::body::BodyDataStream) {
    let reading = async {
        let mut read = 0;
        while let Some(Ok(chunk)) = stream.next().await {
            read += chunk.len();
            if read > LINGER.1 {
                return;
            }
        }
    };
    // Time over: then it hears nothing, and it is its own doing.
    let _ = tokio::time::timeout(LINGER.0, reading).await;
}

/// Where objects of a kind are.
pub fn path_of(meta: &Meta, tenant: &str) -> String {
    match meta.scope {
        Scope::Operator => format!("/v1/{}", meta.plural),
        Scope::Both | Scope::Apart if tenant.is_empty() => format!("/v1/{}", meta.plural),
        Scope::Tenant | Scope::Both | Scope::Apart => format!("/v1/tenants/{tenant}/{}", meta.plural),
    }
}

/// A number of seconds up to the longest wait.
pub fn seconds(text: &str, what: &str) -> Result<Duration, Problem> {
    let seconds: u64 = text.parse().map_err(|_| {
        Problem::new("malformed", format!("`{what}` must be a number of seconds, not `{text}`"))
    })?;
    Ok(Duration::from_secs(seconds.min(LONGEST_WAIT)))
}

/// The v part of `"v12-s3"`.
fn version_of(etag: &str) -> Option<i64> {
    let inner = etag.strip_prefix("W/").unwrap_or(etag).strip_prefix('"')?.strip_suffix('"')?;
    let inner = inner.strip_prefix('v')?;
    inner.split_once("-s").map_or(inner, |(version, _)| version).parse().ok()
}

/// All parameters of a query; each may come once.
pub(super) fn query(parts: &Parts) -> Result<BTreeMap<String, String>, Problem> {
    if parts.uri.query().is_none() {
        return Ok(BTreeMap::new());
    }
    let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
        .map_err(|_| Problem::new("malformed", "the query cannot be read"))?;
    let mut all = BTreeMap::new();
    for (key, value) in pairs {
        if key.contains('\0') || value.contains('\0') {
            return Err(Problem::new("malformed", "the query holds a NUL character"));
        }
        if all.contains_key(&key) {
            return Err(Problem::new("malformed", format!("the parameter `{key}` comes twice")));
        }
        all.insert(key, value);
    }
    Ok(all)
}

fn reason(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get("rhyzome-reason") else { return Ok(None) };
    match value.to_str() {
        Ok(text) if text.len() <= 500 => Ok(Some(text.to_owned())),
        _ => Err(Problem::new("malformed", "`Rhyzome-Reason` must be at most 500 characters of ASCII")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_etag_is_compared_by_its_version() {
        assert_eq!(version_of("\"v12-s3\""), Some(12));
        assert_eq!(version_of("W/\"v12-s3\""), Some(12));
        assert_eq!(version_of("\"v7\""), Some(7));
        for bad in ["v12-s3", "\"12\"", "\"v-s1\"", ""] {
            assert_eq!(version_of(bad), None, "{bad}");
        }
    }

    #[test]
    fn waits_have_an_end() {
        assert_eq!(seconds("30", "x").unwrap(), Duration::from_secs(30));
        assert_eq!(seconds("99999", "x").unwrap(), Duration::from_secs(LONGEST_WAIT));
        assert!(seconds("-1", "x").is_err());
    }
}
