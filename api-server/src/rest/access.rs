//! Who may do what, and why: of oneself, of one question, of one object.

use axum::Json;
use axum::response::IntoResponse;
use serde_json::{Value, json};

use super::extract::Ask;
use super::page;
use super::problem::Answer;
use crate::kernel::policy::{Decision, Grant, Thing};
use crate::kernel::role::VIEWS;
use crate::kernel::{Caller, Kind, ResourceCore};

/// `GET /v1/whoami`
pub async fn whoami(ask: Ask) -> Answer {
    ask.no_query()?;
    let caller = ask.caller();
    let texts =
        |all: &[crate::kernel::role::Permission]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
    let one = |grant: &Grant| {
        let area = &grant.area;
        json!({
            "scopes": texts(&grant.scopes), "except": texts(&grant.except), "denied": grant.deny, "why": grant.why,
            "tenant": area.tenant, "kinds": area.kinds, "tags": area.tags, "object": area.object,
            "own": area.owner.is_some(),
        })
    };
    let may: Vec<Value> = match &caller.access {
        Some(access) => access.grants.iter().map(one).collect(),
        None if caller.operator => {
            vec![
                json!({ "scopes": ["*:*"], "denied": false, "why": "operators may do everything", "tenant": null }),
            ]
        }
        None => Vec::new(),
    };
    let limit = caller.access.as_ref().and_then(|access| access.limit.as_ref());
    let tenants = caller.access.as_ref().map(|access| access.tenants()).unwrap_or_default();
    let suspended = caller.access.as_ref().map(|access| access.suspended()).unwrap_or_default();
    let user = Some(&caller.user).filter(|user| !user.is_empty());
    let body = json!({
        "name": caller.name, "credential": caller.credential, "user": user, "operator": caller.operator,
        "tenants": tenants, "suspended": suspended, "may": may, "limit": limit.map(one),
    });
    Ok(Json(body).into_response())
}

/// `GET /v1/can?verb=&kind=&tenant=&id=`
pub async fn can(ask: Ask) -> Answer {
    let query = ask.query(&["verb", "kind", "tenant", "id"])?;
    let word = |key: &str| query.get(key).map(String::as_str);
    let (Some(verb), Some(name)) = (word("verb"), word("kind")) else {
        let missing = if word("verb").is_none() { "verb" } else { "kind" };
        return Err(page::bad(missing, "must be said: `?verb=create&kind=instance`"));
    };
    let registry = ask.ctx.store.registry();
    let (tenant, caller) = (word("tenant").unwrap_or_default(), ask.caller());
    let decision = match (word("id"), registry.get(name)) {
        (_, Err(_)) if !VIEWS.contains(&name) => {
            return Err(page::bad("kind", "is none; `GET /v1` lists them"));
        }
        (Some(id), Ok(kind)) => {
            // What may not be seen is answered as what is not there.
            let found = match caller.may("get", name, tenant) {
                Ok(right) => ask.ctx.store.get(&right, kind, id).await.ok(),
                Err(_) => None,
            };
            let nowhere = || Decision::Denied("you see no such thing there".to_owned());
            found.map_or_else(nowhere, |object| of_object(caller, verb, &object.core, tenant))
        }
        _ => of_kind(caller, verb, name, tenant),
    };
    Ok(Json(json!({ "allowed": decision.is_allowed(), "why": decision.why() })).into_response())
}

fn of_object(caller: &Caller, verb: &str, core: &ResourceCore, tenant: &str) -> Decision {
    match &caller.access {
        Some(access) if !caller.operator => access.decide(verb, &Thing::of(core, tenant)),
        _ => by_operator(caller),
    }
}

fn of_kind(caller: &Caller, verb: &str, kind: &str, tenant: &str) -> Decision {
    let Some(access) = caller.access.as_ref().filter(|_| !caller.operator) else {
        return by_operator(caller);
    };
    let any = Thing { kind, tenant, id: "", tags: None, owner: None };
    match access.decide(verb, &any) {
        Decision::Denied(_) if access.touches(verb, kind, tenant) => Decision::Allowed(
            "with some of them only: by their tags, by id, or because they are your own".to_owned(),
        ),
        decision => decision,
    }
}

fn by_operator(caller: &Caller) -> Decision {
    match caller.operator {
        true => Decision::Allowed("operators may do everything".to_owned()),
        false => Decision::Denied("nothing was given to you".to_owned()),
    }
}

/// `GET .../{id}/access`
pub async fn access(ask: Ask, kind: &'static dyn Kind) -> Answer {
    let right = ask.right("get", kind.meta().kind)?;
    ask.no_query()?;
    let object = ask.ctx.store.get(&right, kind, ask.id()?).await?;
    let (caller, core) = (ask.caller(), &object.core);
    let scope = |verb: &str| format!("{}:{verb}", core.kind);
    let everything: Vec<String> = verbs(kind).map(scope).collect();
    let mut items = vec![entry("operators", everything, "operators may do everything")];
    if let Some(access) = caller.access.as_ref().filter(|_| !caller.operator) {
        let thing = Thing::of(core, ask.tenant());
        for verb in verbs(kind) {
            let decision = access.decide(verb, &thing);
            let may = if decision.is_allowed() { vec![scope(verb)] } else { Vec::new() };
            let mut item = entry("you", may, decision.why());
            item["verb"] = json!(verb);
            items.push(item);
        }
    }
    // Who else: for those who may see that anyway.
    if let Ok(right) = caller.may("list", "binding", ask.tenant()) {
        for (who, grant) in ask.ctx.store.granted_in(&right).await? {
            let (deny, why) = (grant.deny, grant.why.clone());
            let one =
                crate::kernel::policy::Access { grants: vec![Grant { deny: false, ..grant }], limit: None };
            let all =
                verbs(kind).filter(|verb| one.decide(verb, &Thing::of(core, ask.tenant())).is_allowed());
            let all: Vec<String> = all.map(scope).collect();
            if all.is_empty() {
                continue;
            }
            let mut item = entry(&who, if deny { Vec::new() } else { all.clone() }, &why);
            if deny {
                item["denied"] = json!(all);
            }
            items.push(item);
        }
    }
    Ok(Json(json!({ "items": items })).into_response())
}

fn entry(who: &str, may: Vec<String>, why: &str) -> Value {
    json!({ "who": who, "may": may, "why": why })
}

/// All that can be done with objects of a kind.
fn verbs(kind: &dyn Kind) -> impl Iterator<Item = &'static str> {
    let own: &[&str] = match kind.meta().kind {
        "instance" => &["console", "log", "ssh"],
        "snapshot" => &["content"],
        _ => &[],
    };
    ["get", "list", "create", "update", "delete"]
        .into_iter()
        .chain(kind.meta().actions.iter().map(|a| a.verb))
        .chain(own.iter().copied())
}
