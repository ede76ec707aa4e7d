//! What people show besides their password: a code of an app, whose key is sealed and never shown again, or one of ten
//! codes for when the app is gone. All of it is rows: a code that was taken at one server counts at no other.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

use super::change::Asked;
use super::create::Maker;
use super::db::{Conn, Row, values};
use super::tx::Tx;
use super::{Context, Store, grants, history, objects, secrets};
use crate::kernel::caller::SecondFactor;
use crate::kernel::secret::{self, Plain};
use crate::kernel::{Caller, Clash, Error, Timestamp, totp};

/// Wrong codes of one person: so many at once, then one each so often, at whichever server. Whoever gets so far knows
/// the password.
const TRIES: i64 = 5;
const EACH_SECONDS: i64 = 300;
/// How many codes are given for when the app is gone, and of how many random bytes each is.
const RECOVERY: usize = 10;
const RECOVERY_BYTES: usize = 10;

/// What somebody still owes who came by a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owed {
    /// Nothing.
    Nothing,
    /// A code.
    Code,
    /// They must show codes, and cannot yet.
    Enrolment,
}

/// What came of a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proven {
    /// It counts, this once.
    Right,
    /// It is another one, or was taken before.
    Wrong,
    /// There were too many wrong ones: not before so many seconds.
    TooMany(i64),
}

/// What is known of somebody's second factor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SecondFactorState {
    /// Since when it counts.
    pub confirmed_at: Option<Timestamp>,
    /// Codes that are left for when the app is gone.
    pub recovery_codes: i64,
}

impl Store {
    /// What this caller still owes, as the authenticator said them.
    pub async fn owed(&self, said: &Caller) -> Result<Owed, Error> {
        let Some(policy) = said.second_factor else { return Ok(Owed::Nothing) };
        let has = match said.operator {
            // The configuration's own operators: nothing of them is kept in memory.
            true => self.second_factor(said).await?.confirmed_at.is_some(),
            false => self.has_second_factor(said).await?,
        };
        Ok(match (has, policy) {
            (true, _) => Owed::Code,
            (false, SecondFactor::Required) => Owed::Enrolment,
            (false, SecondFactor::IfEnrolled) => Owed::Nothing,
        })
    }

    /// What is known of theirs.
    pub async fn second_factor(&self, caller: &Caller) -> Result<SecondFactorState, Error> {
        let mut conn = self.read().await?;
        let sql = "SELECT f.holder, f.secret, f.confirmed_at FROM identity i JOIN second_factor f ON f.holder = i.holder \
                   WHERE i.authenticator = $1 AND i.subject = $2 AND i.subject <> ''";
        let row = conn.row(sql, values![&caller.authenticator, &caller.subject]).await?;
        let Some(row) = row.filter(|row| row.text("secret").is_ok_and(|id| !id.is_empty())) else {
            return Ok(SecondFactorState::default());
        };
        let sql = "SELECT count(*) AS many FROM recovery_code WHERE holder = $1";
        let left = conn.row(sql, values![row.text("holder")?]).await?;
        let left = left.map(|row| row.int("many")).transpose()?.unwrap_or_default();
        let confirmed_at = Some(Timestamp(row.int("confirmed_at")?));
        Ok(SecondFactorState { confirmed_at, recovery_codes: left })
    }

    /// Takes a code, or one of those for when the app is gone.
    pub async fn prove_second(&self, caller: &Caller, given: &str) -> Result<Proven, Error> {
        self.write((caller.clone(), given.to_owned()), |tx, context, (caller, given)| {
            Box::pin(async move {
                let Some(row) = locked(tx, &caller).await? else { return Ok(Proven::Wrong) };
                let holder = row.text("holder")?;
                // Nobody guesses one of these: whoever guesses at the app's does not shut out its owner.
                let is_recovery = !totp::looks_like_one(&given);
                if is_recovery {
                    let sql = "DELETE FROM recovery_code WHERE holder = $1 AND hash = $2";
                    if tx.run(sql, values![&holder, hash(&given)]).await? == 1 {
                        return Ok(Proven::Right);
                    }
                }
                if let Some(wait) = wait(&context, &row)? {
                    return Ok(Proven::TooMany(wait));
                }
                if !is_recovery {
                    let key = key_of(tx, &context, &holder, &row.text("secret")?).await?;
                    let last = row.int("last_step")?;
                    if let Some(step) = totp::matching(&key, &given, context.env.now(), last) {
                        let sql = "UPDATE second_factor SET last_step = $2 WHERE holder = $1";
                        tx.run(sql, values![holder, step]).await?;
                        return Ok(Proven::Right);
                    }
                }
                was_wrong(tx, &context, &row).await?;
                Ok(Proven::Wrong)
            })
        })
        .await
    }

    /// Makes a key for an app. It counts when a code of it was shown; what counted before counts until then.
    pub async fn enrol_second(&self, caller: &Caller, asked: &Asked) -> Result<Vec<u8>, Error> {
        by_password(caller)?;
        // The configuration's own operators have no user, and need one now.
        self.first_login(caller).await?;
        self.write((caller.clone(), asked.clone()), |tx, context, (caller, asked)| {
            Box::pin(async move {
                let key = context.env.bytes::<{ totp::KEY_BYTES }>();
                let holder = holder_of(tx, &caller).await?.ok_or(Error::NotFound)?;
                tx.lock(&format!("second factor {holder}")).await?;
                let (id, plain) = (context.env.id(secret::PREFIX), Plain::new(BASE64_STANDARD.encode(key)));
                secrets::keep_one(tx, &context, &holder, (id.as_str(), secrets::SECOND_FACTOR), &plain).await?;
                let sql = "DELETE FROM secret WHERE holder = $1 AND id = \
                           (SELECT f.pending FROM second_factor f WHERE f.holder = $1)";
                tx.run(sql, values![&holder]).await?;
                let sql = "INSERT INTO second_factor (holder, secret, pending, confirmed_at, last_step, tries_until) \
                           VALUES ($1, '', $2, 0, 0, 0) ON CONFLICT (holder) DO UPDATE SET pending = excluded.pending";
                tx.run(sql, values![&holder, id]).await?;
                noted(tx, &context, (&caller, &asked), &holder, "second-factor-enrol").await?;
                Ok(key.to_vec())
            })
        })
        .await
    }

    /// The app shows the right code: from now on one is demanded. Ten codes for when the app is gone, which nobody sees
    /// again.
    pub async fn confirm_second(
        &self,
        caller: &Caller,
        given: &str,
        asked: &Asked,
    ) -> Result<Vec<Plain>, Error> {
        by_password(caller)?;
        let taken = (caller.clone(), given.to_owned(), asked.clone());
        let confirmed = self
            .write(taken, |tx, context, (caller, given, asked)| {
                Box::pin(async move { confirm(tx, &context, (&caller, &asked), &given).await })
            })
            .await?;
        let wrong = || Error::field("code", "is not the one that the app shows now: is its clock right?");
        confirmed.ok_or_else(wrong)
    }

    /// Takes one's own away.
    pub async fn drop_second(&self, caller: &Caller, asked: &Asked) -> Result<(), Error> {
        by_password(caller)?;
        self.write((caller.clone(), asked.clone()), |tx, context, (caller, asked)| {
            Box::pin(async move {
                let Some(holder) = holder_of(tx, &caller).await? else { return Ok(()) };
                drop_of(tx, &context, (&caller, &asked), &holder).await
            })
        })
        .await
    }

    /// Takes a user's away, for whoever may change users.
    pub async fn drop_second_of(&self, caller: &Caller, user: &str, asked: &Asked) -> Result<(), Error> {
        let taken = (caller.clone(), user.to_owned(), asked.clone());
        self.write(taken, |tx, context, (caller, user, asked)| {
            Box::pin(async move { drop_of(tx, &context, (&caller, &asked), &user).await })
        })
        .await
    }
}

/// Whether one of this user counts.
pub(super) async fn counts(conn: &mut Conn, user: &str) -> Result<bool, Error> {
    let sql = "SELECT 1 AS one FROM second_factor WHERE holder = $1 AND secret <> ''";
    Ok(conn.row(sql, values![user]).await?.is_some())
}

/// A user has gone.
pub(super) async fn forget(tx: &mut Tx, user: &str) -> Result<(), Error> {
    tx.run("DELETE FROM recovery_code WHERE holder = $1", values![user]).await?;
    tx.run("DELETE FROM second_factor WHERE holder = $1", values![user]).await?;
    Ok(())
}

fn by_password(caller: &Caller) -> Result<(), Error> {
    match caller.second_factor {
        Some(_) => Ok(()),
        None => Err(Clash::WrongState(
            "a second factor goes with a password, and you came by something else: log in with name and password".into(),
        )
        .into()),
    }
}

/// The user that somebody is, as their authenticator said them.
pub(super) async fn holder_of(tx: &mut Tx, caller: &Caller) -> Result<Option<String>, Error> {
    let sql = "SELECT holder FROM identity WHERE authenticator = $1 AND subject = $2 AND subject <> ''";
    let row = tx.row(sql, values![&caller.authenticator, &caller.subject]).await?;
    Ok(row.map(|row| row.text("holder")).transpose()?)
}

/// Their row, and nobody else's until the end.
async fn locked(tx: &mut Tx, caller: &Caller) -> Result<Option<Row>, Error> {
    let Some(holder) = holder_of(tx, caller).await? else { return Ok(None) };
    let sql = format!(
        "SELECT holder, secret, pending, last_step, tries_until FROM second_factor WHERE holder = $1{}",
        tx.for_update()
    );
    Ok(tx.row(&sql, values![holder]).await?)
}

async fn key_of(tx: &mut Tx, context: &Context, holder: &str, id: &str) -> Result<Vec<u8>, Error> {
    let plain = secrets::open_one(tx, context, holder, (id, secrets::SECOND_FACTOR)).await?;
    BASE64_STANDARD.decode(plain.reveal()).map_err(|_| Error::Internal("a key of an app is no BASE64".into()))
}

// === tries ===

/// How long until there is a try, if there is none.
fn wait(context: &Context, row: &Row) -> Result<Option<i64>, Error> {
    let now = context.env.now();
    let next = Timestamp(row.int("tries_until")?).max(now).plus_seconds(EACH_SECONDS);
    let over = next.0 - now.plus_seconds(EACH_SECONDS * TRIES).0;
    Ok((over > 0).then_some(over / 1_000_000 + 1))
}

async fn was_wrong(tx: &mut Tx, context: &Context, row: &Row) -> Result<(), Error> {
    let until = Timestamp(row.int("tries_until")?).max(context.env.now()).plus_seconds(EACH_SECONDS);
    let sql = "UPDATE second_factor SET tries_until = $2 WHERE holder = $1";
    tx.run(sql, values![row.text("holder")?, until]).await?;
    Ok(())
}

// === enrolment ===

/// `None`: the code is another one; that counts as a try.
async fn confirm(
    tx: &mut Tx,
    context: &Context,
    (caller, asked): (&Caller, &Asked),
    given: &str,
) -> Result<Option<Vec<Plain>>, Error> {
    let none =
        || Clash::WrongState("there is nothing to confirm: `POST /v1/second-factor` makes a key".into());
    let row = locked(tx, caller).await?.ok_or_else(none)?;
    let (holder, before, pending) = (row.text("holder")?, row.text("secret")?, row.text("pending")?);
    if pending.is_empty() {
        return Err(none().into());
    }
    if let Some(wait) = wait(context, &row)? {
        return Err(Error::field("code", format!("there were too many wrong ones: try again in {wait} s")));
    }
    let key = key_of(tx, context, &holder, &pending).await?;
    let now = context.env.now();
    let Some(step) = totp::matching(&key, given, now, 0) else {
        was_wrong(tx, context, &row).await?;
        return Ok(None);
    };
    let sql = "UPDATE second_factor SET secret = pending, pending = '', confirmed_at = $2, last_step = $3 WHERE holder = $1";
    tx.run(sql, values![&holder, now, step]).await?;
    tx.run("DELETE FROM secret WHERE holder = $1 AND id = $2", values![&holder, before]).await?;
    tx.run("DELETE FROM recovery_code WHERE holder = $1", values![&holder]).await?;
    let mut codes = Vec::new();
    for _ in 0..RECOVERY {
        let code = Plain::new(spelled(&context.env.bytes::<RECOVERY_BYTES>()));
        let sql = "INSERT INTO recovery_code (holder, hash) VALUES ($1, $2)";
        tx.run(sql, values![&holder, hash(code.reveal())]).await?;
        codes.push(code);
    }
    grants::changed(tx, context).await?;
    noted(tx, context, (caller, asked), &holder, "second-factor-confirm").await?;
    Ok(Some(codes))
}

async fn drop_of(tx: &mut Tx, context: &Context, who: (&Caller, &Asked), holder: &str) -> Result<(), Error> {
    tx.lock(&format!("second factor {holder}")).await?;
    // As whoever proves it does: first this row, then the codes.
    let sql = format!("SELECT 1 AS one FROM second_factor WHERE holder = $1{}", tx.for_update());
    if tx.row(&sql, values![holder]).await?.is_none() {
        return Ok(());
    }
    forget(tx, holder).await?;
    let sql = "DELETE FROM secret WHERE holder = $1 AND field = $2";
    tx.run(sql, values![holder, secrets::SECOND_FACTOR]).await?;
    grants::changed(tx, context).await?;
    noted(tx, context, who, holder, "second-factor-drop").await
}

/// For the audit.
pub(super) async fn noted(
    tx: &mut Tx,
    context: &Context,
    (caller, asked): (&Caller, &Asked),
    holder: &str,
    verb: &str,
) -> Result<(), Error> {
    let Some(user) = objects::by_id(tx, holder, false).await? else { return Ok(()) };
    // Whether they may was asked before: everybody may do this with their own.
    let right = Caller { operator: true, ..caller.clone() }.may("update", "user", "")?;
    history::noted(tx, context, &Maker::of(&right, asked), &user, verb);
    Ok(())
}

/// `abcd-efgh-ijkl-mnop`
fn spelled(bytes: &[u8]) -> String {
    let text = totp::base32(bytes).to_lowercase();
    let parts: Vec<String> =
        text.as_bytes().chunks(4).map(|part| String::from_utf8_lossy(part).into_owned()).collect();
    parts.join("-")
}

/// They are random enough for one fast hash. However they are typed.
fn hash(given: &str) -> String {
    let plain: String = given.chars().filter(|c| c.is_ascii_alphanumeric()).collect();
    rhyzome_pki::hex(&Sha256::digest(plain.to_ascii_lowercase()))
}
