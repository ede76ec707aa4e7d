//! Real QEMU under the owner: started, left alone by a dying agent, found again, brought back, stopped, gone.
#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

mod node;

use node::Node;
use rhyzome_proto::v1::{Order, Power, ReportState, StopMode};
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

/// QEMU's own tool compares what a guest would read.
fn is_same(a: &std::path::Path, b: &std::path::Path) -> bool {
    let mut compare = std::process::Command::new("qemu-img");
    // Read beside a guest that has it open, and does not write to it.
    compare.args(["compare", "-U", "-q", "-f", "qcow2", "-F", "qcow2"]).args([a, b]);
    compare.status().unwrap().success()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_is_copied_under_its_guest_and_beside_it() {
    let mut node = Node::new();
    let mut agent = node.start_agent();
    for order in [node.image(), node.disk(4 << 20), node.instance(|_| {})] {
        agent.order(order).await;
    }
    let running = agent.power("running").await;
    node.wait_for("the guest's marker", || node.console().contains(MARKER)).await;

    agent.order(node.snapshot("snap_open", 0)).await;
    let open = agent.snapshot("snap_open").await;
    let file = node.snapshot_file("snap_open");
    assert_eq!(open.sha256, rhyzome_pki::sha256_hex(&std::fs::read(&file).unwrap()));
    assert_eq!(open.virtual_size_bytes, 4 << 20);
    assert!(is_same(&file, &node.disk_file()));
    // Nothing of it stays in QEMU, and the guest has not noticed.
    agent.order(node.snapshot("snap_again", 0)).await;
    agent.snapshot("snap_again").await;
    assert_eq!(agent.power("running").await.pid, running.pid);

    // One that is asked for too late is not taken; one that is there stays what it is.
    agent.order(node.snapshot("snap_late", 1)).await;
    let late = agent.state("snap_late", ReportState::Failed).await;
    assert!(late.permanent && late.message.contains("snapshot-late"), "{}", late.message);
    agent.kill();
    let mut agent = node.start_agent();
    assert_eq!(agent.snapshot("snap_open").await, open);

    // Without a guest.
    agent
        .order(node.instance(|order| {
            order.power = Power::Off.into();
            order.stop_mode = StopMode::Hard.into();
        }))
        .await;
    agent.power("stopped").await;
    agent.order(node.snapshot("snap_closed", 0)).await;
    agent.snapshot("snap_closed").await;
    assert!(is_same(&node.snapshot_file("snap_closed"), &file));

    // Its file is gone: told, and not made up.
    std::fs::remove_file(&file).unwrap();
    let lost = agent.state("snap_open", ReportState::Failed).await;
    assert!(lost.message.contains("snapshot-gone") && !lost.permanent, "{}", lost.message);
    assert!(!file.exists());

    let snapshots = ["snap_open", "snap_again", "snap_late", "snap_closed"];
    for id in snapshots.into_iter().chain([node::INSTANCE, node::DISK, node::IMAGE]) {
        agent.order(node.removal(id)).await;
        agent.state(id, ReportState::Gone).await;
    }
    assert_eq!(node.left_behind(), Vec::<String>::new());
    agent.kill();
}

/// Taken away while it is copied: under a guest, which goes on, and beside it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_given_up() {
    const SIZE: usize = 48 << 20;
    let mut node = Node::of_size(SIZE);
    let mut agent = node.start_agent();
    for order in [node.image(), node.disk(SIZE as u64), node.instance(|_| {})] {
        agent.order(order).await;
    }
    let running = agent.power("running").await;
    node.wait_for("the guest's marker", || node.console().contains(MARKER)).await;
    for open in [true, false] {
        let part = node.snapshot_part("snap_1");
        agent.order(node.snapshot("snap_1", 0)).await;
        node.wait_for("a copy that was begun", || part.exists()).await;
        // As a server takes it back: of what it is is said again.
        agent.order(Order { remove: true, ..node.snapshot("snap_1", 0) }).await;
        agent.state("snap_1", ReportState::Gone).await;
        assert!(!part.exists() && !node.snapshot_file("snap_1").exists());
        // Nothing is in the way of the next one.
        agent.order(node.snapshot("snap_2", 0)).await;
        agent.snapshot("snap_2").await;
        assert!(is_same(&node.snapshot_file("snap_2"), &node.disk_file()));
        agent.order(node.removal("snap_2")).await;
        agent.state("snap_2", ReportState::Gone).await;
        if open {
            assert_eq!(agent.power("running").await.pid, running.pid);
            agent
                .order(node.instance(|order| {
                    order.power = Power::Off.into();
                    order.stop_mode = StopMode::Hard.into();
                }))
                .await;
            agent.power("stopped").await;
        }
    }
    for id in [node::INSTANCE, node::DISK, node::IMAGE] {
        agent.order(node.removal(id)).await;
        agent.state(id, ReportState::Gone).await;
    }
    assert_eq!(node.left_behind(), Vec::<String>::new());
    agent.kill();
}

/// Two of one disk at once, one after the other in QEMU; and one whose guest is restarted while it is copied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_come_to_their_end_whatever_happens() {
    const SIZE: usize = 48 << 20;
    let mut node = Node::of_size(SIZE);
    let mut agent = node.start_agent();
    for order in [node.image(), node.disk(SIZE as u64), node.instance(|_| {})] {
        agent.order(order).await;
    }
    agent.power("running").await;
    let snapshots = ["snap_1", "snap_2", "snap_3"];
    for order in [node.snapshot("snap_1", 0), node.snapshot("snap_2", 0)] {
        agent.order(order).await;
    }
    for id in ["snap_1", "snap_2"] {
        agent.snapshot(id).await;
    }
    let part = node.snapshot_part("snap_3");
    agent.order(node.snapshot("snap_3", 0)).await;
    node.wait_for("a copy that was begun", || part.exists()).await;
    agent
        .order(node.instance(|order| {
            order.boot_epoch = 2;
            order.stop_mode = StopMode::Hard.into();
        }))
        .await;
    agent.instance(|report| report.power == "running" && report.boot_epoch == 2).await;
    agent.snapshot("snap_3").await;
    for id in snapshots {
        assert!(is_same(&node.snapshot_file(id), &node.disk_file()), "{id}");
    }
    for id in snapshots.into_iter().chain([node::INSTANCE, node::DISK, node::IMAGE]) {
        agent.order(node.removal(id)).await;
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
