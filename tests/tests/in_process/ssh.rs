//! SSH certificates: what an instance is given, who gets in, and what nobody gets. On both databases.

use prost::Message as _;
use rhyzome_proto::v1::order_body::Body;
use rhyzome_proto::v1::{InstanceOrder, OrderBody};
use rhyzome_tests::face::{Face, Reply};
use rhyzome_tests::on_both;
use rhyzome_tests::people::face;
use rhyzome_tests::world::{Engine, World};
use serde_json::{Value, json};
use ssh_key::certificate::CertType;
use ssh_key::{Certificate, Fingerprint, HashAlg, PublicKey};

on_both!(
    an_instance_is_given_a_key_and_what_is_said_of_it,
    a_certificate_is_for_one_instance_and_for_whoever_may,
    what_a_user_says_is_never_taken_for_a_secret,
    what_was_there_before_goes_on_without,
    a_key_that_has_no_row_is_made_again_wherever_it_is_needed,
    names_of_authorities_are_found_again,
    each_tenant_has_authorities_of_its_own,
);

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me@laptop";
const ALL: &str = "/v1/tenants/default/instances";
const CA: &str = "/v1/tenants/default/ssh-ca";

async fn instance(face: &Face, tenant: &str, name: &str, spec: Value) -> Value {
    let mut whole = json!({ "image": "tiny" });
    whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let path = format!("/v1/tenants/{tenant}/instances");
    face.call("POST", &path, json!({ "name": name, "spec": whole })).await.is(202).json
}

async fn furnished(world: &World) -> (Face, String) {
    let node = world.make_node("able", 1 << 40).await;
    world.make_image("", "tiny").await;
    (face(world), node)
}

/// What the node is to hold for it, with what the markers stand for.
async fn order(world: &World, node: &str, id: &Value) -> (InstanceOrder, Vec<(String, String)>) {
    let all = world.store.assignments_after(node, 0, 1000).await.unwrap();
    let row = all.into_iter().find(|row| json!(row.object_id) == *id).unwrap();
    let Some(Body::Instance(order)) = OrderBody::decode(row.body.as_slice()).unwrap().body else { panic!() };
    let secrets = row.secrets.unwrap().into_iter();
    (order, secrets.map(|(marker, plain)| (marker, plain.reveal().to_owned())).collect())
}

fn print_of(line: &Value) -> [Fingerprint; 1] {
    [PublicKey::from_openssh(line.as_str().unwrap()).unwrap().fingerprint(HashAlg::Sha256)]
}

fn certificate(reply: &Reply) -> Certificate {
    Certificate::from_openssh(reply.json["certificate"].as_str().unwrap()).unwrap()
}

async fn an_instance_is_given_a_key_and_what_is_said_of_it(world: World) {
    let (face, node) = furnished(&world).await;
    let web = instance(&face, "default", "web", json!({})).await;
    let shown = face.get(&format!("{ALL}/web")).await.is(200).json;
    let authorities = face.get(CA).await.is(200).json;
    let status = &shown["status"];
    let said = Certificate::from_openssh(status["ssh_host_certificate"].as_str().unwrap()).unwrap();
    let now = u64::try_from(world.store.env().now().0 / 1_000_000).unwrap();
    said.validate_at(now, &print_of(&authorities["hosts"]["public_key"])).unwrap();
    assert!(said.validate_at(now, &print_of(&authorities["users"]["public_key"])).is_err(), "they are two");
    assert_eq!(said.cert_type(), CertType::Host);
    let address = status["nics"]["default"]["address"].as_str().unwrap();
    let names = [web["id"].as_str().unwrap(), "web", "web.default.internal", address];
    assert_eq!(said.valid_principals(), names);
    let own = PublicKey::from_openssh(status["ssh_host_key"].as_str().unwrap()).unwrap();
    assert_eq!(said.public_key(), own.key_data());

    // Its node gets the key itself; nobody else ever does.
    let (order, secrets) = order(&world, &node, &web["id"]).await;
    let ssh = order.ssh.unwrap();
    assert_eq!(json!(ssh.host_key), shown["spec"]["ssh_host_key"]);
    assert_eq!(json!(ssh.host_certificate), status["ssh_host_certificate"]);
    assert_eq!(json!(ssh.user_authority), authorities["users"]["public_key"]);
    let [(marker, key)] = secrets.as_slice() else { panic!("{} secrets", secrets.len()) };
    assert_eq!(*marker, ssh.host_key);
    let key = ssh_key::PrivateKey::from_openssh(key).unwrap();
    assert_eq!(key.public_key().key_data(), own.key_data());
    let written = world.written().await;
    let seed = key.key_data().ed25519().unwrap().private.to_bytes();
    assert!(!written.windows(32).any(|bytes| bytes == seed), "it stands in the database");
    assert!(
        !written.windows(19).any(|bytes| bytes == b"OPENSSH PRIVATE KEY"),
        "a key stands in the database"
    );

    // It stays what it is, whatever becomes of the instance.
    face.call("PATCH", &format!("{ALL}/web"), json!({ "name": "www", "spec": { "vcpus": 2 } })).await.is(202);
    let after = face.get(&format!("{ALL}/www")).await.is(200).json;
    assert_eq!(after["status"]["ssh_host_certificate"], status["ssh_host_certificate"]);
    for other in [json!(null), json!("-----BEGIN OPENSSH PRIVATE KEY-----")] {
        let patch = json!({ "spec": { "ssh_host_key": other } });
        let told = face.call("PATCH", &format!("{ALL}/www"), patch).await.is_problem(422, "invalid");
        assert!(told.fields().contains(&"spec.ssh_host_key".to_owned()), "{:#}", told.json);
    }
    // Its marker is good for nobody else.
    let theirs = json!({ "spec": { "image": "tiny", "ssh_host_key": shown["spec"]["ssh_host_key"] } });
    face.call("POST", ALL, theirs).await.is_problem(422, "invalid");
    // Or somebody brings their own.
    let own = rhyzome_api::kernel::ssh::private_key([9; 32]).unwrap();
    let public = rhyzome_api::kernel::ssh::public_key(own.reveal()).unwrap();
    let brought = instance(&face, "default", "own", json!({ "ssh_host_key": own.reveal() })).await;
    assert_eq!(brought["status"]["ssh_host_key"], json!(public));
    let bad = json!({ "spec": { "image": "tiny", "ssh_host_key": "rubbish" } });
    assert_eq!(face.call("POST", ALL, bad).await.is_problem(422, "invalid").fields(), ["spec.ssh_host_key"]);
}

async fn a_certificate_is_for_one_instance_and_for_whoever_may(world: World) {
    let (face, _) = furnished(&world).await;
    for (who, role) in [("otto", "owner"), ("eve", "editor"), ("vera", "viewer"), ("bill", "billing")] {
        face.member("default", who, role).await;
    }
    world.make("", "tenant", "beta", json!({})).await;
    face.member("beta", "bea", "owner").await;
    let web = instance(&face, "default", "web", json!({})).await;
    let path = format!("{ALL}/web/ssh-certificate");
    let asked = json!({ "public_key": KEY });
    for (who, status) in [("vera", 403), ("bill", 404), ("bea", 404), ("nobody", 404)] {
        assert_eq!(face.by(who, "POST", &path, asked.clone()).await.status, status, "{who}");
        assert_eq!(face.seen_by(who, &format!("{ALL}/web/tunnel")).await.status, status, "{who}");
    }
    let authorities = face.get(CA).await.is(200).json;
    for who in ["otto", "eve", "operator"] {
        let made = face.by(who, "POST", &path, asked.clone()).await.is(201);
        assert_eq!(made.header("cache-control"), "no-store");
        let read = certificate(&made);
        let now = u64::try_from(world.store.env().now().0 / 1_000_000).unwrap();
        let by = print_of(&authorities["users"]["public_key"]);
        read.validate_at(now, &by).unwrap();
        assert!(read.validate_at(now + 301, &by).is_err(), "it is short");
        assert_eq!(read.cert_type(), CertType::User);
        assert_eq!(json!(read.valid_principals()), json!([web["id"]]));
        assert_eq!(read.public_key(), PublicKey::from_openssh(KEY).unwrap().key_data());
        assert!(read.key_id().contains("web") && read.key_id().contains("req_"), "{}", read.key_id());
        assert!(read.key_id().starts_with(who) || who == "operator", "{}", read.key_id());
        let believed = format!(
            "@cert-authority {} {}",
            web["id"].as_str().unwrap(),
            authorities["hosts"]["public_key"].as_str().unwrap()
        );
        assert_eq!((&made.json["known_hosts"], &made.json["host_key_alias"]), (&json!(believed), &web["id"]));
    }
    // It is told to whoever asks who may, and to whoever asks who did.
    let access = face.seen_by("vera", &format!("{ALL}/web/access")).await.is(200).json;
    let mine = access["items"].as_array().unwrap().iter().find(|item| item["verb"] == "ssh").unwrap();
    assert_eq!(mine["may"], json!([]));
    let can = face.seen_by("eve", "/v1/can?verb=ssh&kind=instance&tenant=default&id=web").await.is(200).json;
    assert_eq!(can["allowed"], true, "{can:#}");
    let only =
        json!({ "scopes": ["instance:get", "instance:ssh"], "tenant": "default", "object": web["id"] });
    let token = face.by("otto", "POST", "/v1/tokens", json!({ "spec": only })).await.is(201).json;
    let token = token["secrets"]["token"].as_str().unwrap();
    instance(&face, "default", "other", json!({})).await;
    face.by(token, "POST", &path, asked.clone()).await.is(201);
    let other = face.by(token, "POST", &format!("{ALL}/other/ssh-certificate"), asked.clone()).await;
    assert!(matches!(other.status, 403 | 404), "{}", other.status);
    let told = world
        .ask("SELECT actor, resource FROM event WHERE verb = 'ssh' AND outcome = 'done' ORDER BY actor")
        .await;
    let actors: Vec<&str> = told.iter().map(|row| row[0].as_str()).collect();
    assert!(actors.contains(&"eve") && actors.contains(&"otto") && actors.len() == 4, "{told:?}");
    assert!(told.iter().all(|row| json!(row[1]) == web["id"]), "{told:?}");

    // All that is wrong is told.
    let wrong = json!({ "public_key": "rubbish", "valid_seconds": 86400, "user": "root" });
    let told = face.by("otto", "POST", &path, wrong).await.is_problem(422, "invalid").fields();
    assert_eq!(told, ["public_key", "user", "valid_seconds"]);
    face.by("otto", "POST", &path, json!({})).await.is_problem(422, "invalid");
    let long =
        face.by("otto", "POST", &path, json!({ "public_key": KEY, "valid_seconds": 3600 })).await.is(201);
    assert_eq!(certificate(&long).valid_before() - certificate(&long).valid_after(), 3900);
    let port = face.get(&format!("{ALL}/web/tunnel?port=70000")).await;
    port.is_problem(400, "malformed");
}

/// Whatever stands in user data or a comment of a key, orders go on.
async fn what_a_user_says_is_never_taken_for_a_secret(world: World) {
    let (face, node) = furnished(&world).await;
    let first = instance(&face, "default", "first", json!({})).await;
    let theirs = first["spec"]["ssh_host_key"].as_str().unwrap();
    let said = format!("#!/bin/sh\n# {theirs} sealed:sec_{}\n", "0".repeat(26));
    let key = json!({ "name": "odd", "spec": { "public_key": format!("{KEY} {theirs}") } });
    face.call("POST", "/v1/tenants/default/ssh-keys", key).await.is(201);
    let second =
        instance(&face, "default", "second", json!({ "user_data": said, "ssh_keys": ["odd"] })).await;
    let (order, secrets) = order(&world, &node, &second["id"]).await;
    assert_eq!(order.user_data, said);
    assert_eq!(secrets.len(), 1);
    assert_eq!(secrets[0].0, order.ssh.unwrap().host_key);
}

/// An instance that was made by an older program has no key: it is never given one behind its guest's back.
async fn what_was_there_before_goes_on_without(world: World) {
    let (face, node) = furnished(&world).await;
    let old = instance(&face, "default", "old", json!({})).await;
    let id = old["id"].as_str().unwrap();
    for _ in 0..4 {
        world.obey(&node, 0).await;
        rhyzome_api::jobs::look(&world.store).await.unwrap();
    }
    let rows = world.ask(&format!("SELECT spec, claims FROM resource WHERE id = '{id}'")).await;
    let without = |text: &str, gone: &str| {
        let mut value: Value = serde_json::from_str(text).unwrap();
        value.as_object_mut().unwrap().retain(|key, _| !key.starts_with(gone) && !key.starts_with("known:"));
        value.to_string()
    };
    let (spec, claims) = (without(&rows[0][0], "ssh_host_key"), without(&rows[0][1], "ssh_"));
    world.sql(&format!("UPDATE resource SET spec = '{spec}', claims = '{claims}' WHERE id = '{id}'")).await;
    world.sql(&format!("DELETE FROM secret WHERE holder = '{id}'")).await;
    let path = format!("{ALL}/old");
    face.call("PATCH", &path, json!({ "tags": { "a": "b" } })).await.is(200);
    face.call("PATCH", &path, json!({ "spec": { "vcpus": 2 } })).await.is(202);
    let shown = face.get(&path).await.is(200).json;
    assert_eq!(
        (&shown["spec"]["ssh_host_key"], &shown["status"]["ssh_host_key"]),
        (&Value::Null, &Value::Null)
    );
    let (order, secrets) = order(&world, &node, &old["id"]).await;
    assert_eq!((order.ssh, order.vcpus, secrets.len()), (None, 2, 0));
    let refused = face.call("POST", &format!("{path}/ssh-certificate"), json!({ "public_key": KEY })).await;
    refused.is_problem(409, "wrong-state");
}

/// Nothing keeps it: not the database, and no server's memory.
async fn a_key_that_has_no_row_is_made_again_wherever_it_is_needed(world: World) {
    let (face, node) = furnished(&world).await;
    let web = instance(&face, "default", "web", json!({})).await;
    let own = rhyzome_api::kernel::ssh::private_key([9; 32]).unwrap();
    let brought = instance(&face, "default", "own", json!({ "ssh_host_key": own.reveal() })).await;
    let rows = world.ask("SELECT holder FROM secret WHERE field = 'spec.ssh_host_key'").await;
    assert_eq!(rows, [[brought["id"].as_str().unwrap()]], "one that was brought has a row, and no other");
    let given = order(&world, &node, &web["id"]).await;
    let kept = order(&world, &node, &brought["id"]).await;
    assert_eq!(kept.1[0].1, own.reveal());
    // The marker is said back, and nothing changes by it.
    let patch = json!({ "spec": { "ssh_host_key": web["spec"]["ssh_host_key"] } });
    face.call("PATCH", &format!("{ALL}/web"), patch).await.is(200);
    let theirs = json!({ "spec": { "ssh_host_key": web["spec"]["ssh_host_key"] } });
    face.call("PATCH", &format!("{ALL}/own"), theirs).await.is_problem(422, "invalid");
    for engine in [Engine::Sqlite, Engine::Postgres] {
        let later = world.carried(engine).await;
        assert_eq!(order(&later, &node, &web["id"]).await, given);
        assert_eq!(order(&later, &node, &brought["id"]).await, kept);
    }
}

/// Those of an older program are named by no tenant; and what was not kept names none.
async fn names_of_authorities_are_found_again(world: World) {
    let (face, node) = furnished(&world).await;
    let bad = json!({ "name": "bad", "spec": { "image": "tiny", "vcpus": 0 } });
    face.call("POST", ALL, bad).await.is_problem(422, "invalid");
    let many = "SELECT count(*) FROM secret WHERE field LIKE 'ssh-%'";
    assert_eq!(world.ask(many).await, [["0"]], "nothing is left of what was refused");
    let web = instance(&face, "default", "web", json!({})).await;
    let (authorities, key) = (face.get(CA).await.is(200).json, order(&world, &node, &web["id"]).await);
    let is_tenant = "kind = 'tenant' AND name = 'default'";
    let named = world.ask(&format!("SELECT claims FROM resource WHERE {is_tenant}")).await;
    let ids = world.ask("SELECT id FROM secret WHERE field LIKE 'ssh-%'").await;
    assert!(ids.len() == 2 && ids.iter().all(|id| named[0][0].contains(&id[0])), "{named:?}");
    let mut older: serde_json::Map<String, Value> = serde_json::from_str(&named[0][0]).unwrap();
    older.retain(|name, _| !name.starts_with("ssh-"));
    let older = Value::Object(older);
    world.sql(&format!("UPDATE resource SET claims = '{older}' WHERE {is_tenant}")).await;
    let before = face.get("/v1/tenants/default").await.is(200);
    assert_eq!(face.get(CA).await.is(200).json, authorities);
    assert_eq!(order(&world, &node, &web["id"]).await, key);
    instance(&face, "default", "other", json!({})).await;
    assert_eq!(world.ask(&format!("SELECT claims FROM resource WHERE {is_tenant}")).await, named);
    assert_eq!(world.ask(many).await, [["2"]]);
    let after = face.get("/v1/tenants/default").await.is(200);
    assert_eq!((before.header("etag"), &before.json), (after.header("etag"), &after.json));
}

async fn each_tenant_has_authorities_of_its_own(world: World) {
    let (face, _) = furnished(&world).await;
    world.make("", "tenant", "beta", json!({})).await;
    face.member("default", "otto", "owner").await;
    face.member("default", "vera", "viewer").await;
    face.member("beta", "bea", "owner").await;
    let ours = face.seen_by("vera", CA).await.is(200).json;
    let theirs = face.seen_by("bea", "/v1/tenants/beta/ssh-ca").await.is(200).json;
    let keys: std::collections::BTreeSet<String> = [&ours, &theirs]
        .iter()
        .flat_map(|both| {
            ["hosts", "users"].map(|whose| both[whose]["fingerprint"].as_str().unwrap().to_owned())
        })
        .collect();
    assert_eq!(keys.len(), 4, "{keys:?}");
    assert_eq!(face.seen_by("vera", CA).await.is(200).json, ours, "they stay");
    face.seen_by("bea", CA).await.is_problem(404, "not-found");
    assert!(ours["known_hosts"].as_str().unwrap().starts_with("@cert-authority * ssh-ed25519 "));
    // A key is worth something to nobody but the server: it is sealed, and its tenant's.
    let kept = world.ask("SELECT holder, field FROM secret WHERE field LIKE 'ssh-%' ORDER BY id").await;
    assert_eq!(kept.len(), 4, "{kept:?}");
    // They go with their tenant.
    face.call("DELETE", "/v1/tenants/beta/members/bea", Value::Null).await;
    for member in face.get("/v1/tenants/beta/members").await.is(200).json["items"].as_array().unwrap() {
        let path = format!("/v1/tenants/beta/members/{}", member["id"].as_str().unwrap());
        face.call("DELETE", &path, Value::Null).await;
    }
    let gone = face.call("DELETE", "/v1/tenants/beta", Value::Null).await;
    assert!(matches!(gone.status, 202 | 204), "{:#}", gone.json);
    rhyzome_tests::wait::until("them to be gone", 30, async || {
        rhyzome_api::jobs::look(&world.store).await.unwrap();
        (world.ask("SELECT id FROM secret WHERE field LIKE 'ssh-%'").await.len() == 2).then_some(())
    })
    .await;
}
