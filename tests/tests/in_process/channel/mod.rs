//! The door and the link, together: joining, sessions, orders, revocation, streams; on both databases.
mod blobs;
mod drift;
mod fuzz;
mod harness;
mod hostile;
mod lent;
mod matrix;
mod metrics;
mod ordered;
mod raw;
mod revoke;
mod rotation;
mod simulated;
mod skew;

use harness::{Agent, Cluster, Ledger};
use rhyzome_agent::enroll::Joined;
use rhyzome_agent::env::Env;
use rhyzome_agent::identity::IdentityFolder;
use rhyzome_agent::link::LinkEvent;
use rhyzome_api::store::Asked;
use rhyzome_proto::v1::{NodeStatus, Report, ReportState};
use rhyzome_tests::on_both;
use rhyzome_tests::wait::until;
use rhyzome_tests::world::{Engine, World};
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

on_both!(
    a_machine_joins_once_with_its_own_token,
    orders_above_the_cursor_come_in_order_and_reports_arrive,
    the_newest_session_of_a_node_wins,
    a_revoked_node_is_cut_off_by_a_bell_and_stays_out,
    a_certificate_is_renewed_over_the_session,
    a_node_whose_certificate_ran_out_comes_back_with_its_key,
    an_agent_obeys_a_restored_database,
    an_agent_refuses_an_older_database_and_another_cluster,
    bytes_of_an_ordered_image_come_from_any_offset,
);

async fn a_machine_joins_once_with_its_own_token(world: World) {
    let cluster = Cluster::start(world).await;
    let node = cluster.make_node("n1").await;
    let line = cluster.invite(&node, 60).await;
    let state = |name: &str| cluster.folder.path().join(name);

    let refused = cluster.join(&line, "n2", &state("wrong")).await.unwrap_err();
    assert!(refused.contains("not good for this node"), "{refused}");
    let Ok(Joined::Now(record)) = cluster.join(&line, "n1", &state("n1")).await else { panic!("not joined") };
    assert_eq!(
        (record.node_id.as_str(), record.cluster_id.as_str()),
        (&*node, cluster.authority.cluster_id())
    );
    assert_eq!(cluster.join(&line, "n1", &state("n1")).await, Ok(Joined::Already(record)));
    let other = cluster.join(&line, "n9", &state("n1")).await.unwrap_err();
    assert!(other.contains("already belongs to node n1"), "{other}");
    let twice = cluster.join(&line, "n1", &state("again")).await.unwrap_err();
    assert!(twice.contains("ask an operator for a new one"), "{twice}");

    let late = cluster.invite(&node, 0).await;
    assert!(cluster.join(&late, "n1", &state("late")).await.unwrap_err().contains("expired"));
    let pinned = format!("{}.{}", line.rsplit_once('.').unwrap().0, "0".repeat(64));
    let wrong = cluster.join(&pinned, "n1", &state("pin")).await.unwrap_err();
    assert!(wrong.contains("another cluster"), "{wrong}");
    assert!(!wrong.contains('\n'), "one line");
}

/// What a placement needs to know of a node.
fn big() -> NodeStatus {
    NodeStatus {
        hostname: "n1".into(),
        architecture: "x86_64".into(),
        vcpus: 64,
        memory_bytes: 1 << 40,
        disk_bytes: 1 << 42,
        disk_available_bytes: 1 << 42,
        accelerator: "tcg".into(),
        ..NodeStatus::default()
    }
}

async fn node_is(cluster: &Cluster, node: &str, phase: &str) {
    let (right, kind) = (cluster.world.right(""), cluster.world.kind("node"));
    until(phase, 60, async || {
        let object = cluster.store().get(&right, kind, node).await.unwrap();
        (object.core.phase == phase).then_some(())
    })
    .await;
}

async fn orders_above_the_cursor_come_in_order_and_reports_arrive(world: World) {
    let mut cluster = Cluster::start(world).await;
    let mut agent = cluster.agent("n1").await;
    agent.connected().await;
    agent.handle.node_status(big());
    node_is(&cluster, &agent.node, "ready").await;
    cluster.world.make_image("", "tiny").await;
    cluster.world.make("default", "instance", "one", json!({"image": "tiny"})).await;
    let mut seen = vec![];
    let ordered = loop {
        seen.extend(agent.orders().await);
        let rows = cluster.store().assignments_after(&agent.node, 0, 100).await.unwrap();
        let rows: Vec<u64> = rows.iter().map(|row| u64::try_from(row.sequence).unwrap()).collect();
        // Its image, its network, its disk and itself.
        if rows.len() == 4 && rows.iter().all(|sequence| seen.contains(sequence)) {
            break rows;
        }
    };
    assert!(seen.is_sorted(), "{seen:?}");

    // The server restarts: only what the ledger does not have comes again.
    agent.ledger.db_epoch.store(1, std::sync::atomic::Ordering::SeqCst);
    agent.ledger.cursor.store(ordered[1], std::sync::atomic::Ordering::SeqCst);
    cluster.shut().await;
    let reason = agent.disconnected().await;
    assert!(reason.contains("restarting"), "{reason}");
    cluster.open().await;
    agent.connected().await;
    assert_eq!(agent.orders().await, ordered[2..]);

    // A bell brings what is new.
    let two = cluster.world.make("default", "instance", "two", json!({"image": "tiny"})).await;
    let orders = agent.orders().await;
    assert!(!orders.is_empty());

    let rows = cluster.store().assignments_after(&agent.node, 0, 100).await.unwrap();
    let order = rows.iter().find(|row| row.object_id == two.object.core.id).unwrap();
    agent.handle.report(Report {
        object_id: order.object_id.clone(),
        placement_epoch: 1,
        generation: 1,
        state: ReportState::Working.into(),
        rendered: [("command".into(), "qemu -nodefaults".into())].into(),
        ..Report::default()
    });
    let (right, kind) = (cluster.world.right("default"), cluster.world.kind("instance"));
    until("what the node wrote", 60, async || {
        let written = cluster.store().rendered(&right, kind, &order.object_id).await.unwrap();
        format!("{written:?}").contains("qemu -nodefaults").then_some(())
    })
    .await;
}

async fn the_newest_session_of_a_node_wins(world: World) {
    let cluster = Cluster::start(world).await;
    let mut first = cluster.agent("n1").await;
    let one = first.connected().await;
    let mut second = Agent::start(&cluster, &first.node, first.state.clone(), Ledger::at(0, 0));
    let two = second.connected().await;
    assert!(two > one);
    let reason = first.disconnected().await;
    assert!(reason.contains("a newer session of this node began"), "{reason}");
    drop(first);
    node_is(&cluster, &second.node, "starting").await;
}

async fn a_revoked_node_is_cut_off_by_a_bell_and_stays_out(world: World) {
    let cluster = Cluster::start(world).await;
    let mut agent = cluster.agent("n1").await;
    agent.orders().await;
    let revoked = cluster
        .store()
        .revoke_certificates(&cluster.world.right(""), &agent.node, &Asked::default())
        .await
        .unwrap();
    assert_eq!(revoked.serials.len(), 1);
    let reason = agent.disconnected().await;
    assert!(reason.contains("revoked"), "{reason}");
    assert!(agent.handle.fetch_blob(&"a".repeat(64), 0).await.is_err());
    node_is(&cluster, &agent.node, "offline").await;
}

async fn a_certificate_is_renewed_over_the_session(world: World) {
    let cluster = Cluster::start(world).await;
    let node = cluster.make_node("n1").await;
    let old = SystemTime::now() - Duration::from_secs(20 * 60 * 60);
    let state = cluster.plant(&node, "n1", old).await;
    let mut agent = Agent::start(&cluster, &node, state.clone(), Ledger::at(0, 0));
    agent.connected().await;
    until("a certificate with a full life", 60, async || {
        let times = IdentityFolder::new(&state).load().unwrap().times;
        (times.not_after > SystemTime::now() + Duration::from_secs(20 * 60 * 60)).then_some(())
    })
    .await;
    // It is on the disk a moment before the running agent shows it.
    until("the running agent shows it", 60, async || {
        let kept = IdentityFolder::new(&state).load().unwrap().times;
        (agent.handle.identity().times == kept).then_some(())
    })
    .await;
}

async fn a_node_whose_certificate_ran_out_comes_back_with_its_key(world: World) {
    let cluster = Cluster::start(world).await;
    // It was good for a day, until a minute ago.
    let long_ago = SystemTime::now() - Duration::from_secs(24 * 3600 + 60);
    let node = cluster.make_node("n1").await;
    let state = cluster.plant(&node, "n1", long_ago).await;
    let before = IdentityFolder::new(&state).load().unwrap();
    let mut agent = Agent::start(&cluster, &node, state.clone(), Ledger::at(0, 0));
    agent.connected().await;
    let after = IdentityFolder::new(&state).load().unwrap();
    assert!(after.times.not_after > before.times.not_after);
    drop(agent);

    // One whose clock is behind hears it of the server; one whose clock is ahead gets in all the same.
    for (name, is_ahead) in [("behind", false), ("ahead", true)] {
        let node = cluster.make_node(name).await;
        let state = cluster.plant(&node, name, long_ago).await;
        let off = move || match is_ahead {
            false => SystemTime::now() - Duration::from_secs(3600),
            true => SystemTime::now() + Duration::from_secs(240 * 3600),
        };
        let env = Env::simulated(Arc::new(off), Arc::new(|| 0.5));
        Agent::start_in(&cluster, &node, state, Ledger::at(0, 0), env).connected().await;
    }

    // The machine that was the node before it joined anew is it no more.
    let line = cluster.invite(&node, 60).await;
    let anew = cluster.folder.path().join("anew");
    assert!(matches!(cluster.join(&line, "n1", &anew).await, Ok(Joined::Now(_))));
    let why = Agent::start(&cluster, &node, state, Ledger::at(0, 0)).disconnected().await;
    assert!(why.contains("not accepted here"), "{why}");
    Agent::start(&cluster, &node, anew, Ledger::at(0, 0)).connected().await;

    // Whom an operator does not want back stays out.
    let gone = cluster.make_node("n2").await;
    let state = cluster.plant(&gone, "n2", long_ago).await;
    let right = cluster.world.right("");
    cluster.store().revoke_certificates(&right, &gone, &Asked::default()).await.unwrap();
    let mut agent = Agent::start(&cluster, &gone, state, Ledger::at(0, 0));
    let why = agent.disconnected().await;
    assert!(why.contains("this certificate brings nobody back"), "{why}");
}

async fn an_agent_obeys_a_restored_database(world: World) {
    let before = world.store.db_epoch().await.unwrap();
    let mut cluster = Cluster::start(world.clone()).await;
    let node = cluster.make_node("n1").await;
    let state = cluster.plant(&node, "n1", SystemTime::now()).await;

    // The same cluster, with the database of a backup; the agent has orders that it does not know.
    let engine = if world.db.starts_with("sqlite:") { Engine::Postgres } else { Engine::Sqlite };
    cluster.shut().await;
    cluster.world = world.carried(engine).await;
    cluster.open().await;
    let ledger = Ledger::at(before as u64, 99);
    let mut agent = Agent::start(&cluster, &node, state, ledger);
    let LinkEvent::Connected { db_epoch, .. } = agent.event(30).await else { panic!("not connected") };
    assert!(db_epoch > before as u64, "{db_epoch}");
    // Its cursor is one of another epoch, and counts for nothing: all orders come anew.
    let LinkEvent::CaughtUp(sequence) = agent.event(30).await else { panic!("not caught up") };
    assert!(sequence < 99, "{sequence}");
}

async fn an_agent_refuses_an_older_database_and_another_cluster(world: World) {
    let cluster = Cluster::start(world).await;
    let node = cluster.make_node("n1").await;
    let state = cluster.plant(&node, "n1", SystemTime::now()).await;
    let mut agent = Agent::start(&cluster, &node, state.clone(), Ledger::at(7, 3));
    let reason = agent.disconnected().await;
    assert!(reason.contains("older-database:"), "{reason}");
    drop(agent);

    let folder = IdentityFolder::new(&state);
    let mut record = folder.record().unwrap().unwrap();
    record.cluster_id = "elsewhere".into();
    folder.keep_record(&record).unwrap();
    let mut agent = Agent::start(&cluster, &node, state, Ledger::at(0, 0));
    let reason = agent.disconnected().await;
    assert!(reason.starts_with("wrong-cluster"), "{reason}");
}

async fn bytes_of_an_ordered_image_come_from_any_offset(world: World) {
    let cluster = Cluster::start(world).await;
    let mut agent = cluster.agent("n1").await;
    agent.connected().await;
    agent.handle.node_status(big());
    node_is(&cluster, &agent.node, "ready").await;
    let digest = "a".repeat(64);
    let content: Vec<u8> = (0..700_000_u32).map(|n| n as u8).collect();
    std::fs::write(cluster.folder.path().join("blobs").join(&digest), &content).unwrap();

    assert!(agent.handle.fetch_blob(&digest, 0).await.is_err(), "no order names it yet");
    cluster.world.make_image("", "tiny").await;
    cluster.world.make("default", "instance", "one", json!({"image": "tiny"})).await;
    for offset in [0, 300_000, 700_000] {
        let mut blob = agent.handle.fetch_blob(&digest, offset as u64).await.unwrap();
        let mut got = vec![];
        while let Some(bytes) = blob.next().await.unwrap() {
            got.extend(bytes);
        }
        assert!(got == content[offset..], "from {offset}");
    }
    assert!(agent.handle.fetch_blob(&digest, 700_001).await.is_err());
    assert!(agent.handle.fetch_blob("../../etc/passwd", 0).await.is_err());
}
