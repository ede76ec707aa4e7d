//! What is measured of the agents' door: sessions, orders, reports; and that a certificate's end is the one that its
//! holder has on its disk.
use super::harness::{Agent, Cluster, Ledger};
use rhyzome_api::metrics::{Metrics, Traffic, Watched, glance, look};
use rhyzome_pki::{certificate_times, first_certificate};
use rhyzome_proto::v1::{Report, ReportState};
use rhyzome_tests::exposition::parse;
use rhyzome_tests::on_both;
use rhyzome_tests::wait::until;
use rhyzome_tests::world::World;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

on_both!(ends_of_certificates_are_the_real_ones, sessions_orders_and_reports_are_counted);

async fn measured(cluster: &Cluster) -> BTreeMap<String, f64> {
    let streams = cluster.streams.clone();
    let traffic = move || {
        let (sessions, asked) = streams.counted();
        let ((orders, reports), (agents_end, grpc_ends)) = (streams.passed(), streams.certificates_end());
        Traffic { sessions, streams: asked, orders, reports, agents_end, grpc_ends }
    };
    let watched = Watched {
        store: cluster.store().clone(),
        authority: cluster.authority.clone(),
        traffic: Box::new(traffic),
        http_ends: Box::new(|| None),
    };
    let metrics = Metrics::new();
    look(&metrics, &watched).await.unwrap();
    glance(&metrics, &watched);
    parse(&metrics.text())
}

/// Of the first certificate in a file, in seconds since 1970.
fn ends(path: &Path) -> f64 {
    let first = first_certificate(&std::fs::read_to_string(path).unwrap()).unwrap();
    let ends = certificate_times(&first).unwrap().not_after;
    ends.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64()
}

fn told(all: &BTreeMap<String, f64>, certificate: &str) -> Option<f64> {
    let series = format!("rhyzome_certificate_expiry_timestamp_seconds{{certificate=\"{certificate}\"}}");
    all.get(&series).copied()
}

async fn ends_of_certificates_are_the_real_ones(world: World) {
    let cluster = Cluster::start(world).await;
    let pki = cluster.folder.path().join("pki");
    let all = measured(&cluster).await;
    assert_eq!(told(&all, "agents"), None, "nobody is connected");
    assert_eq!(told(&all, "root"), Some(ends(&pki.join("root.pem"))));
    assert_eq!(told(&all, "intermediate"), Some(ends(&pki.join("intermediate.pem"))));
    assert_eq!(told(&all, "http"), None, "it serves no REST");
    let day = 24.0 * 3600.0;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    let grpc = told(&all, "grpc").unwrap() - now;
    assert!(grpc > 29.0 * day && grpc < 31.0 * day, "{grpc}");

    // Of two agents the one whose certificate ends first; signed two hours ago, it has two less to go.
    let mut young = cluster.agent("young").await;
    young.connected().await;
    let node = cluster.make_node("old").await;
    let before = SystemTime::now() - Duration::from_secs(2 * 3600);
    let state = cluster.plant(&node, "old", before).await;
    let planted = ends(&state.join("identity/chain.pem"));
    let mut old = Agent::start(&cluster, &node, state, Ledger::at(0, 0));
    old.connected().await;
    assert!(planted < ends(&young.state.join("identity/chain.pem")));
    until("both are seen", 60, async || {
        (told(&measured(&cluster).await, "agents") == Some(planted)).then_some(())
    })
    .await;
    drop(old);
    until("the other one is left", 60, async || {
        (told(&measured(&cluster).await, "agents") == Some(ends(&young.state.join("identity/chain.pem"))))
            .then_some(())
    })
    .await;
}

async fn sessions_orders_and_reports_are_counted(world: World) {
    let cluster = Cluster::start(world).await;
    let nothing = measured(&cluster).await;
    assert_eq!(nothing["rhyzome_sessions"], 0.0);
    let mut agent = cluster.agent("n1").await;
    agent.orders().await;
    assert_eq!(measured(&cluster).await["rhyzome_sessions"], 1.0);
    let report =
        Report { object_id: "net_1".into(), state: ReportState::Applied.into(), ..Report::default() };
    agent.handle.report(report);
    until("it was received", 60, async || {
        (measured(&cluster).await["rhyzome_reports_received_total"] == 1.0).then_some(())
    })
    .await;
    agent.handle.node_status(super::big());
    super::node_is(&cluster, &agent.node, "ready").await;
    cluster.world.make_image("", "tiny").await;
    cluster.world.make("default", "instance", "one", json!({"image": "tiny"})).await;
    // Its image, its network, its disk and itself; on their way until the agent says something of them.
    until("orders are sent", 60, async || {
        let all = measured(&cluster).await;
        (all["rhyzome_orders_sent_total"] == 4.0 && all["rhyzome_orders_in_flight"] >= 1.0).then_some(())
    })
    .await;
}
