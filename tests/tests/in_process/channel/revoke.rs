//! A node that is revoked, and an invitation that ten thousand want.
use super::harness::{Agent, Cluster, Ledger};
use rhyzome_agent::enroll::Joined;
use rhyzome_agent::identity::IdentityFolder;
use rhyzome_api::kernel::join::hash_of;
use rhyzome_api::resources;
use rhyzome_api::store::{Asked, JoinRefusal, Store};
use rhyzome_tests::face::Face;
use rhyzome_tests::on_both;
use rhyzome_tests::world::World;
use serde_json::{Value, json};
use std::time::Duration;

on_both!(
    a_revoked_node_is_out_by_a_bell_alone_and_back_by_an_invitation,
    a_node_that_another_process_revokes_is_out,
    of_ten_thousand_redemptions_of_one_token_one_wins,
);

async fn node(face: &Face) -> Value {
    face.get("/v1/nodes/n1").await.is(200).json["status"].clone()
}

async fn a_revoked_node_is_out_by_a_bell_alone_and_back_by_an_invitation(world: World) {
    // Nobody looks of itself within this test: the harness sees to that.
    let cluster = Cluster::start(world.clone()).await;
    let face = Face::of(&world);
    let mut agent = cluster.agent("n1").await;
    agent.orders().await;
    let unused = cluster.invite(&agent.node, 600).await;

    face.call("POST", "/v1/nodes/n1/actions/revoke", json!({"why": 1})).await.is_problem(422, "invalid");
    face.call("POST", "/v1/nodes/none/actions/revoke", Value::Null).await.is_problem(404, "not-found");
    let revoked = face.call("POST", "/v1/nodes/n1/actions/revoke", Value::Null).await.is(200).json;
    assert_eq!((&revoked["certificates"], &revoked["invitations"]), (&json!(1), &json!(1)), "{revoked}");
    assert!(revoked["way_back"].as_str().unwrap().contains("rhyzome node invite n1"), "{revoked}");
    let reason = agent.disconnected().await;
    assert!(reason.contains("revoked"), "{reason}");
    let why = agent.disconnected().await;
    assert!(why.contains("not accepted here"), "{why}");
    let refused = agent.handle.fetch_blob(&"a".repeat(64), 0).await.err().unwrap().to_string();
    assert!(refused.contains("not accepted here"), "{refused}");
    let late = cluster.join(&unused, "n1", &cluster.folder.path().join("late")).await.unwrap_err();
    assert!(late.contains("not good for this node"), "{late}");
    let status = node(&face).await;
    assert!(status["revoked_at"].is_string() && status["connected"] == false, "{status}");
    let audited = "SELECT verb, actor FROM event WHERE kind = 'node' AND verb = 'revoke'";
    assert_eq!(world.ask(audited).await, [["revoke", "operator"]]);

    // Again is nothing, and its own machine comes back when it is invited.
    let again = face.call("POST", "/v1/nodes/n1/actions/revoke", Value::Null).await.is(200).json;
    assert_eq!((&again["certificates"], &again["invitations"]), (&json!(0), &json!(0)));
    let line = cluster.invite(&agent.node, 600).await;
    let anew = cluster.folder.path().join("anew");
    assert!(matches!(cluster.join(&line, "n1", &anew).await, Ok(Joined::Now(_))));
    let mut back = Agent::start(&cluster, &agent.node, anew, Ledger::at(0, 0));
    back.connected().await;
    let status = node(&face).await;
    assert!(status["revoked_at"].is_null() && status["connected"] == true, "{status}");
}

/// Over PostgreSQL the bell comes from the other process; on SQLite there is none, and the net finds it.
async fn a_node_that_another_process_revokes_is_out(world: World) {
    let mut cluster = Cluster::start(world.clone()).await;
    if world.db.starts_with("sqlite:") {
        cluster.shut().await;
        cluster.net = Duration::from_millis(100);
        cluster.open().await;
    }
    let mut agent = cluster.agent("n1").await;
    agent.orders().await;
    let env = rhyzome_api::environment::system_env();
    let other = Store::open(&world.db.parse().unwrap(), env, resources::registry()).await.unwrap();
    let taken = other.revoke_certificates(&world.right(""), "n1", &Asked::default()).await.unwrap();
    let shown = rhyzome_pki::peer_identity(agent.handle.identity().identity.leaf()).unwrap();
    assert_eq!(taken.serials, [shown.serial]);
    let reason = agent.disconnected().await;
    assert!(reason.contains("revoked"), "{reason}");
    other.close().await;
}

async fn of_ten_thousand_redemptions_of_one_token_one_wins(world: World) {
    let cluster = Cluster::start(world).await;
    let node = cluster.make_node("n1").await;
    let line = cluster.invite(&node, 600).await;
    let mut tries = tokio::task::JoinSet::new();
    for _ in 0..10_000 {
        let (store, hash) = (cluster.store().clone(), hash_of(&line));
        tries.spawn(async move { store.redeem_join_token(&hash, "n1").await.unwrap() });
    }
    let outcomes = tries.join_all().await;
    let won: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().ok()).collect();
    assert_eq!(won, [&node]);
    let used = outcomes.iter().filter(|outcome| **outcome == Err(JoinRefusal::Used)).count();
    assert_eq!(used, 9_999, "all others were told that it was used");
    // Over the door: the one that is late is told nothing of that.
    let late = cluster.join(&line, "n1", &cluster.folder.path().join("late")).await.unwrap_err();
    assert!(late.contains("ask an operator for a new one"), "{late}");
    assert_eq!(IdentityFolder::new(&cluster.folder.path().join("late")).record().unwrap(), None);
}
