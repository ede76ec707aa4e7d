//! What nodes find on themselves, and what operators decide on it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::adopt::{self, AdoptAs};
use super::create::Maker;
use super::db::{Conn, values};
use super::nodes::KIND;
use super::tx::{Tx, list};
use super::{Asked, Bell, Context, Store, history, objects};
use crate::kernel::{Clash, Error, Right, Stored, Timestamp};

/// At most so many of what was put right are kept.
const REPAIRED: usize = 100;

/// What a node found: lists of guests and differences, as the API shows them but for `record`, of which records are made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Findings {
    /// Each with `id` and `state`; an orphan's `record` is an encoded `rhyzome.v1.Orphan` in hex.
    pub guests: Vec<Value>,
    /// Each with `id`, `object`, `what`, `since`, `repaired_at`, `actions`.
    pub differences: Vec<Value>,
}

/// What an operator has decided on a difference.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// `repair`, `ignore`, `adopt`, `forget`.
    pub verb: String,
    /// What there was to decide on.
    pub subject: Value,
    /// Who decided.
    pub actor: String,
    /// When.
    pub decided_at: Timestamp,
}

/// All that is known of what a node found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// As the node said last.
    pub findings: Findings,
    /// By difference.
    pub decisions: BTreeMap<String, Decision>,
}

/// What came of a decision.
#[derive(Clone, Debug)]
pub struct Decided {
    /// The difference, with the decision.
    pub difference: Value,
    /// The record that was made of an orphan.
    pub adopted: Option<Box<Stored>>,
}

impl Store {
    /// Keeps what a node found. `false`: it is what was known, and nothing was written.
    pub async fn record_findings(&self, node: &str, said: Findings) -> Result<bool, Error> {
        let before = stored(&mut self.read().await?, node).await?.unwrap_or_default();
        if merged(&before, said.clone()) == before {
            return Ok(false);
        }
        self.write((node.to_owned(), said), |tx, context, (node, said)| {
            Box::pin(async move {
                let before = stored(tx, &node).await?.unwrap_or_default();
                let now = merged(&before, said);
                let sql = "INSERT INTO node_finding (node, guests, differences, said_at) VALUES ($1, $2, $3, $4) \
                           ON CONFLICT (node) DO UPDATE SET guests = excluded.guests, \
                           differences = excluded.differences, said_at = excluded.said_at";
                let (guests, differences) = (objects::text(&now.guests), objects::text(&now.differences));
                tx.run(sql, values![&node, guests, differences, context.env.now()]).await?;
                settle(tx, &node, &now).await?;
                Ok(true)
            })
        })
        .await
    }

    /// What a node found, and what was decided on it.
    pub async fn node_found(&self, right: &Right, id: &str) -> Result<Found, Error> {
        let mut conn = self.read().await?;
        let node = objects::find(&mut conn, right, self.registry().get(KIND)?, id).await?;
        let findings = stored(&mut conn, &node.core.id).await?.unwrap_or_default();
        Ok(Found { findings, decisions: decisions(&mut conn, &node.core.id).await? })
    }

    /// Decides on a difference that stands.
    pub async fn decide(
        &self,
        right: &Right,
        id: &str,
        difference: &str,
        verb: &str,
        wanted: AdoptAs,
        asked: &Asked,
    ) -> Result<Decided, Error> {
        let taken = (right.clone(), [id, difference, verb].map(str::to_owned), wanted, asked.clone());
        self.write(taken, |tx, context, (right, [id, difference, verb], wanted, asked)| {
            Box::pin(async move {
                let maker = Maker::of(&right, &asked);
                let node = objects::find_for_write(tx, &right, context.registry.get(KIND)?, &id).await?;
                decide(tx, &context, &maker, &node, (&difference, &verb), wanted).await
            })
        })
        .await
    }
}

async fn decide(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    node: &Stored,
    (difference, verb): (&str, &str),
    wanted: AdoptAs,
) -> Result<Decided, Error> {
    let found = stored(tx, &node.core.id).await?.unwrap_or_default();
    let before = decisions(tx, &node.core.id).await?.remove(difference);
    let stands = found.differences.into_iter().find(|one| one["id"] == difference);
    // What was adopted may have gone since: it can be forgotten all the same.
    let Some(stands) = stands.or_else(|| before.as_ref().map(|before| before.subject.clone())) else {
        return Err(Error::NotFound);
    };
    let decided = |verb: Option<&str>| match verb {
        None => shown(&stands, None),
        Some(verb) => {
            let (actor, decided_at) = (maker.caller.name.clone(), context.env.now());
            shown(&stands, Some(&Decision { verb: verb.to_owned(), subject: Value::Null, actor, decided_at }))
        }
    };
    history::noted(tx, context, maker, node, verb);
    tx.ring(Bell::Node(node.core.id.clone()));
    if verb == "forget" && before.is_some_and(|before| before.verb != "forget") {
        let sql = "DELETE FROM node_decision WHERE node = $1 AND difference = $2";
        tx.run(sql, values![&node.core.id, difference]).await?;
        return Ok(Decided { difference: decided(None), adopted: None });
    }
    let possible: Vec<&str> =
        stands["actions"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if !possible.contains(&verb) {
        let may = if possible.is_empty() { "nothing".to_owned() } else { possible.join(", ") };
        let (what, verb) = (stands["what"].as_str().unwrap_or_default(), verb);
        return Err(Clash::WrongState(format!("`{verb}` is not possible for {what}; possible: {may}")).into());
    }
    let guest = found.guests.into_iter().find(|guest| guest["id"] == stands["object"]);
    if verb == "adopt" && stands["what"] == "guest.orphan" {
        let guest = guest.unwrap_or_default();
        let adopted = orphan(context, &guest)?;
        let written = adopt::adopt(tx, context, maker, &node.core.id, adopted, wanted).await?;
        return Ok(Decided { difference: decided(Some(verb)), adopted: Some(Box::new(written.object)) });
    }
    let mut subject = stands.clone();
    subject["guest"] = guest.map_or(Value::Null, without_record);
    let sql = "INSERT INTO node_decision (node, difference, verb, subject, actor, decided_at) \
               VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (node, difference) DO UPDATE SET verb = excluded.verb, \
               subject = excluded.subject, actor = excluded.actor, decided_at = excluded.decided_at";
    let row = values![&node.core.id, difference, verb, &subject, &maker.caller.name, context.env.now()];
    tx.run(sql, row).await?;
    Ok(Decided { difference: decided(Some(verb)), adopted: None })
}

fn orphan(context: &Context, guest: &Value) -> Result<crate::kernel::adopt::Adopted, Error> {
    let text = |key: &str| guest[key].as_str().unwrap_or_default();
    let bytes = unhex(text("record")).ok_or_else(|| {
        Error::from(Clash::WrongState("its node says nothing that a record could be made of".to_owned()))
    })?;
    let adopted = context.registry.get("instance")?.adopted(text("id"), &bytes);
    adopted.map_err(|why| Clash::WrongState(format!("no record can be made of it: {why}")).into())
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if text.is_empty() || !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

// === rows ===

async fn stored(conn: &mut Conn, node: &str) -> Result<Option<Findings>, Error> {
    let sql = "SELECT guests, differences FROM node_finding WHERE node = $1";
    let Some(row) = conn.row(sql, values![node]).await? else { return Ok(None) };
    Ok(Some(Findings { guests: row.json("guests")?, differences: row.json("differences")? }))
}

/// By node, of those of which there are any: the decisions that they carry out, by difference.
pub(super) async fn carried_out(
    conn: &mut Conn,
    nodes: &[String],
) -> Result<BTreeMap<String, Vec<(String, String)>>, Error> {
    let (list, values) = list(nodes);
    let sql = format!(
        "SELECT node, difference, verb FROM node_decision WHERE node IN {list} AND verb IN ('repair', 'forget') \
         ORDER BY node, difference"
    );
    let mut all: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for row in conn.rows(&sql, &values).await? {
        all.entry(row.text("node")?).or_default().push((row.text("difference")?, row.text("verb")?));
    }
    Ok(all)
}

async fn decisions(conn: &mut Conn, node: &str) -> Result<BTreeMap<String, Decision>, Error> {
    let sql = "SELECT difference, verb, subject, actor, decided_at FROM node_decision WHERE node = $1 \
               ORDER BY difference";
    let mut all = BTreeMap::new();
    for row in conn.rows(sql, values![node]).await? {
        let decision = Decision {
            verb: row.text("verb")?,
            subject: row.json("subject")?,
            actor: row.text("actor")?,
            decided_at: row.time("decided_at")?,
        };
        all.insert(row.text("difference")?, decision);
    }
    Ok(all)
}

/// A repair that was asked for is done with when the difference is gone; so is what was decided on a guest of ours.
/// What was ignored stays ignored, and an adopted foreign guest stays a record.
async fn settle(tx: &mut Tx, node: &str, now: &Findings) -> Result<(), Error> {
    for (difference, decision) in decisions(tx, node).await? {
        let stands =
            now.differences.iter().any(|one| one["id"] == difference && one["repaired_at"].is_null());
        let passes = matches!(decision.verb.as_str(), "repair" | "forget");
        if passes && !stands {
            let sql = "DELETE FROM node_decision WHERE node = $1 AND difference = $2";
            tx.run(sql, values![node, &difference]).await?;
        }
    }
    Ok(())
}

// === pure ===

/// What is known after a node has said this: a restart of its agent makes nothing younger, and nothing that was put
/// right forgotten.
fn merged(before: &Findings, said: Findings) -> Findings {
    let Findings { guests, mut differences } = said;
    let known: BTreeMap<&str, &Value> =
        before.differences.iter().filter_map(|one| Some((one["id"].as_str()?, one))).collect();
    for one in &mut differences {
        let Some(known) = one["id"].as_str().and_then(|id| known.get(id)) else { continue };
        let older = known["since"].as_str() < one["since"].as_str() && known["repaired_at"].is_null();
        if older && one["repaired_at"].is_null() {
            one["since"] = known["since"].clone();
        }
    }
    let told = |id: &Value| differences.iter().any(|one| one["id"] == *id);
    let mut past: Vec<Value> = before
        .differences
        .iter()
        .filter(|one| !one["repaired_at"].is_null() && !told(&one["id"]))
        .cloned()
        .collect();
    past.sort_by(|one, other| other["repaired_at"].as_str().cmp(&one["repaired_at"].as_str()));
    past.truncate(REPAIRED);
    differences.extend(past);
    differences.sort_by(|one, other| one["id"].as_str().cmp(&other["id"].as_str()));
    Findings { guests, differences }
}

fn shown(difference: &Value, decision: Option<&Decision>) -> Value {
    let mut shown = difference.clone();
    if let Some(map) = shown.as_object_mut() {
        map.remove("guest");
    }
    shown["decision"] = decision.map_or(
        Value::Null,
        |decision| json!({"verb": decision.verb, "by": decision.actor, "at": decision.decided_at}),
    );
    shown
}

fn without_record(mut guest: Value) -> Value {
    if let Some(map) = guest.as_object_mut() {
        map.remove("record");
    }
    guest
}

impl Found {
    /// Differences as the API shows them: each with what was decided on it.
    pub fn drift(&self) -> Vec<Value> {
        let decision = |one: &Value| one["id"].as_str().and_then(|id| self.decisions.get(id));
        self.findings.differences.iter().map(|one| shown(one, decision(one))).collect()
    }

    /// Guests as the API shows them; an adopted one that runs no more is among them as `gone`.
    pub fn guests(&self) -> Vec<Value> {
        let adopted: Vec<&Decision> = self.decisions.values().filter(|it| it.verb == "adopt").collect();
        let of = |id: &Value| adopted.iter().find(|it| it.subject["guest"]["id"] == *id);
        let mark = |decision: &Decision| json!({"by": decision.actor, "at": decision.decided_at});
        let mut all: Vec<Value> = self.findings.guests.iter().cloned().map(without_record).collect();
        for guest in &mut all {
            guest["adopted"] = of(&guest["id"]).map_or(Value::Null, |decision| mark(decision));
        }
        for decision in adopted {
            let mut guest = decision.subject["guest"].clone();
            if guest.is_object() && all.iter().all(|here| here["id"] != guest["id"]) {
                (guest["state"], guest["pid"], guest["adopted"]) = (json!("gone"), json!(0), mark(decision));
                all.push(guest);
            }
        }
        all.sort_by(|one, other| one["id"].as_str().cmp(&other["id"].as_str()));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(id: &str, since: &str, repaired_at: Value) -> Value {
        json!({"id": id, "since": since, "repaired_at": repaired_at})
    }

    #[test]
    fn nothing_grows_younger_and_what_was_put_right_is_remembered() {
        let before = Findings {
            guests: vec![],
            differences: vec![
                one("a", "2026-01-01", Value::Null),
                one("b", "2026-01-01", json!("2026-01-02")),
            ],
        };
        let said = Findings { guests: vec![], differences: vec![one("a", "2026-02-01", Value::Null)] };
        let now = merged(&before, said);
        assert_eq!(now, before);
        assert_eq!(merged(&now, Findings::default()).differences, before.differences[1..]);
        let again = Findings { guests: vec![], differences: vec![one("b", "2026-03-01", Value::Null)] };
        assert_eq!(merged(&before, again.clone()), again);
    }

    #[test]
    fn an_adopted_guest_that_is_gone_stays_a_record() {
        let subject = json!({"id": "diff-1", "guest": {"id": "guest-1", "name": "mail", "pid": 7}});
        let decision =
            Decision { verb: "adopt".into(), subject, actor: "me".into(), decided_at: Timestamp(0) };
        let decisions = BTreeMap::from([("diff-1".to_owned(), decision)]);
        let mut found = Found { findings: Findings::default(), decisions };
        let gone = found.guests();
        assert_eq!(
            (&gone[0]["state"], &gone[0]["pid"], &gone[0]["name"]),
            (&json!("gone"), &json!(0), &json!("mail"))
        );
        found.findings.guests = vec![json!({"id": "guest-1", "state": "foreign", "pid": 9, "record": "00"})];
        let here = found.guests();
        assert_eq!(
            (here.len(), &here[0]["state"], &here[0]["adopted"]["by"]),
            (1, &json!("foreign"), &json!("me"))
        );
        assert_eq!(here[0].get("record"), None);
    }

    #[test]
    fn hex_is_read_or_refused() {
        assert_eq!(unhex("00ff"), Some(vec![0, 255]));
        assert_eq!((unhex(""), unhex("0"), unhex("zz")), (None, None, None));
    }
}
