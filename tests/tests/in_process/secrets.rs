//! Secrets in specs: they go in and come out nowhere, on both databases. The kind is one of the tests' own: all that it
//! does is to mark its fields.

use std::collections::BTreeMap;

use rhyzome_api::environment::system_env;
use rhyzome_api::kernel::secret::{Made, Plain};
use rhyzome_api::kernel::{
    Facts, FieldError, Held, Meta, NameRule, Object, Plan, Registry, Resource, Scope, erased,
};
use rhyzome_api::resources;
use rhyzome_api::sealing::{self, Keyring, Source};
use rhyzome_api::store::Vault;
use rhyzome_tests::face::Face;
use rhyzome_tests::wait::until;
use rhyzome_tests::world::{Engine, World};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;

const SAFES: &str = "/v1/tenants/default/safes";
/// How every secret of the test begins.
const PLANTED: &str = "planted-secret-";

struct Safe;

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"pin": "planted-secret-0000"}))]
struct SafeSpec {
    /// Given by whoever makes it.
    #[schema(write_only, min_length = 8, max_length = 64)]
    pin: String,
    /// Made if it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(write_only)]
    token: Option<String>,
    /// Each with its own.
    #[serde(default)]
    keys: BTreeMap<String, SafeKey>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SafeKey {
    #[schema(write_only)]
    key: String,
    #[serde(default)]
    note: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
struct SafeStatus {}

impl Resource for Safe {
    const META: Meta = Meta {
        kind: "safe",
        plural: "safes",
        prefix: "safe",
        scope: Scope::Tenant,
        name: NameRule::Label,
        about: "Something with secrets",
        actions: &[],
        fields: &[],
        held: Held::Never,
        private: &[],
    };
    type Spec = SafeSpec;
    type Status = SafeStatus;

    fn validate(object: &Object<Self>, _facts: &Facts, _creating: bool) -> Vec<FieldError> {
        // A kind sees what was given, and a marker where nothing was.
        match object.spec.pin.contains("forbidden") {
            true => vec![FieldError::new("spec.pin", "is too easy")],
            false => Vec::new(),
        }
    }

    fn create(_object: &Object<Self>, _facts: &Facts) -> Plan {
        Plan::default()
    }

    fn update(_old: &Object<Self>, _new: &Object<Self>, _facts: &Facts) -> Plan {
        Plan::default()
    }

    fn remove(_object: &Object<Self>) -> Plan {
        Plan::release()
    }

    fn make_secret(path: &str, random: [u8; 32]) -> Option<Made> {
        (path == "token").then(|| Made::Shown(Plain::new(format!("{PLANTED}made-{:02x?}", &random[..8]))))
    }
}

fn kinds() -> Registry {
    let mut all = resources::registry().all().to_vec();
    all.push(erased::<Safe>());
    Registry::new(all)
}

macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod sqlite { $(#[tokio::test(flavor = "multi_thread")] async fn $name() {
            super::$name(super::world(super::Engine::Sqlite).await).await;
        })* }
        mod postgres { $(#[tokio::test(flavor = "multi_thread")] async fn $name() {
            super::$name(super::world(super::Engine::Postgres).await).await;
        })* }
    };
}

on_both!(
    a_thousand_secrets_are_found_nowhere,
    a_marker_stands_for_one_secret_of_one_object,
    what_nobody_gave_is_made_and_shown_once,
    keys_change_while_others_write,
    what_was_put_elsewhere_is_not_opened,
);

async fn world(engine: Engine) -> World {
    World::with_kinds(engine, system_env(), kinds()).await
}

fn holds(all: &[u8], what: &str) -> bool {
    // As it is, and as a dump shows bytes.
    let hex: String = what.bytes().map(|byte| format!("{byte:02x}")).collect();
    let all = String::from_utf8_lossy(all);
    all.contains(what) || all.contains(&hex)
}

impl Trail<'_> {
    async fn call(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: Value) -> Value {
        let reply = self.face.with(method, path, headers, body).await;
        self.answers.extend(&reply.bytes);
        self.answers.extend(format!("{:?}", reply.headers).bytes());
        reply.json
    }
}

/// All that was ever answered.
struct Trail<'a> {
    face: &'a Face,
    answers: Vec<u8>,
}

async fn a_thousand_secrets_are_found_nowhere(world: World) {
    let face = Face::of(&world);
    let mut trail = Trail { face: &face, answers: Vec::new() };
    let secret = |number: usize| format!("{PLANTED}{number:04}-{:016x}", number * 0x9e37_79b9_7f4a);
    for number in 0..200 {
        let (name, key) = (format!("s{number}"), format!("key-{number}"));
        let of = |nth: usize| secret(number * 5 + nth);
        let key = [("idempotency-key", key.as_str())];
        let body = json!({ "name": name, "metadata": { "canary": "seen-by-all" }, "spec": {
            "pin": of(0), "token": of(1), "keys": { "a": { "key": of(2), "note": "n" } },
        }});
        let made = trail.call("POST", SAFES, &key, body.clone()).await;
        assert!(made["id"].is_string(), "{made:#}");
        trail.call("POST", SAFES, &key, body).await;
        let path = format!("{SAFES}/{name}");
        let patch = json!({ "spec": { "pin": of(3), "keys": { "b": { "key": of(4) } } } });
        trail.call("PATCH", &format!("{path}?plan=true"), &[], patch.clone()).await;
        let changed = trail.call("PATCH", &path, &key, patch).await;
        assert_eq!(changed["version"], 2, "{changed:#}");
        if number % 10 == 0 {
            // What is wrong is told without what was said.
            trail
                .call(
                    "PATCH",
                    &path,
                    &[],
                    json!({ "spec": { "pin": 1, "token": of(0).repeat(9), "x": of(1) } }),
                )
                .await;
            let said = trail
                .call("PATCH", &path, &[], json!({ "spec": { "pin": format!("{}forbidden", of(0)) } }))
                .await;
            assert_eq!(said["errors"][0]["field"], "spec.pin", "{said:#}");
            let short = trail.call("PATCH", &path, &[], json!({ "spec": { "pin": "short" } })).await;
            assert_eq!(short["errors"][0]["reason"], "must have at least 8 character(s)", "{short:#}");
            for look in ["", "/revisions", "/rendered", "/access"] {
                trail.call("GET", &format!("{path}{look}"), &[], Value::Null).await;
            }
            trail.call("POST", &format!("{path}/revisions/1/restore"), &[], Value::Null).await;
        }
        if number % 20 == 0 {
            trail.call("DELETE", &path, &[], Value::Null).await;
        }
    }
    for list in [SAFES, "/v1/jobs", "/v1/audit", "/v1/tenants/default/audit"] {
        trail.call("GET", &format!("{list}?limit=1000"), &[], Value::Null).await;
    }
    let open = |name: &'static str, field: &'static str| {
        let world = &world;
        async move {
            let kind = world.kind("safe");
            let object = world.store.get(&world.right("default"), kind, name).await.unwrap();
            world.store.secret(&object, field).await.unwrap().unwrap().reveal().to_owned()
        }
    };
    assert_eq!(open("s7", "spec.pin").await, secret(38));
    assert_eq!(open("s7", "spec.keys.a.key").await, secret(37));
    assert_eq!(open("s10", "spec.pin").await, secret(50), "restored");
    let counted: i64 = world.store.sealed_by().await.unwrap().values().sum();
    assert_eq!(counted, 190 * 5, "those of what is gone have gone");

    assert!(holds(&trail.answers, "seen-by-all") && !holds(&trail.answers, PLANTED));
    let written = world.written().await;
    assert!(
        holds(&written, "seen-by-all") && holds(&written, "sealed:sec_"),
        "the search finds what is there"
    );
    assert!(!holds(&written, PLANTED));
}

async fn a_marker_stands_for_one_secret_of_one_object(world: World) {
    let face = Face::of(&world);
    let spec =
        |pin: &str| json!({ "pin": pin, "token": "planted-secret-token", "keys": { "a": { "key": "k" } } });
    let one =
        face.call("POST", SAFES, json!({ "name": "one", "spec": spec("first-secret") })).await.is(201).json;
    let two =
        face.call("POST", SAFES, json!({ "name": "two", "spec": spec("other-secret") })).await.is(201).json;
    let path = format!("{SAFES}/one");
    let marker = one["spec"]["pin"].clone();
    assert!(marker.as_str().unwrap().starts_with("sealed:sec_"), "{marker}");
    // What comes back can be sent back: nothing changes.
    let same = face.call("PATCH", &path, json!({ "spec": one["spec"] })).await.is(200).json;
    assert_eq!(same["version"], one["version"]);
    for (field, foreign) in [("pin", &two["spec"]["pin"]), ("pin", &one["spec"]["token"]), ("token", &marker)]
    {
        let told =
            face.call("PATCH", &path, json!({ "spec": { field: foreign } })).await.is_problem(422, "invalid");
        assert_eq!(told.fields(), [format!("spec.{field}")]);
    }
    let born = json!({ "spec": { "pin": marker } });
    assert_eq!(face.call("POST", SAFES, born).await.is_problem(422, "invalid").fields(), ["spec.pin"]);

    let changed = face.call("PATCH", &path, json!({ "spec": { "pin": "second-secret" } })).await.is(200).json;
    assert_ne!(changed["spec"]["pin"], marker);
    assert_eq!(changed["spec"]["token"], one["spec"]["token"]);
    assert_eq!(changed["generation"], 2);
    let back = face.call("POST", &format!("{path}/revisions/1/restore"), Value::Null).await.is(200).json;
    assert_eq!(back["spec"]["pin"], marker);
    let object = world.store.get(&world.right("default"), world.kind("safe"), "one").await.unwrap();
    let plain = world.store.secret(&object, "spec.pin").await.unwrap().unwrap();
    assert_eq!(plain.reveal(), "first-secret");
    let document = face.raw("GET", "/openapi.json", &[], "").await.is(200).json;
    let schemas = &document["components"]["schemas"];
    assert_eq!(schemas["SafeSpec"]["properties"]["pin"]["x-rhyzome-secret"], true);
    assert_eq!(schemas["SafeKey"]["properties"]["key"]["x-rhyzome-secret"], true);
}

async fn what_nobody_gave_is_made_and_shown_once(world: World) {
    let face = Face::of(&world);
    let one = [("idempotency-key", "one")];
    let body = json!({ "name": "one", "spec": { "pin": "planted-secret-pin" } });
    let made = face.with("POST", SAFES, &one, body.clone()).await.is(201).json;
    let shown = made["secrets"]["spec.token"].as_str().unwrap_or_else(|| panic!("{made:#}")).to_owned();
    assert!(shown.starts_with(PLANTED), "{shown}");
    assert_eq!(made["secrets"].as_object().unwrap().len(), 1, "what was given is not shown: {made:#}");
    let again = face.with("POST", SAFES, &one, body).await.is(201).json;
    assert_eq!((&again["id"], &again["secrets"]), (&made["id"], &Value::Null));
    let path = format!("{SAFES}/one");
    assert_eq!(face.get(&path).await.is(200).json["secrets"], Value::Null);
    let object = world.store.get(&world.right("default"), world.kind("safe"), "one").await.unwrap();
    assert_eq!(world.store.secret(&object, "spec.token").await.unwrap().unwrap().reveal(), shown);
    // Taken away means: make another.
    let other = face.call("PATCH", &path, json!({ "spec": { "token": null } })).await.is(200).json;
    assert_ne!(other["secrets"]["spec.token"], json!(shown));
    assert!(other["secrets"]["spec.token"].is_string(), "{other:#}");
    // Of many at once too: each is shown, and not to whoever asks again.
    let (many, key) = (format!("{SAFES}?name=one"), [("idempotency-key", "many")]);
    let body = json!({ "spec": { "token": null } });
    let did = face.with("PATCH", &many, &key, body.clone()).await.is(200).json;
    let object = world.store.get(&world.right("default"), world.kind("safe"), "one").await.unwrap();
    let plain = world.store.secret(&object, "spec.token").await.unwrap().unwrap();
    assert_eq!(did["items"][0]["secrets"]["spec.token"], plain.reveal(), "{did:#}");
    let again = face.with("PATCH", &many, &key, body).await.is(200).json;
    assert_eq!((&again["items"][0]["id"], &again["items"][0]["secrets"]), (&made["id"], &Value::Null));
    assert!(!holds(&world.written().await, PLANTED));
}

async fn keys_change_while_others_write(world: World) {
    let face = Face::of(&world);
    let stop = CancellationToken::new();
    let fresh = tokio::spawn(sealing::keep_fresh(world.store.clone(), world.keyring.clone(), stop.clone()));
    let old = world.keyring.newest();
    let mut new = String::new();
    for number in 0..300 {
        let body = json!({ "name": format!("s{number}"), "spec": { "pin": format!("{PLANTED}{number}") } });
        face.call("POST", SAFES, body).await.is(201);
        if number == 150 {
            // As another process does it: this one has to find out.
            let Source::File(path) = world.keyring.source() else { panic!() };
            let other = Keyring::open(Source::File(path.clone())).unwrap();
            new = other.add(&system_env()).unwrap();
        }
    }
    until("all are sealed with the new key", 60, async || {
        let all = world.store.sealed_by().await.unwrap();
        (all.keys().eq([&new]) && all[&new] == 600).then_some(())
    })
    .await;
    assert_ne!(old, new);
    for number in [0, 149, 151, 299] {
        let name = format!("s{number}");
        let object = world.store.get(&world.right("default"), world.kind("safe"), &name).await.unwrap();
        let plain = world.store.secret(&object, "spec.pin").await.unwrap().unwrap();
        assert_eq!(plain.reveal(), format!("{PLANTED}{number}"));
    }
    stop.cancel();
    fresh.await.unwrap();
    // A server without the key refuses the database, and says which one it misses.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sealing.keys");
    Keyring::make(&path, &system_env()).unwrap();
    let stranger = Keyring::open(Source::File(path)).unwrap();
    let refused = sealing::furnish(&world.store, stranger.into()).await.unwrap_err().to_string();
    assert!(refused.contains(&new) && refused.contains("backup"), "{refused}");
}

async fn what_was_put_elsewhere_is_not_opened(world: World) {
    for name in ["one", "two"] {
        world.make("default", "safe", name, json!({ "pin": format!("{PLANTED}{name}") })).await;
    }
    let pins = "SELECT id FROM secret WHERE field = 'spec.pin'";
    world.sql(&format!("UPDATE secret SET sealed = (SELECT sealed FROM secret s WHERE s.id = (SELECT max(id) FROM ({pins}) p)) \
                        WHERE id = (SELECT min(id) FROM ({pins}) p)")).await;
    let object = world.store.get(&world.right("default"), world.kind("safe"), "one").await.unwrap();
    let refused = world.store.secret(&object, "spec.pin").await.unwrap_err().to_string();
    assert!(refused.contains("damaged, or put elsewhere"), "{refused}");
    let object = world.store.get(&world.right("default"), world.kind("safe"), "two").await.unwrap();
    assert_eq!(
        world.store.secret(&object, "spec.pin").await.unwrap().unwrap().reveal(),
        format!("{PLANTED}two")
    );
}
