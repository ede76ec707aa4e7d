//! `GET /v1/tenants/{tenant}/quota`: what a tenant uses, and what it may use.

use axum::Json;
use axum::response::IntoResponse;
use serde_json::{Map, Value, json};

use super::extract::Ask;
use super::problem::Answer;
use super::schemas::reference;

/// Used and limit of every quantity.
pub async fn quota(ask: Ask) -> Answer {
    let right = ask.right("get", "quota")?;
    ask.no_query()?;
    let all = ask.ctx.store.quota(&right, ask.tenant()).await?;
    let entry =
        |usage: &crate::store::Usage| json!({ "used": usage.used, "limit": usage.limit, "own": usage.own });
    let quota: Map<String, Value> =
        all.iter().map(|(quantity, usage)| (quantity.clone(), entry(usage))).collect();
    Ok(Json(json!({ "tenant": ask.tenant(), "quota": quota })).into_response())
}

/// Schemas of the answer.
pub fn schemas() -> [(&'static str, Value); 2] {
    let usage = json!({
        "type": "object", "required": ["used", "limit", "own"],
        "properties": {
            "used": { "type": "integer", "format": "int64", "minimum": 0 },
            "limit": { "type": ["integer", "null"], "format": "int64", "minimum": 0, "description": "Null: there is none." },
            "own": { "type": "boolean", "description": "True: the limit is the tenant's own (`spec.quota`), not the default." },
        },
    });
    let quota = json!({
        "type": "object", "required": ["tenant", "quota"],
        "properties": {
            "tenant": { "type": "string" },
            "quota": {
                "type": "object", "additionalProperties": reference("QuotaUsage"),
                "description": "By quantity: `vcpus`, `memory_bytes`, `disk_bytes`, `addresses`, and the number of objects of each kind.",
            },
        },
    });
    [("QuotaUsage", usage), ("Quota", quota)]
}
