//! What may not be seen is not there, what may be seen and not done is refused, and lists hold nothing else: for
//! grants to a tenant, a kind, a tag, one object, and for denials.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use rhyzome_api::auth::{Authenticator, RequestDetails, Verdict};
use rhyzome_api::kernel::Caller;
use rhyzome_api::kernel::policy::{Access, Area, Grant};
use rhyzome_api::kernel::role::{Permission, bundle};
use rhyzome_tests::face::{Face, Reply};
use rhyzome_tests::on_both;
use rhyzome_tests::world::World;
use serde_json::{Value, json};

on_both!(
    a_tenant_is_a_wall,
    seen_and_not_allowed_is_refused,
    a_tag_is_a_wall,
    one_object_and_no_other,
    denials_stand_over_grants,
    jobs_and_events_follow_their_objects,
    pages_of_some_hold_everything_once,
);

/// Callers by name, with what each was granted.
struct Known(BTreeMap<&'static str, Access>);

impl Authenticator for Known {
    fn authenticate<'a>(&'a self, header: Option<&'a str>, _: &'a RequestDetails) -> BoxFuture<'a, Verdict> {
        let found = header.and_then(|header| self.0.get_key_value(header.strip_prefix("Is ")?));
        let verdict = found.map_or(Verdict::NotMine, |(name, access)| {
            let access = Some(Arc::new(access.clone()));
            Verdict::Caller(Caller { name: (*name).into(), access, ..Caller::default() })
        });
        Box::pin(std::future::ready(verdict))
    }
}

fn role(name: &str, area: Area) -> Grant {
    let bundle = bundle(name).unwrap();
    let all = |texts: &[&str]| Permission::all(texts.iter().copied());
    Grant {
        why: name.into(),
        scopes: all(bundle.scopes),
        except: all(bundle.except),
        area,
        ..Grant::default()
    }
}

fn scopes(texts: &[&str], area: Area) -> Grant {
    Grant { why: "scopes".into(), scopes: Permission::all(texts.iter().copied()), area, ..Grant::default() }
}

fn tagged(value: &str) -> Area {
    Area { tags: BTreeMap::from([("env".into(), value.into())]), ..Area::tenant("default") }
}

fn face(world: &World, known: Vec<(&'static str, Vec<Grant>)>) -> Face {
    let known = known.into_iter().map(|(name, grants)| (name, Access { grants, limit: None })).collect();
    Face::letting_in(world, vec![Arc::new(Known(known))])
}

async fn call(face: &Face, who: &str, method: &str, path: &str, body: Value) -> Reply {
    let who = format!("Is {who}");
    let headers = [("authorization", who.as_str()), ("content-type", "application/json")];
    match body {
        Value::Null => face.raw(method, path, &headers[..1], "").await,
        body => face.raw(method, path, &headers, body.to_string()).await,
    }
}

async fn names(face: &Face, who: &str, path: &str) -> Vec<String> {
    let page = call(face, who, "GET", path, Value::Null).await.is(200);
    let items = page.json["items"].as_array().unwrap().iter();
    items.map(|item| item["name"].as_str().unwrap().to_owned()).collect()
}

/// Placement groups: there at once, and they hold nothing.
async fn furnished(world: &World) {
    world.make("", "tenant", "beta", json!({})).await;
    for (name, tags) in
        [("one", json!({"env": "dev"})), ("two", json!({"env": "prod"})), ("three", json!({}))]
    {
        world.make("default", "placement-group", name, group()).await;
        let patch = json!({ "tags": tags });
        let kind = world.kind("placement-group");
        world
            .store
            .update(&world.right("default"), kind, name, patch, None, &Default::default())
            .await
            .unwrap();
    }
    world.make("beta", "placement-group", "theirs", group()).await;
}

fn group() -> Value {
    json!({ "rule": "anti-affinity" })
}

const GROUPS: &str = "/v1/tenants/default/placement-groups";

/// The same but for the request's id and the moment.
fn same(one: Reply, other: Reply) {
    let told = |reply: &Reply| {
        let mut body = reply.json.clone();
        body["request_id"] = Value::Null;
        let names: Vec<_> = reply.headers.keys().map(|name| name.to_string()).collect();
        (reply.status, names, body)
    };
    assert_eq!(told(&one), told(&other));
}

async fn a_tenant_is_a_wall(world: World) {
    furnished(&world).await;
    let face =
        face(&world, vec![("anna", vec![role("owner", Area::tenant("default"))]), ("nobody", Vec::new())]);
    let theirs = world.ask("SELECT id FROM resource WHERE name = 'theirs'").await.remove(0).remove(0);
    for who in ["anna", "nobody"] {
        for path in [
            format!("/v1/tenants/beta/placement-groups/{theirs}"),
            "/v1/tenants/beta/placement-groups".into(),
            "/v1/tenants/beta/quota".into(),
            "/v1/tenants/beta/jobs".into(),
            "/v1/tenants/beta/audit".into(),
            "/v1/tenants/beta/events?follow=false".into(),
            "/v1/nodes".into(),
            "/v1/tenants/beta/instances".into(),
        ] {
            let there = call(&face, who, "GET", &path, Value::Null).await.is_problem(404, "not-found");
            let nowhere = path.replace("beta", "gamma").replace(&theirs, "pg_00000000000000000000000000");
            same(there, call(&face, who, "GET", &nowhere, Value::Null).await);
        }
    }
    let through = call(&face, "anna", "GET", &format!("{GROUPS}/{theirs}"), Value::Null).await;
    same(
        through.is_problem(404, "not-found"),
        call(&face, "anna", "GET", &format!("{GROUPS}/pg_{:026}", 0), Value::Null).await,
    );
    assert_eq!(names(&face, "anna", GROUPS).await, ["one", "two", "three"]);
    call(&face, "nobody", "GET", GROUPS, Value::Null).await.is_problem(404, "not-found");
}

async fn seen_and_not_allowed_is_refused(world: World) {
    furnished(&world).await;
    let face = face(&world, vec![("vera", vec![role("viewer", Area::tenant("default"))])]);
    let new = json!({ "name": "new", "spec": group() });
    call(&face, "vera", "GET", &format!("{GROUPS}/one"), Value::Null).await.is(200);
    call(&face, "vera", "POST", GROUPS, new).await.is_problem(403, "denied");
    let tags = json!({ "tags": { "a": "b" } });
    call(&face, "vera", "PATCH", &format!("{GROUPS}/one"), tags.clone()).await.is_problem(403, "denied");
    call(&face, "vera", "PATCH", &format!("{GROUPS}/none"), tags).await.is_problem(404, "not-found");
    call(&face, "vera", "DELETE", &format!("{GROUPS}/one"), Value::Null).await.is_problem(403, "denied");
    let all = call(&face, "vera", "DELETE", &format!("{GROUPS}?tag.env=dev"), Value::Null).await.is(200);
    assert_eq!(all.json["items"][0]["problem"]["status"], 403, "{}", all.json);
    assert_eq!(names(&face, "vera", GROUPS).await.len(), 3);
}

async fn a_tag_is_a_wall(world: World) {
    furnished(&world).await;
    let face = face(&world, vec![("dora", vec![role("editor", tagged("dev"))])]);
    assert_eq!(names(&face, "dora", GROUPS).await, ["one"]);
    assert_eq!(names(&face, "dora", &format!("{GROUPS}?order=name")).await, ["one"]);
    call(&face, "dora", "GET", &format!("{GROUPS}/two"), Value::Null).await.is_problem(404, "not-found");
    let patch = async |body| call(&face, "dora", "PATCH", &format!("{GROUPS}/one"), body).await;
    patch(json!({ "metadata": { "a": 1 } })).await.is(200);
    patch(json!({ "tags": { "env": "prod" } })).await.is_problem(403, "denied");
    patch(json!({ "tags": { "env": null } })).await.is_problem(403, "denied");
    let make = async |tags| {
        let body = json!({ "name": "new", "tags": tags, "spec": group() });
        call(&face, "dora", "POST", GROUPS, body).await
    };
    make(json!({})).await.is_problem(403, "denied");
    make(json!({ "env": "prod" })).await.is_problem(403, "denied");
    make(json!({ "env": "dev" })).await.is(201);
    let gone = call(&face, "dora", "DELETE", &format!("{GROUPS}?name_prefix=t"), Value::Null).await.is(200);
    assert_eq!(gone.json["items"], json!([]));
    // One that may not be seen cannot be named either.
    world.make_image("", "tiny").await;
    let named = |group: &str| {
        let spec = json!({ "image": "tiny", "placement": { "groups": [group] } });
        json!({ "name": "vm", "tags": { "env": "dev" }, "spec": spec })
    };
    let refused = async |group: &str| {
        let path = "/v1/tenants/default/instances?plan=true";
        call(&face, "dora", "POST", path, named(group)).await
    };
    let (there, nowhere) = (refused("two").await, refused("six").await);
    assert_eq!(
        there.json.to_string().replace("two", "six").replace(there.header("x-request-id"), ""),
        nowhere.json.to_string().replace(nowhere.header("x-request-id"), "")
    );
    assert!(there.json.to_string().contains("there is no placement group"), "{}", there.json);
}

async fn one_object_and_no_other(world: World) {
    furnished(&world).await;
    let id = world.ask("SELECT id FROM resource WHERE name = 'two'").await.remove(0).remove(0);
    let area = Area { object: Some(id.clone()), ..Area::tenant("default") };
    let face = face(&world, vec![("otto", vec![role("editor", area)])]);
    assert_eq!(names(&face, "otto", GROUPS).await, ["two"]);
    assert_eq!(names(&face, "otto", &format!("{GROUPS}?name=one")).await, [""; 0]);
    call(&face, "otto", "GET", &format!("{GROUPS}/one"), Value::Null).await.is_problem(404, "not-found");
    call(&face, "otto", "POST", GROUPS, json!({ "spec": group() })).await.is_problem(403, "denied");
    call(&face, "otto", "DELETE", &format!("{GROUPS}/{id}"), Value::Null).await.is(202);
}

async fn denials_stand_over_grants(world: World) {
    furnished(&world).await;
    let kept = Grant { deny: true, why: "kept".into(), ..scopes(&["*:*"], tagged("prod")) };
    let face = face(&world, vec![("emil", vec![role("owner", Area::tenant("default")), kept])]);
    assert_eq!(names(&face, "emil", GROUPS).await, ["one", "three"]);
    let hidden = call(&face, "emil", "GET", &format!("{GROUPS}/two"), Value::Null).await;
    same(
        hidden.is_problem(404, "not-found"),
        call(&face, "emil", "GET", &format!("{GROUPS}/none"), Value::Null).await,
    );
    let refused = json!({ "tags": { "env": "prod" } });
    call(&face, "emil", "PATCH", &format!("{GROUPS}/one"), refused).await.is_problem(403, "denied");
}

async fn jobs_and_events_follow_their_objects(world: World) {
    furnished(&world).await;
    let face = face(
        &world,
        vec![
            ("all", vec![role("owner", Area::tenant("default"))]),
            ("dora", vec![role("editor", tagged("dev"))]),
            ("vera", vec![role("viewer", Area::tenant("default"))]),
        ],
    );
    for name in ["one", "two"] {
        call(&face, "all", "DELETE", &format!("{GROUPS}/{name}"), Value::Null).await.is(202);
    }
    const JOBS: &str = "/v1/tenants/default/jobs";
    let list = async |who| call(&face, who, "GET", JOBS, Value::Null).await.is(200).json["items"].clone();
    let all = list("all").await;
    assert_eq!(all.as_array().unwrap().len(), 2);
    let dev = list("dora").await;
    assert_eq!((dev.as_array().unwrap().len(), &dev[0]["resource_name"]), (1, &json!("one")));
    let id = |name: &str| {
        let found = all.as_array().unwrap().iter().find(|job| job["resource_name"] == name).unwrap();
        found["id"].as_str().unwrap().to_owned()
    };
    for rest in ["", "/wait?timeout=0", "/log"] {
        let hidden = format!("{JOBS}/{}{rest}", id("two"));
        call(&face, "dora", "GET", &hidden, Value::Null).await.is_problem(404, "not-found");
    }
    for verb in ["cancel", "retry", "skip", "undo"] {
        let path = |name| format!("{JOBS}/{}/{verb}", id(name));
        call(&face, "dora", "POST", &path("two"), Value::Null).await.is_problem(404, "not-found");
        call(&face, "vera", "POST", &path("two"), Value::Null).await.is_problem(403, "denied");
        call(&face, "all", "POST", &path("two"), Value::Null).await.is_problem(409, "wrong-state");
    }
    call(&face, "dora", "GET", "/v1/jobs", Value::Null).await.is_problem(404, "not-found");
}

async fn pages_of_some_hold_everything_once(world: World) {
    furnished(&world).await;
    for number in 0..30 {
        let name = format!("g{number:02}");
        world.make("default", "placement-group", &name, group()).await;
        let env = ["dev", "prod", "test"][number % 3];
        let patch = json!({ "tags": { "env": env } });
        let kind = world.kind("placement-group");
        world
            .store
            .update(&world.right("default"), kind, &name, patch, None, &Default::default())
            .await
            .unwrap();
    }
    let face =
        face(&world, vec![("both", vec![role("viewer", tagged("dev")), role("viewer", tagged("test"))])]);
    for order in ["order=id", "order=name", "name_prefix=g&order=name"] {
        let (mut all, mut page) = (Vec::new(), String::new());
        loop {
            let path = format!("{GROUPS}?limit=7&{order}{page}");
            let reply = call(&face, "both", "GET", &path, Value::Null).await.is(200);
            all.extend(reply.json["items"].as_array().unwrap().iter().map(|item| item["name"].clone()));
            let Some(next) = reply.json["next"].as_str() else { break };
            page = format!("&page={next}");
        }
        let wanted = if order.starts_with("name_prefix") { 20 } else { 21 };
        assert_eq!(all.len(), wanted, "{order}: {all:?}");
        all.sort_by_key(ToString::to_string);
        all.dedup();
        assert_eq!(all.len(), wanted, "{order}: {all:?}");
    }
}
