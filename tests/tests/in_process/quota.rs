//! Quotas: what is used is what is there, whatever happened; a limit refuses what is new. On both databases.

use std::collections::BTreeMap;

use rhyzome_api::jobs;
use rhyzome_api::kernel::Scope;
use rhyzome_api::store::NodeReport;
use rhyzome_tests::face::Face;
use rhyzome_tests::wait::until;
use rhyzome_tests::world::World;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const TENANT: &str = "/v1/tenants/default";
const MIB: u64 = 1 << 20;

rhyzome_tests::on_both!(used_is_what_is_there, a_limit_refuses_what_is_new, of_many_at_once_none_goes_beyond);

fn at(rest: &str) -> String {
    format!("{TENANT}/{rest}")
}

/// Lists of all kinds that tenants own.
fn lists() -> Vec<&'static str> {
    let registry = rhyzome_api::resources::registry();
    let owned = registry.all().iter().filter(|kind| kind.meta().scope != Scope::Operator);
    owned.map(|kind| kind.meta().plural).collect()
}

/// What the server says is used.
async fn used(face: &Face) -> BTreeMap<String, u64> {
    let quota = face.get(&at("quota")).await.is(200);
    let entries = quota.json["quota"].as_object().unwrap();
    entries.iter().map(|(quantity, usage)| (quantity.clone(), usage["used"].as_u64().unwrap())).collect()
}

/// What is there, counted from the lists and nothing else.
async fn recount(face: &Face) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    let types = face.get("/v1/machine-types").await.is(200).json;
    let type_of = |id: &Value, field: &str| {
        let found = types["items"].as_array().unwrap().iter().find(|one| one["id"] == *id);
        found.unwrap()["spec"][field].as_u64().unwrap()
    };
    for list in lists() {
        let page = face.get(&at(&format!("{list}?limit=1000"))).await.is(200).json;
        // What operators made for all is shown to the tenant, but not its own.
        let items = page["items"].as_array().unwrap().iter().filter(|item| item["tenant"] == "default");
        let items: Vec<&Value> = items.collect();
        let mut add = |quantity: &str, amount: u64| *all.entry(quantity.to_owned()).or_insert(0) += amount;
        add(&list.replace('-', "_"), items.len() as u64);
        for item in items {
            let spec = &item["spec"];
            match list {
                "instances" => {
                    let own = |field: &str| {
                        spec[field].as_u64().unwrap_or_else(|| type_of(&spec["machine_type"], field))
                    };
                    add("vcpus", own("vcpus"));
                    add("memory_bytes", own("memory_bytes"));
                    add("addresses", spec["nics"].as_object().unwrap().len() as u64);
                }
                "disks" => add("disk_bytes", item["status"]["size_bytes"].as_u64().unwrap()),
                _ => {}
            }
        }
    }
    for quantity in ["vcpus", "memory_bytes", "addresses", "disk_bytes"] {
        all.entry(quantity.to_owned()).or_insert(0);
    }
    all
}

/// Numbers from a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

/// Answers what the node was ordered; of what is new, some cannot be made.
async fn answer(world: &World, node: &str, cursor: &mut i64, dice: &mut Dice) {
    for order in world.store.assignments_after(node, *cursor, 1000).await.unwrap() {
        *cursor = order.sequence;
        let bad = order.kind == "instance" && order.generation == 1 && dice.below(3) == 0;
        let state = if order.remove {
            "gone"
        } else if bad {
            "failed"
        } else {
            "applied"
        };
        let report = NodeReport {
            object_id: order.object_id,
            placement_epoch: order.placement_epoch,
            generation: order.generation,
            state: state.into(),
            permanent: bad,
            ..NodeReport::default()
        };
        world.store.record_report(node, report).await.unwrap();
    }
}

async fn used_is_what_is_there(world: World) {
    let face = Face::of(&world);
    let node = world.make_node("n1", 1 << 45).await;
    world.make_image("", "tiny").await;
    face.call("POST", &at("networks"), json!({ "name": "lan" })).await.is(201);
    let stop = CancellationToken::new();
    tokio::spawn(jobs::run(world.store.clone(), stop.clone()));
    let (seed, mut cursor) = (0x5eed_u64, 0);
    let mut dice = Dice(seed);
    for round in 0..80 {
        one_thing(&face, &mut dice, round).await;
        if dice.below(3) == 0 {
            answer(&world, &node, &mut cursor, &mut dice).await;
        }
        if round % 8 == 7 {
            // Between the two looks a job may give something back: then it is looked at again.
            until(&format!("used is what is there, seed {seed:#x}, round {round}"), 30, async || {
                let before = used(&face).await;
                let there = recount(&face).await;
                (before == there && used(&face).await == there).then_some(())
            })
            .await;
        }
    }
    // And when all is gone, nothing is used.
    for list in ["instances", "disks", "networks", "ssh-keys"] {
        for item in face.get(&at(&format!("{list}?limit=1000"))).await.json["items"].as_array().unwrap() {
            let path = at(&format!("{list}/{}", item["id"].as_str().unwrap()));
            face.call("DELETE", &path, Value::Null).await;
        }
        until("all of them are gone", 60, async || {
            answer(&world, &node, &mut cursor, &mut dice).await;
            let page = face.get(&at(list)).await.is(200);
            page.json["items"].as_array().unwrap().is_empty().then_some(())
        })
        .await;
    }
    assert!(used(&face).await.values().all(|used| *used == 0), "{:?}", used(&face).await);
    stop.cancel();
}

/// One random request. Whether it is done or refused does not matter: that what is used stays right does.
async fn one_thing(face: &Face, dice: &mut Dice, round: u64) {
    let some = async |list: &str, dice: &mut Dice| {
        let page = face.get(&at(&format!("{list}?limit=1000"))).await.json;
        let items = page["items"].as_array().cloned().unwrap_or_default();
        let index = dice.below(items.len().max(1) as u64) as usize;
        items.get(index).map(|item| item["id"].as_str().unwrap().to_owned())
    };
    let n = dice.below(3) + 1;
    let (method, path, body) = match dice.below(10) {
        0..=2 => {
            let nics =
                if n == 1 { json!({ "a": {} }) } else { json!({ "a": {}, "b": { "network": "lan" } }) };
            let spec = json!({ "image": "tiny", "nics": nics, "vcpus": if n == 2 { Value::Null } else { json!(n) } });
            ("POST", at("instances"), json!({ "name": format!("i{round}"), "spec": spec }))
        }
        // A name that is taken, and a spec that is wrong.
        3 => (
            "POST",
            at("instances"),
            json!({ "name": format!("i{}", round / 2), "spec": { "image": "tiny" } }),
        ),
        4 => (
            "POST",
            at("instances"),
            json!({ "spec": { "image": "tiny", "nics": { "a": { "network": "no" } } } }),
        ),
        5 => ("POST", at("disks"), json!({ "spec": { "size_bytes": n * MIB } })),
        6 => match some("instances", dice).await {
            Some(id) => (
                "PATCH",
                at(&format!("instances/{id}")),
                json!({ "spec": { "vcpus": n, "nics": { "b": null } } }),
            ),
            None => return,
        },
        7 => match some("disks", dice).await {
            Some(id) => {
                ("PATCH", at(&format!("disks/{id}")), json!({ "spec": { "size_bytes": n * 2 * MIB } }))
            }
            None => return,
        },
        8 => match some("instances", dice).await {
            Some(id) => ("DELETE", at(&format!("instances/{id}")), Value::Null),
            None => return,
        },
        _ => match some("disks", dice).await {
            Some(id) => ("DELETE", at(&format!("disks/{id}")), Value::Null),
            None => return,
        },
    };
    let reply = face.call(method, &path, body).await;
    assert!(reply.status < 500, "{method} {path}: {:#}", reply.json);
}

async fn a_limit_refuses_what_is_new(world: World) {
    let face = Face::of(&world);
    world.make_node("n1", 1 << 45).await;
    world.make_image("", "tiny").await;
    let limit = async |quota: Value| {
        face.call("PATCH", TENANT, json!({ "spec": { "quota": quota } })).await.is(200);
    };
    let unlimited = face.get(&at("quota")).await.is(200).json["quota"]["vcpus"].clone();
    assert_eq!(unlimited, json!({ "used": 0, "limit": null, "own": false }));
    limit(json!({ "vcpus": 4, "disks": 1 })).await;
    let body = |name: &str, vcpus: u64| json!({ "name": name, "spec": { "image": "tiny", "vcpus": vcpus } });
    let plan = face.call("POST", &at("instances?plan=true"), body("a", 3)).await.is(200).json;
    assert_eq!(plan["quota"]["vcpus"], json!({ "before": 0, "after": 3, "limit": 4 }), "{plan:#}");
    assert_eq!(plan["placement"]["node"]["name"], "n1");
    face.call("POST", &at("instances"), body("a", 3)).await.is(202);
    let refused = face.call("POST", &at("instances"), body("b", 2)).await.is_problem(409, "quota-exceeded");
    let wanted = [
        json!({ "quantity": "vcpus", "limit": 4, "used": 3, "wanted": 2 }),
        json!({ "quantity": "disks", "limit": 1, "used": 1, "wanted": 1 }),
    ];
    assert_eq!(refused.json["quota"], json!(wanted), "all at once, with figures: {:#}", refused.json);
    let planned = face.call("POST", &at("instances?plan=true"), body("b", 2)).await.is(200).json;
    assert_eq!(planned["problem"]["type"], "/problems/quota-exceeded");
    assert_eq!(used(&face).await["instances"], 1, "what was refused uses nothing");

    // Below what is used: what is there stays, may change and shrink, but nothing new comes.
    limit(json!({ "vcpus": 1, "disks": null })).await;
    let quota = face.get(&at("quota")).await.json["quota"].clone();
    assert_eq!(quota["vcpus"], json!({ "used": 3, "limit": 1, "own": true }));
    assert_eq!(quota["disks"]["limit"], Value::Null);
    let change = async |vcpus: u64| {
        face.call("PATCH", &at("instances/a"), json!({ "spec": { "vcpus": vcpus } })).await
    };
    change(4).await.is_problem(409, "quota-exceeded");
    change(2).await.is(202);
    face.call("PATCH", &at("instances/a"), json!({ "tags": { "a": "b" } })).await.is(200);
    face.call("POST", &at("disks"), json!({ "spec": { "size_bytes": MIB } })).await.is(201);
    let gone = face.call("DELETE", &at("instances/a?plan=true"), Value::Null).await.is(200).json;
    assert_eq!(gone["quota"]["vcpus"], json!({ "before": 2, "after": 0, "limit": 1 }), "{gone:#}");
    let wrong = face.call("PATCH", TENANT, json!({ "spec": { "quota": { "cars": 1, "vcpus": -1 } } })).await;
    assert_eq!(wrong.is_problem(422, "invalid").fields(), ["spec.quota.cars", "spec.quota.vcpus"]);
    face.get("/v1/tenants/nobody/quota").await.is_problem(404, "not-found");
}

async fn of_many_at_once_none_goes_beyond(world: World) {
    let face = std::sync::Arc::new(Face::of(&world));
    face.call("PATCH", TENANT, json!({ "spec": { "quota": { "disks": 5 } } })).await.is(200);
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let face = face.clone();
            tokio::spawn(async move {
                face.call("POST", &at("disks"), json!({ "spec": { "size_bytes": MIB } })).await
            })
        })
        .collect();
    let mut made = 0;
    for task in tasks {
        let reply = task.await.unwrap();
        made += u32::from(reply.status == 201);
        if reply.status != 201 {
            reply.is_problem(409, "quota-exceeded");
        }
    }
    assert_eq!((made, used(&face).await["disks"]), (5, 5));
}
