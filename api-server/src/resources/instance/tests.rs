use prost::Message as _;
use rhyzome_proto::v1::{self, InstanceOrder, OrderBody, Power, StopMode, order_body::Body, report};
use serde_json::{Value, json};

use super::*;
use crate::kernel::{ClaimKind, Clash, Fact, Step, Target, Who};
use crate::resources::testing::{complaints, fact, facts, fields, keys, object, stored_as};

const GIB: u64 = 1 << 30;

/// Image, pool, machine type, network and disk, as the front finds them.
fn around() -> Facts {
    let none = || json!({});
    facts([
        ("spec.image", fact("img_1", none(), none(), json!({"virtual_size_bytes": GIB}))),
        (
            "spec.root.pool",
            fact("pool_1", json!({"driver": "dir", "path": "", "shared": false}), none(), none()),
        ),
        (
            "spec.machine_type",
            fact("mt_1", json!({"vcpus": 2, "memory_bytes": GIB, "architecture": "x86_64"}), none(), none()),
        ),
        ("spec.nics.lan.network", fact("net_1", none(), json!({"cidr": "10.0.0.0/24"}), none())),
        ("spec.nics.default.network", fact("net_2", none(), json!({"cidr": "10.0.1.0/24"}), none())),
        ("spec.disks.data.disk", disk("disk_7", false, &["node_1"])),
        ("spec.ssh_keys.0", fact("key_1", json!({"public_key": "ssh-ed25519 AAAA me"}), none(), none())),
    ])
}

fn disk(id: &str, shared: bool, held_on: &[&str]) -> Fact {
    let claims = json!({"pool": {"id": "pool_9", "driver": "dir", "path": "/srv", "shared": shared}});
    let held_on = held_on.iter().map(|node| (*node).to_owned()).collect();
    Fact { held_on, ..fact(id, json!({"image": "img_5"}), claims, json!({})) }
}

fn full() -> Value {
    json!({
        "image": "tiny", "nics": {"lan": {"network": "net_1", "address": "10.0.0.9"}},
        "disks": {"data": {"disk": "disk_7", "read_only": true}}, "ssh_keys": ["me"], "user_data": "#!/bin/sh",
    })
}

fn placed(spec: Value, more: Value) -> Object<Instance> {
    let mut claims = json!({
        "root": "disk_1", "node": "node_1", "boot_epoch": 3, "nics.lan.address": "10.0.0.9",
        "nics.lan.mac": "52:54:00:00:00:01",
    });
    json_patch::merge(&mut claims, &more);
    stored_as(spec, claims, json!(null))
}

fn call(verb: &str) -> Call {
    Call { verb: verb.into(), ..Call::default() }
}

#[test]
fn an_image_alone_is_enough() {
    let least = object::<Instance>(json!({"image": "tiny"}));
    assert_eq!(Instance::validate(&least, &around(), true), []);
    let refs = Instance::refs(&least.spec);
    let of = |field: &str| refs.iter().find(|r| r.field == field).unwrap();
    assert_eq!(of("spec.nics.default.network").target, Target::Named("default".into()));
    assert_eq!(of("spec.nics.default.network").or_make, Some(json!({})));
    assert_eq!(of("spec.machine_type").target, Target::Default(Some("memory_bytes")));
    assert_eq!(of("spec.root.pool").target, Target::Default(None));
}

#[test]
fn an_image_is_said_exactly_once() {
    let twice = json!({"image": "tiny", "root": {"image": "tiny"}});
    assert_eq!(fields(&complaints::<Instance>(twice, &around())), ["spec.root.image"]);
    assert_eq!(fields(&complaints::<Instance>(json!({}), &Facts::default())), ["spec.image"]);
    let empty = facts([("spec.image", fact("img_1", json!({}), json!({}), json!({})))]);
    assert_eq!(fields(&complaints::<Instance>(json!({"image": "tiny"}), &empty)), ["spec.image"]);
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    let bad = json!({
        "image": "tiny", "vcpus": 0, "memory_bytes": 1, "stop_deadline_seconds": 0, "nics": {"A b": {}},
        "disks": {"root": {"disk": "d"}}, "user_data": "x".repeat(65537), "power": "paused",
    });
    let wanted = [
        "spec.vcpus",
        "spec.memory_bytes",
        "spec.stop_deadline_seconds",
        "spec.nics.A b",
        "spec.disks.root",
        "spec.user_data",
        "spec.power",
    ];
    assert_eq!(fields(&complaints::<Instance>(bad, &around())), wanted);
    let alone = complaints::<Instance>(json!({"image": "tiny", "nics": {}}), &around());
    assert_eq!(fields(&alone), ["spec.nics"]);
    let mut many = json!({"image": "tiny", "nics": {}});
    for index in 0..9 {
        many["nics"][format!("n{index}")] = json!({});
    }
    assert_eq!(fields(&complaints::<Instance>(many, &around())), ["spec.nics"]);
}

#[test]
fn an_address_must_be_a_free_host_of_its_network() {
    for (address, why) in [
        ("10.0.1.9", "outside"),
        ("10.0.0.0", "first or last"),
        ("10.0.0.255", "first or last"),
        ("10.0.0.1", "gateway"),
        ("ten", "such as"),
        ("10.0.0.9", ""),
    ] {
        let spec = json!({"image": "tiny", "nics": {"lan": {"network": "net_1", "address": address}}});
        let said = complaints::<Instance>(spec, &around());
        let reason = said.first().map(|error| error.reason.as_str()).unwrap_or_default();
        assert!(reason.contains(why) && reason.is_empty() == why.is_empty(), "{address}: {reason}");
    }
}

#[test]
fn disks_that_are_apart_cannot_meet() {
    let two = json!({"image": "tiny", "disks": {"a": {"disk": "a"}, "b": {"disk": "b"}}});
    let with = |a: Fact, b: Fact| {
        let mut facts = around();
        facts.0.insert("spec.disks.a.disk".into(), a);
        facts.0.insert("spec.disks.b.disk".into(), b);
        facts
    };
    let apart = with(disk("disk_a", false, &["node_1"]), disk("disk_b", false, &["node_2"]));
    assert_eq!(fields(&complaints::<Instance>(two.clone(), &apart)), ["spec.disks.b.disk"]);
    let shared = with(disk("disk_a", false, &["node_1"]), disk("disk_b", true, &["node_2"]));
    assert_eq!(complaints::<Instance>(two.clone(), &shared), []);
    let same = with(disk("disk_a", false, &[]), disk("disk_a", false, &[]));
    assert_eq!(fields(&complaints::<Instance>(two, &same)), ["spec.disks.b.disk"]);
}

#[test]
fn a_create_claims_and_orders_everything_it_needs() {
    let plan = Instance::create(&object(full()), &around());
    assert_eq!(keys(&plan.claims), ["nics.lan.address", "nics.lan.mac", "disks.data", "node"]);
    let ClaimKind::Placement(needs) = &plan.claims[3].what else { panic!("{plan:?}") };
    assert_eq!((needs.vcpus, needs.memory_bytes, needs.disk_bytes), (2, GIB, GIB));
    assert_eq!((needs.node.as_deref(), needs.architecture.as_str()), (Some("node_1"), "x86_64"));
    let wanted = [
        Who::Ref("spec.nics.lan.network".into()),
        Who::Id("img_5".into()),
        Who::Ref("spec.disks.data.disk".into()),
        Who::Ref("spec.image".into()),
        Who::Child("root".into()),
        Who::This,
    ];
    let assigned = plan.steps.iter().filter_map(|step| match step {
        Step::Assign { who } => Some(who.clone()),
        _ => None,
    });
    assert_eq!(assigned.collect::<Vec<_>>(), wanted);
    assert_eq!(plan.steps.last(), Some(&Step::AwaitApplied { who: Who::This, deadline_seconds: 300 }));
    assert_eq!(plan.children[0].spec, json!({"image": "img_1", "pool": "pool_1"}));
    assert_eq!(plan.children[0].name, "web-root");
    assert_eq!(plan.values["boot_epoch"], 1);
}

#[test]
fn a_plan_without_facts_does_not_panic() {
    let plan = Instance::create(&object(full()), &Facts::default());
    assert_eq!(keys(&plan.claims), ["node"]);
    assert_eq!(plan.children, []);
    assert_eq!(plan.steps.len(), 2);
}

#[test]
fn an_update_asks_for_room_where_it_is() {
    let old = placed(full(), json!({"node": "node_4", "stop_hard": true}));
    let mut facts = around();
    facts.0.remove("spec.disks.data.disk");
    let plan = Instance::update(&old, &old, &facts);
    let ClaimKind::Placement(needs) = &plan.claims.last().unwrap().what else { panic!("{plan:?}") };
    assert_eq!(needs.node.as_deref(), Some("node_4"));
    assert_eq!((&plan.values["boot_epoch"], &plan.values["stop_hard"]), (&json!(3), &json!(false)));
    assert_eq!(plan.children, []);
}

#[test]
fn actions_change_the_wanted_power() {
    let with = |power: &str| placed(json!({"image": "tiny", "power": power}), json!({}));
    let power = |now: &str, verb: &str| match Instance::act(&with(now), &call(verb)) {
        Ok(plan) => {
            let spec = plan.spec.unwrap();
            format!("{} {}", spec["power"].as_str().unwrap(), plan.values["boot_epoch"])
        }
        Err(Error::Clash(Clash::WrongState(why))) => why,
        Err(other) => panic!("{other:?}"),
    };
    for (now, verb, then) in [
        ("off", "start", "on 3"),
        ("on", "start", "on 3"),
        ("paused", "start", "it is paused"),
        ("on", "stop", "off 3"),
        ("paused", "stop", "off 3"),
        ("off", "stop", "off 3"),
        ("on", "restart", "on 4"),
        ("off", "restart", "it is stopped"),
        ("paused", "restart", "it is paused"),
        ("on", "pause", "paused 3"),
        ("off", "pause", "it is stopped"),
        ("paused", "resume", "on 3"),
        ("off", "resume", "it is stopped"),
    ] {
        let said = power(now, verb);
        assert!(said.starts_with(then), "{verb} of {now}: {said}");
    }
    assert!(Instance::act(&with("on"), &call("dance")).is_err());
}

#[test]
fn a_hard_stop_says_so_and_has_its_own_deadline() {
    let hard = Call { hard: true, deadline_seconds: Some(5), ..call("stop") };
    let plan = Instance::act(&placed(full(), json!({})), &hard).unwrap();
    assert_eq!(plan.values["stop_hard"], true);
    assert_eq!(plan.values["stop_deadline_seconds"], 5);
    assert_eq!(plan.claims, []);
    assert_eq!(plan.steps.last(), Some(&Step::AwaitApplied { who: Who::This, deadline_seconds: 65 }));
    let crashed = stored_as::<Instance>(full(), json!({"boot_epoch": 3}), json!({"power": "crashed"}));
    assert_eq!(Instance::act(&crashed, &call("start")).unwrap().values["boot_epoch"], 4);
}

#[test]
fn a_removal_may_keep_the_root_disk() {
    let gone = Instance::remove(&placed(full(), json!({})));
    assert_eq!((gone.values.len(), gone.steps.last()), (0, Some(&Step::Release)));
    let kept = Instance::remove(&placed(json!({"image": "tiny", "root": {"keep": true}}), json!({})));
    assert_eq!(kept.values["keep_root"], true);
}

fn ordered(instance: &Object<Instance>) -> (InstanceOrder, Vec<String>) {
    let order = Instance::order(instance, &around()).unwrap();
    match OrderBody::decode(&order.body[..]).unwrap().body.unwrap() {
        Body::Instance(body) => (body, order.needs),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_order_tells_all_that_the_node_needs() {
    let (order, needs) = ordered(&placed(full(), json!({"stop_hard": true, "stop_deadline_seconds": 5})));
    assert_eq!(needs, ["net_1", "disk_1", "disk_7"]);
    assert_eq!((order.hostname.as_str(), order.vcpus, order.memory_bytes), ("web", 2, GIB));
    assert_eq!((order.power(), order.stop_mode()), (Power::On, StopMode::Hard));
    assert_eq!((order.boot_epoch, order.stop_deadline_seconds), (3, 5));
    assert_eq!(order.nics[0].address, "10.0.0.9/24");
    assert_eq!(order.nics[0].mac, "52:54:00:00:00:01");
    assert_eq!(order.authorized_keys, ["ssh-ed25519 AAAA me"]);
    assert_eq!(order.user_data, "#!/bin/sh");
    let disks: Vec<_> = order.disks.iter().map(|d| (d.name.as_str(), d.boot, d.read_only)).collect();
    assert_eq!(disks, [("root", true, false), ("data", false, true)]);
    assert_eq!(order.disks[0].pool.as_ref().unwrap().id, "pool_1");
    assert_eq!(order.disks[1].pool.as_ref().unwrap().path, "/srv");
}

#[test]
fn what_is_said_overrides_the_machine_type() {
    let mut spec = full();
    spec["vcpus"] = json!(7);
    spec["memory_bytes"] = json!(3 * GIB);
    spec["power"] = json!("off");
    let (order, _) = ordered(&placed(spec, json!({})));
    assert_eq!((order.vcpus, order.memory_bytes, order.power()), (7, 3 * GIB, Power::Off));
    assert_eq!((order.stop_mode(), order.stop_deadline_seconds), (StopMode::Graceful, 60));
}

#[test]
fn reports_become_the_status() {
    let mut instance = placed(full(), json!({}));
    assert_eq!(Instance::settled(&instance), "pending");
    let body = v1::InstanceReport {
        power: "running".into(),
        started_at_ms: 1_700_000_000_000,
        restarts: 1,
        accelerator: "tcg".into(),
        pending: vec!["vcpus".into()],
        ..v1::InstanceReport::default()
    };
    let report = v1::Report { body: Some(report::Body::Instance(body)), ..v1::Report::default() };
    Instance::observe(&mut instance, &report.encode_to_vec());
    assert_eq!(Instance::settled(&instance), "running");
    Instance::show(&mut instance);
    let status = serde_json::to_value(&instance.status).unwrap();
    let wanted = json!({
        "power": "running", "started_at": "2023-11-14T22:13:20.000000Z", "restarts": 1, "accelerator": "tcg",
        "pending": ["spec.vcpus"], "node": "node_1", "root_disk": "disk_1",
        "nics": {"lan": {"address": "10.0.0.9", "mac": "52:54:00:00:00:01", "network": "net_1"}},
    });
    assert_eq!(status, wanted);
}

#[test]
fn groups_and_tags_decide_the_first_placement_only() {
    let mut spec = full();
    spec["placement"] = json!({"groups": ["a", "b"], "node_tags": {"zone": "x"}});
    let mut around = around();
    let group =
        |id: &str, rule: &str| fact(id, json!({"rule": rule, "policy": "allow"}), json!({}), json!({}));
    around.0.insert("spec.placement.groups.0".into(), group("pgrp_2", "affinity"));
    around.0.insert("spec.placement.groups.1".into(), group("pgrp_1", "anti-affinity"));
    let needs = |object: &Object<Instance>| {
        let claims = Instance::update(object, object, &around).claims;
        let found = claims.into_iter().find_map(|claim| match claim.what {
            ClaimKind::Placement(needs) => Some(needs),
            _ => None,
        });
        found.unwrap()
    };
    let fresh = needs(&object(spec.clone()));
    let ids: Vec<_> = fresh.groups.iter().map(|group| group.id.as_str()).collect();
    assert_eq!(ids, ["pgrp_1", "pgrp_2"], "locked in one order whatever was written");
    assert_eq!(fresh.node_tags["zone"], "x");
    let there = needs(&placed(spec.clone(), json!({})));
    assert!(there.groups.is_empty() && there.node_tags.is_empty());
    spec["placement"]["groups"] = json!(["a", "a"]);
    around.0.insert("spec.placement.groups.1".into(), group("pgrp_2", "affinity"));
    let said = Instance::validate(&object(spec), &around, true);
    assert_eq!(fields(&said), ["spec.placement.groups.1"]);
}

#[test]
fn what_is_restarted_elsewhere_finds_its_disks_there() {
    let with = |more: Value| {
        let mut spec = json!({"image": "tiny", "ha": "restart"});
        json_patch::merge(&mut spec, &more);
        spec
    };
    let said = complaints::<Instance>(with(json!({})), &around());
    assert_eq!(fields(&said), ["spec.ha"]);
    assert!(said[0].reason.contains("stateless: true"), "{}", said[0].reason);
    assert_eq!(complaints::<Instance>(with(json!({"stateless": true})), &around()), []);
    let mut shared = around();
    let pool = fact("pool_1", json!({"driver": "dir", "path": "/srv", "shared": true}), json!({}), json!({}));
    shared.0.insert("spec.root.pool".into(), pool);
    assert_eq!(complaints::<Instance>(with(json!({})), &shared), []);
    let data = json!({"disks": {"data": {"disk": "disk_7"}}});
    assert_eq!(fields(&complaints::<Instance>(with(data.clone()), &shared)), ["spec.disks.data.disk"]);
    shared.0.insert("spec.disks.data.disk".into(), disk("disk_7", true, &["node_1"]));
    assert_eq!(complaints::<Instance>(with(data), &shared), []);
    assert_eq!(fields(&complaints::<Instance>(with(json!({"node": "node_1"})), &shared)), ["spec.node"]);
}

#[test]
fn from_when_on_it_is_marked_stays_known() {
    let since = |plan: &Plan| plan.values.get("ha_since").cloned();
    let (none, marked) =
        (json!({"image": "tiny"}), json!({"image": "tiny", "ha": "restart", "stateless": true}));
    let at = |spec: &Value, generation: i64| {
        let mut object = stored_as::<Instance>(spec.clone(), json!({}), json!(null));
        object.core.generation = generation;
        object
    };
    assert_eq!(since(&Instance::create(&at(&marked, 1), &around())), Some(json!(1)));
    assert_eq!(since(&Instance::update(&at(&none, 4), &at(&marked, 5), &around())), Some(json!(5)));
    assert_eq!(since(&Instance::update(&at(&marked, 5), &at(&marked, 6), &around())), None, "as before");
    assert_eq!(since(&Instance::update(&at(&marked, 6), &at(&none, 7), &around())), None);
}
