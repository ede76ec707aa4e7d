//! The second wall between tenants, in the database: with the first one taken out, nothing of another tenant's is read,
//! and nothing is written.
//!
//! It is taken out by a caller who may do everything, as an operator, and to whom something was granted in one tenant only:
//! every question of the program is answered by yes, and what the database lets them come upon follows from their grants.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use rhyzome_api::auth::{Authenticator, RequestDetails, Verdict};
use rhyzome_api::kernel::Caller;
use rhyzome_api::kernel::policy::{Access, Area, Grant};
use rhyzome_api::kernel::role::Permission;
use rhyzome_tests::face::Face;
use rhyzome_tests::statements;
use rhyzome_tests::world::{Engine, World};
use serde_json::Value;

use super::permissions::{Furnished, filled, is_write, operations};

/// What stands in all that the other tenant has, and nowhere else.
const CANARY: &str = "canary-of-beta";

/// Lets everybody in as an operator, to whom something was granted in one tenant: the one that they name.
struct NoFirstWall;

impl Authenticator for NoFirstWall {
    fn authenticate<'a>(&'a self, header: Option<&'a str>, _: &'a RequestDetails) -> BoxFuture<'a, Verdict> {
        let tenant = header.and_then(|header| header.strip_prefix("All ")).unwrap_or_default();
        let grant = Grant {
            why: "the test".to_owned(),
            scopes: Permission::all(["*:*"]),
            area: Area::tenant(tenant),
            ..Grant::default()
        };
        let access = Access { grants: vec![grant], limit: None };
        let caller = Caller { access: Some(Arc::new(access)), ..Caller::operator("blind", "none") };
        Box::pin(std::future::ready(Verdict::Caller(caller)))
    }
}

/// How the other tenant's rows stand.
async fn rows(world: &World) -> Vec<Vec<Vec<String>>> {
    let mut all = Vec::new();
    for sql in [
        "SELECT id, version, generation, deleted_at, gone_at FROM resource WHERE tenant = 'beta' ORDER BY id",
        "SELECT id, name FROM live WHERE tenant = 'beta' ORDER BY id",
        "SELECT id, state FROM job WHERE tenant = 'beta' ORDER BY id",
        "SELECT holder, subject, role FROM grantee WHERE tenant = 'beta' ORDER BY 1, 2",
    ] {
        all.push(world.ask(sql).await);
    }
    all
}

/// Every operation of the document about another tenant: under its own path, and by its ids under one's own.
/// What came out of it that should not, and whether anything was written.
async fn leaks(world: &World) -> (Vec<String>, bool) {
    let furnished = Furnished::new(world).await;
    for table in ["resource", "revision"] {
        let whose = if table == "resource" {
            "tenant = 'beta'"
        } else {
            "resource IN (SELECT id FROM resource WHERE tenant = 'beta')"
        };
        world.sql(&format!("UPDATE {table} SET metadata = '{{\"of\": \"{CANARY}\"}}' WHERE {whose}")).await;
    }
    let ids: Vec<String> = world
        .ask("SELECT id FROM resource WHERE tenant = 'beta' UNION SELECT id FROM job WHERE tenant = 'beta'")
        .await
        .concat();
    let job =
        world.ask("SELECT id FROM job WHERE tenant = 'beta' ORDER BY id LIMIT 1").await.concat().concat();
    let face = Face::letting_in(world, vec![Arc::new(NoFirstWall)]);
    let document = face.raw("GET", "/openapi.json", &[], "").await.json;
    let (before, kinds) = (rows(world).await, world.store.registry().all());
    let (mut found, mut asked) = (Vec::new(), 0);
    for operation in operations(&document).iter().filter(|operation| !operation.open) {
        let of_tenants = operation.path.contains("{tenant}");
        // What operators own is behind the first wall alone.
        if !of_tenants && is_write(operation) {
            continue;
        }
        let id = |kind: &str| match (kind, of_tenants) {
            ("job", _) => job.clone(),
            (kind, true) => furnished.id("beta", kind).to_owned(),
            (kind, false) => furnished.id("", kind).to_owned(),
        };
        for tenant in ["beta", "default"] {
            let path = filled(operation, kinds, tenant, id);
            let path = match operation.path.as_str() {
                of if of.ends_with("/events") => format!("{path}?follow=false&since=0"),
                "/v1/can" => format!(
                    "{path}?verb=get&kind=instance&tenant=beta&id={}",
                    furnished.id("beta", "instance")
                ),
                _ if is_write(operation) && operation.id.ends_with("_all") => format!("{path}?name=probed"),
                _ => path,
            };
            let mut headers = vec![("authorization", "All default")];
            if let Some(media) = &operation.media {
                headers.push(("content-type", media));
            }
            let body = if operation.media.is_some() { "{}" } else { "" };
            let reply = face.raw(&operation.method, &path, &headers, body).await;
            asked += 1;
            let text = String::from_utf8_lossy(&reply.bytes).replace(&path, "");
            let one = ids.iter().find(|id| text.contains(id.as_str()) && !path.contains(id.as_str()));
            let used = operation.id == "tenant_quota" && tenant == "beta" && uses(&reply.json);
            if text.contains(CANARY) || one.is_some() || used {
                found.push(format!("{} {path}: {} {text:.300}", operation.method, reply.status));
            }
        }
    }
    println!("{asked} requests, {} leaks", found.len());
    assert!(asked > 300, "{asked}");
    (found, rows(world).await != before)
}

fn uses(quota: &Value) -> bool {
    match quota {
        Value::Object(all) => all.iter().any(|(key, value)| match key.as_str() {
            "used" => value.as_u64().is_some_and(|used| used > 0),
            _ => uses(value),
        }),
        _ => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_alone_keeps_tenants_apart() {
    let world = World::new(Engine::Postgres).await;
    let (found, written) = leaks(&world).await;
    assert!(found.is_empty() && !written, "written: {written}; {} leaks:\n{}", found.len(), found.join("\n"));
}

/// SQLite has no such wall: so it is seen that the first one is out.
#[tokio::test(flavor = "multi_thread")]
async fn without_it_everything_would_leak() {
    let world = World::new(Engine::Sqlite).await;
    let (found, written) = leaks(&world).await;
    assert!(found.len() > 50 && written, "{} leaks, written: {written}", found.len());
}

/// A table with a tenant in it that has no wall is found here by its name.
#[tokio::test]
async fn every_table_with_a_tenant_is_behind_it() {
    let world = World::new(Engine::Postgres).await;
    let bare = world
        .ask(
            "SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid WHERE c.relkind = 'r' \
             AND c.relnamespace = 'public'::regnamespace AND a.attname = 'tenant' \
             AND NOT (c.relrowsecurity AND c.relforcerowsecurity AND EXISTS (SELECT 1 FROM pg_policy p WHERE p.polrelid = c.oid))",
        )
        .await;
    assert!(bare.is_empty(), "{bare:?}: see 0014_walls.sql");
    // Whom the tests' superuser becomes.
    let role = "SELECT rolsuper, rolbypassrls, rolcanlogin, (SELECT count(*) FROM pg_class WHERE relowner = r.oid) \
                FROM pg_roles r WHERE rolname = 'rhyzome_walled'";
    assert_eq!(world.ask(role).await.concat(), ["f", "f", "f", "0"]);
}

/// A wall is said when it is another than before: who asks twice pays once.
#[tokio::test]
async fn it_costs_a_statement_when_it_changes() {
    let world = World::new(Engine::Postgres).await;
    world.make("default", "network", "lan", serde_json::json!({})).await;
    let face = Face::letting_in(&world, vec![Arc::new(NoFirstWall)]);
    let get = async || {
        let path = "/v1/tenants/default/networks/lan";
        assert_eq!(face.raw("GET", path, &[("authorization", "All default")], "").await.status, 200);
    };
    get().await;
    statements::listen();
    for _ in 0..20 {
        get().await;
    }
    let heard = statements::heard();
    let walls = heard.iter().filter(|sql| sql.starts_with("SET ")).count();
    println!("{} statements, {walls} of them say a wall", heard.len());
    assert!(heard.len() >= 20 && walls <= 1, "{walls} of {}", heard.len());
}
