//! A few dozen seeds of the simulation: `cargo xtask sim --seeds N` runs as many as one likes.

use rhyzome_tests::sim::run;

const STEPS: u32 = 300;

#[tokio::test]
async fn dozens_of_seeds_end_well() {
    let mut faults = 0;
    for seed in 1..=30 {
        let story = run(seed, STEPS).await;
        faults += story.faults.values().sum::<u64>();
        assert!(story.found.is_empty(), "seed {seed}: {:#?}\n{:#?}", story.found, story.last);
    }
    assert!(faults > 200, "too little went wrong: {faults}");
}

#[tokio::test]
async fn the_same_seed_does_the_same() {
    let (one, two, other) = (run(7, STEPS).await, run(7, STEPS).await, run(8, STEPS).await);
    assert_eq!(one.trace, two.trace);
    assert_ne!(one.trace, other.trace);
}
