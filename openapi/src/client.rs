//! The calls: one method per manner of the API.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderName, IF_MATCH, IF_RANGE, RANGE};
use reqwest::{Certificate, Method, StatusCode, Url};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::io::ReaderStream;
use zeroize::Zeroizing;

use super::shown::{Sent, Shown};
use super::{Console, Error, Events, Job, Outcome, Page, Problem, Renewal, Resource, Written};

/// How long a call may take that does not wait for anything.
const CALL_SECONDS: u64 = 60;
/// How long the server may hold a call that waits for a job.
const WAIT_SECONDS: u64 = 20;

/// Where the API is, and how to be let in.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// `https://host:port`
    pub url: String,
    /// For `Authorization: Bearer`.
    pub token: Option<String>,
    /// Instead of a token: name and password.
    pub login: Option<Login>,
    /// PEM of the authorities to believe. Without it: those of this machine.
    pub ca_pem: Option<Vec<u8>>,
}

/// Name and password, and what else proves who somebody is.
#[derive(Clone, Default)]
pub struct Login {
    /// What they are called where the server looks.
    pub name: String,
    /// Their password.
    pub password: Zeroizing<String>,
    /// The code of an app, or a recovery code. It is good for one call.
    pub code: Option<String>,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Login({}, ..)", self.name)
    }
}

/// A client of one server.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    /// What every call shows.
    shown: Shown,
    roots: Vec<CertificateDer<'static>>,
}

/// What a call was answered with.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// `"v3-s7"`
    pub etag: Option<String>,
    /// The body; null if there was none, a string if it was not JSON.
    pub body: Value,
}

/// Bytes as they come.
pub struct Pieces {
    url: String,
    bytes: BoxStream<'static, reqwest::Result<Bytes>>,
}

impl Pieces {
    /// The next ones; `None` at the end. An error: it broke off before that.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        self.bytes.next().await.transpose().map_err(|e| Error::unreachable(&self.url, &e))
    }
}

impl Client {
    /// A client with these settings.
    pub fn new(settings: &Settings) -> Result<Client, Error> {
        // Fails only when one is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let refuse = |why: String| Error::Settings(why);
        let base: Url = settings
            .url
            .parse()
            .map_err(|e| refuse(format!("`{}` is no URL such as https://host:7443: {e}", settings.url)))?;
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
            return Err(refuse(format!("`{}` must begin with http:// or https://", settings.url)));
        }
        // The API redirects nobody; and whoever is redirected would show a code to whomever is named there.
        let redirects = reqwest::redirect::Policy::none();
        let mut builder =
            reqwest::Client::builder().connect_timeout(Duration::from_secs(10)).redirect(redirects);
        let mut roots = Vec::new();
        if let Some(pem) = &settings.ca_pem {
            let unusable = |why: String| refuse(format!("the CA file holds no usable certificate: {why}"));
            roots = CertificateDer::pem_slice_iter(pem)
                .collect::<Result<_, _>>()
                .map_err(|e| unusable(e.to_string()))?;
            if roots.is_empty() {
                return Err(unusable("it is empty".into()));
            }
            let bundle = Certificate::from_pem_bundle(pem).map_err(|e| unusable(e.to_string()))?;
            builder = builder.tls_certs_only(bundle);
        } else if base.scheme() == "http" {
            // No authorities are needed, and machines without any would be refused.
            builder = builder.tls_certs_only([]);
        }
        let http = builder.build().map_err(|e| refuse(format!("TLS cannot be set up: {e}")))?;
        Ok(Client { http, base, shown: Shown::new(settings)?, roots })
    }

    /// Asks there for another token whenever the one that is shown counts no more, and goes on.
    pub fn renewed_by(self, renewal: Arc<dyn Renewal>) -> Client {
        Client { shown: self.shown.renewed_by(renewal), ..self }
    }

    /// Where the server is.
    pub fn url(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// Any call.
    pub async fn call(
        &self,
        method: &str,
        path: &str,
        body: Option<(&str, Value)>,
        if_match: Option<&str>,
    ) -> Result<Answer, Error> {
        let mut request = self.request(method, path)?.timeout(Duration::from_secs(CALL_SECONDS));
        if let Some((content_type, body)) = body {
            request = request.header(CONTENT_TYPE, content_type).body(body.to_string());
        }
        if let Some(version) = if_match {
            request = request.header(IF_MATCH, version);
        }
        self.send(path, request).await
    }

    /// One thing.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        typed(path, self.call("GET", path, None, None).await?)
    }

    /// All of a list, page by page, or the first so many.
    pub async fn list<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(String, String)],
        most: Option<usize>,
    ) -> Result<Vec<T>, Error> {
        let mut items = Vec::new();
        let mut page: Option<String> = None;
        loop {
            let wanted = most.map_or(1000, |most| (most - items.len()).min(1000)).to_string();
            let pairs = query.iter().map(|(key, value)| (key.as_str(), value.as_str()));
            let pairs =
                pairs.chain([("limit", wanted.as_str())]).chain(page.iter().map(|p| ("page", p.as_str())));
            let one: Page<T> = self.get(&with_query(path, pairs)).await?;
            items.extend(one.items);
            page = one.next;
            if page.is_none() || most.is_some_and(|most| items.len() >= most) {
                items.truncate(most.unwrap_or(usize::MAX));
                return Ok(items);
            }
        }
    }

    /// Makes an object: `{"name", "tags", "metadata", "protected", "spec"}`.
    pub async fn create(&self, path: &str, body: Value) -> Result<Written, Error> {
        written(path, self.call("POST", path, Some(("application/json", body)), None).await?)
    }

    /// Changes an object by a merge patch; `version` refuses it if somebody else was faster.
    pub async fn patch(&self, path: &str, body: Value, version: Option<i64>) -> Result<Written, Error> {
        let version = version.map(|version| format!("\"v{version}\""));
        let body = Some(("application/merge-patch+json", body));
        written(path, self.call("PATCH", path, body, version.as_deref()).await?)
    }

    /// Deletes an object. Answers what the server said: the object and its job, or nothing when it is gone.
    pub async fn delete(&self, path: &str) -> Result<Answer, Error> {
        self.call("DELETE", path, None, None).await
    }

    /// Makes the object at `path` what it was at a version.
    pub async fn restore(&self, path: &str, version: i64) -> Result<Written, Error> {
        let path = format!("{path}/revisions/{version}/restore");
        written(&path, self.call("POST", &path, None, None).await?)
    }

    /// The same on all objects of a list that the query matches: `POST .../actions/{verb}`, `PATCH`, `DELETE`.
    pub async fn on_all(
        &self,
        method: &str,
        path: &str,
        query: &[(String, String)],
        body: Option<(&str, Value)>,
    ) -> Result<Vec<Outcome>, Error> {
        let mut items = Vec::new();
        let mut page: Option<String> = None;
        loop {
            let pairs = query.iter().map(|(key, value)| (key.as_str(), value.as_str()));
            let path = with_query(path, pairs.chain(page.iter().map(|page| ("page", page.as_str()))));
            let one: Page<Outcome> = typed(&path, self.call(method, &path, body.clone(), None).await?)?;
            items.extend(one.items);
            page = one.next;
            if page.is_none() {
                return Ok(items);
            }
        }
    }

    /// Calls an action of the object at `path`.
    pub async fn action(&self, path: &str, verb: &str, body: Value) -> Result<Answer, Error> {
        self.call("POST", &format!("{path}/actions/{verb}"), Some(("application/json", body)), None).await
    }

    /// Calls an action that changes the object, as most do.
    pub async fn act(&self, path: &str, verb: &str, body: Value) -> Result<Written, Error> {
        written(path, self.action(path, verb, body).await?)
    }

    /// A job, after it ended, or after the server would hold the call no longer. `path` is the job's.
    pub async fn wait(&self, path: &str, seconds: u64) -> Result<Job, Error> {
        let seconds = seconds.clamp(1, WAIT_SECONDS);
        let path = format!("{path}/wait?timeout={seconds}");
        let request = self.request("GET", &path)?.timeout(Duration::from_secs(seconds + CALL_SECONDS));
        let answer = self.send(&path, request).await?;
        // Some servers answer the job, some the job within something.
        let body =
            if answer.body["job"].is_object() { answer.body["job"].clone() } else { answer.body.clone() };
        typed(&path, Answer { body, ..answer })
    }

    /// Reads lines as they come, until the server has no more; `media` says in which form they are wanted.
    pub async fn lines(&self, path: &str, media: &str, mut each: impl FnMut(&str)) -> Result<(), Error> {
        let request = self.request("GET", path)?.header(ACCEPT, media);
        let response = self.answered(path, request).await?;
        let mut stream = response.bytes_stream();
        let mut rest = Vec::new();
        while let Some(bytes) = stream.next().await {
            rest.extend_from_slice(&bytes.map_err(|e| Error::unreachable(self.url(), &e))?);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                each(String::from_utf8_lossy(&line).trim_end());
            }
        }
        Ok(())
    }

    /// Opens what comes as bytes, for as long as the server has more.
    pub async fn bytes(&self, path: &str, query: &[(String, String)]) -> Result<Pieces, Error> {
        let path = with_query(path, query.iter().map(|(key, value)| (key.as_str(), value.as_str())));
        let response = self.answered(&path, self.request("GET", &path)?).await?;
        Ok(Pieces { url: self.url().to_owned(), bytes: response.bytes_stream().boxed() })
    }

    /// Opens what comes as bytes from this one on, if it is still what has this ETag; else all of it. Answers from where.
    pub async fn bytes_from(&self, path: &str, from: u64, etag: &str) -> Result<(u64, Pieces), Error> {
        let mut request = self.request("GET", path)?;
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-")).header(IF_RANGE, format!("\"{etag}\""));
        }
        let response = self.answered(path, request).await?;
        let from = if response.status() == StatusCode::PARTIAL_CONTENT { from } else { 0 };
        Ok((from, Pieces { url: self.url().to_owned(), bytes: response.bytes_stream().boxed() }))
    }

    /// Sends a file, and says how many bytes have gone out.
    pub async fn upload(
        &self,
        path: &str,
        file: &Path,
        progress: impl Fn(u64) + Send + Sync + 'static,
    ) -> Result<Answer, Error> {
        let unreadable = |source| Error::Io { what: file.display().to_string(), source };
        let opened = tokio::fs::File::open(file).await.map_err(unreadable)?;
        let size = opened.metadata().await.map_err(unreadable)?.len();
        let progress = Arc::new(progress);
        let stream = ReaderStream::with_capacity(opened, 256 << 10).inspect(move |chunk| {
            if let Ok(chunk) = chunk {
                progress(chunk.len() as u64);
            }
        });
        let request = self
            .request("PUT", path)?
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_LENGTH, size)
            .body(reqwest::Body::wrap_stream(stream));
        self.send(path, request).await
    }

    /// Opens a stream of events; behind this number, if one was seen before.
    pub async fn events(
        &self,
        path: &str,
        query: &[(String, String)],
        last: Option<i64>,
    ) -> Result<Events, Error> {
        let pairs = query.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let path = with_query(path, pairs);
        let mut request = self.request("GET", &path)?.header(ACCEPT, "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = self.answered(&path, request).await?;
        Ok(Events::of(self.url(), response, last))
    }

    /// Opens the websocket at `path`.
    pub async fn console(&self, path: &str) -> Result<Console, Error> {
        let mut renewals = 0;
        loop {
            let shown = self.shown.headers();
            let opened = Console::open(&self.base, path, &shown, &self.roots).await;
            let refused = matches!(&opened, Err(error) if error.is_unauthenticated());
            if !refused || !self.shown.renew(&shown, &mut renewals).await? {
                return opened;
            }
        }
    }

    fn request(&self, method: &str, path: &str) -> Result<reqwest::RequestBuilder, Error> {
        let method: Method =
            method.parse().map_err(|_| Error::Settings(format!("`{method}` is no HTTP method")))?;
        let url = format!("{}/{}", self.url(), path.trim_start_matches('/'));
        let url: Url = url.parse().map_err(|e| Error::Settings(format!("`{path}` is no path: {e}")))?;
        Ok(self.http.request(method, url))
    }

    /// A response that is no refusal; its body is still to come.
    async fn answered(
        &self,
        path: &str,
        request: reqwest::RequestBuilder,
    ) -> Result<reqwest::Response, Error> {
        let response = self.shown.send(request).await.map_err(|sent| match sent {
            Sent::Lost(error) => Error::unreachable(self.url(), &error),
            Sent::Refused(error) => error,
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let media = header(&response, CONTENT_TYPE).unwrap_or_default();
        let text = response.text().await.map_err(|e| Error::unreachable(self.url(), &e))?;
        Err(refusal(path, status.as_u16(), &media, &text))
    }

    async fn send(&self, path: &str, request: reqwest::RequestBuilder) -> Result<Answer, Error> {
        let response = self.answered(path, request).await?;
        let (status, etag) = (response.status(), header(&response, ETAG));
        let text = response.text().await.map_err(|e| Error::unreachable(self.url(), &e))?;
        let body = match serde_json::from_str(&text) {
            _ if text.is_empty() => Value::Null,
            Ok(body) => body,
            Err(_) => json!(text),
        };
        Ok(Answer { status: status.as_u16(), etag, body })
    }
}

fn header(response: &reqwest::Response, name: HeaderName) -> Option<String> {
    response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

fn refusal(path: &str, status: u16, content_type: &str, text: &str) -> Error {
    if content_type.starts_with("application/problem+json")
        && let Ok(problem) = serde_json::from_str::<Problem>(text)
    {
        return Error::Problem(Box::new(problem));
    }
    Error::Unexpected { url: path.to_owned(), status, body: text.chars().take(300).collect() }
}

/// 202 says that the job named is the one of this write, and not one of before.
fn written(path: &str, answer: Answer) -> Result<Written, Error> {
    let accepted = answer.status == 202;
    let object: Resource = typed(path, answer)?;
    Ok(Written { job: object.job.clone().filter(|_| accepted), object })
}

fn typed<T: DeserializeOwned>(path: &str, answer: Answer) -> Result<T, Error> {
    T::deserialize(&answer.body).map_err(|e| Error::Unexpected {
        url: path.to_owned(),
        status: answer.status,
        body: format!("{e} in {}", answer.body.to_string().chars().take(200).collect::<String>()),
    })
}

/// A path with these parameters, escaped.
fn with_query<'a>(path: &str, pairs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let Ok(mut url) = Url::parse("http://host/") else { return path.to_owned() };
    url.query_pairs_mut().extend_pairs(pairs);
    format!("{path}?{}", url.query().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(url: &str, ca_pem: Option<&[u8]>) -> Result<Client, Error> {
        Client::new(&Settings { url: url.into(), ca_pem: ca_pem.map(<[u8]>::to_vec), ..Settings::default() })
    }

    #[test]
    fn settings_that_cannot_be_used_are_named() {
        for (url, ca) in [("nowhere", None), ("ftp://host", None), ("https://host", Some(&b"no pem"[..]))] {
            assert!(matches!(new(url, ca), Err(Error::Settings(_))), "{url}");
        }
        assert_eq!(new("http://127.0.0.1:80/", None).unwrap().url(), "http://127.0.0.1");
    }

    #[test]
    fn queries_are_escaped() {
        let path = with_query("/v1/x", [("tag.env", "a&b c"), ("limit", "5")].into_iter());
        assert_eq!(path, "/v1/x?tag.env=a%26b+c&limit=5");
    }

    #[test]
    fn what_is_no_problem_is_shown_as_it_is() {
        assert!(matches!(refusal("/v1", 502, "text/html", "<h1>"), Error::Unexpected { status: 502, .. }));
        let told = refusal("/v1", 404, "application/problem+json", "{\"status\":404,\"title\":\"no\"}");
        assert!(told.is_not_found());
    }
}
