//! What nodes find on themselves: told, shown, decided on; and what is never guessed. No guest is ever touched by it.
use super::harness::{Agent, Cluster, Ledger};
use super::{big, node_is};
use prost::Message as _;
use rhyzome_agent::drivers::disk::ObservedDisk;
use rhyzome_agent::drivers::image::ObservedImage;
use rhyzome_agent::drivers::instance::{BootRecord, ObservedGuest, ObservedInstance, ObservedProcess};
use rhyzome_agent::env::Env;
use rhyzome_agent::findings::{Beside, Diary, Scene};
use rhyzome_agent::ledger;
use rhyzome_agent::link::LinkEvent;
use rhyzome_agent::reconcile::{Action, Decision, Orders, View, World as Node, plan};
use rhyzome_api::store::Look;
use rhyzome_proto::v1::order_body::Body;
use rhyzome_proto::v1::{Difference, Findings, Guest, Order, OrderBody};
use rhyzome_tests::face::Face;
use rhyzome_tests::on_both;
use rhyzome_tests::wait::until;
use rhyzome_tests::world::{Engine, World};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

on_both!(
    what_a_node_finds_is_shown_and_decided_on,
    an_orphan_of_a_restored_database_is_adopted_and_its_guest_is_not_touched,
    a_cloned_folder_is_refused_until_an_operator_has_decided,
    a_database_that_was_put_back_without_a_word_is_refused_by_name,
);

fn difference(id: &str, what: &str, object: &str, actions: &[&str]) -> Difference {
    Difference {
        id: id.into(),
        object_id: object.into(),
        what: what.into(),
        expected: "one thing".into(),
        found: "another".into(),
        since_ms: 1_000_000,
        actions: actions.iter().map(|action| (*action).to_owned()).collect(),
        ..Difference::default()
    }
}

async fn shown(face: &Face, what: &str, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
    until(what, 60, async || {
        let list = face.get(&format!("/v1/nodes/n1/{what}")).await.is(200).json;
        wanted(&list["items"]).then(|| list["items"].as_array().unwrap().clone())
    })
    .await
}

async fn decisions(agent: &mut Agent) -> Vec<(String, String)> {
    loop {
        if let LinkEvent::Decisions(all) = agent.event(60).await {
            return all.into_iter().map(|one| (one.id, one.verb)).collect();
        }
    }
}

async fn what_a_node_finds_is_shown_and_decided_on(world: World) {
    let cluster = Cluster::start(world).await;
    let face = Face::of(&cluster.world);
    let mut agent = cluster.agent("n1").await;
    agent.connected().await;
    let foreign = Guest {
        id: "guest-1".into(),
        name: "mail".into(),
        pid: 7,
        state: "foreign".into(),
        ..Guest::default()
    };
    let said = Findings {
        guests: vec![foreign],
        differences: vec![
            difference("diff-1", "guest.foreign", "guest-1", &["adopt", "ignore"]),
            difference("diff-2", "guest.file", "inst_1", &["repair", "ignore"]),
        ],
    };
    agent.handle.findings(said.clone());
    let drift = shown(&face, "drift", |items| items.as_array().is_some_and(|all| all.len() == 2)).await;
    assert_eq!((&drift[0]["what"], &drift[0]["decision"]), (&json!("guest.foreign"), &Value::Null));
    assert!(drift[0]["since"].as_str().unwrap().starts_with("1970-01-01T00:16:40"), "{drift:#?}");
    // The same again is no write.
    let written = |world: &World| {
        let world = world.clone();
        async move { world.ask("SELECT said_at FROM node_finding").await }
    };
    let before = written(&cluster.world).await;
    let one = rhyzome_api::store::Findings {
        guests: face.get("/v1/nodes/n1/guests").await.json["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|guest| {
                let mut guest = guest.clone();
                guest.as_object_mut().unwrap().remove("adopted");
                guest
            })
            .collect(),
        differences: drift
            .iter()
            .map(|one| {
                let mut one = one.clone();
                one.as_object_mut().unwrap().remove("decision");
                one
            })
            .collect(),
    };
    assert!(!cluster.store().record_findings(&agent.node, one).await.unwrap());
    assert_eq!(written(&cluster.world).await, before);

    // A repair goes to the node, and is done with when the difference is gone.
    let at = |id: &str, verb: &str| format!("/v1/nodes/n1/drift/{id}/actions/{verb}");
    let decided = face.call("POST", &at("diff-2", "repair"), json!({})).await.is(200).json;
    assert_eq!(decided["difference"]["decision"]["verb"], "repair", "{decided:#}");
    assert_eq!(decisions(&mut agent).await, [("diff-2".to_owned(), "repair".to_owned())]);
    agent.handle.findings(Findings { differences: said.differences[..1].to_vec(), ..said.clone() });
    shown(&face, "drift", |items| items.as_array().is_some_and(|all| all.len() == 1)).await;
    let look = Look { node: agent.node.clone(), session: 0, serial: String::new(), sent: 0, is_first: true };
    assert_eq!(cluster.store().news(&[look]).await.unwrap()[0].decisions, []);

    // A foreign guest becomes a record, which stays when the guest is gone, until it is forgotten.
    face.call("POST", &at("diff-1", "repair"), json!({})).await.is_problem(409, "wrong-state");
    face.call("POST", &at("diff-9", "ignore"), json!({})).await.is_problem(404, "not-found");
    let strange = face.call("POST", &at("diff-1", "ignore"), json!({"tenant": "x"})).await;
    assert_eq!(strange.is_problem(422, "invalid").fields(), ["tenant"]);
    face.call("POST", &at("diff-1", "adopt"), json!({})).await.is(200);
    let guests = face.get("/v1/nodes/n1/guests").await.is(200).json["items"].clone();
    assert_eq!((&guests[0]["state"], guests[0]["adopted"]["by"].is_string()), (&json!("foreign"), true));
    agent.handle.findings(Findings::default());
    let gone = shown(&face, "guests", |items| items[0]["state"] == "gone").await;
    assert_eq!(gone[0]["name"], "mail");
    face.call("POST", &at("diff-1", "forget"), json!({})).await.is(200);
    shown(&face, "guests", |items| items == &json!([])).await;
}

/// Orders of a node as they are streamed, of the database's epoch `db_epoch`.
async fn orders(cluster: &Cluster, node: &str, db_epoch: u64) -> Vec<Order> {
    let rows = cluster.store().assignments_after(node, 0, 100).await.unwrap();
    let number = |n: i64| u64::try_from(n).unwrap();
    rows.into_iter()
        .map(|row| Order {
            body: Some(OrderBody::decode(row.body.as_slice()).unwrap()),
            object_id: row.object_id,
            kind: row.kind,
            tenant: row.tenant,
            name: row.name,
            db_epoch,
            placement_epoch: number(row.placement_epoch),
            generation: number(row.generation),
            sequence: number(row.sequence),
            remove: row.remove,
            needs: row.needs,
            secrets: Vec::new(),
        })
        .collect()
}

/// A node that holds all of this, its guests running.
fn holding(orders: &Orders) -> (Node, Beside) {
    let mut node = Node { accelerator: "tcg".into(), host_boot_id: "boot".into(), ..Node::default() };
    let mut beside = Beside::default();
    for (id, order) in orders {
        match order.body.clone().unwrap().body.unwrap() {
            Body::Image(image) => {
                let seen = ObservedImage { bytes_on_disk: image.size_bytes, is_whole: true };
                node.images.insert(image.sha256, seen);
            }
            Body::Disk(disk) => {
                let seen = ObservedDisk { virtual_size_bytes: disk.size_bytes, allocated_bytes: 0 };
                node.disks.insert(id.clone(), seen);
                beside.disk_files.insert(id.clone());
            }
            Body::Instance(instance) => {
                let pid = 100 + u32::try_from(node.instances.len()).unwrap();
                let boot = BootRecord::new(&instance, order.generation, "tcg", "boot", 5);
                let process = Some(ObservedProcess { pid, paused: false });
                node.instances
                    .insert(id.clone(), ObservedInstance { id: id.clone(), boot: Some(boot), process });
                beside.guests.push(ObservedGuest {
                    pid,
                    digest: id.clone(),
                    name: id.clone(),
                    vcpus: instance.vcpus,
                    memory_bytes: instance.memory_bytes,
                    disks: Vec::new(),
                    started_at_ms: 1_000,
                });
            }
            _ => {}
        }
    }
    (node, beside)
}

/// What would be done to guests and disks now; nothing, if all is well.
fn done_to_guests(orders: &Orders, node: &Node) -> Vec<(String, Action)> {
    let all = plan(View { orders, world: node, now_ms: 90_000 }).into_iter();
    all.filter_map(|(id, decision)| match decision {
        Decision::Do(action) if !matches!(action, Action::ApplyNetwork(_)) => Some((id, action)),
        _ => None,
    })
    .collect()
}

async fn an_orphan_of_a_restored_database_is_adopted_and_its_guest_is_not_touched(world: World) {
    let mut cluster = Cluster::start(world).await;
    let mut agent = cluster.agent("n1").await;
    agent.connected().await;
    agent.handle.node_status(big());
    node_is(&cluster, &agent.node, "ready").await;
    cluster.world.make_image("", "tiny").await;
    let make = async |cluster: &Cluster, name: &str| {
        let made = cluster.world.make("default", "instance", name, json!({"image": "tiny"})).await;
        cluster.world.obey(&agent.node, 0).await;
        made.object
    };
    make(&cluster, "old").await;
    let engine = if cluster.world.db.starts_with("sqlite:") { Engine::Postgres } else { Engine::Sqlite };
    let backup = cluster.world.carried(engine).await;
    let web = make(&cluster, "web").await;
    let held: Orders =
        orders(&cluster, &agent.node, 1).await.into_iter().map(|one| (one.object_id.clone(), one)).collect();
    let (node, beside) = holding(&held);

    // A week later the backup is put in its place: it has never heard of web.
    cluster.shut().await;
    cluster.world = backup;
    cluster.open().await;
    let epoch = u64::try_from(cluster.store().db_epoch().await.unwrap()).unwrap();
    assert!(epoch > 1);
    agent.ledger.db_epoch.store(1, std::sync::atomic::Ordering::SeqCst);
    agent.connected().await;
    agent.handle.node_status(big());
    let folder = tempfile::tempdir().unwrap();
    let mut kept = ledger::Ledger::open(folder.path()).unwrap();
    kept.take(held.values().cloned().collect()).unwrap();
    kept.raise_epoch(epoch).unwrap();
    let anew = orders(&cluster, &agent.node, epoch).await;
    assert!(kept.take(anew).unwrap().iter().all(|(_, answer)| answer.is_ok()));
    assert_eq!(done_to_guests(kept.orders(), &node), [], "the restore alone does nothing to guests");
    let scene = |orders: &Orders| {
        let scene = Scene { orders, world: &node, beside: &beside, db_epoch: epoch, now_ms: 90_000 };
        Diary::default().findings(scene)
    };
    let found = scene(kept.orders());
    assert_eq!(found.guests.iter().filter(|guest| guest.state == "known").count(), 1, "{found:?}");
    agent.handle.findings(found);

    let face = Face::of(&cluster.world);
    let drift = shown(&face, "drift", |items| items[0]["what"] == "guest.orphan").await;
    assert_eq!((drift.len(), &drift[0]["object"]), (1, &json!(web.core.id)), "{drift:#?}");
    let guests = face.get("/v1/nodes/n1/guests").await.is(200).json["items"].clone();
    assert!(guests.as_array().unwrap().iter().all(|guest| guest.get("record").is_none()), "{guests:#}");
    let path = format!("/v1/nodes/n1/drift/{}/actions/adopt", drift[0]["id"].as_str().unwrap());
    let adopted = face.call("POST", &path, json!({})).await.is(200).json;
    assert_eq!(adopted["instance"]["id"], json!(web.core.id), "{adopted:#}");
    let again = face.call("POST", &path, json!({})).await.is_problem(409, "wrong-state");
    assert!(again.json["detail"].as_str().unwrap().contains("is known here"), "{:#}", again.json);

    // The record has what the guest has, and what is ordered for it is obeyed without touching the guest.
    let shown = face.get(&format!("/v1/tenants/default/instances/{}", web.core.id)).await.is(200).json;
    assert_eq!((&shown["name"], &shown["job"]), (&json!("web"), &Value::Null), "{shown:#}");
    for key in ["nics.default.address", "nics.default.mac", "root"] {
        let kept = cluster.store();
        let (right, kind) = (cluster.world.right("default"), cluster.world.kind("instance"));
        let now = kept.get(&right, kind, &web.core.id).await.unwrap();
        assert_eq!(now.claims[key], web.claims[key], "{key}");
    }
    let ordered = orders(&cluster, &agent.node, epoch).await;
    let mine = ordered.iter().find(|order| order.object_id == web.core.id).expect("it is ordered");
    // All but its SSH key, which is in the guest alone: the server has lost it.
    let (mut runs, mut marker) = (held[&web.core.id].body.clone(), String::new());
    if let Some(Body::Instance(order)) = runs.as_mut().and_then(|body| body.body.as_mut()) {
        marker = std::mem::take(&mut order.ssh.as_mut().expect("it was given one").host_key);
    }
    assert!(marker.starts_with("sealed:") && mine.body == runs, "not ordered as it runs: {mine:?}");
    let answers = kept.take(ordered).unwrap();
    assert!(answers.iter().all(|(_, answer)| answer.is_ok()), "{answers:?}");
    assert_eq!(done_to_guests(kept.orders(), &node), []);
    let found = scene(kept.orders());
    assert!(found.guests.iter().all(|guest| guest.state == "known"), "{found:?}");
    assert_eq!(found.differences, []);
    // It is an instance like any other from now on.
    let stop = format!("/v1/tenants/default/instances/{}/actions/stop", web.core.id);
    face.call("POST", &stop, json!({"mode": "hard"})).await.is(202);
}

async fn refusal(cluster: &Cluster, wanted: &str) -> Value {
    let (right, kind) = (cluster.world.right(""), cluster.world.kind("node"));
    until("a refusal to be shown, or not", 60, async || {
        let node = cluster.store().get(&right, kind, "n1").await.unwrap();
        let refused = node.status["refused"].clone();
        (refused["reason"].as_str().unwrap_or_default() == wanted).then_some(refused)
    })
    .await
}

async fn a_cloned_folder_is_refused_until_an_operator_has_decided(world: World) {
    let cluster = Cluster::start(world).await;
    let face = Face::of(&cluster.world);
    let node = cluster.make_node("n1").await;
    let state = cluster.plant(&node, "n1", SystemTime::now()).await;
    let start = |machine: &'static str, process: &'static str| {
        let who = (machine, process);
        Agent::start_as(&cluster, &node, state.clone(), Ledger::at(0, 0), Env::system(), who)
    };
    let mut first = start("m1", "a");
    first.connected().await;
    let mut clone = start("m2", "b");
    let why = clone.disconnected().await;
    assert!(why.contains("cloned-state:") && why.contains("rhyzome node repair"), "{why}");
    let refused = refusal(&cluster, "cloned-state").await;
    assert_eq!(refused["machine"], "m2", "{refused:#}");
    // The first goes on undisturbed: nothing was superseded.
    let quiet = tokio::time::timeout(Duration::from_millis(300), async {
        loop {
            if let LinkEvent::Disconnected { reason } = first.events.recv().await.unwrap() {
                return reason;
            }
        }
    });
    assert!(quiet.await.is_err(), "the clone drove the node out");

    let unnamed = face.call("POST", "/v1/nodes/n1/actions/repair", json!({})).await;
    assert_eq!(unnamed.is_problem(422, "invalid").fields(), ["machine"]);
    let repaired = face.call("POST", "/v1/nodes/n1/actions/repair", json!({"machine": "m2"})).await.is(200);
    assert_eq!(
        (&repaired.json["status"]["machine"], &repaired.json["status"]["refused"]),
        (&json!("m2"), &Value::Null)
    );
    first.disconnected().await;
    drop(clone);
    let mut clone = start("m2", "b");
    clone.connected().await;
    let why = first.disconnected().await;
    assert!(why.contains("cloned-state:"), "{why}");
    drop(first);
    refusal(&cluster, "cloned-state").await;
    face.call("POST", "/v1/nodes/n1/actions/forget", json!({})).await.is(200);
    refusal(&cluster, "").await;
    // Whoever joins anew is the node, whatever machine it was before.
    let line = cluster.invite(&node, 60).await;
    let fresh = cluster.folder.path().join("fresh");
    cluster.join(&line, "n1", &fresh).await.unwrap();
    let who = ("m3", "c");
    Agent::start_as(&cluster, &node, fresh, Ledger::at(0, 0), Env::system(), who).connected().await;
}

async fn a_database_that_was_put_back_without_a_word_is_refused_by_name(world: World) {
    let mut cluster = Cluster::start(world).await;
    let node = cluster.make_node("n1").await;
    let state = cluster.plant(&node, "n1", SystemTime::now()).await;
    let epoch = cluster.store().db_epoch().await.unwrap() as u64;
    // A copy of the files was put in its place: the same epoch, and fewer orders than the node has heard of.
    let ledger = Ledger::at(epoch, 97);
    let mut agent = Agent::start(&cluster, &node, state, Arc::clone(&ledger));
    let why = agent.disconnected().await;
    assert!(why.contains("older-database:") && why.contains("raise-epoch"), "{why}");
    refusal(&cluster, "older-database").await;
    let server = cluster.world.db.parse().unwrap();
    cluster.shut().await;
    rhyzome_api::admin::raise_epoch(&server, cluster.store().env()).await.unwrap();
    cluster.open().await;
    agent.connected().await;
    refusal(&cluster, "").await;
}
