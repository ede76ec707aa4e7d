//! Members, roles and bindings as what they give; the rows by which they are found; and that nobody gives more than
//! they have.

use std::collections::BTreeMap;

use serde_json::Value;

use super::create::Maker;
use super::db::{Conn, row, values};
use super::objects;
use super::tx::{Table, Tx};
use super::{Bell, Context, browser, second_factor};
use crate::kernel::policy::{Area, Grant};
use crate::kernel::role::{self, OWNER, Permission, VIEWS, bundle};
use crate::kernel::{Clash, Error, FieldError, Stored, Verb};

/// Under which the present state of all rights has its name: another with each change.
const EPOCH: &str = "rights_epoch";

const GRANTEE: Table = Table::new("grantee", "subject, holder, tenant, role");

/// Somebody as members and bindings are found by: no two are written the same.
pub(super) fn subject(words: &[&str]) -> String {
    objects::text(&words)
}

/// The name of the present state.
pub(super) async fn epoch(conn: &mut Conn) -> Result<String, Error> {
    let row = conn.row("SELECT value FROM meta WHERE key = $1", values![EPOCH]).await?;
    Ok(row.map(|row| row.text("value")).transpose()?.unwrap_or_default())
}

/// What was known of rights is not true any more, on any server.
pub(super) async fn changed(tx: &mut Tx, context: &Context) -> Result<(), Error> {
    let sql = "INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
    tx.run(sql, values![EPOCH, context.env.id("epoch")]).await?;
    tx.ring(Bell::Rights);
    Ok(())
}

/// An object was written that says who may do what, or who somebody is.
pub(super) async fn wrote(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    object: &Stored,
    verb: &Verb,
) -> Result<(), Error> {
    let gone = *verb == Verb::Remove;
    let id = &object.core.id;
    match object.core.kind.as_str() {
        "member" | "binding" => grantees(tx, maker, object, gone).await?,
        "user" => {
            identity(tx, object, gone).await?;
            if gone || object.spec["disabled"] == serde_json::json!(true) {
                browser::of_user_ended(tx, context, object).await?;
            }
        }
        "token" if gone => {
            tx.run("DELETE FROM api_token WHERE holder = $1", values![id]).await?;
        }
        "token" | "role" => {}
        _ => return Ok(()),
    }
    changed(tx, context).await
}

/// Rewrites the rows of a member or a binding. The last owner of a tenant is taken away by operators only.
async fn grantees(tx: &mut Tx, maker: &Maker<'_>, object: &Stored, gone: bool) -> Result<(), Error> {
    let core = &object.core;
    let sql = "SELECT 1 AS one FROM grantee WHERE holder = $1 AND role = $2";
    let owned = tx.row(sql, values![&core.id, OWNER]).await?.is_some();
    if owned {
        // Two who go at the same moment must not both find the other still there.
        tx.lock(&format!("owners of {}", core.tenant)).await?;
    }
    tx.run("DELETE FROM grantee WHERE holder = $1", values![&core.id]).await?;
    let role = match object.spec["role"].as_str() {
        // Of no use to a tenant without others: it takes, or gives a part.
        Some(_) if object.spec["effect"] == "deny" || area(object) != whole(object) => "",
        role => role.unwrap_or_default(),
    };
    for subject in subjects(object).into_iter().filter(|_| !gone) {
        tx.later(&GRANTEE, row![subject, &core.id, &core.tenant, role]);
    }
    if !owned || maker.caller.operator || core.tenant.is_empty() {
        return Ok(());
    }
    let sql = "SELECT 1 AS one FROM grantee WHERE tenant = $1 AND role = $2 LIMIT 1";
    match tx.row(sql, values![&core.tenant, OWNER]).await? {
        Some(_) => Ok(()),
        None => Err(Clash::WrongState(format!(
            "it is the last owner of {}: make somebody else an owner first, or ask an operator",
            core.tenant
        ))
        .into()),
    }
}

/// Whom a member or a binding is about.
fn subjects(object: &Stored) -> Vec<String> {
    let spec = &object.spec;
    if let Some(user) = spec["user"].as_str() {
        return vec![subject(&["user", user])];
    }
    let one = |entry: &Value| {
        let text = |key: &str| entry[key].as_str();
        Some(match (text("user"), text("group"), text("authenticator")) {
            (Some(user), ..) => subject(&["user", user]),
            (None, Some(group), Some(authenticator)) => subject(&["group", authenticator, group]),
            (None, None, Some(authenticator)) => subject(&["all", authenticator]),
            _ => return None,
        })
    };
    let mut all: Vec<String> =
        spec["subjects"].as_object().into_iter().flatten().filter_map(|(_, entry)| one(entry)).collect();
    all.sort();
    all.dedup();
    all
}

async fn identity(tx: &mut Tx, user: &Stored, gone: bool) -> Result<(), Error> {
    let id = &user.core.id;
    let text = |key: &str| user.spec[key].as_str().unwrap_or_default();
    let (authenticator, subject, username) = (text("authenticator"), text("subject"), text("username"));
    if gone {
        tx.run("DELETE FROM identity WHERE holder = $1", values![id]).await?;
        second_factor::forget(tx, id).await?;
        return Ok(());
    }
    let sql = "SELECT 1 AS one FROM identity WHERE authenticator = $1 AND subject = $2 AND subject <> '' AND holder <> $3";
    if tx.row(sql, values![authenticator, subject, id]).await?.is_some() {
        return Err(Error::field("spec.subject", "is that of another user of the same authenticator"));
    }
    let sql = "INSERT INTO identity (holder, authenticator, subject, username, groups) VALUES ($1, $2, $3, $4, '[]') \
               ON CONFLICT (holder) DO UPDATE SET subject = excluded.subject";
    tx.run(sql, values![id, authenticator, subject, username]).await?;
    Ok(())
}

// === what they give ===

fn texts(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn whole(object: &Stored) -> Area {
    let tenant = &object.core.tenant;
    Area { tenant: (!tenant.is_empty()).then(|| tenant.clone()), ..Area::default() }
}

/// Which things a spec is about, by its fields `kinds`, `tags`, `object`.
pub(super) fn area(object: &Stored) -> Area {
    let spec = &object.spec;
    let tags: BTreeMap<String, String> = serde_json::from_value(spec["tags"].clone()).unwrap_or_default();
    Area {
        kinds: texts(&spec["kinds"]).map(str::to_owned).collect(),
        tags,
        object: spec["object"].as_str().map(str::to_owned),
        ..whole(object)
    }
}

/// What an object gives or takes that is a member, a binding, or a role given in all of its tenant.
pub(super) async fn of(conn: &mut Conn, object: &Stored) -> Result<Vec<Grant>, Error> {
    let (core, spec) = (&object.core, &object.spec);
    let deny = spec["effect"] == "deny";
    let new = |what: String, scopes: Vec<Permission>, except: Vec<Permission>| Grant {
        why: format!("{what} by {} `{}`", core.kind, core.name),
        deny,
        scopes,
        except,
        area: area(object),
        suspended: false,
    };
    let mut grants = Vec::new();
    let verb = if deny { "denied" } else { "given" };
    if texts(&spec["scopes"]).next().is_some() {
        let (scopes, except) = (texts(&spec["scopes"]), texts(&spec["except"]));
        grants.push(new(verb.to_owned(), Permission::all(scopes), Permission::all(except)));
    }
    let Some(name) = spec["role"].as_str() else { return Ok(grants) };
    let said = format!("role `{name}` {verb}");
    match bundle(name) {
        Some(bundle) => {
            let all = |texts: &[&'static str]| Permission::all(texts.iter().copied());
            grants.push(new(said, all(bundle.scopes), all(bundle.except)));
        }
        None => {
            let Some(role) = objects::by_id(conn, name, false).await? else { return Ok(grants) };
            let said = format!("role `{}` {verb}", role.core.name);
            let (scopes, except) = (texts(&role.spec["scopes"]), texts(&role.spec["except"]));
            grants.push(new(said, Permission::all(scopes), Permission::all(except)));
        }
    }
    Ok(grants)
}

// === who may write them ===

/// Refuses a write of what says who may do what, by somebody who has less themselves. `before`: the object as it was;
/// what it denied comes back to those whom it was denied.
pub(super) async fn refuse(
    tx: &mut Tx,
    context: &Context,
    maker: &Maker<'_>,
    object: &Stored,
    before: bool,
) -> Result<(), Error> {
    let kind = object.core.kind.as_str();
    if !before {
        let errors = unknown(context, object);
        if !errors.is_empty() {
            return Err(Error::Invalid(errors));
        }
    }
    if maker.caller.operator {
        return Ok(());
    }
    let Some(access) = &maker.caller.access else { return Ok(()) };
    if kind == crate::kernel::webhook::KIND && !before {
        let tenant = &object.core.tenant;
        return match access.sees_all(tenant) && access.touches("watch", "event", tenant) {
            true => Ok(()),
            false => Err(Error::Denied(
                "a webhook tells all that happens in the tenant, and you may not see all of it".to_owned(),
            )),
        };
    }
    if !role::RIGHTS.contains(&kind) {
        return Ok(());
    }
    let grants = of(tx, object).await?;
    let denies = grants.iter().any(|grant| grant.deny);
    // A role may be denied to somebody, too.
    if kind != "role" && denies != before {
        return Ok(());
    }
    let told = |why| Error::Denied(format!("nobody gives more than they have themselves: {why}"));
    access.can_give(&grants).map_err(told)
}

/// Kinds that there are not.
fn unknown(context: &Context, object: &Stored) -> Vec<FieldError> {
    if !["role", "binding", "token"].contains(&object.core.kind.as_str()) {
        return Vec::new();
    }
    let known = |kind: &str| kind == role::ANY || VIEWS.contains(&kind) || context.registry.get(kind).is_ok();
    let mut errors = Vec::new();
    for field in ["scopes", "except", "kinds"] {
        for (at, text) in texts(&object.spec[field]).enumerate() {
            let kind = text.split_once(':').map_or(text, |(kind, _)| kind);
            if !known(kind) {
                let reason = format!("there is no kind `{kind}`; `GET /v1` lists them");
                errors.push(FieldError::new(format!("spec.{field}.{at}"), reason));
            }
        }
    }
    errors
}
