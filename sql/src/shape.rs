//! The schema as a database has it: read from its own catalogue, in the same words on both.

use std::collections::BTreeSet;

use crate::{Cell, Dialect, Error, Link};

/// All tables of ours but the one that counts versions; each comes after those that it refers to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// In that order.
    pub tables: Vec<Table>,
}

/// One table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its name.
    pub name: String,
    /// In their order.
    pub columns: Vec<Column>,
    /// Names of the columns of its primary key, in its order.
    pub key: Vec<String>,
    /// Other tables that its rows refer to.
    pub refers_to: Vec<String>,
    /// Its indexes: how each was made, in the database's own words.
    pub indexes: Vec<(String, String)>,
}

/// One column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub kind: ColumnKind,
    /// True: it may be null.
    pub nullable: bool,
}

/// The three types that we use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnKind {
    /// Text.
    Text,
    /// A number of 64 bits.
    Int,
    /// Bytes.
    Bytes,
}

/// The questions to a catalogue. `$1` is a table's name.
struct Catalogue {
    tables: &'static str,
    columns: &'static str,
    key: &'static str,
    refers_to: &'static str,
    indexes: &'static str,
}

const SQLITE: Catalogue = Catalogue {
    tables: "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' \
             ORDER BY name",
    columns: "SELECT name, type, CASE WHEN \"notnull\" = 1 OR pk > 0 THEN 'NO' ELSE 'YES' END FROM pragma_table_info($1) \
              ORDER BY cid",
    key: "SELECT name FROM pragma_table_info($1) WHERE pk > 0 ORDER BY pk",
    refers_to: "SELECT DISTINCT \"table\" FROM pragma_foreign_key_list($1) ORDER BY 1",
    indexes: "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = $1 AND sql IS NOT NULL \
              ORDER BY name",
};

const POSTGRES: Catalogue = Catalogue {
    tables: "SELECT table_name::text FROM information_schema.tables WHERE table_schema = current_schema() \
             AND table_type = 'BASE TABLE' ORDER BY table_name::text COLLATE \"C\"",
    columns: "SELECT column_name::text, upper(data_type::text), is_nullable::text FROM information_schema.columns \
              WHERE table_schema = current_schema() AND table_name::text = $1 ORDER BY ordinal_position",
    key: "SELECT a.attname::text FROM pg_index i CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY k(number, place) \
          JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number \
          WHERE i.indrelid = to_regclass($1) AND i.indisprimary ORDER BY k.place",
    refers_to: "SELECT r.relname::text FROM pg_constraint c JOIN pg_class r ON r.oid = c.confrelid \
                WHERE c.contype = 'f' AND c.conrelid = to_regclass($1) \
                GROUP BY r.relname ORDER BY r.relname::text COLLATE \"C\"",
    indexes: "SELECT c.relname::text, pg_get_indexdef(i.indexrelid) FROM pg_index i \
              JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = to_regclass($1) AND NOT i.indisprimary \
              ORDER BY c.relname::text COLLATE \"C\"",
};

/// The table that counts versions.
pub(crate) const VERSIONS: &str = "schema_version";

impl Shape {
    /// The table of this name.
    pub fn table(&self, name: &str) -> Option<&Table> {
        self.tables.iter().find(|table| table.name == name)
    }
}

impl Link {
    /// The schema as it is.
    pub async fn shape(&mut self) -> Result<Shape, Error> {
        let catalogue = match self.dialect() {
            Dialect::Sqlite => &SQLITE,
            Dialect::Postgres => &POSTGRES,
        };
        let mut tables = Vec::new();
        for name in self.names(catalogue.tables, &[]).await? {
            if name != VERSIONS && !is_ours(&name) {
                continue;
            }
            let this = [Cell::Text(name.clone())];
            let mut columns = Vec::new();
            for row in self.ask(catalogue.columns, &this).await? {
                columns.push(column(&name, &row)?);
            }
            let mut indexes = Vec::new();
            for row in self.ask(catalogue.indexes, &this).await? {
                let words = word(&row, 1).split_whitespace().collect::<Vec<_>>().join(" ");
                indexes.push((word(&row, 0), words));
            }
            let key = self.names(catalogue.key, &this).await?;
            let mut refers_to = self.names(catalogue.refers_to, &this).await?;
            refers_to.retain(|other| *other != name);
            tables.push(Table { name, columns, key, refers_to, indexes });
        }
        tables.retain(|table| table.name != VERSIONS);
        Ok(Shape { tables: ordered(tables)? })
    }

    async fn names(&mut self, sql: &'static str, values: &[Cell]) -> Result<Vec<String>, Error> {
        Ok(self.ask(sql, values).await?.iter().map(|row| word(row, 0)).collect())
    }
}

/// True for the tables that our migrations speak of: a PostgreSQL database may hold others.
fn is_ours(name: &str) -> bool {
    let texts = crate::MIGRATIONS.iter().flat_map(|step| step.sql.lines());
    let mut made = texts.filter_map(|line| {
        let line = line.trim_start();
        line.strip_prefix("CREATE TABLE ").or_else(|| line.split_once(" RENAME TO ").map(|(_, name)| name))
    });
    let made_here = |rest: &str| {
        let rest = rest.strip_prefix("IF NOT EXISTS ").unwrap_or(rest);
        rest.split([' ', '(', ';']).next() == Some(name)
    };
    made.any(made_here)
}

fn word(row: &[Cell], at: usize) -> String {
    match row.get(at) {
        Some(Cell::Text(text)) => text.clone(),
        _ => String::new(),
    }
}

fn column(table: &str, row: &[Cell]) -> Result<Column, Error> {
    let (name, declared) = (word(row, 0), word(row, 1));
    let kind = match declared.as_str() {
        "TEXT" => ColumnKind::Text,
        "BIGINT" | "INTEGER" => ColumnKind::Int,
        "BLOB" | "BYTEA" => ColumnKind::Bytes,
        other => {
            return Err(Error::Strange(format!(
                "the column {table}.{name} has the type {other}, none of ours"
            )));
        }
    };
    Ok(Column { name, kind, nullable: word(row, 2) == "YES" })
}

/// Each after those that it refers to.
fn ordered(mut rest: Vec<Table>) -> Result<Vec<Table>, Error> {
    let mut done = Vec::new();
    let mut known = BTreeSet::new();
    while !rest.is_empty() {
        let (ready, later): (Vec<_>, Vec<_>) = rest
            .into_iter()
            .partition(|table: &Table| table.refers_to.iter().all(|other| known.contains(other)));
        if ready.is_empty() {
            return Err(Error::Strange("tables refer to one another in a circle".to_owned()));
        }
        known.extend(ready.iter().map(|table| table.name.clone()));
        done.extend(ready);
        rest = later;
    }
    Ok(done)
}
