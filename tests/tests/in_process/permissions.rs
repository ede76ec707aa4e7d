//! THE PERMISSION MATRIX: every operation of the document by every relation that somebody can have to what it is about.
//! Nothing is left out, and nothing is listed here: what is new in the document is asked as soon as it is there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rhyzome_api::auth::Domains;
use rhyzome_api::environment::system_env;
use rhyzome_api::kernel::{Kind, Scope};
use rhyzome_tests::face::{Face, Reply};
use rhyzome_tests::on_both;
use rhyzome_tests::people::{face, knowing};
use rhyzome_tests::wait::until;
use rhyzome_tests::world::World;
use serde_json::{Value, json};

on_both!(nobody_gets_what_is_not_theirs, no_reference_leads_to_another_tenant);

/// Operations that are not asked. May only shrink.
const UNCOVERED: [&str; 0] = [];
/// What somebody owns, somebody else does, and one that is suspended.
const TENANTS: [&str; 3] = ["default", "beta", "halted"];
/// Public keys for WireGuard, for those behind the first.
const KEYS: [(&str, &str); 2] = [
    ("beta", "CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk="),
    ("halted", "CgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgo="),
];
/// What only ever says something of the caller, or nothing that is anybody's.
const OF_EVERYBODY: [&str; 10] = [
    "root",
    "whoami",
    "can",
    "session",
    "session_begin",
    "session_end",
    "second_factor",
    "second_factor_enrol",
    "second_factor_confirm",
    "second_factor_drop",
];

/// An operation of the document.
pub(super) struct Operation {
    pub(super) id: String,
    pub(super) method: String,
    pub(super) path: String,
    pub(super) open: bool,
    /// What it takes as a body, if it takes one.
    pub(super) media: Option<String>,
}

pub(super) fn operations(document: &Value) -> Vec<Operation> {
    let mut all = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, one) in methods.as_object().unwrap() {
            let Some(id) = one["operationId"].as_str() else { continue };
            let open = one["security"].as_array().is_some_and(Vec::is_empty);
            let media = one["requestBody"]["content"].as_object().and_then(|all| all.keys().next().cloned());
            let (id, method, path) = (id.to_owned(), method.to_uppercase(), path.clone());
            all.push(Operation { id, method, path, open, media });
        }
    }
    all
}

fn example(kind: &dyn Kind) -> Value {
    serde_json::to_value(kind.schemas().spec.1).unwrap()["example"].clone()
}

/// What each object is called.
fn name_of(kind: &str) -> &'static str {
    if kind == "tenant" { "default" } else { "probed" }
}

/// An object of each kind with all that it names, in each tenant; the ids by tenant and kind.
pub(super) struct Furnished {
    ids: BTreeMap<(String, String), String>,
}

impl Furnished {
    pub(super) async fn new(world: &World) -> Furnished {
        for tenant in &TENANTS[1..] {
            world.make("", "tenant", tenant, json!({})).await;
        }
        world.make_node("able", 1 << 44).await;
        let mut all = Furnished { ids: BTreeMap::new() };
        for kind in world.store.registry().all() {
            let meta = kind.meta();
            let tenants: &[&str] = match meta.scope {
                Scope::Operator => &[""],
                Scope::Tenant => &TENANTS,
                Scope::Both | Scope::Apart => &["", "default", "beta", "halted"],
            };
            for tenant in tenants {
                // What is named by others is there under its own name already.
                all.make(world, tenant, meta.kind, name_of(meta.kind)).await;
            }
        }
        all
    }

    async fn make(&mut self, world: &World, tenant: &str, kind: &str, name: &str) {
        let kind = world.kind(kind);
        let meta = kind.meta();
        let at = match (meta.scope, meta.kind) {
            (Scope::Operator, _) => "",
            _ => tenant,
        };
        let sql = format!(
            "SELECT id FROM live WHERE kind = '{}' AND tenant = '{at}' AND name = '{name}'",
            meta.kind
        );
        if let Some(row) = world.ask(&sql).await.pop() {
            self.ids.insert((at.to_owned(), meta.kind.to_owned()), row[0].clone());
            return;
        }
        let mut spec = example(kind);
        // Each client has a key of its own.
        if let Some((_, own)) = KEYS.iter().find(|(of, _)| *of == tenant)
            && spec["public_key"].as_str().is_some_and(|key| key.len() == own.len())
        {
            spec["public_key"] = json!(own);
        }
        // One of each is enough, and of some there cannot be two.
        for reference in kind.refs(&kind.complete(&spec).unwrap()) {
            let pointer = reference.field.replacen("spec", "", 1).replace('.', "/");
            if let Some(slot) = spec.pointer_mut(&pointer).filter(|slot| slot.is_string()) {
                let other = world.kind(reference.kind).meta();
                let of = if matches!(other.scope, Scope::Operator) { "" } else { at };
                Box::pin(self.make(world, of, reference.kind, name_of(reference.kind))).await;
                *slot = json!(self.id(of, reference.kind));
            }
        }
        let id = match meta.kind {
            "image" => world.make_image(at, name).await,
            "node" => world.make_node(name, 1 << 44).await,
            _ => world.make(at, meta.kind, name, spec).await.object.core.id,
        };
        self.ids.insert((at.to_owned(), meta.kind.to_owned()), id);
    }

    pub(super) fn id(&self, tenant: &str, kind: &str) -> &str {
        &self.ids[&(tenant.to_owned(), kind.to_owned())]
    }
}

/// Somebody, and what they are to the tenant `default`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Relation {
    /// Nobody, or nobody who is let in.
    Out,
    /// Knows nothing of it.
    Apart,
    /// Owns one that is suspended.
    Suspended,
    /// Sees it.
    Viewer,
    /// Owns it.
    Owner,
    /// Runs the whole.
    Operator,
}

/// Somebody, how they come, and by whose domain; empty: the server's own.
struct Somebody {
    relation: Relation,
    who: String,
    domain: &'static str,
}

fn somebody(relation: Relation, who: &str) -> Somebody {
    by_domain(relation, who, "")
}

fn by_domain(relation: Relation, who: &str, domain: &'static str) -> Somebody {
    Somebody { relation, who: who.to_owned(), domain }
}

/// The API, with domains of its own for two tenants.
async fn with_domains(world: &World) -> Face {
    let operator = face(world);
    for tenant in ["default", "beta"] {
        let api = json!({ "spec": { "api": { "domain": format!("api.{tenant}.example") } } });
        operator.call("PATCH", &format!("/v1/tenants/{tenant}"), api).await.is(200);
    }
    let domains = Arc::new(Domains::default());
    domains.read(&world.store).await.unwrap();
    knowing(world, domains)
}

async fn people(face: &Face) -> Vec<Somebody> {
    face.member("default", "otto", "owner").await;
    face.member("default", "vera", "viewer").await;
    face.member("beta", "bea", "owner").await;
    face.member("halted", "sue", "owner").await;
    face.call("POST", "/v1/tenants/halted/actions/suspend", json!({ "instances": "keep" })).await.is(200);
    face.member("default", "dora", "owner").await;
    let all = json!({ "subjects": { "dora": { "user": face.user("dora").await } }, "effect": "deny", "scopes": ["*:*"] });
    face.call("POST", "/v1/tenants/default/bindings", json!({ "spec": all })).await.is(201);
    // Known in one tenant only, as those of its own issuer are.
    face.member("default", "dan - default", "owner").await;
    face.member("beta", "bo - beta", "owner").await;
    let mut people = vec![
        somebody(Relation::Out, ""),
        somebody(Relation::Out, "rzo1.bogus"),
        somebody(Relation::Out, "rzt_bogus"),
        somebody(Relation::Apart, "stranger"),
        somebody(Relation::Apart, "bea"),
        somebody(Relation::Suspended, "sue"),
        somebody(Relation::Viewer, "vera"),
        somebody(Relation::Owner, "otto"),
        somebody(Relation::Operator, "operator"),
        // On a tenant's domain whoever is not of that tenant alone is nobody, and who is finds nothing of others.
        by_domain(Relation::Out, "otto", "default"),
        by_domain(Relation::Out, "otto", "beta"),
        by_domain(Relation::Out, "operator", "default"),
        by_domain(Relation::Out, "bo - beta", "default"),
        by_domain(Relation::Owner, "dan - default", "default"),
        by_domain(Relation::Out, "dan - default", "beta"),
        by_domain(Relation::Apart, "bo - beta", "beta"),
    ];
    let cases = [
        ("otto", json!({ "tenant": "beta" }), Relation::Apart),
        (
            "otto",
            json!({ "tenant": "default", "scopes": ["*:get", "*:list", "event:watch"] }),
            Relation::Viewer,
        ),
        ("bea", json!({}), Relation::Apart),
        ("operator", json!({ "tenant": "beta" }), Relation::Apart),
    ];
    for (who, spec, relation) in cases {
        let made = face.by(who, "POST", "/v1/tokens", json!({ "spec": &spec })).await.is(201);
        let token = made.json["secrets"]["token"].as_str().unwrap();
        people.push(somebody(relation, token));
        for domain in ["default", "beta"] {
            let there = spec["tenant"] == domain;
            people.push(by_domain(if there { relation } else { Relation::Out }, token, domain));
        }
    }
    let gone = face.by("otto", "POST", "/v1/tokens", json!({ "spec": {} })).await.is(201).json;
    face.by("otto", "DELETE", &format!("/v1/tokens/{}", gone["id"].as_str().unwrap()), Value::Null)
        .await
        .is(202);
    people.push(somebody(Relation::Out, gone["secrets"]["token"].as_str().unwrap()));
    people.push(somebody(Relation::Out, &expired(face).await));
    people
}

/// A token of somebody who owns it all, whose time is over.
async fn expired(face: &Face) -> String {
    let end = system_env().now().plus_seconds(5);
    let made = face.by("otto", "POST", "/v1/tokens", json!({ "spec": { "expires_at": end } })).await.is(201);
    let token = made.json["secrets"]["token"].as_str().unwrap().to_owned();
    until("its time to be over", 60, async || {
        (face.seen_by(&token, "/v1/whoami").await.status == 401).then_some(())
    })
    .await;
    token
}

/// Of which kind the objects of an operation are; `job`, if they are no objects.
fn kind_of(operation: &Operation, kinds: &[&'static dyn Kind]) -> &'static str {
    let path = operation.path.trim_start_matches("/v1/").trim_start_matches("tenants/{tenant}/");
    let plural = path.split('/').next().unwrap_or_default();
    kinds.iter().find(|kind| kind.meta().plural == plural).map_or("job", |kind| kind.meta().kind)
}

/// The path of an operation about this tenant and these ids; none of it may be left open.
pub(super) fn filled(
    operation: &Operation,
    kinds: &[&'static dyn Kind],
    tenant: &str,
    id: impl Fn(&str) -> String,
) -> String {
    let kind = kind_of(operation, kinds);
    let id = if operation.path.contains("{id}") { id(kind) } else { String::new() };
    let path = operation.path.replace("{tenant}", tenant).replace("{id}", &id);
    let path = ["{n}", "{number}", "{difference}"].iter().fold(path, |path, param| path.replace(param, "1"));
    assert!(!path.contains('{'), "{path}: say what stands there");
    path
}

/// True if it reads what a guest says.
fn is_guests(operation: &Operation) -> bool {
    ["_console", "instance_log", "_tunnel", "snapshot_content"].iter().any(|one| operation.id.ends_with(one))
}

pub(super) fn is_write(operation: &Operation) -> bool {
    operation.method != "GET"
}

fn told(reply: &Reply) -> (u16, Vec<String>, Value) {
    let mut body = reply.json.clone();
    body["request_id"] = Value::Null;
    (reply.status, reply.headers.keys().map(ToString::to_string).collect(), body)
}

async fn ask(
    face: &Face,
    Somebody { relation, who, domain }: &Somebody,
    operation: &Operation,
    (path, name): (&str, &str),
) -> Reply {
    let authorization = match who.as_str() {
        "operator" => format!("Bearer {}", rhyzome_tests::face::TOKEN),
        token if token.starts_with("rz") => format!("Bearer {token}"),
        person => format!("Is {person}"),
    };
    // Whoever may do it changes nothing: the version is one that nobody knows.
    let (mut headers, host) = (Vec::new(), format!("api.{domain}.example"));
    if !domain.is_empty() {
        headers.push(("host", host.as_str()));
    }
    if !who.is_empty() {
        headers.push(("authorization", authorization.as_str()));
    }
    if let Some(media) = &operation.media {
        headers.push(("content-type", media));
    }
    let bulk = is_write(operation) && (operation.id.ends_with("_all"));
    let path = match operation.path.as_str() {
        of if of.ends_with("/events") => format!("{path}?follow=false"),
        "/v1/can" => format!("{path}?verb=get&kind=node"),
        // Who may do it finds none.
        _ if bulk && matches!(relation, Relation::Owner | Relation::Operator) => format!("{path}?name=none"),
        _ if bulk => format!("{path}?name={name}"),
        _ => path.to_owned(),
    };
    if is_write(operation) && !bulk {
        headers.push(("if-match", "\"v999999\""));
    }
    let body = if operation.media.is_some() { "{}" } else { "" };
    face.raw(&operation.method, &path, &headers, body).await
}

/// What is told to those who know nothing of it must be the same wherever it is.
async fn nobody_gets_what_is_not_theirs(world: World) {
    let furnished = Furnished::new(&world).await;
    let face = with_domains(&world).await;
    let people = people(&face).await;
    let document = face.get("/openapi.json").await.json;
    let (registry, operations) = (world.store.registry().clone(), operations(&document));
    let job_of = async |tenant: &str| {
        let sql = format!("SELECT id FROM job WHERE tenant = '{tenant}' ORDER BY id LIMIT 1");
        world.ask(&sql).await.remove(0).remove(0)
    };
    let (job, halted_job) = (job_of("default").await, job_of("halted").await);
    let (mut asked, mut wrong, mut covered) = (0, Vec::new(), BTreeSet::new());
    for operation in operations.iter().filter(|operation| !operation.open) {
        covered.insert(operation.id.as_str());
        let tenants = operation.path.contains("{tenant}");
        let own = if tenants { "default" } else { "" };
        let there = |kind: &str| match kind {
            "job" => job.clone(),
            kind => furnished.id(own, kind).to_owned(),
        };
        let nowhere = |kind: &str| {
            let prefix = registry.get(kind).map_or("job", |kind| kind.meta().prefix);
            format!("{prefix}_{}", "0".repeat(26))
        };
        let kinds = registry.all();
        let (here, not_here) =
            (filled(operation, kinds, "default", there), filled(operation, kinds, "gamma", nowhere));
        let halted = |kind: &str| match kind {
            "job" => halted_job.clone(),
            kind => furnished.id(if tenants { "halted" } else { "" }, kind).to_owned(),
        };
        let halted = filled(operation, kinds, "halted", halted);
        let name = name_of(kind_of(operation, kinds));
        for one in &people {
            let Somebody { relation, who, domain } = one;
            let here = if *relation == Relation::Suspended { &halted } else { &here };
            let reply = ask(&face, one, operation, (here, name)).await;
            asked += 1;
            let everybodys = OF_EVERYBODY.contains(&operation.id.as_str()) || operation.path == "/v1/tokens";
            let fine = match relation {
                Relation::Out => reply.status == 401,
                Relation::Operator => !matches!(reply.status, 401 | 403),
                _ if everybodys => reply.status < 500 && reply.status != 401,
                Relation::Apart => hidden(&reply, &ask(&face, one, operation, (&not_here, name)).await),
                Relation::Suspended if tenants && (is_write(operation) || is_guests(operation)) => {
                    reply.status == 403 && reply.json["type"] == "/problems/tenant-suspended"
                }
                _ if !tenants => hidden(&reply, &ask(&face, one, operation, (&not_here, name)).await),
                Relation::Viewer if is_guests(operation) => reply.status == 403,
                Relation::Viewer if is_write(operation) => refused(operation, &reply),
                Relation::Suspended | Relation::Viewer | Relation::Owner => {
                    !matches!(reply.status, 401 | 403) && reply.status < 500
                }
            };
            if !fine {
                wrong.push(format!(
                    "{relation:?} {who} {domain}: {} {here}: {} {}",
                    operation.method, reply.status, reply.json
                ));
            }
        }
    }
    for id in UNCOVERED {
        assert!(!covered.contains(id), "{id} is covered: take it from the list");
    }
    println!("{} operations, {asked} requests", covered.len());
    assert!(covered.len() > 150 && wrong.is_empty(), "{} of {asked}:\n{}", wrong.len(), wrong.join("\n"));
}

/// It is not there, and told word by word as what is nowhere.
fn hidden(reply: &Reply, nowhere: &Reply) -> bool {
    reply.status == 404 && told(reply) == told(nowhere)
}

/// Seen, and not to be changed: refused, or each of many refused.
fn refused(operation: &Operation, reply: &Reply) -> bool {
    if operation.id.ends_with("_all") {
        let items = reply.json["items"].as_array().cloned().unwrap_or_default();
        return reply.status == 200 && items.iter().all(|item| item["status"] == 403);
    }
    // A body that means nothing is told before the object is looked at, and changes nothing.
    matches!(reply.status, 403 | 422)
}

/// Every reference of every kind, with another tenant's id in it, with one that is nowhere, and left out.
async fn no_reference_leads_to_another_tenant(world: World) {
    let face = face(&world);
    let furnished = Furnished::new(&world).await;
    face.member("default", "otto", "owner").await;
    let theirs: Vec<&String> =
        furnished.ids.iter().filter(|((tenant, _), _)| tenant == "beta").map(|(_, id)| id).collect();
    let mut probed = 0;
    for kind in world.store.registry().all().iter().filter(|kind| kind.meta().scope != Scope::Operator) {
        let path = format!("/v1/tenants/default/{}?plan=true", kind.meta().plural);
        let spec = example(*kind);
        for reference in kind.refs(&kind.complete(&spec).unwrap()) {
            let Some(foreign) = furnished.ids.get(&("beta".to_owned(), reference.kind.to_owned())) else {
                continue;
            };
            let prefix = world.kind(reference.kind).meta().prefix;
            let nobody = format!("{prefix}_{}", "0".repeat(26));
            let pointer = reference.field.replacen("spec", "", 1).replace('.', "/");
            let mut answers = Vec::new();
            for id in [Some(foreign.as_str()), Some(nobody.as_str()), None] {
                let mut spec = spec.clone();
                let Some(slot) = spec.pointer_mut(&pointer) else { continue };
                *slot = json!(id);
                let reply = face.by("otto", "POST", &path, json!({ "name": "new", "spec": spec })).await;
                probed += 1;
                let text = reply.json.to_string();
                let leak = theirs
                    .iter()
                    .find(|theirs| text.contains(theirs.as_str()) && id != Some(theirs.as_str()));
                assert!(leak.is_none(), "{path} {}: {text}", reference.field);
                if let Some(id) = id {
                    assert!(
                        text.contains("there is no ") && text.contains(id),
                        "{path} {}: {text}",
                        reference.field
                    );
                    let request = reply.header("x-request-id");
                    answers.push((reply.status, text.replace(id, "ID").replace(request, "")));
                }
            }
            answers.dedup();
            assert!(answers.len() <= 1, "{path} {}: {answers:#?}", reference.field);
        }
    }
    println!("{probed} probes");
    assert!(probed > 5, "{probed} probes");
}
