//! What nodes show and trust, and what servers trust: so that the cluster's authority can be exchanged for another while
//! all of them are connected, and nothing runs out unseen.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::db::{self, values};
use super::history::{self, Entry};
use super::servers::SERVER_LEASE_SECONDS;
use super::tx::list;
use super::{Store, nodes, report};
use crate::kernel::{Error, Timestamp};

/// What a node shows and trusts, as it says, or as its connection was made with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// By which its certificate names the key that has signed it, in hex; empty if it does not.
    pub issuer: String,
    /// Tells the roots that it trusts apart from others; empty: it does not say.
    pub trust: String,
    /// From when its certificate is good.
    pub from: Timestamp,
    /// Until when.
    pub until: Timestamp,
    /// Why there is no newer one; empty: nothing is wrong.
    pub problem: String,
}

/// One node, and what it shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeKeys {
    /// Its name.
    pub name: String,
    /// True while its agent is connected.
    pub connected: bool,
    /// What it said last; times of 0 if it never did.
    pub shown: Shown,
}

/// Who has not taken over what the cluster trusts now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Untold {
    /// Ids of servers that live.
    pub servers: Vec<String>,
    /// Names of nodes that are connected.
    pub nodes: Vec<String>,
}

impl Store {
    /// Keeps what nodes show and trust. Nothing is written of those of which nothing is new.
    pub async fn nodes_show(&self, all: Vec<(String, Shown)>) -> Result<(), Error> {
        let nodes: Vec<String> = all.iter().map(|(node, _)| node.clone()).collect();
        let (list, values) = list(&nodes);
        let sql = format!(
            "SELECT s.node, s.issuer, s.trust, s.shown_from, s.shown_until, r.status FROM node_state s \
             JOIN resource r ON r.id = s.node WHERE s.node IN {list}"
        );
        let mut known = BTreeMap::new();
        for row in self.read().await?.rows(&sql, &values).await? {
            known.insert(row.text("node")?, shown_in(&row)?);
        }
        for (node, shown) in all {
            if let Some(known) = known.get(&node).filter(|known| **known != shown) {
                self.show(node, known, shown).await?;
            }
        }
        Ok(())
    }

    async fn show(&self, node: String, known: &Shown, shown: Shown) -> Result<(), Error> {
        let mut certificate = json!({ "expires_at": shown.until });
        certificate["renewal_problem"] =
            if shown.problem.is_empty() { Value::Null } else { json!(&shown.problem) };
        if known.until != shown.until {
            certificate["expires_soon"] = Value::Null;
        }
        let taken = (node, shown, json!({ "certificate": certificate }));
        self.write(taken, move |tx, context, (node, shown, said)| {
            Box::pin(async move {
                let sql = "UPDATE node_state SET issuer = $2, trust = $3, shown_from = $4, shown_until = $5 \
                           WHERE node = $1";
                let values = values![&node, shown.issuer, shown.trust, shown.from, shown.until];
                tx.run(sql, values).await?;
                report::merge_status(tx, &context, &node, said).await?;
                Ok(())
            })
        })
        .await
    }

    /// A connected node has not renewed its certificate, which ends soon: in its status, and in the log.
    pub async fn certificate_ends_soon(&self, node: &str, until: Timestamp) -> Result<(), Error> {
        let taken = (node.to_owned(), until);
        self.write(taken, move |tx, context, (node, until)| {
            Box::pin(async move {
                let said = json!({ "certificate": { "expires_at": until, "expires_soon": true } });
                if report::merge_status(tx, &context, &node, said).await? {
                    let detail = format!("the certificate ends at {until} and was not renewed");
                    let entry = Entry {
                        class: "write",
                        kind: nodes::KIND,
                        resource: &node,
                        verb: "certificate-ends-soon",
                        outcome: "done",
                        actor: "system",
                        credential: "none",
                        detail: &detail,
                        ..Entry::default()
                    };
                    history::add(tx, &context, entry);
                }
                Ok(())
            })
        })
        .await
    }

    /// This server trusts these roots by now.
    pub async fn server_trusts(&self, server: &str, trust: &str) -> Result<(), Error> {
        let taken = (server.to_owned(), trust.to_owned());
        self.write(taken, move |tx, _, (server, trust)| {
            Box::pin(async move {
                tx.run("UPDATE server SET trust = $2 WHERE id = $1", values![server, trust]).await?;
                Ok(())
            })
        })
        .await
    }

    /// Who has not taken over these roots: servers that live, nodes that are connected.
    pub async fn untold(&self, trust: &str) -> Result<Untold, Error> {
        let mut conn = self.read().await?;
        let since = self.env().now().plus_seconds(-SERVER_LEASE_SECONDS);
        let sql = "SELECT id FROM server WHERE trust <> $1 AND heartbeat_at > $2 ORDER BY id";
        let servers = texts(&conn.rows(sql, values![trust, since]).await?, "id")?;
        let sql = "SELECT l.name FROM node_state s JOIN live l ON l.id = s.node \
                   WHERE s.connected = 1 AND s.trust <> $1 ORDER BY l.name";
        let nodes = texts(&conn.rows(sql, values![trust]).await?, "name")?;
        Ok(Untold { servers, nodes })
    }

    /// Names of the nodes that would be refused if nothing but what this key has signed, under these roots, counted:
    /// those that show something else, or do not trust them. Who was revoked is refused anyhow.
    pub async fn nodes_beside(&self, issuer: &str, trust: &str) -> Result<Vec<String>, Error> {
        let sql = "SELECT l.name FROM node_state s JOIN live l ON l.id = s.node WHERE s.joined = 1 \
                   AND (s.issuer <> $1 OR (s.trust <> $2 AND s.trust <> '')) AND EXISTS \
                   (SELECT 1 FROM certificate c WHERE c.node = s.node AND c.revoked_at IS NULL) ORDER BY l.name";
        texts(&self.read().await?.rows(sql, values![issuer, trust]).await?, "name")
    }

    /// All nodes that have joined, by name.
    pub async fn keys_of_nodes(&self) -> Result<Vec<NodeKeys>, Error> {
        let sql = "SELECT l.name, s.connected, s.issuer, s.trust, s.shown_from, s.shown_until, r.status \
                   FROM node_state s JOIN live l ON l.id = s.node JOIN resource r ON r.id = s.node \
                   WHERE s.joined = 1 ORDER BY l.name";
        let rows = self.read().await?.rows(sql, values![]).await?;
        let keys = |row: &db::Row| -> Result<NodeKeys, Error> {
            let (name, connected) = (row.text("name")?, row.truth("connected")?);
            Ok(NodeKeys { name, connected, shown: shown_in(row)? })
        };
        rows.iter().map(keys).collect()
    }
}

fn shown_in(row: &db::Row) -> Result<Shown, Error> {
    let status: Value = row.json("status")?;
    let problem = status["certificate"]["renewal_problem"].as_str().unwrap_or_default();
    Ok(Shown {
        issuer: row.text("issuer")?,
        trust: row.text("trust")?,
        from: row.time("shown_from")?,
        until: row.time("shown_until")?,
        problem: problem.to_owned(),
    })
}

fn texts(rows: &[db::Row], column: &str) -> Result<Vec<String>, Error> {
    Ok(rows.iter().map(|row| row.text(column)).collect::<Result<_, _>>()?)
}
