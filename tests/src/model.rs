//! Databases with the tables of today and nothing else, copied from one that our own migrations have made: most tests
//! ask for one, and to make its tables is most of what a small test would do.

use std::path::Path;

use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;

use crate::postgres::Database;
use crate::tables::postgres;

static SQLITE: OnceCell<Vec<u8>> = OnceCell::const_new();
static POSTGRES: OnceCell<Database> = OnceCell::const_new();

/// A new one of SQLite, in this file.
pub async fn in_file(path: &Path) {
    let model = SQLITE.get_or_init(|| async {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model.db");
        let options = SqliteConnectOptions::new().filename(&model).create_if_missing(true);
        let mut conn = SqliteConnection::connect_with(&options).await.unwrap();
        rhyzome_sql::migrate_sqlite(&mut conn).await.unwrap();
        conn.close().await.unwrap();
        std::fs::read(model).unwrap()
    });
    std::fs::write(path, model.await).unwrap();
}

/// A new one of PostgreSQL.
pub async fn in_cluster() -> Database {
    let model = POSTGRES.get_or_init(|| async {
        let model = spawn_blocking(Database::new).await.unwrap();
        let mut conn = postgres(&model.url()).await;
        rhyzome_sql::migrate_postgres(&mut conn).await.unwrap();
        conn.close().await.unwrap();
        model
    });
    let model = model.await;
    spawn_blocking(|| model.copy()).await.unwrap()
}
