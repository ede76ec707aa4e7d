//! Tenants: what they are called elsewhere, and what it means that one is suspended or deleted.

mod certificates;
mod delete;
mod domains;
mod guests;
mod realms;

use std::time::Duration;

use futures_util::StreamExt;
use rhyzome_api::kernel::{Caller, Error};
use rhyzome_api::store::{Asked, NewObject};
use rhyzome_tests::drive::settle;
use rhyzome_tests::face::Face;
use rhyzome_tests::given::Time;
use rhyzome_tests::node::SimNode;
use rhyzome_tests::on_both;
use rhyzome_tests::people::face;
use rhyzome_tests::world::{Engine, World};
use serde_json::{Value, json};

on_both!(
    a_domain_is_one_tenants,
    who_is_suspended_may_look,
    who_comes_too_late_is_refused,
    a_stream_ends_with_the_suspension,
    it_is_in_the_log,
);

const ACME: &str = "/v1/tenants/acme";

/// A tenant, its owner `otto`, and `carla` who has rights in two.
async fn acme(face: &Face) {
    face.call("POST", "/v1/tenants", json!({ "name": "acme", "spec": {} })).await.is(201);
    face.member("acme", "otto", "owner").await;
    face.member("acme", "carla", "editor").await;
    face.member("default", "carla", "editor").await;
}

async fn act(face: &Face, verb: &str, body: Value) -> rhyzome_tests::face::Reply {
    face.call("POST", &format!("{ACME}/actions/{verb}"), body).await
}

async fn a_domain_is_one_tenants(world: World) {
    let face = face(&world);
    let acme = json!({ "name": "acme", "spec": {
        "domains": ["acme.example", "acme.test"], "realm": "acme", "billing_reference": "4711" } });
    face.call("POST", "/v1/tenants", acme).await.is(201);
    let made = face.get(ACME).await.is(200);
    assert_eq!(made.json["spec"]["domains"], json!(["acme.example", "acme.test"]));
    let other = |domains: Value, realm: &str| json!({ "name": "other", "spec": { "domains": domains, "realm": realm } });
    let refused = face.call("POST", "/v1/tenants", other(json!(["b.test", "acme.test"]), "acme")).await;
    assert_eq!(refused.is_problem(422, "invalid").fields(), ["spec.domains.1", "spec.realm"]);
    // What one no longer has another may take; what was refused took nothing.
    face.call("PATCH", ACME, json!({ "spec": { "domains": ["acme.example"], "realm": null } })).await.is(200);
    face.call("POST", "/v1/tenants", other(json!(["b.test", "acme.test"]), "acme")).await.is(201);
    let back = face.call("PATCH", ACME, json!({ "spec": { "domains": ["acme.test"] } })).await;
    assert_eq!(back.is_problem(422, "invalid").fields(), ["spec.domains.0"]);
    assert_eq!(face.get(ACME).await.json["spec"]["domains"], json!(["acme.example"]));
    // With the tenant all of it goes.
    face.call("DELETE", "/v1/tenants/other", Value::Null).await.is(202);
    rhyzome_api::jobs::look(&world.store).await.unwrap();
    face.call("PATCH", ACME, json!({ "spec": { "domains": ["acme.test"], "realm": "acme" } })).await.is(200);
    let leases = world.ask("SELECT scope, value FROM lease WHERE scope LIKE 'tenant-%' ORDER BY 1, 2").await;
    assert_eq!(leases, [["tenant-domain", "acme.test"], ["tenant-realm", "acme"]]);
}

async fn who_is_suspended_may_look(world: World) {
    let face = face(&world);
    acme(&face).await;
    let keys = format!("{ACME}/placement-groups");
    let group = |name: &str| json!({ "name": name, "spec": { "rule": "anti-affinity" } });
    face.by("otto", "POST", &keys, group("before")).await.is(201);
    let token = face.by("otto", "POST", "/v1/tokens", json!({ "spec": {} })).await.is(201);
    let token = token.json["secrets"]["token"].as_str().unwrap().to_owned();
    let suspended = act(&face, "suspend", json!({})).await.is(200);
    assert_eq!(suspended.json["phase"], "suspended");
    assert_eq!(suspended.json["status"]["suspended"]["instances"], "stop");
    for who in ["otto", &token] {
        face.seen_by(who, &format!("{keys}/before")).await.is(200);
        face.seen_by(who, &format!("{ACME}/jobs")).await.is(200);
        face.seen_by(who, &format!("{ACME}/quota")).await.is(200);
        let one = format!("{keys}/before");
        let tagged = json!({ "tags": { "a": "b" } });
        for (method, path, body) in [
            ("POST", keys.as_str(), group("new")),
            ("PATCH", one.as_str(), tagged),
            ("DELETE", one.as_str(), Value::Null),
        ] {
            let refused = face.by(who, method, path, body).await.is_problem(403, "tenant-suspended");
            assert_eq!(refused.json["tenant"], "acme");
            assert!(refused.json["detail"].as_str().unwrap().contains("`acme` is suspended"), "{refused:?}");
        }
    }
    // Whoever never could is told what they were told before; and elsewhere nothing is others.
    face.by("stranger", "POST", &keys, group("new")).await.is_problem(404, "not-found");
    face.by("carla", "POST", "/v1/tenants/default/placement-groups", group("there")).await.is(201);
    face.by("carla", "POST", &keys, group("new")).await.is_problem(403, "tenant-suspended");
    assert_eq!(face.seen_by("carla", "/v1/whoami").await.json["suspended"], json!(["acme"]));
    let can = face.seen_by("otto", "/v1/can?verb=create&kind=instance&tenant=acme").await.is(200);
    assert_eq!((&can.json["allowed"], &can.json["why"]), (&json!(false), &json!("`acme` is suspended")));
    // Operators may.
    face.by("operator", "POST", &keys, group("by-operator")).await.is(201);
    act(&face, "resume", json!({})).await.is(200);
    face.by("otto", "POST", &keys, group("after")).await.is(201);
    let names = face.seen_by("otto", &keys).await.json["items"].as_array().unwrap().len();
    assert_eq!(names, 3, "nothing was lost");
    act(&face, "resume", json!({})).await.is_problem(409, "wrong-state");
    assert!(face.get(&format!("{ACME}/quota")).await.json["quota"].get("suspended").is_none());
}

/// Rights that were looked at before the suspension: what they write after it is refused by what it locks.
async fn who_comes_too_late_is_refused(world: World) {
    let face = face(&world);
    acme(&face).await;
    let said = rhyzome_tests::people::person("otto");
    let otto: Caller = world.store.admit(said, "").await.unwrap();
    let right = otto.may("create", "placement-group", "acme").unwrap();
    act(&face, "suspend", json!({})).await.is(200);
    let body = NewObject {
        name: Some("late".into()),
        spec: json!({ "rule": "anti-affinity" }),
        ..NewObject::default()
    };
    let refused =
        world.store.create(&right, world.kind("placement-group"), body, &Asked::default()).await.unwrap_err();
    assert!(matches!(&refused, Error::Suspended(tenant) if tenant == "acme"), "{refused}");
}

async fn a_stream_ends_with_the_suspension(world: World) {
    let face = face(&world);
    acme(&face).await;
    let mut stream = face.stream(&format!("{ACME}/events"), &[("authorization", "Is otto")]).await;
    act(&face, "suspend", json!({ "instances": "keep" })).await.is(200);
    let ended = async { while stream.next().await.is_some() {} };
    tokio::time::timeout(Duration::from_secs(10), ended).await.expect("the stream goes on");
    // Looking on is looking.
    face.seen_by("otto", &format!("{ACME}/events?follow=false")).await.is(200);
}

async fn it_is_in_the_log(world: World) {
    let face = face(&world);
    acme(&face).await;
    act(&face, "suspend", json!({ "instances": "keep" })).await.is(200);
    face.by("otto", "POST", &format!("{ACME}/networks"), json!({})).await.is_problem(403, "tenant-suspended");
    act(&face, "resume", json!({})).await.is(200);
    world.store.flush_denials().await.unwrap();
    let verbs = world
        .ask("SELECT verb, outcome, actor FROM event WHERE kind = 'tenant' AND name = 'acme' AND class = 'write' ORDER BY number")
        .await;
    let verbs: Vec<&str> = verbs.iter().map(|row| row[0].as_str()).collect();
    assert_eq!(verbs, ["create", "suspend", "resume"]);
    let denied =
        world.ask("SELECT verb, kind, tenant FROM event WHERE class = 'denied' AND actor = 'otto'").await;
    assert_eq!(denied.len(), 1, "{denied:?}");
}

/// A tenant with guests on a node that is simulated.
pub struct House {
    pub world: World,
    pub face: Face,
    pub time: Time,
    pub nodes: Vec<SimNode>,
}

impl House {
    pub async fn new(engine: Engine) -> House {
        let time = Time::begin();
        let world = World::with_time(engine, &time, 3).await;
        let id = world.make_node("n1", 1 << 44).await;
        world.make_image("", "tiny").await;
        let mut node = SimNode::new(&id, &time);
        node.connect(&world.store).await.unwrap();
        let face = face(&world);
        let mut house = House { world, face, time, nodes: vec![node] };
        acme(&house.face).await;
        for name in ["runs", "sleeps", "off"] {
            let body = json!({ "name": name, "spec": { "image": "tiny" } });
            house.face.by("otto", "POST", &format!("{ACME}/instances"), body).await.is(202);
        }
        house.quiet().await;
        for (name, verb) in [("sleeps", "pause"), ("off", "stop")] {
            house
                .face
                .call("POST", &format!("{ACME}/instances/{name}/actions/{verb}"), Value::Null)
                .await
                .is(202);
        }
        house.quiet().await;
        assert_eq!(house.phases().await, ["off stopped", "runs running", "sleeps paused"]);
        house
    }

    pub async fn quiet(&mut self) {
        let stuck = settle(&self.world, &self.world.store, &mut self.nodes, &self.time).await.unwrap();
        assert!(stuck.is_empty(), "stuck: {stuck:?}");
    }

    pub async fn phases(&self) -> Vec<String> {
        let list = self.face.get(&format!("{ACME}/instances?order=name")).await.is(200);
        let word = |item: &Value, key: &str| item[key].as_str().unwrap().to_owned();
        let items = list.json["items"].as_array().unwrap().iter();
        items.map(|item| format!("{} {}", word(item, "name"), word(item, "phase"))).collect()
    }

    pub async fn fine(&self) {
        let found = rhyzome_tests::audit::audit(&self.world, &self.nodes).await;
        assert!(found.is_empty(), "{found:#?}");
    }
}
