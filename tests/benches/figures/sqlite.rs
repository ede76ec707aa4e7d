//! `sqlite`: writes that are on the disk when they are answered, beside what the same disk can do one at a time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rhyzome_api::store::{Asked, NewObject};
use rhyzome_tests::world::{Engine, World};
use xtask::bench::figure::{Figure, load, median, ms, number};
use xtask::progress::Progress;

use crate::clients::{Clients, Outcome};
use crate::disk;
use crate::keys;
use crate::served::{AT_ONCE, Served};

/// How many writes there are for one time that the disk says "done".
const RATIO: f64 = 10.0;
/// How often all is measured, in turn.
const ROUNDS: usize = 5;
/// How many are made in one measurement.
const WRITES: usize = 10_000;
/// How long the disk is measured.
const DISK: Duration = Duration::from_secs(2);

/// Measures; answers all figures.
pub async fn run() -> Result<Vec<Figure>> {
    let progress = Progress::start("bench sqlite");
    let world = World::durable(Engine::Sqlite).await;
    let served = Served::api(&world)?;
    let (mut ratios, mut rates, mut rest, mut floors, mut p99) = (vec![], vec![], vec![], vec![], vec![]);
    for round in 0..ROUNDS {
        progress.step(&format!("round {} of {ROUNDS}", round + 1));
        let floor = disk::syncs_per_second(world.folder(), DISK)?;
        let stored = in_the_store(&world, round).await?;
        let clients = Clients { expects: 201, ..served.clients(WRITES) };
        let asked = clients.ask(keys::made(format!("rest{round}"))).await?;
        ratios.push(stored.rate() / floor);
        p99.push(stored.p99());
        rates.push(stored.rate());
        rest.push(asked.rate());
        floors.push(floor);
    }
    progress.done(&format!("load {}", load()));
    let floor = number(median(&floors), "/s");
    Ok(vec![
        Figure::new("durable creates on SQLite / fdatasync", median(&ratios), "")
            .beside(format!("{} beside {floor}", number(median(&rates), "/s")))
            .at_least(RATIO),
        Figure::new("durable creates on SQLite: p99 with 64 clients", median(&p99), "ms"),
        Figure::new("durable creates on SQLite over REST", median(&rest), "/s").beside(floor),
    ])
}

/// Creates by as many callers, without HTTP.
async fn in_the_store(world: &World, round: usize) -> Result<Outcome> {
    let since = Instant::now();
    let callers: Vec<_> = (0..AT_ONCE)
        .map(|caller| {
            let world = world.clone();
            tokio::spawn(async move {
                let (right, kind) = (world.right("default"), world.kind("ssh-key"));
                let mut times = Vec::new();
                for number in (caller..WRITES).step_by(AT_ONCE) {
                    let name = Some(format!("store{round}-{number}"));
                    let body = NewObject { name, spec: keys::spec(), ..NewObject::default() };
                    let begun = Instant::now();
                    world.store.create(&right, kind, body, &Asked::default()).await?;
                    times.push(ms(begun.elapsed()));
                }
                anyhow::Ok(times)
            })
        })
        .collect();
    let mut times = Vec::with_capacity(WRITES);
    for caller in callers {
        times.extend(caller.await.context("a caller came to no end")??);
    }
    Ok(Outcome { seconds: since.elapsed().as_secs_f64(), times })
}
