//! The auditor: reads the tables and the nodes with eyes of its own, and tells what does not fit. It shares no
//! code with the control plane: what is right is said here once more, in SQL.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use rhyzome_agent::reconcile::World as Held;
use rhyzome_proto::v1::Order;
use serde_json::Value;

use crate::tables::Tables;
use crate::world::World;

/// What a node was told, and what it holds.
#[derive(Clone)]
pub struct Side {
    /// Its id.
    pub node: String,
    /// Its ledger.
    pub orders: BTreeMap<String, Order>,
    /// What is there.
    pub world: Held,
}

impl Side {
    /// Ids of all that is there, but of images: those are there by their digest.
    pub fn holds(&self) -> BTreeSet<String> {
        let world = &self.world;
        let plain = world.plain.values().flat_map(BTreeMap::keys);
        let made = world
            .instances
            .keys()
            .chain(world.disks.keys())
            .chain(world.snapshots.keys())
            .chain(&world.networks);
        made.chain(plain).cloned().collect()
    }
}

impl From<&Side> for Side {
    fn from(side: &Side) -> Side {
        side.clone()
    }
}

/// What can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wrong {
    /// It is there, and nobody ordered it.
    Orphan,
    /// The rows say that it is there, and it is not.
    Ghost,
    /// It is held for something that is gone.
    Leak,
    /// What exists once exists twice.
    Duplicate,
    /// It should have ended.
    Stuck,
}

/// One thing that does not fit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// What is wrong.
    pub wrong: Wrong,
    /// With what.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.wrong, self.what)
    }
}

/// Queries whose every row is wrong; the columns say what.
const NEVER: [(Wrong, &str); 18] = [
    (Wrong::Stuck, "SELECT 'job', id, verb, state FROM job WHERE finished_at IS NULL"),
    (
        Wrong::Stuck,
        "SELECT 'deleted and not gone', id FROM resource WHERE deleted_at IS NOT NULL AND gone_at IS NULL",
    ),
    (Wrong::Stuck, "SELECT 'removal ordered and not done', node, object FROM assignment WHERE remove = 1"),
    (
        Wrong::Stuck,
        "SELECT 'creating', r.id FROM resource r WHERE r.phase IN ('creating', 'updating', 'deleting') \
        AND r.gone_at IS NULL AND NOT EXISTS (SELECT 1 FROM job j WHERE j.resource = r.id AND j.finished_at IS NULL)",
    ),
    (
        Wrong::Leak,
        "SELECT 'lease', l.scope, l.value FROM lease l LEFT JOIN live v ON v.id = l.holder WHERE v.id IS NULL",
    ),
    (
        Wrong::Leak,
        "SELECT 'range', l.scope, l.first FROM range_lease l LEFT JOIN live v ON v.id = l.holder WHERE v.id IS NULL",
    ),
    (
        Wrong::Leak,
        "SELECT 'room', p.holder FROM placement p LEFT JOIN live v ON v.id = p.holder WHERE v.id IS NULL",
    ),
    (
        Wrong::Leak,
        "SELECT 'quota', u.holder, u.quantity FROM quota_use u LEFT JOIN live v ON v.id = u.holder WHERE v.id IS NULL",
    ),
    (
        Wrong::Leak,
        "SELECT 'label', l.resource, l.key FROM label l LEFT JOIN live v ON v.id = l.resource WHERE v.id IS NULL",
    ),
    (
        Wrong::Leak,
        "SELECT 'reference', f.source, f.field FROM reference f LEFT JOIN live v ON v.id = f.source WHERE v.id IS NULL",
    ),
    (
        Wrong::Leak,
        "SELECT 'order', a.node, a.object FROM assignment a LEFT JOIN live v ON v.id = a.object WHERE v.id IS NULL",
    ),
    (
        Wrong::Leak,
        "SELECT 'need', n.node, n.object FROM assignment_need n LEFT JOIN assignment a \
        ON a.node = n.node AND a.object = n.object WHERE a.object IS NULL",
    ),
    (
        Wrong::Ghost,
        "SELECT 'needed', n.node, n.object, n.need FROM assignment_need n LEFT JOIN assignment a \
        ON a.node = n.node AND a.object = n.need AND a.remove = 0 WHERE a.object IS NULL",
    ),
    (
        Wrong::Leak,
        "SELECT 'name', v.name FROM live v JOIN resource r ON r.id = v.id WHERE r.deleted_at IS NOT NULL",
    ),
    (
        Wrong::Leak,
        "SELECT 'sum of a node', s.node FROM node_state s LEFT JOIN (SELECT node, sum(vcpus) AS v, \
        sum(memory_bytes) AS m, sum(disk_bytes) AS d FROM placement GROUP BY node) p ON p.node = s.node \
        WHERE s.vcpus_used <> coalesce(p.v, 0) OR s.memory_used <> coalesce(p.m, 0) OR s.disk_used <> coalesce(p.d, 0)",
    ),
    (
        Wrong::Leak,
        "SELECT 'sum of a tenant', q.tenant, q.quantity, q.used FROM quota q LEFT JOIN (SELECT tenant, quantity, \
        sum(amount) AS n FROM quota_use GROUP BY tenant, quantity) u ON u.tenant = q.tenant AND u.quantity = q.quantity \
        WHERE q.used <> coalesce(u.n, 0)",
    ),
    (
        Wrong::Duplicate,
        "SELECT 'jobs at work on one object', resource FROM job WHERE finished_at IS NULL AND state <> 'waiting' \
        GROUP BY resource HAVING count(*) > 1",
    ),
    (
        Wrong::Duplicate,
        "SELECT 'one object on two nodes', a.object FROM assignment a JOIN resource r ON r.id = a.object \
        WHERE r.kind = 'instance' AND a.remove = 0 GROUP BY a.object HAVING count(*) > 1",
    ),
];

/// Looks at everything, when all is quiet.
pub async fn audit<'a, N>(world: &World, nodes: &'a [N]) -> Vec<Finding>
where
    Side: From<&'a N>,
{
    let nodes: Vec<Side> = nodes.iter().map(Side::from).collect();
    let mut found = BTreeSet::new();
    rows(world.tables(), &mut found).await;
    sides(world, &nodes, &mut found).await;
    guests(&nodes, &mut found);
    found.into_iter().collect()
}

/// What does not fit in the rows alone.
pub async fn rows(tables: &Tables, found: &mut BTreeSet<Finding>) {
    for (wrong, sql) in NEVER {
        for row in tables.ask(sql).await {
            found.insert(Finding { wrong, what: row.join(" ") });
        }
    }
    leases(tables, found).await;
}

/// What each node was ordered to hold, its ledger, and what is there.
async fn sides(world: &World, nodes: &[Side], found: &mut BTreeSet<Finding>) {
    let sql = "SELECT a.node, a.object, r.kind, r.status, r.spec, coalesce(j.state, 'done') FROM assignment a \
               JOIN resource r ON r.id = a.object LEFT JOIN job j ON j.id = r.job WHERE a.remove = 0";
    let rows = world.ask(sql).await;
    for node in nodes {
        let mine: Vec<_> = rows.iter().filter(|row| row[0] == node.node).collect();
        let ordered: BTreeSet<&str> = mine.iter().map(|row| row[1].as_str()).collect();
        let holds = node.holds();
        let mut say =
            |wrong, what: String| found.insert(Finding { wrong, what: format!("{what} on {}", node.node) });
        for id in &holds {
            if !ordered.contains(id.as_str()) {
                say(Wrong::Orphan, format!("{id} is"));
            }
        }
        for id in node.orders.keys() {
            if !ordered.contains(id.as_str()) {
                say(Wrong::Orphan, format!("an order for {id} is in the ledger"));
            }
        }
        let mut digests = BTreeSet::new();
        for row in &mine {
            let (id, kind) = (&row[1], row[2].as_str());
            let json = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_default();
            let (status, spec) = (json(&row[3]), json(&row[4]));
            if !node.orders.contains_key(id) {
                say(Wrong::Ghost, format!("{id} was never heard of"));
            }
            let there = match kind {
                "image" => {
                    let digest = status["sha256"].as_str().unwrap_or_default().to_owned();
                    let there = node.world.images.contains_key(&digest);
                    digests.insert(digest);
                    there
                }
                // One that never ran and is off has nothing on its node.
                "instance" if spec["power"] == "off" || row[5] != "done" => true,
                _ => holds.contains(id),
            };
            if !there {
                say(Wrong::Ghost, format!("{id} is not"));
            }
            let runs = node.world.instances.get(id).is_some_and(|instance| instance.process.is_some());
            // What failed or was cancelled is wanted, and was not brought about.
            if kind == "instance" && row[5] == "done" && runs == (spec["power"] == "off") {
                say(Wrong::Ghost, format!("{id} runs: {runs}, wanted: {}", spec["power"]));
            }
        }
        for digest in node.world.images.keys().filter(|digest| !digests.contains(*digest)) {
            say(Wrong::Orphan, format!("image {digest} is"));
        }
    }
}

/// Each lease is told by the claims of its holder, and each claim has its lease.
async fn leases(tables: &Tables, found: &mut BTreeSet<Finding>) {
    // After a change that was not brought about, what it wanted to give back is kept.
    let sql = "SELECT l.holder, l.key, l.value FROM lease l JOIN resource r ON r.id = l.holder \
               LEFT JOIN job j ON j.id = r.job WHERE coalesce(j.state, 'done') = 'done'";
    let rows = tables.ask(sql).await;
    let held: BTreeSet<(&str, &str, &str)> = rows.iter().map(|row| (&*row[0], &*row[1], &*row[2])).collect();
    let sql = "SELECT r.id, r.claims FROM resource r JOIN live v ON v.id = r.id LEFT JOIN job j ON j.id = r.job \
               WHERE coalesce(j.state, 'done') = 'done'";
    let objects = tables.ask(sql).await;
    let ranges = tables.ask("SELECT holder, key FROM range_lease").await;
    let ranges: BTreeSet<(&str, &str)> = ranges.iter().map(|row| (&*row[0], &*row[1])).collect();
    let mut claimed = BTreeSet::new();
    for object in &objects {
        let claims: BTreeMap<String, Value> = serde_json::from_str(&object[1]).unwrap_or_default();
        for (key, value) in claims {
            // A range under its own name.
            if ranges.contains(&(&*object[0], &*key)) {
                continue;
            }
            let Some(value) = value.as_str().filter(|_| key.contains('.')) else { continue };
            claimed.insert((object[0].clone(), key, value.to_owned()));
        }
    }
    for (holder, key) in &ranges {
        let told = objects.iter().filter(|object| object[0] == *holder).all(|object| {
            let claims: BTreeMap<String, Value> = serde_json::from_str(&object[1]).unwrap_or_default();
            claims.contains_key(*key)
        });
        if !told {
            let what = format!("a range is kept for {key} of {holder}, which does not claim it");
            found.insert(Finding { wrong: Wrong::Leak, what });
        }
    }
    for (holder, key, value) in &claimed {
        if !held.contains(&(holder.as_str(), key.as_str(), value.as_str())) {
            let what = format!("{holder} is told to have {key} {value}, and does not");
            found.insert(Finding { wrong: Wrong::Ghost, what });
        }
    }
    for (holder, key, value) in &held {
        if !claimed.contains(&((*holder).to_owned(), (*key).to_owned(), (*value).to_owned())) {
            let what = format!("{value} is kept for {key} of {holder}, which does not claim it");
            found.insert(Finding { wrong: Wrong::Leak, what });
        }
    }
}

/// No guest runs twice, and no two have one address.
fn guests(nodes: &[Side], found: &mut BTreeSet<Finding>) {
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    for node in nodes {
        for (id, instance) in &node.world.instances {
            let (Some(_), Some(boot)) = (&instance.process, &instance.boot) else { continue };
            let addresses = boot.order.nics.iter().map(|nic| format!("{} {}", nic.network_id, nic.address));
            for thing in addresses.chain([format!("guest {id}")]) {
                if let Some(other) = seen.insert(thing.clone(), format!("{id} on {}", node.node)) {
                    let what = format!("{thing}: {other}, and {id} on {}", node.node);
                    found.insert(Finding { wrong: Wrong::Duplicate, what });
                }
            }
        }
    }
}
