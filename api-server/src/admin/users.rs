//! The first administrator.

use anyhow::bail;
use serde_json::json;

use super::{Desk, User, said};
use crate::kernel::Stored;
use crate::kernel::{Clash, Error};
use crate::store::NewObject;

pub(super) async fn user(desk: &Desk, verb: User) -> anyhow::Result<String> {
    let User::Bootstrap { username, authenticator } = verb;
    let mut found = desk.store.users_called(&username).await?;
    if let Some(wanted) = &authenticator {
        found.retain(|user| user.spec["authenticator"] == json!(wanted));
    }
    let mut lines = Vec::new();
    let user = match (found.as_slice(), authenticator) {
        ([user], _) => user.clone(),
        ([], Some(authenticator)) => {
            lines.push(format!("{username} is awaited: whoever `{authenticator}` knows by this name"));
            awaited(desk, &username, &authenticator).await?
        }
        ([], None) => bail!(
            "nobody called `{username}` has logged in yet: let them log in first, or say `--authenticator NAME` of the one \
             that knows them"
        ),
        (several, _) => {
            let known = |user: &Stored| user.spec["authenticator"].as_str().unwrap_or_default().to_owned();
            let all: Vec<String> = several.iter().map(known).collect();
            bail!("there are several called `{username}`: say `--authenticator`, one of {}", all.join(", "))
        }
    };
    let (right, kind) = (desk.caller.may("create", "binding", "")?, desk.store.registry().get("binding")?);
    let spec = json!({ "subjects": { "user": { "user": user.core.id } }, "role": "operator" });
    let mut name = format!("operator-{}", user.core.name);
    name.truncate(63);
    let body = NewObject { name: Some(name.clone()), spec, ..NewObject::default() };
    match desk.store.create(&right, kind, body, &desk.asked).await {
        Ok(made) => lines.push(format!(
            "{username} ({}) may do everything: binding {name} ({})",
            user.core.id, made.object.core.id
        )),
        Err(Error::Clash(Clash::NameTaken(_))) => {
            lines.push(format!("{username} may do everything already: binding {name}"))
        }
        Err(error) => return Err(said(error, "the binding")),
    }
    Ok(lines.join("\n"))
}

/// A user who has never been here.
async fn awaited(desk: &Desk, username: &str, authenticator: &str) -> anyhow::Result<Stored> {
    let (right, kind) = (desk.caller.may("create", "user", "")?, desk.store.registry().get("user")?);
    let body = NewObject {
        spec: json!({ "username": username, "authenticator": authenticator }),
        ..NewObject::default()
    };
    let made = desk.store.create(&right, kind, body, &desk.asked).await;
    Ok(made.map_err(|error| said(error, "the user"))?.object)
}
