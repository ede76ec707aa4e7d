//! The one connection that writes to SQLite: statements are carried out in the thread that says them.
//!
//! Between a task and a connection that lives in a thread of its own each statement is two wake-ups, which take longer
//! than what most statements do. The writer has a thread to itself anyway, so its statements need none.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::types::{Null, Value as Cell};
use rusqlite::{Connection, OpenFlags, Statement};

use super::db::Value;
use super::open::STATEMENTS;

/// For how long another process may hold the file: `rhyzome-api tenant create` beside a server.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// The file, and a connection to it once one was needed.
pub(super) struct Lite {
    path: PathBuf,
    conn: Option<Connection>,
}

/// A row that was read.
pub struct LiteRow {
    columns: Arc<[String]>,
    cells: Vec<Cell>,
}

impl Lite {
    /// Opens a file that is there.
    pub(super) fn open(path: &Path) -> rusqlite::Result<Lite> {
        let mut lite = Lite { path: path.to_owned(), conn: None };
        lite.conn()?;
        Ok(lite)
    }

    /// Runs a statement; how many rows it touched.
    pub(super) fn run(&mut self, sql: &str, values: &[Value]) -> rusqlite::Result<u64> {
        let conn = self.conn()?;
        let mut statement = conn.prepare_cached(&numbered(sql))?;
        bind(&mut statement, values)?;
        let mut rows = statement.raw_query();
        while rows.next()?.is_some() {}
        drop(rows);
        Ok(if statement.readonly() { 0 } else { conn.changes() })
    }

    /// All rows of a query.
    pub(super) fn rows(&mut self, sql: &str, values: &[Value]) -> rusqlite::Result<Vec<LiteRow>> {
        let mut statement = self.conn()?.prepare_cached(&numbered(sql))?;
        bind(&mut statement, values)?;
        let columns: Arc<[String]> = statement.column_names().into_iter().map(str::to_owned).collect();
        let (mut rows, mut all) = (statement.raw_query(), Vec::new());
        while let Some(row) = rows.next()? {
            let cells = (0..columns.len()).map(|at| row.get(at)).collect::<rusqlite::Result<_>>()?;
            all.push(LiteRow { columns: columns.clone(), cells });
        }
        Ok(all)
    }

    /// The next statement gets a new connection; what this one was in the middle of is undone.
    pub(super) fn spoil(&mut self) {
        self.conn = None;
    }

    fn conn(&mut self) -> rusqlite::Result<&Connection> {
        let conn = match self.conn.take() {
            Some(conn) => conn,
            None => connect(&self.path)?,
        };
        Ok(self.conn.insert(conn))
    }
}

/// As `open::sqlite_options` says for all others.
fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let conn = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI,
    )?;
    conn.busy_timeout(PATIENCE)?;
    conn.pragma_update(None, "journal_mode", "WAL")?;
    // An acknowledged write is never lost; speed comes from sharing commits.
    conn.pragma_update(None, "synchronous", "FULL")?;
    conn.pragma_update(None, "foreign_keys", true)?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(conn)
}

/// The statement with `?2` for `$2`. Both are the second value wherever they stand, but SQLite numbers places of the
/// second form by their first appearance, and finds out which is which by a walk through all of them: for a statement
/// of hundreds of values that takes longer than the statement.
fn numbered(sql: &str) -> String {
    let mut chars = sql.chars().peekable();
    let mut told = String::with_capacity(sql.len());
    while let Some(char) = chars.next() {
        let place = char == '$' && chars.peek().is_some_and(char::is_ascii_digit);
        told.push(if place { '?' } else { char });
    }
    told
}

fn bind(statement: &mut Statement<'_>, values: &[Value]) -> rusqlite::Result<()> {
    let places = statement.parameter_count();
    if places > values.len() {
        return Err(rusqlite::Error::InvalidParameterCount(values.len(), places));
    }
    for (value, place) in values.iter().zip(1..=places) {
        match value {
            Value::Text(Some(text)) => statement.raw_bind_parameter(place, text),
            Value::Int(Some(number)) => statement.raw_bind_parameter(place, number),
            Value::Bytes(bytes) => statement.raw_bind_parameter(place, bytes),
            Value::Text(None) | Value::Int(None) => statement.raw_bind_parameter(place, Null),
        }?;
    }
    Ok(())
}

// === impl LiteRow ===

impl LiteRow {
    fn cell(&self, name: &str) -> rusqlite::Result<(usize, &Cell)> {
        let at = self.columns.iter().position(|column| column == name);
        let at = at.ok_or_else(|| rusqlite::Error::InvalidColumnName(name.to_owned()))?;
        Ok((at, &self.cells[at]))
    }

    fn wrong(at: usize, name: &str, cell: &Cell) -> rusqlite::Error {
        rusqlite::Error::InvalidColumnType(at, name.to_owned(), cell.data_type())
    }

    /// A text, or null.
    pub(super) fn text(&self, name: &str) -> rusqlite::Result<Option<String>> {
        match self.cell(name)? {
            (_, Cell::Text(text)) => Ok(Some(text.clone())),
            (_, Cell::Null) => Ok(None),
            (at, other) => Err(LiteRow::wrong(at, name, other)),
        }
    }

    /// A number, or null.
    pub(super) fn int(&self, name: &str) -> rusqlite::Result<Option<i64>> {
        match self.cell(name)? {
            (_, Cell::Integer(number)) => Ok(Some(*number)),
            (_, Cell::Null) => Ok(None),
            (at, other) => Err(LiteRow::wrong(at, name, other)),
        }
    }

    /// Bytes, or null.
    pub(super) fn bytes(&self, name: &str) -> rusqlite::Result<Option<Vec<u8>>> {
        match self.cell(name)? {
            (_, Cell::Blob(bytes)) => Ok(Some(bytes.clone())),
            (_, Cell::Text(text)) => Ok(Some(text.clone().into_bytes())),
            (_, Cell::Null) => Ok(None),
            (at, other) => Err(LiteRow::wrong(at, name, other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::db::values;
    use super::*;

    fn opened(folder: &tempfile::TempDir) -> Lite {
        let path = folder.path().join("a.db");
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE a (b TEXT, c INTEGER, d BLOB)").unwrap();
        Lite::open(&path).unwrap()
    }

    #[test]
    fn places_are_taken_by_their_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let mut lite = opened(&folder);
        let insert = "INSERT INTO a (c, b, d) VALUES ($2, $1, $3)";
        assert_eq!(lite.run(insert, values!["text", 7, vec![1_u8, 2]]).unwrap(), 1);
        assert_eq!(lite.run(insert, values![None::<String>, 8, vec![0_u8; 0]]).unwrap(), 1);
        let rows =
            lite.rows("SELECT b, c, d FROM a WHERE c >= $1 AND c <= $2 ORDER BY c", values![7, 8]).unwrap();
        assert_eq!(rows[0].text("b").unwrap().as_deref(), Some("text"));
        assert_eq!(rows[0].int("c").unwrap(), Some(7));
        assert_eq!(rows[0].bytes("d").unwrap(), Some(vec![1, 2]));
        assert_eq!(rows[1].text("b").unwrap(), None);
        assert!(rows[0].text("c").is_err() && rows[0].int("x").is_err());
        assert_eq!(lite.run("UPDATE a SET b = $1", values!["both"]).unwrap(), 2);
        assert_eq!(lite.run("SELECT b FROM a", &[]).unwrap(), 0, "reading touches nothing");
        assert!(lite.run("DELETE FROM a WHERE c = $2", values![7]).is_err(), "a value is missing");
        let path = "UPDATE a SET b = json_set('{}', '$.x', $1) WHERE c = $12";
        let many: Vec<Value> = (0..12).map(|at| Value::from(if at < 11 { 9 } else { 7 })).collect();
        assert_eq!(lite.run(path, &many).unwrap(), 1);
        let row = &lite.rows("SELECT b FROM a WHERE c = $1", values![7]).unwrap()[0];
        assert_eq!(row.text("b").unwrap().as_deref(), Some(r#"{"x":9}"#));
    }

    #[test]
    fn a_new_connection_knows_nothing_of_what_was_begun() {
        let folder = tempfile::tempdir().unwrap();
        let mut lite = opened(&folder);
        lite.run("BEGIN IMMEDIATE", &[]).unwrap();
        lite.run("INSERT INTO a (c) VALUES ($1)", values![1]).unwrap();
        lite.spoil();
        assert!(lite.rows("SELECT c FROM a", &[]).unwrap().is_empty());
        lite.run("INSERT INTO a (c) VALUES ($1)", values![2]).unwrap();
        assert_eq!(lite.rows("SELECT c FROM a", &[]).unwrap().len(), 1);
    }
}
