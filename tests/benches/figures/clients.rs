//! Many clients at once, each with a connection that it keeps, in a thread of their own. They ask a bounded number
//! of times, the next as soon as the answer before is whole, and keep how long each took.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use xtask::bench::figure::{ms, percentile};

/// What is asked.
pub struct Question {
    pub method: Method,
    pub path: String,
    /// JSON; empty: none.
    pub body: String,
}

/// Which question comes as the n-th.
pub type Questions = Arc<dyn Fn(usize) -> Question + Send + Sync>;

/// Who asks, whom, and how often.
#[derive(Clone)]
pub struct Clients {
    pub server: SocketAddr,
    /// Shown with each question.
    pub token: String,
    /// How many ask at the same time.
    pub at_once: usize,
    /// How many questions there are together.
    pub questions: usize,
    /// The only status that is right.
    pub expects: u16,
}

/// How it went.
pub struct Outcome {
    /// From the first question to the last answer.
    pub seconds: f64,
    /// Of each question, in milliseconds.
    pub times: Vec<f64>,
}

impl Question {
    /// A GET.
    pub fn get(path: String) -> Question {
        Question { method: Method::GET, path, body: String::new() }
    }
}

impl Outcome {
    /// Answers per second.
    #[allow(clippy::cast_precision_loss, reason = "so many are never asked")]
    pub fn rate(&self) -> f64 {
        self.times.len() as f64 / self.seconds
    }

    /// The time, in milliseconds, that 99 of 100 do not take longer than.
    pub fn p99(&self) -> f64 {
        percentile(&self.times, 99.0)
    }
}

impl Clients {
    /// Asks all of it.
    pub async fn ask(&self, questions: Questions) -> Result<Outcome> {
        let all = self.clone();
        let asking = tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(all.ask_here(questions))
        });
        asking.await.context("the clients came to no end")?
    }

    async fn ask_here(self, questions: Questions) -> Result<Outcome> {
        let mut connected = Vec::new();
        for _ in 0..self.at_once {
            connected.push(connect(self.server).await?);
        }
        let (next, me) = (Arc::new(AtomicUsize::new(0)), Arc::new(self));
        let since = Instant::now();
        let asking: Vec<_> = connected
            .into_iter()
            .map(|connection| tokio::spawn(one(connection, me.clone(), questions.clone(), next.clone())))
            .collect();
        let mut times = Vec::with_capacity(me.questions);
        for client in asking {
            times.extend(client.await.context("a client came to no end")??);
        }
        Ok(Outcome { seconds: since.elapsed().as_secs_f64(), times })
    }
}

type Connection = SendRequest<Full<Bytes>>;

async fn connect(server: SocketAddr) -> Result<Connection> {
    let stream = TcpStream::connect(server).await.with_context(|| format!("{server} does not answer"))?;
    stream.set_nodelay(true)?;
    let (connection, driver) = handshake(TokioIo::new(stream)).await?;
    // It ends with the connection.
    tokio::spawn(driver);
    Ok(connection)
}

/// One of the clients: as long as there is a question.
async fn one(
    mut connection: Connection,
    clients: Arc<Clients>,
    questions: Questions,
    next: Arc<AtomicUsize>,
) -> Result<Vec<f64>> {
    let host = HeaderValue::from_str(&clients.server.to_string())?;
    let bearer = HeaderValue::from_str(&format!("Bearer {}", clients.token))?;
    let mut times = Vec::new();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= clients.questions {
            return Ok(times);
        }
        let Question { method, path, body } = questions(number);
        let mut request = Request::builder().method(method).uri(&path);
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        let request = request.header(HOST, host.clone()).header(AUTHORIZATION, bearer.clone());
        let request = request.body(Full::new(Bytes::from(body)))?;
        let since = Instant::now();
        connection.ready().await?;
        let response = connection.send_request(request).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        times.push(ms(since.elapsed()));
        if status != clients.expects {
            bail!("{path} answers {status}: {}", String::from_utf8_lossy(&body));
        }
        ensure!(!body.is_empty() || status == 204, "{path} answers nothing");
    }
}
