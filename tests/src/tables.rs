//! What stands in a database, past the store.

use sqlx::{Connection as _, Row as _};
use tokio::sync::Mutex;

/// The columns of a row, whatever they are, as texts.
macro_rules! texts {
    ($row:expr) => {
        (0..$row.columns().len())
            .map(|column| match $row.try_get_unchecked::<Option<String>, _>(column) {
                Ok(text) => text.unwrap_or_default(),
                Err(_) => $row.try_get_unchecked::<i64, _>(column).unwrap().to_string(),
            })
            .collect()
    };
}

/// The tables of a database, read over a connection of their own.
pub struct Tables {
    db: String,
    reader: Mutex<Option<Reader>>,
}

/// A connection past the store.
enum Reader {
    Lite(sqlx::SqliteConnection),
    Pg(sqlx::PgConnection),
}

impl Tables {
    /// Those of the database with this name: `sqlite:PATH`, or words as libpq has them.
    pub fn of(db: &str) -> Tables {
        Tables { db: db.to_owned(), reader: Mutex::default() }
    }

    /// What a query finds. Numbers and nothing become texts too.
    pub async fn ask(&self, sql: &str) -> Vec<Vec<String>> {
        let query = sqlx::AssertSqlSafe(sql.to_owned());
        let mut reader = self.reader.lock().await;
        if reader.is_none() {
            *reader = Some(match self.db.strip_prefix("sqlite:") {
                Some(path) => Reader::Lite(sqlx::SqliteConnection::connect(path).await.unwrap()),
                None => Reader::Pg(postgres(&self.db).await),
            });
        }
        match reader.as_mut().unwrap() {
            Reader::Lite(conn) => {
                let rows = sqlx::raw_sql(query).fetch_all(conn).await.unwrap();
                rows.iter().map(|row| texts!(row)).collect()
            }
            Reader::Pg(conn) => {
                let rows = sqlx::raw_sql(query).fetch_all(conn).await.unwrap();
                rows.iter().map(|row| texts!(row)).collect()
            }
        }
    }

    /// Runs a statement, as somebody would who should not.
    pub async fn run(&self, sql: &str) {
        let sql = sqlx::AssertSqlSafe(sql.to_owned());
        match self.db.strip_prefix("sqlite:") {
            Some(path) => {
                let mut conn = sqlx::SqliteConnection::connect(path).await.unwrap();
                sqlx::raw_sql(sql).execute(&mut conn).await.unwrap();
            }
            None => {
                sqlx::raw_sql(sql).execute(&mut postgres(&self.db).await).await.unwrap();
            }
        }
    }
}

/// A connection to the PostgreSQL that these words name.
pub async fn postgres(db: &str) -> sqlx::PgConnection {
    sqlx::PgConnection::connect_with(&options(db)).await.unwrap()
}

/// How to connect to it.
pub fn options(db: &str) -> sqlx::postgres::PgConnectOptions {
    let mut options = sqlx::postgres::PgConnectOptions::new();
    for pair in db.split_whitespace() {
        options = match pair.split_once('=').unwrap() {
            ("host", host) => options.socket(host),
            ("dbname", name) => options.database(name),
            (_, user) => options.username(user),
        };
    }
    options
}
