//! Which machine is a node, and which processes of its agent were heard of: two of them with one identity would drive
//! each other out for ever, and do the same things twice.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::create::Maker;
use super::db::{Conn, values};
use super::nodes::KIND;
use super::tx::{Tx, list};
use super::{Asked, Bell, Context, Store, history, objects, report};
use crate::kernel::{Error, Right};

/// So often must the same two have taken turns: of one that died, what was under way may be heard late.
const TURNS: u32 = 5;
/// So many processes that were refused are remembered.
const REFUSED: usize = 16;

/// How an agent introduces itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Introduction {
    /// Which machine it is on; empty if it does not say.
    pub machine: String,
    /// Which process it is; empty if it does not say.
    pub incarnation: String,
    /// The highest epoch of a database that it has obeyed.
    pub db_epoch: i64,
    /// The highest order that it has heard of in that epoch.
    pub cursor: i64,
}

/// What is kept of a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Seen {
    machine: String,
    /// The process that was heard of last, and the one before.
    present: String,
    previous: String,
    /// Which of the two was there first.
    first: String,
    /// How often `previous` has come back.
    turns: u32,
    refused: Vec<String>,
    /// The name of the reason for which somebody was refused.
    reason: String,
}

impl Store {
    /// Whether each of these agents may be its node: `Some` is why not, by name; none of a node that is not there. What was
    /// refused stands in the node's status.
    pub async fn introduce(
        &self,
        all: &[(String, Introduction)],
        db_epoch: i64,
    ) -> Result<BTreeMap<String, Option<String>>, Error> {
        let nodes: Vec<String> = all.iter().map(|(node, _)| node.clone()).collect();
        let (list, values) = list(&nodes);
        let sql = format!(
            "SELECT s.node, s.sequence, m.seen FROM node_state s LEFT JOIN node_machine m ON m.node = s.node \
             WHERE s.node IN {list}"
        );
        let mut known = BTreeMap::new();
        for row in self.read().await?.rows(&sql, &values).await? {
            let seen = row.maybe_text("seen")?.map(|seen| serde_json::from_str(&seen)).transpose();
            let seen: Seen = seen.map_err(|error| Error::Internal(error.to_string()))?.unwrap_or_default();
            known.insert(row.text("node")?, (row.int("sequence")?, seen));
        }
        let mut met = BTreeMap::new();
        for (node, who) in all {
            let Some((sequence, seen)) = known.get(node) else { continue };
            let refused = self.meet(node, who, db_epoch, *sequence, seen).await?;
            met.insert(node.clone(), refused.map(|(name, why)| format!("{name}: {why}")));
        }
        Ok(met)
    }

    /// Why this agent cannot be the node, if it cannot: name and reason.
    async fn meet(
        &self,
        node: &str,
        who: &Introduction,
        db_epoch: i64,
        sequence: i64,
        seen: &Seen,
    ) -> Result<Option<(&'static str, String)>, Error> {
        let mut now = seen.clone();
        let refused = match older_database(who, db_epoch, sequence) {
            Some(why) => Some(("older-database", why)),
            None => now.meet(who).map(|why| ("cloned-state", why)),
        };
        match &refused {
            Some((name, _)) => now.reason = (*name).to_owned(),
            // The database is the right one again; whoever was refused as a clone is shown until somebody has decided.
            None if now.reason == "older-database" => now.reason.clear(),
            None => {}
        }
        if now != *seen {
            let said = status(seen, &now, refused.as_ref(), who, self.env().now());
            self.write((node.to_owned(), now, said), |tx, context, (node, now, said)| {
                Box::pin(async move { keep(tx, &context, &node, &now, said).await })
            })
            .await?;
        }
        Ok(refused)
    }

    /// Says which machine is a node from now on; `None`: the one that it was, and who was refused is forgotten.
    pub async fn settle_machine(
        &self,
        right: &Right,
        id: &str,
        machine: Option<String>,
        asked: &Asked,
    ) -> Result<(), Error> {
        let taken = (right.clone(), id.to_owned(), machine, asked.clone());
        self.write(taken, |tx, context, (right, id, machine, asked)| {
            Box::pin(async move {
                let maker = Maker::of(&right, &asked);
                let node = objects::find_for_write(tx, &right, context.registry.get(KIND)?, &id).await?;
                history::noted(
                    tx,
                    &context,
                    &maker,
                    &node,
                    if machine.is_some() { "repair" } else { "forget" },
                );
                let node = node.core.id;
                let before = seen(tx, &node).await?;
                let machine = machine.unwrap_or_else(|| before.machine.clone());
                let moved = machine != before.machine;
                let now = Seen { machine: machine.clone(), ..Seen::default() };
                keep(tx, &context, &node, &now, json!({"machine": machine, "refused": null})).await?;
                if moved {
                    // Whoever holds a session as the other machine is not the newest any more.
                    let sql = "UPDATE node_state SET session = session + 1 WHERE node = $1";
                    tx.run(sql, values![&node]).await?;
                }
                tx.ring(Bell::Node(node));
                Ok(())
            })
        })
        .await
    }
}

/// A machine joins as this node: whatever machine it was before, it is this one now.
pub(super) async fn joined(tx: &mut Tx, context: &Context, node: &str) -> Result<(), Error> {
    tx.run("DELETE FROM node_machine WHERE node = $1", values![node]).await?;
    report::merge_status(tx, context, node, json!({"machine": null, "refused": null})).await?;
    Ok(())
}

async fn seen(conn: &mut Conn, node: &str) -> Result<Seen, Error> {
    let row = conn.row("SELECT seen FROM node_machine WHERE node = $1", values![node]).await?;
    Ok(row.map(|row| row.json("seen")).transpose()?.unwrap_or_default())
}

async fn keep(tx: &mut Tx, context: &Context, node: &str, now: &Seen, said: Value) -> Result<(), Error> {
    let sql = "INSERT INTO node_machine (node, seen) VALUES ($1, $2) ON CONFLICT (node) DO UPDATE SET seen = excluded.seen";
    tx.run(sql, values![node, objects::text(now)]).await?;
    if said.as_object().is_some_and(|said| !said.is_empty()) {
        report::merge_status(tx, context, node, said).await?;
    }
    Ok(())
}

/// What changes in the node's status.
fn status(
    before: &Seen,
    now: &Seen,
    refused: Option<&(&str, String)>,
    who: &Introduction,
    at: crate::kernel::Timestamp,
) -> Value {
    let mut said = json!({});
    if before.machine != now.machine {
        said["machine"] = json!(now.machine);
    }
    if let Some((name, why)) = refused {
        said["refused"] = json!({"reason": name, "detail": why, "machine": who.machine, "at": at});
    } else if before.reason != now.reason && now.reason.is_empty() {
        said["refused"] = Value::Null;
    }
    said
}

/// Why the node has obeyed a newer database than this one.
fn older_database(who: &Introduction, db_epoch: i64, sequence: i64) -> Option<String> {
    if who.db_epoch > db_epoch {
        return Some(format!(
            "this database is of the epoch {db_epoch}, and the node has obeyed one of {}; restore it with `rhyzome-api \
             restore`, or say that it counts with `rhyzome-api db raise-epoch`",
            who.db_epoch
        ));
    }
    (who.db_epoch == db_epoch && who.cursor > sequence).then(|| {
        format!(
            "this database has numbered orders for the node up to {sequence}, and the node has heard up to {}: an older \
             copy was put in its place; restore it with `rhyzome-api restore`, or say that it counts with `rhyzome-api \
             db raise-epoch`",
            who.cursor
        )
    })
}

impl Seen {
    /// An agent comes; why it cannot be the node, if it cannot.
    fn meet(&mut self, who: &Introduction) -> Option<String> {
        if !who.machine.is_empty() {
            if self.machine.is_empty() {
                self.machine.clone_from(&who.machine);
            } else if self.machine != who.machine {
                return Some(format!(
                    "this node is the machine {}, and the machine {} has come with its identity; an operator says which \
                     is right: `rhyzome node repair NODE --machine ID`, or `rhyzome node forget NODE`",
                    self.machine, who.machine
                ));
            }
        }
        let own = &who.incarnation;
        if own.is_empty() {
            return None;
        }
        if !self.refused.contains(own) {
            self.take_turns(own);
        }
        self.refused.contains(own).then(|| {
            "two agents with the identity of this node run at the same time, and this is the second; stop one of them, \
             then `rhyzome node forget NODE`"
                .to_owned()
        })
    }

    fn take_turns(&mut self, own: &str) {
        if *own == self.present {
            return;
        }
        if *own != self.previous {
            // Another process of the agent, most likely because the one before has ended.
            let before = std::mem::replace(&mut self.present, own.to_owned());
            (self.previous, self.turns) = (before.clone(), 0);
            self.first = before;
            return;
        }
        std::mem::swap(&mut self.present, &mut self.previous);
        self.turns += 1;
        if self.turns >= TURNS {
            let second = if self.first == self.present { &self.previous } else { &self.present };
            self.refused.push(second.clone());
            let many = self.refused.len().saturating_sub(REFUSED);
            self.refused.drain(..many);
            self.turns = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(machine: &str, incarnation: &str) -> Introduction {
        Introduction { machine: machine.into(), incarnation: incarnation.into(), ..Introduction::default() }
    }

    #[test]
    fn the_first_machine_is_the_node_and_another_is_refused() {
        let mut seen = Seen::default();
        assert_eq!(seen.meet(&who("m1", "a")), None);
        assert_eq!(seen.meet(&who("m1", "b")), None);
        let why = seen.meet(&who("m2", "c")).unwrap();
        assert!(why.contains("the machine m1") && why.contains("--machine"), "{why}");
        assert_eq!(seen.meet(&who("", "d")), None, "an older agent does not say");
    }

    #[test]
    fn an_agent_that_is_started_again_and_again_is_one() {
        let mut seen = Seen::default();
        for incarnation in ["a", "a", "b", "b", "c", "d"] {
            assert_eq!(seen.meet(&who("m1", incarnation)), None);
        }
        // The one before is heard of once more, late.
        assert_eq!(seen.meet(&who("m1", "c")), None);
        assert_eq!(seen.meet(&who("m1", "d")), None);
        assert_eq!(seen.meet(&who("m1", "e")), None);
        assert_eq!(seen.refused, Vec::<String>::new());
    }

    #[test]
    fn of_two_that_drive_each_other_out_the_second_is_refused() {
        let mut seen = Seen::default();
        let mut refused = Vec::new();
        for incarnation in ["one", "two"].repeat(5) {
            if seen.meet(&who("m1", incarnation)).is_some() {
                refused.push(incarnation);
            }
        }
        assert_eq!(refused, ["two", "two"]);
    }

    #[test]
    fn a_database_that_was_put_back_is_seen_by_its_numbers() {
        let node = |db_epoch, cursor| Introduction { db_epoch, cursor, ..Introduction::default() };
        assert_eq!(older_database(&node(1, 40), 1, 40), None);
        assert_eq!(older_database(&node(0, 0), 1, 0), None);
        assert_eq!(
            older_database(&node(1, 97), 2, 40),
            None,
            "it was raised: the cursor is of another epoch"
        );
        assert!(older_database(&node(1, 97), 1, 40).unwrap().contains("up to 97"));
        assert!(older_database(&node(3, 0), 2, 40).unwrap().contains("of 3"));
    }
}
