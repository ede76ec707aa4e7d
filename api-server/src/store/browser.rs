//! Sessions of people in browsers, and what leads to one. A row has the hash of the secret that the browser has; who may
//! read the database can neither use a session nor end one at its provider.
//!
//! What has ended is told as logins that have ended are: to all servers, which hold sessions in memory.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use super::db::{Row, values};
use super::tx::Tx;
use super::{Asked, Context, EndedSession, Store, objects, second_factor, sessions, token_hash};
use crate::kernel::secret::Plain;
use crate::kernel::{Caller, Env, Error, Stored, Timestamp};

/// How the secrets of sessions begin: so that they are recognised where they leak.
const SECRET_PREFIX: &str = "rzs_";
/// A session that nobody has used for so long has ended.
pub const BROWSER_IDLE_SECONDS: i64 = 30 * 60;
/// However much it is used, it ends after so long.
const LONGEST_SECONDS: i64 = 12 * 3600;
/// Somebody has so many at most: the oldest one ends with a newer one.
const MOST: usize = 20;
/// Whoever was sent to a provider is back after so long, or begins anew.
const LOGIN_SECONDS: i64 = 600;

const COLUMNS: &str = "hash, authenticator, subject, username, groups, operator, only_in, domain, login, mark, hint, \
                       issued, made_at, seen_at, until";

/// What is known of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrowserSession {
    /// Hash of its secret.
    pub hash: String,
    /// Who it is, as their authenticator said when it began.
    pub caller: Caller,
    /// The tenant by whose domain they came; empty: by the server's own.
    pub domain: String,
    /// What must stay the same for as long as it goes on.
    pub mark: String,
    /// What its provider is shown when it ends, encrypted; empty: nothing.
    pub hint: String,
    /// When it began.
    pub made_at: Timestamp,
    /// When it was used last, but for a minute.
    pub seen_at: Timestamp,
    /// When it ends, however much it is used.
    pub until: Timestamp,
}

/// A session that is to begin.
#[derive(Clone, Debug, Default)]
pub struct NewBrowserSession {
    /// Hash of its secret: `browser_secret` makes one.
    pub hash: String,
    /// Who it is, as their authenticator says.
    pub caller: Caller,
    /// The tenant by whose domain they come.
    pub domain: String,
    /// What must stay the same for as long as it goes on.
    pub mark: String,
    /// What its provider is shown when it ends, encrypted.
    pub hint: String,
    /// The session that the browser has had until now: it ends.
    pub instead_of: Option<String>,
    /// The circumstances.
    pub asked: Asked,
}

/// A browser that was sent to a provider, and is not back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BrowserLogin {
    /// Hash of the secret that it has.
    pub hash: String,
    /// The authenticator's configured name.
    pub authenticator: String,
    /// The tenant by whose domain it came; empty: by the server's own.
    pub domain: String,
    /// The path to which it goes then.
    pub return_to: String,
}

/// A secret for a browser.
pub fn browser_secret(env: &Env) -> Plain {
    Plain::new(format!("{SECRET_PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(env.bytes::<32>())))
}

/// What is kept of it. It is random enough for one fast hash.
pub fn browser_hash(secret: &str) -> String {
    token_hash(secret)
}

impl BrowserSession {
    /// When it ends, if nobody uses it after this moment.
    pub fn ends(&self, seen: Timestamp) -> Timestamp {
        seen.plus_seconds(BROWSER_IDLE_SECONDS).min(self.until)
    }
}

// === sessions ===

impl Store {
    /// Begins one. Ends which others it has ended.
    pub async fn begin_browser_session(
        &self,
        new: NewBrowserSession,
    ) -> Result<(BrowserSession, Vec<EndedSession>), Error> {
        self.write(new, |tx, context, new| {
            Box::pin(async move {
                let now = context.env.now();
                tx.run("DELETE FROM browser_session WHERE until < $1", values![now]).await?;
                let mut ended = Vec::new();
                if let Some(before) = &new.instead_of {
                    ended.extend(end(tx, &context, before).await?);
                }
                let Caller { authenticator, subject, name, groups, operator, only_in, session, .. } = &new.caller;
                // Many at once must not be more than many in turn.
                tx.lock(&format!("browser sessions {authenticator} {subject}")).await?;
                let sql = "SELECT hash FROM browser_session WHERE authenticator = $1 AND subject = $2 ORDER BY made_at";
                let all = tx.rows(sql, values![authenticator, subject]).await?;
                for row in all.iter().take((all.len() + 1).saturating_sub(MOST)) {
                    ended.extend(end(tx, &context, &row.text("hash")?).await?);
                }
                let sql = format!(
                    "INSERT INTO browser_session ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $13, $14)"
                );
                let until = now.plus_seconds(LONGEST_SECONDS);
                let issued = new.caller.issued.unwrap_or(now);
                let (hash, domain, mark, hint) = (&new.hash, &new.domain, &new.mark, &new.hint);
                let (groups, operator) = (objects::text(groups), i64::from(*operator));
                let (only_in, login) = (only_in.clone().unwrap_or_default(), session.clone().unwrap_or_default());
                let row = values![
                    hash, authenticator, subject, name, groups, operator, only_in, domain, login, mark, hint, issued, now, until
                ];
                tx.run(&sql, row).await?;
                noted(tx, &context, (&new.caller, &new.asked), "session-begin").await?;
                let sql = format!("SELECT {COLUMNS} FROM browser_session WHERE hash = $1");
                let row = tx.row(&sql, values![hash]).await?;
                let row = row.ok_or_else(|| Error::Internal("a session is not there that was just made".into()))?;
                Ok((session_of(&row)?, ended))
            })
        })
        .await
    }

    /// The one of this hash.
    pub async fn browser_session(&self, hash: &str) -> Result<Option<BrowserSession>, Error> {
        let sql = format!("SELECT {COLUMNS} FROM browser_session WHERE hash = $1");
        let row = self.read().await?.row(&sql, values![hash]).await?;
        row.as_ref().map(session_of).transpose()
    }

    /// It is used.
    pub async fn browser_session_seen(&self, hash: &str, at: Timestamp) -> Result<(), Error> {
        self.write((hash.to_owned(), at), |tx, _, (hash, at)| {
            Box::pin(async move {
                let sql = "UPDATE browser_session SET seen_at = $2 WHERE hash = $1 AND seen_at < $2";
                tx.run(sql, values![hash, at]).await?;
                Ok(())
            })
        })
        .await
    }

    /// Ends one; `None`: it has ended already.
    pub async fn end_browser_session(
        &self,
        hash: &str,
        caller: &Caller,
        asked: &Asked,
    ) -> Result<Option<EndedSession>, Error> {
        let taken = (hash.to_owned(), caller.clone(), asked.clone());
        self.write(taken, |tx, context, (hash, caller, asked)| {
            Box::pin(async move {
                let ended = end(tx, &context, &hash).await?;
                if ended.is_some() {
                    noted(tx, &context, (&caller, &asked), "session-end").await?;
                }
                Ok(ended)
            })
        })
        .await
    }
}

fn session_of(row: &Row) -> Result<BrowserSession, Error> {
    let maybe = |name: &str| row.text(name).map(|text| (!text.is_empty()).then_some(text));
    let (hash, authenticator) = (row.text("hash")?, row.text("authenticator")?);
    let by = if authenticator.is_empty() { "operator-token" } else { &authenticator };
    let caller = Caller {
        name: row.text("username")?,
        credential: format!("{by}/session"),
        operator: row.truth("operator")?,
        subject: row.text("subject")?,
        groups: row.json("groups")?,
        only_in: maybe("only_in")?,
        session: maybe("login")?,
        issued: Some(row.time("issued")?),
        browser: Some(hash.clone()),
        authenticator,
        ..Caller::default()
    };
    Ok(BrowserSession {
        hash,
        caller,
        domain: row.text("domain")?,
        mark: row.text("mark")?,
        hint: row.text("hint")?,
        made_at: row.time("made_at")?,
        seen_at: row.time("seen_at")?,
        until: row.time("until")?,
    })
}

/// For the audit, of whoever has a user.
async fn noted(tx: &mut Tx, context: &Context, who: (&Caller, &Asked), verb: &str) -> Result<(), Error> {
    match second_factor::holder_of(tx, who.0).await? {
        Some(holder) => second_factor::noted(tx, context, who, &holder, verb).await,
        None => Ok(()),
    }
}

async fn end(tx: &mut Tx, context: &Context, hash: &str) -> Result<Option<EndedSession>, Error> {
    let sql = "DELETE FROM browser_session WHERE hash = $1 RETURNING until";
    let Some(row) = tx.row(sql, values![hash]).await? else { return Ok(None) };
    let now = context.env.now();
    // Nobody's configured name is empty: it is no session of a provider's.
    let (session, until) = (hash.to_owned(), row.time("until")?);
    let ended = EndedSession { session, at: now, told_at: now, until, ..EndedSession::default() };
    sessions::told(tx, now, ended.clone()).await?;
    Ok(Some(ended))
}

/// A user has gone, or is let in no more.
pub(super) async fn of_user_ended(tx: &mut Tx, context: &Context, user: &Stored) -> Result<(), Error> {
    let text = |key: &str| user.spec[key].as_str().unwrap_or_default();
    let (authenticator, subject) = (text("authenticator"), text("subject"));
    if subject.is_empty() {
        return Ok(());
    }
    let sql = "SELECT hash FROM browser_session WHERE authenticator = $1 AND subject = $2 ORDER BY made_at";
    for row in tx.rows(sql, values![authenticator, subject]).await? {
        end(tx, context, &row.text("hash")?).await?;
    }
    Ok(())
}

/// A login has ended at its provider: so have the sessions that came of it. That is known to all by what is kept of it.
pub(super) async fn login_ended(tx: &mut Tx, ended: &EndedSession) -> Result<(), Error> {
    let EndedSession { authenticator, session, subject, at, .. } = ended;
    if session.is_empty() {
        let sql = "DELETE FROM browser_session WHERE authenticator = $1 AND subject = $2 AND issued <= $3";
        tx.run(sql, values![authenticator, subject, *at]).await?;
    } else {
        let sql = "DELETE FROM browser_session WHERE authenticator = $1 AND login = $2";
        tx.run(sql, values![authenticator, session]).await?;
    }
    Ok(())
}

// === logins that are not done ===

impl Store {
    /// A browser is sent to a provider.
    pub async fn begin_browser_login(&self, login: BrowserLogin) -> Result<(), Error> {
        self.write(login, |tx, context, login| {
            Box::pin(async move {
                let now = context.env.now();
                tx.run("DELETE FROM browser_login WHERE until < $1", values![now]).await?;
                let sql = "INSERT INTO browser_login (hash, authenticator, domain, return_to, until) VALUES ($1, $2, $3, $4, $5)";
                let BrowserLogin { hash, authenticator, domain, return_to } = login;
                let until = now.plus_seconds(LOGIN_SECONDS);
                tx.run(sql, values![hash, authenticator, domain, return_to, until]).await?;
                Ok(())
            })
        })
        .await
    }

    /// It is back: nobody is let in by it again. `None`: it was, or it is too late.
    pub async fn take_browser_login(&self, hash: &str) -> Result<Option<BrowserLogin>, Error> {
        self.write(hash.to_owned(), |tx, context, hash| {
            Box::pin(async move {
                let sql = "DELETE FROM browser_login WHERE hash = $1 RETURNING authenticator, domain, return_to, until";
                let Some(row) = tx.row(sql, values![&hash]).await? else { return Ok(None) };
                if row.time("until")? <= context.env.now() {
                    return Ok(None);
                }
                let (authenticator, domain) = (row.text("authenticator")?, row.text("domain")?);
                Ok(Some(BrowserLogin { hash, authenticator, domain, return_to: row.text("return_to")? }))
            })
        })
        .await
    }
}
