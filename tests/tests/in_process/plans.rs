//! What a list costs must not grow with what is there: every list of the document is asked for by each of its
//! filters, each two of them, each order, from the beginning and further on, over a crowd; and the database's own
//! plan for each statement that this took is read. A scan of a whole table, or a sort of more than a page, fails.

use std::collections::BTreeSet;

use rhyzome_tests::face::Face;
use rhyzome_tests::world::{Engine, World};
use rhyzome_tests::{on_both, statements};
use serde_json::{Value, json};

on_both!(every_filter_has_an_index, a_plan_without_an_index_is_found, short_pages_hold_everything_once);

// On one thread: what is heard is what this test says.
#[tokio::test]
async fn no_job_reads_the_backlog_on_sqlite() {
    no_job_reads_the_backlog(World::overheard(Engine::Sqlite).await).await;
}

#[tokio::test]
async fn no_job_reads_the_backlog_on_postgres() {
    no_job_reads_the_backlog(World::new(Engine::Postgres).await).await;
}

/// Enough that a planner which knows the tables would not read a whole one for a page.
const CROWD: u64 = 20_000;
const HOOK: &str = "hook";

async fn every_filter_has_an_index(world: World) {
    world.make_image("", "tiny").await;
    for tenant in ["default", ""] {
        world.make(tenant, "webhook", HOOK, json!({ "url": "https://hooks.example.com" })).await;
    }
    for sql in xtask::crowd::statements(1, CROWD) {
        world.sql(&sql).await;
    }
    let face = Face::of(&world);
    statements::listen();
    let mut asked = 0;
    for (path, filters, ordered) in lists() {
        let orders: &[&str] = if ordered { &["order=id", "order=name"] } else { &[""] };
        for order in orders {
            let first = face.get(&format!("{path}?limit=1&{order}")).await.is(200);
            let cursor = first.json["next"].as_str().map(|next| format!("&page={next}"));
            for query in queries(&filters) {
                if query.contains("name_prefix") && *order == "order=id" {
                    let wrong = face.get(&format!("{path}?{order}{query}")).await;
                    assert_eq!(wrong.is_problem(400, "malformed").fields(), ["?order"], "{path}?{query}");
                    continue;
                }
                for page in [Some(String::new()), cursor.clone()].into_iter().flatten() {
                    face.get(&format!("{path}?limit=50&{order}{query}{page}")).await.is(200);
                    asked += 1;
                }
            }
        }
    }
    let statements: BTreeSet<String> = statements::heard().into_iter().collect();
    println!("{asked} requests, {} statements", statements.len());
    assert!(asked > 500 && statements.len() > 50, "{asked} requests, {} statements", statements.len());
    let mut bad = Vec::new();
    for sql in &statements {
        let plan = world.plan(sql).await;
        bad.extend(faults(sql, &plan).map(|fault| format!("{fault}\n  {sql}\n{plan}")));
    }
    assert!(bad.is_empty(), "{} of {} plans:\n{}", bad.len(), statements.len(), bad.join("\n\n"));
}

async fn a_plan_without_an_index_is_found(world: World) {
    for sql in xtask::crowd::statements(1, CROWD) {
        world.sql(&sql).await;
    }
    for sql in [
        "SELECT id FROM resource WHERE metadata = $1",
        "SELECT id FROM resource WHERE kind = $1 AND gone_at IS NULL ORDER BY updated_at LIMIT 10",
        "SELECT r.id FROM live d JOIN resource r ON r.id = d.id WHERE d.kind = $1 ORDER BY r.phase LIMIT 10",
    ] {
        let plan = world.plan(sql).await;
        assert!(faults(sql, &plan).is_some(), "{sql}\n{plan}");
    }
}

/// However many jobs are open, and though the planner last counted when none was: a job that begins and ends looks at
/// those of its own object, and at those that wait for it.
async fn no_job_reads_the_backlog(world: World) {
    world.make_image("", "tiny").await;
    world.make_node("n1", 1 << 45).await;
    for sql in xtask::crowd::statements(1, CROWD) {
        world.sql(&sql).await;
    }
    let late = i64::MAX;
    world.sql(&format!("UPDATE job SET finished_at = NULL, state = 'waiting', wake_at = {late}")).await;
    let before = "UPDATE job SET wake_at = 0 WHERE finished_at IS NULL AND (resource IN ($1) OR id IN \
                  (SELECT job FROM job_after WHERE after IN ($2)))";
    assert!(reads_the_backlog(&world.plan(before).await), "nothing would be noticed");
    let face = Face::of(&world);
    statements::listen();
    let spec = json!({"name": "one", "spec": {"image": "tiny"}});
    face.call("POST", "/v1/tenants/default/instances", spec).await.is(202);
    rhyzome_api::jobs::look(&world.store).await.unwrap();
    face.call("DELETE", "/v1/tenants/default/instances/one", Value::Null).await.is(202);
    world.sql("UPDATE job SET wake_at = 1 WHERE id IN (SELECT id FROM job ORDER BY id LIMIT 3)").await;
    rhyzome_api::jobs::look(&world.store).await.unwrap();
    let heard: BTreeSet<String> = statements::heard().into_iter().collect();
    let of_jobs = |sql: &&String| {
        let named = ["FROM job ", "JOIN job ", "UPDATE job "].iter().any(|words| sql.contains(words));
        // Those that are due are found by when; what is written by id has values without types.
        named && !sql.contains("wake_at >= $1") && !sql.contains("v.column2")
    };
    for words in ["o.id < j.id", "UPDATE job SET wake_at"] {
        assert!(heard.iter().any(|sql| sql.contains(words)), "nothing said {words}");
    }
    for sql in heard.iter().filter(of_jobs) {
        let plan = world.plan(sql).await;
        assert!(!reads_the_backlog(&plan), "{sql}\n{plan}");
    }
}

fn reads_the_backlog(plan: &Value) -> bool {
    match plan {
        Value::String(line) => {
            line.contains("job_due") || ["SCAN job", "SCAN j", "SCAN o", "SCAN w"].contains(&&**line)
        }
        Value::Array(all) => all.iter().any(reads_the_backlog),
        Value::Object(node) => {
            let whole = node.get("Node Type").is_some_and(|word| word == "Seq Scan");
            whole && node.get("Relation Name").is_some_and(|name| name == "job")
                || node.get("Index Name").is_some_and(|name| name == "job_due")
                || node.get("Plans").is_some_and(reads_the_backlog)
        }
        _ => false,
    }
}

/// A page looks at so many and no more: whoever goes on finds all that match, each once, in order.
async fn short_pages_hold_everything_once(world: World) {
    for sql in xtask::crowd::statements(1, CROWD) {
        world.sql(&sql).await;
    }
    let face = Face::of(&world);
    let failed = |i: &u64| i % 1000 == 7;
    let prod = |i: &u64| i % 1000 == 7 && i.is_multiple_of(3);
    let eight = |i: &u64| i % 1000 == 8;
    type Wanted<'a> = &'a dyn Fn(&u64) -> bool;
    let cases: [(&str, &str, Wanted<'_>); 3] = [
        ("/v1/instances", "order=name&phase=failed", &failed),
        ("/v1/instances", "tag.env=prod&phase=failed", &prod),
        ("/v1/tenants/default/instances", "order=name&metadata.team=8", &eight),
    ];
    for (path, query, wanted) in cases {
        let wanted: Vec<String> = (1..=CROWD).filter(wanted).map(|i| format!("crowd-{i:010}")).collect();
        let (mut found, mut next, mut short) = (Vec::new(), String::new(), 0);
        loop {
            let page = face.get(&format!("{path}?{query}&limit=7{next}")).await.is(200);
            let items = page.json["items"].as_array().unwrap();
            found.extend(items.iter().map(|item| item["name"].as_str().unwrap().to_owned()));
            let Some(cursor) = page.json["next"].as_str() else { break };
            short += usize::from(items.len() < 7);
            next = format!("&page={cursor}");
        }
        assert_eq!(found, wanted, "{path}?{query}");
        assert!(short > 0, "{path}?{query}: no page was short, so no window was tried");
    }
}

/// Each list of the document: its path, its filters as they may be asked for, and whether it can be ordered.
fn lists() -> Vec<(String, Vec<String>, bool)> {
    let text = std::fs::read_to_string(xtask::repository().join("openapi/openapi.json")).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    let mut all = Vec::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        let parameters = operations["get"]["parameters"].as_array().cloned().unwrap_or_default();
        let names: Vec<&str> = parameters
            .iter()
            .filter(|parameter| parameter["in"] == "query")
            .filter_map(|parameter| parameter["name"].as_str())
            .collect();
        if !names.contains(&"limit") {
            continue;
        }
        let filters = names.iter().filter(|name| !["limit", "page", "order"].contains(name));
        let filters = filters.map(|name| sample(path, name)).collect();
        // Every kind's history is read by the same statement: one kind's is enough.
        if path.ends_with("/revisions") && !path.contains("/instances/") {
            continue;
        }
        let one = if path.contains("/webhooks/") { HOOK } else { "inst_00000000000000000000000010" };
        let at = path.replace("{tenant}", "default").replace("{id}", one);
        all.push((at, filters, names.contains(&"order")));
    }
    assert!(all.len() > 15, "{all:?}");
    all
}

fn sample(path: &str, filter: &str) -> String {
    match filter {
        "tag" => "tag.env=prod",
        "metadata" => "metadata.team=7",
        "name" => "name=crowd-0000000010",
        "name_prefix" => "name_prefix=crowd-00",
        "phase" => "phase=failed",
        "state" => "state=failed",
        "dead" => "dead=true",
        "actor" => "actor=actor7",
        "resource" => "resource=inst_00000000000000000000000010",
        "kind" => "kind=instance",
        "verb" => "verb=create",
        "outcome" => "outcome=denied",
        "since" => "since=1970-01-01T00:01:00Z",
        "until" => "until=1970-01-01T01:00:00Z",
        other => panic!("{path} can be filtered by {other}: say here by what, so that its plans are read"),
    }
    .to_owned()
}

/// No filter, each, each two, and all at once.
fn queries(filters: &[String]) -> Vec<String> {
    let mut all = BTreeSet::from([String::new()]);
    for one in filters {
        all.insert(format!("&{one}"));
        all.extend(filters.iter().filter(|other| *other > one).map(|other| format!("&{one}&{other}")));
    }
    all.insert(filters.iter().map(|filter| format!("&{filter}")).collect());
    all.into_iter().collect()
}

/// What is wrong with a plan, if anything is: PostgreSQL's as JSON, SQLite's as its lines.
fn faults(sql: &str, plan: &Value) -> Option<String> {
    match plan {
        Value::Array(lines) => {
            let lines: Vec<&str> = lines.iter().filter_map(Value::as_str).collect();
            (0..lines.len()).find_map(|nth| lite(sql, lines[nth], &lines[..nth]))
        }
        node => postgres(node),
    }
}

/// Parts of a union and windows are bounded by limits of their own: they may be read whole and sorted.
fn lite(sql: &str, line: &str, before: &[&str]) -> Option<String> {
    let bounded =
        |line: &str| ["SCAN part", "SCAN d", "SCAN CONSTANT"].iter().any(|page| line.starts_with(page));
    let mut level =
        before.iter().rev().take_while(|line| !line.starts_with("CO-ROUTINE") && **line != "RIGHT");
    // All of an index in its order, up to a limit, is what a list without a filter is.
    let walk = !sql.contains("WHERE") && line.contains("USING INDEX");
    let scan = line.starts_with("SCAN ") && !bounded(line) && !walk;
    let sort = line.starts_with("USE TEMP B-TREE") && !level.any(|line| bounded(line));
    (scan || sort).then(|| line.to_owned())
}

fn postgres(node: &Value) -> Option<String> {
    let word = node["Node Type"].as_str().unwrap_or_default();
    let small = ["meta", "log_head", "server"].contains(&node["Relation Name"].as_str().unwrap_or_default());
    let children = node["Plans"].as_array().cloned().unwrap_or_default();
    if word == "Seq Scan" && !small {
        return Some(format!("Seq Scan on {}", node["Relation Name"]));
    }
    // The wall between tenants lets everything pass for those who walk along all of an index.
    let filter =
        node["Filter"].as_str().filter(|filter| filter.contains(" AND ") || !filter.contains("strpos("));
    if word.starts_with("Index") && node["Index Cond"].is_null() && filter.is_some() {
        return Some(format!("all of the index {}", node["Index Name"]));
    }
    if word.ends_with("Sort") && !children.iter().all(pages) {
        return Some(format!("{word} by {}", node["Sort Key"]));
    }
    children.iter().find_map(postgres)
}

/// True if all that comes up from here is bounded by limits.
fn pages(node: &Value) -> bool {
    let children = node["Plans"].as_array().cloned().unwrap_or_default();
    match node["Node Type"].as_str().unwrap_or_default() {
        "Limit" => true,
        "Append" | "Merge Append" | "Subquery Scan" => children.iter().all(pages),
        // At most one for each of those.
        "Nested Loop" if node["Inner Unique"] == true || node["Join Type"] == "Semi" => pages(&children[0]),
        _ => false,
    }
}
