//! The calls that every kind has.

use std::collections::BTreeMap;

use axum::Json;
use axum::http::header::ETAG;
use axum::http::{HeaderValue, StatusCode};
use axum::response::IntoResponse;
use serde_json::json;

use super::extract::Ask;
use super::problem::{Answer, Problem};
use super::shape::{answer, etag, shown};
use super::write::{How, Manner, write};
use super::{envelope, page, plan};
use crate::kernel::{Caller, Error, Kind, Right};
use crate::store::Write;

/// `GET .../{plural}`
pub async fn list(ask: Ask, kind: &'static dyn Kind) -> Answer {
    let right = ask.right("list", kind.meta().kind)?;
    tenant_is_there(&ask).await?;
    list_by(ask, kind, right).await
}

/// `GET /v1/{plural}`: over all tenants.
pub async fn list_everywhere(ask: Ask, kind: &'static dyn Kind) -> Answer {
    let right = ask.caller().may_everywhere("list", kind.meta().kind)?;
    list_by(ask, kind, right).await
}

async fn list_by(ask: Ask, kind: &'static dyn Kind, right: Right) -> Answer {
    let query = page::list_query(&ask)?;
    let found = ask.ctx.store.list(&right, kind, &query).await?;
    let items = found.items.iter().map(|object| shown(kind, object, ask.caller())).collect();
    Ok(Json(page::page(items, found.next, page::order(&query))).into_response())
}

/// A tenant that is not there, or not to be seen, has no lists either.
pub async fn tenant_is_there(ask: &Ask) -> Result<(), Problem> {
    if ask.tenant().is_empty() {
        return Ok(());
    }
    if !ask.caller().knows(ask.tenant()) {
        return Err(Error::Hidden { verb: "get".to_owned(), kind: "tenant".to_owned() }.into());
    }
    // Who has rights in it knows that it is there, and whoever has them everywhere has to look.
    let kind = ask.ctx.store.registry().get("tenant")?;
    let right = Caller::system().may("get", "tenant", "")?;
    ask.ctx.store.get(&right, kind, ask.tenant()).await?;
    Ok(())
}

/// `POST .../{plural}`
pub async fn create(mut ask: Ask, kind: &'static dyn Kind) -> Answer {
    let right = ask.right("create", kind.meta().kind)?;
    ask.only_plan()?;
    let body = ask.json(false).await?;
    let body = match envelope::new_object(ask.ctx.store.registry(), kind, body) {
        Ok(body) => body,
        Err(problem) => return plan::refused(&ask, problem),
    };
    write(&ask, &right, Write::Create { kind, body }, Manner::of(&ask, kind, How::Make)).await
}

/// `GET .../{id}`
pub async fn get(ask: Ask, kind: &'static dyn Kind) -> Answer {
    let right = ask.right("get", kind.meta().kind)?;
    ask.no_query()?;
    let object = ask.ctx.store.get(&right, kind, ask.id()?).await?;
    let tag = etag(&object);
    if ask.knows(&tag) {
        let mut response = StatusCode::NOT_MODIFIED.into_response();
        if let Ok(tag) = HeaderValue::from_str(&tag) {
            response.headers_mut().insert(ETAG, tag);
        }
        return Ok(response);
    }
    Ok(answer(StatusCode::OK, kind, &object, ask.caller()))
}

/// `PATCH .../{id}`
pub async fn patch(mut ask: Ask, kind: &'static dyn Kind) -> Answer {
    let right = ask.right("update", kind.meta().kind)?;
    ask.only_plan()?;
    let if_match = ask.if_match()?;
    let patch = ask.json(false).await?;
    let errors = envelope::patch_errors(&patch);
    if !errors.is_empty() {
        // What is wrong with the spec is told in the same answer.
        let present = ask.ctx.store.get(&right, kind, ask.id()?).await?;
        right.may_change(&present.core)?;
        let registry = ask.ctx.store.registry();
        return plan::refused(&ask, envelope::with_spec_errors(registry, kind, &present, &patch, errors));
    }
    let asked = Write::Update { kind, id: ask.id()?.to_owned(), patch, if_match };
    write(&ask, &right, asked, Manner::of(&ask, kind, How::Change)).await
}

/// `DELETE .../{id}`
pub async fn delete(mut ask: Ask, kind: &'static dyn Kind) -> Answer {
    let right = ask.right("delete", kind.meta().kind)?;
    let known: &[&str] = if kind.meta().kind == "tenant" { &["plan", "cascade", "realm"] } else { &["plan"] };
    ask.query(known)?;
    let cascade = match ask.parameter("cascade") {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(page::bad("cascade", "must be `true` or `false`")),
    };
    let realm = match ask.parameter("realm") {
        None | Some("keep") => false,
        Some("delete") => true,
        Some(_) => return Err(page::bad("realm", "must be `keep` or `delete`")),
    };
    ask.no_body().await?;
    let (id, if_match) = (ask.id()?.to_owned(), ask.if_match()?);
    let asked = match cascade {
        true => Write::Empty { kind, id, if_match, realm },
        false => Write::Remove { kind, id, if_match, realm },
    };
    write(&ask, &right, asked, Manner::of(&ask, kind, How::TakeAway)).await
}

/// `GET .../{id}/revisions`
pub async fn revisions(ask: Ask, kind: &'static dyn Kind) -> Answer {
    let right = ask.right("get", kind.meta().kind)?;
    ask.query(&["limit", "page"])?;
    let limit = page::limit(&ask)?;
    let before = match page::after(&ask, "r")? {
        None => None,
        Some(place) => Some(place.parse().map_err(|_| page::bad("page", "is not one of this list"))?),
    };
    let found = ask.ctx.store.revisions(&right, kind, ask.id()?, limit, before).await?;
    let full = i64::try_from(found.len()).is_ok_and(|length| length == limit);
    let next = found.last().filter(|_| full).map(|last| last.version.to_string());
    let items = found.iter().map(|revision| json!(revision)).collect();
    Ok(Json(page::page(items, next, "r")).into_response())
}

/// `POST .../{id}/revisions/{n}/restore`
pub async fn restore(mut ask: Ask, kind: &'static dyn Kind) -> Answer {
    let right = ask.right("update", kind.meta().kind)?;
    ask.only_plan()?;
    ask.no_body().await?;
    let version = ask.param("n")?.parse().map_err(|_| Problem::not_found())?;
    let asked = Write::Restore { kind, id: ask.id()?.to_owned(), version, if_match: ask.if_match()? };
    write(&ask, &right, asked, Manner::of(&ask, kind, How::Change)).await
}

/// `GET .../{id}/rendered`
pub async fn rendered(ask: Ask, kind: &'static dyn Kind) -> Answer {
    let right = ask.right("get", kind.meta().kind)?;
    ask.no_query()?;
    let files: BTreeMap<_, _> = ask.ctx.store.rendered(&right, kind, ask.id()?).await?;
    Ok(Json(json!({ "nodes": files })).into_response())
}
