//! The REST API without a socket: requests go straight into its router.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, BodyDataStream};
use axum::http::{HeaderMap, Request};
use rhyzome_api::auth::{Authenticator, Authenticators, OperatorToken};
use rhyzome_api::blobs::Blobs;
use rhyzome_api::kernel::{Clash, Error};
use rhyzome_api::limits::{Gate, LimitsConfig, Rate, Share};
use rhyzome_api::metrics::Metrics;
use rhyzome_api::outbound::{Courier, Limits as CallLimits, Rules, SystemNames};
use rhyzome_api::rest::{self, ConsoleEnds, ConsoleHub, Joining, Regulars, RestContext, RestLimits, Wanted};
use rhyzome_imagefmt::Limits;
use serde_json::Value;
use tower::ServiceExt;

use crate::world::World;

/// The token that every request of a `Face` shows.
pub const TOKEN: &str = "rzo1.the-operator-of-the-tests-and-nobody-else";

/// The API over a world.
pub struct Face {
    router: Router,
    /// Where its requests are counted.
    pub metrics: Metrics,
    /// Where uploaded images end up.
    pub blobs: std::path::PathBuf,
    _folder: tempfile::TempDir,
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub bytes: Vec<u8>,
    /// Its body as JSON; null if it is none.
    pub json: Value,
}

struct NoConsoles;

impl ConsoleHub for NoConsoles {
    fn open<'a>(
        &'a self,
        _node: &'a str,
        _object: &'a str,
        _wanted: Wanted,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<ConsoleEnds, Error>> + Send + 'a>> {
        let nobody = Clash::WrongState("its node is not connected".into());
        Box::pin(std::future::ready(Err(nobody.into())))
    }
}

/// What a server has, but for how often somebody may ask: a test asks as fast as it can, and its clock may stand still.
pub fn roomy() -> LimitsConfig {
    let (usual, rate) = (LimitsConfig::default(), Rate::per_second(1_000_000, 1_000_000));
    LimitsConfig {
        caller: Share { rate, ..usual.caller },
        tenant: Share { rate, ..usual.tenant },
        strangers: rate,
        ..usual
    }
}

impl Face {
    /// The API over this world.
    pub fn of(world: &World) -> Face {
        Face::letting_in(world, vec![Arc::new(OperatorToken::new(TOKEN))])
    }

    /// The API over this world, for callers that these know.
    pub fn letting_in(world: &World, who: Vec<Arc<dyn Authenticator>>) -> Face {
        let nobody = Courier::new(Rules::default(), CallLimits::default(), Arc::new(SystemNames), false);
        Face::calling(world, who, Arc::new(nobody))
    }

    /// The API over this world, with the consoles of its guests.
    pub fn lending(world: &World, consoles: Arc<dyn ConsoleHub>) -> Face {
        let nobody = Courier::new(Rules::default(), CallLimits::default(), Arc::new(SystemNames), false);
        let who = Authenticators::new(vec![Arc::new(OperatorToken::new(TOKEN))]);
        Face::whole(world, who, Arc::new(nobody), consoles, roomy())
    }

    /// The same, for callers that these know.
    pub fn lending_to(
        world: &World,
        who: Vec<Arc<dyn Authenticator>>,
        consoles: Arc<dyn ConsoleHub>,
    ) -> Face {
        let nobody = Courier::new(Rules::default(), CallLimits::default(), Arc::new(SystemNames), false);
        Face::whole(world, Authenticators::new(who), Arc::new(nobody), consoles, roomy())
    }

    /// The API over this world, for callers that these know, whose logins may end.
    pub fn knowing(world: &World, who: Authenticators) -> Face {
        let nobody = Courier::new(Rules::default(), CallLimits::default(), Arc::new(SystemNames), false);
        Face::whole(world, who, Arc::new(nobody), Arc::new(NoConsoles), roomy())
    }

    /// The API over this world, which calls others by this courier.
    pub fn calling(world: &World, who: Vec<Arc<dyn Authenticator>>, courier: Arc<Courier>) -> Face {
        Face::whole(world, Authenticators::new(who), courier, Arc::new(NoConsoles), roomy())
    }

    /// The API over this world, for callers that these know, within these limits.
    pub fn within(world: &World, who: Vec<Arc<dyn Authenticator>>, limits: LimitsConfig) -> Face {
        let nobody = Courier::new(Rules::default(), CallLimits::default(), Arc::new(SystemNames), false);
        Face::whole(world, Authenticators::new(who), Arc::new(nobody), Arc::new(NoConsoles), limits)
    }

    fn whole(
        world: &World,
        authenticators: Authenticators,
        courier: Arc<Courier>,
        consoles: Arc<dyn ConsoleHub>,
        shares: LimitsConfig,
    ) -> Face {
        let folder = tempfile::tempdir().unwrap();
        let limits = Limits { max_file_size_bytes: 1 << 20, ..Limits::default() };
        let blobs = Blobs::open(folder.path(), limits, world.store.env().clone()).unwrap();
        let metrics = Metrics::new();
        let router = rest::router(RestContext {
            store: world.store.clone(),
            authenticators: authenticators.with_browsers(&world.store),
            blobs,
            consoles,
            courier,
            limits: RestLimits::default(),
            gate: Gate::new(shares, world.store.env()),
            regulars: Regulars::new(world.store.env()),
            joining: Joining { root_sha256: Arc::new(|| "ab".repeat(32)), server: "127.0.0.1:7443".into() },
            metrics: metrics.clone(),
        });
        Face { router, metrics, blobs: folder.path().to_owned(), _folder: folder }
    }

    /// What serves it.
    pub fn router(&self) -> Router {
        self.router.clone()
    }

    /// One request with these headers, just as they are.
    pub async fn raw(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Reply {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body.into()).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap().to_vec();
        let json = serde_json::from_slice(&bytes).unwrap_or_default();
        Reply { status, headers, bytes, json }
    }

    /// The operator's open stream of this path; its head must be a 200.
    pub async fn stream(&self, path: &str, more: &[(&str, &str)]) -> BodyDataStream {
        let bearer = format!("Bearer {TOKEN}");
        let is_operator = more.iter().all(|(name, _)| *name != "authorization");
        let own = is_operator.then_some(("authorization", bearer.as_str()));
        self.streamed(path, &own.into_iter().chain(more.iter().copied()).collect::<Vec<_>>()).await
    }

    /// The open stream of this path, asked for with these headers, just as they are.
    pub async fn streamed(&self, path: &str, headers: &[(&str, &str)]) -> BodyDataStream {
        let mut request = Request::builder().uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        response.into_body().into_data_stream()
    }

    /// One request of the operator with these headers; JSON if there is a body.
    pub async fn with(&self, method: &str, path: &str, more: &[(&str, &str)], body: Value) -> Reply {
        let bearer = format!("Bearer {TOKEN}");
        let mut headers = vec![("authorization", bearer.as_str())];
        headers.extend(more);
        if body.is_null() {
            return self.raw(method, path, &headers, Body::empty()).await;
        }
        if !more.iter().any(|(name, _)| *name == "content-type") {
            headers.push(("content-type", "application/json"));
        }
        self.raw(method, path, &headers, body.to_string()).await
    }

    /// One request of the operator.
    pub async fn call(&self, method: &str, path: &str, body: Value) -> Reply {
        self.with(method, path, &[], body).await
    }

    /// A GET of the operator.
    pub async fn get(&self, path: &str) -> Reply {
        self.call("GET", path, Value::Null).await
    }
}

impl Reply {
    /// The value of a header; empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Itself, if it is this problem and in good form.
    pub fn is_problem(self, status: u16, word: &str) -> Reply {
        assert_eq!(self.status, status, "{:#}", self.json);
        assert_eq!(self.header("content-type"), "application/problem+json", "{:#}", self.json);
        assert_eq!(self.json["type"], format!("/problems/{word}"), "{:#}", self.json);
        assert_eq!(self.json["status"], status);
        assert_eq!(self.json["request_id"], self.header("x-request-id"));
        assert!(self.json["title"].is_string() && self.json["detail"].is_string(), "{:#}", self.json);
        assert!(self.json["errors"].is_array(), "{:#}", self.json);
        self
    }

    /// Itself, if it has this status.
    pub fn is(self, status: u16) -> Reply {
        assert_eq!(self.status, status, "{:#}", self.json);
        self
    }

    /// The fields that it complains of.
    pub fn fields(&self) -> Vec<String> {
        let errors = self.json["errors"].as_array().cloned().unwrap_or_default();
        errors.iter().filter_map(|error| error["field"].as_str().map(str::to_owned)).collect()
    }
}
