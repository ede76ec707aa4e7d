//! Nodes as the channel sees them: invitations, certificates, sessions.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::create::Maker;
use super::db::values;
use super::history::{self, Entry};
use super::tx::{Tx, list};
use super::{Asked, Bell, Context, Store, among, machines, objects, placement, report};
use crate::kernel::{Error, Right, Timestamp};

/// The kind that has a row of sums and sessions beside its resource.
pub(super) const KIND: &str = "node";

/// A join token as it is kept: hashed.
#[derive(Clone, Debug)]
pub struct NodeInvite {
    /// Hex SHA-256 of the token's secret.
    pub hash: String,
    /// When it is worth nothing any more.
    pub expires_at: Timestamp,
}

/// Why a join token was not taken. The stranger is told one thing for all of them; the log tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinRefusal {
    /// Nobody made it.
    #[error("there is no such join token")]
    Unknown,
    /// It was used.
    #[error("the join token was used before")]
    Used,
    /// Its time is over.
    #[error("the join token has expired")]
    Expired,
    /// It was made for a node of another name.
    #[error("the join token is for a node of another name")]
    WrongName,
}

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionStanding {
    /// It is the newest of its node, and its certificate is good.
    Newest,
    /// A newer one has begun, here or at another server.
    Superseded,
    /// Its server was taken for dead, and the node for offline.
    Buried,
    /// The node's certificates were revoked, or the node is gone.
    Revoked,
}

/// What was taken from a node that was revoked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revoked {
    /// Serial numbers of its certificates, each refused from now on.
    pub serials: Vec<String>,
    /// How many invitations that nobody had used are good for nothing now.
    pub invitations: u64,
}

/// How far a node's orders and sessions have come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeHead {
    /// Which node.
    pub node: String,
    /// Its newest session.
    pub session: i64,
    /// Its highest order.
    pub sequence: i64,
}

impl Store {
    /// Keeps a join token for a node.
    pub async fn invite_node(
        &self,
        right: &Right,
        id: &str,
        invite: NodeInvite,
        asked: &Asked,
    ) -> Result<(), Error> {
        let taken = (right.clone(), id.to_owned(), invite, asked.clone());
        self.write(taken, move |tx, context, (right, id, invite, asked)| {
            Box::pin(async move {
                let maker = Maker::of(&right, &asked);
                let node = objects::find(tx, &right, context.registry.get(KIND)?, &id).await?;
                let sql = "INSERT INTO join_token (hash, node, expires_at) VALUES ($1, $2, $3)";
                tx.run(sql, values![invite.hash, &node.core.id, invite.expires_at]).await?;
                history::noted(tx, &context, &maker, &node, "invite");
                Ok(())
            })
        })
        .await
    }

    /// Uses up a join token: of any number of redemptions at once, one gets the node's id.
    pub async fn redeem_join_token(
        &self,
        hash: &str,
        name: &str,
    ) -> Result<Result<String, JoinRefusal>, Error> {
        let taken = (hash.to_owned(), name.to_owned());
        self.write(taken, move |tx, context, (hash, name)| {
            Box::pin(async move { redeem(tx, &context, &hash, &name).await })
        })
        .await
    }

    /// Keeps what was signed for a node, so that it can be revoked.
    pub async fn record_certificate(
        &self,
        serial: &str,
        node: &str,
        not_after: Timestamp,
    ) -> Result<(), Error> {
        let taken = (serial.to_owned(), node.to_owned());
        self.write(taken, move |tx, _, (serial, node)| {
            Box::pin(async move {
                let sql = "INSERT INTO certificate (serial, node, not_after) VALUES ($1, $2, $3)";
                tx.run(sql, values![serial, node, not_after]).await?;
                Ok(())
            })
        })
        .await
    }

    /// True unless this serial was signed for this node, is not revoked, and the node is still there.
    pub async fn certificate_refused(&self, serial: &str, node: &str) -> Result<bool, Error> {
        let sql = "SELECT 1 AS one FROM certificate c JOIN live l ON l.id = c.node \
                   WHERE c.serial = $1 AND c.node = $2 AND c.revoked_at IS NULL";
        Ok(self.read().await?.row(sql, values![serial, node]).await?.is_none())
    }

    /// Takes from a node all with which it could call, come back, or be joined by a machine that was invited before.
    /// Whoever holds its session ends it; to invite it again brings it back.
    pub async fn revoke_certificates(
        &self,
        right: &Right,
        id: &str,
        asked: &Asked,
    ) -> Result<Revoked, Error> {
        let taken = (right.clone(), id.to_owned(), asked.clone());
        self.write(taken, move |tx, context, (right, id, asked)| {
            Box::pin(async move {
                let maker = Maker::of(&right, &asked);
                let node = objects::find(tx, &right, context.registry.get(KIND)?, &id).await?;
                history::noted(tx, &context, &maker, &node, "revoke");
                let now = context.env.now();
                let sql = "UPDATE join_token SET expires_at = $2 WHERE node = $1 AND used_at IS NULL AND expires_at > $2";
                let invitations = tx.run(sql, values![&node.core.id, now]).await?;
                let serials = revoke(tx, &context, &node.core.id).await?;
                report::merge_status(tx, &context, &node.core.id, json!({"revoked_at": now})).await?;
                Ok(Revoked { serials, invitations })
            })
        })
        .await
    }

    /// Begins a session of a node at a server: its number, higher than any before.
    pub async fn open_session(&self, node: &str, server: &str) -> Result<i64, Error> {
        let opened = self.open_sessions(&[(node.to_owned(), json!({}))], server).await?;
        opened.get(node).copied().ok_or(Error::NotFound)
    }

    /// The same, of many nodes, none of them twice; of each agent this (an object) is known by now: it goes into the node's
    /// status. A node that is not there has no number.
    pub async fn open_sessions(
        &self,
        all: &[(String, Value)],
        server: &str,
    ) -> Result<BTreeMap<String, i64>, Error> {
        self.write((all.to_owned(), server.to_owned()), |tx, context, (mut all, server)| {
            Box::pin(async move { open(tx, &context, &mut all, &server).await })
        })
        .await
    }

    /// For the net under the bells: the newest session and the highest order of each node whose session is, as
    /// far as the database knows, at this server.
    pub async fn node_heads(&self, server: &str) -> Result<Vec<NodeHead>, Error> {
        let sql = "SELECT node, session, sequence FROM node_state WHERE server = $1 AND connected = 1";
        let rows = self.read().await?.rows(sql, values![server]).await?;
        let head = |row: &super::db::Row| -> Result<NodeHead, Error> {
            Ok(NodeHead {
                node: row.text("node")?,
                session: row.int("session")?,
                sequence: row.int("sequence")?,
            })
        };
        rows.iter().map(head).collect()
    }

    /// Ends a session, unless a newer one has begun.
    pub async fn close_session(&self, node: &str, session: i64) -> Result<(), Error> {
        let taken = node.to_owned();
        self.write(taken, move |tx, context, node| {
            Box::pin(async move {
                let sql = "UPDATE node_state SET connected = 0 WHERE node = $1 AND session = $2";
                if tx.run(sql, values![&node, session]).await? == 1 {
                    offline(tx, &context, &node).await?;
                }
                Ok(())
            })
        })
        .await
    }

    /// The node that holds an object whose place was claimed.
    pub async fn assigned_node(
        &self,
        right: &Right,
        kind: &'static dyn crate::kernel::Kind,
        id: &str,
    ) -> Result<Option<String>, Error> {
        let object = objects::find(&mut self.read_for(right).await?, right, kind, id).await?;
        Ok(object.claims.get("node").and_then(|node| node.as_str()).map(str::to_owned))
    }
}

async fn open(
    tx: &mut Tx,
    context: &Context,
    all: &mut Vec<(String, Value)>,
    server: &str,
) -> Result<BTreeMap<String, i64>, Error> {
    // Whoever else has several in hand takes them in the same order.
    all.sort_by(|one, other| one.0.cmp(&other.0));
    let nodes: Vec<String> = all.iter().map(|(node, _)| node.clone()).collect();
    let (list, mut values) = list(&nodes);
    if tx.is_postgres() {
        let sql = format!("SELECT node FROM node_state WHERE node IN {list} ORDER BY node FOR UPDATE");
        tx.rows(&sql, &values).await?;
    }
    values.push(server.into());
    let sql = format!(
        "UPDATE node_state SET session = session + 1, server = ${}, connected = 1, lost = 0 WHERE node IN {list} \
         RETURNING node, session",
        values.len()
    );
    let mut numbers = BTreeMap::new();
    for row in tx.rows(&sql, &values).await? {
        numbers.insert(row.text("node")?, row.int("session")?);
    }
    for (node, said) in all.iter_mut() {
        said["connected"] = true.into();
        said["connected_at"] = json!(context.env.now());
        // Whoever holds an older session of this node looks again, and ends it.
        tx.ring(Bell::Node(node.clone()));
    }
    report::merge_statuses(tx, context, std::mem::take(all)).await?;
    Ok(numbers)
}

/// Revokes all certificates of a node; their serials.
async fn revoke(tx: &mut Tx, context: &Context, node: &str) -> Result<Vec<String>, Error> {
    let sql =
        "UPDATE certificate SET revoked_at = $2 WHERE node = $1 AND revoked_at IS NULL RETURNING serial";
    let rows = tx.rows(sql, values![node, context.env.now()]).await?;
    // Who misses the bell (of another process on SQLite it is never heard) finds that it holds a session of a node that
    // is not connected, and looks.
    let sql = "UPDATE node_state SET connected = 0 WHERE node = $1 AND connected = 1";
    if tx.run(sql, values![node]).await? == 1 {
        offline(tx, context, node).await?;
    }
    among::shut_out(tx, context, node).await?;
    // Whoever holds the node's stream looks again, and ends it.
    tx.ring(Bell::Node(node.to_owned()));
    Ok(rows.iter().map(|row| row.text("serial")).collect::<Result<_, _>>()?)
}

async fn redeem(
    tx: &mut Tx,
    context: &Context,
    hash: &str,
    name: &str,
) -> Result<Result<String, JoinRefusal>, Error> {
    let now = context.env.now();
    // One statement decides: whoever makes `used_at` not null has won.
    let sql = "UPDATE join_token SET used_at = $2 WHERE hash = $1 AND used_at IS NULL AND expires_at > $2 \
               AND node IN (SELECT id FROM live WHERE kind = 'node' AND tenant = '' AND name = $3) RETURNING node";
    if let Some(row) = tx.row(sql, values![hash, now, name]).await? {
        let node = row.text("node")?;
        tx.run("UPDATE node_state SET joined = 1 WHERE node = $1", values![&node]).await?;
        // Whoever was this node before is not any more: its key may be anywhere, and would bring it back for ever.
        revoke(tx, context, &node).await?;
        let joined = Entry {
            class: "write",
            kind: KIND,
            resource: &node,
            name,
            verb: "join",
            outcome: "done",
            actor: &format!("node {name}"),
            credential: "join-token",
            ..Entry::default()
        };
        history::add(tx, context, joined);
        machines::joined(tx, context, &node).await?;
        report::merge_status(tx, context, &node, json!({"joined": true, "revoked_at": null})).await?;
        return Ok(Ok(node));
    }
    let sql = "SELECT used_at, expires_at FROM join_token WHERE hash = $1";
    let refusal = match tx.row(sql, values![hash]).await? {
        None => JoinRefusal::Unknown,
        Some(row) if row.maybe_int("used_at")?.is_some() => JoinRefusal::Used,
        Some(row) if row.time("expires_at")? <= now => JoinRefusal::Expired,
        Some(_) => JoinRefusal::WrongName,
    };
    Ok(Err(refusal))
}

/// The node has a session, and was not revoked since that began.
pub(super) async fn is_connected(tx: &mut Tx, node: &str) -> Result<bool, Error> {
    let sql = "SELECT 1 AS one FROM node_state WHERE node = $1 AND connected = 1";
    Ok(tx.row(sql, values![node]).await?.is_some())
}

/// The row of sums and sessions that a node has from its first day.
pub(super) async fn made(tx: &mut Tx, node: &str) -> Result<(), Error> {
    placement::new_node(tx, node).await
}

/// A node is not connected any more.
pub(super) async fn offline(tx: &mut Tx, context: &Context, node: &str) -> Result<(), Error> {
    let said = json!({"connected": false, "last_seen_at": context.env.now()});
    report::merge_status(tx, context, node, said).await?;
    Ok(())
}
