//! The database schema of the control plane, for SQLite and PostgreSQL: numbered migrations, one text for
//! both, and how a database gets from any earlier version to this one.

mod link;
mod shape;

use sqlx::{AssertSqlSafe, Connection, PgConnection, Row, SqliteConnection};

pub use link::{Cell, Link};
pub use shape::{Column, ColumnKind, Shape, Table};

/// One step of the schema. Once released it is never edited.
#[derive(Debug)]
pub struct Migration {
    /// Rises.
    pub version: i64,
    /// What it is about.
    pub name: &'static str,
    sql: &'static str,
}

/// All steps, first to last.
pub const MIGRATIONS: &[Migration] = &[
    Migration { version: 1, name: "base", sql: include_str!("../migrations/0001_base.sql") },
    Migration { version: 2, name: "requests", sql: include_str!("../migrations/0002_requests.sql") },
    Migration { version: 3, name: "log", sql: include_str!("../migrations/0003_log.sql") },
    Migration {
        version: 4,
        name: "secrets and webhooks",
        sql: include_str!("../migrations/0004_secrets_and_webhooks.sql"),
    },
    Migration { version: 5, name: "open jobs", sql: include_str!("../migrations/0005_open_jobs.sql") },
    Migration { version: 6, name: "credentials", sql: include_str!("../migrations/0006_credentials.sql") },
    Migration { version: 7, name: "leases", sql: include_str!("../migrations/0007_leases.sql") },
    Migration { version: 8, name: "drift", sql: include_str!("../migrations/0008_drift.sql") },
    Migration { version: 9, name: "peers", sql: include_str!("../migrations/0009_peers.sql") },
    Migration { version: 10, name: "ranges", sql: include_str!("../migrations/0010_ranges.sql") },
    Migration { version: 11, name: "rights", sql: include_str!("../migrations/0011_rights.sql") },
    Migration { version: 12, name: "sessions", sql: include_str!("../migrations/0012_sessions.sql") },
    Migration {
        version: 13,
        name: "second factors",
        sql: include_str!("../migrations/0013_second_factors.sql"),
    },
    Migration { version: 14, name: "walls", sql: include_str!("../migrations/0014_walls.sql") },
    Migration {
        version: 15,
        name: "browser sessions",
        sql: include_str!("../migrations/0015_browser_sessions.sql"),
    },
    Migration { version: 16, name: "behind", sql: include_str!("../migrations/0016_behind.sql") },
];

/// Which database speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Inside the process.
    Sqlite,
    /// A server of its own.
    Postgres,
}

/// Why the schema cannot be brought to this program's version.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A newer program has been here.
    #[error(
        "the database has schema version {found}, this program knows up to {known}: start the newer program"
    )]
    Newer {
        /// In the database.
        found: i64,
        /// In this program.
        known: i64,
    },
    /// The database refused a step.
    #[error("schema version {version} ({name}) cannot be applied")]
    Step {
        /// Of the step.
        version: i64,
        /// Of the step.
        name: &'static str,
        /// What the database says.
        #[source]
        source: sqlx::Error,
    },
    /// The database cannot be read.
    #[error("the schema version cannot be read")]
    Read(#[source] sqlx::Error),
    /// The database refused something else.
    #[error("{what}")]
    Failed {
        /// What was to be done.
        what: String,
        /// What the database says.
        source: sqlx::Error,
    },
    /// There is something that this program would not have made.
    #[error("{0}")]
    Strange(String),
}

/// From which version a schema came to which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migrated {
    /// What was found; 0: nothing.
    pub from: i64,
    /// What is there now.
    pub to: i64,
}

/// The version that this program speaks.
pub fn version() -> i64 {
    MIGRATIONS.last().map_or(0, |last| last.version)
}

impl Migration {
    /// Its text in one dialect.
    pub fn text(&self, dialect: Dialect) -> String {
        let (text, bytes, serial) = match dialect {
            Dialect::Sqlite => ("TEXT", "BLOB", "INTEGER PRIMARY KEY AUTOINCREMENT"),
            Dialect::Postgres => {
                ("TEXT COLLATE \"C\"", "BYTEA", "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY")
            }
        };
        let sql = if dialect == Dialect::Postgres { self.sql.to_owned() } else { without_postgres(self.sql) };
        sql.replace("{TEXT}", text).replace("{BYTES}", bytes).replace("{SERIAL}", serial)
    }
}

/// A text without what is PostgreSQL's alone: from a line `--{POSTGRES` to a line `--}`.
fn without_postgres(sql: &str) -> String {
    let mut alone = false;
    let mut kept = String::with_capacity(sql.len());
    for line in sql.lines() {
        alone = (alone || line == "--{POSTGRES") && line != "--}";
        if !alone {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

/// The role that a server takes which came as one whom no policy holds back: it owns nothing.
pub const WALLED: &str = "rhyzome_walled";
/// Whose rows whoever asks may come upon; `*`: everybody's, for what is done to the database as a whole.
pub const WALL: &str = "rhyzome.wall";

/// Sees to it that policies count for this connection's kind: whoever passes them by nature has to take the role that
/// this names. `None`: they count as it is.
pub async fn role_behind_walls(conn: &mut PgConnection) -> Result<Option<&'static str>, Error> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |source| Error::Failed { what, source }
    };
    let sql = "SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user";
    let passes: bool = sqlx::query_scalar(sql).fetch_one(&mut *conn).await.map_err(Error::Read)?;
    if !passes {
        return Ok(None);
    }
    let mut tx = conn.begin().await.map_err(Error::Read)?;
    let what = "the database's user passes row-level security, and the role `rhyzome_walled`, which does not, \
                cannot be made: give `db` a user that is neither superuser nor BYPASSRLS, or make the role";
    for sql in [ONE_AT_A_TIME, &make_role(), &grant_role()] {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut *tx).await.map_err(failed(what))?;
    }
    tx.commit().await.map_err(failed(what))?;
    Ok(Some(WALLED))
}

/// Roles are the whole cluster's: another database's server may be making it at this moment.
fn make_role() -> String {
    format!(
        "DO $$ BEGIN IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = '{WALLED}') THEN \
         CREATE ROLE {WALLED} NOLOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE; END IF; \
         EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
    )
}

/// All that rows need, on every table that does not have it yet; nothing that changes a table.
fn grant_role() -> String {
    format!(
        "DO $$ DECLARE t record; BEGIN FOR t IN SELECT oid::regclass AS name FROM pg_class \
         WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r' AND NOT has_table_privilege('{WALLED}', oid, 'DELETE') \
         LOOP EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %s TO {WALLED}', t.name); END LOOP; \
         EXECUTE format('GRANT USAGE ON SCHEMA %I TO {WALLED}', current_schema()); END $$"
    )
}

/// Held by whoever changes the schema of a PostgreSQL database, until the end of the transaction.
const ONE_AT_A_TIME: &str = "SELECT pg_advisory_xact_lock(7243914)";
const VERSION_TABLE: &str =
    "CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL PRIMARY KEY, name TEXT NOT NULL)";
const VERSION_READ: &str = "SELECT coalesce(max(version), 0) FROM schema_version";
const VERSION_WRITE: &str = "INSERT INTO schema_version (version, name) VALUES ($1, $2)";

/// Applies what is missing, within a transaction.
macro_rules! apply {
    ($tx:expr, $dialect:expr, $upto:expr) => {{
        sqlx::query(VERSION_TABLE).execute(&mut *$tx).await.map_err(Error::Read)?;
        let found: i64 = sqlx::query(VERSION_READ)
            .fetch_one(&mut *$tx)
            .await
            .and_then(|row| row.try_get(0))
            .map_err(Error::Read)?;
        if found > version() {
            return Err(Error::Newer { found, known: version() });
        }
        for step in MIGRATIONS.iter().filter(|step| step.version > found && step.version <= $upto) {
            let failed = |source| Error::Step { version: step.version, name: step.name, source };
            sqlx::raw_sql(AssertSqlSafe(step.text($dialect))).execute(&mut *$tx).await.map_err(failed)?;
            sqlx::query(VERSION_WRITE)
                .bind(step.version)
                .bind(step.name)
                .execute(&mut *$tx)
                .await
                .map_err(failed)?;
        }
        Migrated { from: found, to: found.max($upto) }
    }};
}

/// Brings a SQLite database to this program's version, all or nothing; again is nothing.
pub async fn migrate_sqlite(conn: &mut SqliteConnection) -> Result<Migrated, Error> {
    let mut tx = conn.begin().await.map_err(Error::Read)?;
    let migrated = apply_sqlite(&mut tx, version()).await?;
    tx.commit().await.map_err(Error::Read)?;
    Ok(migrated)
}

/// Brings a PostgreSQL database to this program's version; several servers may start at once.
pub async fn migrate_postgres(conn: &mut PgConnection) -> Result<Migrated, Error> {
    let mut tx = conn.begin().await.map_err(Error::Read)?;
    sqlx::query(ONE_AT_A_TIME).execute(&mut *tx).await.map_err(Error::Read)?;
    let migrated = apply_postgres(&mut tx, version()).await?;
    tx.commit().await.map_err(Error::Read)?;
    Ok(migrated)
}

async fn apply_sqlite(conn: &mut SqliteConnection, upto: i64) -> Result<Migrated, Error> {
    Ok(apply!(conn, Dialect::Sqlite, upto))
}

async fn apply_postgres(conn: &mut PgConnection, upto: i64) -> Result<Migrated, Error> {
    Ok(apply!(conn, Dialect::Postgres, upto))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_rise() {
        assert_eq!(MIGRATIONS[0].version, 1);
        for pair in MIGRATIONS.windows(2) {
            // Whoever has the later one of two would never get one between them.
            assert_eq!(pair[0].version + 1, pair[1].version, "{}", pair[1].name);
        }
    }

    #[tokio::test]
    async fn from_nothing_and_again_and_never_back() {
        let mut conn = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        migrate_sqlite(&mut conn).await.unwrap();
        migrate_sqlite(&mut conn).await.unwrap();
        sqlx::query(VERSION_WRITE).bind(version() + 1).bind("future").execute(&mut conn).await.unwrap();
        let error = migrate_sqlite(&mut conn).await.unwrap_err();
        assert!(error.to_string().contains("start the newer program"), "{error}");
    }
}
