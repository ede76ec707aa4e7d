//! `list`: what a page costs in a small table and in a large one, by the pages of 8 KiB that PostgreSQL looks at.
//!
//! An index of a million rows is a level or two higher than one of a thousand, and each descent looks at one page
//! per level: nothing that reads by index is without that. So these, and nothing else, are taken off: for each index,
//! how often it was descended (`idx_scan`) times the levels by which it is higher (`bt_metap`); both are shown.
//! A page whose filters no single index answers looks at a window of at most 2,000; it is compared with a table in
//! which that window is full, and which nobody would rather read as a whole.

mod cases;
mod meter;

use anyhow::Result;
use rhyzome_tests::world::{Engine, World};
use xtask::bench::figure::{Figure, load, number};
use xtask::progress::Progress;

use crate::clients::Question;
use crate::fill;
use crate::served::Served;
use cases::{CASES, Case, Place};
use meter::{Cost, Meter};

/// How much more a page may cost in the large table.
const RATIO: f64 = 1.1;
/// The rows of a page may begin and end within a page of the table and a leaf of the index, where they filled whole
/// ones in the small table: one more of each. It is taken off.
const CUTS: f64 = 2.0;
/// The small table.
const SMALL: u64 = 1000;
/// One in which every case's window is full, and looking through it is less than reading the whole table.
const WINDOWS: u64 = 200_000;
/// Pages that are asked for to know their times.
const TIMED: usize = 2000;

/// Measures; answers all figures.
pub async fn run(rows: u64) -> Result<Vec<Figure>> {
    anyhow::ensure!(rows > WINDOWS, "`--rows` must be more than {WINDOWS}: that is what it is compared with");
    let progress = Progress::start("bench list");
    let world = World::durable(Engine::Postgres).await;
    let served = Served::api(&world)?;
    let mut meter = Meter::start(&world, &served).await?;
    let mut at = Vec::new();
    let mut times = Vec::new();
    let mut present = 0;
    for size in [SMALL, WINDOWS, rows] {
        let filling = Progress::bar("bench list: fills the tables");
        fill::crowd(&world, present, size, &filling).await?;
        filling.done(&format!("{size} instances"));
        present = size;
        let mut costs = Vec::new();
        for case in CASES {
            progress.step(&format!("{size} instances: {}", case.name));
            let mut pages = Vec::new();
            for place in case.places {
                pages.push(meter.cost(&world, &case.path(*place, size)).await?);
            }
            costs.push(pages);
        }
        at.push(costs);
        times.push(p99(&served, size).await?);
    }
    progress.done(&format!("load {}", load()));
    let mut figures: Vec<Figure> = CASES
        .iter()
        .enumerate()
        .map(|(nth, case)| {
            let small = if case.window { &at[1][nth] } else { &at[0][nth] };
            figure(case, small, &at[2][nth])
        })
        .collect();
    figures.push(
        Figure::new("a page of 100: p99 with 64 clients", times[2], "ms")
            .beside(format!("{} at {SMALL} rows", number(times[0], "ms"))),
    );
    Ok(figures)
}

/// The worst of a case's pages.
fn figure(case: &Case, small: &[Cost], large: &[Cost]) -> Figure {
    let base = if case.window { WINDOWS } else { SMALL };
    let mut worst = f64::NEG_INFINITY;
    let mut told = Vec::new();
    for ((place, small), large) in case.places.iter().zip(small).zip(large) {
        let levels = large.extra_levels(small);
        worst = worst.max((large.buffers - levels - CUTS) / small.buffers);
        let (large, small) = (large.buffers, small.buffers);
        told.push(format!("{} {large:.0} less {levels:.0} and {CUTS:.0} / {small:.0}", place.word()));
    }
    Figure::new(&format!("{}: buffers", case.name), worst, "")
        .beside(format!("{} at {base} rows", told.join("; ")))
        .at_most(RATIO)
}

async fn p99(served: &Served, rows: u64) -> Result<f64> {
    let pages: Vec<String> = [Place::First, Place::Middle, Place::Last]
        .iter()
        .flat_map(|place| CASES.iter().filter(|case| case.timed).map(|case| case.path(*place, rows)))
        .collect();
    let pages = std::sync::Arc::new(move |nth: usize| Question::get(pages[nth % pages.len()].clone()));
    let asked = served.clients(TIMED).ask(pages).await?;
    Ok(asked.p99())
}
