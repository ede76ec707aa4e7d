//! Real QEMU under the owner: started, left alone by a dying agent, found again, brought back, stopped, gone.
#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

mod node;

use node::Node;
use rhyzome_proto::v1::{Power, ReportState, StopMode};
use std::time::Duration;

/// What the boot sector prints.
const MARKER: &str = "RZ";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_lives_its_life() {
    let mut node = Node::new();
    let mut agent = node.start_agent();
    for order in [node.image(), node.disk(4 << 20), node.instance(|_| {})] {
        agent.order(order).await;
    }
    let first = agent.power("running").await;
    assert_eq!((first.restarts, first.boot_epoch, first.accelerator.as_str()), (0, 1, "tcg"));
    node.wait_for("the guest's marker", || node.console().contains(MARKER)).await;
    assert_eq!(node.capabilities_of(first.pid), "0000000000000000");
    assert!(node.file("command").contains("-sandbox on,obsolete=deny"));

    // The agent dies; the guest does not notice; the next agent finds it.
    agent.kill();
    let mut agent = node.start_agent();
    let adopted = agent.power("running").await;
    assert_eq!((adopted.pid, adopted.started_at_ms), (first.pid, first.started_at_ms));

    // QEMU dies: seen at once, brought back, counted.
    let killed_at = std::time::Instant::now();
    node.kill_qemu(first.pid);
    let back = agent.instance(|report| report.pid != first.pid && report.power == "running").await;
    assert!(killed_at.elapsed() < Duration::from_secs(5), "{:?}", killed_at.elapsed());
    assert_eq!(back.restarts, 1);

    // It ignores the power button, so a graceful stop becomes a hard one.
    let stop = node.instance(|order| order.power = Power::Off.into());
    agent.order(stop).await;
    agent.power("stopping").await;
    let stopped = agent.power("stopped").await;
    assert_eq!(stopped.pid, 0);
    agent.order(node.instance(|order| order.boot_epoch = 2)).await;
    let again = agent.instance(|report| report.power == "running" && report.boot_epoch == 2).await;
    assert_eq!(again.restarts, 0);

    // Pause and resume, and a disk that grows under the guest.
    agent.order(node.instance(|order| order.power = Power::Paused.into())).await;
    agent.power("paused").await;
    agent.order(node.instance(|order| order.power = Power::On.into())).await;
    agent.power("running").await;
    agent.order(node.disk(8 << 20)).await;
    agent.disk_size(8 << 20).await;

    for id in [node::INSTANCE, node::DISK, node::IMAGE] {
        agent.order(node.removal(id)).await;
    }
    for id in [node::INSTANCE, node::DISK, node::IMAGE] {
        agent.state(id, ReportState::Gone).await;
    }
    assert_eq!(node.left_behind(), Vec::<String>::new());
    agent.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_qemu_that_cannot_start_is_a_failure_with_its_own_words() {
    let mut node = Node::new();
    let mut agent = node.start_agent();
    node.drop_in("-device\nno-such-device\n");
    for order in [node.image(), node.disk(4 << 20), node.instance(|_| {})] {
        agent.order(order).await;
    }
    let failed = agent.state(node::INSTANCE, ReportState::Failed).await;
    assert!(failed.message.contains("no-such-device"), "{}", failed.message);
    assert!(!failed.permanent);
    node.drop_in("# nothing\n");
    let running = agent.power("running").await;
    assert_eq!(running.restarts, 0, "what never ran was not brought back");
    agent
        .order(node.instance(|order| {
            order.power = Power::Off.into();
            order.stop_mode = StopMode::Hard.into();
        }))
        .await;
    agent.power("stopped").await;
    agent.kill();
}

/// With a network: from orders that arrive together to a QEMU that runs, and nothing left of it afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_on_a_network_starts_fast_and_leaves_nothing() {
    let mut node = Node::new();
    let mut agent = node.start_agent();
    agent.order(node.image()).await;
    agent.order(node.network()).await;
    agent.state(node::IMAGE, ReportState::Applied).await;
    agent.state(node::NETWORK, ReportState::Applied).await;
    let mut figures = Vec::new();
    for _ in 0..5 {
        let ordered_at = std::time::SystemTime::now();
        agent.order(node.disk(4 << 20)).await;
        agent.order(node.instance(node::with_nic)).await;
        agent.power("running").await;
        figures.push(node.exec_time().duration_since(ordered_at).unwrap_or_default());
        let namespace = agent.state(node::NETWORK, ReportState::Applied).await;
        assert!(namespace.rendered.values().any(|text| text.contains("10.77.0.5")), "{namespace:?}");
        agent.order(node.removal(node::INSTANCE)).await;
        agent.order(node.removal(node::DISK)).await;
        agent.state(node::INSTANCE, ReportState::Gone).await;
        agent.state(node::DISK, ReportState::Gone).await;
    }
    figures.sort();
    println!("orders to exec: median {:?}, all {figures:?}", figures[figures.len() / 2]);
    for id in [node::NETWORK, node::IMAGE] {
        agent.order(node.removal(id)).await;
        agent.state(id, ReportState::Gone).await;
    }
    assert_eq!(node.left_behind(), Vec::<String>::new());
    assert!(!node.namespace_exists());
    agent.kill();
}
