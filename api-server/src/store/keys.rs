//! `Idempotency-Key`: a retry is answered with the bytes that the first request was answered with.
//!
//! The key is reserved, and the answer kept, in the transaction of the write itself: whoever crashes in
//! between has either done both or nothing. A second request under the same key waits at the row of the
//! first: PostgreSQL makes it wait for that transaction, SQLite has one writer.

use ring::hmac;
use serde_json::json;

use super::db::{DbError, Row, values};
use super::tx::Tx;
use super::{Context, Store};
use crate::kernel::{Clash, Error, Right, Timestamp};

/// For how long an answer is kept, unless an operator said otherwise.
const LIFE_SECONDS: i64 = 24 * 3600;
/// For how long a second request waits for the first.
const PATIENCE: &str = "SET LOCAL lock_timeout = '10s'";
/// How many old keys one transaction forgets.
const AT_ONCE: u64 = 1000;

/// Under which key a request was made, and what it asked.
#[derive(Clone, Debug)]
pub struct Key {
    /// Method and path: keys of different routes never meet.
    pub route: String,
    /// As the caller sent it.
    pub key: String,
    /// Id of one object of a bulk call; empty for a call as a whole.
    pub part: String,
    /// All that makes it this request and no other: query, conditions, body.
    pub request: Vec<u8>,
}

/// An answer as it is given again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeptAnswer {
    /// Its status.
    pub status: u16,
    /// Its headers, those that matter.
    pub headers: Vec<(String, String)>,
    /// Its body, byte for byte.
    pub body: Vec<u8>,
}

/// What is kept under a key.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// The answer.
    pub answer: KeptAnswer,
    /// False: it is that of the moment; whoever waits for the job may yet tell its end.
    pub settled: bool,
    /// The job that was begun.
    pub job: Option<String>,
    /// The object that was written.
    pub resource: Option<String>,
}

impl Store {
    /// Takes a key for what is done in more than one transaction, and keeps what it is to be done with; or finds
    /// what is kept there.
    pub async fn begin(&self, right: &Right, key: &Key, with: Vec<u8>) -> Result<Option<Kept>, Error> {
        let print = self.fingerprint(key).await?;
        let taken = (right.clone(), key.clone(), print, with);
        self.write(taken, move |tx, context, (right, key, print, with)| {
            Box::pin(async move {
                let caller = right.caller().identity();
                let kept = reserve(tx, &context, caller, &key, &print).await?;
                if kept.is_none() {
                    let answer = KeptAnswer { body: with, ..KeptAnswer::default() };
                    keep(tx, caller, &key, &Kept { answer, ..Kept::default() }).await?;
                }
                Ok(kept)
            })
        })
        .await
    }

    /// Settles the answer under a key, if nobody has yet: the one that all get from now on.
    pub async fn settle(&self, right: &Right, key: &Key, answer: KeptAnswer) -> Result<KeptAnswer, Error> {
        let taken = (right.clone(), key.clone(), answer);
        self.write(taken, move |tx, _, (right, key, answer)| {
            Box::pin(async move {
                let sql = "UPDATE idempotency SET settled = 1, status = $5, headers = $6, body = $7 \
                           WHERE caller = $1 AND route = $2 AND key = $3 AND part = $4 AND settled = 0";
                let caller = right.caller().identity();
                let (status, headers) = (i64::from(answer.status), json!(answer.headers).to_string());
                let here =
                    values![caller, &key.route, &key.key, &key.part, status, headers, answer.body.clone()];
                if tx.run(sql, here).await? == 1 {
                    return Ok(answer);
                }
                Ok(read(tx, caller, &key).await?.map_or(answer, |(kept, _)| kept.answer))
            })
        })
        .await
    }

    /// Forgets answers that need not be kept any more; how many.
    pub async fn forget_old_keys(&self) -> Result<u64, Error> {
        let mut forgotten = 0;
        loop {
            let gone = self
                .write((), move |tx, context, ()| {
                    Box::pin(async move {
                        let sql = "DELETE FROM idempotency WHERE (caller, route, key, part) IN \
                                   (SELECT caller, route, key, part FROM idempotency WHERE created_at <= $1 \
                                   ORDER BY created_at LIMIT $2)";
                        Ok(tx.run(sql, values![expired(&context), AT_ONCE as i64]).await?)
                    })
                })
                .await?;
            forgotten += gone;
            if gone < AT_ONCE {
                return Ok(forgotten);
            }
        }
    }

    /// The keyed hash of what a request asks: bodies may hold secrets, and these are not to be guessed from it.
    pub(super) async fn fingerprint(&self, key: &Key) -> Result<Vec<u8>, Error> {
        let context = &self.context;
        let secret = context
            .secret
            .get_or_try_init(|| async {
                let fresh: [u8; 32] = context.env.bytes();
                let fresh = rhyzome_pki::hex(&fresh);
                self.meta("idempotency_secret", fresh).await
            })
            .await?;
        let secret = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        Ok(hmac::sign(&secret, &key.request).as_ref().to_vec())
    }
}

fn expired(context: &Context) -> Timestamp {
    context.env.now().plus_seconds(-context.answer_seconds.get().copied().unwrap_or(LIFE_SECONDS))
}

/// Takes the key for this transaction, or finds what is kept under it.
pub(super) async fn reserve(
    tx: &mut Tx,
    context: &Context,
    caller: &str,
    key: &Key,
    fingerprint: &[u8],
) -> Result<Option<Kept>, Error> {
    if tx.is_postgres() {
        tx.run(PATIENCE, &[]).await?;
    }
    // Inserts, or takes over what has expired; a row that another transaction is writing is waited for.
    let sql = "INSERT INTO idempotency (caller, route, key, part, fingerprint, settled, status, headers, body, \
               created_at) VALUES ($1, $2, $3, $4, $5, 0, 0, '[]', $6, $7) \
               ON CONFLICT (caller, route, key, part) DO UPDATE SET fingerprint = excluded.fingerprint, \
               settled = 0, status = 0, headers = '[]', body = excluded.body, job = NULL, resource = NULL, \
               created_at = excluded.created_at WHERE idempotency.created_at <= $8 RETURNING status";
    let (print, nothing, now) = (fingerprint.to_vec(), Vec::new(), context.env.now());
    let here = values![caller, &key.route, &key.key, &key.part, print, nothing, now, expired(context)];
    let taken = tx.row(sql, here).await.map_err(in_flight)?;
    if tx.is_postgres() {
        tx.run("SET LOCAL lock_timeout = DEFAULT", &[]).await?;
    }
    if taken.is_some() {
        return Ok(None);
    }
    match read(tx, caller, key).await? {
        Some((_, print)) if print != fingerprint => Err(Error::KeyReused),
        Some((kept, _)) => Ok(Some(kept)),
        // Swept away between the two statements.
        None => Err(Clash::InFlight.into()),
    }
}

fn in_flight(error: DbError) -> Error {
    match error.code().as_deref() {
        Some("55P03") => Clash::InFlight.into(),
        _ => error.into(),
    }
}

async fn read(tx: &mut Tx, caller: &str, key: &Key) -> Result<Option<(Kept, Vec<u8>)>, Error> {
    let sql = "SELECT fingerprint, settled, status, headers, body, job, resource FROM idempotency \
               WHERE caller = $1 AND route = $2 AND key = $3 AND part = $4";
    let row = tx.row(sql, values![caller, &key.route, &key.key, &key.part]).await?;
    row.as_ref().map(kept).transpose()
}

fn kept(row: &Row) -> Result<(Kept, Vec<u8>), Error> {
    let answer = KeptAnswer {
        status: u16::try_from(row.int("status")?).unwrap_or(500),
        headers: row.json("headers")?,
        body: row.bytes("body")?,
    };
    let (settled, job, resource) =
        (row.truth("settled")?, row.maybe_text("job")?, row.maybe_text("resource")?);
    Ok((Kept { answer, settled, job, resource }, row.bytes("fingerprint")?))
}

/// Keeps what is answered, before the write is committed with it.
pub(super) async fn keep(tx: &mut Tx, caller: &str, key: &Key, kept: &Kept) -> Result<(), Error> {
    let sql = "UPDATE idempotency SET settled = $5, status = $6, headers = $7, body = $8, job = $9, resource = $10 \
               WHERE caller = $1 AND route = $2 AND key = $3 AND part = $4";
    let answer = &kept.answer;
    let here = values![
        caller,
        &key.route,
        &key.key,
        &key.part,
        kept.settled,
        i64::from(answer.status),
        json!(answer.headers).to_string(),
        answer.body.clone(),
        kept.job.clone(),
        kept.resource.clone(),
    ];
    tx.run(sql, here).await?;
    Ok(())
}
