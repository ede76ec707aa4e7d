//! What the API does beyond what every kind has: waiting, jobs, actions, content, invitations, pages; on both
//! databases.

use rhyzome_api::jobs;
use rhyzome_tests::face::{Face, TOKEN};
use rhyzome_tests::on_both;
use rhyzome_tests::wait::until;
use rhyzome_tests::world::World;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

on_both!(
    whoever_waits_gets_the_end,
    nobody_home_is_accepted_and_no_room_is_refused,
    images_are_inspected_before_they_get_a_name,
    an_invitation_is_shown_once_and_kept_hashed,
    everything_wrong_is_a_problem,
    newcomers_find_their_way,
    a_tenants_images_are_its_own_and_those_for_all,
);

/// A node that does what it is ordered to, for as long as the guard lives.
struct Obedient(CancellationToken, tokio::task::JoinHandle<()>);

impl Drop for Obedient {
    fn drop(&mut self) {
        self.0.cancel();
        self.1.abort();
    }
}

async fn obedient(world: &World) -> Obedient {
    let node = world.make_node("n1", 1 << 40).await;
    world.make_image("", "tiny").await;
    let stop = CancellationToken::new();
    tokio::spawn(jobs::run(world.store.clone(), stop.clone()));
    let world = world.clone();
    let task = tokio::spawn(async move {
        let mut cursor = 0;
        loop {
            cursor = world.obey(&node, cursor).await;
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    });
    Obedient(stop, task)
}

const INSTANCES: &str = "/v1/tenants/default/instances";
const WAIT: (&str, &str) = ("prefer", "wait=30");

async fn whoever_waits_gets_the_end(world: World) {
    let face = Face::of(&world);
    let _node = obedient(&world).await;
    let body = json!({ "name": "web", "spec": { "image": "tiny" } });
    let made = face.with("POST", INSTANCES, &[WAIT], body).await.is(201);
    assert_eq!(made.header("preference-applied"), "wait=30");
    let job = made.json["job"].as_str().unwrap();
    let jobs = "/v1/tenants/default/jobs";
    let done = face.get(&format!("{jobs}/{job}/wait?timeout=5")).await.is(200);
    assert_eq!(done.json["state"], "done");
    assert_eq!(face.get(&format!("/v1/jobs/{job}")).await.is(200).json["id"], job);
    let log = face.get(&format!("{jobs}/{job}/log")).await.is(200);
    let text = String::from_utf8(log.bytes).unwrap();
    assert!(text.lines().count() > 1 && text.trim_end().ends_with("job done"), "{text}");
    let lines = face
        .with("GET", &format!("{jobs}/{job}/log"), &[("accept", "application/x-ndjson")], Value::Null)
        .await;
    for line in String::from_utf8(lines.bytes).unwrap().lines() {
        serde_json::from_str::<Value>(line).unwrap();
    }
    let list = face.get(&format!("{jobs}?state=done&limit=1")).await.is(200);
    assert_eq!(list.json["items"].as_array().unwrap().len(), 1);
    face.call("POST", &format!("{jobs}/{job}/cancel"), Value::Null).await.is_problem(409, "wrong-state");
    face.call("POST", &format!("{jobs}/{job}/retry"), Value::Null).await.is_problem(409, "wrong-state");
    face.get(&format!("{jobs}/job_00000000000000000000000000")).await.is_problem(404, "not-found");

    let web = format!("{INSTANCES}/web");
    let stopped =
        face.with("POST", &format!("{web}/actions/stop"), &[WAIT], json!({ "mode": "hard" })).await.is(200);
    assert_eq!(stopped.json["spec"]["power"], "off", "{:#}", stopped.json);
    let wrong = face.call("POST", &format!("{web}/actions/stop"), json!({ "mode": "soft", "now": 1 })).await;
    assert_eq!(wrong.is_problem(422, "invalid").fields(), ["mode", "now"]);
    face.get(&format!("{web}/console")).await.is_problem(426, "upgrade-required");
    assert_eq!(face.get("/v1/instances").await.is(200).json["items"].as_array().unwrap().len(), 1);
    assert_eq!(face.get("/v1/instances?order=name").await.is(200).json["items"][0]["name"], "web");
    let gone = face.with("DELETE", &web, &[WAIT], Value::Null).await.is(204);
    assert!(gone.bytes.is_empty());
}

async fn nobody_home_is_accepted_and_no_room_is_refused(world: World) {
    let face = Face::of(&world);
    world.make_image("", "tiny").await;
    let body = json!({ "spec": { "image": "tiny" } });
    let full = face.call("POST", INSTANCES, body.clone()).await.is_problem(409, "no-capacity");
    assert!(full.json["nodes"].is_array(), "operators see the table: {:#}", full.json);
    world.make_node("n1", 1 << 40).await;
    let late = face.with("POST", INSTANCES, &[("prefer", "wait=1")], body).await.is(202);
    let job = late.json["job"].as_str().unwrap();
    let cancelled = face.call("POST", &format!("/v1/jobs/{job}/cancel"), Value::Null).await.is(202);
    assert_eq!(cancelled.json["id"], job);
}

async fn images_are_inspected_before_they_get_a_name(world: World) {
    let face = Face::of(&world);
    let made = face.call("POST", "/v1/images", json!({ "name": "tiny" })).await;
    assert!(matches!(made.status, 201 | 202), "{:#}", made.json);
    let bearer = format!("Bearer {TOKEN}");
    let put = async |bytes: Vec<u8>, media: &str| {
        let headers = [("authorization", bearer.as_str()), ("content-type", media)];
        face.raw("PUT", "/v1/images/tiny/content", &headers, bytes).await
    };
    let octets = "application/octet-stream";
    let refused = put(b"no image at all".to_vec(), octets).await.is_problem(422, "invalid");
    assert_eq!(refused.fields(), ["content"]);
    put(vec![0; (1 << 20) + 1], octets).await.is_problem(413, "too-large");
    put(qcow2(), "text/plain").await.is_problem(415, "unsupported-media-type");
    assert_eq!(std::fs::read_dir(&face.blobs).unwrap().count(), 0, "refused bytes leave nothing");

    let good = put(qcow2(), octets).await.is(200);
    let sha256 = good.json["status"]["sha256"].as_str().unwrap();
    assert_eq!(good.json["status"]["virtual_size_bytes"], 1 << 20);
    assert_eq!(std::fs::read(face.blobs.join(sha256)).unwrap(), qcow2());
    put(qcow2(), octets).await.is(200);
    let mut other = qcow2();
    other.extend([0; 512]);
    put(other, octets).await.is_problem(409, "wrong-state");
    assert_eq!(std::fs::read_dir(&face.blobs).unwrap().count(), 1);
    let headers = [("authorization", bearer.as_str())];
    face.raw("PUT", "/v1/images/none/content", &headers, qcow2()).await.is_problem(404, "not-found");
}

/// The smallest qcow2 (version 2) that is whole: a header, empty L1 and refcount tables, one refcount block.
fn qcow2() -> Vec<u8> {
    const CLUSTER: usize = 512;
    let mut image = vec![0_u8; CLUSTER * 5];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb");
    put(4, &2_u32.to_be_bytes());
    put(20, &9_u32.to_be_bytes());
    put(24, &(1_u64 << 20).to_be_bytes());
    // A cluster of L2 entries covers 64 clusters of 512 bytes: 32 entries for 1 MiB.
    put(36, &32_u32.to_be_bytes());
    put(40, &(3 * CLUSTER as u64).to_be_bytes());
    put(48, &(CLUSTER as u64).to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    put(CLUSTER, &(2 * CLUSTER as u64).to_be_bytes());
    for cluster in 0..5 {
        put(2 * CLUSTER + cluster * 2, &1_u16.to_be_bytes());
    }
    image
}

async fn an_invitation_is_shown_once_and_kept_hashed(world: World) {
    let face = Face::of(&world);
    world.make("", "node", "n1", json!({})).await;
    let invited = face.call("POST", "/v1/nodes/n1/actions/invite", Value::Null).await.is(201);
    let token = invited.json["token"].as_str().unwrap();
    assert!(token.starts_with("rzj1.") && token.ends_with(&"ab".repeat(32)), "{token}");
    assert!(invited.json["command"].as_str().unwrap().contains(token));
    let hash = rhyzome_api::kernel::join::hash_of(token);
    let joined = world.store.redeem_join_token(&hash, "n1").await.unwrap();
    assert!(joined.is_ok(), "{joined:?}");
    face.call("POST", "/v1/nodes/none/actions/invite", Value::Null).await.is_problem(404, "not-found");
    face.call("POST", "/v1/nodes/n1/actions/invite", json!({ "days": 9 })).await.is_problem(422, "invalid");
}

async fn everything_wrong_is_a_problem(world: World) {
    let face = Face::of(&world);
    let bearer = format!("Bearer {TOKEN}");
    let post = async |body: String| {
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        face.raw("POST", INSTANCES, &headers, body).await
    };
    post("x".repeat((1 << 20) + 1)).await.is_problem(413, "too-large");
    post(format!("{{\"spec\": {}", "[".repeat(5000))).await.is_problem(400, "malformed");
    post("{\"spec\": {}, \"spec\": {}}".into()).await.is_problem(400, "malformed");
    post("{\"name\": \"a\\u0000\"}".into()).await.is_problem(400, "malformed");
    face.get("/v1/nothing").await.is_problem(404, "not-found");
    face.get("/v1/tenants/default/instances/%00").await.is_problem(404, "not-found");
    face.get("/v1/tenants/default/instances/%ff").await.is_problem(400, "malformed");
    let key = [("idempotency-key", "k")];
    face.with("POST", "/v1/nodes/n/actions/invite", &key, Value::Null).await.is_problem(400, "not-supported");
    face.with("POST", INSTANCES, &[("idempotency-key", "")], json!({})).await.is_problem(400, "malformed");
    face.with("POST", INSTANCES, &[("prefer", "wait=soon")], json!({})).await.is_problem(400, "malformed");
    face.with("GET", "/v1", &[("x-request-id", "mine-1")], Value::Null).await.is(200).header("x-request-id");
    let named = face.with("GET", "/v1/nothing", &[("x-request-id", "mine-1")], Value::Null).await;
    assert_eq!(named.is_problem(404, "not-found").json["request_id"], "mine-1");
    let strange = face.with("GET", "/v1/nothing", &[("x-request-id", "no spaces")], Value::Null).await;
    assert!(strange.is_problem(404, "not-found").header("x-request-id").starts_with("req_"));
}

async fn newcomers_find_their_way(world: World) {
    let face = Face::of(&world);
    let root = face.get("/v1").await.is(200);
    assert!(root.json["kinds"].as_array().unwrap().iter().any(|kind| kind["kind"] == "instance"));
    assert_eq!(face.get("/v1/whoami").await.is(200).json["operator"], true);
    face.raw("GET", "/v1", &[], "").await.is_problem(401, "unauthenticated");
    face.raw("GET", "/healthz", &[], "").await.is(200);
    let document = face.raw("GET", "/openapi.json", &[], "").await.is(200);
    assert_eq!(document.json["openapi"], "3.1.0");
    let page = face.raw("GET", "/docs/", &[], "").await.is(200);
    let html = String::from_utf8(page.bytes).unwrap();
    assert!(html.contains("swagger-ui"), "{html}");
    assert!(!html.contains("http://") && !html.contains("https://"), "nothing from elsewhere: {html}");
    face.raw("GET", "/docs/swagger-ui-bundle.js", &[], "").await.is(200);
    let script = face.raw("GET", "/docs/swagger-initializer.js", &[], "").await.is(200);
    assert!(String::from_utf8(script.bytes).unwrap().contains("/openapi.json"));
    // Every path of the document is served: what is not asks for credentials or another method, never 404.
    for (path, operations) in document.json["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let path = path.replace(['{', '}'], "");
            let reply = face.raw(&method.to_uppercase(), &path, &[], "").await;
            // What needs no credentials looks at its body first.
            let open = operation["security"] == json!([]);
            let fits = matches!(reply.status, 200 | 401) || (open && reply.status == 400);
            assert!(fits, "{method} {path}: {}", reply.status);
        }
    }
    // Each store answers a page with its time; a list by any filter is a page too.
    until("the seeds are there", 60, async || {
        let list = face.get("/v1/machine-types?order=name").await;
        (list.json["items"].as_array()?.len() == 3).then_some(())
    })
    .await;
}

async fn a_tenants_images_are_its_own_and_those_for_all(world: World) {
    let face = Face::of(&world);
    world.make("", "tenant", "other", json!({})).await;
    let mut wanted = Vec::new();
    // Own ones and those for all by turns, some of one name; and what is not to be seen.
    for (tenant, name) in [
        ("", "b"),
        ("default", "c"),
        ("", "a"),
        ("default", "b"),
        ("other", "a"),
        ("", "d"),
        ("default", "a"),
    ] {
        let id = world.make_image(tenant, name).await;
        if tenant != "other" {
            wanted.push((name, id));
        }
    }
    let images = "/v1/tenants/default/images";
    let all = async |query: &str| {
        let (mut seen, mut path) = (Vec::new(), format!("{images}?{query}"));
        loop {
            let page = face.get(&path).await.is(200).json;
            seen.extend(
                page["items"].as_array().unwrap().iter().map(|it| it["id"].as_str().unwrap().to_owned()),
            );
            let Some(next) = page["next"].as_str() else { return seen };
            path = format!("{images}?{query}&page={next}");
        }
    };
    let ids = |list: &[(&str, String)]| list.iter().map(|(_, id)| id.clone()).collect::<Vec<_>>();
    let by_age = ids(&wanted);
    let mut by_name = wanted.clone();
    by_name.sort();
    for limit in 1..=7 {
        assert_eq!(all(&format!("limit={limit}")).await, by_age);
        assert_eq!(all(&format!("limit={limit}&phase=ready")).await, by_age);
        assert_eq!(all(&format!("limit={limit}&order=name")).await, ids(&by_name));
        let of_a: Vec<_> = wanted.iter().filter(|(name, _)| *name == "a").cloned().collect();
        assert_eq!(all(&format!("limit={limit}&name=a")).await, ids(&of_a));
    }
    assert_eq!(all("phase=pending").await, [""; 0]);
    let bearer = format!("Bearer {TOKEN}");
    let put = face.raw("PUT", &format!("{images}/d/content"), &[("authorization", &bearer)], "x").await;
    put.is_problem(403, "denied");
}
