//! A transaction: what it says to the database, what it keeps back until the end, and what it has seen.

use std::collections::{HashMap, HashSet};
use std::pin::Pin;

use super::Bell;
use super::db::{Conn, DbError, Row, Value};
use super::plan::Notes;
use crate::kernel::{Error, ResourceCore, Stored};

/// A statement has one shape for each number of rows, and a connection keeps a plan for each shape: so these
/// numbers and no others, and below the last of them any.
const ROWS_AT_ONCE: [usize; 3] = [64, 32, 16];

/// A transaction.
pub struct Tx {
    conn: Conn,
    /// To be rung once it is durable, each once.
    bells: Vec<Bell>,
    rung: HashSet<Bell>,
    /// Rows that nobody reads before the end: one statement carries all of a table.
    later: Vec<Rows>,
    /// Objects as they are now for this transaction.
    seen: HashMap<String, Stored>,
    /// Where it notes what it decides, if somebody wants to know.
    pub(super) notes: Option<Box<Notes>>,
}

struct Rows {
    into: &'static Table,
    rows: Vec<Vec<Value>>,
}

/// A table to which rows are added later.
pub(super) struct Table {
    /// Its name.
    pub(super) name: &'static str,
    /// The columns of a row.
    pub(super) columns: &'static str,
    /// How many of them, the first ones, are its key: a later row takes the place of one with the same.
    pub(super) key: usize,
    /// What follows the rows.
    pub(super) tail: &'static str,
}

impl Table {
    /// One whose rows are never the same.
    pub(super) const fn new(name: &'static str, columns: &'static str) -> Table {
        Table { name, columns, key: 0, tail: "" }
    }
}

// === impl Tx ===

/// A part of a transaction, on the heap, and made in a frame that is gone when it is awaited. A removal in a job in a
/// removal goes deep, and a thread's stack is two megabytes: it has no room for what each of them might have done instead.
pub(super) fn apart<'a, F: Future>(tx: &'a mut Tx, make: impl FnOnce(&'a mut Tx) -> F) -> Pin<Box<F>> {
    Box::pin(make(tx))
}

impl Tx {
    pub(super) fn new(conn: Conn) -> Tx {
        Tx {
            conn,
            bells: Vec::new(),
            rung: HashSet::new(),
            later: Vec::new(),
            seen: HashMap::new(),
            notes: None,
        }
    }

    /// To be rung after the commit; a transaction that is rolled back rings nothing.
    pub fn ring(&mut self, bell: Bell) {
        if self.rung.insert(bell.clone()) {
            self.bells.push(bell);
        }
    }

    pub(super) fn bells_rung(&self) -> usize {
        self.bells.len()
    }

    /// What was done since so many bells had been rung is rolled back.
    pub(super) fn forget_after(&mut self, bells: usize) {
        for bell in self.bells.drain(bells..) {
            self.rung.remove(&bell);
        }
        self.forget_all();
    }

    pub(super) fn take_bells(&mut self) -> Vec<Bell> {
        self.rung.clear();
        std::mem::take(&mut self.bells)
    }

    /// Holds a lock of this name until the end of the transaction. SQLite has one writer and needs none.
    pub async fn lock(&mut self, name: &str) -> Result<(), DbError> {
        if self.conn.is_postgres() {
            let sql = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))";
            self.conn.run(sql, &[name.into()]).await?;
        }
        Ok(())
    }

    // === statements ===

    /// Runs a statement; how many rows it touched.
    pub async fn run(&mut self, sql: &str, values: &[Value]) -> Result<u64, DbError> {
        self.flush_before(sql).await?;
        self.conn.run(sql, values).await
    }

    /// All rows of a query.
    pub async fn rows(&mut self, sql: &str, values: &[Value]) -> Result<Vec<Row>, DbError> {
        self.flush_before(sql).await?;
        self.conn.rows(sql, values).await
    }

    /// The first row of a query, if there is one.
    pub async fn row(&mut self, sql: &str, values: &[Value]) -> Result<Option<Row>, DbError> {
        Ok(self.rows(sql, values).await?.into_iter().next())
    }

    /// Adds rows in as few statements as can be: `head` ends with `VALUES`, `tail` is what follows the rows.
    pub(super) async fn put(
        &mut self,
        head: &str,
        tail: &str,
        rows: Vec<Vec<Value>>,
    ) -> Result<u64, DbError> {
        self.flush_before(head).await?;
        let mut touched = 0;
        for rows in at_once(&rows) {
            let sql = format!("{head} {}{tail}", places(rows.len(), rows[0].len(), 1));
            touched += self.conn.run(&sql, &rows.concat()).await?;
        }
        Ok(touched)
    }

    // === later ===

    /// Adds a row to a table, at the latest with the commit, and before any statement of this transaction that
    /// names the table. For tables that others read: events, history, labels, references.
    pub(super) fn later(&mut self, into: &'static Table, row: Vec<Value>) {
        match self.later.iter_mut().find(|rows| rows.into.name == into.name) {
            Some(rows) => {
                if into.key > 0 {
                    rows.rows.retain(|other| other[..into.key] != row[..into.key]);
                }
                rows.rows.push(row);
            }
            None => self.later.push(Rows { into, rows: vec![row] }),
        }
    }

    /// Writes what was kept back.
    pub(super) async fn flush(&mut self) -> Result<(), DbError> {
        for Rows { into, rows } in std::mem::take(&mut self.later) {
            for rows in at_once(&rows) {
                let places = places(rows.len(), rows[0].len(), 1);
                let sql =
                    format!("INSERT INTO {} ({}) VALUES {places}{}", into.name, into.columns, into.tail);
                self.conn.run(&sql, &rows.concat()).await?;
            }
        }
        Ok(())
    }

    async fn flush_before(&mut self, sql: &str) -> Result<(), DbError> {
        // A name that is part of a longer one costs a statement, and nothing else.
        if self.later.iter().any(|rows| sql.contains(rows.into.name)) { self.flush().await } else { Ok(()) }
    }

    // === seen ===

    /// An object as this transaction has read or written it.
    pub(super) fn seen(&self, id: &str) -> Option<&Stored> {
        self.seen.get(id)
    }

    /// The same, of which this is true.
    pub(super) fn seen_by(&self, is_it: impl Fn(&ResourceCore) -> bool) -> Option<&Stored> {
        self.seen.values().find(|object| is_it(&object.core))
    }

    /// This is how the object is now.
    pub(super) fn see(&mut self, object: &Stored) {
        self.seen.insert(object.core.id.clone(), object.clone());
    }

    /// Whoever wants to know the object has to read it.
    pub(super) fn unsee(&mut self, id: &str) {
        self.seen.remove(id);
    }

    /// The same, of all objects; and nothing is kept back.
    pub(super) fn forget_all(&mut self) {
        self.seen.clear();
        self.later.clear();
    }

    /// Committed or rolled back: the connection is as good as new.
    pub(super) fn is_over(&mut self) {
        self.conn.forget_failure();
        self.forget_all();
        self.take_bells();
    }

    /// All that the transaction had to do is done, but for the commit.
    pub(super) async fn close(&mut self) -> Result<(), Error> {
        self.flush().await?;
        self.forget_all();
        Ok(())
    }
}

impl std::ops::Deref for Tx {
    type Target = Conn;

    fn deref(&self) -> &Conn {
        &self.conn
    }
}

impl std::ops::DerefMut for Tx {
    /// As a connection that reads. What is kept back is not in what it reads.
    fn deref_mut(&mut self) -> &mut Conn {
        &mut self.conn
    }
}

/// Rows, in as many as one statement takes.
fn at_once(mut rows: &[Vec<Value>]) -> impl Iterator<Item = &[Vec<Value>]> {
    let least = ROWS_AT_ONCE[ROWS_AT_ONCE.len() - 1];
    std::iter::from_fn(move || {
        let size = ROWS_AT_ONCE.into_iter().find(|size| *size <= rows.len()).unwrap_or(rows.len().min(least));
        let now;
        (now, rows) = rows.split_at(size);
        (!now.is_empty()).then_some(now)
    })
}

/// `($1, $2), ($3, $4)`: so many rows of so many columns, numbered from `first`.
pub(super) fn places(rows: usize, columns: usize, first: usize) -> String {
    let row = |row: usize| {
        let places: Vec<String> = (0..columns).map(|at| format!("${}", first + row * columns + at)).collect();
        format!("({})", places.join(", "))
    };
    (0..rows).map(row).collect::<Vec<_>>().join(", ")
}

/// How long a list of ids is in a statement: few lengths, for the same reason.
const LENGTHS: [usize; 5] = [1, 4, 16, 64, 256];

/// These, the last one as often as it takes to make one of few lengths: for lists and rows of which one may come
/// twice without meaning anything.
pub(super) fn padded<T: Clone>(all: &[T]) -> Vec<T> {
    let mut all = all.to_vec();
    let length = LENGTHS.into_iter().find(|length| *length >= all.len()).unwrap_or(all.len());
    if let Some(last) = all.last().cloned() {
        all.resize(length, last);
    }
    all
}

/// A list of ids for `IN`, and its values.
pub(super) fn list(ids: &[String]) -> (String, Vec<Value>) {
    let ids = padded(ids);
    (places(1, ids.len(), 1), ids.iter().map(Value::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_numbered_through() {
        assert_eq!(places(2, 3, 1), "($1, $2, $3), ($4, $5, $6)");
        assert_eq!(places(1, 2, 4), "($4, $5)");
        assert_eq!(places(1, 3, 1), "($1, $2, $3)");
    }

    #[test]
    fn lists_have_few_lengths() {
        assert_eq!(padded(&["a", "b"]), ["a", "b", "b", "b"]);
        assert_eq!(padded(&["a"]), ["a"]);
        assert!(padded::<i32>(&[]).is_empty());
        assert_eq!(padded(&[0; 300]).len(), 300);
    }
}
