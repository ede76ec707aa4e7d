//! `jobs`: the queue, with jobs that do nothing: what is measured is what a job costs by itself. It is taken, its step
//! is done and written down, it ends, whoever waits for it is woken, its object gets its phase, and the end is in the
//! event log.
//!
//! The peer is graphile-worker with its defaults, on the same server, in turn: a backlog of the same length, from the
//! start of the worker until nothing is left.

mod peer;
mod queue;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rhyzome_api::jobs;
use rhyzome_tests::wait::until;
use rhyzome_tests::world::{Engine, World};
use sqlx::{Connection as _, PgConnection};
use tokio_util::sync::CancellationToken;
use xtask::bench::figure::{Figure, load, median, number};
use xtask::progress::Progress;

use crate::counts::Counter;
use crate::fill;
use crate::served::keep_log;
use peer::Peer;
use queue::Queue;

/// How many jobs a backlog has.
const JOBS: u64 = 20_000;
const ROUNDS: usize = 3;
/// Jobs one after the other, for what one alone costs.
const ALONE: u64 = 50;
const COMMITS_ALONE: f64 = 3.0;
const COMMITS_IN_BULK: f64 = 0.1;
/// The least of its own rate that is left while a transaction is held open.
const HELD_RATIO: f64 = 0.95;
/// For how long it is.
const HELD: Duration = Duration::from_secs(150);

/// Measures; answers all figures.
pub async fn run() -> Result<Vec<Figure>> {
    let progress = Progress::start("bench jobs");
    progress.step("installs graphile-worker");
    let world = World::durable(Engine::Postgres).await;
    let peer = Peer::install(&world).await?;
    fill::crowd(&world, 0, JOBS, &progress).await?;
    let stop = CancellationToken::new();
    keep_log(&world, &stop)?;
    let mut queue = Queue::new(&world);
    let mut counter = Counter::start(&world).await?;
    progress.step("one alone");
    let alone = alone(&world, &mut queue, &mut counter).await?;
    tokio::spawn(jobs::run(world.store.clone(), stop.clone()));
    let (mut ours, mut theirs, mut ratios, mut commits) = (vec![], vec![], vec![], vec![]);
    for round in 1..=ROUNDS {
        progress.step(&format!("round {round} of {ROUNDS}: {JOBS} jobs, and as many of graphile-worker's"));
        counter.again().await?;
        let rate = drained(&world, &mut queue).await?;
        commits.push(counter.read().await?.commits / JOBS as f64);
        let peers = peer.drained(&world, JOBS).await?;
        ratios.push(rate / peers);
        ours.push(rate);
        theirs.push(peers);
    }
    let held = while_held(&world, &mut queue, &progress).await?;
    stop.cancel();
    progress.done(&format!("load {}", load()));
    Ok(vec![
        Figure::new("commits of a job alone", alone, "")
            .beside(format!("median over {ALONE}: that which brings it, its own, that of the log"))
            .at_most(COMMITS_ALONE),
        Figure::new("commits of a job in bulk", median(&commits), "")
            .beside(format!("{JOBS} jobs, those of the log among them"))
            .at_most(COMMITS_IN_BULK),
        Figure::new("jobs per second / graphile-worker's", median(&ratios), "")
            .beside(format!(
                "{} beside {} per second",
                number(median(&ours).round(), ""),
                number(median(&theirs).round(), "")
            ))
            .at_least(1.0),
        Figure::new("jobs per second with a transaction held open / without", held.last / median(&ours), "")
            .beside(format!(
                "{} per second at last, after {} s and {} jobs",
                number(held.last.round(), ""),
                held.seconds,
                held.jobs
            ))
            .at_least(HELD_RATIO),
    ])
}

/// Commits for each of some jobs that come one after the other.
async fn alone(world: &World, queue: &mut Queue, counter: &mut Counter) -> Result<f64> {
    let mut each = Vec::new();
    for _ in 0..ALONE {
        counter.again().await?;
        queue.add(1).await;
        jobs::look(&world.store).await?;
        ensure!(queue.is_drained().await, "the job has not ended");
        until("the log has the end of the job", 10, async || {
            world.ask("SELECT number FROM event LIMIT 1").await.is_empty().then_some(())
        })
        .await;
        each.push(counter.read().await?.commits);
    }
    Ok(median(&each))
}

/// Jobs per second, from when a whole backlog is there until it is done.
async fn drained(world: &World, queue: &mut Queue) -> Result<f64> {
    queue.add(JOBS).await;
    let since = Instant::now();
    while !queue.is_drained().await {
        ensure!(since.elapsed() < Duration::from_secs(300), "the queue is stuck");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let seconds = since.elapsed().as_secs_f64();
    world.sql("VACUUM (ANALYZE) job, job_step, event, resource").await;
    Ok(JOBS as f64 / seconds)
}

struct Held {
    last: f64,
    seconds: u64,
    jobs: u64,
}

/// The rate when a transaction has been open for minutes that may yet want to see everything.
async fn while_held(world: &World, queue: &mut Queue, progress: &Progress) -> Result<Held> {
    let mut conn = PgConnection::connect_with(&world.postgres_options()).await?;
    let mut open = conn.begin().await?;
    sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").execute(&mut *open).await?;
    sqlx::query("SELECT count(*) FROM meta").execute(&mut *open).await?;
    let (since, mut rates) = (Instant::now(), Vec::new());
    while since.elapsed() < HELD || rates.len() < ROUNDS {
        progress.step(&format!("a transaction is held open for {} s", since.elapsed().as_secs()));
        rates.push(drained(world, queue).await?);
    }
    let jobs = JOBS * rates.len() as u64;
    open.rollback().await?;
    Ok(Held { last: median(&rates[rates.len() - ROUNDS..]), seconds: since.elapsed().as_secs(), jobs })
}
