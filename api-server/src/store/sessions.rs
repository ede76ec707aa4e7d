//! Logins that have ended before their tokens did: told once to one server, and known to all.

use super::db::values;
use super::tx::Tx;
use super::{Bell, Store, browser};
use crate::kernel::{Error, Timestamp};

/// A login that has ended, or all of a subject.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndedSession {
    /// The configured name of the authenticator that knows it.
    pub authenticator: String,
    /// Its name; empty: all of the subject.
    pub session: String,
    /// Whose; empty when the session says it.
    pub subject: String,
    /// What was issued until then counts no more.
    pub at: Timestamp,
    /// When it was told.
    pub told_at: Timestamp,
    /// The last of its tokens has expired by then.
    pub until: Timestamp,
}

impl Store {
    /// Keeps that it has ended, and rings on every server. Told again it changes nothing but how long it is kept.
    pub async fn end_session(&self, ended: EndedSession) -> Result<(), Error> {
        self.write(ended, move |tx, context, ended| {
            Box::pin(async move {
                let now = context.env.now();
                tx.run("DELETE FROM ended_session WHERE until < $1", values![now]).await?;
                browser::login_ended(tx, &ended).await?;
                told(tx, now, ended).await?;
                Ok(())
            })
        })
        .await
    }

    /// Those that were told at this moment or later.
    pub async fn ended_sessions(&self, since: Timestamp) -> Result<Vec<EndedSession>, Error> {
        let sql = "SELECT authenticator, session, subject, at, told_at, until FROM ended_session \
                   WHERE told_at >= $1 ORDER BY told_at";
        let rows = self.read().await?.rows(sql, values![since]).await?;
        rows.iter()
            .map(|row| {
                Ok(EndedSession {
                    authenticator: row.text("authenticator")?,
                    session: row.text("session")?,
                    subject: row.text("subject")?,
                    at: Timestamp(row.int("at")?),
                    told_at: Timestamp(row.int("told_at")?),
                    until: Timestamp(row.int("until")?),
                })
            })
            .collect()
    }
}

/// Keeps that it has ended.
pub(super) async fn told(tx: &mut Tx, now: Timestamp, ended: EndedSession) -> Result<(), Error> {
    let sql = "INSERT INTO ended_session (authenticator, session, subject, at, told_at, until) \
               VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (authenticator, session, subject) \
               DO UPDATE SET told_at = excluded.told_at, until = excluded.until, \
               at = CASE WHEN excluded.at > ended_session.at THEN excluded.at ELSE ended_session.at END";
    let EndedSession { authenticator, session, subject, at, until, .. } = ended;
    tx.run(sql, values![authenticator, session, subject, at, now, until]).await?;
    tx.ring(Bell::Sessions);
    Ok(())
}
