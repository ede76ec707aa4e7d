//! `POST /v1/nodes/{id}/actions/invite`: a join token for a node's agent, shown once.

use axum::Json;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use serde_json::json;

use super::extract::Ask;
use super::problem::Answer;
use crate::kernel::{Clash, Error, Kind, join};
use crate::store::NodeInvite;

/// Makes the token; the store keeps its hash only.
pub async fn invite(mut ask: Ask, kind: &'static dyn Kind) -> Answer {
    let right = ask.right("invite", kind.meta().kind)?;
    ask.no_query()?;
    ask.no_key("a token is a secret that is shown once and kept nowhere; invite again instead")?;
    let body = ask.json(true).await?;
    if let Some(strange) = body.as_object().and_then(|map| map.keys().next()) {
        return Err(Error::field(strange, "there is no such field").into());
    }
    let node = ask.ctx.store.get(&right, kind, ask.id()?).await?;
    if node.core.deleted_at.is_some() {
        return Err(Error::from(Clash::WrongState("it is being deleted".into())).into());
    }
    let env = ask.ctx.store.env();
    let token = join::invite(env, &ask.ctx.joining.root_sha256);
    let expires_at = env.now().plus_seconds(ask.ctx.limits.invite_seconds);
    let kept = NodeInvite { hash: token.hash, expires_at };
    ask.ctx.store.invite_node(&right, &node.core.id, kept, ask.asked()).await?;
    let command = format!(
        "rhyzome-agent join --server {} --name {} --token {}",
        ask.ctx.joining.server, node.core.name, token.line
    );
    let body = json!({
        "node": node.core.id, "name": node.core.name, "token": token.line,
        "expires_at": expires_at, "server": ask.ctx.joining.server, "command": command,
    });
    Ok((StatusCode::CREATED, Json(body)).into_response())
}
