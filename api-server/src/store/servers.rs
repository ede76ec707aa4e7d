//! Servers: each has a heartbeat row; what a dead one held is given up for it.

use super::db::values;
use super::{Store, nodes};
use crate::kernel::Error;

/// A server that has not written its heartbeat for so long is dead.
pub const SERVER_LEASE_SECONDS: i64 = 15;

/// The server that holds a node's session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its id.
    pub server: String,
    /// Where other servers reach it, `HOST:PORT`; empty: it has not said, or is gone.
    pub address: String,
}

impl Store {
    /// Where other servers reach this one, `HOST:PORT`: told with each heartbeat from now on. Once is enough: a later
    /// one is ignored.
    pub fn reached_at(&self, address: &str) {
        let _ = self.context.own_address.set(address.to_owned());
    }

    /// The server that holds the node's session, as far as the database knows.
    pub async fn session_holder(&self, node: &str) -> Result<Option<Holder>, Error> {
        let sql = "SELECT n.server, coalesce(s.address, '') AS address FROM node_state n \
                   LEFT JOIN server s ON s.id = n.server WHERE n.node = $1 AND n.connected = 1";
        let row = self.read().await?.row(sql, values![node]).await?;
        row.map(|row| Ok(Holder { server: row.text("server")?, address: row.text("address")? })).transpose()
    }

    /// This server is here.
    pub async fn server_heartbeat(&self, id: &str) -> Result<(), Error> {
        let began = self.env().uptime();
        let taken = id.to_owned();
        self.write(taken, move |tx, context, id| {
            Box::pin(async move {
                let sql = "INSERT INTO server (id, started_at, heartbeat_at, address) VALUES ($1, $2, $2, $3) \
                           ON CONFLICT (id) DO UPDATE SET heartbeat_at = excluded.heartbeat_at, \
                           address = excluded.address";
                let address = context.own_address.get().cloned().unwrap_or_default();
                tx.run(sql, values![id, context.env.now(), address]).await?;
                Ok(())
            })
        })
        .await?;
        self.beat(id, began);
        Ok(())
    }

    /// This server ends in order: nobody needs to wait until it is believed dead.
    pub async fn server_leaves(&self, id: &str) -> Result<(), Error> {
        let taken = id.to_owned();
        self.write(taken, move |tx, _, id| {
            Box::pin(async move {
                tx.run("DELETE FROM server WHERE id = $1", values![id]).await?;
                Ok(())
            })
        })
        .await
    }

    /// Takes down the sessions of servers that are dead (`alone`: of all but this one). How many there were.
    pub async fn bury_servers(&self, own: &str, alone: bool) -> Result<usize, Error> {
        let taken = own.to_owned();
        self.write(taken, move |tx, context, own| {
            Box::pin(async move {
                let seconds = if alone { 0 } else { -SERVER_LEASE_SECONDS };
                let before = context.env.now().plus_seconds(seconds);
                let sql = "DELETE FROM server WHERE heartbeat_at <= $1 AND id <> $2";
                tx.run(sql, values![before, &own]).await?;
                let sql = "UPDATE node_state SET connected = 0 WHERE connected = 1 AND server <> $1 \
                           AND server NOT IN (SELECT id FROM server) RETURNING node";
                let rows = tx.rows(sql, values![&own]).await?;
                for row in &rows {
                    nodes::offline(tx, &context, &row.text("node")?).await?;
                }
                Ok(rows.len())
            })
        })
        .await
    }

    /// A value kept once for the whole cluster, made by `first` when there is none yet.
    pub async fn meta(&self, key: &str, first: String) -> Result<String, Error> {
        let taken = (key.to_owned(), first);
        self.write(taken, move |tx, _, (key, first)| {
            Box::pin(async move {
                let sql = "INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT DO NOTHING";
                tx.run(sql, values![&key, first]).await?;
                let row = tx.row("SELECT value FROM meta WHERE key = $1", values![key]).await?;
                Ok(row
                    .ok_or_else(|| Error::Internal("a value just written is not there".into()))?
                    .text("value")?)
            })
        })
        .await
    }

    /// Raised when a backup is restored; an agent refuses a server with a lower one than it knows.
    pub async fn db_epoch(&self) -> Result<i64, Error> {
        let text = self.meta("db_epoch", "1".to_owned()).await?;
        text.parse().map_err(|_| Error::Internal(format!("db_epoch `{text}` is not a number")))
    }
}
