//! What one request means, on both databases.

use std::sync::Arc;

use rhyzome_api::jobs;
use rhyzome_api::kernel::resource::Call;
use rhyzome_api::kernel::{Clash, Error};
use rhyzome_api::store::{Asked, Key, NewObject, Once, Terms, Write};
use rhyzome_tests::on_both;
use rhyzome_tests::wait::until;
use rhyzome_tests::world::World;
use serde_json::json;
use tokio_util::sync::CancellationToken;

on_both!(
    an_image_alone_makes_an_instance,
    every_error_at_once_and_nothing_changes,
    of_a_hundred_at_once_no_two_get_one_address,
    in_use_is_refused_and_names_the_users,
    stop_and_start_are_done_in_order,
    a_failed_creation_takes_back_what_it_did,
    no_room_says_why_not,
    a_token_is_used_once,
    tenants_do_not_see_each_other,
    a_node_that_holds_a_disk_alone_is_not_deleted,
    a_changed_name_and_a_restored_one,
    a_write_that_panics_is_rolled_back_and_ends_nothing,
);

async fn a_write_that_panics_is_rolled_back_and_ends_nothing(world: World) {
    for n in 0..20 {
        let key = Key { route: "POST /".into(), key: "one".into(), part: String::new(), request: Vec::new() };
        let once = Once { key, waits: false, answer: Arc::new(|_| panic!("on purpose")) };
        let terms = Terms { plan: false, once: Some(once) };
        let body = NewObject { name: Some("half".into()), spec: json!({}), ..NewObject::default() };
        let (right, write) = (world.right("default"), Write::Create { kind: world.kind("network"), body });
        let told = world.store.perform(&right, write, &Asked::default(), &terms).await.err();
        assert!(
            matches!(&told, Some(Error::Internal(text)) if text == "a write panicked: on purpose"),
            "{told:?}"
        );
        // Whoever comes next, also on the same connection, keeps what is his and nothing else.
        world.make("default", "network", &format!("n{n}"), json!({})).await;
    }
    let names = world.ask("SELECT name FROM live WHERE kind = 'network'").await;
    assert!(names.len() == 20 && !names.iter().any(|row| row[0] == "half"), "{names:?}");
    assert!(world.ask("SELECT key FROM idempotency").await.is_empty());
}

async fn ready(world: &World) -> (String, String) {
    let node = world.make_node("n1", 1 << 40).await;
    let image = world.make_image("", "tiny").await;
    (node, image)
}

fn runner(world: &World) -> CancellationToken {
    let stop = CancellationToken::new();
    tokio::spawn(jobs::run(world.store.clone(), stop.clone()));
    stop
}

async fn phase(world: &World, kind: &str, id: &str) -> String {
    let object = world.store.get(&world.right("default"), world.kind(kind), id).await.unwrap();
    object.core.phase
}

async fn obey_until_done(world: &World, node: &str, mut cursor: i64, job: &str) -> (i64, String) {
    for _ in 0..500 {
        cursor = world.obey(node, cursor).await;
        let state = world.store.job(&world.right("default"), job).await.unwrap().state;
        if matches!(state.as_str(), "done" | "failed" | "cancelled") {
            return (cursor, state);
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("the job did not end: {:#?}", world.store.job(&world.right("default"), job).await.unwrap());
}

async fn an_image_alone_makes_an_instance(world: World) {
    let (node, _) = ready(&world).await;
    let stop = runner(&world);
    let body = NewObject { spec: json!({"image": "tiny"}), ..NewObject::default() };
    let right = world.right("default");
    let kind = world.kind("instance");
    let written = world.store.create(&right, kind, body, &Asked::default()).await.unwrap();
    let shown = kind.show(&written.object);
    assert!(shown["nics"]["default"]["address"].is_string(), "the 202 shows the address: {shown}");
    assert_eq!(written.object.core.phase, "creating");
    // Everything that QEMU needs was ordered by the one commit of the POST.
    let orders = world.store.assignments_after(&node, 0, 100).await.unwrap();
    let kinds: Vec<_> = orders.iter().map(|order| order.kind.as_str()).collect();
    assert_eq!(kinds, ["network", "image", "disk", "instance"]);
    let job = written.job.unwrap();
    let (cursor, state) = obey_until_done(&world, &node, 0, &job).await;
    assert_eq!(state, "done");
    let id = written.object.core.id;
    let removed = world.store.remove(&right, kind, &id, None, &Asked::default()).await.unwrap();
    let (_, state) = obey_until_done(&world, &node, cursor, &removed.job.unwrap()).await;
    assert_eq!(state, "done");
    assert!(matches!(world.store.get(&right, kind, &id).await, Err(Error::NotFound)));
    // The root disk leaves with it, and the network leaves the node, though not the tenant.
    let mut cursor = cursor;
    until("only the image is left on the node", 60, async || {
        cursor = world.obey(&node, cursor).await;
        let left = world.store.assignments_after(&node, 0, 100).await.unwrap();
        (left.len() == 1 && left[0].kind == "image").then_some(())
    })
    .await;
    assert_eq!(phase(&world, "network", "default").await, "ready");
    stop.cancel();
}

async fn every_error_at_once_and_nothing_changes(world: World) {
    ready(&world).await;
    let right = world.right("default");
    let spec = json!({
        "image": "nobody", "vcpus": 0, "colour": "red", "node": "gone",
        "nics": {"lan": {"network": "none"}},
    });
    let body = NewObject { name: Some("with spaces".into()), spec, ..NewObject::default() };
    let error =
        world.store.create(&right, world.kind("instance"), body, &Asked::default()).await.unwrap_err();
    let Error::Invalid(errors) = error else { panic!("{error}") };
    let fields: Vec<_> = errors.iter().map(|error| error.field.as_str()).collect();
    for field in ["name", "spec.colour", "spec.image", "spec.node", "spec.nics.lan.network", "spec.vcpus"] {
        assert!(fields.contains(&field), "{field} is missing in {errors:#?}");
    }
    let query = rhyzome_api::store::ListQuery { limit: 10, ..Default::default() };
    let page = world.store.list(&right, world.kind("instance"), &query).await;
    assert!(page.unwrap().items.is_empty());
    world.make("default", "network", "a", json!({"cidr": "10.1.0.0/16"})).await;
    let body = NewObject { spec: json!({"cidr": "10.1.2.0/24"}), ..NewObject::default() };
    let error = world.store.create(&right, world.kind("network"), body, &Asked::default()).await.unwrap_err();
    let Error::Invalid(errors) = error else { panic!("{error}") };
    assert!(errors[0].reason.contains("overlaps network `a`"), "{errors:?}");
}

async fn of_a_hundred_at_once_no_two_get_one_address(world: World) {
    ready(&world).await;
    world.make("default", "network", "small", json!({"cidr": "10.1.0.0/25"})).await;
    let spec = json!({"image": "tiny", "nics": {"lan": {"network": "small"}}});
    let right = world.right("default");
    let tasks: Vec<_> = (0..100)
        .map(|_| {
            let (store, right, kind) = (world.store.clone(), right.clone(), world.kind("instance"));
            let body = NewObject { spec: spec.clone(), ..NewObject::default() };
            tokio::spawn(async move {
                let written = store.create(&right, kind, body, &Asked::default()).await.unwrap();
                kind.show(&written.object)["nics"]["lan"]["address"].to_string()
            })
        })
        .collect();
    let mut addresses = std::collections::BTreeSet::new();
    for task in tasks {
        assert!(addresses.insert(task.await.unwrap()), "an address was given twice");
    }
    assert_eq!(addresses.len(), 100);
}

async fn in_use_is_refused_and_names_the_users(world: World) {
    ready(&world).await;
    world.make("default", "instance", "web", json!({"image": "tiny"})).await;
    let right = world.right("default");
    let removed = world.store.remove(&right, world.kind("network"), "default", None, &Asked::default()).await;
    let Err(Error::Clash(Clash::InUse(users))) = removed else { panic!("{removed:?}") };
    assert_eq!(users[0].name, "web");
    let removed =
        world.store.remove(&world.right(""), world.kind("tenant"), "default", None, &Asked::default()).await;
    assert!(matches!(removed, Err(Error::Clash(Clash::InUse(_)))), "{removed:?}");
}

async fn stop_and_start_are_done_in_order(world: World) {
    let (node, _) = ready(&world).await;
    let stop = runner(&world);
    let right = world.right("default");
    let kind = world.kind("instance");
    let made = world.make("default", "instance", "web", json!({"image": "tiny"})).await;
    let (cursor, _) = obey_until_done(&world, &node, 0, &made.job.unwrap()).await;
    let call = |verb: &str| Call { verb: verb.into(), ..Call::default() };
    let first =
        world.store.act(&right, kind, "web", call("stop"), false, None, &Asked::default()).await.unwrap();
    let second =
        world.store.act(&right, kind, "web", call("start"), false, None, &Asked::default()).await.unwrap();
    let waiting = world.store.job(&right, second.job.as_ref().unwrap()).await.unwrap();
    assert_eq!(waiting.state, "waiting");
    let (cursor, state) = obey_until_done(&world, &node, cursor, &first.job.unwrap()).await;
    assert_eq!(state, "done");
    let (_, state) = obey_until_done(&world, &node, cursor, &second.job.unwrap()).await;
    assert_eq!(state, "done");
    assert_eq!(world.store.get(&right, kind, "web").await.unwrap().spec["power"], "on");
    stop.cancel();
}

async fn a_failed_creation_takes_back_what_it_did(world: World) {
    let (node, _) = ready(&world).await;
    let stop = runner(&world);
    let made = world.make("default", "instance", "web", json!({"image": "tiny"})).await;
    let id = made.object.core.id.clone();
    let report = rhyzome_api::store::NodeReport {
        object_id: id.clone(),
        placement_epoch: 1,
        generation: 1,
        state: "failed".into(),
        message: "no such machine".into(),
        permanent: true,
        ..Default::default()
    };
    world.store.record_report(&node, report).await.unwrap();
    let mut cursor = 0;
    let job = made.job.unwrap();
    let ended = until("the job has failed", 60, async || {
        for order in world.store.assignments_after(&node, cursor, 100).await.unwrap() {
            cursor = order.sequence;
            if order.remove {
                let report = rhyzome_api::store::NodeReport {
                    object_id: order.object_id,
                    placement_epoch: 1,
                    generation: order.generation,
                    state: "gone".into(),
                    ..Default::default()
                };
                world.store.record_report(&node, report).await.unwrap();
            }
        }
        let job = world.store.job(&world.right("default"), &job).await.unwrap();
        (job.state == "failed").then_some(job)
    })
    .await;
    assert_eq!(ended.problem.as_deref(), Some("no such machine"));
    assert_eq!(phase(&world, "instance", &id).await, "failed");
    let left = world.store.assignments_after(&node, 0, 100).await.unwrap();
    assert!(left.iter().all(|order| order.kind == "image" || order.remove), "{left:?}");
    stop.cancel();
}

async fn no_room_says_why_not(world: World) {
    world.make_node("small", 64 << 20).await;
    world.make_image("", "tiny").await;
    let body = NewObject { spec: json!({"image": "tiny"}), ..NewObject::default() };
    let made =
        world.store.create(&world.right("default"), world.kind("instance"), body, &Asked::default()).await;
    let Err(Error::Clash(Clash::NoCapacity(table))) = made else { panic!("{made:?}") };
    assert!(table[0].reasons[0].contains("bytes of memory wanted"), "{table:?}");
}

async fn a_token_is_used_once(world: World) {
    let id = world.make("", "node", "n9", json!({})).await.object.core.id;
    let expires_at = world.store.env().now().plus_seconds(60);
    let invite = rhyzome_api::store::NodeInvite { hash: "h".into(), expires_at };
    world.store.invite_node(&world.right(""), &id, invite, &Asked::default()).await.unwrap();
    let wrong = world.store.redeem_join_token("h", "n8").await.unwrap();
    assert_eq!(wrong, Err(rhyzome_api::store::JoinRefusal::WrongName));
    let tasks: Vec<_> = (0..200)
        .map(|_| {
            let store = world.store.clone();
            tokio::spawn(async move { store.redeem_join_token("h", "n9").await.unwrap().is_ok() })
        })
        .collect();
    let mut winners = 0;
    for task in tasks {
        winners += u32::from(task.await.unwrap());
    }
    assert_eq!(winners, 1);
}

async fn tenants_do_not_see_each_other(world: World) {
    ready(&world).await;
    world.make("", "tenant", "other", json!({})).await;
    let network = world.make("default", "network", "lan", json!({})).await.object.core.id;
    let other = world.right("other");
    assert!(matches!(world.store.get(&other, world.kind("network"), &network).await, Err(Error::NotFound)));
    let spec = json!({"image": "tiny", "nics": {"lan": {"network": network}}});
    let body = NewObject { spec, ..NewObject::default() };
    let made = world.store.create(&other, world.kind("instance"), body, &Asked::default()).await;
    let Err(Error::Invalid(errors)) = made else { panic!("{made:?}") };
    assert_eq!(errors[0].field, "spec.nics.lan.network");
}

async fn a_node_that_holds_a_disk_alone_is_not_deleted(world: World) {
    let (node, _) = ready(&world).await;
    let stop = runner(&world);
    world.make("default", "disk", "data", json!({"size_bytes": 1 << 30})).await;
    let spec = json!({"image": "tiny", "disks": {"data": {"disk": "data"}}});
    let made = world.make("default", "instance", "web", spec).await;
    let (cursor, _) = obey_until_done(&world, &node, 0, &made.job.unwrap()).await;
    let right = world.right("default");
    let asked = Asked::default();
    let gone = world.store.remove(&right, world.kind("instance"), "web", None, &asked).await.unwrap();
    obey_until_done(&world, &node, cursor, &gone.job.unwrap()).await;
    let removed = world.store.remove(&world.right(""), world.kind("node"), "n1", None, &asked).await;
    let Err(Error::Clash(Clash::InUse(users))) = removed else { panic!("{removed:?}") };
    assert_eq!((users.len(), users[0].name.as_str()), (1, "data"));
    // A second instance goes where the disk is.
    world.make_node("n2", 1 << 44).await;
    let made = world
        .make("default", "instance", "db", json!({"image": "tiny", "disks": {"d": {"disk": "data"}}}))
        .await;
    assert_eq!(made.object.claims["node"], node);
    stop.cancel();
}

async fn a_changed_name_and_a_restored_one(world: World) {
    let right = world.right("default");
    let kind = world.kind("network");
    world.make("default", "network", "a", json!({"cidr": "10.1.0.0/24"})).await;
    let patch = json!({"name": "b", "tags": {"env": "prod"}, "metadata": {"team": {"id": 7}}});
    let changed = world.store.update(&right, kind, "a", patch, Some(1), &Asked::default()).await.unwrap();
    assert_eq!((changed.object.core.version, changed.job), (2, None), "no spec changed: no job");
    let stale = world.store.update(&right, kind, "b", json!({"name": "c"}), Some(1), &Asked::default()).await;
    assert!(matches!(stale, Err(Error::Stale { current: 2, .. })), "{stale:?}");
    let query = rhyzome_api::store::ListQuery {
        limit: 10,
        labels: vec![("tag.env".into(), "prod".into()), ("metadata.team.id".into(), "7".into())],
        ..Default::default()
    };
    assert_eq!(world.store.list(&right, kind, &query).await.unwrap().items.len(), 1);
    let back = world.store.restore(&right, kind, "b", 1, &Asked::default()).await.unwrap();
    assert_eq!((back.object.core.name.as_str(), back.object.core.version), ("a", 3));
    assert!(world.store.list(&right, kind, &query).await.unwrap().items.is_empty());
    let patch = json!({"spec": {"cidr": "10.2.0.0/24"}});
    let fixed = world.store.update(&right, kind, "a", patch, None, &Asked::default()).await;
    let Err(Error::Invalid(errors)) = fixed else { panic!("an immutable field was changed") };
    assert_eq!(errors[0].field, "spec.cidr");
}
