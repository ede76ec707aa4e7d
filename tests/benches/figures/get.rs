//! `get`: one object over HTTP, beside a handler of a few lines that reads the same row by its primary key.

use std::sync::Arc;

use anyhow::Result;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use rhyzome_tests::world::{Engine, World};
use serde_json::{Value, json};
use sqlx::Row as _;
use sqlx::postgres::{PgPool, PgPoolOptions, PgRow};
use xtask::bench::figure::{Figure, load, median, number};
use xtask::progress::Progress;

use crate::clients::{Question, Questions};
use crate::counts::Counter;
use crate::fill;
use crate::served::Served;

/// The least share of a bare handler's rate.
const RATIO: f64 = 0.7;
/// How many instances there are.
const ROWS: u64 = 1000;
/// How often both are measured, in turn.
const PAIRS: usize = 7;
/// How often each is asked in one measurement.
const QUESTIONS: usize = 20_000;
/// As many connections as the store opens.
const CONNECTIONS: u32 = 16;

/// Measures; answers all figures.
pub async fn run() -> Result<Vec<Figure>> {
    let progress = Progress::start("bench get");
    let world = World::durable(Engine::Postgres).await;
    fill::crowd(&world, 0, ROWS, &progress).await?;
    let (ours, bare) = (Served::api(&world)?, Served::bare(handler(&world).await?)?);
    let mut figures = beside_bare(&ours, &bare, &progress).await?;
    progress.step("statements of one GET");
    let mut counter = Counter::start(&world).await?;
    ours.clients(1000).ask(questions("/v1/tenants/default/instances")).await?;
    let counts = counter.read().await?;
    figures.push(counts.figure("GET: statements", 1000.0).at_most(1.0));
    drop((ours, bare, counter));
    progress.step("SQLite");
    let world = World::durable(Engine::Sqlite).await;
    fill::crowd(&world, 0, ROWS, &progress).await?;
    let ours = Served::api(&world)?;
    let asked = ours.clients(QUESTIONS).ask(questions("/v1/tenants/default/instances")).await?;
    figures.push(
        Figure::new("GET on SQLite", asked.rate(), "/s").beside(format!("p99 {}", number(asked.p99(), "ms"))),
    );
    progress.done(&format!("load {}", load()));
    Ok(figures)
}

async fn beside_bare(ours: &Served, bare: &Served, progress: &Progress) -> Result<Vec<Figure>> {
    let (mut rates, mut floors, mut ratios, mut p99) = (vec![], vec![], vec![], vec![]);
    // The first time warms up both.
    for pair in 0..=PAIRS {
        progress.step(&format!("pair {pair} of {PAIRS}"));
        let theirs = bare.clients(QUESTIONS).ask(questions("/bare")).await?;
        let asked = ours.clients(QUESTIONS).ask(questions("/v1/tenants/default/instances")).await?;
        if pair > 0 {
            ratios.push(asked.rate() / theirs.rate());
            rates.push(asked.rate());
            floors.push(theirs.rate());
            p99.push(asked.p99());
        }
    }
    Ok(vec![
        Figure::new("GET on PostgreSQL / bare handler", median(&ratios), "")
            .beside(format!("{} beside {}", number(median(&rates), "/s"), number(median(&floors), "/s")))
            .at_least(RATIO),
        Figure::new("GET on PostgreSQL: p99 with 64 clients", median(&p99), "ms"),
    ])
}

/// Every second one of a crowd is the default tenant's: these, in turn.
fn questions(below: &'static str) -> Questions {
    Arc::new(move |number| {
        let nth = 2 * (number as u64 % (ROWS / 2)) + 2;
        Question::get(format!("{below}/{}", fill::id(nth)))
    })
}

// === the peer ===

/// What anybody would write who wants nothing but this.
async fn handler(world: &World) -> Result<Router> {
    let pool = PgPoolOptions::new().max_connections(CONNECTIONS);
    let pool = pool.connect_with(world.postgres_options()).await?;
    Ok(Router::new().route("/bare/{id}", get(one)).with_state(pool))
}

async fn one(State(pool): State<PgPool>, Path(id): Path<String>) -> Result<Json<Value>, StatusCode> {
    let sql = "SELECT id, kind, tenant, name, tags, metadata, generation, version, phase, protected, spec, status, \
               job, created_at, updated_at, deleted_at FROM resource WHERE id = $1";
    let row = sqlx::query(sql).bind(id).fetch_optional(&pool).await.map_err(|_| StatusCode::BAD_GATEWAY)?;
    let row = row.ok_or(StatusCode::NOT_FOUND)?;
    shown(&row).map(Json).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

fn shown(row: &PgRow) -> Result<Value> {
    let json = |name| -> Result<Value> { Ok(serde_json::from_str(row.try_get(name)?)?) };
    Ok(json!({
        "id": row.try_get::<&str, _>("id")?,
        "kind": row.try_get::<&str, _>("kind")?,
        "tenant": row.try_get::<&str, _>("tenant")?,
        "name": row.try_get::<&str, _>("name")?,
        "tags": json("tags")?,
        "metadata": json("metadata")?,
        "generation": row.try_get::<i64, _>("generation")?,
        "version": row.try_get::<i64, _>("version")?,
        "phase": row.try_get::<&str, _>("phase")?,
        "protected": row.try_get::<i64, _>("protected")? != 0,
        "spec": json("spec")?,
        "status": json("status")?,
        "job": row.try_get::<Option<&str>, _>("job")?,
        "created_at": row.try_get::<i64, _>("created_at")?,
        "updated_at": row.try_get::<i64, _>("updated_at")?,
        "deleted_at": row.try_get::<Option<i64>, _>("deleted_at")?,
    }))
}
