//! `streams`: what a thousand readers of the event log cost the database beside one, for the same writes.
//!
//! Each write is waited for until every reader has it, so that both times there are as many appends to the log.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, HOST};
use hyper_util::rt::TokioIo;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rhyzome_tests::world::{Engine, World};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use xtask::bench::figure::{Figure, load, median, number};
use xtask::progress::Progress;

use crate::clients::Outcome;
use crate::counts::{Counter, Counts};
use crate::keys;
use crate::served::{Served, keep_log};

/// How much more the database may be asked.
const RATIO: f64 = 1.05;
const READERS: usize = 1000;
/// How often it is written while they read.
const WRITES: usize = 100;
/// How often both are measured, in turn.
const PAIRS: usize = 3;
/// How long a write may take to reach all of them.
const PATIENCE: Duration = Duration::from_secs(30);

/// Measures; answers all figures.
pub async fn run() -> Result<Vec<Figure>> {
    let progress = Progress::start("bench streams");
    enough_connections()?;
    let world = World::durable(Engine::Postgres).await;
    let stop = CancellationToken::new();
    keep_log(&world, &stop)?;
    let served = Served::api(&world)?;
    let mut counter = Counter::start(&world).await?;
    // The first time warms up.
    let mut round = 0;
    let mut with = async |readers: usize| {
        round += 1;
        progress.step(&format!("{readers} reader(s), round {round} of {}", 2 * PAIRS + 1));
        read_along(&served, &mut counter, readers, round).await
    };
    with(1).await?;
    let (mut ratios, mut few, mut many, mut times) = (vec![], vec![], vec![], vec![]);
    for _ in 0..PAIRS {
        let (one, _) = with(1).await?;
        let (all, took) = with(READERS).await?;
        ratios.push(all.calls / one.calls);
        few.push(one.calls);
        many.push(all.calls);
        times.push(took.p99());
    }
    stop.cancel();
    progress.done(&format!("load {}", load()));
    let writes = WRITES as f64;
    Ok(vec![
        Figure::new(&format!("statements with {READERS} readers / with one"), median(&ratios), "")
            .beside(format!(
                "{} beside {} per write, the write's own and the log's among them",
                number(median(&many) / writes, ""),
                number(median(&few) / writes, "")
            ))
            .at_most(RATIO),
        Figure::new(&format!("POST until all {READERS} have it: p99"), median(&times), "ms")
            .beside("appends are gathered for 25 ms"),
    ])
}

/// A thousand readers have two ends each in this process.
fn enough_connections() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if most < 4096 {
        bail!("{READERS} readers need 4,096 open files: raise the limit (`ulimit -Hn`)");
    }
    Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?)
}

/// Writes while so many read: what the database was asked for it, and how long it took until all had each.
async fn read_along(
    served: &Served,
    counter: &mut Counter,
    readers: usize,
    round: usize,
) -> Result<(Counts, Outcome)> {
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let mut seen = Vec::new();
    for _ in 0..readers {
        let (tell, told) = watch::channel(0);
        let (connection, body) = open(served).await?;
        let reading = stop.clone().run_until_cancelled_owned(read(connection, body, tell));
        tasks.spawn(reading);
        seen.push(told);
    }
    counter.again().await?;
    let since = std::time::Instant::now();
    let mut times = Vec::with_capacity(WRITES);
    for write in 0..WRITES {
        let begun = std::time::Instant::now();
        let asked = served.clients(1);
        let asked = crate::clients::Clients { at_once: 1, expects: 201, ..asked };
        asked.ask(keys::made(format!("r{round}w{write}"))).await?;
        for told in &mut seen {
            let all = tokio::time::timeout(PATIENCE, told.wait_for(|seen| *seen > write)).await;
            all.context("an event does not come")?.context("a stream has ended")?;
        }
        times.push(xtask::bench::figure::ms(begun.elapsed()));
    }
    let outcome = Outcome { seconds: since.elapsed().as_secs_f64(), times };
    let counts = counter.read().await?;
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    Ok((counts, outcome))
}

type Connection = SendRequest<Empty<Bytes>>;

/// A stream of what happens from now on.
async fn open(served: &Served) -> Result<(Connection, Incoming)> {
    let stream = TcpStream::connect(served.address).await?;
    let (mut connection, driver) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(driver);
    let request = Request::builder()
        .uri("/v1/tenants/default/events")
        .header(HOST, served.address.to_string())
        .header(AUTHORIZATION, format!("Bearer {}", served.token))
        .body(Empty::new())?;
    let response = connection.send_request(request).await?;
    if response.status() != 200 {
        bail!("the stream answers {}", response.status());
    }
    Ok((connection, response.into_body()))
}

/// Counts the creations that it hears of.
async fn read(_connection: Connection, mut body: Incoming, tell: watch::Sender<usize>) {
    let mut rest = String::new();
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(bytes) = frame.into_data() else { continue };
        rest.push_str(&String::from_utf8_lossy(&bytes));
        while let Some((event, behind)) = rest.split_once("\n\n") {
            if event.contains("\"verb\":\"create\"") && event.contains("\"outcome\":\"done\"") {
                tell.send_modify(|seen| *seen += 1);
            }
            rest = behind.to_owned();
        }
    }
}
