//! Verbs of tenants, nodes, quotas and the token: the same writes as those of the REST API.

use std::sync::Arc;

use anyhow::{Context as _, bail};
use serde_json::{Map, Value, json};

use super::{Desk, Node, Pki, Quota, Tenant, TenantFields, said};
use crate::app;
use crate::auth::OperatorToken;
use crate::authority;
use crate::config::Config;
use crate::kernel::{Error, Kind, Right, Stored, join};
use crate::rest::RestLimits;
use crate::store::{ListQuery, NewObject, NodeInvite, Written};

/// How many objects are read at once.
const PAGE: i64 = 1000;

pub(super) async fn tenant(desk: &Desk, verb: Tenant) -> anyhow::Result<String> {
    match verb {
        Tenant::Create { name, set } => {
            let (right, kind) = desk.may("create", "tenant")?;
            let body = NewObject {
                name: Some(name.clone()),
                tags: set.tags()?.into_iter().filter_map(|(key, value)| Some((key, value?))).collect(),
                protected: set.protected.unwrap_or_default(),
                spec: set.spec(),
                ..NewObject::default()
            };
            let made = desk.store.create(&right, kind, body, &desk.asked).await;
            Ok(written(made.map_err(|e| said(e, &format!("tenant `{name}`")))?, "made"))
        }
        Tenant::Update { name, set } => {
            let mut patch = json!({ "spec": set.spec() });
            let tags = set.tags()?.into_iter().map(|(key, value)| (key, json!(value))).collect::<Map<_, _>>();
            if !tags.is_empty() {
                patch["tags"] = Value::Object(tags);
            }
            if let Some(protected) = set.protected {
                patch["protected"] = json!(protected);
            }
            desk.patch("tenant", &name, patch).await
        }
        Tenant::Delete { name } => desk.remove("tenant", &name).await,
        Tenant::List => {
            let all = desk.all("tenant").await?;
            let row = |tenant: &Stored| {
                let about = tenant.spec["description"].as_str().unwrap_or_default();
                vec![tenant.core.name.clone(), tenant.core.id.clone(), about.to_owned()]
            };
            Ok(columns(&["NAME", "ID", "DESCRIPTION"], all.iter().map(row).collect()))
        }
    }
}

pub(super) async fn node(desk: &Desk, config: &Config, verb: Node) -> anyhow::Result<String> {
    match verb {
        Node::List => {
            let all = desk.all("node").await?;
            let row = |node: &Stored| {
                let cordoned = if node.spec["cordoned"] == json!(true) { "yes" } else { "no" };
                let core = &node.core;
                vec![core.name.clone(), core.id.clone(), core.phase.clone(), cordoned.to_owned()]
            };
            Ok(columns(&["NAME", "ID", "PHASE", "CORDONED"], all.iter().map(row).collect()))
        }
        Node::Cordon { name, undo } => {
            desk.patch("node", &name, json!({ "spec": { "cordoned": !undo } })).await
        }
        Node::Delete { name } => desk.remove("node", &name).await,
        Node::Invite { name } => invite(desk, config, &name).await,
        Node::Revoke { name } => revoke(desk, &name).await,
    }
}

async fn invite(desk: &Desk, config: &Config, name: &str) -> anyhow::Result<String> {
    let what = format!("node `{name}`");
    let (right, kind) = desk.may("invite", "node")?;
    let node = match desk.store.get(&right, kind, name).await {
        Err(Error::NotFound) => {
            let body = NewObject { name: Some(name.to_owned()), spec: json!({}), ..NewObject::default() };
            desk.store.create(&right, kind, body, &desk.asked).await.map(|made| made.object)
        }
        found => found,
    };
    let node = node.map_err(|e| said(e, &what))?;
    if node.core.deleted_at.is_some() {
        bail!("{what} is being deleted");
    }
    let joining = app::joining(config, &Arc::new(app::authority(config)?));
    let env = desk.store.env();
    let token = join::invite(env, &(joining.root_sha256)());
    let expires_at = env.now().plus_seconds(RestLimits::default().invite_seconds);
    let kept = NodeInvite { hash: token.hash, expires_at };
    desk.store.invite_node(&right, &node.core.id, kept, &desk.asked).await.map_err(|e| said(e, &what))?;
    Ok(format!(
        "rhyzome-agent join --server {} --name {} --token {}",
        joining.server, node.core.name, token.line
    ))
}

async fn revoke(desk: &Desk, name: &str) -> anyhow::Result<String> {
    let (right, _) = desk.may("revoke", "node")?;
    let taken = desk.store.revoke_certificates(&right, name, &desk.asked).await;
    let taken = taken.map_err(|e| said(e, &format!("node `{name}`")))?;
    Ok(format!(
        "revoked; certificates refused from now on: {}, invitations: {}\n`rhyzome-api node invite {name}` brings it back",
        taken.serials.len(),
        taken.invitations
    ))
}

pub(super) async fn quota(desk: &Desk, verb: Quota) -> anyhow::Result<String> {
    match verb {
        Quota::Show { tenant } => {
            let (right, _) = desk.may("get", "tenant")?;
            let all = desk.store.quota(&right, &tenant).await;
            let all = all.map_err(|e| said(e, &format!("tenant `{tenant}`")))?;
            let rows = all.into_iter().map(|(quantity, usage)| {
                let limit = usage.limit.map_or("none".to_owned(), |limit| limit.to_string());
                let whose = if usage.own { "its own" } else { "default" };
                vec![quantity, usage.used.to_string(), limit, whose.to_owned()]
            });
            Ok(columns(&["QUANTITY", "USED", "LIMIT", "WHOSE"], rows.collect()))
        }
        Quota::Set { tenant, limits } => {
            let mut quota = Map::new();
            for pair in &limits {
                let (quantity, limit) = pair.split_once('=').unwrap_or((pair, ""));
                let limit =
                    match limit {
                        "default" => Value::Null,
                        number => json!(number.parse::<u64>().ok().with_context(|| format!(
                            "`{pair}`: say QUANTITY=NUMBER, or QUANTITY=default"
                        ))?),
                    };
                quota.insert(quantity.to_owned(), limit);
            }
            desk.patch("tenant", &tenant, json!({ "spec": { "quota": quota } })).await
        }
    }
}

// === the authority ===

/// First the entry, then the deed, as with the token.
pub(super) async fn pki(desk: &Desk, config: &Config, verb: Pki) -> anyhow::Result<String> {
    let authority = app::authority(config)?;
    match verb {
        Pki::Status => {
            let http = config.http_certificate.as_ref().map(|(cert, _)| cert.as_path());
            authority::status(&desk.store, &authority, http).await
        }
        Pki::Rotate { now } => {
            desk.store.note(&desk.caller, "authority", "rotate", &desk.asked).await?;
            authority::rotate(&desk.store, &authority, now)
        }
        Pki::Retire { cut_off } => {
            desk.store.note(&desk.caller, "authority", "retire", &desk.asked).await?;
            authority::retire(&desk.store, &authority, cut_off).await
        }
    }
}

// === the token ===

pub(super) fn show_token(config: &Config) -> anyhow::Result<String> {
    let path = config.data.join(app::TOKEN_FILE);
    let text = std::fs::read_to_string(&path).with_context(|| {
        format!("{} cannot be read (`rhyzome-api token renew` makes one)", path.display())
    })?;
    Ok(text.trim().to_owned())
}

/// First the entry, then the deed: a token that was renewed and nobody knows of would be worse.
pub(super) async fn renew_token(desk: &Desk, config: &Config) -> anyhow::Result<String> {
    desk.store.note(&desk.caller, "operator-token", "renew", &desk.asked).await?;
    let token = OperatorToken::renew(&config.data.join(app::TOKEN_FILE), desk.store.env())?;
    Ok(token)
}

// === helpers ===

impl Desk {
    fn may(&self, verb: &str, kind: &str) -> anyhow::Result<(Right, &'static dyn Kind)> {
        Ok((self.caller.may(verb, kind, "")?, self.store.registry().get(kind)?))
    }

    async fn patch(&self, kind: &str, name: &str, patch: Value) -> anyhow::Result<String> {
        let what = format!("{kind} `{name}`");
        let (right, kind) = self.may("update", kind)?;
        let done = self.store.update(&right, kind, name, patch, None, &self.asked).await;
        Ok(written(done.map_err(|e| said(e, &what))?, "changed"))
    }

    async fn remove(&self, kind: &str, name: &str) -> anyhow::Result<String> {
        let what = format!("{kind} `{name}`");
        let (right, kind) = self.may("delete", kind)?;
        let gone = self.store.remove(&right, kind, name, None, &self.asked).await;
        Ok(written(gone.map_err(|e| said(e, &what))?, "taken away"))
    }

    async fn all(&self, kind: &str) -> anyhow::Result<Vec<Stored>> {
        let (right, kind) = self.may("list", kind)?;
        let mut query = ListQuery { limit: PAGE, alive: true, ..ListQuery::default() };
        let mut all = Vec::new();
        loop {
            let page = self.store.list(&right, kind, &query).await?;
            all.extend(page.items);
            match page.next {
                Some(next) => query.after = Some(next),
                None => return Ok(all),
            }
        }
    }
}

impl TenantFields {
    fn spec(&self) -> Value {
        let mut spec = Map::new();
        for (key, text) in
            [("description", &self.description), ("billing_reference", &self.billing_reference)]
        {
            if let Some(text) = text {
                spec.insert(key.to_owned(), json!(text));
            }
        }
        Value::Object(spec)
    }

    fn tags(&self) -> anyhow::Result<Vec<(String, Option<String>)>> {
        let pair = |text: &String| {
            let (key, value) =
                text.split_once('=').with_context(|| format!("--tag {text}: say KEY=VALUE"))?;
            Ok((key.to_owned(), Some(value.to_owned()).filter(|value| !value.is_empty())))
        };
        self.tags.iter().map(pair).collect()
    }
}

fn written(written: Written, done: &str) -> String {
    let core = &written.object.core;
    let job = written.job.map(|job| format!("; {job} makes it so when a server runs")).unwrap_or_default();
    let done = if written.changed { done } else { "as it was" };
    format!("{} {} ({}): {done}{job}", core.kind, core.name, core.id)
}

pub(crate) fn columns(heads: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut all = vec![heads.iter().map(|head| (*head).to_owned()).collect::<Vec<_>>()];
    all.extend(rows);
    let width = |at: usize| all.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    all.iter().map(line).collect::<Vec<_>>().join("\n")
}
