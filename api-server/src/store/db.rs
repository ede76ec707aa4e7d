//! One way to speak SQL to either database: text with `$1` placeholders, values of three types, rows read
//! by column name. Everything that differs between the two is in this file and in `writer.rs`.

use std::sync::Arc;

use rhyzome_sql::WALL;
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, PgConnection, Row as _, SqliteConnection};

use super::lite::{Lite, LiteRow};
use super::pool::{Lent, NO_WALL};
use crate::kernel::env::Outside;
use crate::kernel::{Error, Timestamp};

/// A value for a placeholder.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Text, or null.
    Text(Option<String>),
    /// A number, a time or a truth, or null.
    Int(Option<i64>),
    /// Bytes.
    Bytes(Vec<u8>),
}

/// A connection to either database.
pub struct Conn {
    to: To,
    /// What went wrong first. PostgreSQL refuses whatever follows in the same transaction, and answers its COMMIT by
    /// undoing it without an error: so whatever follows is answered with this, on either database.
    failed: Option<DbError>,
    /// It has answered a statement since it was lent: whatever goes wrong from now on may have had an effect.
    answered: bool,
    /// Whose rows it may come upon, where the database looks at that: said before anything else is.
    wall: Arc<str>,
    outside: Outside,
}

enum To {
    /// SQLite, inside the process, to read.
    Lite(Lent<SqliteConnection>),
    /// The same, to write.
    Own(Lite),
    /// PostgreSQL.
    Pg(Lent<PgConnection>),
}

/// A row of either database.
pub enum Row {
    /// Of SQLite.
    Lite(SqliteRow),
    /// The same, read by whoever writes.
    Own(LiteRow),
    /// Of PostgreSQL.
    Pg(PgRow),
}

/// The database refused; keeps what callers branch on.
#[derive(Clone, Debug)]
pub struct DbError {
    sql: String,
    source: Arc<Source>,
}

/// In the words of whatever speaks to the database.
#[derive(Debug, thiserror::Error)]
pub(super) enum Source {
    #[error(transparent)]
    Sqlx(#[from] sqlx::Error),
    #[error(transparent)]
    Own(#[from] rusqlite::Error),
}

/// Values for placeholders, each turned by `Value::from`.
macro_rules! values {
    ($($value:expr),* $(,)?) => { &[$($crate::store::db::Value::from($value)),*] };
}
pub(crate) use values;

/// The same, as a row that is kept.
macro_rules! row {
    ($($value:expr),* $(,)?) => { vec![$($crate::store::db::Value::from($value)),*] };
}
pub(crate) use row;

// === impl Value ===

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(Some(text.to_owned()))
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::Text(Some(text))
    }
}

impl From<&String> for Value {
    fn from(text: &String) -> Value {
        Value::Text(Some(text.clone()))
    }
}

impl From<Option<String>> for Value {
    fn from(text: Option<String>) -> Value {
        Value::Text(text)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Value {
        Value::Int(Some(number))
    }
}

impl From<bool> for Value {
    fn from(truth: bool) -> Value {
        Value::Int(Some(i64::from(truth)))
    }
}

impl From<Timestamp> for Value {
    fn from(time: Timestamp) -> Value {
        Value::Int(Some(time.0))
    }
}

impl From<Option<Timestamp>> for Value {
    fn from(time: Option<Timestamp>) -> Value {
        Value::Int(time.map(|time| time.0))
    }
}

impl From<Vec<u8>> for Value {
    fn from(bytes: Vec<u8>) -> Value {
        Value::Bytes(bytes)
    }
}

impl From<&serde_json::Value> for Value {
    fn from(json: &serde_json::Value) -> Value {
        Value::Text(Some(json.to_string()))
    }
}

/// A number that the database keeps as a signed one. What does not fit is kept as the greatest.
pub fn int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

// === impl Conn ===

macro_rules! bound {
    ($sql:expr, $values:expr) => {{
        // The text alone: values may be secrets.
        tracing::trace!(target: "rhyzome::sql", statement = $sql);
        let mut query = sqlx::query(AssertSqlSafe($sql.to_owned()));
        for value in $values {
            query = match value {
                Value::Text(text) => query.bind(text.clone()),
                Value::Int(number) => query.bind(*number),
                Value::Bytes(bytes) => query.bind(bytes.clone()),
            };
        }
        query
    }};
}

/// What SQLite says to a statement, in this thread.
fn said<T>(sql: &str, say: impl FnOnce(&str) -> rusqlite::Result<T>) -> Result<T, Source> {
    // The text alone: values may be secrets.
    tracing::trace!(target: "rhyzome::sql", statement = sql);
    Ok(say(sql)?)
}

/// Says whose rows a connection may come upon, unless it was told: before a transaction, never in one.
async fn tell(lent: &mut Lent<PgConnection>, wall: &Arc<str>) -> Result<(), sqlx::Error> {
    if lent.wall() == wall {
        return Ok(());
    }
    let sql = format!("SET {WALL} = '{wall}'");
    tracing::trace!(target: "rhyzome::sql", statement = sql);
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(lent.work()?).await?;
    lent.was_told(wall.clone());
    Ok(())
}

/// Waits for what happens outside of this process: a database's answer.
pub async fn outside<F: Future>(how: Outside, what: F) -> F::Output {
    match how {
        Outside::Await => what.await,
        Outside::InPlace => futures_executor::block_on(what),
        Outside::TimeStandsStill => {
            // While a blocking task is at work, tokio's paused clock does not go on by itself.
            let (over, until) = std::sync::mpsc::channel::<()>();
            tokio::task::spawn_blocking(move || until.recv());
            let done = what.await;
            drop(over);
            done
        }
    }
}

impl Conn {
    fn to(to: To, outside: Outside) -> Conn {
        Conn { to, failed: None, answered: false, wall: NO_WALL.into(), outside }
    }

    /// The same, behind this wall.
    pub(super) fn behind(self, wall: Arc<str>) -> Conn {
        Conn { wall, ..self }
    }

    /// One to SQLite, to read.
    pub(super) fn lite(lent: Lent<SqliteConnection>, outside: Outside) -> Conn {
        Conn::to(To::Lite(lent), outside)
    }

    /// One to SQLite, to write.
    pub(super) fn own(lite: Lite) -> Conn {
        Conn::to(To::Own(lite), Outside::Await)
    }

    /// One to PostgreSQL.
    pub(super) fn pg(lent: Lent<PgConnection>, outside: Outside) -> Conn {
        Conn::to(To::Pg(lent), outside)
    }

    /// Runs a statement; how many rows it touched.
    pub async fn run(&mut self, sql: &str, values: &[Value]) -> Result<u64, DbError> {
        self.as_before()?;
        loop {
            let done = match &mut self.to {
                To::Own(lite) => said(sql, |sql| lite.run(sql, values)),
                To::Lite(lent) => {
                    let done = async { Ok(bound!(sql, values).execute(lent.work()?).await?.rows_affected()) };
                    outside(self.outside, done).await
                }
                To::Pg(lent) => {
                    let done = async {
                        tell(lent, &self.wall).await?;
                        Ok(bound!(sql, values).execute(lent.work()?).await?.rows_affected())
                    };
                    outside(self.outside, done).await
                }
            };
            if let Some(done) = self.heard(sql, done).await {
                return done;
            }
        }
    }

    /// All rows of a query.
    pub async fn rows(&mut self, sql: &str, values: &[Value]) -> Result<Vec<Row>, DbError> {
        self.as_before()?;
        loop {
            let rows: Result<Vec<Row>, Source> = match &mut self.to {
                To::Own(lite) => {
                    let rows = said(sql, |sql| lite.rows(sql, values));
                    rows.map(|rows| rows.into_iter().map(Row::Own).collect())
                }
                To::Lite(lent) => {
                    let rows = async { Ok(bound!(sql, values).fetch_all(lent.work()?).await?) };
                    let rows = outside(self.outside, rows).await;
                    rows.map(|rows| rows.into_iter().map(Row::Lite).collect())
                }
                To::Pg(lent) => {
                    let rows = async {
                        tell(lent, &self.wall).await?;
                        Ok(bound!(sql, values).fetch_all(lent.work()?).await?)
                    };
                    let rows = outside(self.outside, rows).await;
                    rows.map(|rows| rows.into_iter().map(Row::Pg).collect())
                }
            };
            if let Some(rows) = self.heard(sql, rows).await {
                return rows;
            }
        }
    }

    /// The first row of a query, if there is one.
    pub async fn row(&mut self, sql: &str, values: &[Value]) -> Result<Option<Row>, DbError> {
        Ok(self.rows(sql, values).await?.into_iter().next())
    }

    /// Undoes what was done since the beginning, or since what `sql` names; then it is good again.
    pub async fn roll_back(&mut self, sql: &str) -> Result<(), DbError> {
        self.failed = None;
        let done = self.run(sql, &[]).await.map(drop);
        if done.is_err() {
            // Whoever got it next would go on in the middle of this transaction.
            self.spoil();
        }
        done
    }

    /// What went wrong was part of a transaction that is over.
    pub(super) fn forget_failure(&mut self) {
        self.failed = None;
    }

    fn as_before(&self) -> Result<(), DbError> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// The outcome of a statement. `None`: the connection had gone before it did anything, and here is another.
    async fn heard<T>(&mut self, sql: &str, outcome: Result<T, Source>) -> Option<Result<T, DbError>> {
        match &mut self.to {
            To::Lite(lent) => lent.rest(),
            To::Own(_) => {}
            To::Pg(lent) => lent.rest(),
        }
        let source = match outcome {
            Ok(value) => {
                self.answered = true;
                return Some(Ok(value));
            }
            Err(source) => source,
        };
        // Whether it is still good, nobody knows.
        let gone = has_gone(&source);
        if gone {
            self.spoil();
        }
        if let To::Pg(lent) = &mut self.to
            && gone
            && !std::mem::replace(&mut self.answered, true)
        {
            match lent.renew().await {
                Ok(()) => return None,
                Err(source) => return Some(Err(self.fails(sql, source.into()))),
            }
        }
        self.answered = true;
        Some(Err(self.fails(sql, source)))
    }

    fn fails(&mut self, sql: &str, source: Source) -> DbError {
        self.failed.insert(DbError::new(sql, source)).clone()
    }

    fn spoil(&mut self) {
        match &mut self.to {
            To::Lite(lent) => lent.spoil(),
            To::Own(lite) => lite.spoil(),
            To::Pg(lent) => lent.spoil(),
        }
    }

    /// True on PostgreSQL: rows that are read in order to be written must be locked there.
    pub fn is_postgres(&self) -> bool {
        matches!(self.to, To::Pg(_))
    }

    /// The clause that locks the rows of a SELECT; SQLite has one writer and needs none. Keys never change, so whoever
    /// only refers to such a row need not wait.
    pub fn for_update(&self) -> &'static str {
        if self.is_postgres() { " FOR NO KEY UPDATE" } else { "" }
    }
}

// === impl Row ===

macro_rules! column {
    ($row:expr, $name:expr, $own:ident) => {
        match $row {
            Row::Lite(row) => row.try_get($name).map_err(|source| DbError::new($name, source)),
            Row::Own(row) => row.$own($name).map_err(|source| DbError::new($name, source)),
            Row::Pg(row) => row.try_get($name).map_err(|source| DbError::new($name, source)),
        }
    };
}

fn there<T>(name: &str, value: Option<T>) -> Result<T, DbError> {
    value.ok_or_else(|| DbError::new(name, sqlx::Error::Decode("null, where a value must be".into())))
}

impl Row {
    /// A text column.
    pub fn text(&self, name: &str) -> Result<String, DbError> {
        there(name, self.maybe_text(name)?)
    }

    /// A text column that may be null.
    pub fn maybe_text(&self, name: &str) -> Result<Option<String>, DbError> {
        column!(self, name, text)
    }

    /// A number.
    pub fn int(&self, name: &str) -> Result<i64, DbError> {
        there(name, self.maybe_int(name)?)
    }

    /// A number that may be null.
    pub fn maybe_int(&self, name: &str) -> Result<Option<i64>, DbError> {
        column!(self, name, int)
    }

    /// A truth.
    pub fn truth(&self, name: &str) -> Result<bool, DbError> {
        Ok(self.int(name)? != 0)
    }

    /// A time.
    pub fn time(&self, name: &str) -> Result<Timestamp, DbError> {
        Ok(Timestamp(self.int(name)?))
    }

    /// A time that may be null.
    pub fn maybe_time(&self, name: &str) -> Result<Option<Timestamp>, DbError> {
        Ok(self.maybe_int(name)?.map(Timestamp))
    }

    /// Bytes.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>, DbError> {
        there(name, column!(self, name, bytes)?)
    }

    /// A JSON column.
    pub fn json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T, DbError> {
        serde_json::from_str(&self.text(name)?)
            .map_err(|e| DbError::new(name, sqlx::Error::Decode(Box::new(e))))
    }
}

// === impl DbError ===

impl DbError {
    pub(super) fn new(sql: &str, source: impl Into<Source>) -> DbError {
        DbError { sql: sql.to_owned(), source: Arc::new(source.into()) }
    }

    /// The database's own code for what went wrong.
    pub(super) fn code(&self) -> Option<String> {
        match &*self.source {
            Source::Sqlx(error) => error.as_database_error()?.code().map(|code| code.into_owned()),
            Source::Own(error) => error.sqlite_error().map(|error| error.extended_code.to_string()),
        }
    }
}

/// PostgreSQL's codes for "others were in the way": serialization failure, deadlock.
const CONTENDED: [&str; 2] = ["40001", "40P01"];

/// Its codes for what a race between a reference and a deletion, or two insertions, leaves behind.
const RACED: [&str; 2] = ["23503", "23505"];

/// Its codes for "not now": it is shutting down, was broken off, is starting, or has too many connections.
const AWAY: [&str; 4] = ["57P01", "57P02", "57P03", "53300"];
/// Its class for connections that broke.
const BROKEN: &str = "08";

/// True if the connection ends with this error: it is not a word of the database, or its last one.
fn has_gone(error: &Source) -> bool {
    let Source::Sqlx(error) = error else { return false };
    let Some(error) = error.as_database_error() else { return true };
    error.code().is_some_and(|code| AWAY.contains(&&*code) || code.starts_with(BROKEN))
}

/// Marks an error after which the transaction may be tried again.
pub(super) const RETRY_MARK: &str = "[again] ";

fn away(error: &Source) -> Error {
    tracing::warn!(%error, "the database is not there");
    Error::Unavailable("the database is not there now; try again in a moment".to_owned())
}

impl From<DbError> for Error {
    fn from(error: DbError) -> Error {
        let code = error.code();
        let is = |codes: [&str; 2]| code.as_deref().is_some_and(|code| codes.contains(&code));
        match &*error.source {
            Source::Sqlx(
                sqlx::Error::PoolTimedOut
                | sqlx::Error::Io(_)
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed,
            ) => away(&error.source),
            _ if code.as_deref().is_some_and(|code| AWAY.contains(&code) || code.starts_with(BROKEN)) => {
                away(&error.source)
            }
            _ if is(CONTENDED) => Error::Unavailable(format!("{RETRY_MARK}{}: {}", error.sql, error.source)),
            _ if is(RACED) => Error::Internal(format!("{RETRY_MARK}{}: {}", error.sql, error.source)),
            _ => Error::Internal(format!("{}: {}", error.sql, error.source)),
        }
    }
}
