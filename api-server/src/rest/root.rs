//! `/v1`, `/v1/whoami`, `/healthz`: where one is, who one is, and whether anybody is home.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use serde_json::{Value, json};

use super::RestContext;
use super::extract::{Ask, path_of};
use super::problem::Answer;
use super::share::Open;
use crate::kernel::{Caller, Scope};
use crate::store::JobQuery;

/// `GET /v1`: what there is.
pub async fn root(ask: Ask) -> Answer {
    ask.no_query()?;
    let kinds: Vec<Value> = ask
        .ctx
        .store
        .registry()
        .all()
        .iter()
        .map(|kind| {
            let meta = kind.meta();
            let mut paths = vec![path_of(meta, "{tenant}")];
            if meta.scope != Scope::Operator {
                paths.push(format!("/v1/{}", meta.plural));
            }
            let actions: Vec<&str> = meta.actions.iter().map(|action| action.verb).collect();
            json!({ "kind": meta.kind, "plural": meta.plural, "about": meta.about, "paths": paths, "actions": actions })
        })
        .collect();
    let body = json!({
        "kinds": kinds,
        "links": {
            "document": "/openapi.json", "docs": "/docs/", "whoami": "/v1/whoami", "health": "/healthz",
            "jobs": ["/v1/tenants/{tenant}/jobs", "/v1/jobs"],
            "events": ["/v1/tenants/{tenant}/events", "/v1/events"],
            "audit": ["/v1/tenants/{tenant}/audit", "/v1/audit"],
        },
    });
    Ok(Json(body).into_response())
}

/// `GET /healthz`: 200 when the database answers.
pub async fn health(_: Open, State(ctx): State<Arc<RestContext>>) -> Answer {
    let right = Caller::system().may_everywhere("list", "job")?;
    ctx.store.jobs(&right, &JobQuery { limit: 1, ..JobQuery::default() }).await?;
    Ok(Json(json!({ "status": "ok" })).into_response())
}
