//! Lets a world run until nothing happens any more, by a clock that only moves when nothing else does.

use rhyzome_api::jobs;
use rhyzome_api::kernel::Error;
use rhyzome_api::store::Store;

use crate::given::Time;
use crate::node::SimNode;
use crate::world::World;

/// How far the clock goes on when all wait for it: less than any deadline, more than a look again.
const STEP_SECONDS: i64 = 17;
/// After so many steps what has not ended is stuck: more than the longest deadline.
const STEPS: usize = 260;
/// Rounds without the clock moving that are a loop without an end.
const ROUNDS: usize = 500;

/// One round: each job that is due, then each node. True: something happened.
pub async fn round(store: &Store, nodes: &mut [SimNode]) -> Result<bool, Error> {
    jobs::look_in_turn(store).await?;
    let mut busy = false;
    for node in nodes {
        busy |= node.turn(store).await?;
    }
    Ok(busy)
}

/// Rounds until nothing happens at this moment.
pub async fn calm(store: &Store, nodes: &mut [SimNode]) -> Result<(), Error> {
    for _ in 0..ROUNDS {
        if !round(store, nodes).await? {
            return Ok(());
        }
    }
    panic!("the same happens over and over");
}

/// Jobs that have not ended.
pub async fn open_jobs(world: &World) -> Vec<Vec<String>> {
    let sql = "SELECT j.id, j.verb, j.state, r.name, r.id, j.step, j.awaits FROM job j JOIN resource r ON r.id = j.resource \
               WHERE j.finished_at IS NULL ORDER BY j.id";
    world.ask(sql).await
}

/// Until all jobs have ended and the nodes are at rest. What is answered is stuck, more than an hour later.
pub async fn settle(
    world: &World,
    store: &Store,
    nodes: &mut [SimNode],
    time: &Time,
) -> Result<Vec<Vec<String>>, Error> {
    for _ in 0..STEPS {
        calm(store, nodes).await?;
        if open_jobs(world).await.is_empty() {
            return Ok(Vec::new());
        }
        time.pass(STEP_SECONDS);
    }
    Ok(open_jobs(world).await)
}
