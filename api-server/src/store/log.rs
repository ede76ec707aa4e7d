//! The event log: one leader takes what transactions have left in `event` and appends it, numbered without gaps,
//! each entry chained to the one before by its hash. Chaining inside the transactions would serialise them all.
//!
//! Rows are taken by deleting them, so that none is taken twice, and whatever is there is taken, so that none is
//! missed, in whatever order transactions commit. The head's row is written by every append and names the
//! leader's epoch: a leader that wakes up late finds another epoch there and writes nothing.

use std::sync::Arc;

use rhyzome_pki::hex;
use sha2::{Digest, Sha256};

use super::db::{Conn, Row, Value, values};
use super::history::{self, COLUMNS, Entry};
use super::tx::{Tx, padded, places};
use super::{Bell, Context, Store};
use crate::kernel::{Error, Timestamp};

/// For how long whoever leads the log may be silent.
pub const LOG_LEASE_SECONDS: i64 = 15;
/// At most so many entries are appended by one transaction.
pub const MOST_APPENDED: usize = 512;

/// The hash before the first entry.
pub(super) const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// One entry of the log.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Event {
    /// Its number: 1, 2, 3, without gaps.
    pub seq: i64,
    /// When it was appended; never falls.
    pub recorded_at: Timestamp,
    /// When it happened.
    pub at: Timestamp,
    /// `write`, `job`, `phase`, `denied`, `anonymous`, `system`.
    pub class: String,
    /// Whose; empty for operators' objects.
    pub tenant: String,
    /// Kind of the object.
    pub kind: String,
    /// Its id.
    pub resource: String,
    /// Its name then.
    pub name: String,
    /// What was done.
    pub verb: String,
    /// `accepted`, `done`, `failed`, `cancelled`, `denied`; empty for a phase.
    pub outcome: String,
    /// The phase that the object came into; may be empty.
    pub phase: String,
    /// Version of the object.
    pub version: i64,
    /// The job; may be empty.
    pub job: String,
    /// Who.
    pub actor: String,
    /// With which credential.
    pub credential: String,
    /// From which address.
    pub source: String,
    /// Of the request.
    pub request_id: String,
    /// The caller's reason, a job's problem, or how often.
    pub detail: String,
    /// True: what it said was erased, its digest stays.
    pub erased: bool,
}

impl Event {
    /// What everybody is told who may see it: readers of streams, and webhooks.
    pub fn told(&self) -> serde_json::Value {
        let perhaps = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        serde_json::json!({
            "seq": self.seq,
            "at": self.at,
            "recorded_at": self.recorded_at,
            "class": self.class,
            "tenant": perhaps(&self.tenant),
            "kind": self.kind,
            "resource": self.resource,
            "name": self.name,
            "verb": self.verb,
            "outcome": self.outcome,
            "phase": perhaps(&self.phase),
            "version": self.version,
            "job": perhaps(&self.job),
            "actor": self.actor,
            "detail": self.detail,
        })
    }
}

/// The right to append, as long as nobody else has taken it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLease {
    /// Which server.
    pub holder: String,
    /// Raised whenever another one takes it.
    pub epoch: i64,
}

/// Where the log begins and ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogHead {
    /// The first entry that is kept.
    pub first: i64,
    /// The last entry; 0 if there is none.
    pub seq: i64,
    /// Its hash.
    pub hash: String,
}

/// Signs and checks checkpoints, with a key that the database does not hold.
pub trait Seal: Send + Sync {
    /// Tells keys apart.
    fn key(&self) -> String;
    /// A signature, as text.
    fn sign(&self, message: &[u8]) -> String;
    /// Whether this key made that signature.
    fn is_ours(&self, message: &[u8], signature: &str) -> bool;
}

impl Store {
    /// Takes the lease on the log, or renews it. `None`: another server has it. `alone`: there is no other.
    pub async fn lead_log(&self, holder: &str, alone: bool) -> Result<Option<LogLease>, Error> {
        let holder = holder.to_owned();
        self.write((holder, alone), move |tx, context, (holder, alone)| {
            Box::pin(async move {
                let now = context.env.now();
                let sql = "UPDATE log_head SET epoch = CASE WHEN holder = $1 AND until > $2 THEN epoch ELSE epoch + 1 \
                           END, holder = $1, until = $3 WHERE id = 1 AND (holder = $1 OR until <= $2 OR $4 = 1) \
                           RETURNING epoch";
                let until = now.plus_seconds(LOG_LEASE_SECONDS);
                let row = tx.row(sql, values![&holder, now, until, alone]).await?;
                Ok(row.map(|row| row.int("epoch")).transpose()?.map(|epoch| LogLease { holder, epoch }))
            })
        })
        .await
    }

    /// Gives the lease back, so that another server need not wait for its end.
    pub async fn leave_log(&self, lease: &LogLease) -> Result<(), Error> {
        self.write(lease.clone(), move |tx, _, lease| {
            Box::pin(async move {
                let sql = "UPDATE log_head SET until = 0 WHERE id = 1 AND holder = $1 AND epoch = $2";
                tx.run(sql, values![lease.holder, lease.epoch]).await?;
                Ok(())
            })
        })
        .await
    }

    /// Appends what waits, at most `MOST_APPENDED` entries: how many. `None`: the lease is another's by now,
    /// and nothing was written.
    pub async fn append_log(&self, lease: &LogLease) -> Result<Option<usize>, Error> {
        Ok(self.append_waiting(lease, 0, Vec::new()).await?.map(|taken| taken.len()))
    }

    /// The same, of what waits behind this number, and of these before it; with which numbers they waited, in order.
    /// What was taken before stays in the way of whoever looks there, for as long as any transaction may yet want to
    /// see it. If nothing waits, nothing is locked or written.
    pub async fn append_log_after(
        &self,
        lease: &LogLease,
        number: i64,
        missing: Vec<i64>,
    ) -> Result<Option<Vec<i64>>, Error> {
        let (sql, values) = waiting(number, &missing, 1);
        if self.read().await?.rows(&sql, &values).await?.is_empty() {
            return Ok(Some(Vec::new()));
        }
        self.append_waiting(lease, number, missing).await
    }

    async fn append_waiting(
        &self,
        lease: &LogLease,
        number: i64,
        missing: Vec<i64>,
    ) -> Result<Option<Vec<i64>>, Error> {
        self.write((lease.clone(), number, missing), move |tx, context, (lease, number, missing)| {
            Box::pin(async move { append(tx, &context, &lease, number, &missing).await })
        })
        .await
    }

    /// Signs the last entry, unless it is signed. `None`: the lease is another's by now.
    pub async fn seal_log(&self, lease: &LogLease, seal: Arc<dyn Seal>) -> Result<Option<i64>, Error> {
        self.write((lease.clone(), seal), move |tx, context, (lease, seal)| {
            Box::pin(async move {
                let Some((head, _)) = locked_head(tx, &lease).await? else { return Ok(None) };
                if head.seq > 0 {
                    let at = context.env.now();
                    let signature = seal.sign(&checkpoint_message(head.seq, &head.hash, at));
                    let sql = "INSERT INTO log_checkpoint (seq, hash, at, key, signature) \
                               VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING";
                    tx.run(sql, values![head.seq, head.hash, at, seal.key(), signature]).await?;
                }
                Ok(Some(head.seq))
            })
        })
        .await
    }

    /// Number of the last signed entry; 0 if there is none.
    pub async fn sealed_log(&self) -> Result<i64, Error> {
        sealed(&mut self.read().await?).await
    }

    /// Where the log begins and ends.
    pub async fn log_head(&self) -> Result<LogHead, Error> {
        head(&mut self.read().await?).await
    }

    /// Entries behind this number, first to last.
    pub async fn log_after(&self, seq: i64, limit: i64) -> Result<Vec<Event>, Error> {
        after(&mut self.read().await?, seq, limit).await
    }

    /// Number of the last entry that was recorded before this moment; 0 if there is none.
    pub async fn log_before(&self, moment: Timestamp) -> Result<i64, Error> {
        before(&mut self.read().await?, moment).await
    }
}

/// A word of the system itself.
pub(super) async fn system(tx: &mut Tx, context: &Context, verb: &str, detail: &str) -> Result<(), Error> {
    let entry = Entry {
        class: "system",
        kind: "log",
        verb,
        outcome: "done",
        actor: "system",
        credential: "none",
        detail,
        ..Entry::default()
    };
    history::add(tx, context, entry);
    Ok(())
}

// === appending ===

/// The head, and when its entry was recorded; locked, if the lease is still good.
pub(super) async fn locked_head(
    tx: &mut Tx,
    lease: &LogLease,
) -> Result<Option<(LogHead, Timestamp)>, Error> {
    let sql = format!(
        "SELECT first, seq, hash, recorded_at FROM log_head WHERE id = 1 AND holder = $1 AND epoch = $2{}",
        tx.for_update()
    );
    let Some(row) = tx.row(&sql, values![&lease.holder, lease.epoch]).await? else { return Ok(None) };
    Ok(Some((head_of(&row)?, row.time("recorded_at")?)))
}

/// The numbers of what waits behind this one, at most so many, and of these before it; with the values.
fn waiting(after: i64, missing: &[i64], most: usize) -> (String, Vec<Value>) {
    let mut sql = format!(
        "SELECT number FROM (SELECT number FROM event WHERE number > $1 ORDER BY number LIMIT {most}) AS behind"
    );
    let missing = padded(missing);
    if !missing.is_empty() {
        let list = places(1, missing.len(), 2);
        sql.push_str(&format!(" UNION ALL SELECT number FROM event WHERE number IN {list}"));
    }
    let values = std::iter::once(after).chain(missing).map(Value::from).collect();
    (sql, values)
}

async fn append(
    tx: &mut Tx,
    context: &Context,
    lease: &LogLease,
    after: i64,
    missing: &[i64],
) -> Result<Option<Vec<i64>>, Error> {
    let Some((mut head, recorded)) = locked_head(tx, lease).await? else { return Ok(None) };
    let (which, values) = waiting(after, missing, MOST_APPENDED);
    let sql = format!("DELETE FROM event WHERE number IN ({which}) RETURNING number, {COLUMNS}");
    let mut taken = Vec::new();
    for row in tx.rows(&sql, &values).await? {
        taken.push((row.int("number")?, content(&row)?));
    }
    if taken.is_empty() {
        return Ok(Some(Vec::new()));
    }
    taken.sort_by_key(|(number, _)| *number);
    let recorded_at = context.env.now().max(recorded);
    let numbers = taken.iter().map(|(number, _)| *number).collect();
    let mut rows = Vec::with_capacity(taken.len());
    for (_, event) in taken {
        let event = Event { seq: head.seq + 1, recorded_at, ..event };
        let digest = digest(&event);
        let hash = chain(&head.hash, event.seq, recorded_at, &digest);
        rows.push(row_of(&event, &digest, &head.hash, &hash));
        (head.seq, head.hash) = (event.seq, hash);
    }
    let insert = format!(
        "INSERT INTO event_log (seq, recorded_at, {COLUMNS}, audited, erased, digest, prev, hash) VALUES"
    );
    tx.put(&insert, "", rows).await?;
    let sql = "UPDATE log_head SET seq = $3, hash = $4, recorded_at = $5 WHERE id = 1 AND holder = $1 AND epoch = $2";
    tx.run(sql, values![&lease.holder, lease.epoch, head.seq, head.hash, recorded_at]).await?;
    tx.ring(Bell::Log);
    Ok(Some(numbers))
}

fn row_of(event: &Event, digest: &str, prev: &str, hash: &str) -> Vec<Value> {
    vec![
        event.seq.into(),
        event.recorded_at.into(),
        event.at.into(),
        (&event.class).into(),
        (&event.tenant).into(),
        (&event.kind).into(),
        (&event.resource).into(),
        (&event.name).into(),
        (&event.verb).into(),
        (&event.outcome).into(),
        (&event.phase).into(),
        event.version.into(),
        (&event.job).into(),
        (&event.actor).into(),
        (&event.credential).into(),
        (&event.source).into(),
        (&event.request_id).into(),
        (&event.detail).into(),
        is_audited(&event.class).into(),
        false.into(),
        digest.into(),
        prev.into(),
        hash.into(),
    ]
}

// === what is hashed ===

/// The audit shows writes and denials; that jobs end and phases change follows from them.
pub(super) fn is_audited(class: &str) -> bool {
    !matches!(class, "job" | "phase")
}

/// Of everything that an entry says.
pub(super) fn digest(event: &Event) -> String {
    let said = serde_json::json!([
        "rhyzome-event-1",
        event.at.0,
        event.class,
        event.tenant,
        event.kind,
        event.resource,
        event.name,
        event.verb,
        event.outcome,
        event.phase,
        event.version,
        event.job,
        event.actor,
        event.credential,
        event.source,
        event.request_id,
        event.detail,
    ]);
    hex(&Sha256::digest(said.to_string()))
}

/// The hash of an entry: over the one before, its number, its time and its digest.
pub(super) fn chain(prev: &str, seq: i64, recorded_at: Timestamp, digest: &str) -> String {
    hex(&Sha256::digest(format!("rhyzome-chain-1\n{prev}\n{seq}\n{}\n{digest}\n", recorded_at.0)))
}

/// What is signed.
pub(super) fn checkpoint_message(seq: i64, hash: &str, at: Timestamp) -> Vec<u8> {
    format!("rhyzome-checkpoint-1\n{seq}\n{hash}\n{}\n", at.0).into_bytes()
}

// === reading ===

pub(super) async fn head(conn: &mut Conn) -> Result<LogHead, Error> {
    let row = conn.row("SELECT first, seq, hash FROM log_head WHERE id = 1", &[]).await?;
    head_of(&row.ok_or_else(|| Error::Internal("the log has no head".into()))?)
}

pub(super) async fn sealed(conn: &mut Conn) -> Result<i64, Error> {
    let row = conn.row("SELECT coalesce(max(seq), 0) AS seq FROM log_checkpoint", &[]).await?;
    Ok(row.map(|row| row.int("seq")).transpose()?.unwrap_or_default())
}

fn head_of(row: &Row) -> Result<LogHead, Error> {
    Ok(LogHead { first: row.int("first")?, seq: row.int("seq")?, hash: row.text("hash")? })
}

pub(super) async fn after(conn: &mut Conn, seq: i64, limit: i64) -> Result<Vec<Event>, Error> {
    let sql = format!(
        "SELECT seq, recorded_at, {COLUMNS}, erased FROM event_log WHERE seq > $1 ORDER BY seq LIMIT $2"
    );
    conn.rows(&sql, values![seq, limit]).await?.iter().map(event).collect()
}

pub(super) async fn before(conn: &mut Conn, moment: Timestamp) -> Result<i64, Error> {
    let sql = "SELECT seq FROM event_log WHERE recorded_at < $1 ORDER BY recorded_at DESC, seq DESC LIMIT 1";
    let row = conn.row(sql, values![moment]).await?;
    Ok(row.map(|row| row.int("seq")).transpose()?.unwrap_or_default())
}

/// An entry from its row.
pub(super) fn event(row: &Row) -> Result<Event, Error> {
    Ok(Event {
        seq: row.int("seq")?,
        recorded_at: row.time("recorded_at")?,
        erased: row.truth("erased")?,
        ..content(row)?
    })
}

fn content(row: &Row) -> Result<Event, Error> {
    Ok(Event {
        at: row.time("at")?,
        class: row.text("class")?,
        tenant: row.text("tenant")?,
        kind: row.text("kind")?,
        resource: row.text("resource")?,
        name: row.text("name")?,
        verb: row.text("verb")?,
        outcome: row.text("outcome")?,
        phase: row.text("phase")?,
        version: row.int("version")?,
        job: row.text("job")?,
        actor: row.text("actor")?,
        credential: row.text("credential")?,
        source: row.text("source")?,
        request_id: row.text("request_id")?,
        detail: row.text("detail")?,
        ..Event::default()
    })
}
