//! What nodes have beside what all kinds have: an invitation, what runs on them, where they are not as ordered, and which
//! machine they are.

use axum::Json;
use axum::http::{Method, StatusCode};
use axum::response::IntoResponse;
use serde_json::{Map, Value, json};

use super::extract::Ask;
use super::invite;
use super::mount::{Mount, Place};
use super::problem::{Answer, Problem};
use super::schemas::reference;
use super::shape::answer;
use crate::kernel::{Error, FieldError, Kind};
use crate::store::AdoptAs;

/// What may be decided on a difference, and what each means.
const DECISIONS: [(&str, &str); 4] = [
    (
        "adopt",
        "Make a record of a guest that nobody here ordered. An orphan (this agent started it) becomes an instance, under \
         its own id; a foreign guest becomes a line among the node's guests, which stays when the guest is gone. The \
         guest itself is never touched.",
    ),
    (
        "repair",
        "Have the agent put it right: write its own files again, make a disk anew that is gone (without what was on it).",
    ),
    ("ignore", "Leave it as it is, and say that somebody knows of it."),
    (
        "forget",
        "Take back what was decided before; or, of an orphan, have the agent drop the orders of an older database: it \
         runs on, and is not brought back when it ends.",
    ),
];

impl Mount {
    /// The routes.
    pub(super) fn node(&mut self, kind: &'static dyn Kind, place: &Place) {
        let at = |rest: &str| format!("{}/{rest}", place.one());
        let op = place
            .op("invite", "A join token for this node's agent, shown once")
            .reasoned()
            .problems(&[409, 413, 415, 422])
            .answers(201, "The token, and the command to run on the machine.", invite::invitation_schema());
        self.route(Method::POST, &at("actions/invite"), op, move |ask| invite::invite(ask, kind));

        let op = place
            .op("revoke", "Accept nothing of this node any more, until it is invited and joins again")
            .about("Its session ends at once; its certificates, the way back in with one, and invitations that nobody has used are refused. Guests on it go on.")
            .reasoned()
            .problems(&[409, 413, 415, 422])
            .answers(200, "What was taken from it, and how it comes back.", invite::revocation_schema());
        self.route(Method::POST, &at("actions/revoke"), op, move |ask| invite::revoke(ask, kind));

        let op = place
            .op("guests", "All guests that run on a node, whoever started them")
            .about("As its agent said last: a change is said within seconds.")
            .answers(200, "All of them.", list_of("NodeGuest"));
        self.route(Method::GET, &at("guests"), op, move |ask| guests(ask, kind));
        let op = place
            .op("drift", "Where a node is not as it was ordered, and what was put right")
            .about("As its agent said last. What somebody changed by hand and can be put right safely is put right, and shown with `repaired_at`; all else waits for a decision.")
            .answers(200, "All of it.", list_of("NodeDifference"));
        self.route(Method::GET, &at("drift"), op, move |ask| drift(ask, kind));
        for (verb, about) in DECISIONS {
            let op = place
                .op(&format!("drift_{verb}"), format!("Decide on a difference: {verb}"))
                .about(about)
                .reasoned()
                .problems(&[409])
                .body(&["application/json"], false, decision_schema(verb), None)
                .answers(
                    200,
                    "The difference, with what was decided; of an adopted orphan its instance, too.",
                    reference("NodeDecision"),
                );
            let path = at(&format!("drift/{{difference}}/actions/{verb}"));
            self.route(Method::POST, &path, op, move |ask| decide(ask, kind, verb));
        }

        let machine = json!({ "type": "string", "minLength": 1, "maxLength": 64, "description": "As `status.refused.machine` shows it." });
        let body = json!({ "type": "object", "additionalProperties": false, "required": ["machine"], "properties": { "machine": machine } });
        let op = place
            .op("repair", "Say which machine is this node, after two have come with its identity")
            .about("Only records it: the agent of that machine is let in from now on, any other is refused. No guest is touched.")
            .reasoned()
            .problems(&[409])
            .body(&["application/json"], true, body, None)
            .answers_object(200, "The node.", place.schema());
        self.route(Method::POST, &at("actions/repair"), op, move |ask| settle(ask, kind, true));
        let op = place
            .op("forget", "Forget who was refused as this node")
            .about("The machine that is the node stays it. Agents that were refused as the second of two may come again: stop the wrong one first.")
            .reasoned()
            .problems(&[409])
            .body(&["application/json"], false, json!({ "type": "object", "additionalProperties": false }), None)
            .answers_object(200, "The node.", place.schema());
        self.route(Method::POST, &at("actions/forget"), op, move |ask| settle(ask, kind, false));
    }
}

async fn guests(ask: Ask, kind: &'static dyn Kind) -> Answer {
    let right = ask.right("get", kind.meta().kind)?;
    ask.no_query()?;
    let found = ask.ctx.store.node_found(&right, ask.id()?).await?;
    Ok(Json(json!({ "items": found.guests() })).into_response())
}

async fn drift(ask: Ask, kind: &'static dyn Kind) -> Answer {
    let right = ask.right("get", kind.meta().kind)?;
    ask.no_query()?;
    let found = ask.ctx.store.node_found(&right, ask.id()?).await?;
    Ok(Json(json!({ "items": found.drift() })).into_response())
}

async fn decide(mut ask: Ask, kind: &'static dyn Kind, verb: &'static str) -> Answer {
    let right = ask.right(verb, kind.meta().kind)?;
    ask.no_query()?;
    ask.no_key("to decide the same twice is to decide it once")?;
    let body = ask.json(true).await?;
    let fields: &[&str] = if verb == "adopt" { &["tenant", "name"] } else { &[] };
    let mut texts = texts(&body, fields)?;
    let mut text = |key: &str| texts.remove(key).unwrap_or_default();
    let wanted = AdoptAs { tenant: text("tenant"), name: text("name") };
    let (id, difference) = (ask.id()?, ask.param("difference")?);
    let decided = ask.ctx.store.decide(&right, id, difference, verb, wanted, ask.asked()).await?;
    let instance = decided.adopted.map(|object| json!({
        "id": object.core.id, "tenant": object.core.tenant, "name": object.core.name, "phase": object.core.phase,
    }));
    Ok((StatusCode::OK, Json(json!({ "difference": decided.difference, "instance": instance })))
        .into_response())
}

async fn settle(mut ask: Ask, kind: &'static dyn Kind, machine: bool) -> Answer {
    let right = ask.right(if machine { "repair" } else { "forget" }, kind.meta().kind)?;
    ask.no_query()?;
    ask.no_key("to decide the same twice is to decide it once")?;
    let body = ask.json(!machine).await?;
    let mut texts = texts(&body, if machine { &["machine"] } else { &[] })?;
    let named = texts.remove("machine").filter(|id| !id.is_empty());
    if machine && named.is_none() {
        let why = "say which machine is the node: `status.refused.machine` has the one that was refused";
        return Err(Error::field("machine", why).into());
    }
    ask.ctx.store.settle_machine(&right, ask.id()?, named, ask.asked()).await?;
    let node = ask.ctx.store.get(&right, kind, ask.id()?).await?;
    Ok(answer(StatusCode::OK, kind, &node, ask.caller()))
}

/// Texts of a body; every other field, and what is no text, is told.
fn texts(body: &Value, known: &[&str]) -> Result<std::collections::BTreeMap<String, String>, Problem> {
    let (mut texts, mut errors) = (std::collections::BTreeMap::new(), Vec::new());
    for (key, value) in body.as_object().into_iter().flat_map(Map::iter) {
        match value {
            _ if !known.contains(&key.as_str()) => {
                errors.push(FieldError::new(key, "there is no such field"))
            }
            Value::String(text) if text.len() <= 64 && !text.contains('\0') => {
                texts.insert(key.clone(), text.clone());
            }
            _ => errors.push(FieldError::new(key, "must be a text of at most 64 characters")),
        }
    }
    if errors.is_empty() { Ok(texts) } else { Err(Error::Invalid(errors).into()) }
}

// === schemas ===

fn list_of(name: &str) -> Value {
    let items = json!({ "type": "array", "items": reference(name) });
    json!({ "type": "object", "required": ["items"], "properties": { "items": items } })
}

fn decision_schema(verb: &str) -> Value {
    if verb != "adopt" {
        return json!({ "type": "object", "additionalProperties": false });
    }
    let text = |about: &str| json!({ "type": "string", "maxLength": 64, "description": about });
    json!({
        "type": "object", "additionalProperties": false,
        "properties": {
            "tenant": text("Whose an orphan is to be; needed where its node does not know."),
            "name": text("What it is to be called; else as it was."),
        },
    })
}

/// Schemas of what was found.
pub fn schemas() -> [(&'static str, Value); 3] {
    let text = |about: &str| json!({ "type": "string", "description": about });
    let number = |about: &str| json!({ "type": "integer", "format": "int64", "description": about });
    let time =
        |about: &str| json!({ "type": ["string", "null"], "format": "date-time", "description": about });
    let by = json!({ "by": text("Who."), "at": { "type": "string", "format": "date-time" } });
    let whole = |about: &str, properties: Value| {
        let required: Vec<String> = properties.as_object().into_iter().flat_map(Map::keys).cloned().collect();
        json!({ "type": "object", "description": about, "required": required, "properties": properties })
    };
    let states = ["known", "foreign", "orphan", "gone"];
    let guest = whole(
        "A guest on a node.",
        json!({
            "id": text("Of an instance, its own; else made from its command line."),
            "name": text("What its command line calls it."),
            "pid": number("Its process; 0: it does not run."),
            "vcpus": number("Virtual processors."), "memory_bytes": number("Memory."),
            "disks": { "type": "array", "items": { "type": "string" }, "description": "Paths on the node." },
            "since": time("Since when it runs."),
            "instance": { "type": ["string", "null"], "description": "Id of its instance; null: it is none of ours." },
            "state": { "type": "string", "x-extensible-enum": states, "description": "`known`; `orphan`: its agent has started it, and this database has not ordered it; `foreign`: somebody else has started it; `gone`: adopted, and not there any more." },
            "adopted": { "type": ["object", "null"], "properties": by.clone(), "description": "Who made a record of a foreign one." },
        }),
    );
    let decisions = ["adopt", "repair", "ignore", "forget"];
    let mut decided = by;
    decided["verb"] = json!({ "type": "string", "x-extensible-enum": decisions });
    let actions = json!({ "type": "string", "x-extensible-enum": decisions });
    let difference = whole(
        "Something that is not as it was ordered, or was put right.",
        json!({
            "id": text("Stays while it stands."), "object": text("Id of what it is about."),
            "what": text("`network.links`, `network.rules`, `network.leases`, `network.file`, `network.process`, `network.unknown`, `disk.missing`, `disk.size`, `disk.unknown`, `guest.file`, `guest.arguments`, `guest.orphan`, `guest.foreign`, `guest.stray`; there will be more."),
            "expected": text("What there should be."), "found": text("What is there."),
            "since": time("Since when it is known."), "repaired_at": time("When the agent put it right; null: it stands."),
            "actions": { "type": "array", "items": actions, "description": "What may be decided." },
            "decision": { "type": ["object", "null"], "properties": decided, "description": "What was decided." },
        }),
    );
    let text = json!({ "type": "string" });
    let instance = json!({
        "type": ["object", "null"], "description": "The instance that an orphan has become.",
        "properties": { "id": text, "tenant": text, "name": text, "phase": text },
    });
    let decision = whole(
        "What was decided.",
        json!({ "difference": reference("NodeDifference"), "instance": instance }),
    );
    [("NodeGuest", guest), ("NodeDifference", difference), ("NodeDecision", decision)]
}
