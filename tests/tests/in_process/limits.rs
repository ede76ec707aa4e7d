//! What each may have of the server: whoever asks too much is told which limit it was and when to come again, and nobody
//! else notices.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rhyzome_api::limits::{BodyLimits, LimitsConfig, Rate, Share};
use rhyzome_tests::exposition::parse;
use rhyzome_tests::face::{Face, Reply, roomy};
use rhyzome_tests::on_both;
use rhyzome_tests::people::known;
use rhyzome_tests::world::World;
use serde_json::{Value, json};

on_both!(
    who_asks_too_often_is_told_and_others_are_served,
    nobody_uses_up_the_share_of_a_tenant_that_is_not_theirs,
    streams_are_counted,
    waits_have_places_of_their_own,
    bodies_have_an_end_and_a_depth,
    strangers_are_turned_away,
);

const NETWORKS: &str = "/v1/tenants/default/networks";
const BETAS: &str = "/v1/tenants/beta/networks";

/// Anna and Carl are of `default`, Bert is of `beta`.
async fn furnished(world: &World, limits: LimitsConfig) -> Face {
    let who = known();
    world.make("", "tenant", "beta", json!({})).await;
    let easy = Face::within(world, who.clone(), roomy());
    easy.member("default", "anna", "owner").await;
    easy.member("default", "carl", "owner").await;
    easy.member("beta", "bert", "owner").await;
    Face::within(world, who, limits)
}

/// So many, and none comes back while a test runs.
fn few(burst: u32) -> Rate {
    Rate { burst, each: Duration::from_secs(1000) }
}

/// Itself, if it is the refusal of this limit.
fn refused(reply: Reply, limit: &str, most: u64) -> Reply {
    let reply = reply.is_problem(429, "too-many");
    assert_eq!(
        (&reply.json["limit"], &reply.json["most"]),
        (&json!(limit), &json!(most)),
        "{:#}",
        reply.json
    );
    let after: u64 = reply.header("retry-after").parse().unwrap();
    assert!((1..=1000).contains(&after), "{after}");
    assert!(reply.json["detail"].as_str().unwrap().ends_with(&format!("come again in {after} s")));
    reply
}

async fn who_asks_too_often_is_told_and_others_are_served(world: World) {
    let usual = roomy();
    let limits = LimitsConfig {
        caller: Share { rate: few(5), ..usual.caller },
        tenant: Share { rate: few(8), ..usual.tenant },
        ..usual
    };
    let face = furnished(&world, limits).await;
    let ask = async |who: &str, path: &str| face.seen_by(who, path).await;
    for _ in 0..5 {
        ask("anna", NETWORKS).await.is(200);
    }
    refused(ask("anna", NETWORKS).await, "caller-rate", 0);
    // Her colleague has what she left, and no more.
    for _ in 0..3 {
        ask("carl", NETWORKS).await.is(200);
    }
    refused(ask("carl", NETWORKS).await, "tenant-rate", 0);
    // Another tenant does not notice, nor does who runs the place.
    ask("bert", BETAS).await.is(200);
    for _ in 0..20 {
        face.get(NETWORKS).await.is(200);
    }
    let counted = parse(&face.metrics.text());
    let of =
        |limit: &str| counted[&format!("rhyzome_http_refused_total{{limit=\"{limit}\",tenant=\"default\"}}")];
    assert_eq!((of("caller-rate"), of("tenant-rate")), (1.0, 1.0));
}

async fn nobody_uses_up_the_share_of_a_tenant_that_is_not_theirs(world: World) {
    let usual = roomy();
    let limits = LimitsConfig { tenant: Share { rate: few(10), ..usual.tenant }, ..usual };
    let face = furnished(&world, limits).await;
    // Bert may not even know of it; what he asks there is his own tenant's doing.
    for _ in 0..10 {
        face.seen_by("bert", NETWORKS).await.is_problem(404, "not-found");
    }
    refused(face.seen_by("bert", NETWORKS).await, "tenant-rate", 0);
    refused(face.seen_by("bert", BETAS).await, "tenant-rate", 0);
    for _ in 0..10 {
        face.seen_by("anna", NETWORKS).await.is(200);
    }
}

async fn streams_are_counted(world: World) {
    let usual = roomy();
    let limits = LimitsConfig {
        caller: Share { streams: 2, requests: 3, ..usual.caller },
        tenant: Share { streams: 3, requests: 8, ..usual.tenant },
        ..usual
    };
    let face = furnished(&world, limits).await;
    let path = "/v1/tenants/default/events";
    let open = async |who: &str| face.stream(path, &[("authorization", &format!("Is {who}"))]).await;
    let (one, _two) = (open("anna").await, open("anna").await);
    refused(face.seen_by("anna", path).await, "caller-streams", 2);
    let _three = open("carl").await;
    refused(face.seen_by("carl", path).await, "tenant-streams", 3);
    // A stream is no request that is at work, and one that has ended is none at all.
    face.seen_by("anna", NETWORKS).await.is(200);
    drop(one);
    let _again = open("anna").await;
    let _of_operator = face.stream(path, &[]).await;
}

/// Whoever waits for a job keeps nobody from working; and a write for which there is no place to wait in is done.
async fn waits_have_places_of_their_own(world: World) {
    let usual = roomy();
    let limits = LimitsConfig {
        caller: Share { streams: 1, requests: 64, ..usual.caller },
        working: 1,
        working_of_one_tenant: 1,
        ..usual
    };
    let face = furnished(&world, limits).await;
    world.make_image("", "tiny").await;
    world.make_node("n1", 1 << 40).await;
    let path = "/v1/tenants/default/instances";
    let body = json!({ "spec": { "image": "tiny" } }).to_string();
    let headers = [("authorization", "Is anna"), ("content-type", "application/json"), ("prefer", "wait=5")];
    let since = Instant::now();
    let waits = async || face.raw("POST", path, &headers, body.clone()).await.is(202);
    let other = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        // There is one who works, and she only waits.
        face.seen_by("carl", NETWORKS).await.is(200);
        let took = since.elapsed();
        waits().await;
        (took, since.elapsed())
    };
    let (_, (other, second)) = tokio::join!(waits(), other);
    assert!(other < Duration::from_secs(5) && second < Duration::from_secs(5), "{other:?} {second:?}");
    let made = face.get(path).await.is(200);
    assert_eq!(made.json["items"].as_array().unwrap().len(), 2);
}

async fn bodies_have_an_end_and_a_depth(world: World) {
    let body = BodyLimits { json_bytes: 2000, json_depth: 6, time: Duration::from_millis(300) };
    let face = furnished(&world, LimitsConfig { body, ..roomy() }).await;
    let send = async |metadata: Value| {
        face.by("anna", "POST", NETWORKS, json!({ "metadata": metadata, "spec": {} })).await
    };
    let nested = |depth: usize| (0..depth).fold(json!(1), |inner, _| json!({ "a": inner }));
    let told = send(json!({ "a": "x".repeat(2000) })).await.is_problem(413, "too-large");
    assert_eq!((&told.json["limit"], &told.json["most"]), (&json!("body-bytes"), &json!(2000)));
    let told = send(nested(6)).await.is_problem(400, "malformed");
    assert_eq!((&told.json["limit"], &told.json["most"]), (&json!("body-depth"), &json!(6)));
    assert!(told.json["detail"].as_str().unwrap().contains("deeper than 6"), "{}", told.json);
    send(nested(5)).await.is(201);
    // As deep as 1000 bytes can be: it is not read further than it may go.
    let bomb = "[".repeat(1000);
    let headers = [("authorization", "Is anna"), ("content-type", "application/json")];
    face.raw("POST", NETWORKS, &headers, bomb).await.is_problem(400, "malformed");
    // One that comes too slowly.
    let pieces = futures_util::stream::unfold(0, |n| async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        Some((Ok::<_, std::io::Error>(" "), n + 1))
    });
    let slow = axum::body::Body::from_stream(pieces);
    let told = face.raw("POST", NETWORKS, &headers, slow).await.is_problem(408, "too-slow");
    assert_eq!(told.json["limit"], "body-seconds");
    let counted = parse(&face.metrics.text());
    for (limit, count) in [("body-bytes", 1.0), ("body-depth", 2.0), ("body-seconds", 1.0)] {
        assert_eq!(counted[&format!("rhyzome_http_refused_total{{limit=\"{limit}\",tenant=\"\"}}")], count);
    }
}

async fn strangers_are_turned_away(world: World) {
    let face = furnished(&world, LimitsConfig { strangers: few(5), ..roomy() }).await;
    face.seen_by("anna", NETWORKS).await.is(200);
    let guess = async |n: usize| {
        let token = format!("Bearer rzt_{n}");
        face.raw("GET", NETWORKS, &[("authorization", &token)], "").await
    };
    for n in 0..5 {
        guess(n).await.is_problem(401, "unauthenticated");
    }
    refused(guess(9).await, "stranger-rate", 0);
    refused(face.raw("GET", "/healthz", &[], "").await, "stranger-rate", 0);
    // Who was known before is known still, wherever the others come from.
    face.seen_by("anna", NETWORKS).await.is(200);
    refused(face.seen_by("bert", BETAS).await, "stranger-rate", 0);
}
/// A thousand at once, of a tenant that may have two at work: another's question is not behind them.
#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_of_one_tenant_is_no_queue_for_another() {
    let world = World::new(rhyzome_tests::world::Engine::Sqlite).await;
    let usual = roomy();
    let limits = LimitsConfig {
        caller: Share { requests: 2000, ..usual.caller },
        tenant: Share { requests: 2000, ..usual.tenant },
        working: 3,
        working_of_one_tenant: 2,
        wait: Duration::from_secs(60),
        ..usual
    };
    let face = Arc::new(furnished(&world, limits).await);
    let (crowd, path) = (face.clone(), format!("{NETWORKS}?limit=1000"));
    let crowd = tokio::spawn(async move {
        let since = Instant::now();
        for reply in join_all((0..1000).map(|_| crowd.seen_by("anna", &path))).await {
            reply.is(200);
        }
        since.elapsed()
    });
    let mut longest = Duration::ZERO;
    while !crowd.is_finished() {
        let since = Instant::now();
        face.seen_by("bert", BETAS).await.is(200);
        longest = longest.max(since.elapsed());
    }
    let crowd = crowd.await.unwrap();
    assert!(longest * 3 < crowd, "{longest:?} of {crowd:?}");
}
