//! Opening either database: embedded by default, PostgreSQL where it must outgrow one machine.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use rhyzome_sql::{Link, WALL};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, PgConnection, SqliteConnection};
use tokio::sync::mpsc;

use super::bells::Bells;
use super::db::{Conn, DbError, outside};
use super::lite::{Lite, PATIENCE};
use super::notify;
use super::pool::{NO_WALL, Pool};
use super::writer::Writer;
use crate::kernel::Error;
use crate::kernel::env::Outside;

/// Where the control plane's state is.
#[derive(Clone, Debug)]
pub enum DbUrl {
    /// A file.
    Sqlite(PathBuf),
    /// A server.
    Postgres(Box<PgConnectOptions>),
}

/// Why a database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its name cannot be read.
    #[error("{0}")]
    Url(String),
    /// It does not answer.
    #[error("the database cannot be opened")]
    Connect(#[source] sqlx::Error),
    /// It cannot be written to.
    #[error("the database cannot be opened")]
    Write(#[source] rusqlite::Error),
    /// Whoever writes to it cannot begin.
    #[error("the database's thread cannot be started")]
    Thread(#[source] std::io::Error),
    /// What it holds cannot be counted.
    #[error("what tenants use cannot be counted: {0}")]
    Count(String),
    /// An earlier program has made its schema, or nobody has.
    #[error(
        "the database has schema version {found}, and this program needs {known}: run `rhyzome-api migrate` first, \
         with no older server at work"
    )]
    Behind {
        /// In the database; 0: none.
        found: i64,
        /// In this program.
        known: i64,
    },
    /// It was never made.
    #[error("there is no database {0} yet: `rhyzome-api migrate` makes it, and so does the first start")]
    Missing(PathBuf),
    /// Its schema cannot be used.
    #[error(transparent)]
    Schema(#[from] rhyzome_sql::Error),
}

#[derive(Clone)]
pub(super) enum Readers {
    Lite(Pool<SqliteConnection>),
    Pg(Pool<PgConnection>),
}

pub(super) struct Opened {
    pub(super) readers: Readers,
    pub(super) writer: Writer,
    pub(super) bells: Bells,
}

// === impl Readers ===

impl Readers {
    pub(super) async fn acquire(&self) -> Result<Conn, Error> {
        self.acquire_behind(NO_WALL.into()).await
    }

    /// One that comes upon nothing but what is within this wall.
    pub(super) async fn acquire_behind(&self, wall: Arc<str>) -> Result<Conn, Error> {
        let conn = match self {
            Readers::Lite(pool) => pool.acquire().await.map(|lent| Conn::lite(lent, pool.outside())),
            Readers::Pg(pool) => {
                let lent = pool.acquire_behind(&wall).await;
                lent.map(|lent| Conn::pg(lent, pool.outside()).behind(wall))
            }
        };
        conn.map_err(|e| DbError::new("acquire", e).into())
    }

    /// The same, for those who may have half of them together.
    pub(super) fn half(&self) -> Readers {
        match self {
            Readers::Lite(pool) => Readers::Lite(pool.half()),
            Readers::Pg(pool) => Readers::Pg(pool.half()),
        }
    }

    /// How many are lent, and how many may be.
    pub(super) fn lent(&self) -> (u32, u32) {
        match self {
            Readers::Lite(pool) => pool.lent(),
            Readers::Pg(pool) => pool.lent(),
        }
    }

    pub(super) async fn close(&self) {
        match self {
            Readers::Lite(pool) => pool.close().await,
            Readers::Pg(pool) => pool.close().await,
        }
    }
}

// === impl DbUrl ===

impl FromStr for DbUrl {
    type Err = OpenError;

    /// A `sqlite:` or `postgres:` URL, or a libpq string (`dbname=rhyzome host=/var/run/postgresql`).
    fn from_str(text: &str) -> Result<DbUrl, OpenError> {
        let text = text.trim();
        if let Some(path) = text.strip_prefix("sqlite:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() {
                return Err(OpenError::Url(
                    "`sqlite:` needs a path: sqlite:/var/lib/rhyzome/rhyzome.db".into(),
                ));
            }
            return Ok(DbUrl::Sqlite(PathBuf::from(path)));
        }
        if text.starts_with("postgres:") || text.starts_with("postgresql:") {
            let options = PgConnectOptions::from_str(text)
                .map_err(|e| OpenError::Url(format!("not a PostgreSQL URL: {e}")))?;
            return Ok(DbUrl::Postgres(Box::new(options)));
        }
        if text.contains('=') {
            return libpq(text);
        }
        Err(OpenError::Url(format!(
            "`{text}` names no database: write sqlite:PATH, postgres://..., or a libpq string such as \
             `dbname=rhyzome host=/var/run/postgresql`"
        )))
    }
}

fn libpq(text: &str) -> Result<DbUrl, OpenError> {
    let mut options = PgConnectOptions::new();
    for pair in text.split_whitespace() {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(OpenError::Url(format!("`{pair}` in the libpq string is not key=value")));
        };
        let value = value.trim_matches('\'');
        options = match key {
            "host" if value.starts_with('/') => options.socket(value),
            "host" => options.host(value),
            "port" => {
                let port =
                    value.parse().map_err(|_| OpenError::Url(format!("port `{value}` is not a number")))?;
                options.port(port)
            }
            "dbname" => options.database(value),
            "user" => options.username(value),
            "password" => options.password(value),
            "application_name" => options.application_name(value),
            "sslmode" => {
                let mode = value.parse().map_err(|e| OpenError::Url(format!("sslmode: {e}")))?;
                options.ssl_mode(mode)
            }
            other => {
                return Err(OpenError::Url(format!(
                    "`{other}` in the libpq string is not known; known are host, port, dbname, user, password, \
                     sslmode, application_name"
                )));
            }
        };
    }
    Ok(DbUrl::Postgres(Box::new(options)))
}

impl DbUrl {
    /// A connection of its own, for what is done to the database as a whole. `make`: a file that is not there is made.
    pub async fn link(&self, make: bool) -> Result<Link, OpenError> {
        match self {
            DbUrl::Sqlite(path) if !make && !path.exists() => Err(OpenError::Missing(path.clone())),
            DbUrl::Sqlite(path) => Ok(Link::sqlite(&sqlite_options(path)).await?),
            DbUrl::Postgres(options) => Ok(Link::postgres(options).await?),
        }
    }

    /// For people; without a password.
    pub fn shown(&self) -> String {
        match self {
            DbUrl::Sqlite(path) => path.display().to_string(),
            DbUrl::Postgres(options) => {
                let host =
                    options.get_socket().map_or(options.get_host().into(), |path| path.to_string_lossy());
                format!("{} at {host}", options.get_database().unwrap_or(options.get_username()))
            }
        }
    }
}

// === opening ===

pub(super) async fn open(url: &DbUrl, outside: Outside) -> Result<Opened, OpenError> {
    match url {
        DbUrl::Sqlite(path) => sqlite(path, outside).await,
        DbUrl::Postgres(options) => postgres(options, outside).await,
    }
}

/// How many prepared statements a connection keeps: more than there are, so that none is planned twice.
pub(super) const STATEMENTS: usize = 400;

fn sqlite_options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // An acknowledged write is never lost; speed comes from sharing commits.
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .statement_cache_capacity(STATEMENTS)
        .busy_timeout(PATIENCE)
}

/// How many may read at once.
const READERS: u32 = 4;

async fn sqlite(path: &Path, how: Outside) -> Result<Opened, OpenError> {
    let options = sqlite_options(path);
    let mut link = outside(how, options.connect()).await.map_err(OpenError::Connect)?;
    outside(how, rhyzome_sql::migrate_sqlite(&mut link)).await?;
    let writer = Lite::open(path).map_err(OpenError::Write)?;
    // In KiB. Each reader has a cache of its own, and beneath all of them is the kernel's.
    let readers = Pool::new(options.read_only(true).pragma("cache_size", "-512"), READERS, how);
    let bells = Bells::new(None);
    let writer = Writer::sqlite(writer, bells.clone(), how).map_err(OpenError::Thread)?;
    // It was the last one until now, and whoever is the last cleans up.
    outside(how, link.close()).await.map_err(OpenError::Connect)?;
    Ok(Opened { readers: Readers::Lite(readers), writer, bells })
}

/// How many connections to PostgreSQL a server has.
const CONNECTIONS: u32 = 16;

/// How PostgreSQL is to carry out our statements: by their indexes, one row after the other, and the same way for whatever
/// values, as long as the tables are. There is an index for each statement (the test `plans` looks at them under these
/// settings), so whatever else PostgreSQL may think of is for tables as they were when it was thought of: plans made
/// while a table is small, or for the value that a tenth of it has, are kept by each connection for as long as it lives.
const PLANS: [(&str, &str); 8] = [
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("enable_material", "off"),
    // Each of these scans starts processes, or a compiler, that read ahead of what is wanted.
    ("max_parallel_workers_per_gather", "0"),
    ("jit", "off"),
];

async fn postgres(options: &PgConnectOptions, how: Outside) -> Result<Opened, OpenError> {
    let options = options.clone().statement_cache_capacity(STATEMENTS);
    let options = options.options(PLANS).options([(WALL, NO_WALL)]);
    let first = Pool::<PgConnection>::new(options.clone(), 1, how);
    let mut lent = first.acquire().await.map_err(OpenError::Connect)?;
    let conn = lent.work().map_err(OpenError::Connect)?;
    outside(how, rhyzome_sql::migrate_postgres(conn)).await?;
    let role = outside(how, rhyzome_sql::role_behind_walls(conn)).await?;
    lent.rest();
    drop(lent);
    first.close().await;
    let options = options.options(role.map(|role| ("role", role)));
    let pool = Pool::<PgConnection>::new(options.clone(), CONNECTIONS, how);
    let (sender, receiver) = mpsc::unbounded_channel();
    let bells = Bells::new(Some(sender));
    let own = notify::Own::default();
    tokio::spawn(notify::send(pool.clone(), receiver, own.clone()));
    // Whoever listens does nothing else.
    let ear = PgPoolOptions::new().max_connections(1).connect_lazy_with(options);
    tokio::spawn(notify::receive(ear, pool.closed(), bells.clone(), own));
    Ok(Opened { readers: Readers::Pg(pool.clone()), writer: Writer::Pg(pool), bells })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_ways_to_name_a_database() {
        for text in ["sqlite:/a/b.db", "sqlite:///a/b.db"] {
            let DbUrl::Sqlite(path) = text.parse().unwrap() else { panic!("{text}") };
            assert_eq!(path, Path::new("/a/b.db"));
        }
        for text in
            ["postgres://u@localhost:5433/rhyzome", "dbname=rhyzome host=/var/run/postgresql port=5433"]
        {
            let DbUrl::Postgres(options) = text.parse().unwrap() else { panic!("{text}") };
            assert_eq!(options.get_database(), Some("rhyzome"));
            assert_eq!(options.get_port(), 5433);
        }
        for bad in ["", "rhyzome", "dbname=x colour=red", "sqlite:"] {
            assert!(bad.parse::<DbUrl>().is_err(), "{bad}");
        }
    }
}
