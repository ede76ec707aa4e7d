//! Draining a node: what can move is moved, what cannot is stopped or named; it can be cancelled. The auditor looks
//! after each.

use rhyzome_api::kernel::resource::Call;
use rhyzome_api::kernel::{Clash, Error};
use rhyzome_api::store::{Asked, Written};
use rhyzome_tests::audit::audit;
use rhyzome_tests::life::{Ask, Run};
use rhyzome_tests::node::SimNode;
use rhyzome_tests::world::Engine;
use serde_json::json;

/// Tests on both databases, each in a world with two nodes and a shared pool.
macro_rules! on_each {
    ($($name:ident),* $(,)?) => {
        mod sqlite { $(#[tokio::test] async fn $name() { super::$name(super::begin(super::Engine::Sqlite).await).await; })* }
        mod postgres { $(#[tokio::test] async fn $name() { super::$name(super::begin(super::Engine::Postgres).await).await; })* }
    };
}

on_each!(
    what_can_move_is_moved,
    what_cannot_is_named_or_stopped,
    no_room_says_why_not,
    cancelled_it_is_open_again,
    while_its_agent_is_away,
);

async fn begin(engine: Engine) -> Run {
    let mut run = Run::new(engine, rhyzome_api::resources::registry().get("instance").unwrap()).await;
    run.world
        .make("", "storage-pool", "everywhere", json!({"driver": "dir", "path": "/srv/all", "shared": true}))
        .await;
    run.ask(&Ask::Make("network", "lan".into(), json!({}))).await;
    run
}

async fn second_node(run: &mut Run, memory_bytes: u64) {
    let id = run.world.make_node("n2", memory_bytes).await;
    let mut node = SimNode::new(&id, &run.time);
    node.connect(&run.store).await.unwrap();
    run.nodes.push(node);
}

/// An instance whose disk is on all nodes, or only on the first.
async fn instance(run: &mut Run, name: &str, shared: bool) -> String {
    let mut spec = json!({"image": "tiny", "nics": {"lan": {"network": "lan"}}});
    if shared {
        spec["root"] = json!({"pool": "everywhere"});
    }
    run.ask(&Ask::Make("instance", name.into(), spec)).await;
    run.quiet().await;
    run.id("instance", name).await.unwrap()
}

async fn drain(run: &Run, hard: bool) -> Result<Written, Error> {
    let call = Call { verb: "drain".into(), hard, ..Call::default() };
    let (right, kind) = (run.world.right(""), run.world.kind("node"));
    run.store.act(&right, kind, "n1", call, false, None, &Asked::default()).await
}

async fn phase(run: &Run, name: &str) -> String {
    let right = run.world.right("default");
    run.store.get(&right, run.world.kind("instance"), name).await.unwrap().core.phase
}

async fn cordoned(run: &Run) -> bool {
    let node = run.store.get(&run.world.right(""), run.world.kind("node"), "n1").await.unwrap();
    node.spec["cordoned"] == true
}

fn runs_on(run: &Run, index: usize, id: &str) -> bool {
    run.nodes[index].world.instances.get(id).is_some_and(|instance| instance.process.is_some())
}

async fn fine(run: &Run) {
    let found = audit(&run.world, &run.nodes).await;
    assert!(found.is_empty(), "{found:#?}");
}

async fn what_can_move_is_moved(mut run: Run) {
    let web = instance(&mut run, "web", true).await;
    let off = instance(&mut run, "off", true).await;
    run.ask(&Ask::Act("instance", "off".into(), "stop".into())).await;
    run.quiet().await;
    second_node(&mut run, 1 << 40).await;
    let before = run.store.get(&run.world.right("default"), run.world.kind("instance"), &web).await.unwrap();
    let drained = drain(&run, false).await.unwrap();
    assert_eq!(drained.object.core.phase, "draining");
    let job = drained.job.unwrap();
    let shown = run.store.job(&run.world.right(""), &job).await.unwrap();
    assert!(shown.steps[0].message.contains("of 2 are done"), "{:?}", shown.steps);
    run.quiet().await;
    assert_eq!(run.store.job(&run.world.right(""), &job).await.unwrap().state, "done");
    assert!(runs_on(&run, 1, &web) && !runs_on(&run, 0, &web));
    assert_eq!((phase(&run, "web").await, phase(&run, "off").await), ("running".into(), "stopped".into()));
    let after = run.store.get(&run.world.right("default"), run.world.kind("instance"), &web).await.unwrap();
    assert_eq!(after.claims["node"], json!(run.nodes[1].id));
    assert_eq!(after.claims["nics.lan.address"], before.claims["nics.lan.address"], "it keeps its address");
    assert!(cordoned(&run).await);
    assert!(!run.nodes[0].holds().contains(&off));
    fine(&run).await;
    // Nothing keeps the empty node now.
    run.ask(&Ask::Remove("instance", "web".into())).await;
    run.ask(&Ask::Remove("instance", "off".into())).await;
    run.quiet().await;
    fine(&run).await;
    run.store
        .remove(&run.world.right(""), run.world.kind("node"), "n1", None, &Asked::default())
        .await
        .unwrap();
}

async fn what_cannot_is_named_or_stopped(mut run: Run) {
    let local = instance(&mut run, "local", false).await;
    let web = instance(&mut run, "web", true).await;
    second_node(&mut run, 1 << 40).await;
    let Err(Error::Clash(Clash::WrongState(why))) = drain(&run, false).await else { panic!() };
    assert!(why.contains("`local` (its disk `local-root` is only on this node)"), "{why}");
    assert!(!cordoned(&run).await, "what is refused changes nothing");
    drain(&run, true).await.unwrap();
    run.quiet().await;
    assert_eq!((phase(&run, "local").await, phase(&run, "web").await), ("stopped".into(), "running".into()));
    assert!(!runs_on(&run, 0, &local) && runs_on(&run, 1, &web));
    fine(&run).await;
    // Again: there is nothing left to do.
    let again = drain(&run, false).await.unwrap();
    assert_eq!(run.store.job(&run.world.right(""), &again.job.unwrap()).await.unwrap().state, "done");
}

async fn no_room_says_why_not(mut run: Run) {
    instance(&mut run, "web", true).await;
    second_node(&mut run, 64 << 20).await;
    let Err(Error::Clash(Clash::NoCapacity(table))) = drain(&run, false).await else { panic!() };
    let lines: Vec<_> =
        table.iter().map(|line| format!("{}: {}", line.node, line.reasons.join(", "))).collect();
    let text = lines.join("; ");
    assert!(text.contains("n1: it is cordoned") && text.contains("n2") && text.contains("memory"), "{text}");
    assert_eq!(phase(&run, "web").await, "running");
    drain(&run, true).await.unwrap();
    run.quiet().await;
    assert_eq!(phase(&run, "web").await, "stopped");
    fine(&run).await;
}

async fn cancelled_it_is_open_again(mut run: Run) {
    instance(&mut run, "local", false).await;
    let job = drain(&run, true).await.unwrap().job.unwrap();
    assert!(cordoned(&run).await);
    let right = run.world.right("");
    let cancelled = run.store.cancel_job(&right, &job).await.unwrap();
    assert_eq!(cancelled.state, "cancelled");
    assert!(!cordoned(&run).await);
    run.quiet().await;
    fine(&run).await;
    let node = run.store.get(&right, run.world.kind("node"), "n1").await.unwrap();
    assert_eq!(node.core.phase, "ready");
    // One that was cordoned before stays so.
    run.ask(&Ask::Patch("node", "n1".into(), json!({"spec": {"cordoned": true}}))).await;
    run.ask(&Ask::Act("instance", "local".into(), "start".into())).await;
    run.quiet().await;
    let job = drain(&run, true).await.unwrap().job.unwrap();
    run.store.cancel_job(&right, &job).await.unwrap();
    assert!(cordoned(&run).await);
    run.quiet().await;
    fine(&run).await;
}

/// Nothing runs twice: what cannot be taken from where it is is not made elsewhere.
async fn while_its_agent_is_away(mut run: Run) {
    let web = instance(&mut run, "web", true).await;
    second_node(&mut run, 1 << 40).await;
    run.nodes[0].lose();
    drain(&run, false).await.unwrap();
    for _ in 0..20 {
        rhyzome_tests::drive::calm(&run.store, &mut run.nodes).await.unwrap();
        assert!(!runs_on(&run, 1, &web), "it runs on both");
        run.time.pass(17);
    }
    let store = run.store.clone();
    run.nodes[0].connect(&store).await.unwrap();
    run.quiet().await;
    assert!(runs_on(&run, 1, &web) && !runs_on(&run, 0, &web));
    fine(&run).await;
}
