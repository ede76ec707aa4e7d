//! The floor: the rows of one create, written again and again under other names, by sqlx and nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Column as _, PgPool, Row as _, TypeInfo as _};

use super::Ground;
use crate::served::AT_ONCE;

/// As many as a server has.
const CONNECTIONS: u32 = 16;

/// The tables of a create in an order that references allow, and which of their rows belong to it.
const TABLES: [(&str, &str); 14] = [
    ("resource", "id IN ($1, $2)"),
    ("live", "id IN ($1, $2)"),
    ("label", "resource IN ($1, $2)"),
    ("reference", "source IN ($1, $2)"),
    ("lease", "holder IN ($1, $2)"),
    ("placement", "holder IN ($1, $2)"),
    ("quota_use", "holder IN ($1, $2)"),
    ("revision", "resource IN ($1, $2)"),
    ("assignment", "object IN ($1, $2)"),
    ("assignment_need", "object IN ($1, $2)"),
    ("job", "resource IN ($1, $2)"),
    ("job_step", "job IN (SELECT id FROM job WHERE resource IN ($1, $2))"),
    ("job_after", "job IN (SELECT id FROM job WHERE resource IN ($1, $2))"),
    ("event", "resource IN ($1, $2)"),
];

#[derive(Clone)]
enum Cell {
    Text(Option<String>),
    Int(Option<i64>),
    Bytes(Vec<u8>),
}

#[derive(Clone)]
struct Statement {
    sql: Arc<str>,
    cells: Vec<Cell>,
}

/// What a create writes.
pub struct Bare {
    pool: PgPool,
    sample: Vec<Statement>,
    rows: usize,
    /// What stands in the sample for what every create has of its own.
    own: Vec<String>,
    tenant: String,
    tenant_id: String,
    network: String,
    node: String,
    tenants: Vec<[String; 3]>,
    nodes: Vec<String>,
}

impl Bare {
    /// The rows of the last create.
    pub async fn of(ground: &Ground) -> Result<Bare> {
        let options = ground.world.postgres_options();
        let pool = PgPoolOptions::new().max_connections(CONNECTIONS).connect_with(options).await?;
        let last = "SELECT r.id, r.name, r.tenant, r.job, d.target, p.node, c.name AS disk_name FROM resource r \
                    JOIN reference d ON d.source = r.id AND d.relation = 'owns' JOIN placement p ON p.holder = r.id \
                    JOIN resource c ON c.id = d.target WHERE r.kind = 'instance' ORDER BY r.id DESC LIMIT 1";
        let row = sqlx::query(last).fetch_one(&pool).await.context("no instance was made")?;
        let (id, disk): (String, String) = (row.try_get("id")?, row.try_get("target")?);
        let mut own = vec![
            id.clone(),
            disk.clone(),
            row.try_get("job")?,
            row.try_get("disk_name")?,
            row.try_get("name")?,
        ];
        let (mut sample, mut rows) = (Vec::new(), 0);
        for (table, which) in TABLES {
            let read = format!("SELECT * FROM {table} WHERE {which}");
            for row in sqlx::query(AssertSqlSafe(read)).bind(&id).bind(&disk).fetch_all(&pool).await? {
                if table == "lease" {
                    own.push(row.try_get("value")?);
                }
                sample.push(insert(table, &row)?);
                rows += 1;
            }
        }
        let tenant: String = row.try_get("tenant")?;
        let ids = "SELECT id FROM resource WHERE kind = 'tenant' AND name = $1";
        let mut tenants = Vec::new();
        for (name, network) in ground.tenants.iter().zip(&ground.networks) {
            let id = sqlx::query(ids).bind(name).fetch_one(&pool).await?.try_get("id")?;
            tenants.push([name.clone(), id, network.clone()]);
        }
        let [_, tenant_id, network] =
            tenants.iter().find(|known| known[0] == tenant).context("its tenant")?.clone();
        let node: String = row.try_get("node")?;
        let uses = "SELECT quantity, sum(amount)::BIGINT AS amount FROM quota_use WHERE holder IN ($1, $2) \
                    GROUP BY quantity ORDER BY quantity";
        for row in sqlx::query(uses).bind(&id).bind(&disk).fetch_all(&pool).await? {
            let sql = "UPDATE quota SET used = used + $3 WHERE tenant = $1 AND quantity = $2".into();
            let cells = vec![
                Cell::Text(Some(tenant_id.clone())),
                Cell::Text(Some(row.try_get("quantity")?)),
                Cell::Int(Some(row.try_get("amount")?)),
            ];
            sample.push(Statement { sql, cells });
            rows += 1;
        }
        let sql = "UPDATE node_state SET vcpus_used = vcpus_used + 1, memory_used = memory_used + 1, \
                   disk_used = disk_used + 1, sequence = sequence + 2 WHERE node = $1"
            .into();
        sample.push(Statement { sql, cells: vec![Cell::Text(Some(node.clone()))] });
        let nodes = ground.nodes.clone();
        Ok(Bare { pool, sample, rows: rows + 1, own, tenant, tenant_id, network, node, tenants, nodes })
    }

    /// How many rows a create writes.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// In how many statements they are written here, BEGIN and COMMIT among them.
    pub fn statements(&self) -> usize {
        self.sample.len() + 2
    }

    /// Writes so many; how many per second.
    #[allow(clippy::cast_precision_loss, reason = "so many are never written")]
    pub async fn write(&self, round: usize, many: usize) -> Result<f64> {
        // All texts are there before the clock runs.
        let all: Arc<Vec<_>> = Arc::new((0..many).map(|nth| self.another(round, nth)).collect());
        let next = Arc::new(AtomicUsize::new(0));
        let since = Instant::now();
        let clients: Vec<_> = (0..AT_ONCE)
            .map(|_| tokio::spawn(client(self.pool.clone(), all.clone(), next.clone())))
            .collect();
        for client in clients {
            client.await.context("a client came to no end")??;
        }
        Ok(many as f64 / since.elapsed().as_secs_f64())
    }

    /// The sample under other names, for another tenant, on another node.
    fn another(&self, round: usize, nth: usize) -> Vec<Statement> {
        let [tenant, tenant_id, network] = &self.tenants[nth % self.tenants.len()];
        let node = &self.nodes[(nth * 7) % self.nodes.len()];
        let mut names: Vec<(String, String)> = vec![
            (self.tenant.clone(), tenant.clone()),
            (self.tenant_id.clone(), tenant_id.clone()),
            (self.network.clone(), network.clone()),
            (self.node.clone(), node.clone()),
        ];
        for own in &self.own {
            let keep = own.len().saturating_sub(10);
            names.push((own.clone(), format!("{}{round:02}{nth:08}", &own[..keep])));
        }
        let mut all = self.sample.clone();
        for text in all.iter_mut().flat_map(|one| &mut one.cells) {
            if let Cell::Text(Some(text)) = text {
                for (old, new) in &names {
                    if text.contains(old.as_str()) {
                        *text = text.replace(old.as_str(), new);
                    }
                }
            }
        }
        all
    }
}

fn insert(table: &str, row: &sqlx::postgres::PgRow) -> Result<Statement> {
    let (mut names, mut cells) = (Vec::new(), Vec::new());
    for column in row.columns().iter().filter(|column| column.name() != "number") {
        names.push(column.name());
        cells.push(match column.type_info().name() {
            "INT8" => Cell::Int(row.try_get(column.name())?),
            "BYTEA" => Cell::Bytes(row.try_get(column.name())?),
            _ => Cell::Text(row.try_get(column.name())?),
        });
    }
    let places: Vec<String> = (1..=names.len()).map(|place| format!("${place}")).collect();
    let sql = format!("INSERT INTO {table} ({}) VALUES ({})", names.join(", "), places.join(", "));
    Ok(Statement { sql: sql.into(), cells })
}

async fn client(pool: PgPool, all: Arc<Vec<Vec<Statement>>>, next: Arc<AtomicUsize>) -> Result<()> {
    while let Some(statements) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
        let mut transaction = pool.begin().await?;
        for statement in statements {
            let mut query = sqlx::query(AssertSqlSafe(statement.sql.to_string()));
            for cell in &statement.cells {
                query = match cell {
                    Cell::Text(text) => query.bind(text),
                    Cell::Int(number) => query.bind(number),
                    Cell::Bytes(bytes) => query.bind(bytes),
                };
            }
            query.execute(&mut *transaction).await.with_context(|| statement.sql.to_string())?;
        }
        transaction.commit().await?;
    }
    Ok(())
}
