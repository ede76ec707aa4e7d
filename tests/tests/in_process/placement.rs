//! Where instances go when many are made at once, on both databases.

use std::collections::BTreeMap;

use rhyzome_api::kernel::{Clash, Error};
use rhyzome_api::store::{Asked, NewObject};
use rhyzome_tests::on_both;
use rhyzome_tests::world::World;
use serde_json::json;

on_both!(members_are_kept_apart_however_many_come_at_once, a_group_in_use_stays, members_stay_together);

const NODES: usize = 3;

/// Creates as many members at once; answers the nodes of those that were taken, and the errors of the others.
async fn crowd(world: &World, group: &str, count: usize) -> (BTreeMap<String, usize>, Vec<Error>) {
    let right = world.right("default");
    let spec = json!({"image": "tiny", "placement": {"groups": [group]}});
    let tasks: Vec<_> = (0..count)
        .map(|_| {
            let (store, right, kind) = (world.store.clone(), right.clone(), world.kind("instance"));
            let body = NewObject { spec: spec.clone(), ..NewObject::default() };
            tokio::spawn(async move { store.create(&right, kind, body, &Asked::default()).await })
        })
        .collect();
    let (mut nodes, mut errors) = (BTreeMap::new(), Vec::new());
    for task in tasks {
        match task.await.unwrap() {
            Ok(written) => {
                let node = written.object.claims["node"].as_str().unwrap().to_owned();
                *nodes.entry(node).or_insert(0) += 1;
            }
            Err(error) => errors.push(error),
        }
    }
    (nodes, errors)
}

async fn ready(world: &World) {
    for number in 0..NODES {
        world.make_node(&format!("n{number}"), 1 << 40).await;
    }
    world.make_image("", "tiny").await;
    // Made beforehand, so that the crowd does not compete for making it.
    world.make("default", "network", "default", json!({})).await;
}

async fn members_are_kept_apart_however_many_come_at_once(world: World) {
    ready(&world).await;
    world.make("default", "placement-group", "web", json!({})).await;
    let (nodes, errors) = crowd(&world, "web", 3 * NODES).await;
    assert_eq!(nodes.len(), NODES, "{nodes:?} {errors:?}");
    assert!(nodes.values().all(|members| *members == 1), "{nodes:?}");
    assert_eq!(errors.len(), 2 * NODES);
    for error in errors {
        let Error::Clash(Clash::NoCapacity(table)) = error else { panic!("{error}") };
        assert_eq!(table.len(), NODES);
        assert!(table.iter().all(|row| row.reasons[0].contains("keeps its members apart")), "{table:?}");
    }
    // Where the rule may be bent it is bent evenly.
    world.make("default", "placement-group", "any", json!({"policy": "allow"})).await;
    let (nodes, errors) = crowd(&world, "any", 2 * NODES).await;
    assert!(errors.is_empty(), "{errors:?}");
    assert!(nodes.len() == NODES && nodes.values().all(|members| *members == 2), "{nodes:?}");
}

async fn members_stay_together(world: World) {
    ready(&world).await;
    world.make("default", "placement-group", "db", json!({"rule": "affinity"})).await;
    let (nodes, errors) = crowd(&world, "db", 5).await;
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(nodes.len(), 1, "{nodes:?}");
}

async fn a_group_in_use_stays(world: World) {
    ready(&world).await;
    let group = world.make("default", "placement-group", "web", json!({})).await.object.core.id;
    crowd(&world, "web", 1).await;
    let (right, kind) = (world.right("default"), world.kind("placement-group"));
    let error = world.store.remove(&right, kind, &group, None, &Asked::default()).await.unwrap_err();
    assert!(matches!(error, Error::Clash(Clash::InUse(ref users)) if users.len() == 1), "{error}");
    // Its rule is asked once, so it cannot change afterwards.
    let patch = json!({"spec": {"policy": "allow"}});
    let error = world.store.update(&right, kind, &group, patch, None, &Asked::default()).await.unwrap_err();
    assert!(matches!(error, Error::Invalid(ref errors) if errors[0].field == "spec.policy"), "{error}");
}
