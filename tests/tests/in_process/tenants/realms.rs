//! A realm at the identity provider that is made with its tenant: whatever goes wrong there, it is made once, is known to
//! be ours, and goes only when that was asked for.

use std::sync::Arc;

use rhyzome_api::auth::{Authenticators, Domains, Realms, Sessions};
use rhyzome_api::realms::{Tried, look};
use rhyzome_api::store::RealmTold;
use rhyzome_tests::face::{Face, Reply};
use rhyzome_tests::keycloak::{FakeKeycloak, Fault, SECRET};
use rhyzome_tests::on_both;
use rhyzome_tests::people::known_beside;
use rhyzome_tests::wait::until;
use rhyzome_tests::world::World;
use serde_json::{Value, json};

on_both!(
    a_realm_is_made_with_its_tenant,
    what_goes_wrong_is_tried_again_and_done_once,
    who_dies_in_between_leaves_it_to_the_next,
    what_is_somebody_elses_is_not_taken_over,
    what_will_not_be_done_is_told,
    a_realm_goes_when_that_was_asked_for,
    where_no_realms_are_made_none_is_promised,
);

const ACME: &str = "/v1/tenants/acme";

/// The API, with a Keycloak beside it.
struct House {
    world: World,
    keycloak: FakeKeycloak,
    domains: Arc<Domains>,
    face: Face,
}

impl House {
    async fn new(world: World) -> House {
        let (keycloak, domains) = (FakeKeycloak::new().await, Arc::new(Domains::default()));
        let sessions = Arc::new(Sessions::default());
        let (config, outbound) = (keycloak.config(), keycloak.outbound());
        let realms = Realms::new(config, domains.clone(), sessions, outbound, world.store.env());
        let face =
            Face::knowing(&world, Authenticators::new(known_beside(realms)).with_domains(domains.clone()));
        world.store.makes_realms();
        House { world, keycloak, domains, face }
    }

    /// One look of a server that knows of nothing that went wrong before.
    async fn look(&self) {
        rhyzome_api::jobs::look(&self.world.store).await.unwrap();
        look(&self.world.store, &self.keycloak.maker(), &mut Tried::default()).await.unwrap();
        rhyzome_api::jobs::look(&self.world.store).await.unwrap();
        self.domains.read(&self.world.store).await.unwrap();
    }

    async fn make(&self, spec: Value) -> String {
        let body = json!({ "name": "acme", "spec": spec });
        let made = self.face.call("POST", "/v1/tenants", body).await.is(202);
        assert_eq!(made.json["phase"], "creating");
        made.json["job"].as_str().unwrap().to_owned()
    }

    async fn job(&self, id: &str) -> Value {
        let job = self.face.get(&format!("/v1/jobs/{id}")).await.is(200).json;
        assert!(
            !job.to_string().contains(SECRET) && !job.to_string().contains("token-of-the-maker"),
            "{job:#}"
        );
        job
    }

    async fn tenant(&self) -> Value {
        self.face.get(ACME).await.is(200).json
    }

    /// A GET of somebody of a realm.
    async fn by(&self, realm: &str, host: &str, path: &str) -> Reply {
        let now = self.world.store.env().now().0 / 1_000_000;
        let bearer = format!("Bearer {}", self.keycloak.token_of(realm, "anna", &["/dev"], now));
        self.face.raw("GET", path, &[("authorization", &bearer), ("host", host)], "").await
    }
}

async fn a_realm_is_made_with_its_tenant(world: World) {
    let house = House::new(world).await;
    let api = json!({ "domain": "api.acme.example" });
    let job = house.make(json!({ "make_realm": true, "api": api })).await;
    house.domains.read(&house.world.store).await.unwrap();
    house.by("acme", "api.example", "/v1/whoami").await.is_problem(401, "unauthenticated");
    house.look().await;
    assert_eq!(house.job(&job).await["state"], "done");
    let tenant = house.tenant().await;
    assert_eq!(
        (&tenant["phase"], &tenant["status"]["realm"]["made"]),
        (&json!("ready"), &json!(true)),
        "{tenant:#}"
    );
    // All that is needed to log in is in it, and it says whose it is.
    let realm = house.keycloak.has().realms["acme"].clone();
    assert_eq!(realm["attributes"]["rhyzome.tenant"], tenant["id"]);
    let client = &realm["clients"][0];
    assert_eq!((&client["clientId"], &client["publicClient"]), (&json!("rhyzome-cli"), &json!(true)));
    assert_eq!(client["attributes"]["pkce.code.challenge.method"], "S256");
    assert_eq!(client["attributes"]["oauth2.device.authorization.grant.enabled"], "true");
    let ended = "https://api.example/v1/login/realm-acme/ended";
    assert_eq!(client["attributes"]["backchannel.logout.url"], ended);
    // Whoever has several logins loses them all.
    assert_eq!(client["attributes"]["backchannel.logout.session.required"], "false");
    // Its people are the tenant's, on its domain too, and nowhere else; those of another realm are nobody.
    for host in ["api.example", "api.acme.example"] {
        let me = house.by("acme", host, "/v1/whoami").await.is(200).json;
        assert_eq!((&me["name"], &me["operator"]), (&json!("anna"), &json!(false)), "{me:#}");
        house.by("acme", host, "/v1/nodes").await.is_problem(404, "not-found");
        house.by("shop", host, "/v1/whoami").await.is_problem(401, "unauthenticated");
        house.by("master", host, "/v1/whoami").await.is_problem(401, "unauthenticated");
    }
    // What is given to a group of the realm they have.
    let groups = format!("{ACME}/placement-groups");
    house.by("acme", "api.acme.example", &groups).await.is_problem(404, "not-found");
    let subjects = json!({ "dev": { "group": "/dev", "authenticator": "realm-acme" } });
    let binding = json!({ "spec": { "subjects": subjects, "role": "viewer" } });
    house.face.call("POST", &format!("{ACME}/bindings"), binding).await.is(201);
    house.by("acme", "api.acme.example", &groups).await.is(200);
    // Who comes to log in is sent there, from its domain alone.
    let login = async |host: &str| {
        house.face.raw("GET", "/v1/login", &[("host", host)], "").await.is(200).json["items"].clone()
    };
    let issuer = format!("{}/realms/acme", house.keycloak.url);
    let items = json!([{ "name": "realm-acme", "issuer": issuer, "client_id": "rhyzome-cli" }]);
    assert_eq!(login("api.acme.example").await, items);
    assert_eq!(login("api.example").await, json!([]));
    // Its logouts are heard; those of a realm that is nobody's are not.
    for (name, status) in [("realm-acme", 400), ("realm-shop", 404), ("realm-", 404)] {
        let path = format!("/v1/login/{name}/ended");
        house.face.raw("POST", &path, &[], "logout_token=x").await.is(status);
    }
    // Changed otherwise it stays what it is, and nobody asks for it again.
    house.face.call("PATCH", ACME, json!({ "spec": { "description": "d" } })).await.is(200);
    for (spec, field) in
        [(json!({ "make_realm": false }), "spec.make_realm"), (json!({ "realm": "other" }), "spec.realm")]
    {
        let refused = house.face.call("PATCH", ACME, json!({ "spec": spec })).await;
        assert_eq!(refused.is_problem(422, "invalid").fields(), [field]);
    }
    house.look().await;
    assert_eq!(house.keycloak.count("POST /admin/realms"), 1);
}

async fn what_goes_wrong_is_tried_again_and_done_once(world: World) {
    let house = House::new(world).await;
    let job = house.make(json!({ "make_realm": true, "realm": "Acme_1" })).await;
    // It is away; it is slow; it is busy; it did it, and nobody heard that it had.
    let faults = [Fault::Status(500), Fault::Late, Fault::Status(429), Fault::DoneAndLate];
    house.keycloak.will(&faults);
    for fault in faults {
        house.look().await;
        let job = house.job(&job).await;
        assert_eq!(job["state"], "running", "{fault:?}: {job:#}");
        let message = job["steps"][0]["message"].as_str().unwrap();
        assert!(message.contains("the identity provider"), "{fault:?}: {message}");
        assert!(house.tenant().await["status"]["realm"]["waits_for"].is_string(), "{fault:?}");
    }
    house.look().await;
    assert_eq!(house.job(&job).await["state"], "done");
    let realm = &house.tenant().await["status"]["realm"];
    assert_eq!(
        (&realm["name"], &realm["made"], &realm["waits_for"]),
        (&json!("Acme_1"), &json!(true), &Value::Null)
    );
    assert_eq!(house.keycloak.has().realms.len(), 1);
    assert_eq!(house.keycloak.count("POST /admin/realms"), faults.len() + 1);
    house.by("Acme_1", "api.example", "/v1/whoami").await.is(200);
}

async fn who_dies_in_between_leaves_it_to_the_next(world: World) {
    let house = House::new(world).await;
    let job = house.make(json!({ "make_realm": true })).await;
    // One server has made it, and is gone before it could say so; two others look at the same moment.
    let work = house.world.store.realms_wanted().await.unwrap().remove(0);
    assert_eq!(house.keycloak.maker().make(&work).await, RealmTold::Done);
    assert_eq!(house.job(&job).await["state"], "running");
    tokio::join!(house.look(), house.look());
    assert_eq!(house.job(&job).await["state"], "done");
    assert_eq!(house.keycloak.has().realms.len(), 1);
    assert!(house.world.store.realms_wanted().await.unwrap().is_empty());
    // To go it is the same.
    house.face.call("DELETE", &format!("{ACME}?realm=delete"), Value::Null).await.is(202);
    let work = house.world.store.realms_wanted().await.unwrap().remove(0);
    assert_eq!(house.keycloak.maker().delete(&work).await, RealmTold::Done);
    tokio::join!(house.look(), house.look());
    house.face.get(ACME).await.is_problem(404, "not-found");
    assert!(house.keycloak.has().realms.is_empty());
    // Told once more, by somebody who was slow, it changes nothing.
    house.world.store.realm_told(work, RealmTold::Done).await.unwrap();
}

async fn what_is_somebody_elses_is_not_taken_over(world: World) {
    let house = House::new(world).await;
    let theirs = json!({ "realm": "acme", "attributes": { "rhyzome.tenant": "ten_somebody_else" } });
    house.keycloak.has().realms.insert("acme".into(), theirs.clone());
    let job = house.make(json!({ "make_realm": true })).await;
    house.look().await;
    let failed = house.job(&job).await;
    assert_eq!(failed["state"], "failed", "{failed:#}");
    assert!(failed["problem"].as_str().unwrap().contains("was not made for this tenant"), "{failed:#}");
    assert_eq!(house.keycloak.has().realms["acme"], theirs);
    // Nobody of it is of the tenant, whatever it is called.
    house.by("acme", "api.example", "/v1/whoami").await.is_problem(401, "unauthenticated");
    let refused = house.face.call("DELETE", &format!("{ACME}?realm=delete"), Value::Null).await;
    refused.is_problem(409, "wrong-state");
    house.face.call("DELETE", ACME, Value::Null).await.is(202);
    house.look().await;
    // The same of a tenant that is there already: another name is the way out.
    let there = json!({ "name": "acme", "spec": {} });
    house.face.call("POST", "/v1/tenants", there).await.is(201);
    let patch = async |spec: Value| {
        let patched = house.face.call("PATCH", ACME, json!({ "spec": spec })).await.is(202);
        house.look().await;
        house.job(patched.json["job"].as_str().unwrap()).await["state"].clone()
    };
    assert_eq!(patch(json!({ "make_realm": true })).await, "failed");
    house.by("acme", "api.example", "/v1/whoami").await.is_problem(401, "unauthenticated");
    assert_eq!(patch(json!({ "realm": "acme-cloud" })).await, "done");
    let realm = &house.tenant().await["status"]["realm"];
    assert_eq!((&realm["name"], &realm["made"]), (&json!("acme-cloud"), &json!(true)));
    house.by("acme-cloud", "api.example", "/v1/whoami").await.is(200);
    house.by("acme", "api.example", "/v1/whoami").await.is_problem(401, "unauthenticated");
    // Or to take the one that is there as it is, knowingly. It is not ours for that.
    let named = json!({ "name": "other", "spec": { "realm": "acme" } });
    house.face.call("POST", "/v1/tenants", named).await.is(201);
    house.domains.read(&house.world.store).await.unwrap();
    house.by("acme", "api.example", "/v1/whoami").await.is(200);
    let refused = house.face.call("DELETE", "/v1/tenants/other?realm=delete", Value::Null).await;
    refused.is_problem(409, "wrong-state");
    house.face.call("DELETE", "/v1/tenants/other", Value::Null).await.is(202);
    house.look().await;
    house.by("acme", "api.example", "/v1/whoami").await.is_problem(401, "unauthenticated");
    assert_eq!(house.keycloak.has().realms["acme"], theirs);
}

async fn what_will_not_be_done_is_told(world: World) {
    let house = House::new(world).await;
    for (fault, locked, why) in [
        (Some(Fault::Status(403)), false, "`create-realm`"),
        (Some(Fault::Status(400)), false, "status 400"),
        (None, true, "not by this secret"),
    ] {
        house.keycloak.will(&fault.into_iter().collect::<Vec<_>>());
        house.keycloak.has().locked = locked;
        let job = house.make(json!({ "make_realm": true })).await;
        house.look().await;
        let failed = house.job(&job).await;
        assert_eq!(failed["state"], "failed", "{failed:#}");
        assert!(failed["problem"].as_str().unwrap().contains(why), "{failed:#}");
        assert_eq!(house.tenant().await["phase"], "failed");
        // Asked for again, when it is mended.
        house.keycloak.has().locked = false;
        house.face.call("POST", &format!("/v1/jobs/{job}/retry"), Value::Null).await.is(202);
        house.look().await;
        assert_eq!(house.tenant().await["phase"], "ready", "{:#}", house.tenant().await);
        house.face.call("DELETE", &format!("{ACME}?realm=delete"), Value::Null).await.is(202);
        house.look().await;
        house.face.get(ACME).await.is_problem(404, "not-found");
        assert!(house.keycloak.has().realms.is_empty());
    }
    // One that is taken away meanwhile is wanted no more.
    house.make(json!({ "make_realm": true })).await;
    house.face.call("DELETE", ACME, Value::Null).await.is(202);
    house.look().await;
    house.face.get(ACME).await.is_problem(404, "not-found");
    assert!(house.world.store.realms_wanted().await.unwrap().is_empty());
    assert!(house.keycloak.has().realms.is_empty());
}

async fn a_realm_goes_when_that_was_asked_for(world: World) {
    let house = House::new(world).await;
    let made = async || {
        let job = house.make(json!({ "make_realm": true })).await;
        house.look().await;
        assert_eq!(house.job(&job).await["state"], "done");
    };
    made().await;
    house.face.call("DELETE", &format!("{ACME}?realm=gone"), Value::Null).await.is_problem(400, "malformed");
    // By itself it stays, and so does a realm of that name for whoever comes next: it is not theirs.
    house.face.call("DELETE", ACME, Value::Null).await.is(202);
    house.look().await;
    house.face.get(ACME).await.is_problem(404, "not-found");
    assert_eq!(house.keycloak.has().realms.len(), 1);
    let job = house.make(json!({ "make_realm": true })).await;
    house.look().await;
    assert_eq!(house.job(&job).await["state"], "failed");
    house.face.call("DELETE", ACME, Value::Null).await.is(202);
    house.look().await;
    assert_eq!(house.keycloak.count("DELETE /admin/realms/acme"), 0);
    house.keycloak.has().realms.clear();
    // With all that the tenant has, whatever goes wrong meanwhile.
    made().await;
    let group = json!({ "spec": { "rule": "anti-affinity" } });
    house.face.call("POST", &format!("{ACME}/placement-groups"), group).await.is(201);
    let planned =
        house.face.call("DELETE", &format!("{ACME}?cascade=true&realm=delete&plan=true"), Value::Null).await;
    assert!(planned.is(200).json.to_string().contains("realm"));
    house.keycloak.will(&[Fault::Status(502), Fault::DoneAndLate]);
    house.face.call("DELETE", &format!("{ACME}?cascade=true&realm=delete"), Value::Null).await.is(202);
    until("the tenant and its realm to be gone", 60, async || {
        house.look().await;
        let open = house.world.ask("SELECT id FROM job WHERE finished_at IS NULL").await;
        open.is_empty().then_some(())
    })
    .await;
    house.face.get(ACME).await.is_problem(404, "not-found");
    assert!(house.keycloak.has().realms.is_empty());
    house.by("acme", "api.example", "/v1/whoami").await.is_problem(401, "unauthenticated");
    // One that says no more that it is ours stays, and the tenant with it, until somebody decides.
    made().await;
    house.keycloak.has().realms.get_mut("acme").unwrap()["attributes"] = json!({});
    house.face.call("DELETE", &format!("{ACME}?realm=delete"), Value::Null).await.is(202);
    house.look().await;
    assert_eq!(house.keycloak.has().realms.len(), 1);
}

async fn where_no_realms_are_made_none_is_promised(world: World) {
    let face = Face::of(&world);
    let body = json!({ "name": "acme", "spec": { "make_realm": true } });
    let refused = face.call("POST", "/v1/tenants", body).await.is_problem(422, "invalid");
    assert_eq!(refused.fields(), ["spec.make_realm"]);
    face.call("POST", "/v1/tenants", json!({ "name": "acme", "spec": { "realm": "acme" } })).await.is(201);
}
