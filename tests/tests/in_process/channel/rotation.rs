//! The authority is exchanged for another while agents are connected to two servers: none is dropped, whoever was away
//! comes back, and what the old root has signed is refused in the end. And what ends soon is told.
use super::harness::{Agent, Cluster, Ledger};
use super::hostile::{back, goodbye, session, who_am_i};
use rhyzome_agent::enroll::Joined;
use rhyzome_agent::link::LinkEvent;
use rhyzome_api::authority::{AuthorityDuty, Pace, retire, rotate, status, turn};
use rhyzome_pki::{Phase, trust_digest};
use rhyzome_proto::v1::return_message::Step;
use rhyzome_proto::v1::{
    AgentMessage, Credentials, Heartbeat, Hello, ReturnClaim, agent_message, server_message,
};
use rhyzome_tests::on_both;
use rhyzome_tests::wait::until;
use rhyzome_tests::world::World;
use serde_json::Value;
use std::time::{Duration, SystemTime};

on_both!(
    the_authority_is_exchanged_and_no_agent_is_dropped,
    at_once_and_cut_off_are_for_those_who_say_so,
    what_ends_soon_and_what_cannot_be_renewed_is_told,
);

/// Of one of the servers: its steps wait for no time.
fn duty(cluster: &Cluster, retire_seconds: i64) -> AuthorityDuty {
    let pace = Pace { activate_seconds: 0, retire_seconds };
    let (authority, server) = (cluster.authority.clone(), cluster.server.clone());
    AuthorityDuty { authority, server, pace, http_certificate: None }
}

/// They live.
async fn beat(servers: [&Cluster; 2]) {
    for cluster in servers {
        cluster.store().server_heartbeat(&cluster.server).await.unwrap();
    }
}

/// Both servers look after the authority until it is in this phase.
async fn come_to(phase: Phase, servers: [&Cluster; 2], retire_seconds: i64) {
    until(&format!("{phase:?}"), 60, async || {
        beat(servers).await;
        for cluster in servers {
            let mut told = String::new();
            turn(cluster.store(), &duty(cluster, retire_seconds), &mut told).await.unwrap();
        }
        servers.iter().all(|cluster| cluster.authority.phase() == phase).then_some(())
    })
    .await;
}

/// Newest session of each node.
async fn sessions(cluster: &Cluster) -> Vec<Vec<String>> {
    cluster.world.ask("SELECT node, session FROM node_state WHERE connected = 1 ORDER BY node").await
}

const LONG: i64 = 3600;

async fn the_authority_is_exchanged_and_no_agent_is_dropped(world: World) {
    let mut one = Cluster::start(world.clone()).await;
    let mut two = one.beside("server2").await;
    let mut agents = Vec::new();
    for number in 0..3 {
        agents.push(one.agent(&format!("a{number}")).await);
        agents.push(two.agent(&format!("b{number}")).await);
    }
    for agent in &mut agents {
        agent.orders().await;
    }
    let before = sessions(&one).await;
    assert_eq!(before.len(), 6);
    // Who joined and is away; who was invited and has not come; a certificate that is good for long.
    let mut away = one.agent("away").await;
    away.orders().await;
    let away_node = away.node.clone();
    drop(away);
    until("it is away", 60, async || (sessions(&one).await == before).then_some(())).await;
    let invited = one.make_node("invited").await;
    let token = one.invite(&invited, 900).await;
    let old = one.identity(&agents[0].node).await;
    let (old_tls, old_root) = (one.tls(&old), one.authority.fingerprint());

    // Prepared: servers first. As long as one server, or one node, has not taken it over, nothing is signed by it.
    rotate(one.store(), &one.authority, false).unwrap();
    assert!(rotate(one.store(), &one.authority, false).unwrap_err().to_string().contains("under way"));
    beat([&one, &two]).await;
    let said = status(one.store(), &one.authority, None).await.unwrap();
    assert!(said.contains("waits for servers server, server2; nodes a0, a1, a2, b0, b1, b2."), "{said}");
    turn(one.store(), &duty(&one, LONG), &mut String::new()).await.unwrap();
    assert_eq!(one.authority.phase(), Phase::Prepared);
    until("every connected node trusts both roots", 60, async || {
        beat([&one, &two]).await;
        let untold = one.store().untold(&one.authority.trust_digest()).await.unwrap();
        (untold.nodes.is_empty() && untold.servers == ["server2"]).then_some(())
    })
    .await;

    // Activated: what was invited before joins, whoever knows the old root only is served, all renew.
    come_to(Phase::Activated, [&one, &two], LONG).await;
    assert_ne!(one.authority.fingerprint(), old_root);
    let state = one.folder.path().join("invited");
    until("the other server shows the way to both roots", 60, async || {
        matches!(two.join(&token, "invited", &state).await, Ok(Joined::Now(_))).then_some(())
    })
    .await;
    assert!(who_am_i(&one, old_tls.clone()).await.is_ok(), "it is good until all have renewed");
    let mut late = Agent::start(&two, &invited, state, Ledger::at(0, 0));
    late.connected().await;
    let refused = retire(one.store(), &one.authority, false).await.unwrap_err().to_string();
    assert!(refused.contains("away"), "{refused}");
    until("only who is away has not renewed", 120, async || {
        let (issuer, trust) = (one.authority.issuer_key(), one.authority.trust_digest());
        (one.store().nodes_beside(&issuer, &trust).await.unwrap() == ["away"]).then_some(())
    })
    .await;
    let said = status(one.store(), &one.authority, None).await.unwrap();
    assert!(said.contains("it waits for nodes away."), "{said}");
    turn(one.store(), &duty(&one, 0), &mut String::new()).await.unwrap();
    assert_eq!(one.authority.phase(), Phase::Activated, "nobody is cut off on a guess");
    let state = one.folder.path().join("away");
    let mut away = Agent::start(&one, &away_node, state, Ledger::at(0, 0));
    away.connected().await;

    // Retired.
    come_to(Phase::Settled, [&one, &two], 0).await;
    let left = one.authority.trust_digest();
    for agent in agents.iter().chain([&late, &away]) {
        until("the old root has left its trust", 60, async || {
            let trust = agent.handle.identity().trust_pem.clone();
            (trust_digest(&trust).unwrap() == left).then_some(())
        })
        .await;
    }
    until("the old certificate is refused", 60, async || {
        // By one that trusts the new root.
        who_am_i(&one, one.tls(&old)).await.err().filter(|why| why.contains("UnknownCA"))
    })
    .await;
    let claim = ReturnClaim { certificate_chain_pem: old.leaf_pem() };
    let (_say, mut answers) = back(&one, Step::Claim(claim)).await;
    assert!(answers.message().await.unwrap_err().message().contains("brings nobody back"));
    assert!(one.join(&token, "invited", &one.folder.path().join("x")).await.is_err());

    // None of them was ever without its session.
    let now = sessions(&one).await;
    assert!(before.iter().all(|session| now.contains(session)), "{before:?} {now:?}");
    for agent in &mut agents {
        while let Ok(event) = agent.events.try_recv() {
            assert!(!matches!(event, LinkEvent::Disconnected { .. }), "{event:?}");
        }
    }
    let verbs = "SELECT verb FROM event WHERE kind = 'authority' ORDER BY at";
    assert_eq!(world.ask(verbs).await, [["activate"], ["retire"]]);

    // And they come back after a restart, to a server that has never known another authority.
    one.shut().await;
    two.shut().await;
    let mut third = one.beside("server3").await;
    third.shut().await;
    third.address = one.address;
    third.open().await;
    assert!(agents[0].disconnected().await.contains("restarting"));
    agents[0].connected().await;
    let line = third.invite(&invited, 60).await;
    let anew = third.folder.path().join("anew");
    assert!(matches!(third.join(&line, "invited", &anew).await, Ok(Joined::Now(_))));
}

async fn at_once_and_cut_off_are_for_those_who_say_so(world: World) {
    let cluster = Cluster::start(world).await;
    let mut away = cluster.agent("away").await;
    away.orders().await;
    let (node, old) = (away.node.clone(), cluster.tls(&away.handle.identity().identity));
    drop(away);
    // One that never renews, and holds on.
    let deaf = cluster.make_node("deaf").await;
    cluster.world.sql("UPDATE node_state SET joined = 1").await;
    let (say, heard) = session(&cluster, &deaf).await;
    let hello = agent_message::Message::Hello(Hello::default());
    say.send(AgentMessage { message: Some(hello) }).await.unwrap();
    until("what it shows is known", 60, async || {
        let known = cluster.store().keys_of_nodes().await.unwrap();
        known.iter().all(|node| node.shown.issuer == cluster.authority.issuer_key()).then_some(())
    })
    .await;
    let nothing = retire(cluster.store(), &cluster.authority, true).await.unwrap_err().to_string();
    assert!(nothing.contains("no authority that could retire"), "{nothing}");
    rotate(cluster.store(), &cluster.authority, true).unwrap();
    assert_eq!(cluster.authority.phase(), Phase::Activated);
    let refused = retire(cluster.store(), &cluster.authority, false).await.unwrap_err().to_string();
    assert!(refused.contains("that would shut out away, deaf"), "{refused}");
    let said = retire(cluster.store(), &cluster.authority, true).await.unwrap();
    assert!(said.contains("shut out: away, deaf"), "{said}");
    let reason = goodbye(heard).await;
    assert!(reason.contains("trusted no more"), "{reason}");
    until("the door follows", 60, async || {
        who_am_i(&cluster, old.clone()).await.err().filter(|why| why.contains("UnknownIssuer"))
    })
    .await;
    let state = cluster.folder.path().join("away");
    let why = Agent::start(&cluster, &node, state, Ledger::at(0, 0)).disconnected().await;
    assert!(why.contains("UnknownIssuer"), "{why}");
    let line = cluster.invite(&node, 60).await;
    let anew = cluster.folder.path().join("anew");
    assert!(matches!(cluster.join(&line, "away", &anew).await, Ok(Joined::Now(_))));
    Agent::start(&cluster, &node, anew, Ledger::at(0, 0)).connected().await;
}

async fn what_ends_soon_and_what_cannot_be_renewed_is_told(world: World) {
    let cluster = Cluster::start(world.clone()).await;
    let node = cluster.make_node("n1").await;
    // It was good for a day, of which an hour is left.
    let state = cluster.plant(&node, "n1", SystemTime::now() - Duration::from_secs(23 * 3600)).await;
    let loaded = rhyzome_agent::identity::IdentityFolder::new(&state).load().unwrap();
    let told = |problem: &str| Credentials {
        trust_sha256: trust_digest(&loaded.trust_pem).unwrap(),
        certificate_pem: loaded.identity.leaf_pem(),
        renewal_problem: problem.into(),
    };
    let (say, mut heard) = session(&cluster, &node).await;
    let say = async |message| say.send(AgentMessage { message: Some(message) }).await.unwrap();
    let hello = Hello { credentials: Some(told("")), ..Hello::default() };
    say(agent_message::Message::Hello(hello)).await;
    let welcome = heard.message().await.unwrap().unwrap().message;
    assert!(matches!(welcome, Some(server_message::Message::Welcome(_))), "{welcome:?}");
    let certificate = async || -> Value {
        let right = world.right("");
        world.store.get(&right, world.kind("node"), "n1").await.unwrap().status["certificate"].clone()
    };
    let shown = until("when it ends", 60, async || Some(certificate().await).filter(Value::is_object)).await;
    assert!(shown["expires_at"].is_string() && shown["renewal_problem"].is_null(), "{shown}");
    say(agent_message::Message::Heartbeat(Heartbeat::default())).await;
    until("the alarm", 60, async || (certificate().await["expires_soon"] == true).then_some(())).await;
    say(agent_message::Message::Credentials(told("the disk is full"))).await;
    until("the problem", 60, async || {
        let shown = certificate().await;
        (shown["renewal_problem"] == "the disk is full" && shown["expires_soon"] == true).then_some(())
    })
    .await;
    let rung = "SELECT verb FROM event WHERE verb = 'certificate-ends-soon'";
    assert_eq!(world.ask(rung).await.len(), 1, "once for each certificate");
    // What it says of another's certificate is not believed.
    let other = cluster.make_node("n2").await;
    let others = cluster.identity(&other).await.leaf_pem();
    let lie = Credentials { certificate_pem: others, ..told("a lie") };
    say(agent_message::Message::Credentials(lie)).await;
    say(agent_message::Message::Credentials(told(""))).await;
    until("no problem", 60, async || certificate().await["renewal_problem"].is_null().then_some(())).await;
    world.sql("UPDATE node_state SET joined = 1").await;
    let said = status(&world.store, &cluster.authority, None).await.unwrap();
    let line = said.lines().find(|line| line.starts_with("n1")).unwrap_or_default();
    assert!(line.contains("yes") && line.contains("all"), "{said}");
}
