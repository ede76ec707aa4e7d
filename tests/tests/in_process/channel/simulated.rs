//! Simulated nodes at a real door: the production link, ledger and owner of `rhyzome-agent simulate`, over mutual TLS.

use std::path::Path;

use rhyzome_agent::simulate::{Command, Simulation, Size, read};
use rhyzome_api::jobs;
use rhyzome_api::store::Asked;
use rhyzome_tests::on_both;
use rhyzome_tests::wait::until;
use rhyzome_tests::world::World;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::harness::Cluster;

on_both!(
    simulated_nodes_join_obey_step_by_step_and_are_the_same_after_a_restart,
    what_fails_on_simulated_nodes_is_told_and_mended,
    all_nodes_come_back_once_when_the_server_restarts,
    nodes_of_a_server_that_ends_go_to_another,
);

const SIZE: Size = Size { vcpus: 8, memory_bytes: 1 << 34, disk_bytes: 1 << 40 };

/// Invites nodes of these names, and opens a simulation of them.
async fn simulation(cluster: &Cluster, state: &Path, names: &[&str]) -> Simulation {
    simulation_at(cluster, state, names, None).await
}

async fn simulation_at(cluster: &Cluster, state: &Path, names: &[&str], servers: Option<&str>) -> Simulation {
    let mut lines = String::new();
    for name in names {
        let node = cluster.make_node(name).await;
        let token = cluster.invite(&node, 60).await;
        lines += &format!("rhyzome-agent join --server {} --name {name} --token {token}\n", cluster.address);
    }
    Simulation::open(state, read(&lines).unwrap(), None, servers, SIZE).await.unwrap()
}

fn tell(simulation: &mut Simulation, line: &str) -> String {
    simulation.obey(&line.parse::<Command>().unwrap()).unwrap()
}

/// Looks after jobs until it is dropped.
fn runner(cluster: &Cluster) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(jobs::run(cluster.store().clone(), CancellationToken::new())))
}

async fn is(cluster: &Cluster, tenant: &str, kind: &str, name: &str, phase: &str) {
    let (right, of) = (cluster.world.right(tenant), cluster.world.kind(kind));
    until(&format!("{name} is {phase}"), 60, async || {
        let object = cluster.store().get(&right, of, name).await.ok()?;
        (object.core.phase == phase).then_some(())
    })
    .await;
}

async fn step(simulation: &mut Simulation) -> String {
    until("something that waits", 60, async || {
        let gone = tell(simulation, "step");
        (gone != "nothing waits").then_some(gone)
    })
    .await
}

async fn simulated_nodes_join_obey_step_by_step_and_are_the_same_after_a_restart(world: World) {
    let cluster = Cluster::start(world).await;
    let _runner = runner(&cluster);
    let state = cluster.folder.path().join("simulated");
    let mut simulation = simulation(&cluster, &state, &["sim-1", "sim-2"]).await;
    simulation.start().await.unwrap();
    for name in ["sim-1", "sim-2"] {
        is(&cluster, "", "node", name, "ready").await;
    }
    let (right, kind) = (cluster.world.right(""), cluster.world.kind("node"));
    let node = cluster.store().get(&right, kind, "sim-1").await.unwrap();
    assert_eq!((&node.status["simulated"], &node.status["hostname"]), (&json!(true), &json!("sim-1")));
    assert_eq!(node.status["accelerator"], "simulated");

    // One thing after the other, and each when it is told.
    cluster.world.make_image("", "tiny").await;
    tell(&mut simulation, "hold");
    cluster.world.make("default", "instance", "one", json!({"image": "tiny"})).await;
    let mut done = Vec::new();
    while !done.iter().any(|what: &String| what.contains(" Start ")) {
        done.push(step(&mut simulation).await);
    }
    let of = |word: &str| done.iter().position(|what| what.contains(word)).unwrap();
    assert!(of("FetchImage") < of("ApplyDisk") && of("ApplyDisk") < of("Start"), "{done:?}");
    assert!(of("ApplyNetwork") < of("Start") && done.len() == 4, "{done:?}");
    is(&cluster, "default", "instance", "one", "running").await;

    // Started again on the same folder they are the same nodes, and hold what they held.
    drop(simulation);
    is(&cluster, "", "node", "sim-1", "offline").await;
    let mut simulation = Simulation::open(&state, vec![], None, None, SIZE).await.unwrap();
    simulation.start().await.unwrap();
    assert_eq!(simulation.members().count(), 2);
    is(&cluster, "", "node", "sim-1", "ready").await;
    until("both connected, and four things held", 60, async || {
        let shown = tell(&mut simulation, "show");
        let all = shown.starts_with("nodes 2\nrunning 2\nconnected 2\nsessions 2\norders 4\n");
        (all && shown.contains("\nchanges 4\n")).then_some(())
    })
    .await;
    is(&cluster, "default", "instance", "one", "running").await;

    let kind = cluster.world.kind("instance");
    let right = cluster.world.right("default");
    cluster.store().remove(&right, kind, "one", None, &Asked::default()).await.unwrap();
    until("the end of the instance", 60, async || {
        cluster.store().get(&right, kind, "one").await.is_err().then_some(())
    })
    .await;
    // A node keeps an image as long as there is one.
    let (right, kind) = (cluster.world.right(""), cluster.world.kind("image"));
    cluster.store().remove(&right, kind, "tiny", None, &Asked::default()).await.unwrap();
    until("nothing left on the nodes", 60, async || {
        tell(&mut simulation, "show").contains("\norders 0\n").then_some(())
    })
    .await;
}

async fn what_fails_on_simulated_nodes_is_told_and_mended(world: World) {
    let cluster = Cluster::start(world).await;
    let _runner = runner(&cluster);
    let state = cluster.folder.path().join("simulated");
    let mut simulation = simulation(&cluster, &state, &["sim-1"]).await;
    simulation.start().await.unwrap();
    is(&cluster, "", "node", "sim-1", "ready").await;
    cluster.world.make_image("", "tiny").await;
    tell(&mut simulation, "fail disk");
    cluster.world.make("default", "instance", "one", json!({"image": "tiny"})).await;
    until("the failure in the order's state", 60, async || {
        let said = cluster.world.ask("SELECT message FROM assignment").await;
        said.iter().any(|row| row[0].contains("simulated: whatever is done to a disk fails")).then_some(())
    })
    .await;
    tell(&mut simulation, "mend");
    is(&cluster, "default", "instance", "one", "running").await;

    // A guest outlives the agent, not the machine: that one is started again.
    tell(&mut simulation, "drop sim-1");
    until("a session again", 60, async || {
        tell(&mut simulation, "show").contains("connected 1").then_some(())
    })
    .await;
    tell(&mut simulation, "stop all");
    is(&cluster, "", "node", "sim-1", "offline").await;
    let nobody = simulation.obey(&"stop nobody".parse().unwrap()).unwrap_err().to_string();
    assert!(nobody.contains("\"nobody\""), "{nobody}");
    let started = async || {
        let (right, kind) = (cluster.world.right("default"), cluster.world.kind("instance"));
        let one = cluster.store().get(&right, kind, "one").await.unwrap();
        one.status["started_at"].clone()
    };
    let before = started().await;
    tell(&mut simulation, "slow 10ms");
    tell(&mut simulation, "reboot sim-1");
    is(&cluster, "", "node", "sim-1", "ready").await;
    until("another boot of the guest", 60, async || {
        let now = started().await;
        (now != before && !now.is_null()).then_some(())
    })
    .await;
    is(&cluster, "default", "instance", "one", "running").await;
}

async fn all_are_connected(simulation: &mut Simulation, sessions: usize) {
    let nodes = simulation.members().count();
    let wanted = format!("\nconnected {nodes}\nsessions {sessions}\n");
    until(&wanted, 60, async || tell(simulation, "show").contains(&wanted).then_some(())).await;
}

async fn all_nodes_come_back_once_when_the_server_restarts(world: World) {
    let mut cluster = Cluster::start(world).await;
    let names: Vec<String> = (1..=24).map(|number| format!("sim-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut simulation = simulation(&cluster, &cluster.folder.path().join("simulated"), &names).await;
    simulation.start().await.unwrap();
    all_are_connected(&mut simulation, 24).await;
    cluster.shut().await;
    cluster.open().await;
    all_are_connected(&mut simulation, 48).await;
    for name in names {
        is(&cluster, "", "node", name, "ready").await;
    }
}

async fn nodes_of_a_server_that_ends_go_to_another(world: World) {
    let mut cluster = Cluster::start(world).await;
    let other = cluster.beside("other").await;
    let servers = format!("{},{}", cluster.address, other.address);
    let names: Vec<String> = (1..=12).map(|number| format!("sim-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let state = cluster.folder.path().join("simulated");
    let mut simulation = simulation_at(&cluster, &state, &names, Some(&servers)).await;
    simulation.start().await.unwrap();
    all_are_connected(&mut simulation, 12).await;
    cluster.shut().await;
    until("all at the other server", 60, async || {
        let at = cluster.world.ask("SELECT server FROM node_state WHERE connected = 1").await;
        (at.len() == 12 && at.iter().all(|row| row[0] == "other")).then_some(())
    })
    .await;
    // The row is there before the node has heard of it.
    until("all to know it", 60, async || {
        tell(&mut simulation, "show").contains("\nconnected 12\n").then_some(())
    })
    .await;
}
