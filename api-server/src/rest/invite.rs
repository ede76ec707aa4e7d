//! How a machine comes to be a node, and how it ceases to be one: `POST /v1/nodes/{id}/actions/invite`, a join token
//! for its agent, shown once; `.../revoke`, after which nothing of it is accepted any more.

use axum::Json;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use serde_json::{Value, json};

use super::extract::Ask;
use super::problem::{Answer, Problem};
use crate::kernel::{Clash, Error, Kind, Right, Stored, join};
use crate::store::NodeInvite;

/// Makes the token; the store keeps its hash only.
pub async fn invite(mut ask: Ask, kind: &'static dyn Kind) -> Answer {
    let why = "a token is a secret that is shown once and kept nowhere; invite again instead";
    let (right, node) = meant(&mut ask, kind, "invite", why).await?;
    let env = ask.ctx.store.env();
    let token = join::invite(env, &(ask.ctx.joining.root_sha256)());
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

/// Takes from it all with which it could call or come back.
pub async fn revoke(mut ask: Ask, kind: &'static dyn Kind) -> Answer {
    let why = "to revoke twice is the same as once";
    let (right, node) = meant(&mut ask, kind, "revoke", why).await?;
    let taken = ask.ctx.store.revoke_certificates(&right, &node.core.id, ask.asked()).await?;
    let name = &node.core.name;
    let body = json!({
        "node": node.core.id, "name": name, "certificates": taken.serials.len(), "invitations": taken.invitations,
        "way_back": format!(
            "`rhyzome node invite {name}` prints a line; run it on the node's machine with `identity/` in its agent's folder empty"
        ),
    });
    Ok(Json(body).into_response())
}

/// The node, for somebody who may do this with it.
async fn meant(
    ask: &mut Ask,
    kind: &'static dyn Kind,
    verb: &str,
    no_key: &str,
) -> Result<(Right, Stored), Problem> {
    let right = ask.right(verb, kind.meta().kind)?;
    ask.no_query()?;
    ask.no_key(no_key)?;
    let body = ask.json(true).await?;
    if let Some(strange) = body.as_object().and_then(|map| map.keys().next()) {
        return Err(Error::field(strange, "there is no such field").into());
    }
    let node = ask.ctx.store.get(&right, kind, ask.id()?).await?;
    if node.core.deleted_at.is_some() {
        return Err(Error::from(Clash::WrongState("it is being deleted".into())).into());
    }
    Ok((right, node))
}

/// Schema of an invitation.
pub fn invitation_schema() -> Value {
    let text = |about: &str| json!({ "type": "string", "description": about });
    let time = json!({ "type": "string", "format": "date-time" });
    json!({
        "type": "object",
        "required": ["node", "name", "token", "expires_at", "server", "command"],
        "properties": {
            "node": text("Id of the node."), "name": text("Name of the node."),
            "token": text("Single use. Not shown again."), "expires_at": time,
            "server": text("Where the agent dials in."), "command": text("Ready to run on the machine."),
        },
    })
}

/// Schema of what a revocation has taken.
pub fn revocation_schema() -> Value {
    let text = |about: &str| json!({ "type": "string", "description": about });
    let count =
        |about: &str| json!({ "type": "integer", "format": "int64", "minimum": 0, "description": about });
    json!({
        "type": "object",
        "required": ["node", "name", "certificates", "invitations", "way_back"],
        "properties": {
            "node": text("Id of the node."), "name": text("Name of the node."),
            "certificates": count("How many were good until now."),
            "invitations": count("How many nobody had used."),
            "way_back": text("What to do for it to be a node again."),
        },
    })
}
