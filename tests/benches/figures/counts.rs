//! What PostgreSQL was asked to do, by its own count: `pg_stat_statements`, and what stands in its log of changes
//! (`pg_walinspect`). A prepared BEGIN or COMMIT is counted once for each connection by the former (PostgreSQL 15).

use anyhow::Result;
use rhyzome_tests::world::World;
use sqlx::{Connection as _, PgConnection, Row as _};
use xtask::bench::figure::{Figure, number};

/// What was done between two looks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Statements, without BEGIN and COMMIT.
    pub calls: f64,
    /// Transactions that ended well and have changed something. Those that only rang a bell write a record too, for
    /// which nobody waits: they are not among them.
    pub commits: f64,
    /// Rows that were answered or touched.
    pub rows: f64,
    /// Pages of 8 KiB that were looked at, in memory or not.
    pub buffers: f64,
    /// Bytes of its log of changes, without whole pages.
    pub wal_bytes: f64,
    /// Bytes of whole pages in it: of each that was touched for the first time since a checkpoint.
    pub page_bytes: f64,
}

impl Counts {
    /// Statements for each of so many requests, and what else they took.
    pub fn figure(&self, name: &str, requests: f64) -> Figure {
        let each = |count: f64| number(count / requests, "");
        let text = format!(
            "{} commits, {} rows, {} buffers, {} bytes of WAL and {} of whole pages in it",
            each(self.commits),
            each(self.rows),
            each(self.buffers),
            each(self.wal_bytes),
            each(self.page_bytes)
        );
        Figure::new(name, self.calls / requests, "").beside(text)
    }
}

/// Counts what is asked of one world's database.
pub struct Counter {
    conn: PgConnection,
    since: String,
}

/// How this module's connections call themselves: whoever ends all others leaves them.
pub const COUNTER: &str = "counter";

/// Behind which statement this module's own are not counted.
const OURS: &str = "%pg_stat_statements%";

impl Counter {
    /// Begins to count.
    pub async fn start(world: &World) -> Result<Counter> {
        let conn = PgConnection::connect_with(&world.postgres_options().application_name(COUNTER)).await?;
        world.sql("CREATE EXTENSION IF NOT EXISTS pg_walinspect").await;
        let mut counter = Counter { conn, since: String::new() };
        counter.again().await?;
        Ok(counter)
    }

    /// Forgets all and begins anew.
    pub async fn again(&mut self) -> Result<()> {
        let sql = "SELECT pg_stat_statements_reset() IS NULL, pg_current_wal_flush_lsn()::text AS at";
        self.since = sqlx::query(sql).fetch_one(&mut self.conn).await?.try_get("at")?;
        Ok(())
    }

    /// What was done since.
    pub async fn read(&mut self) -> Result<Counts> {
        let sql = "SELECT coalesce(sum(calls), 0)::float8 AS calls, coalesce(sum(rows), 0)::float8 AS rows, \
                   coalesce(sum(shared_blks_hit + shared_blks_read), 0)::float8 AS buffers \
                   FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid \
                   WHERE d.datname = current_database() AND query NOT LIKE $1";
        let row = sqlx::query(sql).bind(OURS).fetch_one(&mut self.conn).await?;
        let sql = "SELECT coalesce(sum(calls), 0)::float8 AS bells FROM pg_stat_statements s JOIN pg_database d \
                   ON d.oid = s.dbid WHERE d.datname = current_database() AND query LIKE 'SELECT pg_notify(%'";
        let read = Counts {
            calls: row.try_get("calls")?,
            rows: row.try_get("rows")?,
            buffers: row.try_get("buffers")?,
            ..Counts::default()
        };
        let bells: f64 = sqlx::query(sql).fetch_one(&mut self.conn).await?.try_get("bells")?;
        let sql = "SELECT coalesce(sum(count) FILTER (WHERE \"resource_manager/record_type\" = 'Transaction/COMMIT'), 0)\
                   ::float8 AS commits, coalesce(sum(record_size), 0)::float8 AS wal_bytes, \
                   coalesce(sum(fpi_size), 0)::float8 AS page_bytes \
                   FROM pg_get_wal_stats($1::pg_lsn, pg_current_wal_flush_lsn(), true)";
        // It refuses to tell of nothing: whoever only read left none.
        let nothing = "SELECT 0::float8 AS commits, 0::float8 AS wal_bytes, 0::float8 AS page_bytes \
                       WHERE $1::pg_lsn >= pg_current_wal_flush_lsn()";
        let wal = match sqlx::query(nothing).bind(&self.since).fetch_optional(&mut self.conn).await? {
            Some(nothing) => nothing,
            None => match sqlx::query(sql).bind(&self.since).fetch_one(&mut self.conn).await {
                // What was left is less than a record: the head of a page.
                Err(error) if error.to_string().contains("could not find a valid record") => return Ok(read),
                row => row?,
            },
        };
        Ok(Counts {
            commits: wal.try_get::<f64, _>("commits")? - bells,
            wal_bytes: wal.try_get("wal_bytes")?,
            page_bytes: wal.try_get("page_bytes")?,
            ..read
        })
    }
}
