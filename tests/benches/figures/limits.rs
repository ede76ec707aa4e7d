//! `limits`: how long a quiet tenant's questions take while another asks a hundred times its share, beside how long they
//! take when nobody else asks.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, HOST};
use hyper_util::rt::TokioIo;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rhyzome_api::limits::LimitsConfig;
use rhyzome_tests::door::Door;
use rhyzome_tests::face::{Face, roomy};
use rhyzome_tests::people::known;
use rhyzome_tests::world::{Engine, World};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until};
use xtask::bench::figure::{Figure, load, median, ms, number, percentile};
use xtask::progress::Progress;

/// How much a flood may move another's p99.
const RATIO: f64 = 1.2;
/// How often the flood asks, of its share.
const TIMES: u32 = 100;
/// How many ask in the flood, over how many connections each.
const CROWD: (usize, usize) = (4, 200);
/// How often the quiet one asks.
const QUIET: Duration = Duration::from_millis(12);
/// How long each is measured, and how often both are, in turn.
const TIME: Duration = Duration::from_secs(10);
const PAIRS: usize = 5;
/// How long all of them have to connect, which is not measured.
const CONNECTING: Duration = Duration::from_secs(2);

/// Somebody who asks, whether they are answered or not.
#[derive(Clone)]
struct Asker {
    server: SocketAddr,
    token: String,
    path: String,
    each: Duration,
    /// When the first question is due: not all ask in the same moment.
    after: Duration,
}

/// How it went.
#[derive(Default)]
struct Outcome {
    /// Of each question that was answered well, in milliseconds.
    times: Vec<f64>,
    refused: usize,
    cut_off: usize,
}

/// Measures; answers all figures.
pub async fn run() -> Result<Vec<Figure>> {
    let progress = Progress::start("bench limits");
    // Each connection has two ends in this process.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let mut figures = Vec::new();
    for (engine, name) in [(Engine::Postgres, "PostgreSQL"), (Engine::Sqlite, "SQLite")] {
        figures.extend(on(engine, name, &progress).await?);
    }
    progress.done(&format!("load {}", load()));
    Ok(figures)
}

async fn on(engine: Engine, name: &str, progress: &Progress) -> Result<Vec<Figure>> {
    let world = World::durable(engine).await;
    let who = known();
    let easy = Face::within(&world, who.clone(), roomy());
    world.make("", "tenant", "quiet", json!({})).await;
    world.make("", "tenant", "loud", json!({})).await;
    world.make("quiet", "network", "net", json!({})).await;
    world.make("loud", "network", "net", json!({})).await;
    let limits = LimitsConfig::default();
    let face = Face::within(&world, who, limits.clone());
    let door = Door::open(face.router());
    let asker = async |person: &str, tenant: &str, each| -> Result<Asker> {
        easy.member(tenant, person, "owner").await;
        let made = easy
            .by(person, "POST", "/v1/tokens", json!({ "name": format!("of-{person}"), "spec": {} }))
            .await;
        let token = made.json["secrets"]["token"].as_str();
        let token = token.with_context(|| format!("no token was made: {:#}", made.json))?.to_owned();
        Ok(Asker {
            server: door.address,
            token,
            path: format!("/v1/tenants/{tenant}/networks/net"),
            each,
            after: Duration::ZERO,
        })
    };
    let quiet = vec![asker("quentin", "quiet", QUIET).await?];
    // Each connection asks so often that they do so a hundred times as often together as they may.
    let (people, connections) = CROWD;
    let each = limits.tenant.rate.each * u32::try_from(people * connections)? / TIMES;
    let mut crowd = Vec::new();
    for person in 0..people {
        crowd.extend(vec![asker(&format!("lola{person}"), "loud", each).await?; connections]);
    }
    let count = u32::try_from(crowd.len())?;
    for (one, number) in crowd.iter_mut().zip(0..) {
        one.after = each * number / count;
    }
    let (mut ratios, mut alone, mut beside) = (vec![], vec![], vec![]);
    let mut flood = Outcome::default();
    // The first time warms up.
    for pair in 0..=PAIRS {
        progress.step(&format!("{name}: pair {pair} of {PAIRS}"));
        let still = ask(quiet.clone()).await?;
        let (loud, pressed) = tokio::join!(ask(crowd.clone()), ask(quiet.clone()));
        let (loud, pressed) = (loud?, pressed?);
        ensure!(
            still.refused + pressed.refused + still.cut_off + pressed.cut_off == 0,
            "the quiet one was refused"
        );
        if pair > 0 {
            ratios.push(p99(&pressed) / p99(&still));
            alone.push(p99(&still));
            beside.push(p99(&pressed));
        }
        flood = loud;
    }
    let a_second = |count: usize| number(count as f64 / TIME.as_secs_f64(), "/s");
    Ok(vec![
        Figure::new(&format!("{name}: p99 of a GET beside a flood / alone"), median(&ratios), "")
            .beside(format!("{} beside {}", number(median(&beside), "ms"), number(median(&alone), "ms")))
            .at_most(RATIO),
        Figure::new(
            &format!("{name}: served of the flood"),
            flood.times.len() as f64 / TIME.as_secs_f64(),
            "/s",
        )
        .beside(format!("{} refused, {} cut off", a_second(flood.refused), a_second(flood.cut_off))),
    ])
}

fn p99(outcome: &Outcome) -> f64 {
    percentile(&outcome.times, 99.0)
}

/// All of them, in a thread of their own.
async fn ask(all: Vec<Asker>) -> Result<Outcome> {
    let asking = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let begin = Instant::now() + CONNECTING;
            let asking: Vec<_> = all.into_iter().map(|one| tokio::spawn(one.ask(begin))).collect();
            let mut whole = Outcome::default();
            for one in asking {
                let one = one.await.context("a client came to no end")??;
                whole.times.extend(one.times);
                whole.refused += one.refused;
                whole.cut_off += one.cut_off;
            }
            anyhow::Ok(whole)
        })
    });
    asking.await.context("the clients came to no end")?
}

impl Asker {
    async fn dial(&self) -> Result<SendRequest<Empty<Bytes>>> {
        let stream = TcpStream::connect(self.server).await?;
        stream.set_nodelay(true)?;
        let (connection, driver) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(driver);
        Ok(connection)
    }

    /// From `begin`, when all are connected: a question each time that one is due, or as soon as the answer before is
    /// there; its time begins when it was due. It does not listen when it is told to come again later, and comes back
    /// when it is cut off.
    async fn ask(self, begin: Instant) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let mut connection = Some(self.dial().await?);
        let (mut due, end) = (begin + self.after, begin + TIME);
        loop {
            sleep_until(due.min(end)).await;
            if Instant::now() >= end {
                return Ok(outcome);
            }
            let since = due;
            due += self.each;
            let Ok(open) = (match connection.take() {
                Some(open) => Ok(open),
                None => self.dial().await,
            }) else {
                outcome.cut_off += 1;
                sleep(self.each).await;
                continue;
            };
            match self.one(open).await {
                Ok((200, open)) => {
                    outcome.times.push(ms(since.elapsed()));
                    connection = Some(open);
                }
                Ok((status, open)) => {
                    ensure!(matches!(status, 429 | 503), "{} answers {status}", self.path);
                    outcome.refused += 1;
                    connection = Some(open);
                }
                Err(_) => outcome.cut_off += 1,
            }
        }
    }

    async fn one(
        &self,
        mut connection: SendRequest<Empty<Bytes>>,
    ) -> Result<(u16, SendRequest<Empty<Bytes>>)> {
        connection.ready().await?;
        let request = Request::get(&self.path)
            .header(HOST, "bench")
            .header(AUTHORIZATION, format!("Bearer {}", self.token))
            .body(Empty::new())?;
        let answer = connection.send_request(request).await?;
        let status = answer.status().as_u16();
        answer.into_body().collect().await?;
        Ok((status, connection))
    }
}
