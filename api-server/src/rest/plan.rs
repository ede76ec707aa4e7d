//! The answer to `?plan=true`: what would happen.

use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::extract::Ask;
use super::problem::Problem;
use super::schemas::reference;
use super::shape::shown;
use super::write::{How, Manner};
use crate::kernel::place::counts;
use crate::store::{Did, Job, Placement, Planned};

/// A plan is no object: it says so itself.
pub const MEDIA: &str = "application/vnd.rhyzome.plan+json";

/// The whole answer.
pub fn answer(ask: &Ask, manner: &Manner, planned: Planned) -> Response {
    respond(&body(ask, manner, planned))
}

/// The plan of a request whose body is refused already. Other problems stay what they are.
pub fn refused(ask: &Ask, problem: Problem) -> Result<Response, Problem> {
    if !ask.plan()? || !matches!(problem.status().as_u16(), 409 | 412 | 422) {
        return Err(problem);
    }
    let mut body = empty();
    told(&mut body, ask, problem);
    Ok(respond(&body))
}

/// What would happen, as JSON.
pub fn body(ask: &Ask, manner: &Manner, planned: Planned) -> Value {
    let mut body = empty();
    if let Some(placement) = &planned.placement {
        body["placement"] = place(placement, ask.caller().operator);
    }
    body["needs_stop"] = json!(planned.needs_stop);
    for change in &planned.quota {
        let figures = json!({ "before": change.before, "after": change.after, "limit": change.limit });
        body["quota"][&change.quantity] = figures;
    }
    body["steps"] = planned.jobs.iter().flat_map(steps).collect();
    match (planned.did, planned.refused) {
        (_, Some(error)) => told(&mut body, ask, error.into()),
        (Some(Did::Object(written)), None) => {
            body["status"] = json!(manner.status(&written).as_u16());
            let mut object = shown(manner.kind, &written.object, ask.caller());
            // What the real one will be called nobody knows yet.
            object["job"] = Value::Null;
            if manner.how == How::Make {
                object["id"] = Value::Null;
            }
            body["object"] = object;
        }
        _ => {}
    }
    body
}

fn empty() -> Value {
    json!({
        "status": null, "problem": null, "object": null, "steps": [], "placement": null, "needs_stop": [],
        "quota": {},
    })
}

fn respond(body: &Value) -> Response {
    (StatusCode::OK, [(CONTENT_TYPE, MEDIA)], body.to_string()).into_response()
}

fn told(body: &mut Value, ask: &Ask, problem: Problem) {
    let problem = problem.seen_by(ask.caller().operator);
    body["status"] = json!(problem.status().as_u16());
    body["problem"] = problem.body(&ask.asked().request_id);
}

fn steps(job: &Job) -> impl Iterator<Item = Value> {
    let (verb, kind, name) = (job.verb.clone(), job.kind.clone(), job.resource_name.clone());
    let steps: Vec<Value> = job.steps.iter().map(|step| step.what.clone()).collect();
    steps.into_iter().map(move |what| json!({ "verb": verb, "kind": kind, "name": name, "what": what }))
}

fn place(placement: &Placement, operator: bool) -> Value {
    let mut place = json!({ "found": placement.node.is_some(), "reasons": counts(&placement.why_not) });
    if operator {
        place["node"] = json!(placement.node.as_ref().map(|id| json!({ "id": id, "name": placement.name })));
        place["why_not"] = json!(placement.why_not);
    }
    place
}

/// Its schema.
pub fn schema() -> Value {
    let text = json!({ "type": "string" });
    let any = json!({ "type": "object", "additionalProperties": true });
    let step = json!({
        "type": "object", "required": ["verb", "kind", "name", "what"],
        "properties": { "verb": text, "kind": text, "name": text, "what": any },
    });
    let why_not = json!({
        "type": "object", "required": ["node", "reasons"],
        "properties": { "node": text, "reasons": { "type": "array", "items": text } },
    });
    let placement = json!({
        "type": ["object", "null"],
        "description": "How a place was looked for; null when nothing is to be placed.",
        "required": ["found", "reasons"],
        "properties": {
            "found": { "type": "boolean" },
            "reasons": {
                "type": "object", "additionalProperties": { "type": "integer", "format": "int64" },
                "description": "How many nodes say each reason against themselves.",
            },
            "node": { "type": ["object", "null"], "additionalProperties": text, "description": "For operators: id and name of the node." },
            "why_not": { "type": "array", "items": why_not, "description": "For operators: why not the others, with figures." },
        },
    });
    let number = json!({ "type": "integer", "format": "int64", "minimum": 0 });
    let perhaps = json!({ "type": ["integer", "null"], "format": "int64", "minimum": 0 });
    let figures = json!({
        "type": "object", "required": ["before", "after", "limit"],
        "properties": { "before": number, "after": number, "limit": perhaps },
    });
    let problem = json!({ "oneOf": [{ "type": "null" }, reference("Problem")] });
    json!({
        "type": "object",
        "description": "What a write would do; nothing was done.",
        "required": ["status", "problem", "object", "steps", "placement", "needs_stop", "quota"],
        "properties": {
            "status": { "type": ["integer", "null"], "format": "int32", "description": "The status that the call would be answered with." },
            "problem": problem,
            "object": { "type": ["object", "null"], "additionalProperties": true, "description": "The object as it would be. What is drawn by lot (id, addresses) will be another then." },
            "steps": { "type": "array", "items": step, "description": "What the jobs would do, in their order." },
            "placement": placement,
            "quota": {
                "type": "object", "additionalProperties": figures,
                "description": "What the tenant uses now and would use, of each quantity that changes; limit null: there is none.",
            },
            "needs_stop": { "type": "array", "items": text, "description": "Fields whose change waits for the next stop." },
        },
    })
}
