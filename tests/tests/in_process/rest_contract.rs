//! What holds for every kind: a new one is under test the minute that it is registered. What it needs is made
//! from the examples of the document.

use std::collections::BTreeMap;

use rhyzome_api::kernel::{Change, Kind, NameRule, Scope, Target};
use rhyzome_tests::face::{Face, Reply};
use rhyzome_tests::life::is_asked;
use rhyzome_tests::world::{Engine, World};
use serde_json::{Value, json};

const TENANT: &str = "default";

/// A kind under test, at one of its places.
struct Case {
    world: World,
    face: Face,
    kind: &'static dyn Kind,
    tenant: &'static str,
    base: String,
    spec: Value,
    name: &'static str,
    /// What its spec names: field, and path of the object.
    refs: BTreeMap<String, String>,
}

/// Runs a test on both databases for every kind at every place, each in a world of its own, and says where it
/// failed.
macro_rules! for_every_kind {
    ($($name:ident),* $(,)?) => {$(
        mod $name {
            use rhyzome_tests::world::Engine;

            async fn on(engine: Engine) {
                for (kind, tenant) in super::places() {
                    let case = super::Case::new(engine, kind, tenant).await;
                    println!("{}, {engine:?}: {}", stringify!($name), case.base);
                    super::$name(case).await;
                }
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn sqlite() {
                on(Engine::Sqlite).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn postgres() {
                on(Engine::Postgres).await;
            }
        }
    )*};
}

for_every_kind!(
    made_shown_listed_and_gone,
    what_clashes_and_what_is_wrong,
    nobody_elses_is_not_there,
    made_for_all_is_seen_by_all,
    changed_by_those_who_know_it,
    protected_and_in_use,
    history_and_looks,
    done_once_under_a_key,
    planned_and_not_done,
    fields_change_as_the_document_says,
);

/// All kinds that are asked, at each of their places.
fn places() -> Vec<(&'static str, &'static str)> {
    let mut places = Vec::new();
    for kind in rhyzome_api::resources::registry().all() {
        let meta = kind.meta();
        if !is_asked(*kind) {
            continue;
        }
        if meta.scope != Scope::Operator {
            places.push((meta.kind, TENANT));
        }
        if meta.scope != Scope::Tenant {
            places.push((meta.kind, ""));
        }
    }
    assert!(!places.is_empty(), "no kind is called so");
    places
}

fn base(kind: &dyn Kind, tenant: &str) -> String {
    match tenant {
        "" => format!("/v1/{}", kind.meta().plural),
        tenant => format!("/v1/tenants/{tenant}/{}", kind.meta().plural),
    }
}

fn example(kind: &dyn Kind) -> Value {
    serde_json::to_value(kind.schemas().spec.1).unwrap()["example"].clone()
}

impl Case {
    async fn new(engine: Engine, kind: &str, tenant: &'static str) -> Case {
        let world = World::new(engine).await;
        let face = Face::of(&world);
        let kind = world.kind(kind);
        world.make_node("able", 1 << 40).await;
        let spec = example(kind);
        let refs = needs(&world, kind, &spec).await;
        let name = if kind.meta().name == NameRule::Label { "the-one" } else { "theone" };
        Case { base: base(kind, tenant), world, face, kind, tenant, spec, name, refs }
    }

    fn at(&self, rest: &str) -> String {
        format!("{}/{rest}", self.base)
    }

    fn body(&self) -> Value {
        json!({ "name": self.name, "tags": { "env": "prod" }, "metadata": { "team": { "id": 7 } }, "spec": self.spec })
    }

    async fn make(&self) -> Value {
        let reply = self.face.call("POST", &self.base, self.body()).await;
        assert!(matches!(reply.status, 201 | 202), "{}: {:#}", self.base, reply.json);
        reply.json
    }
}

/// Makes whatever the spec names, from the examples of the document.
async fn needs(world: &World, kind: &dyn Kind, spec: &Value) -> BTreeMap<String, String> {
    let mut made = BTreeMap::new();
    for reference in kind.refs(&kind.complete(spec).unwrap()) {
        let (Target::Named(name), None) = (&reference.target, &reference.or_make) else { continue };
        let other = world.kind(reference.kind);
        let tenant = if other.meta().scope == Scope::Tenant { TENANT } else { "" };
        let path = format!("{}/{name}", base(other, tenant));
        if made.values().any(|there| *there == path) {
            continue;
        }
        if !matches!(other.meta().kind, "image" | "node") {
            Box::pin(needs(world, other, &example(other))).await;
        }
        match other.meta().kind {
            "image" => drop(world.make_image(tenant, name).await),
            "node" => drop(world.make_node(name, 1 << 40).await),
            _ => drop(world.make(tenant, other.meta().kind, name, example(other)).await),
        }
        made.insert(reference.field, path);
    }
    made
}

async fn made_shown_listed_and_gone(case: Case) {
    let Case { face, base, name, .. } = &case;
    let made = face.call("POST", base, case.body()).await;
    let id = made.json["id"].as_str().unwrap_or_else(|| panic!("{:#}", made.json)).to_owned();
    assert!(id.starts_with(&format!("{}_", case.kind.meta().prefix)), "{id}");
    assert_eq!(made.header("location"), case.at(&id));
    assert_eq!(made.status, if made.json["job"].is_null() { 201 } else { 202 });

    let shown = face.get(&case.at(&id)).await.is(200);
    assert_eq!(shown.json["name"], *name);
    assert_eq!(shown.json["kind"], case.kind.meta().kind);
    assert_eq!(shown.json["tenant"], if case.tenant.is_empty() { Value::Null } else { json!(case.tenant) });
    assert_eq!(shown.json["tags"], json!({ "env": "prod" }));
    assert_eq!(face.get(&case.at(name)).await.is(200).json["id"], id);
    let etag = shown.header("etag").to_owned();
    let known = face.with("GET", &case.at(&id), &[("if-none-match", &etag)], Value::Null).await.is(304);
    assert!(known.bytes.is_empty());
    assert_eq!(known.header("etag"), etag);

    for filter in
        ["name=NAME", "name_prefix=the", "tag.env=prod", "metadata.team.id=7", "name=NAME&tag.env=prod"]
    {
        let list = face.get(&format!("{base}?{}", filter.replace("NAME", name))).await.is(200);
        let ids: Vec<_> =
            list.json["items"].as_array().unwrap().iter().map(|item| item["id"].clone()).collect();
        assert_eq!(ids, [json!(id)], "{base}?{filter}");
    }
    let none = face.get(&format!("{base}?tag.env=test")).await.is(200);
    assert_eq!(none.json, json!({ "items": [], "next": null }));
    pages_hold_everything_once(face, base, &id).await;

    let gone = face.call("DELETE", &case.at(&id), Value::Null).await;
    assert!(matches!(gone.status, 202 | 204), "{:#}", gone.json);
    face.get(&case.at(name)).await.is_problem(404, "not-found");
    // The name is free at once.
    let mut again = face.call("POST", base, case.body()).await;
    if again.status == 422 {
        // What exists once is free when its node has let go.
        assert!(again.fields().iter().all(|field| field.starts_with("spec.")), "{:#}", again.json);
        everything_is_done(&case.world).await;
        again = face.call("POST", base, case.body()).await;
    }
    assert!(matches!(again.status, 201 | 202), "{:#}", again.json);
    assert_ne!(again.json["id"], json!(id));
}

/// All nodes have done what they were ordered to do, and the jobs know.
async fn everything_is_done(world: &World) {
    for _ in 0..4 {
        for node in world.ask("SELECT node FROM node_state").await {
            world.obey(&node[0], 0).await;
        }
        rhyzome_api::jobs::look(&world.store).await.unwrap();
    }
}

async fn pages_hold_everything_once(face: &Face, base: &str, id: &str) {
    for order in ["id", "name"] {
        let mut seen = Vec::new();
        let mut path = format!("{base}?limit=1&order={order}");
        loop {
            let page = face.get(&path).await.is(200);
            let items = page.json["items"].as_array().unwrap();
            assert!(items.len() <= 1);
            seen.extend(items.iter().map(|item| item["id"].as_str().unwrap().to_owned()));
            let Some(next) = page.json["next"].as_str() else { break };
            path = format!("{base}?limit=1&order={order}&page={next}");
        }
        assert_eq!(seen.iter().filter(|one| *one == id).count(), 1, "{order}: {seen:?}");
        let mut unique = seen.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), seen.len(), "{order}: {seen:?}");
    }
}

async fn what_clashes_and_what_is_wrong(case: Case) {
    let Case { face, base, .. } = &case;
    for query in ["plan=perhaps", "limit=1", "x"] {
        face.call("POST", &format!("{base}?{query}"), case.body()).await.is_problem(400, "malformed");
    }
    let before = face.get(base).await.json;
    for query in ["limit=0", "limit=1001", "page=x", "order=size", "colour=red", "tag.=x", "name=a&name=b"] {
        face.get(&format!("{base}?{query}")).await.is_problem(400, "malformed");
    }
    let mut spec = case.spec.clone();
    spec["surely_unknown"] = json!(1);
    let wrong = json!({ "name": "with spaces", "phase": "ready", "tags": { "a": 1 }, "protected": "no", "spec": spec });
    let told = face.call("POST", base, wrong).await.is_problem(422, "invalid").fields();
    for field in ["name", "phase", "tags.a", "protected", "spec.surely_unknown"] {
        assert!(told.iter().any(|one| one == field), "{base}: {field} is missing in {told:?}");
    }
    let wrong = json!({ "name": "with spaces", "spec": spec });
    let told = face.call("POST", base, wrong).await.is_problem(422, "invalid").fields();
    assert!(["name", "spec.surely_unknown"].iter().all(|f| told.iter().any(|t| t == f)), "{told:?}");
    if case.kind.meta().name == NameRule::Label {
        let reserved = json!({ "name": "actions", "spec": case.spec });
        assert_eq!(face.call("POST", base, reserved).await.is_problem(422, "invalid").fields(), ["name"]);
    }
    let text = |body: &'static str, media: &'static str| {
        let bearer = format!("Bearer {}", rhyzome_tests::face::TOKEN);
        async move { face.raw("POST", base, &[("authorization", &bearer), ("content-type", media)], body).await }
    };
    text("{\"spec\": {", "application/json").await.is_problem(400, "malformed");
    text("[]", "application/json").await.is_problem(400, "malformed");
    text("", "application/json").await.is_problem(400, "malformed");
    text("{}", "text/plain").await.is_problem(415, "unsupported-media-type");
    assert_eq!(face.get(base).await.json, before, "what was refused has changed nothing");

    case.make().await;
    // The same again, but for what exists once: only the name is told.
    let twice = face.call("POST", base, case.body()).await;
    assert!(matches!(twice.status, 409 | 422), "{:#}", twice.json);
    face.call("PUT", base, Value::Null).await.is_problem(405, "method-not-allowed");
    face.raw("GET", base, &[], "").await.is_problem(401, "unauthenticated");
    let stranger = face.raw("GET", base, &[("authorization", "Bearer nobody")], "").await;
    assert!(stranger.header("www-authenticate").starts_with("Bearer"), "{stranger:?}");
}

async fn nobody_elses_is_not_there(case: Case) {
    let Case { face, .. } = &case;
    let id = case.make().await["id"].as_str().unwrap().to_owned();
    case.world.make("", "tenant", "other", json!({})).await;
    if case.tenant.is_empty() {
        return;
    }
    let theirs = base(case.kind, "other");
    for (method, rest, body) in [
        ("GET", "", Value::Null),
        ("PATCH", "", json!({ "tags": { "mine": "now" } })),
        ("DELETE", "", Value::Null),
        ("GET", "/revisions", Value::Null),
        ("POST", "/revisions/1/restore", Value::Null),
        ("GET", "/rendered", Value::Null),
        ("GET", "/access", Value::Null),
    ] {
        let ask = async |one: &str| {
            let path = format!("{theirs}/{one}{rest}");
            let mut reply = face.call(method, &path, body.clone()).await.is_problem(404, "not-found");
            reply.json["request_id"] = Value::Null;
            let mut headers: Vec<_> = reply.headers.keys().map(|name| name.as_str().to_owned()).collect();
            headers.sort();
            (reply.json, headers)
        };
        let prefix = case.kind.meta().prefix;
        assert_eq!(
            ask(&id).await,
            ask(&format!("{prefix}_00000000000000000000000000")).await,
            "{method} {rest}"
        );
        assert_eq!(ask(case.name).await, ask("nobody").await, "{method} {rest}");
    }
    assert_eq!(face.get(&theirs).await.is(200).json["items"], json!([]));
    let nobodys = base(case.kind, "nosuchtenant");
    face.get(&nobodys).await.is_problem(404, "not-found");
    face.call("POST", &nobodys, case.body()).await.is_problem(404, "not-found");
}

/// What operators made for all tenants: each finds it among its own, and can neither change it nor look behind it.
async fn made_for_all_is_seen_by_all(case: Case) {
    let Case { face, .. } = &case;
    if !(case.tenant.is_empty() && case.kind.meta().scope == Scope::Both) {
        return;
    }
    let id = case.make().await["id"].as_str().unwrap().to_owned();
    let theirs = base(case.kind, TENANT);
    for one in [id.as_str(), case.name] {
        let path = format!("{theirs}/{one}");
        let seen = face.get(&path).await.is(200);
        assert_eq!((&seen.json["id"], &seen.json["tenant"]), (&json!(id), &Value::Null));
        face.get(&format!("{path}/access")).await.is(200);
        for (method, rest, body) in [
            ("PATCH", "", json!({ "tags": { "mine": "now" } })),
            ("PATCH", "", json!({ "phase": "x" })),
            ("DELETE", "", Value::Null),
            ("GET", "/revisions", Value::Null),
            ("POST", "/revisions/1/restore", Value::Null),
            ("GET", "/rendered", Value::Null),
        ] {
            let denied = face.call(method, &format!("{path}{rest}"), body).await.is_problem(403, "denied");
            assert!(denied.json["detail"].as_str().unwrap().contains("operators"), "{:#}", denied.json);
        }
    }
    for filter in ["", "?name=NAME", "?name_prefix=the", "?tag.env=prod", "?metadata.team.id=7&order=name"] {
        let list = face.get(&format!("{theirs}{}", filter.replace("NAME", case.name))).await.is(200);
        let items = list.json["items"].as_array().unwrap();
        assert!(items.len() == 1 && items[0]["id"] == json!(id), "{filter}: {items:?}");
    }
    // A tenant may have one of the same name: then the name is its own.
    let own = face.call("POST", &theirs, case.body()).await.json["id"].as_str().unwrap().to_owned();
    assert_eq!(face.get(&format!("{theirs}/{}", case.name)).await.is(200).json["id"], own);
    assert_eq!(face.get(&case.at(case.name)).await.is(200).json["id"], id);
    pages_hold_everything_once(face, &theirs, &own).await;
    pages_hold_everything_once(face, &theirs, &id).await;
    face.call("DELETE", &format!("{theirs}/{own}"), Value::Null).await;
    assert_eq!(face.get(&format!("{theirs}/{}", case.name)).await.is(200).json["id"], id);
}

async fn changed_by_those_who_know_it(case: Case) {
    let Case { face, .. } = &case;
    let made = case.make().await;
    let path = case.at(made["id"].as_str().unwrap());
    let etag = face.get(&path).await.is(200).header("etag").to_owned();
    let patch = json!({ "tags": { "env": null, "tier": "gold" }, "metadata": { "team": { "id": 8 } } });
    let known = [("if-match", etag.as_str()), ("content-type", "application/merge-patch+json")];
    let changed = face.with("PATCH", &path, &known, patch.clone()).await.is(200);
    assert_eq!(changed.json["tags"], json!({ "tier": "gold" }));
    assert_eq!(changed.json["metadata"], json!({ "team": { "id": 8 } }));
    assert_eq!(changed.json["generation"], made["generation"], "the spec is the same");
    assert_eq!(changed.json["version"], json!(made["version"].as_i64().unwrap() + 1));
    face.with("PATCH", &path, &known, json!({ "tags": {} })).await.is_problem(412, "stale");
    face.with("DELETE", &path, &known[..1], Value::Null).await.is_problem(412, "stale");
    let fresh = changed.header("etag").split("-s").next().unwrap().to_owned() + "-s999\"";
    // Asked twice, changed once; and only the version part of an ETag is compared.
    let same = face.with("PATCH", &path, &[("if-match", &fresh)], patch).await.is(200);
    assert_eq!(same.json["version"], changed.json["version"]);

    let before = face.get(&path).await.json;
    let wrong = json!({ "phase": "x", "tags": 1, "spec": { "surely_unknown": 1 } });
    let told = face.call("PATCH", &path, wrong).await.is_problem(422, "invalid").fields();
    assert_eq!(told, ["phase", "spec.surely_unknown", "tags"]);
    let told = face.call("PATCH", &path, json!({ "spec": { "surely_unknown": 1 } })).await;
    assert_eq!(told.is_problem(422, "invalid").fields(), ["spec.surely_unknown"]);
    face.call("PATCH", &format!("{path}?plan="), json!({})).await.is_problem(400, "malformed");
    assert_eq!(face.get(&path).await.json, before);
}

async fn protected_and_in_use(case: Case) {
    let Case { face, .. } = &case;
    let path = case.at(case.make().await["id"].as_str().unwrap());
    let on = face.call("PATCH", &path, json!({ "protected": true })).await.is(200);
    assert_eq!(on.json["protected"], true);
    face.call("DELETE", &path, Value::Null).await.is_problem(409, "protected");
    face.call("PATCH", &path, json!({ "protected": false })).await.is(200);
    for (field, other) in &case.refs {
        let refused = face.call("DELETE", other, Value::Null).await.is_problem(409, "in-use");
        let users = refused.json["used_by"].as_array().unwrap();
        assert!(!users.is_empty() && users.iter().all(|user| user["id"].is_string()), "{field}: {users:?}");
    }
    let gone = face.call("DELETE", &path, Value::Null).await;
    assert!(matches!(gone.status, 202 | 204), "{:#}", gone.json);
    if gone.status == 202 {
        assert!(gone.json["job"].is_string(), "{:#}", gone.json);
        // What no node holds may have gone already.
        let twice = face.call("DELETE", &path, Value::Null).await;
        let word = if twice.status == 404 { "not-found" } else { "wrong-state" };
        let status = if twice.status == 404 { 404 } else { 409 };
        twice.is_problem(status, word);
    }
}

async fn history_and_looks(case: Case) {
    let Case { face, .. } = &case;
    let made = case.make().await;
    let path = case.at(made["id"].as_str().unwrap());
    face.call("PATCH", &path, json!({ "tags": { "env": "test" } })).await.is(200);
    let all = face.get(&format!("{path}/revisions")).await.is(200);
    let versions: Vec<i64> =
        all.json["items"].as_array().unwrap().iter().map(|item| item["version"].as_i64().unwrap()).collect();
    let first = made["version"].as_i64().unwrap();
    assert_eq!(versions, [first + 1, first]);
    let newest = face.get(&format!("{path}/revisions?limit=1")).await.is(200);
    let next = newest.json["next"].as_str().unwrap();
    let older = face.get(&format!("{path}/revisions?limit=1&page={next}")).await.is(200);
    assert_eq!(older.json["items"][0]["tags"], json!({ "env": "prod" }));
    let back = face.call("POST", &format!("{path}/revisions/{first}/restore"), Value::Null).await.is(200);
    assert_eq!(back.json["tags"], json!({ "env": "prod" }));
    face.call("POST", &format!("{path}/revisions/999/restore"), Value::Null)
        .await
        .is_problem(404, "not-found");
    face.get(&format!("{path}/rendered")).await.is(200);
    let access = face.get(&format!("{path}/access")).await.is(200);
    assert_eq!(access.json["items"][0]["who"], "operators");
    face.call("POST", &format!("{path}/actions/surely-not"), Value::Null).await.is_problem(404, "not-found");
}

async fn done_once_under_a_key(case: Case) {
    let Case { face, base, .. } = &case;
    let one = [("idempotency-key", "one")];
    let first = face.with("POST", base, &one, case.body()).await;
    assert!(matches!(first.status, 201 | 202), "{:#}", first.json);
    let path = case.at(first.json["id"].as_str().unwrap());
    case.again("POST", base, case.body(), &first).await;
    let mut other = case.body();
    other["tags"] = json!({ "env": "test" });
    face.with("POST", base, &one, other).await.is_problem(422, "key-reused");

    // The same key on another path, or by another method, is another key.
    let patch = json!({ "tags": { "env": "test" } });
    let patched = face.with("PATCH", &path, &one, patch.clone()).await.is(200);
    face.call("PATCH", &path, json!({ "tags": { "env": "later" } })).await.is(200);
    case.again("PATCH", &path, patch.clone(), &patched).await;
    assert_eq!(face.get(&path).await.json["tags"], json!({ "env": "later" }), "it was not done again");
    let stale = [("idempotency-key", "one"), ("if-match", "\"v1\"")];
    face.with("PATCH", &path, &stale, patch).await.is_problem(422, "key-reused");
    let restore = format!("{path}/revisions/1/restore");
    let restored = face.with("POST", &restore, &one, Value::Null).await.is(200);
    case.again("POST", &restore, Value::Null, &restored).await;

    // What is refused has changed nothing, and is not kept: the same key may be tried again.
    face.call("PATCH", &path, json!({ "protected": true })).await.is(200);
    face.with("DELETE", &path, &one, Value::Null).await.is_problem(409, "protected");
    face.call("PATCH", &path, json!({ "protected": false })).await.is(200);
    let gone = face.with("DELETE", &path, &one, Value::Null).await;
    assert!(matches!(gone.status, 202 | 204), "{:#}", gone.json);
    case.again("DELETE", &path, Value::Null, &gone).await;
    // And the answer of the creation is the same still.
    case.again("POST", base, case.body(), &first).await;
}

impl Case {
    /// The same request under the same key is answered the same.
    async fn again(&self, method: &str, path: &str, body: Value, first: &Reply) {
        let again = self.face.with(method, path, &[("idempotency-key", "one")], body).await;
        let mut shown_once = first.json.clone();
        let made = shown_once.as_object_mut().and_then(|object| object.remove("secrets"));
        match made {
            // What was made for the one who asked is shown once.
            Some(_) => {
                assert_eq!((again.status, &again.json), (first.status, &shown_once), "{method} {path}")
            }
            None => assert_eq!((again.status, &again.bytes), (first.status, &first.bytes), "{method} {path}"),
        }
        for header in ["etag", "location", "content-type", "preference-applied"] {
            assert_eq!(again.header(header), first.header(header), "{method} {path}: {header}");
        }
        assert_eq!(
            (first.header("idempotency-replayed"), again.header("idempotency-replayed")),
            ("", "true")
        );
    }

    /// A plan, which has changed nothing.
    async fn plan(&self, method: &str, path: &str, body: Value) -> Value {
        let before = self.everything().await;
        let planned = self.face.call(method, &format!("{path}?plan=true"), body).await.is(200);
        assert_eq!(planned.header("content-type"), "application/vnd.rhyzome.plan+json");
        assert_eq!(self.everything().await, before, "{method} {path}: a plan changes nothing");
        planned.json
    }

    /// All objects of all kinds, and all jobs.
    async fn everything(&self) -> Vec<Value> {
        let mut all = Vec::new();
        let kinds = rhyzome_api::resources::registry();
        let lists = kinds.all().iter().map(|kind| kind.meta().plural).chain(["jobs"]);
        for list in lists {
            all.push(self.face.get(&format!("/v1/{list}?limit=1000")).await.is(200).json);
        }
        all
    }
}

async fn planned_and_not_done(case: Case) {
    let Case { face, base, name, .. } = &case;
    let planned = case.plan("POST", base, case.body()).await;
    assert_eq!(
        (&planned["problem"], &planned["object"]["name"]),
        (&Value::Null, &json!(name)),
        "{planned:#}"
    );
    let mut wrong = case.body();
    wrong["spec"]["surely_unknown"] = json!(1);
    for body in [wrong.clone(), json!({ "name": "with spaces", "spec": wrong["spec"], "phase": "x" })] {
        let refused = case.plan("POST", base, body).await;
        assert_eq!(
            (&refused["status"], &refused["problem"]["type"]),
            (&json!(422), &json!("/problems/invalid"))
        );
        let told: Vec<_> =
            refused["problem"]["errors"].as_array().unwrap().iter().map(|e| &e["field"]).collect();
        assert!(told.contains(&&json!("spec.surely_unknown")), "{told:?}");
    }
    // What was planned is what happens.
    let made = face.call("POST", base, case.body()).await;
    assert_eq!(planned["status"], made.status);
    assert_eq!(planned["steps"].as_array().unwrap().is_empty(), made.json["job"].is_null());
    let path = case.at(made.json["id"].as_str().unwrap());

    let planned = case.plan("PATCH", &path, json!({ "tags": { "env": "test" } })).await;
    assert_eq!((&planned["status"], &planned["object"]["tags"]["env"]), (&json!(200), &json!("test")));
    let taken = case.plan("POST", base, case.body()).await;
    assert!(matches!(taken["status"].as_i64(), Some(409 | 422)), "{taken:#}");
    for (field, other) in &case.refs {
        let refused = case.plan("DELETE", other, Value::Null).await;
        assert_eq!(refused["problem"]["type"], "/problems/in-use", "{field}: {refused:#}");
    }
    let planned = case.plan("DELETE", &path, Value::Null).await;
    let gone = face.call("DELETE", &path, Value::Null).await;
    assert_eq!(planned["status"], gone.status, "{planned:#}");
    face.call("DELETE", &format!("{}?plan=true", case.at("nobody")), Value::Null)
        .await
        .is_problem(404, "not-found");
}

async fn fields_change_as_the_document_says(case: Case) {
    let Case { face, .. } = &case;
    let meta = case.kind.meta();
    let document = face.raw("GET", "/openapi.json", &[], "").await.is(200).json;
    let spec = format!("{}Spec", rhyzome_api::kernel::kind::pascal(meta.kind));
    let fields = document["components"]["schemas"][&spec]["properties"].as_object().unwrap();
    for (field, schema) in fields {
        let said = meta.fields.iter().find(|(path, _)| path == field);
        let change = said.map_or(Change::Mutable, |(_, change)| *change);
        assert_eq!(schema["x-rhyzome-change"], json!(change), "{spec}.{field}");
    }
    let made = case.make().await;
    let path = case.at(made["id"].as_str().unwrap());
    for (field, _) in meta.fields.iter().filter(|(_, change)| *change == Change::Immutable) {
        let other = match &made["spec"][field] {
            Value::String(text) => json!(format!("{text}0")),
            Value::Number(number) => json!(number.as_u64().unwrap() + 1),
            _ => continue,
        };
        let patch = json!({ "spec": { *field: other } });
        let told = face.call("PATCH", &path, patch.clone()).await.is_problem(422, "invalid").fields();
        assert!(told.contains(&format!("spec.{field}")), "{field}: {told:?}");
        let planned = case.plan("PATCH", &path, patch).await;
        assert_eq!(planned["problem"]["errors"][0]["field"], format!("spec.{field}"), "{planned:#}");
    }
    // Restoring, too, is only for those who know the present version.
    let known = [("if-match", "\"v99\"")];
    let restore = format!("{path}/revisions/1/restore");
    face.with("POST", &restore, &known, Value::Null).await.is_problem(412, "stale");
    for action in meta.actions {
        let act = format!("{path}/actions/{}", action.verb);
        face.with("POST", &act, &known, Value::Null).await.is_problem(412, "stale");
        let planned = case.plan("POST", &act, Value::Null).await;
        assert!(planned["status"].as_i64().is_some(), "{}: {planned:#}", action.verb);
        face.call("POST", &case.at(&format!("actions/{}", action.verb)), Value::Null)
            .await
            .is_problem(400, "filter-required");
    }
    // And of many at once, the same: each with its own outcome.
    let all = format!("{}?name={}", case.base, case.name);
    let patched = face.call("PATCH", &all, json!({ "tags": { "env": "bulk" } })).await.is(200);
    assert_eq!(patched.json["items"][0]["status"], 200, "{:#}", patched.json);
    assert_eq!(face.get(&path).await.json["tags"], json!({ "env": "bulk" }));
    face.call("DELETE", &case.base, Value::Null).await.is_problem(400, "filter-required");
    let gone = face.call("DELETE", &all, Value::Null).await.is(200);
    assert!(matches!(gone.json["items"][0]["status"].as_i64(), Some(202 | 204)), "{:#}", gone.json);
}
