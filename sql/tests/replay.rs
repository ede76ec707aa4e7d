//! Migrations on both databases: from nothing, and from each earlier version with rows in it, to the same schema.

// A test that cannot go on says so by a panic, in its helpers too.
#![allow(clippy::unwrap_used)]

#[path = "../../tests/src/postgres.rs"]
#[allow(dead_code, missing_docs)]
mod postgres;
#[allow(dead_code)]
#[path = "../../tests/src/quick.rs"]
#[allow(missing_docs)]
mod quick;

use std::str::FromStr;

use rhyzome_sql::{Cell, ColumnKind, Error, Link, MIGRATIONS, Migrated, Shape, Table, version};
use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;

/// An empty database, and what it lives in.
struct Place {
    link: Link,
    _database: Option<postgres::Database>,
}

async fn sqlite() -> Place {
    let options = SqliteConnectOptions::from_str("sqlite::memory:").unwrap().foreign_keys(true);
    Place { link: Link::sqlite(&options).await.unwrap(), _database: None }
}

async fn postgresql() -> Place {
    let database = postgres::Database::new();
    let words = database.url();
    let word = |key: &str| words.split(' ').find_map(|pair| pair.strip_prefix(key)).unwrap().to_owned();
    let options =
        PgConnectOptions::new().database(&word("dbname=")).socket(word("host=")).username(&word("user="));
    Place { link: Link::postgres(&options).await.unwrap(), _database: Some(database) }
}

/// Two rows that are good for a table as it is, whatever it is: every reference is to the row of the same number.
fn rows(table: &Table) -> Vec<Vec<Cell>> {
    let cell = |kind, row: i64| match kind {
        ColumnKind::Text => Cell::Text(row.to_string()),
        ColumnKind::Int => Cell::Int(row),
        ColumnKind::Bytes => Cell::Bytes(vec![0, row as u8]),
    };
    (1..=2).map(|row| table.columns.iter().map(|column| cell(column.kind, row)).collect()).collect()
}

/// Fills all tables that no migration has put rows into; which.
async fn fill(link: &mut Link) -> Vec<Table> {
    let shape = link.shape().await.unwrap();
    let full = link.counts(&shape).await.unwrap();
    let empty = shape.tables.iter().filter(|table| !full.iter().any(|(name, _)| *name == table.name));
    let empty: Vec<Table> = empty.cloned().collect();
    for table in &empty {
        link.insert(table, &rows(table)).await.unwrap();
        link.renumber(table).await.unwrap();
    }
    empty
}

async fn content(link: &mut Link, table: &Table) -> Vec<Vec<Cell>> {
    let mut all = Vec::new();
    link.read(table, |row| {
        all.push(row);
        Ok::<_, Error>(())
    })
    .await
    .unwrap();
    all
}

/// From nothing at once, and from each version with rows, which are all there afterwards.
async fn replayed(open: impl AsyncFn() -> Place) -> Shape {
    let mut fresh = open().await;
    assert_eq!(fresh.link.version().await.unwrap(), 0);
    assert_eq!(fresh.link.migrate().await.unwrap(), Migrated { from: 0, to: version() });
    assert_eq!(fresh.link.migrate().await.unwrap(), Migrated { from: version(), to: version() });
    let wanted = fresh.link.shape().await.unwrap();
    assert!(wanted.tables.len() > 20 && wanted.table("resource").is_some(), "{wanted:?}");
    for step in MIGRATIONS {
        let mut old = open().await;
        old.link.migrate_to(step.version).await.unwrap();
        let was = fill(&mut old.link).await;
        let migrated = old.link.migrate().await.unwrap();
        assert_eq!(migrated, Migrated { from: step.version, to: version() }, "{}", step.name);
        assert_eq!(old.link.shape().await.unwrap(), wanted, "from version {} ({})", step.version, step.name);
        for table in &was {
            let Some(now) = wanted.table(&table.name) else { continue };
            let after = content(&mut old.link, now).await;
            // A migration may bring rows of its own; those that were there stay.
            for number in ["1", "2"] {
                let key = |row: &Vec<Cell>| row.first() == Some(&Cell::Text(number.into()));
                let key =
                    |row: &Vec<Cell>| key(row) || row.first() == Some(&Cell::Int(number.parse().unwrap()));
                assert!(after.iter().any(key), "{} lost a row from version {}", table.name, step.version);
            }
        }
    }
    wanted
}

#[tokio::test]
async fn from_nothing_and_from_each_version_on_both() {
    let (lite, pg) = (replayed(sqlite).await, replayed(postgresql).await);
    // Of indexes, which each database says in its own words, the names.
    let plain = |shape: &Shape| {
        let tables = shape.tables.iter().map(|table| {
            let indexes = table.indexes.iter().map(|(name, _)| (name.clone(), String::new())).collect();
            Table { indexes, ..table.clone() }
        });
        Shape { tables: tables.collect() }
    };
    assert_eq!(plain(&lite), plain(&pg));
}

/// A table that a migration makes in words of its own would be in no backup.
#[tokio::test]
async fn no_table_of_a_new_database_is_overlooked() {
    let mut place = sqlite().await;
    place.link.migrate().await.unwrap();
    let shape = place.link.shape().await.unwrap();
    let Link::Lite(conn) = &mut place.link else { panic!("SQLite") };
    let sql = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%' \
               AND name <> 'schema_version' ORDER BY name";
    let all: Vec<String> = sqlx::query_scalar(sql).fetch_all(conn).await.unwrap();
    let mut read: Vec<String> = shape.tables.into_iter().map(|table| table.name).collect();
    read.sort();
    assert_eq!(read, all);
}

#[tokio::test]
async fn all_of_ours_can_be_taken_away_and_made_again() {
    for mut place in [sqlite().await, postgresql().await] {
        let link = &mut place.link;
        link.migrate().await.unwrap();
        let shape = link.shape().await.unwrap();
        let brought = link.counts(&shape).await.unwrap();
        assert!(link.is_empty().await.unwrap());
        fill(link).await;
        assert_eq!(link.counts(&shape).await.unwrap().len(), shape.tables.len());
        assert!(!link.is_empty().await.unwrap());
        link.begin().await.unwrap();
        link.drop_all().await.unwrap();
        link.commit().await.unwrap();
        link.forget().await.unwrap();
        assert_eq!((link.version().await.unwrap(), link.shape().await.unwrap()), (0, Shape::default()));
        link.migrate().await.unwrap();
        assert_eq!(link.counts(&shape).await.unwrap(), brought);
        assert_eq!(link.shape().await.unwrap(), shape);
    }
}
