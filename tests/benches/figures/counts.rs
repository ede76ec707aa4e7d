//! What PostgreSQL was asked to do, by its own count: `pg_stat_statements`, and the length of its log of changes.

use anyhow::Result;
use rhyzome_tests::world::World;
use sqlx::{Connection as _, PgConnection, Row as _};
use xtask::bench::figure::{Figure, number};

/// What was done between two looks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Statements, BEGIN and COMMIT among them.
    pub calls: f64,
    /// Transactions that ended well.
    pub commits: f64,
    /// Rows that were answered or touched.
    pub rows: f64,
    /// Pages of 8 KiB that were looked at, in memory or not.
    pub buffers: f64,
    /// Bytes of its log of changes that statements made.
    pub wal_bytes: f64,
    /// Bytes by which that log grew, commits and whole pages after a checkpoint among them.
    pub log_bytes: f64,
}

impl Counts {
    /// Statements for each of so many requests, and what else they took.
    pub fn figure(&self, name: &str, requests: f64) -> Figure {
        let each = |count: f64| number(count / requests, "");
        let text = format!(
            "{} commits, {} rows, {} buffers, {} bytes of WAL ({} with commits and page images)",
            each(self.commits),
            each(self.rows),
            each(self.buffers),
            each(self.wal_bytes),
            each(self.log_bytes)
        );
        Figure::new(name, self.calls / requests, "").beside(text)
    }
}

/// Counts what is asked of one world's database.
pub struct Counter {
    conn: PgConnection,
    since: String,
}

/// Behind which statement this module's own are not counted.
const OURS: &str = "%pg_stat_statements%";

impl Counter {
    /// Begins to count.
    pub async fn start(world: &World) -> Result<Counter> {
        let conn = PgConnection::connect_with(&world.postgres_options()).await?;
        let mut counter = Counter { conn, since: String::new() };
        counter.again().await?;
        Ok(counter)
    }

    /// Forgets all and begins anew.
    pub async fn again(&mut self) -> Result<()> {
        let sql = "SELECT pg_stat_statements_reset() IS NULL, pg_current_wal_insert_lsn()::text AS at";
        self.since = sqlx::query(sql).fetch_one(&mut self.conn).await?.try_get("at")?;
        Ok(())
    }

    /// What was done since.
    pub async fn read(&mut self) -> Result<Counts> {
        let sql = "SELECT coalesce(sum(calls), 0)::float8 AS calls, coalesce(sum(rows), 0)::float8 AS rows, \
                   coalesce(sum(calls) FILTER (WHERE query ILIKE 'commit'), 0)::float8 AS commits, \
                   coalesce(sum(shared_blks_hit + shared_blks_read), 0)::float8 AS buffers, \
                   coalesce(sum(wal_bytes), 0)::float8 AS wal_bytes, \
                   (pg_current_wal_insert_lsn() - $1::pg_lsn)::float8 AS log_bytes \
                   FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid \
                   WHERE d.datname = current_database() AND query NOT LIKE $2";
        let row = sqlx::query(sql).bind(&self.since).bind(OURS).fetch_one(&mut self.conn).await?;
        Ok(Counts {
            calls: row.try_get("calls")?,
            commits: row.try_get("commits")?,
            rows: row.try_get("rows")?,
            buffers: row.try_get("buffers")?,
            wal_bytes: row.try_get("wal_bytes")?,
            log_bytes: row.try_get("log_bytes")?,
        })
    }
}
