//! `create-rate`: acknowledged creates of instances, beside a bare sqlx transaction that writes the same rows.
//!
//! Nodes are rows that nobody speaks for: what is measured is the control plane. Jobs are looked at and the event log
//! is written meanwhile, as in a server. Both sides have as many connections to PostgreSQL and as many clients at
//! once, and write in turn. The floor has no API, no validation and no log; one statement for each row.

mod bare;
mod cost;

use std::sync::Arc;

use anyhow::Result;
use hyper::Method;
use rhyzome_api::jobs;
use rhyzome_tests::world::{Engine, World};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use xtask::bench::figure::{Figure, load, median, number};
use xtask::progress::Progress;

use crate::clients::{Clients, Outcome, Question};
use crate::fill;
use crate::served::{Served, keep_log};
use bare::Bare;
use cost::Meter;

/// The least that the rate may be of that of the bare transaction.
const RATIO: f64 = 0.6;
/// How much more a create may cost in the large table.
const GROWTH: f64 = 1.05;
const TENANTS: usize = 64;
const NODES: usize = 200;
/// How many are made in a round, and how often both sides have one.
const CREATES: usize = 2000;
const ROUNDS: usize = 3;
/// Creates one after the other, for what each of them costs.
const COUNTED: usize = 300;
/// The small table.
const SMALL: u64 = 1000;
/// What nothing else on a node takes.
const PLENTY: u64 = 1 << 45;

/// What is made where.
pub struct Ground {
    world: World,
    tenants: Vec<String>,
    networks: Vec<String>,
    nodes: Vec<String>,
}

/// Measures; answers all figures.
pub async fn run(rows: u64) -> Result<Vec<Figure>> {
    let progress = Progress::start("bench create-rate");
    progress.step(&format!("makes {TENANTS} tenants and {NODES} nodes"));
    let ground = Ground::new().await?;
    let served = Served::api(&ground.world)?;
    let clients = Clients { expects: 202, ..served.clients(CREATES) };
    let mut made = Made { round: 0 };
    fill::crowd(&ground.world, 0, SMALL, &progress).await?;
    // Nobody looks at jobs yet and the log is not written: its sample is whole.
    made.some(&ground, &clients, COUNTED, TENANTS).await?;
    let bare = Bare::of(&ground).await?;
    let stop = CancellationToken::new();
    keep_log(&ground.world, &stop)?;
    tokio::spawn(jobs::run(ground.world.store.clone(), stop.clone()));
    let mut meter = Meter::start(&ground.world).await?;
    progress.step(&format!("counts what a create costs beside {SMALL} others"));
    let small = meter.cost(&ground, &mut made, &clients, COUNTED).await?;
    let (mut ours, mut floor, mut ratios, mut p99) = (vec![], vec![], vec![], vec![]);
    for round in 1..=ROUNDS {
        progress
            .step(&format!("round {round} of {ROUNDS}: {CREATES} creates, and as many bare transactions"));
        let created = made.some(&ground, &clients, CREATES, TENANTS).await?;
        let written = bare.write(round, CREATES).await?;
        ratios.push(created.rate() / written);
        ours.push(created.rate());
        floor.push(written);
        p99.push(created.p99());
    }
    progress.step("one tenant alone");
    let alone = made.some(&ground, &clients, CREATES, 1).await?;
    let present = SMALL;
    let filling = Progress::bar("bench create-rate: fills the tables");
    fill::crowd(&ground.world, present, rows, &filling).await?;
    filling.done(&format!("{rows} instances"));
    progress.step(&format!("counts what a create costs beside {rows} others"));
    let large = meter.cost(&ground, &mut made, &clients, COUNTED).await?;
    let beside_many = made.some(&ground, &clients, CREATES, TENANTS).await?;
    stop.cancel();
    progress.done(&format!("load {}", load()));
    let mut figures = vec![
        Figure::new("acknowledged creates / bare transactions", median(&ratios), "")
            .beside(format!(
                "{} beside {} per second; {} rows in {} statements are bare",
                number(median(&ours).round(), ""),
                number(median(&floor).round(), ""),
                bare.rows(),
                bare.statements()
            ))
            .at_least(RATIO),
        Figure::new("acknowledged creates per second", median(&ours).round(), "")
            .beside(format!("the aim is 1500; p99 {} with 64 clients", number(median(&p99), "ms"))),
        Figure::new("the same with one tenant", alone.rate().round(), ""),
        Figure::new(&format!("the same beside {rows} others"), beside_many.rate().round(), ""),
    ];
    figures.extend(cost::figures(&small, &large, SMALL, rows, GROWTH));
    Ok(figures)
}

/// Makes instances with names of their own.
pub struct Made {
    round: usize,
}

impl Made {
    /// So many, for so many tenants in turn.
    pub async fn some(
        &mut self,
        ground: &Ground,
        clients: &Clients,
        many: usize,
        tenants: usize,
    ) -> Result<Outcome> {
        self.round += 1;
        let (round, names) = (self.round, ground.tenants.clone());
        let questions = Arc::new(move |nth: usize| Question {
            method: Method::POST,
            path: format!("/v1/tenants/{}/instances", names[nth % tenants]),
            body: json!({
                "name": format!("made-{round:04}-{nth:06}"),
                "spec": {"image": "tiny", "nics": {"lan": {"network": "lan"}}},
            })
            .to_string(),
        });
        Clients { questions: many, ..clients.clone() }.ask(questions).await
    }
}

impl Ground {
    async fn new() -> Result<Ground> {
        let world = World::durable(Engine::Postgres).await;
        world.make_image("", "tiny").await;
        let (mut tenants, mut networks, mut nodes) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..TENANTS {
            let tenant = format!("bench{number:03}");
            world.make("", "tenant", &tenant, json!({})).await;
            let network = world.make(&tenant, "network", "lan", json!({"cidr": "10.0.0.0/8"})).await;
            networks.push(network.object.core.id);
            tenants.push(tenant);
        }
        for number in 0..NODES {
            let node = world.make_node(&format!("node{number:03}"), PLENTY).await;
            let more = json!({"vcpus": 1_000_000, "disk_bytes": PLENTY});
            world.store.record_node_status(&node, more).await?;
            nodes.push(node);
        }
        Ok(Ground { world, tenants, networks, nodes })
    }
}
