//! What people are told of their rights: whether they may, why, and who else. And that what is open for long ends with
//! the token by which it was opened.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use rhyzome_api::kernel::Error;
use rhyzome_api::rest::{Bytes, ConsoleEnds, ConsoleHub, Wanted};
use rhyzome_client::{Client, Settings};
use rhyzome_tests::door::Door;
use rhyzome_tests::face::Face;
use rhyzome_tests::on_both;
use rhyzome_tests::people::{face, known};
use rhyzome_tests::world::World;
use serde_json::{Value, json};
use tokio::sync::mpsc;

on_both!(
    one_question_is_answered_with_the_reason,
    an_object_tells_who_may_do_what,
    a_stream_ends_with_its_token,
    a_console_ends_with_its_token,
);

const GROUPS: &str = "/v1/tenants/default/placement-groups";
/// How long anything here may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

async fn made(world: &World, name: &str) -> String {
    let made = world.make("default", "placement-group", name, json!({ "rule": "anti-affinity" })).await;
    made.object.core.id
}

async fn one_question_is_answered_with_the_reason(world: World) {
    let face = face(&world);
    let one = made(&world, "one").await;
    face.call("PATCH", &format!("{GROUPS}/one"), json!({ "tags": { "env": "dev" } })).await.is(200);
    made(&world, "two").await;
    face.member("default", "vera", "viewer").await;
    let dev = json!({ "subjects": { "t": { "user": face.user("tag").await } }, "role": "editor", "tags": { "env": "dev" } });
    face.call("POST", "/v1/tenants/default/bindings", json!({ "name": "dev", "spec": dev })).await.is(201);
    let token = face
        .by("vera", "POST", "/v1/tokens", json!({ "name": "ci", "spec": { "scopes": ["disk:*"] } }))
        .await;
    let token = token.is(201).json["secrets"]["token"].as_str().unwrap().to_owned();
    let group = "kind=placement-group&tenant=default";
    for (who, query, allowed, why) in [
        ("vera", format!("verb=get&{group}"), true, "viewer"),
        ("vera", format!("verb=create&{group}"), false, "nothing gives you `placement-group:create` there"),
        ("vera", "verb=get&kind=placement-group&tenant=beta".into(), false, "nothing gives you"),
        ("vera", "verb=get&kind=node".into(), false, "nothing gives you `node:get`"),
        ("vera", format!("verb=get&{group}&id=one"), true, "viewer"),
        (
            "vera",
            format!("verb=delete&{group}&id={one}"),
            false,
            "nothing gives you `placement-group:delete`",
        ),
        ("vera", format!("verb=get&{group}&id=none"), false, "you see no such thing there"),
        ("stranger", format!("verb=get&{group}&id=one"), false, "you see no such thing there"),
        ("tag", format!("verb=delete&{group}"), true, "with some of them only"),
        ("tag", format!("verb=delete&{group}&id=one"), true, "editor"),
        ("tag", format!("verb=delete&{group}&id=two"), false, "you see no such thing there"),
        (token.as_str(), format!("verb=get&{group}"), false, "the token `ci` is limited"),
        ("operator", format!("verb=delete&{group}"), true, "operators may do everything"),
    ] {
        let told = face.seen_by(who, &format!("/v1/can?{query}")).await.is(200).json;
        assert_eq!(told.as_object().unwrap().keys().collect::<Vec<_>>(), ["allowed", "why"], "{told}");
        assert_eq!(told["allowed"], allowed, "{who} {query}: {told}");
        assert!(told["why"].as_str().unwrap().contains(why), "{who} {query}: {told}");
    }
    for query in ["", "?verb=get", "?kind=disk", "?verb=get&kind=cat", "?verb=get&kind=disk&colour=red"] {
        face.seen_by("vera", &format!("/v1/can{query}")).await.is_problem(400, "malformed");
    }
}

async fn an_object_tells_who_may_do_what(world: World) {
    let face = face(&world);
    made(&world, "one").await;
    face.member("default", "vera", "viewer").await;
    face.member("default", "otto", "owner").await;
    let no = json!({ "subjects": { "v": { "user": face.user("vera").await } }, "effect": "deny", "scopes": ["placement-group:list"] });
    face.call("POST", "/v1/tenants/default/bindings", json!({ "name": "no-lists", "spec": no }))
        .await
        .is(201);
    let path = format!("{GROUPS}/one/access");
    let items = |told: &Value| told["items"].as_array().unwrap().clone();

    let told = face.seen_by("vera", &path).await.is(200).json;
    let all = items(&told);
    assert_eq!(
        (&all[0]["who"], &all[0]["why"]),
        (&json!("operators"), &json!("operators may do everything"))
    );
    let mine =
        |verb: &str| all.iter().find(|item| item["who"] == "you" && item["verb"] == verb).unwrap().clone();
    assert_eq!(mine("get")["may"], json!(["placement-group:get"]));
    assert!(mine("get")["why"].as_str().unwrap().contains("viewer"), "{told:#}");
    for (verb, why) in [("list", "no-lists"), ("delete", "nothing gives you")] {
        assert_eq!(mine(verb)["may"], json!([]));
        assert!(mine(verb)["why"].as_str().unwrap().contains(why), "{told:#}");
    }

    let (vera, otto) = (face.user("vera").await, face.user("otto").await);
    let told = face.seen_by("otto", &path).await.is(200).json;
    let all = items(&told);
    let of = |who: &str, denied: bool| {
        let found = all
            .iter()
            .find(|item| item["who"] == format!("user {who}") && item["denied"].is_array() == denied);
        found.unwrap_or_else(|| panic!("{who}: {told:#}")).clone()
    };
    assert_eq!(of(&vera, false)["may"], json!(["placement-group:get", "placement-group:list"]));
    assert_eq!(
        (&of(&vera, true)["may"], &of(&vera, true)["denied"]),
        (&json!([]), &json!(["placement-group:list"]))
    );
    assert!(of(&otto, false)["may"].as_array().unwrap().contains(&json!("placement-group:delete")));
    face.seen_by("stranger", &path).await.is_problem(404, "not-found");
    face.seen_by("otto", &format!("{GROUPS}/none/access")).await.is_problem(404, "not-found");
}

// === what is open for long ===

async fn token(face: &Face, who: &str) -> String {
    let made = face.by(who, "POST", "/v1/tokens", json!({ "name": "ci", "spec": {} })).await.is(201);
    made.json["secrets"]["token"].as_str().unwrap().to_owned()
}

async fn a_stream_ends_with_its_token(world: World) {
    let face = face(&world);
    face.member("default", "otto", "owner").await;
    let token = format!("Bearer {}", token(&face, "otto").await);
    let mut of_token = face.stream("/v1/tenants/default/events", &[("authorization", &token)]).await;
    let mut of_otto = face.stream("/v1/tenants/default/events", &[("authorization", "Is otto")]).await;
    face.by("otto", "DELETE", "/v1/tokens/ci", Value::Null).await.is(202);
    let end = async { while of_token.next().await.is_some() {} };
    tokio::time::timeout(PATIENCE, end).await.expect("the stream of the token goes on");
    // Its maker's own goes on: what is said there has no end.
    let pending = tokio::select! {
        biased;
        () = async { while of_otto.next().await.is_some() {} } => false,
        () = async {
            face.seen_by("otto", GROUPS).await.is(200);
        } => true,
    };
    assert!(pending, "the stream of somebody else has ended");
}

/// Guests that say what is said to them.
struct Echoes;

impl ConsoleHub for Echoes {
    fn open<'a>(&'a self, _: &'a str, _: &'a str, _: Wanted) -> BoxFuture<'a, Result<ConsoleEnds, Error>> {
        let (to_guest, mut said) = mpsc::channel::<Bytes>(8);
        let (echo, from_guest) = mpsc::channel(8);
        tokio::spawn(async move {
            while let Some(bytes) = said.recv().await {
                if echo.send(Ok(bytes)).await.is_err() {
                    return;
                }
            }
        });
        Box::pin(std::future::ready(Ok((to_guest, from_guest))))
    }
}

async fn a_console_ends_with_its_token(world: World) {
    let face = Face::lending_to(&world, known(), Arc::new(Echoes));
    world.make_node("n1", 1 << 34).await;
    world.make_image("", "tiny").await;
    world.make("default", "instance", "web", json!({ "image": "tiny" })).await;
    face.member("default", "otto", "owner").await;
    let token = token(&face, "otto").await;
    let door = Door::open(face.router());
    let url = format!("http://{}", door.address);
    let client = Client::new(&Settings { url, token: Some(token), ..Settings::default() }).unwrap();
    let mut console = client.console("/v1/tenants/default/instances/web/console").await.unwrap();
    console.write(Bytes::from_static(b"up\n")).await.unwrap();
    assert_eq!(console.read().await.unwrap(), Some(Bytes::from_static(b"up\n")));
    face.by("otto", "DELETE", "/v1/tokens/ci", Value::Null).await.is(202);
    let ended =
        tokio::time::timeout(PATIENCE, console.read()).await.expect("the console goes on").unwrap_err();
    assert!(ended.to_string().contains("its rights are others"), "{ended}");
    assert!(client.console("/v1/tenants/default/instances/web/console").await.is_err());
}
