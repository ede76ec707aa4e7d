//! A few figures of the whole, for whoever watches over a cluster. Each reads so many rows at most, by an index.

use super::db::{Conn, values};
use super::{Store, given};
use crate::kernel::{Error, Timestamp};

/// It is not counted further.
pub const MOST_COUNTED: i64 = 10_000;

/// How much of what there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Open jobs by state.
    pub jobs: Vec<(&'static str, i64)>,
    /// Open jobs that wait for what a node says.
    pub awaiting: i64,
    /// Events that the log does not have yet.
    pub waiting_events: i64,
    /// When the first of them happened.
    pub oldest_event: Option<Timestamp>,
    /// When, of the certificates that were given for domains of tenants, the first one ends.
    pub given_end: Option<Timestamp>,
}

impl Store {
    /// These figures, as they are now.
    pub async fn figures(&self) -> Result<Figures, Error> {
        let mut conn = self.read().await?;
        let mut figures = Figures::default();
        for state in ["waiting", "running", "undoing"] {
            let which = format!("SELECT 1 AS one FROM job WHERE state = '{state}'");
            figures.jobs.push((state, counted(&mut conn, &which).await?));
        }
        figures.awaiting = counted(&mut conn, "SELECT 1 AS one FROM job WHERE awaits IS NOT NULL").await?;
        figures.waiting_events = counted(&mut conn, "SELECT number FROM event ORDER BY number").await?;
        let row = conn.row("SELECT at FROM event ORDER BY number LIMIT 1", values![]).await?;
        figures.oldest_event = row.map(|row| row.time("at")).transpose()?;
        figures.given_end = given::first_end(&mut conn).await?;
        Ok(figures)
    }

    /// Connections to the database: at work, and how many there may be.
    pub fn connections(&self) -> (u32, u32) {
        self.readers.lent()
    }
}

/// How many rows this finds, `MOST_COUNTED` at most.
async fn counted(conn: &mut Conn, which: &str) -> Result<i64, Error> {
    let sql = format!("SELECT count(*) AS count FROM ({which} LIMIT {MOST_COUNTED}) AS part");
    let row = conn.row(&sql, values![]).await?;
    Ok(row.map(|row| row.int("count")).transpose()?.unwrap_or(0))
}
