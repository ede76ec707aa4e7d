//! Users: made at their first login, made by hand, and what they have said last. And the secrets of their tokens.

use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use super::change::{Asked, NewObject};
use super::create::{self, Maker};
use super::db::values;
use super::jobs::Intent;
use super::tx::Tx;
use super::{Context, Store, grants, objects};
use crate::kernel::secret::Plain;
use crate::kernel::{Caller, Error, Facts, Stored, Verb};

/// How API tokens begin: so that they are recognised where they leak.
pub const TOKEN_PREFIX: &str = "rzt_";
/// The last use of a token is written so often at most.
const USE_EVERY: Duration = Duration::from_secs(60);

impl Store {
    /// Makes the user of somebody who is here for the first time, or finds the one that was made for them before.
    pub async fn first_login(&self, caller: &Caller) -> Result<(), Error> {
        if caller.subject.is_empty() || caller.authenticator.is_empty() {
            return Err(Error::Internal("an authenticator does not say who its caller is".to_owned()));
        }
        let done = self
            .write(caller.clone(), |tx, context, caller| {
                Box::pin(async move { first_login(tx, &context, &caller).await })
            })
            .await;
        done.map_err(|error| match error {
            Error::Invalid(all) => {
                let all: Vec<_> = all.iter().map(|one| format!("`{}` {}", one.field, one.reason)).collect();
                Error::Unauthenticated(format!("nobody can be known here like this: {}", all.join("; ")))
            }
            error => error,
        })
    }

    /// The users of this name, whoever knows them.
    pub async fn users_called(&self, username: &str) -> Result<Vec<Stored>, Error> {
        let sql = format!(
            "SELECT {} FROM identity i JOIN resource r ON r.id = i.holder WHERE i.username = $1 ORDER BY r.id LIMIT 100",
            objects::COLUMNS
        );
        let rows = self.read().await?.rows(&sql, values![username]).await?;
        Ok(rows.iter().map(objects::stored).collect::<Result<_, _>>()?)
    }

    /// The groups that an authenticator has said; tokens go by them.
    pub(super) async fn groups_are(&self, user: &str, groups: String) -> Result<(), Error> {
        self.write((user.to_owned(), groups), |tx, context, (user, groups)| {
            Box::pin(async move {
                let sql = "UPDATE identity SET groups = $2 WHERE holder = $1 AND groups <> $2";
                if tx.run(sql, values![user, groups]).await? == 1 {
                    grants::changed(tx, &context).await?;
                }
                Ok(())
            })
        })
        .await
    }

    /// A token was used: written within moments, and once a minute.
    pub fn token_used(&self, id: &str, source: &str) {
        let now = self.env().uptime();
        {
            let mut used = self.rights.used.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if used.get(id).is_some_and(|last| now.saturating_sub(*last) < USE_EVERY) {
                return;
            }
            used.retain(|_, last| now.saturating_sub(*last) < USE_EVERY);
            used.insert(id.to_owned(), now);
        }
        let (store, taken) = (self.clone(), (id.to_owned(), source.to_owned()));
        tokio::spawn(async move {
            let written = store.write(taken, |tx, context, (id, source)| {
                Box::pin(async move {
                    let Some(mut token) = objects::by_id(tx, &id, true).await? else { return Ok(()) };
                    token.status = json!({ "last_used_at": context.env.now(), "last_used_from": source });
                    objects::update_status(tx, &mut token).await
                })
            });
            if let Err(error) = written.await {
                tracing::warn!(%error, "the last use of a token was not written");
            }
        });
    }
}

/// What is kept of a token's secret.
pub fn token_hash(secret: &str) -> String {
    rhyzome_pki::hex(&Sha256::digest(secret))
}

/// Makes the secret of a new token. It is random enough for one fast hash.
pub(super) async fn new_secret(tx: &mut Tx, context: &Context, token: &Stored) -> Result<Plain, Error> {
    let ends = &token.spec["expires_at"];
    if serde_json::from_value(ends.clone())
        .is_ok_and(|ends: crate::kernel::Timestamp| ends <= context.env.now())
    {
        return Err(Error::field("spec.expires_at", "is over already: say a time to come"));
    }
    let secret = format!("{TOKEN_PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(context.env.bytes::<32>()));
    let sql = "INSERT INTO api_token (holder, hash) VALUES ($1, $2)";
    tx.run(sql, values![&token.core.id, token_hash(&secret)]).await?;
    Ok(Plain::new(secret))
}

async fn first_login(tx: &mut Tx, context: &Context, caller: &Caller) -> Result<(), Error> {
    // Two requests of one browser come at once.
    tx.lock(&format!("first login {} {}", caller.authenticator, caller.subject)).await?;
    let sql = "SELECT 1 AS one FROM identity WHERE authenticator = $1 AND subject = $2";
    if tx.row(sql, values![&caller.authenticator, &caller.subject]).await?.is_some() {
        return Ok(());
    }
    let right = Caller { operator: true, ..caller.clone() }.may("create", "user", "")?;
    let asked = Asked { reason: Some("first login".to_owned()), ..Asked::default() };
    let maker = Maker::of(&right, &asked);
    let sql =
        "SELECT holder FROM identity WHERE username = $1 AND authenticator = $2 AND subject = '' LIMIT 1";
    if let Some(row) = tx.row(sql, values![&caller.name, &caller.authenticator]).await? {
        let awaited = objects::by_id(tx, &row.text("holder")?, true).await?;
        let mut user = awaited.ok_or_else(|| Error::Internal("a user without an object".to_owned()))?;
        user.spec["subject"] = json!(caller.subject);
        if let Some(tenant) = &caller.only_in {
            user.spec["only_in"] = json!(tenant);
        }
        user.core.generation += 1;
        user.core.version += 1;
        user.core.updated_at = context.env.now();
        let intent = Intent::new(Verb::Update, Vec::new());
        return create::finish(tx, context, &maker, user, intent, &Facts::default()).await.map(drop);
    }
    let mut spec = json!({
        "username": caller.name, "authenticator": caller.authenticator, "subject": caller.subject,
    });
    if let Some(tenant) = &caller.only_in {
        spec["only_in"] = json!(tenant);
    }
    let name = free_name(tx, context, &caller.name).await?;
    let body = NewObject { name: Some(name), spec, ..NewObject::default() };
    create::create(tx, context, &maker, context.registry.get("user")?, body).await.map(drop)
}

/// A name for a user, like their own.
async fn free_name(tx: &mut Tx, context: &Context, username: &str) -> Result<String, Error> {
    let plain = username.to_ascii_lowercase();
    let plain: String =
        plain.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(40).collect();
    let plain = match plain.trim_matches('-') {
        "" => "user",
        plain => plain,
    };
    let taken = objects::by_name(tx, "user", "", plain).await?.is_some();
    let refused = crate::kernel::name::refuse(plain, crate::kernel::NameRule::Label).is_some();
    Ok(if taken || refused { format!("{plain}-{}", context.env.below(1 << 40)) } else { plain.to_owned() })
}
