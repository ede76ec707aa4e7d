//! A connection of its own to either database, for what is done to the database as a whole: bringing its schema
//! up, emptying it, carrying all of it away and back.

use futures_util::TryStreamExt as _;
use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::sqlite::{SqliteConnectOptions, SqliteRow};
use sqlx::{
    AssertSqlSafe, Connection as _, PgConnection, Row as _, SqliteConnection, TypeInfo as _, ValueRef as _,
};

use crate::shape::VERSIONS;
use crate::{
    ColumnKind, Dialect, Error, Migrated, ONE_AT_A_TIME, Shape, Table, VERSION_READ, WALL, apply_postgres,
    apply_sqlite, version,
};

/// How many values one statement carries at most.
const VALUES_AT_ONCE: usize = 4000;

/// A connection to either database. Dropping it undoes a transaction that was not committed.
#[derive(Debug)]
pub enum Link {
    /// To SQLite.
    Lite(SqliteConnection),
    /// To PostgreSQL.
    Pg(PgConnection),
}

/// One value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    /// Nothing.
    Null,
    /// Text.
    Text(String),
    /// A number.
    Int(i64),
    /// Bytes.
    Bytes(Vec<u8>),
}

macro_rules! on {
    ($link:expr, $conn:ident => $body:expr) => {
        match $link {
            Link::Lite($conn) => $body,
            Link::Pg($conn) => $body,
        }
    };
}

macro_rules! cells {
    ($row:expr) => {{
        let row = $row;
        let mut cells = Vec::with_capacity(row.len());
        for at in 0..row.len() {
            let raw = row.try_get_raw(at)?;
            let (null, declared) = (raw.is_null(), raw.type_info().name().to_owned());
            cells.push(match declared.as_str() {
                _ if null => Cell::Null,
                "INT8" | "INTEGER" | "BIGINT" => Cell::Int(row.try_get(at)?),
                "BYTEA" | "BLOB" => Cell::Bytes(row.try_get(at)?),
                _ => Cell::Text(row.try_get(at)?),
            });
        }
        Ok(cells)
    }};
}

fn of_sqlite(row: &SqliteRow) -> Result<Vec<Cell>, sqlx::Error> {
    cells!(row)
}

fn of_postgres(row: &PgRow) -> Result<Vec<Cell>, sqlx::Error> {
    cells!(row)
}

fn failed(what: &str) -> impl FnOnce(sqlx::Error) -> Error {
    let what = what.to_owned();
    move |source| Error::Failed { what, source }
}

impl Link {
    /// Opens a SQLite database.
    pub async fn sqlite(options: &SqliteConnectOptions) -> Result<Link, Error> {
        let conn = SqliteConnection::connect_with(options).await;
        conn.map(Link::Lite).map_err(failed("the database cannot be opened"))
    }

    /// Opens a PostgreSQL database.
    pub async fn postgres(options: &PgConnectOptions) -> Result<Link, Error> {
        let options = options.clone().options([(WALL, "*")]);
        let conn = PgConnection::connect_with(&options).await;
        conn.map(Link::Pg).map_err(failed("the database cannot be opened"))
    }

    /// What it speaks.
    pub fn dialect(&self) -> Dialect {
        match self {
            Link::Lite(_) => Dialect::Sqlite,
            Link::Pg(_) => Dialect::Postgres,
        }
    }

    // === transactions ===

    /// Begins a transaction that sees one state of everything, and writes nothing.
    pub async fn snapshot(&mut self) -> Result<(), Error> {
        self.raw(match self.dialect() {
            Dialect::Sqlite => "BEGIN",
            Dialect::Postgres => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        })
        .await
    }

    /// Begins a transaction that changes the database as a whole; no schema changes meanwhile.
    pub async fn begin(&mut self) -> Result<(), Error> {
        match self.dialect() {
            Dialect::Sqlite => self.raw("BEGIN IMMEDIATE").await,
            Dialect::Postgres => {
                self.raw("BEGIN").await?;
                self.raw(ONE_AT_A_TIME).await
            }
        }
    }

    /// Ends a transaction; durable when this returns.
    pub async fn commit(&mut self) -> Result<(), Error> {
        self.raw("COMMIT").await
    }

    // === the schema ===

    /// The version of its schema; 0: it has none yet.
    pub async fn version(&mut self) -> Result<i64, Error> {
        let there = match self.dialect() {
            Dialect::Sqlite => "SELECT name FROM sqlite_master WHERE name = $1",
            Dialect::Postgres => "SELECT to_regclass($1)::text WHERE to_regclass($1) IS NOT NULL",
        };
        if self.ask(there, &[Cell::Text(VERSIONS.to_owned())]).await?.is_empty() {
            return Ok(0);
        }
        Ok(self.number(VERSION_READ).await?.unwrap_or(0))
    }

    /// As `version`, and refuses what a newer program has made.
    pub async fn known_version(&mut self) -> Result<i64, Error> {
        match self.version().await? {
            found if found > version() => Err(Error::Newer { found, known: version() }),
            found => Ok(found),
        }
    }

    /// Brings the schema to a version, within a transaction; a higher one stays.
    pub async fn apply(&mut self, upto: i64) -> Result<Migrated, Error> {
        match self {
            Link::Lite(conn) => apply_sqlite(conn, upto).await,
            Link::Pg(conn) => apply_postgres(conn, upto).await,
        }
    }

    /// Brings the schema to this program's version, all or nothing; again is nothing.
    pub async fn migrate(&mut self) -> Result<Migrated, Error> {
        self.migrate_to(version()).await
    }

    /// As `migrate`, to an earlier version.
    pub async fn migrate_to(&mut self, upto: i64) -> Result<Migrated, Error> {
        self.begin().await?;
        let migrated = self.apply(upto).await;
        self.raw(if migrated.is_ok() { "COMMIT" } else { "ROLLBACK" }).await?;
        migrated
    }

    /// Takes all tables of ours away, within a transaction.
    pub async fn drop_all(&mut self) -> Result<(), Error> {
        let shape = self.shape().await?;
        for table in shape.tables.iter().rev() {
            self.raw(&format!("DROP TABLE {}", table.name)).await?;
        }
        self.raw(&format!("DROP TABLE IF EXISTS {VERSIONS}")).await
    }

    /// True while nothing was ever made in it: no object, and no entry of anything that was done.
    pub async fn is_empty(&mut self) -> Result<bool, Error> {
        let shape = self.shape().await?;
        let counts = self.counts(&shape).await?;
        Ok(!counts.iter().any(|(table, _)| ["resource", "event", "event_log"].contains(&table.as_str())))
    }

    /// Takes all rows of these tables away, within a transaction: those that migrations bring.
    pub async fn clear(&mut self, shape: &Shape) -> Result<(), Error> {
        for table in shape.tables.iter().rev() {
            self.raw(&format!("DELETE FROM {}", table.name)).await?;
        }
        Ok(())
    }

    /// Lets the database go on numbering behind the highest number that is there. SQLite does so by itself.
    pub async fn renumber(&mut self, table: &Table) -> Result<(), Error> {
        if self.dialect() == Dialect::Sqlite {
            return Ok(());
        }
        for column in table.columns.iter().filter(|column| column.kind == ColumnKind::Int) {
            let (table, column) = (&table.name, &column.name);
            let sequence = format!("pg_get_serial_sequence('{table}', '{column}')");
            let sql = format!(
                "SELECT setval({sequence}, (SELECT coalesce(max({column}), 0) + 1 FROM {table}), false) \
                 WHERE {sequence} IS NOT NULL"
            );
            self.ask(&sql, &[]).await?;
        }
        Ok(())
    }

    /// Lets nothing of what was taken away stay in the file.
    pub async fn forget(&mut self) -> Result<(), Error> {
        match self.dialect() {
            Dialect::Sqlite => self.raw("VACUUM").await,
            Dialect::Postgres => Ok(()),
        }
    }

    // === what is in it ===

    /// How many rows each table has, of those that have any.
    pub async fn counts(&mut self, shape: &Shape) -> Result<Vec<(String, i64)>, Error> {
        let mut counts = Vec::new();
        for table in &shape.tables {
            let count = self.number(&format!("SELECT count(*) FROM {}", table.name)).await?.unwrap_or(0);
            if count > 0 {
                counts.push((table.name.clone(), count));
            }
        }
        Ok(counts)
    }

    /// When a server last said that it runs, in microseconds since 1970.
    pub async fn last_heartbeat(&mut self) -> Result<Option<i64>, Error> {
        if self.shape().await?.table("server").is_none() {
            return Ok(None);
        }
        self.number("SELECT max(heartbeat_at) FROM server").await
    }

    /// Raises the number by which agents know that a backup was restored, above what it was and to at least this.
    pub async fn raise_epoch(&mut self, least: i64) -> Result<i64, Error> {
        let row = self.ask("SELECT value FROM meta WHERE key = 'db_epoch'", &[]).await?.into_iter().next();
        let was: i64 = match row.as_deref() {
            Some([Cell::Text(text)]) => text
                .parse()
                .map_err(|_| Error::Strange(format!("`db_epoch` is `{text}`, which is not a number")))?,
            _ => 1,
        };
        let now = least.max(was + 1);
        let sql = "INSERT INTO meta (key, value) VALUES ('db_epoch', $1) \
                   ON CONFLICT (key) DO UPDATE SET value = excluded.value RETURNING value";
        self.ask(sql, &[Cell::Text(now.to_string())]).await?;
        Ok(now)
    }

    /// Hands each row of a table to `take`, in the order of its key.
    pub async fn read<E: From<Error>>(
        &mut self,
        table: &Table,
        mut take: impl FnMut(Vec<Cell>) -> Result<(), E>,
    ) -> Result<(), E> {
        let columns: Vec<&str> = table.columns.iter().map(|column| column.name.as_str()).collect();
        let order =
            if table.key.is_empty() { &columns } else { &table.key.iter().map(String::as_str).collect() };
        let sql = format!("SELECT {} FROM {} ORDER BY {}", columns.join(", "), table.name, order.join(", "));
        macro_rules! each {
            ($conn:expr, $of:expr) => {{
                let mut rows = sqlx::query(AssertSqlSafe(sql.clone())).fetch(&mut *$conn);
                while let Some(row) = rows.try_next().await.map_err(failed(&sql))? {
                    take($of(&row).map_err(failed(&sql))?)?;
                }
                Ok(())
            }};
        }
        match self {
            Link::Lite(conn) => each!(conn, of_sqlite),
            Link::Pg(conn) => each!(conn, of_postgres),
        }
    }

    /// Puts rows into a table: a value for each of its columns.
    pub async fn insert(&mut self, table: &Table, rows: &[Vec<Cell>]) -> Result<(), Error> {
        let columns: Vec<&str> = table.columns.iter().map(|column| column.name.as_str()).collect();
        let width = columns.len().max(1);
        for part in rows.chunks((VALUES_AT_ONCE / width).max(1)) {
            let places: Vec<String> = (0..part.len())
                .map(|row| {
                    let own: Vec<String> = (1..=width).map(|at| format!("${}", row * width + at)).collect();
                    format!("({})", own.join(", "))
                })
                .collect();
            // Numbers that the database would give itself are those that were there.
            let own = match self.dialect() {
                Dialect::Sqlite => "",
                Dialect::Postgres => "OVERRIDING SYSTEM VALUE",
            };
            let (name, columns, places) = (&table.name, columns.join(", "), places.join(", "));
            let sql = format!("INSERT INTO {name} ({columns}) {own} VALUES {places}");
            let what = format!("rows cannot be put into {}", table.name);
            on!(self, conn => {
                let mut query = sqlx::query(AssertSqlSafe(sql));
                for row in part {
                    for (column, cell) in table.columns.iter().zip(row) {
                        query = match (column.kind, cell) {
                            (ColumnKind::Text, Cell::Text(text)) => query.bind(text.clone()),
                            (ColumnKind::Int, Cell::Int(number)) => query.bind(*number),
                            (ColumnKind::Bytes, Cell::Bytes(bytes)) => query.bind(bytes.clone()),
                            (ColumnKind::Text, Cell::Null) => query.bind(None::<String>),
                            (ColumnKind::Int, Cell::Null) => query.bind(None::<i64>),
                            (ColumnKind::Bytes, Cell::Null) => query.bind(None::<Vec<u8>>),
                            _ => {
                                let name = format!("{}.{}", table.name, column.name);
                                return Err(Error::Strange(format!("a value for {name} is of another type")));
                            }
                        };
                    }
                }
                query.execute(&mut *conn).await.map(drop).map_err(failed(&what))
            })?;
        }
        Ok(())
    }

    // === SQL ===

    async fn raw(&mut self, sql: &str) -> Result<(), Error> {
        on!(self, conn => {
            let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut *conn).await;
            done.map(drop).map_err(failed(sql))
        })
    }

    async fn number(&mut self, sql: &str) -> Result<Option<i64>, Error> {
        match self.ask(sql, &[]).await?.first().map(Vec::as_slice) {
            Some([Cell::Int(number)]) => Ok(Some(*number)),
            _ => Ok(None),
        }
    }

    /// All rows of a query. Values are texts.
    pub(crate) async fn ask(&mut self, sql: &str, values: &[Cell]) -> Result<Vec<Vec<Cell>>, Error> {
        macro_rules! rows {
            ($conn:expr, $of:expr) => {{
                let mut query = sqlx::query(AssertSqlSafe(sql.to_owned()));
                for value in values {
                    let Cell::Text(text) = value else { continue };
                    query = query.bind(text.clone());
                }
                let rows = query.fetch_all(&mut *$conn).await.map_err(failed(sql))?;
                rows.iter().map($of).collect::<Result<_, _>>().map_err(failed(sql))
            }};
        }
        match self {
            Link::Lite(conn) => rows!(conn, of_sqlite),
            Link::Pg(conn) => rows!(conn, of_postgres),
        }
    }
}
